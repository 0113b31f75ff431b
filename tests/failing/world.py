"""A small continuum in virtual time, and what must hold in it at every moment, whatever happens to the hub."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metaos.controllers.render import cluster_of
from metaos.controllers.settings import Settings
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, is_true, name
from tests.failing.hub import SETTINGS, Hub, Line, WorldClock
from tests.failing.site import Site

STEP_SECONDS = 0.25
NAMESPACE = "shop"


def cluster(site: str, carbon: float = 100.0, **spec: Any) -> Obj:
    usual = {"tier": "edge", "jurisdictions": ["EU"], "capacity": {"cpu": "4", "memory": "8Gi", "pods": "40"}}
    return {**scheme.CLUSTER.empty(site), "spec": usual | {"electricity": {"carbonIntensity": carbon}} | spec}


def workload(kind: str = "Deployment", replicas: int = 2, **spec: Any) -> Obj:
    """``web``, with a Secret that must follow it."""
    container = {
        "name": "c",
        "image": "python:3",
        "resources": {"requests": {"cpu": "100m", "memory": "32Mi"}},
        "envFrom": [{"secretRef": {"name": "key"}}],
    }
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container], "terminationGracePeriodSeconds": 1}}
    return {
        **(scheme.DEPLOYMENT if kind == "Deployment" else scheme.STATEFUL_SET).empty("web", NAMESPACE),
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template} | spec,
    }


def service() -> Obj:
    return {
        **scheme.SERVICE.empty("web", NAMESPACE),
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }


def secret() -> Obj:
    return {**scheme.SECRET.empty("key", NAMESPACE), "stringData": {"token": "never outside"}}


def intent(*targets: dict[str, Any]) -> Obj:
    return {**scheme.INTENT.empty("wish", NAMESPACE), "spec": {"priority": 90, "expectations": [{"targets": list(targets)}]}}


def policy(**spec: Any) -> Obj:
    return {**scheme.PLACEMENT_POLICY.empty("rule", NAMESPACE), "spec": spec}


IN_EU = {"name": "residency", "condition": "IsOneOf", "value": ["EU"]}
CLEAN = {"name": "carbonIntensity", "condition": "Minimize"}


class World:
    """Hub and sites. ``checks`` run after every step; each returns what is wrong, or nothing."""

    def __init__(self, folder: Path, settings: Settings = SETTINGS) -> None:
        self.clock = WorldClock()
        self.hub = Hub(folder / "state.db", self.clock, settings)
        self.sites: dict[str, Site] = {}
        self.checks: list[Callable[[], str]] = []
        self.downtime_seconds = 0.5
        self.heartbeat_seconds = settings.lease_duration / 4
        self.deaths = 0
        #: Kill the hub after so many more writes, once for each number.
        self.kills: list[int] = []

    async def open(self) -> None:
        await self.hub.start()

    async def close(self) -> None:
        for site in self.sites.values():
            await site.stop()
        if self.hub.store is not None:
            await self.hub.kill()

    async def join(self, obj: Obj, offset: float = 0.0) -> Site:
        """A site that says it exists and begins to send heartbeats. ``offset``: how wrong its wall clock is."""
        await self.hub.client.create(obj)
        clock = self.clock.view(offset)
        site = self.sites[name(obj)] = Site(name(obj), clock, Line(self.hub, name(obj)), self.heartbeat_seconds)
        site.start()
        return site

    async def apply(self, *objects: Obj) -> None:
        for obj in objects:
            await self.hub.client.create(obj)

    async def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_SECONDS)):
            await self._step()

    async def until(self, holds: Callable[[], Any], what: str, seconds: float = 60.0) -> None:
        for _ in range(round(seconds / STEP_SECONDS)):
            if self.hub.up and holds():
                return
            await self._step()
        raise AssertionError(f"waited {seconds:g} s in vain until {what}")

    async def _step(self) -> None:
        await self.clock.advance(STEP_SECONDS)
        if self.hub.dead:
            self.deaths += 1
            await self.hub.kill()
            waited = 0.0
            while waited < self.downtime_seconds:
                await self.clock.advance(STEP_SECONDS)
                waited += STEP_SECONDS
                self.check()
            await self.hub.start(self.kills.pop(0) if self.kills else -1)
        self.check()

    def check(self) -> None:
        for check in self.checks:
            wrong = check()
            assert not wrong, f"{wrong} (at {self.clock.monotonic():g} s, the hub has died {self.deaths} times)"

    # -- what is -------------------------------------------------------------------------------------------

    def placed(self) -> dict[str, int]:
        """Where the decision says ``web`` is."""
        found = next(iter(self.hub.objects(scheme.PLACEMENT, NAMESPACE)), {})
        return {c["name"]: c["replicas"] for c in (found.get("spec") or {}).get("clusters") or ()}

    def phase(self) -> str:
        found = next(iter(self.hub.objects(scheme.PLACEMENT, NAMESPACE)), {})
        return str(((found.get("status") or {}).get("migration") or {}).get("phase") or "")

    def running(self) -> dict[str, int]:
        """Copies of ``web`` that truly run, by site, also those that are stopping."""
        return {s.name: n for s in self.sites.values() if (n := len(s.copies("web")))}

    def ready(self) -> dict[str, int]:
        """Copies that truly are ready, by site."""
        now = self.clock.monotonic()
        return {s.name: n for s in self.sites.values() if (n := sum(p.ready(now) for p in s.copies("web")))}

    def work_sites(self, work: str) -> set[str]:
        """Where there is a Work of this name."""
        return {cluster_of(w) for w in self.hub.objects(scheme.WORK) if name(w) == work}

    def endpoints(self) -> list[tuple[str, str]]:
        """(site, pod) of every endpoint that requests may go to."""
        slices = self.hub.objects(scheme.ENDPOINT_SLICE, NAMESPACE)
        found = [e for s in slices for e in s.get("endpoints") or () if e["conditions"]["ready"]]
        return [(e["nodeName"], e["targetRef"]["name"]) for e in found]

    def events(self) -> dict[tuple[str, str], int]:
        """(reason, message) → how often it was recorded, of events on ``web``."""
        found = [e for e in self.hub.objects(scheme.EVENT, NAMESPACE) if e["involvedObject"]["name"] == "web"]
        return {(e["reason"], e["message"]): int(e["count"]) for e in found}

    def settled(self, *sites: str) -> bool:
        """Whether everything about ``web`` is on these sites and nothing of it elsewhere."""
        chosen = set(sites)
        kind = scheme.DEPLOYMENT if self.hub.find(scheme.DEPLOYMENT, "web", NAMESPACE) else scheme.STATEFUL_SET
        status = (self.hub.find(kind, "web", NAMESPACE) or {}).get("status") or {}
        mirrors = {str(p["spec"]["nodeName"]) for p in self.hub.objects(scheme.POD, NAMESPACE)}
        work = f"{kind.kind.lower()}.{NAMESPACE}.web"
        return (
            set(self.placed()) == set(self.ready()) == set(self.running()) == mirrors == chosen
            and self.work_sites(work) == self.work_sites(f"secret.{NAMESPACE}.key") == chosen
            and {s for s, _ in self.endpoints()} == chosen
            and status.get("availableReplicas") == sum(self.placed().values())
            and self.phase() in ("", "Done")
        )

    def is_ready(self, site: str) -> bool:
        return is_true(self.hub.find(scheme.CLUSTER, site) or {}, "Ready")

    # -- what must hold ------------------------------------------------------------------------------------

    def at_least(self, count: int) -> Callable[[], str]:
        """So many copies are ready on sites that can be reached, always."""

        def check() -> str:
            ready = {site: n for site, n in self.ready().items() if not self.sites[site].line.cut}
            return "" if sum(ready.values()) >= count else f"only {ready} are ready of at least {count}"

        return check

    def somewhere(self, count: int) -> Callable[[], str]:
        """So many copies are ready, also on sites that are cut off: what stands is not taken down for nothing."""

        def check() -> str:
            ready = self.ready()
            return "" if sum(ready.values()) >= count else f"only {ready} are ready anywhere, and at least {count} were"

        return check

    def at_most(self, count: int) -> Callable[[], str]:
        """No more copies than so many exist anywhere, always."""

        def check() -> str:
            running = self.running()
            return "" if sum(running.values()) <= count else f"{running} run, and at most {count} may"

        return check

    def served(self) -> str:
        """Requests have somewhere to go: an endpoint whose pod truly is ready, on a site that can be reached."""
        if not self.hub.up:
            return ""
        now = self.clock.monotonic()
        for site, pod in self.endpoints():
            found = self.sites[site].pods.get((NAMESPACE, pod))
            if found is not None and found.ready(now) and not self.sites[site].line.cut:
                return ""
        return f"no endpoint of {self.endpoints()} serves"

    async def ever_written(self) -> set[str]:
        """Every key that was ever written, by any life of the hub."""
        assert self.hub.store is not None
        end, keys = await self.hub.store.revision(), set()
        async for event in self.hub.store.watch("", after=0):
            keys.add(event.key)
            if event.revision >= end:
                break
        return keys


async def change(world: World, site: str, **spec: Any) -> None:
    """The site's owner edits its Cluster, and does it again where the hub died before it answered."""
    asked = asyncio.ensure_future(Line(world.hub).call("patch", scheme.CLUSTER, site, "", {"spec": spec}))
    while not asked.done():
        await world.run(STEP_SECONDS)
    if isinstance(error := asked.exception(), ApiError) and error.code == 503:
        await change(world, site, **spec)
