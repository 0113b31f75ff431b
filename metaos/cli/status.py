"""``nemo status``: sites with health, load, carbon and price; intents; what moved lately and why."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from metaos.cli.connection import with_client
from metaos.cli.output import emit
from metaos.clock import SystemClock
from metaos.http import HttpClient
from metaos.resources import quantity, scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, condition, is_true, name, namespace, parse_time, resource_version

#: Reasons of events that say that work was placed or moved.
MOVES = ("Placed", "Moved", "Migrating", "ReplacementReady", "Switched", "Drained", "Stopped", "Unplaceable", "SiteLost")
RECENT = 8
#: Columns from which on the whole table of sites fits.
WIDE = 110
#: Of a screen that stays open.
REFRESH_SECONDS = 2.0
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Continuum:
    """What the screen shows, as read from the hub."""

    clusters: Sequence[Obj]
    intents: Sequence[Obj]
    events: Sequence[Obj]


async def read(client: HttpClient) -> Continuum:
    """Reads it."""
    clusters = await client.list(scheme.CLUSTER)
    intents = await client.list(scheme.INTENT)
    events = [e for e in (await client.list(scheme.EVENT)).items if e.get("reason") in MOVES]
    # Times are whole seconds: of one second, the later written comes later.
    events.sort(
        key=lambda e: (str(e.get("lastTimestamp") or e.get("eventTime") or ""), int(resource_version(e) or 0)), reverse=True
    )
    return Continuum(clusters.items, intents.items, events[:RECENT])


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The next hours as a row of bars, scaled between their own least and greatest."""
    shown = list(values[:width])
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = high - low or 1.0
    return "".join(_BARS[round((v - low) / span * (len(_BARS) - 1))] for v in shown)


def site_row(cluster: Obj) -> dict[str, Any]:
    """One site as plain values (units in the names)."""
    spec, status = cluster.get("spec") or {}, cluster.get("status") or {}
    carbon = status.get("carbon") or {}
    usage, allocatable = status.get("usage") or {}, status.get("allocatable") or {}
    ready = condition(cluster, "Ready")
    return {
        "name": name(cluster),
        "health": _health(cluster),
        "since": (ready or {}).get("lastTransitionTime", ""),
        "tier": spec.get("tier", ""),
        "region": (spec.get("location") or {}).get("region", ""),
        "cpuUsedMilli": quantity.milli(usage.get("cpu", 0)),
        "cpuAllocatableMilli": quantity.milli(allocatable.get("cpu", 0)),
        "pods": int(quantity.whole(usage.get("pods", 0))),
        "carbonGramsPerKWh": carbon.get("intensity"),
        "carbonForecast": carbon.get("forecast") or [],
        "carbonSource": carbon.get("source", ""),
        "pricePerCpuHour": (spec.get("price") or {}).get("cpuHour"),
        "currency": (spec.get("price") or {}).get("currency", ""),
    }


def _health(cluster: Obj) -> str:
    if cluster.get("metadata", {}).get("deletionTimestamp"):
        return "Leaving"
    if not is_true(cluster, "Ready"):
        found = condition(cluster, "Ready")
        return "Lost" if found and found.get("status") == "Unknown" else "NotReady"
    return "Cordoned" if (cluster.get("spec") or {}).get("unschedulable") else "Ready"


_COLOURS = {
    "Ready": "green",
    "Cordoned": "yellow",
    "Leaving": "yellow",
    "Lost": "red",
    "NotReady": "red",
    "Fulfilled": "green",
    "Degraded": "yellow",
    "NotFulfilled": "red",
}


def _coloured(word: str) -> Text:
    return Text(word, style=_COLOURS.get(word, ""))


def render(found: Continuum, now: float, width: int = WIDE) -> RenderableType:
    """The screen, for so many columns: below :data:`WIDE` without tier and region."""
    parts = [_sites(found.clusters, width), intent_table(found.intents), _moves(found.events, now)]
    sources: dict[str, list[str]] = {}
    for row in map(site_row, found.clusters):
        if row["carbonSource"]:
            sources.setdefault(row["carbonSource"], []).append(row["name"])
    if len(sources) == 1:
        parts.append(Text(f"carbon: {next(iter(sources))}", style="dim"))
    elif sources:
        said = "; ".join(f"{_names(sites)}: {source}" for source, sites in sorted(sources.items()))
        parts.append(Text(f"carbon: {said}", style="dim"))
    return Group(*(each for part in parts for each in (part, Text(""))))


