"""The protocols that plugins implement. Each has an entry-point group of the same name (``metaos.runtime``, …).

Life: the registry loads the class, calls ``cls(**settings)`` (provision), ``validate()`` where it exists, and
``close()`` at the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from metaos.resources.meta import Obj


@dataclass(frozen=True, slots=True)
class ContainerState:
    """What a runtime knows of one container. ``exit_code`` is set once it has ended. Times: seconds since the epoch."""

    name: str
    id: str
    running: bool
    start_time: float
    exit_code: int | None = None
    finish_time: float | None = None
    #: ``Completed``, ``Error``, ``OOMKilled``, ``ContainerCannotRun``, ``Fenced``.
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """What one start of a container used: CPU seconds since then, and bytes of memory now (0 once it has ended).

    ``id`` is another one for every start (as in :class:`ContainerState`)."""

    name: str
    id: str
    cpu_seconds: float
    memory: float
    start_time: float
    running: bool = True


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """One container to start, everything resolved: no references to ConfigMaps or Secrets are left."""

    name: str
    image: str
    command: tuple[str, ...]
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    working_dir: str
    #: (host path, path in the container, read-only). Host paths are prepared by the supervisor.
    mounts: tuple[tuple[str, str, bool], ...]
    #: milli-CPU and bytes; 0: no limit.
    cpu_limit: int = 0
    memory_limit: int = 0
    read_only_root: bool = True
    run_as_user: int | None = None
    #: Refused (``ValueError``) where the image's user is root and nothing else is asked for.
    run_as_non_root: bool = False
    run_as_group: int | None = None
    attempt: int = 0
    #: Whether its standard input is kept for those who attach, ends when the first of them leaves, and is a terminal.
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    #: One of :meth:`Runtime.runtime_classes`, or empty.
    runtime_class: str = ""
    #: Of class wasm: instructions, and seconds, after which it is ended; 0: no limit.
    fuel: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PodConfig:
    """A pod's sandbox: what its containers share."""

    uid: str
    namespace: str
    name: str
    hostname: str
    #: (address, names) lines of ``/etc/hosts`` beyond localhost; kept up to date by :meth:`Runtime.set_hosts`.
    hosts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    #: Of its network card; without one, or where the machine allows none, the pod has its loopback only. Where pods share the
    #: machine's network, the loopback address that stands for the pod.
    address: str = ""
    #: Of its containers, and how many it has: what they need may be made before they are started.
    runtime_class: str = ""
    containers: int = 0


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """``id`` is another one when the network was made anew: then whoever listens in it must do so again. ``separate``: whether
    ``Runtime.listen`` is on a side of its own, on any address, so that it takes no port from the pod."""

    id: str
    separate: bool


class ImageError(Exception):
    """An image cannot be had. ``reason`` is what kubectl users know: ``ErrImagePull``, ``InvalidImageName``, …"""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Pull:
    """How an image may be had: ``imagePullPolicy``, and (server, user, password) of what the pod's Secrets know."""

    policy: str = "IfNotPresent"
    credentials: tuple[tuple[str, str, str], ...] = field(default=(), repr=False)


class RuntimeUnavailable(Exception):
    """The machine cannot run this runtime. The message says why and what to do about it."""


class Exec(Protocol):
    """A process that was started inside a container (``kubectl exec``, exec probes)."""

    async def write(self, data: bytes) -> None:
        """To its stdin; empty bytes close it."""
        ...

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """(1, stdout) and (2, stderr) until both end; with a terminal all is 1."""
        ...

    async def resize(self, columns: int, rows: int) -> None: ...

    async def wait(self) -> int:
        """The exit code."""
        ...

    async def kill(self) -> None: ...


