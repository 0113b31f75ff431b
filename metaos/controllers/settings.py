"""What the hub's operator may set about controllers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from metaos.controllers.worker import Decide, at_once
from metaos.fleet.fleet import Fleet
from metaos.plugins.points import CarbonSource, PriceSource
from metaos.scheduler.scores import Score

#: A GET: (URL, headers) → (status, body); status 0 and why, where there is no answer. It never raises for what a server does.
Get = Callable[[str, Mapping[str, str]], Awaitable[tuple[int, bytes]]]


#: How late a site's watchdog may end a pod (:mod:`metaos.plugins.points`, ``Runtime.fence``).
WATCHDOG_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Durations in seconds. ``sign`` is ``Authority.sign_csr`` of the authority that signs now."""

    sign: Callable[..., bytes]
    #: The certificates of the authorities that are trusted, PEM.
    roots: Callable[[], bytes] = bytes
    carbon: CarbonSource | None = None
    price: PriceSource | None = None
    #: Where decisions are made that take longer than the event loop may.
    decide: Decide = at_once
    #: Fetches for a source that is asked over HTTP.
    get: Get | None = None
    lease_duration: float = 40.0
    drain: float = 5.0
    #: Added to a workload's fencing time and grace period before it is started elsewhere: for a site's watchdog, which acts
    #: within :data:`WATCHDOG_SECONDS`, and for clocks that do not tick alike.
    fencing_margin: float = 5.0
    #: Stateful work without local data is replaced only after its old site has stopped it, which it does this long after its
    #: last heartbeat.
    fencing_after: float = 60.0
    #: Of work whose volumes move: so long the old copy is stopped at most, while the rest is sent. Then it goes on, and the move
    #: is tried again.
    volume_patience: float = 120.0
    #: Bytes a second that a site sends of the volumes of one workload; 0: as fast as its line is.
    volume_bytes_per_second: float = 0.0
    agent_certificate_lifetime: float = 7 * 86400.0
    #: Share of sites that may vanish within one lease duration before the hub suspects itself.
    storm_share: float = 0.55
    #: Of sites that are lost at once so many are replaced at once; the others follow in turn: after each interval one, or
    #: one of a hundred where there are more than that many.
    lost_burst: int = 3
    lost_interval: float = 10.0
    #: How long a site that is being removed may take to hand over its work.
    removal_timeout: float = 120.0
    #: Between two looks at what the pods of an autoscaled workload use.
    autoscale_interval: float = 15.0
    #: Between two looks at all workloads at once; 0: never.
    reoptimise_interval: float = 0.0
    event_lifetime: float = 3600.0
    event_limit: int = 5000
    #: Beside those that are registered under ``metaos.score``: what the operator has learned.
    scores: tuple[Score, ...] = ()
    #: Devices, where there is a bus.
    fleet: Fleet | None = None

    def __post_init__(self) -> None:
        if self.fencing_margin <= WATCHDOG_SECONDS:
            raise ValueError(f"fencing_margin is {self.fencing_margin:g} s: it must be more than {WATCHDOG_SECONDS:g} s")
