"""The agent of a Kubernetes cluster: where its parts are put together. It dials out only, to the hub and to the cluster.

The cluster runs and heals its share alone, with its own controllers; this process may be stopped at any time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random, SystemRandom  # noqa: TID251  (a composition root)
from typing import Any

from metaos import __version__
from metaos.agent.connection import Connect, HubConnection
from metaos.agent.contact import Contact, Follower
from metaos.agent.entry import UNUSABLE, AgentConfig, enter, first_failure, leave, lock, until_told
from metaos.agent.events import SiteEvents
from metaos.agent.hubs import Hubs
from metaos.agent.join import Identity, JoinError, identity_process
from metaos.agent.mirror import PodMirrors
from metaos.agent.presence import Presence, Removed
from metaos.agent.report import WorkReports
from metaos.agent.sync import WorkFiles, Works
from metaos.clock import Clock, SystemClock
from metaos.config import DataVersionError, open_data
from metaos.files import write_private
from metaos.http import HttpClient, spare_memory
from metaos.members.access import MemberAccess
from metaos.members.applier import Applier
from metaos.members.callers import Identities
from metaos.members.claim import Membership, claim, release
from metaos.members.exports import Exports
from metaos.members.kubeconfig import KubeconfigError
from metaos.members.manifests import MEMBER_LABEL
from metaos.members.member import Member, read_access
from metaos.members.news import MemberNews
from metaos.members.nodes import architecture, totals
from metaos.members.others import OtherPods
from metaos.members.pods import MemberPods
from metaos.members.quotas import MemberQuotas
from metaos.members.relaying import Relays
from metaos.members.status import about as described
from metaos.messaging.site import site_server
from metaos.reconcile.precedence import Precedence
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, cluster_namespace, name, uid
from metaos.resources.scheme import CLUSTER, NODE

log = logging.getLogger(__name__)

RUNTIME = "kubernetes"
#: Whose the cluster is, is looked at so often.
CLAIM_SECONDS = 30.0
CLAIM_RETRY_SECONDS = 5.0
#: Changes of pods within this time are shown together; longer where there are many, as all of them are looked through.
COALESCE_SECONDS, COALESCE_SECONDS_EACH = 0.05, 0.001
#: How long a removed member waits for what it had applied to be gone.
FAREWELL_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class MemberConfig:
    """What ``nemo agent --runtime kubernetes`` was asked to do. Without ``kubeconfig``: the pod's own service account."""

    agent: AgentConfig
    kubeconfig: Path | None = None
    context: str = ""
    identities: Identities = Identities.PREFIXED
    #: An address of this machine or pod at which the cluster's pods reach imported Services; empty: they do not.
    relay: str = ""