def _names(sites: Sequence[str]) -> str:
    """The first few."""
    return ", ".join(sites[:3]) + (f" and {len(sites) - 3} more" if len(sites) > 3 else "")


def _table(title: str, *columns: str, grows: str) -> Table:
    """No column but ``grows`` is ever cut or wrapped."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column != grows, overflow="fold")
    return table


def _sites(clusters: Sequence[Obj], width: int) -> RenderableType:
    if not clusters:
        return Text("no site has joined yet: on its machine run 'nemo agent', with a token of 'nemo join-token'")
    wide = width >= WIDE
    place = ("TIER", "REGION") if wide else ()
    table = _table("Sites", "SITE", "HEALTH", *place, "CPU", "PODS", "gCO2/kWh", "NEXT HOURS", "PRICE/CPU h", grows="")
    for cluster in clusters:
        row = site_row(cluster)
        carbon, price = row["carbonGramsPerKWh"], row["pricePerCpuHour"]
        table.add_row(
            row["name"],
            _coloured(row["health"]),
            *((row["tier"], row["region"]) if wide else ()),
            f"{row['cpuUsedMilli'] / 1000:.1f}/{row['cpuAllocatableMilli'] / 1000:.0f}",
            str(row["pods"]),
            "-" if carbon is None else f"{carbon:.0f}",
            sparkline(row["carbonForecast"], 24 if wide else 12) or "-",
            "-" if price is None else f"{price:g} {row['currency']}",
        )
    return table


def intent_table(intents: Sequence[Obj]) -> RenderableType:
    """Intents with their fulfilment."""
    if not intents:
        return Text("no intents: see examples/intents/")
    table = _table("Intents", "NAMESPACE", "INTENT", "FULFILMENT", "MESSAGE", grows="MESSAGE")
    for intent in intents:
        status = intent.get("status") or {}
        fulfilment = _coloured(str(status.get("fulfilment", "Unknown")))
        table.add_row(namespace(intent), name(intent), fulfilment, str(status.get("message", "")))
    return table


def _moves(events: Sequence[Obj], now: float) -> RenderableType:
    if not events:
        return Text("nothing was placed or moved lately")
    table = _table("Lately", "AGO", "OBJECT", "WHAT", "WHY", grows="WHY")
    for event in events:
        about = event.get("involvedObject") or {}
        when = str(event.get("lastTimestamp") or event.get("eventTime") or "")
        what = f"{about.get('kind', '').lower()}/{about.get('name', '')}"
        table.add_row(ago(now - parse_time(when)) if when else "-", what, str(event.get("reason")), str(event.get("message")))
    return table


def ago(seconds: float) -> str:
    """``42 s``, ``5 min``, ``3 h``, ``2 d``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def show_status(kubeconfig: Path | None, data: Path, output: str, *, watch: bool) -> None:
    """Prints the screen once, or keeps it current until interrupted; a hub that is away meanwhile is waited for."""
    clock = SystemClock()
    if not watch:
        console = Console()
        found = with_client(kubeconfig, data, read)
        if output == "text":
            console.print(render(found, clock.now(), console.width))
        else:
            value = {"sites": [site_row(c) for c in found.clusters], "intents": list(found.intents), "events": list(found.events)}
            emit(value, output, text="")
        return

    # COLUMNS and LINES are what the terminal had when somebody set them, and a screen that stays open is resized.
    console = Console(_environ={k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")})

    async def follow(client: HttpClient) -> None:
        found = await read(client)
        seen, problem = clock.now(), ""
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                now = clock.now()
                when = f"{datetime.fromtimestamp(now):%H:%M:%S}, every {REFRESH_SECONDS:g} s; Ctrl-C ends it"
                top = (
                    Text(f"{problem}; what follows is {ago(now - seen)} old", style="red") if problem else Text(when, style="dim")
                )
                live.update(Group(top, Text(""), render(found, now, console.width)), refresh=True)
                await clock.sleep(REFRESH_SECONDS)
                try:
                    found, seen, problem = await read(client), clock.now(), ""
                except ApiError as error:
                    if error.code != 503:
                        raise
                    problem = error.message

    try:
        with_client(kubeconfig, data, follow)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return
