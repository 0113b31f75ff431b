"""What every site of the twin has, whichever agent runs it: a line, a clock that may be wrong, and what truly runs there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any, Protocol

from metaos.resources import quantity
from metaos.resources.meta import Obj, ObjectRef, ref
from metaos.twin.clock import VirtualClock
from metaos.twin.disk import SiteDisk
from metaos.twin.hub import Hub
from metaos.twin.network import Line, Quality
from metaos.twin.timing import Timing

ANY_CPU, ANY_MEMORY, ANY_PODS = 8000, 16 << 30, 110


@dataclass(frozen=True, slots=True)
class Copy:
    """One pod that truly is on a site, also one that is stopping. ``ready``: it serves."""

    site: str
    owner: ObjectRef
    owner_uid: str
    namespace: str
    pod: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Ground:
    """What a site stands on. ``changed`` is called with its name whenever what runs there changes."""

    hub: Hub
    clock: VirtualClock
    random: Random
    timing: Timing
    quality: Quality
    changed: Callable[[str], None]
    #: Called with its name when its agent dies by itself.
    crashed: Callable[[str], None]

    def disk(self, site: str) -> SiteDisk:
        return SiteDisk(self.clock, lambda: self.crashed(site))

    def line(self, site: str) -> Line:
        return Line(self.hub, site, self.clock, self.random, self.quality)


class Machine:
    """A simulated machine's size, as its owner states it. Stands where an agent measures (:class:`inventory.Machine`). ``used``:
    CPU seconds that the agent itself has used."""

    def __init__(self, site: Obj, used: Callable[[], float] = lambda: 0.0) -> None:
        self._used = used
        wanted = (site.get("spec") or {}).get("capacity") or {}
        self.cpu = quantity.milli(wanted["cpu"]) if "cpu" in wanted else ANY_CPU
        self.memory = quantity.whole(wanted["memory"]) if "memory" in wanted else ANY_MEMORY

    def measure(self) -> tuple[int, int]:
        return self.cpu, self.memory

    def busy(self, whole: bool) -> float:
        """Beside pods and the agent nothing runs on it."""
        return self._used()

    def conditions(self) -> Sequence[Mapping[str, str]]:
        return ()

    def node_info(self, isolation: str, runtime: str) -> dict[str, str]:
        return {"agentVersion": "simulated", "operatingSystem": "linux", "isolation": isolation, "runtime": "simulated"}


class Site(Protocol):
    """``fidelity``: ``agent`` (the real agent and supervisor on a simulated runtime) or ``light`` (real contact, desired state,
    mirrors and reports; pods are records)."""

    name: str
    fidelity: str
    obj: Obj
    clock: VirtualClock
    line: Line
    disk: SiteDisk

    def start(self) -> None:
        """The agent begins, on what it left on disk."""
        ...

    async def stop(self) -> None:
        """The agent's process ends; pods run on."""
        ...

    def power_off(self) -> None:
        """Nothing runs any more. To be called while the agent is stopped."""
        ...

    def copies(self) -> list[Copy]: ...

    def holds(self) -> list[ObjectRef]:
        """Every object that its agent keeps on its disk: workloads and what follows them."""
        ...

    def busy_milli(self) -> float:
        """Milli-CPU in use."""
        ...

    def lie(self, status: dict[str, Any] | None) -> None:
        """Tells the hub this about its capacity, whatever is true; ``None``: the truth again."""
        ...


def held(works: Iterable[Obj]) -> list[ObjectRef]:
    """The objects of Works."""
    return [ref(manifest) for work in works for manifest in (work.get("spec") or {}).get("manifests") or ()]


def states_power(site: Obj) -> bool:
    """Whether its owner states how much power it takes; :func:`watts` is 0 where not."""
    power = (site.get("spec") or {}).get("power") or {}
    return bool(power.get("idleWatts") or power.get("maxWatts"))


def watts(site: Obj, busy_milli: float) -> float:
    """Power at the wall by the model that the site's owner states: linear between idle and full."""
    spec = site.get("spec") or {}
    power = spec.get("power") or {}
    size = quantity.milli((spec.get("capacity") or {}).get("cpu") or ANY_CPU // 1000) or ANY_CPU
    idle, most = float(power.get("idleWatts") or 0.0), float(power.get("maxWatts") or 0.0)
    pue = float((spec.get("electricity") or {}).get("pue") or 1.0)
    return (idle + (most - idle) * min(1.0, busy_milli / size)) * pue