class Runtime(Protocol):
    """Runs pods on one machine. All calls are idempotent; pods outlive the agent and are found again by ``pods()``.

    A pod's sandbox holds its namespaces (network, ipc, uts); containers join it. Data of a pod lives below the
    directory the runtime was given and survives its own restart.
    """

    async def check(self) -> None:
        """Raises ``RuntimeUnavailable`` with the remedy where this machine cannot run it."""
        ...

    async def start_pod(self, pod: PodConfig) -> None: ...

    async def stop_pod(self, uid: str) -> None:
        """Kill whatever still runs of it and remove its sandbox and files. Raises ``OSError`` where something does not end, after
        a bounded time; what was begun goes on with the next call."""
        ...

    async def release_pod(self, uid: str) -> None:
        """A pod whose containers have all ended for good gives its namespaces back. States and logs stay until ``stop_pod``."""
        ...

    async def pods(self) -> Mapping[str, Sequence[ContainerState]]:
        """Pod uid → its containers, running or ended; also those started before this process. A pod without
        containers is listed too."""
        ...

    async def start_container(self, uid: str, container: ContainerConfig) -> ContainerState:
        """Raises ``ImageError``. A container of the same name must have ended before."""
        ...

    async def stop_container(self, uid: str, name: str, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL after the grace period. Returns when it has ended. Raises ``OSError`` as ``stop_pod``."""
        ...

    async def wait(self) -> None:
        """Returns when some container may have changed state (edge hint; callers then call ``pods()``)."""
        ...

    def logs(
        self,
        uid: str,
        container: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        previous: bool = False,
        since: float | None = None,
    ) -> AsyncIterator[bytes]:
        """``since``: seconds since the epoch; lines that are surely older are left out."""
        ...

    async def exec(self, uid: str, container: str, command: Sequence[str], *, stdin: bool = False, tty: bool = False) -> Exec: ...

    async def attach(self, uid: str, container: str) -> Exec:
        """To a running container: what it writes from now on, and its standard input if it has one."""
        ...

    def network(self, uid: str = "") -> PodNetwork:
        """Of a pod, or, without ``uid``, of the next one to be started. Raises ``LookupError``."""
        ...

    async def connect(self, uid: str, port: int) -> Any:
        """A connected, non-blocking ``socket.socket`` to a TCP port of the pod: at its address, or on its own loopback."""
        ...

    async def listen(self, uid: str, address: str, port: int) -> Any:
        """A bound, listening, non-blocking ``socket.socket`` which the pod's connections to ``address`` reach."""
        ...

    async def datagrams(self, uid: str, port: int) -> Any:
        """A non-blocking UDP ``socket.socket`` connected to a port of the pod. Raises ``OSError`` where the pod has no network of
        its own, ``LookupError``."""
        ...

    async def receive(self, uid: str, port: int) -> Any:
        """A non-blocking UDP ``socket.socket`` that gets what the pod sends to Services on ``port``, each with the address
        that it was sent to (``IP_PKTINFO``). Raises as :meth:`datagrams`."""
        ...

    async def fence(self, renewed: float, limits: Mapping[str, float]) -> None:
        """Pods that must not run twice (all of them: pod uid → seconds): nothing of one runs so long after ``renewed``, the
        start of the last confirmed heartbeat (monotonic), and a second for the reaction, whatever becomes of the agent, unless
        this is called again meanwhile. Nor is anything of it started later. In force on return. Raises ``OSError``."""
        ...

    def renewed(self) -> float:
        """What :meth:`fence` was told last (monotonic), also by an agent before this one; minus infinity where that is not
        known, as after the machine's own restart, after which no pod runs."""
        ...

    async def set_hosts(self, uid: str, hosts: Sequence[tuple[str, tuple[str, ...]]]) -> None: ...

    async def image_ready(self, image: str, pull: Pull) -> bool:
        """Whether a container may start from what is here; otherwise :meth:`fetch_image` comes first. Quick. Raises
        ``ImageError``."""
        ...

    async def fetch_image(self, image: str, pull: Pull) -> None:
        """From its registry, checked by the site's policy. May take long; cancelled, it is given up, and what has come is gone on
        with the next time. Raises ``ImageError``."""
        ...

    async def images(self) -> Sequence[Mapping[str, Any]]:
        """``{"names": [...], "sizeBytes": n, "host": bool}``: what ``Node.status.images`` shows."""
        ...

    async def collect_images(self, keep: Collection[str], wanted: int) -> Sequence[str]:
        """Removes images that no container uses and ``keep`` does not name, least recently used first, until ``wanted`` bytes are
        free; their names."""
        ...

    async def usage(self) -> Mapping[str, Sequence[ContainerUsage]]:
        """Pod uid → what its containers used, measured. Starts that have ended are listed as long as the pod is there, and those
        of a pod that went since the last call once more, so that nobody misses what they used last."""
        ...

    async def storage(self, uid: str) -> Mapping[str, int]:
        """Container → bytes on disk: what it has written outside of volumes, and its logs. Raises ``LookupError`` where there
        is no such pod, ``metaos.trees.TooDeep``."""
        ...

    def runtime_classes(self) -> Sequence[str]:
        """What pods may say in ``runtimeClassName`` here."""
        ...

    def conditions(self) -> Sequence[Mapping[str, str]]:
        """What this machine cannot honour (``{"type": "ResourceLimits", "status": "False", "message": …}``)."""
        ...

    async def close(self) -> None: ...


class EnergyMeter(Protocol):
    """Reads what a machine, or its accelerators, used. Entry-point group ``metaos.meter``; ``cls(root)`` with the root of the
    machine's file system must not raise: ``problem`` says why it does not work here, with the remedy. Asked every ten seconds."""

    @property
    def name(self) -> str: ...

    @property
    def problem(self) -> str:
        """Empty where it works."""
        ...

    @property
    def source(self) -> str:
        """What is read, for people: at most 100 characters."""
        ...

    @property
    def basis(self) -> str:
        """``measured``, ``stated`` or ``assumed``."""
        ...

    @property
    def uncertainty(self) -> str:
        """Relative, as a decimal fraction."""
        ...

    @property
    def whole(self) -> bool:
        """Whether it sees all of the machine, its accelerators too."""
        ...

    def read(self, seconds: float) -> Mapping[str, int]:
        """Part → millijoules since the last call, so many seconds ago; none for the first. What cannot be read for once is not
        in it, and is in the next one where the hardware counts."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """A GET. ``headers`` hold the token: never to be logged."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


#: What a carbon figure is: the grid's average, or what one more kWh causes.
LOCATION, MARGINAL = "location", "marginal"
#: How far a source had to fall back: what it was told last, an old forecast of it, a model of what it has seen, nothing.
FRESH, STALE, SEASONAL, UNKNOWN = "Fresh", "Stale", "Seasonal", "Unknown"


class CarbonSource(Protocol):
    """Carbon intensity of electricity, now and forecast. Entry-point group ``metaos.carbon_source``.

    ``nemo up --carbon-source NAME=TEXT`` calls the class as ``cls(TEXT, now=…)``, seconds since the epoch. A plugin derives from
    this class, and overrides what holds for it beyond :meth:`intensity` and :meth:`describe`. It does no I/O of its own
    afterwards: what :meth:`due` asks for is fetched for it, so that a server that hangs holds up nothing."""

    def intensity(self, zone: str, now: float) -> Sequence[float] | None:
        """gCO2eq/kWh for the hour of ``now`` and the hours after it (as many as are known, at most 48); ``None`` where
        the zone is not known. The caller passes the clock."""
        ...

    def describe(self) -> str:
        """One line for people: the source, its licence, and that it is a replay where it is one."""
        ...

    @property
    def basis(self) -> str:
        """:data:`LOCATION` or :data:`MARGINAL`."""
        return LOCATION

    @property
    def lasting(self) -> bool:
        """Whether what it says of a moment stays so, whenever it is asked: of a table, not of forecasts."""
        return False

    def says(self, zone: str, now: float) -> str:
        """What holds of a zone now, for people: the source, how old it is, and why it is not newer."""
        return self.describe()

    def step(self, zone: str, now: float) -> tuple[str, float | None]:
        """How far it had to fall back for a zone (:data:`FRESH` to :data:`UNKNOWN`), and how wrong that was so far, a day ahead,
        as a share of the mean; ``None`` where it was not measured. Every decision that it touches says both."""
        return FRESH if self.intensity(zone, now) is not None else UNKNOWN, None

    def due(self, zone: str, now: float) -> Request | None:
        """What to fetch for a zone now, if anything; asked before :meth:`intensity`."""
        return None

    def take(self, zone: str, status: int, body: bytes, now: float) -> None:
        """The answer to what was due; status 0: there was none, and ``body`` says why. Does not raise."""
        return  # Who asks for nothing is told nothing.


class PriceSource(Protocol):
    """Prices of on-demand capacity, now and forecast. Entry-point group ``metaos.price_source``. Made and derived from as a
    :class:`CarbonSource` is, with ``nemo up --price-source NAME=TEXT``."""

    def price(self, site: str, zone: str, now: float) -> Sequence[float] | None:
        """Per CPU and hour, in the currency of the site's price list, for the hour of ``now`` and the hours after it (as many as
        are known, at most 48); ``None`` where nothing is known. The caller passes the clock."""
        ...

    def describe(self) -> str:
        """One line for people: the source, and that it is a replay where it is one."""
        ...

    def says(self, site: str, zone: str, now: float) -> str:
        """As of a :class:`CarbonSource`."""
        return self.describe()

    def step(self, site: str, zone: str, now: float) -> tuple[str, float | None]:
        """As of a :class:`CarbonSource`."""
        return FRESH if self.price(site, zone, now) is not None else UNKNOWN, None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether evidence is good, and why: ``reason`` for programs (CamelCase), ``message`` for people, with what was proved.
    ``until``: when it is no longer, in seconds since the epoch."""

    good: bool
    reason: str
    message: str
    until: float | None = None


class AttestationVerifier(Protocol):
    """Judges what a site shows of its software or hardware. Entry-point group ``metaos.attestation``. Pure."""

    def verify(
        self, site: str, evidence: Mapping[str, Any], expected: Sequence[str], max_age: float, roots: bytes, now: float
    ) -> Verdict:
        """``evidence``: ``Cluster.status.attestation``, as the site sent it: anything. ``expected``: measurements of which one
        has to be shown. ``max_age``: seconds. ``roots``: the certificates of the hub's authorities, PEM. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Person:
    """Who shows a bearer token, as an authenticator found out. From ``until`` on (seconds since the epoch) it counts no more."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()
    until: float | None = None


#: A GET that is bounded in time and size: URL and PEM of the authorities that count besides (empty: the machine's) → status
#: (0: no answer) and body.
Fetch = Callable[[str, str], Awaitable[tuple[int, bytes]]]


class TokenAuthenticator(Protocol):
    """Says whose bearer token it is. Entry-point group ``metaos.authenticator``; ``nemo up --authenticator NAME=TEXT`` calls the
    class as ``cls(TEXT, now=…, fetch=…)``; it raises ``ValueError`` where TEXT is wrong. Names and groups of the system are the
    caller's to refuse."""

    async def person(self, token: str) -> Person | None:
        """``None`` where the token is not this authenticator's, or does not count; never raises for what a caller may send."""
        ...


class Admission(Protocol):
    """An admission rule. Entry-point group ``metaos.admission``. Pure: may return a changed copy or raise ``ApiError``."""

    def admit(self, operation: str, obj: Obj, old: Obj | None) -> tuple[Obj, Sequence[str]]:
        """The object to store and warnings for the caller. ``operation`` is CREATE, UPDATE or DELETE."""
        ...
