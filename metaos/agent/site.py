"""What an agent that runs pods starts from: its site file, its runtime and its meter."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from metaos.accounting.metering import DEFAULT_IDLE_RULE
from metaos.agent.cache import Cache
from metaos.agent.energy import detect
from metaos.agent.inventory import capacity, measure
from metaos.agent.join import identity_process
from metaos.agent.meter import Meter
from metaos.agent.network import ServiceNetwork
from metaos.agent.remote import PodAccess
from metaos.clock import Clock
from metaos.plugins.points import PodConfig, Runtime
from metaos.resources.meta import Obj, ObjectRef

log = logging.getLogger(__name__)


class Pods(PodAccess, Protocol):
    """What runs and heals this site's pods (:class:`metaos.agent.supervisor.Supervisor`)."""

    def set_desired(self, objects: list[Obj]) -> None:
        """Everything that this site shall have; what is not in it goes."""
        ...

    def pods(self) -> list[Obj]: ...

    def status_of(self, ref: ObjectRef) -> Obj | None: ...

    def on_change(self, callback: Callable[[], None]) -> None: ...

    async def delete_pod(self, namespace: str, name: str, grace_seconds: float | None = None, evicted: bool = False) -> None:
        """Returns when nothing of it is left. ``evicted``: that is no failure of its own."""
        ...

    async def run(self) -> None: ...


class Attached:
    """A runtime whose pods get their service network as soon as they have a sandbox, before a container starts; and before
    that their deadline, where they must not run twice (``fence``)."""

    def __init__(
        self,
        runtime: Runtime,
        network: ServiceNetwork,
        find: Callable[[str], Obj | None],
        fence: Callable[[], Awaitable[None]],
    ) -> None:
        self._runtime, self._network, self._find, self._fence = runtime, network, find, fence

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._runtime, attribute)

    async def start_pod(self, pod: PodConfig) -> None:
        await self._fence()
        await self._runtime.start_pod(replace(pod, address=self._network.pod_address(pod.namespace, pod.name)))
        found = self._find(pod.uid)
        metadata = {"uid": pod.uid, "namespace": pod.namespace, "name": pod.name, "labels": dict(pod.labels)}
        await self._network.attach(found or {"metadata": metadata})

    async def release_pod(self, uid: str) -> None:
        self._network.detach(uid)
        await self._runtime.release_pod(uid)

    async def stop_pod(self, uid: str) -> None:
        self._network.detach(uid)
        await self._runtime.stop_pod(uid)


@dataclass(frozen=True, slots=True)
class Plugins:
    """Where they are (``module:Class``): a site's runtime, and the meters that are tried, by name."""

    runtime: str
    meters: Mapping[str, str]


async def read_site(path: Path, runtime: str = "") -> tuple[Obj, Plugins]:
    """The site file, with this runtime if one is given, and the plugins that it needs. Raises ``JoinError``."""
    found = json.loads(await identity_process("site", str(path), runtime))
    return found["site"], Plugins(found["runtime"], found["meters"])


def make_runtime(site: Obj, plugin: str, data: Path, clock: Clock) -> Runtime:
    """The runtime that the site file names, found by entry point (see :func:`read_site`)."""
    spec: Mapping[str, Any] = site.get("spec") or {}
    free = capacity(site, measure())[1]
    found: Runtime = _loaded(plugin)(
        str(data / "runtime"),
        clock=clock,
        isolation=str(spec.get("isolation") or "bubblewrap"),
        host_images=spec.get("hostImages") or (),
        host_paths=spec.get("hostPaths") or (),
        registries=spec.get("registries") or (),
        image_policy=spec.get("imagePolicy") or (),
        most=(free.cpu, free.memory),
    )
    validate = getattr(found, "validate", None)
    if validate is not None:
        validate()
    return found


def make_meter(site: Obj, plugins: Mapping[str, str], cache: Cache, period_seconds: int) -> Meter:
    """What meters this site, by its site file and what is found on the machine. Raises ``NoMeter``."""
    power: Mapping[str, Any] = (site.get("spec") or {}).get("power") or {}
    all_of_it, share = (os.cpu_count() or 1) * 1000, capacity(site, measure())[0].cpu
    energy, why = detect(power, share, {name: _loaded(plugin)(Path("/")) for name, plugin in plugins.items()})
    log.info("energy: %s, %s, within %s of it either way", energy.source, energy.basis, energy.uncertainty)
    for reason in why:
        log.debug("no meter: %s", reason)
    whole = energy.measured or share >= all_of_it
    rule = str(power.get("idleRule") or DEFAULT_IDLE_RULE)
    return Meter(cache, energy, all_of_it if whole else share, period_seconds, idle_rule=rule, whole=whole)


def _loaded(plugin: str) -> Any:
    module, _, attribute = plugin.partition(":")
    return getattr(import_module(module), attribute)
