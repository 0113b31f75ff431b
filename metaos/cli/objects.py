"""Commands about objects: why, and intents."""

from __future__ import annotations

import json
from pathlib import Path

import click

from metaos.cli.connection import with_client
from metaos.cli.output import emit, screen_width
from metaos.http import HttpClient
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, name, namespace


def parse_workload(text: str) -> tuple[str, str]:
    """``deployment/web``, ``deploy/web`` → (``deployment``, ``web``). Raises ``ValueError`` with the remedy."""
    word, _, wanted = text.partition("/")
    for kind in scheme.WORKLOADS:
        if wanted and word.lower() in (kind.kind.lower(), kind.plural, *kind.short_names):
            return kind.kind.lower(), wanted
    known = ", ".join(kind.kind.lower() for kind in scheme.WORKLOADS)
    raise ValueError(f"workload {text!r} must be KIND/NAME with one of {known}, for example deployment/web")


def show_why(workload: str, where: str, output: str, kubeconfig: Path | None, data: Path) -> None:
    """Prints the explanation of one Placement."""
    from metaos.scheduler.explain import explain, render

    kind, wanted = parse_workload(workload)
    where = where or "default"

    async def read(client: HttpClient) -> tuple[Obj, list[Obj], list[Obj], Obj | None]:
        try:
            placement = await client.get(scheme.PLACEMENT, f"{kind}-{wanted}", where)
        except ApiError as error:
            if error.code == 404:
                if kind == "deployment" and await _on_devices(client, wanted, where):
                    from metaos.controllers.deviceworkload import PREFIX

                    shown = f"kubectl describe deviceset {PREFIX}{wanted} -n {where}"
                    what = f"deployment {wanted!r} in namespace {where!r} runs on devices, not on sites"
                    raise ApiError(404, "NotFound", f"{what}: see '{shown}'") from None
                remedy = f"is it applied? See 'kubectl get {kind} -n {where}'"
                raise ApiError(404, "NotFound", f"{kind} {wanted!r} in namespace {where!r} has no placement: {remedy}") from None
            raise
        clusters = await client.list(scheme.CLUSTER)
        intents = await client.list(scheme.INTENT, where)
        return placement, clusters.items, intents.items, await _present(client, placement)

    found = explain(*with_client(kubeconfig, data, read))
    emit(found, output, text=render(found, screen_width()))


async def _on_devices(client: HttpClient, wanted: str, where: str) -> bool:
    from metaos.devices.workload import on_devices

    try:
        return on_devices(await client.get(scheme.DEPLOYMENT, wanted, where))
    except ApiError as error:
        if error.code in (403, 404):
            return False
        raise


async def _present(client: HttpClient, placement: Obj) -> Obj | None:
    """What the hub says of a workload as it is: the Placement has the figures of when it was decided. ``None`` for who may not
    ask that, and for what is not decided any more: a Job that has ended, a Pod that is bound."""
    about = (placement.get("spec") or {}).get("workloadRef") or {}
    kind = scheme.by_kind(str(about.get("apiVersion")), str(about.get("kind")))
    if kind is None:
        return None
    try:
        obj = await client.get(kind, str(about.get("name")), namespace(placement))
        spec = {"objects": [obj], "alternatives": False}
        review = {"apiVersion": scheme.PLACEMENT_REVIEW.api_version, "kind": scheme.PLACEMENT_REVIEW.kind, "spec": spec}
        answer = await client.create(review)
    except ApiError as error:
        if error.code in (403, 404, 405, 422, 429):
            return None
        raise
    rows = (answer.get("status") or {}).get("workloads") or ()
    return next((row for row in rows if (row["kind"], row["name"]) == (about.get("kind"), about.get("name"))), None)


def list_intents(where: str, output: str, kubeconfig: Path | None, data: Path) -> None:
    """Prints intents with fulfilment and message."""

    async def read(client: HttpClient) -> list[Obj]:
        return (await client.list(scheme.INTENT, where)).items

    intents = with_client(kubeconfig, data, read)
    for each in intents:
        each["metadata"].pop("managedFields", None)  # as kubectl shows objects
    if output == "text" and (width := screen_width()):
        from rich.console import Console

        from metaos.cli.status import intent_table

        Console(width=width).print(intent_table(intents))
        return
    lines = [f"{'NAMESPACE':<16}{'NAME':<28}{'FULFILMENT':<14}MESSAGE"]
    for item in intents:
        status = item.get("status") or {}
        lines.append(f"{namespace(item):<16}{name(item):<28}{status.get('fulfilment', 'Unknown'):<14}{status.get('message', '')}")
    emit(intents, output, text="\n".join(lines) if intents else "no intents found: see examples/intents/")


def export_intent(wanted: str, where: str, kubeconfig: Path | None, data: Path) -> None:
    """Prints an Intent in the 3GPP form."""
    from metaos.network.threegpp import to_3gpp

    async def read(client: HttpClient) -> Obj:
        return await client.get(scheme.INTENT, wanted, where)

    click.echo(json.dumps(to_3gpp(with_client(kubeconfig, data, read)), indent=2))


def import_intent(raw: bytes) -> None:
    """Prints the manifest of an intent in the 3GPP form."""
    import yaml

    from metaos.network.threegpp import from_3gpp

    try:
        document = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"the file is not JSON: {error}") from None
    click.echo(yaml.safe_dump(from_3gpp(document), sort_keys=False), nl=False)
