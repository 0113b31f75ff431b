"""``--against twin:…`` of ``nemo carbon`` and ``nemo cost``: fetches the ledger and the continuum, and replays them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from metaos.accounting.export import entries
from metaos.accounting.ledger import Tampered
from metaos.accounting.statement import Booked, Line
from metaos.cli.accounts import moment
from metaos.cli.connection import with_client
from metaos.cli.ledger import download
from metaos.cli.output import emit, fit, screen_width, table
from metaos.clock import SystemClock
from metaos.http import HttpClient
from metaos.resources import scheme
from metaos.resources.meta import Obj, format_time, name, namespace, parse_time
from metaos.twin.live import copy_of
from metaos.twin.text import ScenarioError

#: Lines of the ledger that one replay reads.
MOST_LINES = 500_000
_NAMES = {
    "energyKWh": "energy kWh",
    "cpuHours": "core hours",
    "locationGrams": "location g",
    "marketGrams": "market g",
    "marginalGrams": "marginal g",
    "hardwareGrams": "hardware g",
    "aboveIdleGrams": "above idle, location g",
}


def show(options: dict[str, Any], output: str, kubeconfig: Path | None, data: Path) -> None:
    """Asks, replays and prints. Raises ``ValueError`` and ``ApiError`` for what the command tells."""
    from metaos.twin.counterfactual import against
    from metaos.twin.past import NEMO, POLICIES

    policy = options["against"].partition(":")[2]
    if policy not in POLICIES or policy == NEMO:
        known = ", ".join(f"twin:{each}" for each in POLICIES if each != NEMO)
        raise click.BadParameter(f"there is no policy {policy!r}: write one of {known}", param_hint="--against")
    clock = SystemClock()
    asked = {key: moment(options[key], f"--{key}", clock.now()) for key in ("since", "until") if options[key]}
    with tempfile.TemporaryFile() as file:

        async def fetch(client: HttpClient) -> tuple[dict[str, Any], list[Obj], list[Obj], list[Obj]]:
            await download(client, file, 0)
            kinds = (scheme.CLUSTER, scheme.TARIFF, scheme.JOB)
            lists = [(await client.list(kind)).items for kind in kinds]
            return await copy_of(client, 1.0), lists[0], lists[1], lists[2]

        copied, clusters, tariffs, jobs = with_client(kubeconfig, data, fetch)
        file.seek(0)
        found = selected(file, *(parse_time(asked[key]) if key in asked else None for key in ("since", "until")))
    if not found:
        raise click.ClickException("nothing is booked for that time: a site books after each metering period")
    since = parse_time(asked["since"]) if "since" in asked else float(min(header["start"] for header, _ in found))
    until = float(max(header["end"] for header, _ in found))
    created = {("Job", namespace(job), name(job)): parse_time(job["metadata"]["creationTimestamp"]) for job in jobs}
    click.echo(f"replays {(until - since) / 3600:.3g} h in the twin, twice", err=True)
    try:
        answer = against(found, copied, clusters, tariffs, created, policy, since, until, wanted(options))
    except ScenarioError as error:
        raise click.ClickException(str(error)) from None
    answer |= {"since": format_time(since), "until": format_time(until)}
    width = screen_width()
    emit(answer, output, text="\n".join(fit(render(answer, width), width)))


def selected(lines: Any, since: float | None, until: float | None) -> list[Booked]:
    """Entries of an export that end after ``since`` and up to ``until``. Raises ``click.ClickException``."""
    found: list[Booked] = []
    count = 0
    try:
        for _, entry in entries(lines):
            if entry is None or (since is not None and entry.header["end"] <= since):
                continue
            if until is not None and entry.header["end"] > until:
                continue
            count += len(entry.lines)
            if count > MOST_LINES:
                raise click.ClickException(f"more than {MOST_LINES} lines are booked in that time: say a later --since")
            found.append((entry.header, entry.lines))
    except Tampered as wrong:
        raise click.ClickException(f"the ledger does not hold: {wrong}") from None
    return found


def wanted(options: dict[str, Any]) -> Any:
    """Of a line: whether it is asked for."""
    spaces, about = set(options["namespaces"]), str(options["workload"]).lower()

    def holds(line: Line) -> bool:
        named = f"{line['workload']['kind']}/{line['workload']['name']}".lower()
        return (not spaces or line["namespace"] in spaces) and (not about or named == about)

    return holds


def render(answer: dict[str, Any], width: int = 0) -> list[str]:
    """For people, on a screen of so many columns (0: of any)."""
    rows = []
    for row in answer["figures"]:
        error = "-" if row["replayError"] is None else f"{float(row['replayError']):+.1%}"
        real, nemo, other, saved = (_number(row[key]) for key in ("booked", "nemo", "policy", "saved"))
        rows.append((_NAMES.get(row["figure"], row["figure"]), real, nemo, error, other, saved))
    head = ("figure", "booked", "NEMO replayed", "off by", f"twin:{answer['policy']}", "saved by NEMO")
    return [
        f"{answer['since']} to {answer['until']}",
        *table(head, rows, width),
        "",
        f"against twin:{answer['policy']}: {answer['meaning']}",
        "saved: that replay less the replay of NEMO's own policy, so that both have the same error; 'off by': how far NEMO's own "
        "replay is from what was booked. What is saved by less than that is not shown to be saved",
        *(f"assumed: {text}" for text in answer["assumed"]),
        *(f"note: {text}" for text in answer["leftOut"]),
    ]


def _number(text: str | None) -> str:
    """Four significant digits; ``-``: not known, of all or of some line."""
    return "-" if text is None else f"{float(text):.4g}"