class KubernetesAgent:
    """One Kubernetes cluster as a member, ready to run."""

    def __init__(
        self,
        config: MemberConfig,
        site: Obj,
        membership: Membership,
        member: Member,
        connect: Connect,
        clock: Clock,
        random: Random,
    ) -> None:
        self._config, self._site, self._membership, self._clock = config, site, membership, clock
        self._name, self.member = name(site), member
        self.contact = Contact(clock, random)
        self.access = MemberAccess(
            member,
            lambda: self.connection.renew(),
            lambda where, pod: self.pods.ours(where, pod),
            lambda: self.pods.pods(),
            config.identities,
            lambda where, service, port: self.exports.connect(where, service, port),
        )
        self.exports = Exports(member.client, clock, self.access.forward, self._look)
        self.connection = connect(self.contact, self.access)
        client = self.connection.client
        # The cluster keeps what was applied: a file that is lost with its machine's power is told again by the hub.
        files = WorkFiles(config.agent.data / "works", durable=False)
        # What is on its way to the cluster goes before what is told of it.
        precedence = self._precedence = Precedence(clock)
        self.works = Works(client, self.contact, clock, files, self._name)
        self.events = SiteEvents(
            client, self.contact, clock, random, self._name, lambda where, pod: self.mirrors.uid_of(where, pod), precedence
        )
        self.relays: Relays | None = None
        if config.relay:
            self.relays = Relays(
                config.relay,
                self._name,
                self.works.get,
                self.connection.dial,
                lambda address: self.pods.at(address),
            )
        self.applier = Applier(
            member,
            self.works,
            membership.id,
            clock,
            random,
            self._look,
            self.events.record,
            lambda: self.pods.refresh(),
            self.relays,
            self.exports,
            precedence,
        )
        self._changed = asyncio.Event()
        news = MemberNews(member, clock, lambda involved: self.pods.known(involved), self.events.record)
        self.pods = MemberPods(member, self.applier, clock, self._changed.set, news, precedence)
        self.others, self.quotas = OtherPods(member, clock), MemberQuotas(member, clock)
        self.mirrors = PodMirrors(client, self.contact, clock, random, self._name, self.pods.delete_pod, precedence)
        self.reports = WorkReports(
            client,
            self.contact,
            clock,
            random,
            self.works,
            self.applier.judge,
            self._show,
            cluster_namespace(self._name),
            precedence,
        )
        self.presence = Presence(
            client,
            self.contact,
            clock,
            self._name,
            config.agent.heartbeat_seconds,
            self.measure,
            lambda: self.able,
            declared=site,
        )
        self._nodes: dict[str, Obj] = {}
        self._nodes_problem = ""
        self._node_follower = Follower(
            member.client,
            member.contact,
            clock,
            NODE,
            on_list=lambda found: self._replace_nodes(found.items),
            on_event=lambda event: self._see_node(event.object, gone=event.type == "DELETED"),
            on_error=self._miss_nodes,
        )

    @property
    def able(self) -> bool:
        """Whether the cluster does what it is told: it answers, and it is ours."""
        return self.member.able and not self.applier.held

    async def run(self) -> None:
        """Never returns. Raises ``Removed`` after what was applied has been taken away and the membership is forgotten."""
        log.info("site %s: the cluster at %s, hub at %s", self._name, self.member.server, self._config.agent.hub)
        parts: list[Coroutine[Any, Any, Any]] = [
            self.member.run(),
            self._keep_claim(),
            self._node_follower.run(),
            self.others.follower.run(),
            *(follower.run() for follower in self.quotas.followers),
            self.works.follower.run(),
            self.applier.run(),
            self.pods.run(),
            self.exports.run(),
            self._follow_pods(),
            self.mirrors.follower.run(),
            self.mirrors.run(),
            self.reports.run(),
            self.events.run(),
            self.presence.keep_lease(),
            self.presence.keep_status(),
            *self.connection.parts(),
        ]
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            await first_failure(tasks)
        except Removed as error:
            log.error(
                "%s: site %s takes away what it has applied, and ends; to join again it needs a new token", error, self._name
            )
            await self._farewell()
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.relays is not None:
                await self.relays.close()
            await self.mirrors.close()
            await self.access.close()
            await self.connection.close()
            await self.member.client.close()

    def _look(self, work: str) -> None:
        self._changed.set()  # whose a pod is may have come out
        self.reports.look(work)

    async def _follow_pods(self) -> None:
        while True:
            await self._changed.wait()
            await self._clock.sleep(max(COALESCE_SECONDS, COALESCE_SECONDS_EACH * len(self.pods)))
            await self._precedence.after()
            self._changed.clear()
            self.mirrors.refresh(self.pods.pods(), immutable=True)

    async def _show(self, work: Obj) -> None:
        await self.mirrors.show(work, self.pods.of(work))

    async def _keep_claim(self) -> None:
        said = ""
        while True:
            try:
                problem = await claim(self.member.client, self._membership)
            except ApiError as error:
                self.member.contact.missed(error)
                # One that is ours stays so while it cannot be asked.
                problem = f"whose this cluster is cannot be found out: {error.message}" if self.applier.held else ""
            if problem:
                self.applier.hold(problem)
                if problem != said:
                    log.error("%s", problem)
            else:
                self.applier.begin()
            said = problem
            await self._clock.sleep(CLAIM_RETRY_SECONDS if problem else CLAIM_SECONDS)

    # -- nodes -------------------------------------------------------------------------------------------------

    def _replace_nodes(self, nodes: list[Obj]) -> None:
        self._nodes, self._nodes_problem = {}, ""
        for node in nodes:
            self._see_node(node, gone=False)

    def _see_node(self, node: Obj, *, gone: bool) -> None:
        if gone:
            self._nodes.pop(name(node), None)
            return
        status, spec = node.get("status") or {}, node.get("spec") or {}
        kept = {key: status[key] for key in ("capacity", "allocatable", "conditions", "nodeInfo") if key in status}
        self._nodes[name(node)] = {
            "metadata": {"name": name(node)},
            "spec": {"unschedulable": bool(spec.get("unschedulable")), "taints": spec.get("taints") or []},
            "status": kept,
        }

    def _miss_nodes(self, error: ApiError) -> None:
        self._nodes_problem = f"the cluster's nodes cannot be read, so its capacity is not known: {error.message}"

    async def measure(self) -> dict[str, Any]:
        """The agent's part of ``Cluster.status``."""
        nodes = [self._nodes[key] for key in sorted(self._nodes)]
        stated, taken = self._site.get("spec") or {}, self.others.by_node(self.pods.uids())
        has, free = totals(nodes, stated.get("capacity") or {}, taken, stated.get("taints") or ())
        return {
            "capacity": has,
            "allocatable": free,
            "quotas": self.quotas.told(self.pods.pods()),
            "nodeInfo": {
                "agentVersion": __version__,
                "osImage": f"Kubernetes {self.member.version}".rstrip(),
                "operatingSystem": "linux",
                "architecture": architecture(nodes),
                "isolation": "kubernetes",
                "runtime": RUNTIME,
            },
            "agentConditions": self._conditions(),
            "certificate": self.connection.certificate(),
            "attestation": self.connection.attestation(),
        }

    def _conditions(self) -> list[dict[str, str]]:
        left = self.applier.left if self.works.listed else []
        shown = ", ".join(described({"kind": r.kind, "metadata": r._asdict()}) for r in left[:5])
        return [
            _condition("ClusterClaimed", self.applier.held, "Claimed", "NotClaimed"),
            _condition("ClusterReachable", self.member.problem, "Reachable", "Unreachable"),
            _condition("LeftoversGone", f"{len(left)} objects are still to go: {shown}" if left else "", "Gone", "Waiting"),
            _condition("NodesKnown", self._nodes_problem, "Listed", "Unknown"),
            _condition("MetricsServed", self.access.unmeasured, "Served", "NotServed"),
            _condition("QuotasKnown", self.quotas.problem, "Listed", "Unknown"),
            _condition("WorksKept", self.works.problem, "Kept", "NoSpace"),
            _condition("PodsKnown", self.others.problem, "Listed", "Unknown"),
        ]

    async def _farewell(self) -> None:
        """Take away what was applied, by this agent or one before it, and forget the membership, so that nothing of it comes
        back."""
        self.works.forget_all()
        self.applier.take_up()
        deadline = self._clock.monotonic() + FAREWELL_SECONDS
        while not self.applier.cleared and not self.applier.held and self._clock.monotonic() < deadline:
            await self._clock.sleep(0.2)
        if not self.applier.cleared:
            log.error(
                "site %s: not all that was applied is gone (%s); delete what carries the label %s=%s at the cluster",
                self._name,
                self.applier.held or self.member.problem or f"{len(self.applier.left)} objects are still to go",
                MEMBER_LABEL,
                self._membership.id,
            )
        await release(self.member.client, self._membership)
        leave(self._config.agent.data)
        (self._config.agent.data / "member.json").unlink(missing_ok=True)


