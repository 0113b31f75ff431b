"""``metrics.k8s.io``: what pods and sites use. Nothing is stored: who asks makes the hub ask the sites, over their tunnels.

An agent measures every few seconds anyway; it tells what it measured last when it is asked. Answers are kept for
``FRESH_SECONDS``, so that many who look cost no more than one. A site that is away, or does not answer, has no metrics:
its pods are left out, as with any metrics server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from metaos.apiserver.addressing import key_of
from metaos.apiserver.cache import Version, WatchCache
from metaos.apiserver.tunnels import Tunnels
from metaos.clock import Clock
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, format_time
from metaos.resources.scheme import Kind

FRESH_SECONDS = 5.0
ANSWER_SECONDS = 5.0
#: Sites that are asked at the same time.
MAX_ASKED = 64
#: No figure of a site is larger: an exbibyte, or more seconds than there are.
MOST = float(1 << 60)
#: Of one site's answer.
MAX_BYTES = 4 << 20

Used = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Report:
    """What a site said. ``time``: when that was measured, seconds since the epoch; ``window`` in seconds; ``pods``: (namespace,
    name) → container → ``cpu`` (cores) and ``memory`` (bytes)."""

    time: float = 0.0
    window: float = 0.0
    pods: dict[tuple[str, str], Used] = field(default_factory=dict)


def parsed(data: bytes, now: float) -> Report:
    """Raises ``ValueError``, ``KeyError`` or ``TypeError`` where it is none."""
    said = orjson.loads(data)
    pods = {(str(p["namespace"]), str(p["name"])): _used(p["containers"]) for p in said["pods"]}
    return Report(now - _bounded(said["age"]), _bounded(said["window"]), pods)


def _bounded(value: Any) -> float:
    """A number that can be counted with, whatever a site says. Raises ``TypeError`` where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    return min(max(0.0, value), MOST) if value == value else 0.0


def _used(containers: dict[str, dict[str, Any]]) -> Used:
    return {str(n): {word: _bounded(c[word]) for word in ("cpu", "memory")} for n, c in containers.items()}


class Measurements:
    """The source of one of the two kinds; both share what the sites said."""

    def __init__(self, cache: WatchCache, sites: Sites, kind: Kind) -> None:
        self._cache, self._sites, self._kind = cache, sites, kind

    async def _shown(self, versions: Sequence[Version]) -> list[Obj]:
        if self._kind is scheme.NODE_METRICS:
            reports = await self._sites.reports({v.name for v in versions})
            return [_node(v, reports[v.name]) for v in versions if v.name in reports]
        sites = {v.key: v.field_values()["spec.nodeName"] for v in versions}
        reports = await self._sites.reports({site for site in sites.values() if site})
        found = []
        for version in versions:
            # A site speaks for its own pods only.
            report = reports.get(sites[version.key])
            used = report.pods.get((version.namespace, version.name)) if report else None
            if report and used:
                found.append(_pod(version, report, used))
        return found

    async def get(self, name: str, namespace: str) -> Obj | None:
        version = self._cache.get(key_of(_STORED[self._kind], namespace, name))
        found = await self._shown([version] if version else [])
        return found[0] if found else None

    async def list(self, namespace: str) -> list[Obj]:
        return await self._shown([*self._cache.range(_STORED[self._kind].resource, namespace)])


_STORED = {scheme.POD_METRICS: scheme.POD, scheme.NODE_METRICS: scheme.CLUSTER}


def _metadata(version: Version, report: Report) -> Obj:
    metadata: Obj = {"name": version.name, "creationTimestamp": format_time(report.time)}
    if version.namespace:
        metadata["namespace"] = version.namespace
    return metadata | ({"labels": version.labels} if version.labels else {})


def _quantities(cpu: float, memory: float) -> dict[str, str]:
    return {"cpu": f"{round(cpu * 1e9)}n", "memory": f"{round(memory / 1024)}Ki"}


def _measurement(kind: Kind, version: Version, report: Report) -> Obj:
    metadata = _metadata(version, report)
    shown = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}
    return shown | {"timestamp": format_time(report.time), "window": f"{report.window:.3f}s"}


def _pod(version: Version, report: Report, used: Used) -> Obj:
    containers = [{"name": n, "usage": _quantities(c["cpu"], c["memory"])} for n, c in sorted(used.items())]
    return _measurement(scheme.POD_METRICS, version, report) | {"containers": containers}


def _node(version: Version, report: Report) -> Obj:
    every = [c for used in report.pods.values() for c in used.values()]
    usage = _quantities(sum(c["cpu"] for c in every), sum(c["memory"] for c in every))
    return _measurement(scheme.NODE_METRICS, version, report) | {"usage": usage}


class Sites:
    """Asks sites, and remembers for a moment what they said."""

    def __init__(self, tunnels: Tunnels, clock: Clock) -> None:
        self._tunnels, self._clock = tunnels, clock
        #: Site → (when it was asked, the answer to come). Bounded by the sites that are connected.
        self._asked: dict[str, tuple[float, asyncio.Task[Report | None]]] = {}
        self._turns = asyncio.Semaphore(MAX_ASKED)

    async def reports(self, sites: set[str]) -> dict[str, Report]:
        # Where there are other hubs, any of them may have a site.
        connected = sites | self._asked.keys() if self._tunnels.elsewhere else set(self._tunnels.connected())
        for gone in self._asked.keys() - connected:
            self._asked.pop(gone)[1].cancel()
        wanted = sorted(sites & connected)
        answers = await asyncio.gather(*(asyncio.shield(self._report(site)) for site in wanted), return_exceptions=True)
        return {site: answer for site, answer in zip(wanted, answers, strict=True) if isinstance(answer, Report)}

    def _report(self, site: str) -> asyncio.Task[Report | None]:
        now = self._clock.monotonic()
        held = self._asked.get(site)
        if held is None or (held[1].done() and now - held[0] > FRESH_SECONDS):
            held = self._asked[site] = now, asyncio.create_task(self._ask(site), name=f"usage of {site}")
        return held[1]

    async def _ask(self, site: str) -> Report | None:
        try:
            async with self._turns, asyncio.timeout(ANSWER_SECONDS):
                stream = await self._tunnels.open(site, {"type": "usage"})
                try:
                    data = bytearray()
                    while piece := await stream.read():
                        data += piece
                        if len(data) > MAX_BYTES:
                            return None
                    return parsed(bytes(data), self._clock.now())
                finally:
                    await stream.close()
        except (ApiError, ConnectionError, TimeoutError, ValueError, KeyError, TypeError, AttributeError):
            # Away, older than this hub, or not in its right mind: it has no metrics.
            return None

    async def close(self) -> None:
        tasks = [task for _, task in self._asked.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def sources(cache: WatchCache, sites: Sites) -> dict[Kind, Measurements]:
    """For ``Registry.sources``."""
    return {kind: Measurements(cache, sites, kind) for kind in _STORED}
