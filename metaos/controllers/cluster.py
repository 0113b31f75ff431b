"""Cluster: whether a site is there. Heartbeats become the Ready condition, lost sites get a taint, and removal is orderly.

A heartbeat is seen when its Lease *changes*, by the hub's own clock, so a site's wrong clock does no harm; after a start the hub
waits a whole lease duration before it misses anybody. A lost site gets a taint that only keeps new work away, and, when it is
its turn, one that has its work replaced: a few sites at once, then some in each interval, so that the loss of many does not
move everything at the same moment. When most sites vanish together the hub suspects itself and replaces none of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.certificate import withdraw
from metaos.controllers.podeviction import alone, overdue
from metaos.controllers.recorder import Recorder
from metaos.controllers.render import is_idle
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import (
    CLUSTER_LABEL,
    CLUSTER_NAMESPACE_PREFIX,
    EVICTED,
    TAINT_UNREACHABLE,
    Obj,
    ObjectRef,
    annotations,
    cluster_namespace,
    condition,
    deleting,
    format_time,
    is_true,
    name,
    namespace,
    parse_time,
    ref,
    with_condition,
)
from metaos.security.authz import CLUSTER_USER_PREFIX

NAME = "cluster"
#: How long a count of lost sites is good for: a thousand that vanish at once are counted once, not a million times.
COUNT_SECONDS = 0.5
#: A site that does not answer is looked at so often, as its turn may have come; all of them together so many times a second, so
#: that thousands that are lost leave the hub to those that are not. What it costs is time: of 10,000 each waits up to 100 s.
LOOK_SECONDS, LOOKS_PER_SECOND = 5.0, 100
FINALIZER = "meta-os.eu/cluster"


@dataclass(slots=True)
class Heartbeat:
    """What was last seen of a site's Lease, and when by the hub's monotonic clock."""

    content: str
    seen: float
    ever: bool = field(default=False)
    #: Whether the site is being removed: it counts neither among the lost nor among the others.
    leaving: bool = field(default=False)


def storm(lost: int, known: int, share: float) -> bool:
    """Whether so many sites are lost that the hub itself is the likelier culprit. Of one or two sites, all may be lost."""
    return known > 2 and lost / known > share


class Pace:
    """Whose turn it is: ``burst`` at once, then one in every ``interval`` seconds, or one of a hundred where that is more."""

    def __init__(self, burst: int, interval: float, now: float) -> None:
        self._burst, self._interval = burst, interval
        self._saved, self._seen = float(burst), now

    def take(self, now: float, known: int) -> bool:
        """Whether one more may go now. ``known``: how many sites there are."""
        per_interval = max(1.0, known / 100)
        gained = (now - self._seen) / self._interval * per_interval
        self._saved, self._seen = min(max(float(self._burst), per_interval), self._saved + gained), now
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


def with_taint(taints: Sequence[Mapping[str, Any]], effect: str | None, now: float) -> list[dict[str, Any]]:
    """The site's taints with the unreachable one of this effect, or without it. ``timeAdded`` stays while it does."""
    others = [dict(t) for t in taints if t.get("key") != TAINT_UNREACHABLE]
    if effect is None:
        return others
    same = next((dict(t) for t in taints if t.get("key") == TAINT_UNREACHABLE and t.get("effect") == effect), None)
    if same is not None and (not same.get("timeAdded") or parse_time(same["timeAdded"]) > now + 1):
        # Stamped by a clock that was ahead: tolerations would last as much longer.
        same = None
    return [*others, same or {"key": TAINT_UNREACHABLE, "effect": effect, "timeAdded": format_time(now)}]


def _is_replaced(cluster: Obj) -> bool:
    """Whether a lost site had its turn already."""
    taints = (cluster.get("spec") or {}).get("taints") or ()
    return any(t.get("key") == TAINT_UNREACHABLE and t.get("effect") == "NoExecute" for t in taints)


def _site(pod: Obj) -> str:
    return str((pod.get("spec") or {}).get("nodeName") or "")