def _condition(kind: str, problem: str, well: str, ill: str) -> dict[str, str]:
    return {
        "type": kind,
        "status": "False" if problem else "True",
        "reason": ill if problem else well,
        "message": problem[:1024],
    }


async def membership_of(config: AgentConfig, identity: Identity, clock: Clock, random: Random) -> Membership:
    """Which membership this is: the uid of the Cluster at the hub, kept so that the hub need not be there at the next start."""
    kept, site = config.data / "member.json", identity.name
    try:
        return Membership(str(json.loads(kept.read_text())["id"]), site, config.hub)
    except (OSError, ValueError, KeyError):
        pass
    contact, failures = Contact(clock, random), 0
    hubs = Hubs(config.hub, config.data / "hubs.json", config.more_hubs)
    client = HttpClient(hubs.url, context=identity.context(), clock=clock, random=random)
    hubs.on_move(lambda: client.move(hubs.url))
    try:
        while True:
            try:
                found = uid(await client.get(CLUSTER, site))
                write_private(kept, json.dumps({"id": found}))
                return Membership(found, site, config.hub)
            except ApiError as error:
                failures += 1
                contact.missed(error)
                hubs.failed(hubs.url)
                await contact.pause(failures)
    finally:
        await client.close()


async def read_site(path: Path) -> Obj:
    """The site file of a Kubernetes member. Raises ``JoinError`` saying what is wrong."""
    site: Obj = json.loads(await identity_process("member", str(path)))
    return site


async def run_agent(config: MemberConfig) -> int:
    """Runs a member until it is told to end (SIGTERM, SIGINT) or is removed; the exit code. Its workloads run on."""
    clock, random = SystemClock(suspended=True), SystemRandom()
    data = config.agent.data
    with ExitStack() as stack:
        try:
            site = await read_site(config.agent.site_file)
            open_data(data)
            lock(data, stack)
            told = config.agent
            bus = site_server(told.leaf, data / "bus", clock, told.mqtt, told.mqtt_pair)
            access = await read_access(config.kubeconfig, config.context)
            member = Member(access, config.kubeconfig, config.context, data, clock, random)
        except (KubeconfigError, DataVersionError, JoinError, OSError, ssl.SSLError, ValueError) as error:
            log.error("%s", error)
            return UNUSABLE

        async def run() -> None:
            async with bus:
                await joined()

        async def joined() -> None:
            identity = await enter(config.agent, site, clock, random)
            membership = await membership_of(config.agent, identity, clock, random)
            connect = partial(HubConnection, config.agent, name(site), identity, clock, random)
            await KubernetesAgent(config, site, membership, member, connect, clock, random).run()

        return await until_told(run(), name(site), runs_on="workloads run on")


def main(config: MemberConfig) -> int:
    """For the command line: the exit code."""
    spare_memory()
    return asyncio.run(run_agent(config))
