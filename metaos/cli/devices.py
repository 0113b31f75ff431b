"""Commands about low-end devices: making them, what they do, and keeping them out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from metaos.cli.options import NAMESPACE, OUTPUT, default_data, hub_options

if TYPE_CHECKING:
    from metaos.http import HttpClient
    from metaos.resources.meta import Obj

#: Bytes of one request of an import: the hub takes a little more.
MOST_BYTES = 2_500_000
#: How often a batch is sent where the hub does not answer in time.
TRIES = 10
#: How long a command waits for a device that is offline, in seconds.
QUEUE_SECONDS = 86400
OUT = click.option("--out", type=click.Path(path_type=Path), help="Write it there, for you alone, instead of printing it.")
FORCE = click.option("--force", is_flag=True, help="Replace a file that is there.")
LABEL = click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label; may be given several times.")


@click.group()
def device() -> None:
    """Low-end devices: add them, import many, command, keep out, remove. See also 'kubectl get devices'.

    \b
    Example: nemo device add lamp -n home --out nemo.json
    """


@device.command()
@click.argument("name")
@NAMESPACE
@LABEL
@click.option("--owner", default="", help="Who answers for it.")
@click.option("--place", default="", help="Where it is, in words.")
@OUT
@FORCE
@OUTPUT
@hub_options
def add(
    name: str,
    namespace: str,
    labels: tuple[str, ...],
    owner: str,
    place: str,
    out: Path | None,
    force: bool,
    output: str,
    **hub: Any,
) -> None:
    """Make a device, and print what it logs in with: this once. The example's client takes it as it is.

    \b
    Example: nemo device add lamp -n home --label floor=2 --out nemo.json
    """
    from metaos.resources import scheme

    _can_write(out, force)
    where = namespace or "default"
    spec: Obj = ({"owner": owner} if owner else {}) | ({"location": {"place": place}} if place else {})
    body: Obj = {**scheme.DEVICE.empty(name, where), "spec": spec}
    body["metadata"]["labels"] = _labels(labels)

    _give(_config(_asked(hub, lambda client: _added(client, body))), out, output)


@device.command()
@click.argument("name")
@NAMESPACE
@OUT
@FORCE
@OUTPUT
@hub_options
def credentials(name: str, namespace: str, out: Path | None, force: bool, output: str, **hub: Any) -> None:
    """Give a device new credentials, printed this once. Those that it had count no more.

    \b
    Example: nemo device credentials lamp -n home --out nemo.json --force
    """
    _can_write(out, force)
    where = namespace or "default"
    _give(_config(_asked(hub, lambda client: _posted(client, where, f"devices/{name}/credential"))), out, output)


@device.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@NAMESPACE
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where credentials go: a line of JSON each.")
@FORCE
@OUTPUT
@hub_options
def import_(file: Path, namespace: str, out: Path, force: bool, output: str, **hub: Any) -> None:
    """Make many devices from a CSV file, 10000 in one request.

    Columns: name (needed), owner, place, latitude, longitude, labels (a=b;c=d), any label.KEY, desired (a JSON object). Rows that
    the hub refuses are said, and the others are made.

    \b
    Example: nemo device import devices.csv -n home --out credentials.jsonl
    """
    import json

    from metaos.cli.output import emit
    from metaos.devices.batch import rows
    from metaos.files import write_private

    _can_write(out, force)
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            found = rows(lines)
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not text in UTF-8: save it as CSV in UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    where = namespace or "default"
    made: list[Obj] = []
    refused: list[Obj] = []

    async def act(client: HttpClient) -> None:
        for part in _parts(found):
            answer = await _batch(client, where, part)
            shared = {key: answer.get(key) for key in ("servers", "authorities", "appKey")}
            made.extend({"namespace": where, **each, **shared} for each in answer["credentials"])
            refused.extend(answer["refused"])
            # What was made is kept, whatever becomes of the rest.
            write_private(out, "".join(json.dumps(each) + "\n" for each in made).encode())

    _asked(hub, act)
    said = [f"{len(made)} devices were made: their credentials are in {out}"] if made else ["no device was made"]
    said += [f"{each['name']}: {each['message']}" for each in refused]
    emit({"made": len(made), "refused": refused}, output, text="\n".join(said))
    if refused:
        raise SystemExit(1)


@device.command()
@click.argument("name")
@click.argument("action")
@NAMESPACE
@click.option("--arguments", default="", metavar="JSON", help="What the action is to be done with.")
@click.option("--wait", is_flag=True, help="Fail where it does not answer now; otherwise the command waits for it, a day.")
@click.option("--timeout", type=click.FloatRange(0.1, 50), default=10.0, show_default=True, help="Seconds until it is given up.")
@OUTPUT
@hub_options
def command(name: str, action: str, namespace: str, arguments: str, wait: bool, timeout: float, output: str, **hub: Any) -> None:
    """Have a device do something, and print what it says.

    \b
    Example: nemo device command lamp blink --arguments '{"times": 3}' --wait -n home
    """
    import json

    from metaos.cli.output import emit
    from metaos.resources.errors import ApiError

    spec: Obj = {"action": action, "timeoutSeconds": timeout, "queueSeconds": 0 if wait else QUEUE_SECONDS}
    if arguments:
        try:
            spec["arguments"] = json.loads(arguments)
        except ValueError as error:
            why = f"{arguments[:80]!r} must be JSON, for example '{{\"times\": 3}}': {error}"
            raise click.BadParameter(why, param_hint="--arguments") from None
    where = namespace or "default"
    try:
        answer = _asked(hub, lambda client: _posted(client, where, f"devices/{name}/command", spec))["status"]
    except ApiError as error:
        if wait and error.code == 504:
            remedy = f"without --wait the command waits for the device, up to {QUEUE_SECONDS // 3600} h"
            raise ApiError(error.code, error.reason, f"{error.message.partition(': say queueSeconds')[0]}: {remedy}") from None
        raise
    waits = f"device {name} is not there: the command waits for it"
    text = waits if answer["state"] == "Queued" else f"{answer['state']}: {json.dumps(answer['result'])}"
    emit(answer, output, text=text)
    if answer["state"] == "Failed":
        raise SystemExit(1)


@device.command()
@click.argument("name")
@NAMESPACE
@click.option("--count", type=click.IntRange(1, 100_000), required=True, help="How many devices may be made with it.")
@click.option("--expires", default="30d", show_default=True, help="How long it counts, for example 12h or 30d; a year at most.")
@click.option("--prefix", default="", help="What the names of these devices begin with.")
@click.option(
    "--certificate",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a client certificate and its key here (PEM), instead of a token.",
)
@FORCE
@LABEL
@OUTPUT
@hub_options
def claim(
    name: str,
    namespace: str,
    count: int,
    expires: str,
    prefix: str,
    certificate: Path | None,
    force: bool,
    labels: tuple[str, ...],
    output: str,
    **hub: Any,
) -> None:
    """Print a token, or write a certificate, with which new devices enrol themselves, each under a name and with credentials of
    its own.

    \b
    Example: nemo device claim line-3 --count 500 --prefix line-3- -n home
    """
    from random import SystemRandom

    from metaos.cli.credentials import seconds_of
    from metaos.cli.output import emit
    from metaos.clock import SystemClock
    from metaos.devices.credentials import SECRET_BYTES, ClaimToken, hashed
    from metaos.files import write_private
    from metaos.resources import scheme
    from metaos.resources.meta import format_time

    where, secret = namespace or "default", SystemRandom().randbytes(SECRET_BYTES).hex()
    try:
        seconds = seconds_of(expires, "")
    except ValueError as error:
        raise click.BadParameter(str(error).strip(), param_hint="--expires") from None
    _can_write(certificate, force, "--certificate")
    until = format_time(SystemClock().now() + seconds)
    spec: Obj = {"count": count, "expirationTime": until, "labels": _labels(labels)}
    spec |= {"namePrefix": prefix} if prefix else {}
    wanted: Obj = {**scheme.DEVICE_CLAIM.empty(name, where), "spec": spec}
    if certificate is not None:
        write_private(certificate, _asked(hub, lambda client: _certified(client, wanted, seconds)))
        shown = {"file": str(certificate), "count": count, "expirationTime": until}
        emit(shown, output, text=f"claim {name}: its certificate and key are in {certificate}")
        return
    spec["sha256"] = hashed(secret)
    _asked(hub, lambda client: client.create(wanted))
    token = str(ClaimToken(where, name, secret))
    emit({"token": token, "count": count, "expirationTime": until}, output, text=token)


async def _certified(client: HttpClient, claim: Obj, seconds: int) -> bytes:
    """Makes a claim; its certificate and key. The key is made here."""
    from contextlib import suppress

    from metaos.cli.credentials import certified
    from metaos.devices.credentials import CLAIM_SIGNER, CertifiedClaim
    from metaos.resources.errors import ApiError
    from metaos.resources.meta import name, namespace, uid
    from metaos.resources.scheme import DEVICE_CLAIM
    from metaos.security.identity import new_request

    where, named = namespace(claim), name(claim)
    # Too long a name is told before anything is made.
    CertifiedClaim(where, named, "").subject()
    made = await client.create(claim)
    pem, key = new_request(*CertifiedClaim(where, named, uid(made)).subject())
    try:
        return await certified(client, pem, CLAIM_SIGNER, f"claim {where}/{named}", seconds) + key
    except Exception:
        # Nobody has anything to show for it. Where it may not be deleted either, it is of no use to anybody and has an end.
        with suppress(ApiError):
            await client.delete(DEVICE_CLAIM, named, where)
        raise


@device.command()
@click.argument("name")
@NAMESPACE
@click.option("--reason", default="", help="Why, for people.")
@OUTPUT
@hub_options
def quarantine(name: str, namespace: str, reason: str, output: str, **hub: Any) -> None:
    """Cut a device's connection and refuse it until it is released.

    \b
    Example: nemo device quarantine lamp --reason stolen -n home
    """
    _patched(name, namespace, {"quarantined": True, "quarantineReason": reason or None}, "is kept out", output, hub)


@device.command()
@click.argument("name")
@NAMESPACE
@OUTPUT
@hub_options
def release(name: str, namespace: str, output: str, **hub: Any) -> None:
    """Let a device in again that was kept out.

    \b
    Example: nemo device release lamp -n home
    """
    _patched(name, namespace, {"quarantined": None, "quarantineReason": None}, "may come in", output, hub)


@device.command()
@click.argument("names", nargs=-1, required=True)
@NAMESPACE
@OUTPUT
@hub_options
def remove(names: tuple[str, ...], namespace: str, output: str, **hub: Any) -> None:
    """Decommission devices: their credentials count no more, and what was known of them goes.

    \b
    Example: nemo device remove lamp bell -n home
    """
    from metaos.cli.output import emit
    from metaos.resources import scheme

    where = namespace or "default"

    async def act(client: HttpClient) -> None:
        for name in names:
            await client.delete(scheme.DEVICE, name, where)

    _asked(hub, act)
    emit({"removed": list(names)}, output, text="\n".join(f"device {name} goes" for name in names))


def _patched(name: str, namespace: str, spec: Obj, said: str, output: str, hub: dict[str, Any]) -> None:
    from metaos.cli.output import emit
    from metaos.resources import scheme

    patch = {"spec": spec}
    _asked(hub, lambda client: client.patch(scheme.DEVICE, name, namespace or "default", patch))
    emit({"name": name, **spec}, output, text=f"device {name} {said}")


def _asked(hub: dict[str, Any], act: Callable[[HttpClient], Any]) -> Any:
    from metaos.cli.connection import with_client

    return with_client(hub["kubeconfig"], hub["data"] or default_data("hub"), act)


async def _added(client: HttpClient, body: Obj) -> Obj:
    """Makes a Device; its first credentials. Where this had made it before, and got no credentials, it goes on from there."""
    from metaos.resources import scheme
    from metaos.resources.errors import ApiError
    from metaos.resources.meta import name, namespace

    named, where = name(body), namespace(body)
    try:
        await client.create(body)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise
        found = await client.get(scheme.DEVICE, named, where)
        same = (
            body["spec"].items() <= found["spec"].items()
            and (found["metadata"].get("labels") or {}) == body["metadata"]["labels"]
        )
        if "credential" in found["spec"] or not same:
            remedy = f"for new credentials say 'nemo device credentials {named} -n {where}'"
            raise ApiError(error.code, error.reason, f"{error.message}: {remedy}") from None
    return await _posted(client, where, f"devices/{named}/credential")


async def _posted(client: HttpClient, where: str, path: str, spec: Obj | None = None) -> Obj:
    import json
    from urllib.parse import quote

    from metaos.http import json_of
    from metaos.resources.meta import API_VERSION, GROUP, VERSION

    kinds = {"devicebatches": "DeviceBatch", "command": "DeviceCommand", "credential": "DeviceCredential"}
    body = {"apiVersion": API_VERSION, "kind": kinds[path.rpartition("/")[2]], "metadata": {}, "spec": spec or {}}
    asked = f"/apis/{GROUP}/{VERSION}/namespaces/{quote(where, safe='')}/{quote(path)}"
    found: Obj = json_of(await client.request("POST", asked, json.dumps(body).encode()), asked)
    return found


async def _batch(client: HttpClient, where: str, devices: list[Obj]) -> Obj:
    """Asked again under the same name where no answer came: what was made then is answered now."""
    from random import SystemRandom

    from metaos.resources.errors import ApiError

    spec = {"id": SystemRandom().randbytes(12).hex(), "devices": devices}
    for left in reversed(range(TRIES)):
        try:
            found: Obj = (await _posted(client, where, "devicebatches", spec))["status"]
            return found
        except ApiError as error:
            if error.code not in (503, 504) or not left:
                raise
    raise AssertionError


def _parts(found: Iterable[Obj]) -> Iterator[list[Obj]]:
    """As few requests as there may be."""
    import json

    from metaos.devices.batch import MOST_DEVICES

    part: list[Obj] = []
    size = 0
    for row in found:
        more = len(json.dumps(row))
        if part and (len(part) >= MOST_DEVICES or size + more > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(row)
        size += more
    if part:
        yield part


def _labels(pairs: Iterable[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} must be KEY=VALUE, for example floor=2", param_hint="--label")
        found[key] = value
    return found


def _config(answer: Obj) -> Obj:
    """What the example's client reads."""
    return {"namespace": answer["metadata"]["namespace"], "name": answer["metadata"]["name"], **answer["status"]}


def _can_write(out: Path | None, force: bool, option: str = "--out") -> None:
    """Looked at before anything is made: credentials are shown once. Raises ``ValueError``, and ``click.BadParameter`` for what
    is there already."""
    import os

    if out is None:
        return
    if out.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
        raise ValueError(
            f"{option} '{out}' cannot be written: name a file in a directory that is there, and that you may write to"
        )
    if out.exists() and not force:
        raise click.BadParameter(f"'{out}' is there already: name another file, or replace it with --force", param_hint=option)


def _give(config: Obj, out: Path | None, output: str) -> None:
    import json

    from metaos.cli.output import emit
    from metaos.files import write_private

    if out is None:
        emit(config, output, text=json.dumps(config, indent=2))
        return
    write_private(out, (json.dumps(config, indent=2) + "\n").encode())
    emit({"name": config["name"], "file": str(out)}, output, text=f"device {config['name']}: what it logs in with is in {out}")
