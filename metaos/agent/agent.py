"""The agent: where the parts of a site are put together. It needs the hub for nothing but news.

Pods outlive this process: it may be stopped, killed or upgraded at any time, and finds them again when it comes back.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random, SystemRandom  # noqa: TID251  (a composition root)
from typing import Any

from metaos.agent import inventory
from metaos.agent.accounts import PodTokens
from metaos.agent.cache import Cache, NewerCache
from metaos.agent.connection import Connect, HubConnection
from metaos.agent.consumption import Consumption
from metaos.agent.contact import Contact
from metaos.agent.deadlines import Deadlines
from metaos.agent.energy import NoMeter
from metaos.agent.entry import UNUSABLE, AgentConfig, enter, first_failure, leave, lock, until_told
from metaos.agent.events import SiteEvents
from metaos.agent.exposing import Exposed
from metaos.agent.flows import Counts
from metaos.agent.join import JoinError
from metaos.agent.meter import Meter
from metaos.agent.mirror import PodMirrors
from metaos.agent.moving import Moves
from metaos.agent.network import ServiceNetwork
from metaos.agent.presence import Presence, Removed
from metaos.agent.remote import PodAccess
from metaos.agent.report import WorkReports, local
from metaos.agent.site import Attached, Pods, make_meter, make_runtime, read_site
from metaos.agent.supervisor import Supervisor
from metaos.agent.sync import WorkFiles, Works
from metaos.agent.usages import Usages
from metaos.clock import Clock, SystemClock
from metaos.config import DataVersionError, open_data
from metaos.http import spare_memory
from metaos.messaging.site import site_server
from metaos.plugins.points import Runtime, RuntimeUnavailable
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, cluster_namespace, name, uid
from metaos.resources.scheme import BACKUP_SCHEDULE, WORKLOADS
from metaos.tunnel import Stream

log = logging.getLogger(__name__)

#: Changes at this site within this time are handled together.
COALESCE_SECONDS = 0.05
#: How long a removed site waits for its pods to end.
FAREWELL_SECONDS = 90.0


#: (object, ``Normal`` or ``Warning``, reason, message)
Record = Callable[[Obj, str, str, str], None]
MakePods = Callable[[Runtime, ServiceNetwork, Record, PodTokens], Pods]


class Agent:
    """One site, ready to run. ``make_pods`` is given the runtime with the network attached, the network (a pod's address
    is its ``pod_address``), what records events, and what gives tokens; ``connect`` the contact and this site, and gives the way
    to the hub.
    ``identity``: the directory of the site's certificate, by which volumes are sent to other sites; without one none are."""

    def __init__(
        self,
        config: AgentConfig,
        site: Obj,
        connect: Connect,
        runtime: Runtime,
        make_pods: MakePods,
        clock: Clock,
        random: Random,
        machine: inventory.Machine | None = None,
        meter: Meter | None = None,
        files: WorkFiles | None = None,
        identity: Path | None = None,
    ) -> None:
        self._config, self._site, self._runtime = config, site, runtime
        self._clock, self._random = clock, random
        self._machine = machine or inventory.Machine()
        self._name = name(site)
        self.contact = Contact(clock, random, runtime.renewed())
        self.connection = connect(self.contact, self)
        self.client = self.connection.client
        self.works = Works(self.client, self.contact, clock, files or WorkFiles(config.data / "works"), self._name)
        connection = self.connection
        self.network = ServiceNetwork(runtime, self._name, config.data / "addresses.json", connection.dial, connection.api)
        self.exposed: Exposed | None = None
        if config.expose is not None:
            self.exposed = Exposed(
                config.expose,
                self._name,
                runtime,
                self.connection.dial,
                self.network.refusal_outside,
                self.network.counts,
                config.data / "exposed.json",
                lambda: self.reports.refresh(),
            )
        self.events = SiteEvents(
            self.client, self.contact, clock, random, self._name, lambda ns, pod: self.mirrors.uid_of(ns, pod)
        )
        self.tokens = PodTokens(
            connection, lambda pod: self.mirrors.shown(pod), lambda where, pod: self.mirrors.uid_of(where, pod), clock
        )
        self.contact.on_return(self.tokens.retry)
        attached: Any = Attached(runtime, self.network, self._find, self._fence)
        self.pods = make_pods(attached, self.network, self.events.record, self.tokens)
        self.deadlines = Deadlines(runtime, self.contact, self.works, self.pods.pods)
        self.mirrors = PodMirrors(self.client, self.contact, clock, random, self._name, self.pods.delete_pod)
        self.reports = WorkReports(
            self.client,
            self.contact,
            clock,
            random,
            self.works,
            local(self._status_of, lambda work: self.moves.status(work) if self.moves is not None else {}),
            self._show,
            cluster_namespace(self._name),
        )
        self.moves: Moves | None = None
        if identity is not None:
            self.moves = Moves(
                config.data / "runtime",
                identity,
                self._name,
                self.connection.dial,
                clock,
                self.works.all,
                self.pods.pods,
                lambda: self._changed.set(),
                self.reports.look,
                lambda: self.works.listed,
            )
            self.works.withheld = self.moves.withheld
            self.works.on_change(self.moves.wake)
            self.pods.on_change(self.moves.wake)
        self.presence = Presence(
            self.client, self.contact, clock, self._name, config.heartbeat_seconds, self.measure, declared=site
        )
        self.consumption = Consumption(runtime, self.pods.pods, clock, self._machine, self.network.counts, meter)
        self.usages = None if meter is None else Usages(self.client, self.contact, clock, random, meter, self._name)
        self._changed = asyncio.Event()
        self.works.on_change(self._changed.set)
        self.pods.on_change(self._changed.set)
        self.pods.on_change(self.deadlines.refresh)

    # ``SiteAccess`` for the tunnel, which is made before the pods are.

    async def acting_for(self, header: dict[str, Any]) -> PodAccess:
        """The hub alone says who may do what here."""
        return self.pods

    def refusal(self, *arguments: Any) -> str | None:
        return self.network.refusal(*arguments)

    async def datagrams(self, namespace: str, pod: str, port: int) -> Any:
        return await self.network.datagrams(namespace, pod, port)

    async def send_volumes(self, header: dict[str, Any], stream: Stream) -> None:
        if self.moves is None:
            raise ApiError(400, "BadRequest", f"site {self._name} sends no volumes")
        await self.moves.send(header, stream)

    @property
    def counts(self) -> Counts:
        return self.network.counts

    async def usage(self) -> dict[str, Any]:
        found = self.consumption
        if found.time is None:
            await found.look()
        age = self._clock.monotonic() - (found.time or 0.0)
        return {"age": age, "window": found.window, "pods": inventory.by_pod(found.rates, self.pods.pods())}

    def renew(self) -> None:
        self.connection.renew()

    async def _fence(self) -> None:
        self.deadlines.refresh()
        await self.deadlines.tell()

    def _find(self, pod_uid: str) -> Obj | None:
        return next((pod for pod in self.pods.pods() if uid(pod) == pod_uid), None)

    def _status_of(self, ref: ObjectRef) -> Obj | None:
        """Only workloads, backups and Services for the world outside have a status here; what they refer to is there when it is
        desired."""
        if ref.kind == "Service" and ref.group == "" and self.exposed is not None:
            return self.exposed.status(ref)
        return self.pods.status_of(ref) if ref.kind in _REPORTED_KINDS else {}

    async def _show(self, work: Obj) -> None:
        await self.mirrors.show(work, self.pods.pods())

    async def run(self) -> None:
        """Never returns. Raises ``Removed`` after this site's pods have been stopped and its membership forgotten."""
        log.info("site %s: %d works on disk, hub at %s", self._name, len(self.works.names()), self._config.hub)
        self._apply()
        self._changed.set()
        parts: list[Coroutine[Any, Any, Any]] = [
            self.pods.run(),
            self._follow_changes(),
            self.works.follower.run(),
            self.works.keep_fences(),
            self.deadlines.run(),
            self.reports.run(),
            self.mirrors.follower.run(),
            self.mirrors.run(),
            self.tokens.run(),
            self.events.run(),
            self.presence.keep_lease(),
            self.presence.keep_status(),
            self.consumption.run(),
            *([self.usages.run()] if self.usages else []),
            *([self.moves.run()] if self.moves else []),
            *self.connection.parts(),
        ]
        removed: Removed | None = None
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            try:
                await first_failure(tasks)
            except Removed as error:
                removed = error
                log.error("%s: site %s stops its pods and ends; to join again it needs a new token", error, self._name)
                await self._farewell()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.tokens.close()
            await self.mirrors.close()
            if self.exposed is not None:
                await self.exposed.close()
            await self.network.close()
            await self.connection.close()
        if removed is not None:
            raise removed

    def _apply(self) -> None:
        """Names and routes first, so that they are there before a container starts."""
        pods = self.pods.pods()
        self._connect(pods)
        self.mirrors.refresh(pods)
        self.pods.set_desired(self.works.desired())

    def _connect(self, pods: list[Obj]) -> None:
        told = self.works.desired(mark_draining=True)
        self.network.update(told, pods)
        if self.exposed is not None:
            self.exposed.update(told, pods)

    async def _follow_changes(self) -> None:
        desired: list[Obj] | None = None
        while True:
            await self._changed.wait()
            await self._clock.sleep(COALESCE_SECONDS)
            self._changed.clear()
            pods, wanted = self.pods.pods(), self.works.desired()
            self._connect(pods)
            if wanted != desired:
                desired = wanted
                self.pods.set_desired(wanted)
            self.mirrors.refresh(pods)
            self.reports.refresh()

    def _kept(self) -> list[dict[str, str]]:
        problem = self.works.problem
        return [{"type": "WorksKept", "status": "False", "reason": "NoSpace", "message": problem}] if problem else []

    async def measure(self) -> dict[str, Any]:
        """The agent's part of ``Cluster.status``."""
        has, free = inventory.capacity(self._site, self._machine.measure())
        isolation = str((self._site.get("spec") or {}).get("isolation") or "bubblewrap")
        await self.consumption.look()
        return {
            "capacity": has.quantities(),
            "allocatable": free.quantities(),
            "usage": inventory.usage(self.consumption.rates),
            "nodeInfo": self._machine.node_info(isolation, str((self._site.get("spec") or {}).get("runtime") or "sandbox")),
            "runtimeClasses": list(self._runtime.runtime_classes()),
            "images": [dict(image) for image in await self._runtime.images()],
            "agentConditions": inventory.condition_list(
                [*self._runtime.conditions(), *self._machine.conditions(), *self._kept()]
            ),
            "certificate": self.connection.certificate(),
            "attestation": self.connection.attestation(),
            **({} if self.moves is None else {"volumeMoves": True, "volumeRestores": True}),
        }

    async def _farewell(self) -> None:
        """Stop everything and forget the membership, so that nothing of it comes back."""
        self.works.forget_all()
        self._apply()
        deadline = self._clock.monotonic() + FAREWELL_SECONDS
        while self.pods.pods() and self._clock.monotonic() < deadline:
            await self._clock.sleep(0.2)
        leave(self._config.data)