class ClusterReconciler:
    """Keys are Clusters."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        self._client, self._clock, self._settings = client, clock, settings
        self._recorder = Recorder(client, clock, "cluster-controller")
        self._clusters = manager.informer(scheme.CLUSTER)
        self._leases = manager.informer(scheme.LEASE)
        self._namespaces = manager.informer(scheme.NAMESPACE)
        self._pods = manager.informer(scheme.POD)
        self._works = manager.informer(scheme.WORK)
        self._pods.add_index("site", lambda p: [_site(p)])
        self._pods.add_index("evicted from", lambda p: [_site(p)] if EVICTED in annotations(p) else [])
        self._pods.add_index("alone at", lambda p: [_site(p)] if alone(p) and _site(p) else [])
        # Bounded by the number of sites.
        self._heartbeats: dict[str, Heartbeat] = {}
        self._removing: dict[str, float] = {}
        self._pace = Pace(settings.lost_burst, settings.lost_interval, clock.monotonic())
        #: When most sites were last suspected to have vanished together, by the monotonic clock.
        self._stormy = float("-inf")
        self._counted: tuple[float, int, int, int] = float("-inf"), 0, 0, 0

    async def reconcile(self, about: ObjectRef) -> Result:
        cluster = self._clusters.get(about.name)
        if cluster is None:
            self._heartbeats.pop(about.name, None)
            self._removing.pop(about.name, None)
            return DONE
        again = await self._evict(cluster)
        if deleting(cluster):
            self.observe(about.name).leaving = True
            return await self._remove(cluster)
        if FINALIZER not in (cluster["metadata"].get("finalizers") or ()):
            finalizers = [*(cluster["metadata"].get("finalizers") or ()), FINALIZER]
            cluster = await self._client.patch(scheme.CLUSTER, about.name, "", {"metadata": {"finalizers": finalizers}})
        await self._ensure_namespace(about.name)
        wait = await self._judge(cluster)
        return Result(requeue_after=wait if again is None else min(wait, max(0.05, again)))

    async def _ensure_namespace(self, cluster: str) -> None:
        where = cluster_namespace(cluster)
        if self._namespaces.get(where) is None:
            obj: Obj = dict(scheme.NAMESPACE.empty(where))
            obj["metadata"]["labels"] = {CLUSTER_LABEL: cluster}
            try:
                await self._client.create(obj)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise

    # -- health ---------------------------------------------------------------------------------------------

    def observe(self, cluster: str) -> Heartbeat:
        """The heartbeat as of now: renewed if the Lease has changed since the last look."""
        lease = self._leases.get(cluster, cluster_namespace(cluster))
        content = str(((lease or {}).get("spec") or {}).get("renewTime") or "")
        found = self._heartbeats.get(cluster)
        if found is None:
            # After a start everybody gets a whole lease duration.
            found = self._heartbeats[cluster] = Heartbeat(content, self._clock.monotonic())
        elif content != found.content:
            found.content, found.seen, found.ever = content, self._clock.monotonic(), True
        return found

    def beats(self, cluster: str) -> bool:
        """A Lease has changed. Whether that is the heartbeat of a site that is known to live: then nothing has to be done but to
        remember when it was, and whoever looks at the end of the lease sees it."""
        known = cluster in self._heartbeats
        beat = self.observe(cluster)
        return known and beat.ever and self._is_well(cluster)

    def _is_well(self, cluster: str) -> bool:
        found = self._clusters.get(cluster)
        if found is None or deleting(found):
            return False
        taints = (found.get("spec") or {}).get("taints") or ()
        said = condition(found, "Ready") or {}
        return (said.get("status"), said.get("reason")) == ("True", "Heartbeat") and not any(
            t.get("key") == TAINT_UNREACHABLE for t in taints
        )

    async def _judge(self, cluster: Obj) -> float:
        """Writes the Ready condition and taint that the heartbeat asks for; seconds until the next look."""
        beat = self.observe(name(cluster))
        beat.leaving = False
        age = self._clock.monotonic() - beat.seen
        alive = bool(beat.content) and age < self._settings.lease_duration
        now = self._clock.now()
        before = condition(cluster, "Ready")
        if alive and not beat.ever and (before is None or before.get("status") != "True"):
            # A Lease that was there before this hub started proves nothing until it changes.
            alive = False
            if before is not None and before.get("status") == "Unknown" and age < self._settings.lease_duration:
                return self._settings.lease_duration - age + 0.05
        if not beat.content:
            status, reason, message = "False", "NeverSeen", "the site has joined and has not sent a heartbeat yet"
        elif alive:
            status, reason, message = "True", "Heartbeat", "the site sends heartbeats"
        elif before is None:
            status, reason, message = "False", "NeverSeen", "waiting for the site's heartbeat"
        else:
            status, reason = "Unknown", "Lost"
            message = f"no heartbeat for more than {self._settings.lease_duration:g} s"
        effect = None
        if status == "Unknown":
            lost, known, _ = self._count_lost(name(cluster))
            suspect = storm(lost, known, self._settings.storm_share)
            if suspect:
                self._stormy = self._clock.monotonic()
            effect = "NoExecute"
            if (
                not suspect
                and not _is_replaced(cluster)
                and self._clock.monotonic() - self._stormy < self._settings.lease_duration
            ):
                effect = "NoSchedule"
                message += (
                    "; most sites had vanished together and come back now: this one gets as long as a lease to come back too"
                )
            elif suspect:
                # Without the numbers: they change with every site, and this is written once for each.
                effect = "NoSchedule"
                message += (
                    "; most sites vanished together, so nothing is moved: check the hub's own network, and remove sites that are "
                    "gone for good with 'kubectl delete cluster NAME'"
                )
            elif not _is_replaced(cluster) and not self._pace.take(self._clock.monotonic(), known):
                effect = "NoSchedule"
                message += "; many sites are lost and their work is replaced site by site: this one waits its turn"
        await self._write(cluster, status, reason, message, effect, now)
        if status == "Unknown":
            await self._lose_pods(name(cluster), now)
        if alive:
            return max(0.05, self._settings.lease_duration - age + 0.05)
        silent = self._count_lost(name(cluster))[2]
        return max(min(LOOK_SECONDS, self._settings.lease_duration), silent / LOOKS_PER_SECOND)

    def _count_lost(self, judged: str) -> tuple[int, int, int]:
        """How many sites are lost, how many were known to live, and how many do not answer, among them those that have yet to;
        judged by heartbeats now rather than by conditions."""
        if self._clock.monotonic() - self._counted[0] < COUNT_SECONDS:
            return self._counted[1:]
        lost = known = silent = 0
        # Sites whose last heartbeat is nearly as old may be vanishing in the same moment.
        late = self._clock.monotonic() - self._settings.lease_duration * 0.75
        for site, beat in self._heartbeats.items():
            if beat.leaving:
                continue
            if not beat.content:
                silent += 1
                continue
            known += 1
            lost += site == judged or beat.seen <= late
        self._counted = self._clock.monotonic(), lost, known, silent + lost
        return self._counted[1:]

    async def _write(self, cluster: Obj, status: str, reason: str, message: str, effect: str | None, now: float) -> None:
        taints = (cluster.get("spec") or {}).get("taints") or []
        wanted = with_taint(taints, effect, now)
        if wanted != taints:
            cluster = await self._client.patch(scheme.CLUSTER, name(cluster), "", {"spec": {"taints": wanted}})
        before = condition(cluster, "Ready") or {}
        if (before.get("status"), before.get("reason"), before.get("message")) == (status, reason, message):
            return
        conditions = with_condition((cluster.get("status") or {}).get("conditions") or (), "Ready", status, reason, message, now)
        await self._client.patch(scheme.CLUSTER, name(cluster), "", {"status": {"conditions": conditions}}, subresource="status")
        if before.get("status") != status:
            lost = status == "Unknown"
            words = {"True": "SiteReady", "Unknown": "SiteLost", "False": "SiteNotReady"}
            await self._recorder.event(cluster, words[status], message, warning=lost)

    async def _lose_pods(self, site: str, now: float) -> None:
        """Pods of a lost site: nobody knows."""
        for pod in self._pods.by_index("site", site):
            if not is_true(pod, "Ready"):
                continue
            status = pod.get("status") or {}
            conditions = with_condition(
                status.get("conditions") or (), "Ready", "Unknown", "NodeLost", "the site does not answer", now
            )
            changed = {"conditions": conditions, "reason": "NodeLost", "message": "the site does not answer"}
            try:
                await self._client.patch(scheme.POD, name(pod), namespace(pod), {"status": changed}, subresource="status")
            except ApiError as error:
                if error.code != 404:
                    raise

    # -- pods that have to leave ----------------------------------------------------------------------------

    async def _evict(self, cluster: Obj) -> float | None:
        """Deletes pods that nobody would place elsewhere, where they may not stay; seconds until time alone makes one leave. A
        site that takes pods again has evicted nobody."""
        site, now, waits = name(cluster), self._clock.now(), list[float]()
        if not deleting(cluster) and not (cluster.get("spec") or {}).get("unschedulable"):
            for pod in self._pods.by_index("evicted from", site):
                await self._patched(pod, {"metadata": {"annotations": {EVICTED: None}}})
        for pod in self._pods.by_index("alone at", site):
            why, until = overdue(pod, cluster, now)
            if why:
                # In the words of Kubernetes, and with the reason.
                text = f"Marking for deletion Pod {namespace(pod)}/{name(pod)}: {why}, and no controller makes it anew elsewhere"
                await self._recorder.event(pod, "TaintManagerEviction", text)
                await self._gone(scheme.POD, name(pod), namespace(pod))
            elif until is not None:
                waits.append(until - now)
        return min(waits, default=None)

    async def _patched(self, pod: Obj, patch: Obj) -> None:
        try:
            await self._client.patch(scheme.POD, name(pod), namespace(pod), patch)
        except ApiError as error:
            if error.code != 404:
                raise

    # -- removal --------------------------------------------------------------------------------------------

    async def _remove(self, cluster: Obj) -> Result:
        """Hands its work over (make before break, within a bound), then takes away everything that stood for the site."""
        site, where = name(cluster), cluster_namespace(name(cluster))
        works = self._works.list(where)
        kinds = {k.kind for k in scheme.WORKLOADS}
        leaving = [w for w in works if (w.get("spec") or {}).get("manifests", [{}])[0].get("kind") in kinds and not is_idle(w)]
        waited = self._clock.monotonic() - self._removing.setdefault(site, self._clock.monotonic())
        if is_true(cluster, "Ready") and leaving and waited < self._settings.removal_timeout:
            return Result(requeue_after=1.0)
        await self._revoke(site)
        for pod in self._pods.by_index("site", site):
            await self._gone(scheme.POD, name(pod), namespace(pod), grace=0)
        if self._namespaces.get(where) is not None:
            await self._gone(scheme.NAMESPACE, where, "")
            return Result(requeue_after=0.5)
        finalizers = [f for f in cluster["metadata"].get("finalizers") or () if f != FINALIZER]
        await self._client.patch(scheme.CLUSTER, site, "", {"metadata": {"finalizers": finalizers}})
        return DONE

    async def _revoke(self, site: str) -> None:
        """The site's certificates are worth nothing from now on; the name may join anew, with others."""
        await withdraw(self._client, CLUSTER_USER_PREFIX + site, self._clock.now())

    async def _gone(self, kind: scheme.Kind, what: str, where: str, grace: int | None = None) -> None:
        try:
            await self._client.delete(kind, what, where, grace_period_seconds=grace)
        except ApiError as error:
            if error.code not in (404, 409):
                raise


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: for every site, when it or its Lease changes."""

    reconciler = ClusterReconciler(manager, client, clock, settings)

    def on_lease(old: Obj | None, new: Obj | None) -> None:
        found = new or old or {}
        if namespace(found).startswith(CLUSTER_NAMESPACE_PREFIX) and not (new is not None and reconciler.beats(name(found))):
            manager.enqueue(NAME, ObjectRef(scheme.CLUSTER.group, scheme.CLUSTER.kind, "", name(found)))

    def of_namespace(obj: Obj) -> Iterable[ObjectRef]:
        if name(obj).startswith(CLUSTER_NAMESPACE_PREFIX):
            yield ObjectRef(scheme.CLUSTER.group, scheme.CLUSTER.kind, "", name(obj).removeprefix(CLUSTER_NAMESPACE_PREFIX))

    manager.add(reconciler, [(scheme.CLUSTER, lambda o: [ref(o)]), (scheme.NAMESPACE, of_namespace)])
    manager.informer(scheme.LEASE).on_change(on_lease)
