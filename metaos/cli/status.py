"""``nemo status``: sites with health, load, carbon and price; intents; what moved lately and why."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
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
from metaos.resources.meta import Obj, condition, is_true, name, namespace, parse_time

#: Reasons of events that say that work was placed or moved.
MOVES = ("Placed", "Moved", "Migrating", "ReplacementReady", "Switched", "Drained", "Stopped", "Unplaceable", "SiteLost")
RECENT = 8
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
    events.sort(key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""), reverse=True)
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


def render(found: Continuum, now: float) -> RenderableType:
    """The screen."""
    sites = Table("SITE", "HEALTH", "TIER", "REGION", "CPU", "PODS", "gCO2/kWh", "NEXT HOURS", "PRICE", title="Sites", box=None)
    for cluster in found.clusters:
        row = site_row(cluster)
        carbon, price = row["carbonGramsPerKWh"], row["pricePerCpuHour"]
        sites.add_row(
            row["name"],
            _coloured(row["health"]),
            row["tier"],
            row["region"],
            f"{row['cpuUsedMilli'] / 1000:.1f}/{row['cpuAllocatableMilli'] / 1000:.0f}",
            str(row["pods"]),
            "-" if carbon is None else f"{carbon:.0f}",
            sparkline(row["carbonForecast"]),
            "-" if price is None else f"{price:g} {row['currency']}/CPU h",
        )
    intents = Table("NAMESPACE", "INTENT", "FULFILMENT", "MESSAGE", title="Intents", box=None)
    for intent in found.intents:
        status = intent.get("status") or {}
        intents.add_row(
            namespace(intent), name(intent), _coloured(str(status.get("fulfilment", "Unknown"))), str(status.get("message", ""))
        )
    moves = Table("AGO", "OBJECT", "WHAT", "WHY", title="Lately", box=None)
    for event in found.events:
        about = event.get("involvedObject") or {}
        when = str(event.get("lastTimestamp") or event.get("eventTime") or "")
        ago = f"{max(0.0, now - parse_time(when)):.0f} s" if when else "-"
        moves.add_row(ago, f"{about.get('kind', '').lower()}/{about.get('name', '')}", event.get("reason"), event.get("message"))
    replays = sorted({str(site_row(c)["carbonSource"]) for c in found.clusters} - {""})
    parts: list[RenderableType] = [sites, Text(""), intents, Text(""), moves]
    if replays:
        parts += [Text(""), Text("carbon: " + "; ".join(replays), style="dim")]
    return Group(*parts)


def show_status(kubeconfig: Path | None, data: Path, output: str, *, watch: bool) -> None:
    """Prints the screen once, or keeps it current until interrupted (a read every two seconds)."""
    clock = SystemClock()
    console = Console()
    if not watch:
        found = with_client(kubeconfig, data, read)
        if output == "text":
            console.print(render(found, clock.now()))
        else:
            value = {"sites": [site_row(c) for c in found.clusters], "intents": list(found.intents), "events": list(found.events)}
            emit(value, output, text="")
        return

    async def follow(client: HttpClient) -> None:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(render(await read(client), clock.now()), refresh=True)
                await clock.sleep(2.0)

    try:
        with_client(kubeconfig, data, follow)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return