_REPORTED_KINDS = {kind.kind for kind in (*WORKLOADS, BACKUP_SCHEDULE)}


async def run_agent(config: AgentConfig) -> int:
    """Runs a site until it is told to end (SIGTERM, SIGINT) or is removed; the exit code. Its pods run on."""
    # Hubs count what a site was silent for while it was suspended, too.
    clock, random = SystemClock(suspended=True), SystemRandom()
    with ExitStack() as stack:
        try:
            site, plugins = await read_site(config.site_file, config.runtime)
            open_data(config.data)
            lock(config.data, stack)
            cache = Cache(config.data / "records.db")
            stack.callback(cache.close)
            runtime = make_runtime(site, plugins.runtime, config.data, clock)
            meter = make_meter(site, plugins.meters, cache, config.metering_seconds)
            bus = site_server(config.leaf, config.data / "bus", clock, config.mqtt, config.mqtt_pair)
            await runtime.check()
        except (RuntimeUnavailable, DataVersionError, NewerCache, NoMeter, JoinError, ValueError, OSError) as error:
            log.error("%s", error)
            return UNUSABLE

        async def run() -> None:
            async with bus:
                await joined()

        async def joined() -> None:
            identity = await enter(config, site, clock, random)
            make_pods = supervised(config, site, cache, clock, random)
            connect = partial(HubConnection, config, name(site), identity, clock, random)
            own = config.data / "identity"
            agent = Agent(config, site, connect, runtime, make_pods, clock, random, meter=meter, identity=own)
            asyncio.get_running_loop().call_soon(_freeze)
            await agent.run()

        try:
            return await until_told(run(), name(site), runs_on="pods run on")
        finally:
            await runtime.close()


def _freeze() -> None:
    """What is there at the start stays: garbage collection need not look at it again, nor wait until a quarter as much is new
    (``long_lived_pending`` of CPython's ``gcmodule.c``): the second collection counts without it."""
    gc.collect()
    gc.freeze()
    gc.collect()


def supervised(config: AgentConfig, site: Obj, cache: Cache, clock: Clock, random: Random) -> MakePods:
    """What runs and heals pods at a site without Kubernetes."""

    def make(runtime: Runtime, network: ServiceNetwork, record: Record, tokens: PodTokens) -> Pods:
        found = Supervisor(
            runtime,
            cache,
            clock,
            random,
            site=name(site),
            # Below the runtime's own directory: what may be mounted lies there.
            directory=config.data / "runtime",
            address=network.pod_address,
            record=record,
            host_paths=(site.get("spec") or {}).get("hostPaths") or (),
            machine=inventory.capacity(site, inventory.measure())[1].quantities(),
            tokens=tokens,
        )
        found.volumes.memory = True
        return found

    return make


def main(config: AgentConfig) -> int:
    """For the command line: the exit code."""
    spare_memory()
    return asyncio.run(run_agent(config))
