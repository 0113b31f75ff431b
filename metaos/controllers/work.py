"""Work: renders what the decisions say, one Work for every object and site. Placement → Works.

What a workload refers to follows it to exactly the sites where a Work of a dependent exists. A site that is no longer chosen
keeps its Work until the migration controller takes it down; when the user's object goes, its Works go at once.
"""

import asyncio
import math
from collections.abc import Coroutine, Iterable, Mapping, Set
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.barred import Barred, displaced
from metaos.controllers.concern import on_health, workload_of, works_by_source
from metaos.controllers.deferral import deferral_of, held_until
from metaos.controllers.disruption import noted
from metaos.controllers.facts import basis, concerned, concerning, decides, placement_name, ruling
from metaos.controllers.fencing import Silence, agreed, fences_itself, fencing, halt, halted, renewal_of, stopped
from metaos.controllers.moving import Moving, arrives, moves, under_way, volumes_of
from metaos.controllers.networkpolicy import Policies
from metaos.controllers.outlook import LATE_SECONDS
from metaos.controllers.recorder import Recorder
from metaos.controllers.recovery import Recoveries, on_backing
from metaos.controllers.render import (
    asks,
    cluster_of,
    dependencies,
    manifest,
    on_capacity,
    overridden,
    paused,
    referred,
    reported,
    source_label,
    source_of,
    with_replicas,
    work,
)
from metaos.controllers.restored import LOOK_SECONDS, Hold
from metaos.controllers.rollout import staged
from metaos.controllers.settings import Settings
from metaos.controllers.shifting import starts_of
from metaos.data.backups import opened_for
from metaos.reconcile.manager import CONTENT_LEFT_OUT, Manager
from metaos.reconcile.precedence import Turn
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.cron import STARTS
from metaos.resources.errors import ApiError
from metaos.resources.meta import (
    SYSTEM_NAMESPACE,
    Obj,
    ObjectRef,
    cluster_namespace,
    controller_of,
    deleting,
    format_time,
    is_true,
    name,
    namespace,
    ref,
    resource_version,
    uid,
)
from metaos.resources.reading import cluster_info, concerns
from metaos.resources.traffic import carries
from metaos.resources.workload import replicas, work_name
from metaos.scheduler.disruption import ended, kept
from metaos.scheduler.slack import asked

NAME = "work"
#: Objects whose Works are written at the same time: they share a commit.
WORKERS = 4
#: How often is looked whether those that were displaced have stopped.
GIVEN_UP_SECONDS = 1.0
#: What several sites tell of one object within this time is looked at once.
TOLD_SECONDS = 0.05
_WORKLOAD_KINDS = {k.kind for k in scheme.WORKLOADS}
_DEPENDENCY_KINDS = {k.kind: k for k in scheme.DEPENDENCIES}


class WorkReconciler:
    """Two kinds of keys: workloads, and what they refer to."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        self._client, self._clock, self._settings = client, clock, settings
        self._objects = {k.kind: manager.informer(k) for k in (*scheme.WORKLOADS, *scheme.DEPENDENCIES)}
        self._placements = manager.informer(scheme.PLACEMENT)
        self._policies = ruling(manager, scheme.PLACEMENT_POLICY)
        self._network_policies = Policies(manager, client)
        self._clusters, self._intents = manager.informer(scheme.CLUSTER), ruling(manager, scheme.INTENT)
        self._works = works_by_source(manager)
        self._works.add_index("dependency", dependencies)
        self._objects["Pod"].add_index("site", lambda p: [str((p.get("spec") or {}).get("nodeName") or "")])
        self._silence, self._recoveries = Silence(manager, clock), Recoveries(manager, clock, settings)
        self._budgets = manager.informer(scheme.POD_DISRUPTION_BUDGET)
        self._recorder, self._hold = Recorder(client, clock, "work-controller"), Hold(manager)
        #: What was written and is not in the informer yet. Bounded by the Works.
        self._wrote: dict[tuple[str, str], Obj] = {}
        #: As which revision those were made that the informer has not shown yet. Bounded by the Works.
        self._made: dict[tuple[str, str], int] = {}
        self._works.on_change(self._seen)
        self._barred = Barred(manager)
        self._placements.add_index("displaced", displaced)
        self._moving = Moving(client, clock, settings, self._recorder, self._apply, self._disrupt, self._line)

    def is_followed(self, about: ObjectRef) -> bool:
        """Whether a Work refers to it, or there is one of it: what nobody uses is not looked at, however much of it there is.
        Who begins to refer to it comes with a Work, which says so."""
        dependents = self._works.by_index("dependency", work_name(about))
        return bool(dependents or self._works.by_index("source", source_label(about)))

    async def reconcile(self, about: ObjectRef) -> Result:
        if about.kind in _WORKLOAD_KINDS:
            return await self._workload(about)
        return await self._dependency(about)

    def _existing(self, about: ObjectRef) -> dict[str, Obj]:
        return {cluster_of(w): self._newest(w) for w in self._works.by_index("source", source_label(about))}

    def _newest(self, found: Obj) -> Obj:
        """A Work as this controller wrote it, where the news of that is still on the way: the bounds of a rollout are given
        away once."""
        wrote = self._wrote.get((namespace(found), name(found)))
        return found if wrote is None or _revision(wrote) <= _revision(found) else wrote

    def _seen(self, old: Obj | None, new: Obj | None) -> None:
        found: Obj = new or old or {}
        wrote = self._wrote.get((namespace(found), name(found)))
        if new is None:
            self._made.pop((namespace(found), name(found)), None)
        if wrote is not None and (new is None or _revision(wrote) <= _revision(new)):
            del self._wrote[namespace(found), name(found)]

    def has_made(self, found: Obj) -> bool:
        """Whether the news of a Work is that it is there as this controller has just made it, which is no news here."""
        return self._made.pop((namespace(found), name(found)), 0) == _revision(found)

    async def _workload(self, about: ObjectRef) -> Result:
        obj = self._objects[about.kind].get(about.name, about.namespace)
        existing = self._existing(about)
        placement = self._placements.get(placement_name(about), about.namespace)
        if obj is None or deleting(obj):
            for found in existing.values():
                await self._delete(found)
            return DONE
        for site, found in list(existing.items()):
            # Of an earlier object of the same name: nothing of it may stay.
            if found["spec"]["manifests"][0]["metadata"].get("uid") != uid(obj):
                await self._delete(found)
                del existing[site]
        if placement is None or not decides(placement, obj):
            return DONE
        spec = placement.get("spec") or {}
        policies = [p for p in concerning(self._policies, obj) if concerns(p, obj)]
        fence = fencing(obj, policies, self._settings.fencing_after, self._recoveries.backed(obj))
        body = manifest(obj)
        known = {site: found for site, found in existing.items() if not deleting(found)}
        if paused(obj) and not known:
            # Of one that was paused from the beginning, or that is going everywhere, nothing is started.
            return DONE
        choices = {c["name"]: int(c.get("replicas", 1)) for c in spec.get("clusters") or ()}
        held = fence is not None and self._hold.holds
        if not held and under_way(obj, choices, existing, lambda site: moves(self._clusters.get(site))):
            homes = [site for site, found in existing.items() if not arrives(found)]
            if choices and self._recoveries.backed(obj) and self._recoveries.leaves(obj, homes):
                # Its site is lost in the middle: it goes on from its backup, and what came so far is not needed.
                if coming := [found for found in existing.values() if arrives(found)]:
                    for found in coming:
                        await self._delete(found, as_seen=True)
                    return Result(requeue_after=GIVEN_UP_SECONDS)
            else:
                return await self._move(obj, placement, choices, existing, policies, fence)
        again = await self._timed(obj, placement, body, existing)
        wait = 0.0
        leaving = {site: w for site, w in existing.items() if site not in choices}
        barred = set(self._barred.why(obj, placement, leaving))
        if fence is not None or any(agreed(w) is not None for w in leaving.values()):
            wait = await self._halt(obj, leaving if choices else {site: leaving[site] for site in barred}, barred)
        if fence is not None and self._hold.holds:
            wait = max(wait, LOOK_SECONDS)
        told = self._told(about, choices, existing) if fence is None else choices
        left = {site: _count(w) for site, w in known.items() if site not in choices}
        full = {s: overridden(with_replicas(dict(body), count), s, policies) for s, count in {**left, **told}.items()}
        answering = {site: self._ready(site) for site in full}
        writes: list[Coroutine[Any, Any, None]] = []
        rendered = staged(obj, {s: full[s] for s in told}, known, answering, {s: full[s] for s in left})
        for site, each in rendered.items():
            if site in left:
                await self._write_halt(known[site])
                continue
            cluster, present = self._clusters.get(site), existing.get(site)
            if cluster is None or (wait and (present is None or halted(present))):
                continue
            if present is None and deleting(cluster):
                continue  # It is being removed: nothing new begins there.
            if (present is None or _count(present) < told[site]) and self._is_given_up(about, site):
                # Who was displaced is stopped first. News of its pods is news of others: looked at again after a time.
                again = min(again or GIVEN_UP_SECONDS, GIVEN_UP_SECONDS)
                continue
            restore, why = self._recoveries.order(obj, site, known) if present is None else (present["spec"].get("restore"), "")
            if why:
                await self._recorder.event(obj, "NotRestored", why, warning=True)
                continue
            wanted = work(about, site, [each], fence if fences_itself(cluster) else None, restore)
            if present is not None and volumes_of(present):
                wanted["spec"]["volumes"] = dict(volumes_of(present))
            if present is not None and not self._ready(site):
                # A site that does not answer keeps to what it was told last, and the hub has to know what that was.
                wanted["spec"] = {k: v for k, v in wanted["spec"].items() if k != "fencing"}
                wanted["spec"] |= {k: v for k, v in present["spec"].items() if k == "fencing"}
            writes.append(self._carry(obj, site, present, wanted))
        # At the same time: that of many sites takes one commit, and the last need not wait for the first.
        for failure in await asyncio.gather(*writes, return_exceptions=True):
            if failure is not None:
                raise failure
        waits = [seconds for seconds in (wait, again) if seconds]
        return Result(requeue_after=min(waits)) if waits else DONE

    async def _carry(self, obj: Obj, site: str, present: Obj | None, wanted: Obj) -> None:
        about = ref(obj)
        if present is None:
            await self._network_policies.go_ahead(about.namespace, site)
        await self._apply(present, wanted)
        if about.kind == "Pod" and not (obj.get("spec") or {}).get("nodeName"):
            await self._client.patch(scheme.POD, about.name, about.namespace, {"spec": {"nodeName": site}})

    async def _move(
        self,
        obj: Obj,
        placement: Obj,
        choices: Mapping[str, int],
        existing: Mapping[str, Obj],
        policies: list[Obj],
        fence: float | None,
    ) -> Result:
        """Its volumes go along, or are about to (:mod:`metaos.controllers.moving`)."""
        about, body = ref(obj), manifest(obj)
        chosen = next(iter(choices), None)

        def render(site: str) -> Obj:
            each = overridden(with_replicas(dict(body), replicas(obj)), site, policies)
            cluster, present = self._clusters.get(site), existing.get(site)
            restore = present["spec"].get("restore") if present is not None else None
            return work(about, site, [each], fence if cluster is None or fences_itself(cluster) else None, restore)

        if chosen is not None and chosen not in existing:
            await self._network_policies.go_ahead(about.namespace, chosen)
        barred = self._barred.why(obj, placement, [site for site in existing if site != chosen])
        wait = await self._moving.step(obj, placement, chosen, existing, self._ready, barred, render)
        return Result(requeue_after=wait)

    def _line(self, one: str, other: str) -> float:
        """Bytes a second between two sites, as they state it."""
        ends = [cluster_info(found) for site in (one, other) if (found := self._clusters.get(site)) is not None]
        return carries(*ends) if len(ends) == 2 else math.inf

    def _ready(self, site: str) -> bool:
        cluster = self._clusters.get(site)
        return cluster is not None and is_true(cluster, "Ready")

    def _is_given_up(self, about: ObjectRef, site: str) -> bool:
        """Whether something is still there of others that were displaced from a site."""
        for placement in self._placements.by_index("displaced", site):
            other, its_uid = workload_of(placement), (placement["spec"].get("workloadRef") or {}).get("uid")
            if other is None or other == about:
                continue
            pods = self._objects["Pod"].by_index("site", site)
            left = any((controller_of(pod) or {}).get("uid") == its_uid and not ended(pod) for pod in pods)
            if left or site in self._existing(other):
                return True
        return False

    async def _timed(self, obj: Obj, placement: Obj | None, body: Obj, existing: Mapping[str, Obj]) -> float:
        """A Job as it is to run now: suspended, or as wide and on such capacity as was decided. Seconds until it is not held any
        longer, whatever is decided."""
        if obj.get("kind") == "CronJob" and (starts := starts_of(obj, placement)):
            body["metadata"].setdefault("annotations", {})[STARTS] = starts
        said = asked(obj, concerning(self._intents, obj)) if obj.get("kind") == "Job" else None
        until = held_until(obj, said, placement)
        if until is not None:
            left = until - self._clock.now()
            if left > 0:
                body["spec"] = body["spec"] | {"suspend": True}
                return left
            if any(w["spec"]["manifests"][0]["spec"].get("suspend") for w in existing.values()):
                text = f"nothing decided its start until {format_time(until)}, {LATE_SECONDS:g} s after its time: it starts"
                await self._recorder.event(obj, "StartedLate", text, warning=True)
        found = deferral_of(obj, placement)
        if said is not None and said.least and found.get("width"):
            body["spec"] = body["spec"] | {"parallelism": int(found["width"])}
        site = self._clusters.get(str(found.get("cluster") or ""))
        kind = ((((site or {}).get("spec") or {}).get("price") or {}).get(str(found.get("capacity") or "")) or {}) if said else {}
        if kind.get("nodeSelector") or kind.get("tolerations"):
            body["spec"] = body["spec"] | {"template": on_capacity(body["spec"].get("template") or {}, kind)}
        return 0.0

    def _told(self, about: ObjectRef, choices: Mapping[str, int], existing: Mapping[str, Obj]) -> Mapping[str, int]:
        """Make before break between sites that stay chosen, too: none gives up what is not yet available elsewhere."""
        if about.kind not in ("Deployment", "ReplicaSet"):
            return choices
        running, able = {}, {}
        for site, found in existing.items():
            if self._ready(site) and not deleting(found):
                running[site] = _count(found)
                able[site] = int((reported(found).get("status") or {}).get("availableReplicas") or 0)
        return kept(choices, running, able)

    async def _halt(self, obj: Obj, leaving: Mapping[str, Obj], barred: Set[str]) -> float:
        """Has sites that are left run none of what must not run twice. Seconds until the next look; 0: none of them runs it.
        Where it is ``barred`` no budget holds that up."""
        waits = [0.0]
        for site, found in leaving.items():
            cluster = self._clusters.get(site)
            if cluster is None or stopped(found):
                continue
            if is_true(cluster, "Ready"):
                if not halted(found) and site not in barred and (refused := await self._disrupt(obj, site)):
                    await self._recorder.event(obj, "DisruptionBudget", f"stays on {site} for now: {refused}", warning=True)
                    waits.append(5.0)
                    continue
                await self._write_halt(found)
                # Its report comes as news of the Work; this is only in case of none.
                waits.append(5.0)
                continue
            if site in barred and not halted(found):
                # Whenever it is back, it is not to go on.
                await self._write_halt(found)
                waits.append(1.0)
                continue
            seconds = agreed(found)
            if seconds is None:
                # It was never told to stop by itself: only its return or its removal shows that it has.
                waits.append(60.0)
                continue
            remaining = seconds + self._settings.fencing_margin - self._silence.seconds(site)
            if remaining > 0:
                waits.append(remaining + 0.01)
                continue
            # First it is told, then its Lease is looked at once more: a site that comes back later lists its Works later,
            # and finds that it shall run none.
            before = self._silence.renewal(site)
            await self._write_halt(found)
            lease = await self._client.get(scheme.LEASE, site, cluster_namespace(site))
            if renewal_of(lease) != before:
                waits.append(1.0)
                continue
            await self._forget_pods(obj, site)
        return max(waits)

    async def _disrupt(self, obj: Obj, site: str) -> str:
        """What is stopped before it runs elsewhere is disrupted: empty where the budgets allow that, or why not."""
        pods = [
            pod
            for pod in self._objects["Pod"].list(namespace(obj))
            if (controller_of(pod) or {}).get("uid", uid(pod)) == uid(obj) and (pod.get("spec") or {}).get("nodeName") == site
        ]
        return await noted(self._client, self._budgets.list(namespace(obj)), pods, self._clock.now())

    async def _forget_pods(self, obj: Obj, site: str) -> None:
        """The mirrors of pods that their site has stopped by itself: their successors elsewhere may have the same names."""
        for pod in self._objects["Pod"].by_index("site", site):
            if (controller_of(pod) or {}).get("uid") == uid(obj):
                try:
                    await self._client.delete(scheme.POD, name(pod), namespace(pod), uid=uid(pod), grace_period_seconds=0)
                except ApiError as error:
                    if error.code not in (404, 409):
                        raise

    async def _write_halt(self, found: Obj) -> None:
        if not halted(found) and not deleting(found):
            await self._client.update(found | {"spec": halt(found)})

    async def _dependency(self, about: ObjectRef) -> Result:
        obj = self._objects[about.kind].get(about.name, about.namespace)
        existing = self._existing(about)
        wanted: dict[str, list[Obj]] = {}
        if obj is not None and not deleting(obj):
            for w in self._works.by_index("dependency", work_name(about)):
                if not deleting(w):
                    wanted.setdefault(cluster_of(w), []).append(w)
        whole = await self._whole(about, obj) if wanted else None
        if whole is not None:
            for site in sorted(wanted):
                if self._clusters.get(site) is not None:
                    told = opened_for(manifest(whole), [w["spec"]["manifests"][0] for w in wanted[site]])
                    await self._apply(existing.get(site), work(about, site, [told]))
        for site, found in existing.items():
            if site not in wanted:
                await self._delete(found)
        return DONE

    async def _whole(self, about: ObjectRef, known: Obj | None) -> Obj | None:
        """With its content, which of some kinds is not held in memory. ``None``: it has just gone, and the news is on the way."""
        kind = _DEPENDENCY_KINDS[about.kind]
        if kind not in CONTENT_LEFT_OUT:
            return known
        try:
            return await self._client.get(kind, about.name, about.namespace)
        except ApiError as error:
            if error.code != 404:
                raise
            return None

    async def _apply(self, present: Obj | None, wanted: Obj) -> None:
        if present is None or deleting(present):
            try:
                made = await self._client.create(wanted)
                self._made[namespace(made), name(made)] = _revision(made)
            except ApiError as error:
                # The informer is a moment behind, or the site's namespace is about to be made: retried.
                if error.reason != "AlreadyExists":
                    raise
                await self._refresh(wanted)
            return
        if present["spec"] != wanted["spec"]:
            answer = await self._client.update(present | {"spec": wanted["spec"]})
            known = self._works.get(name(present), namespace(present))
            if known is not None and _revision(known) < _revision(answer):
                self._wrote[namespace(present), name(present)] = answer

    async def _refresh(self, wanted: Obj) -> None:
        current = await self._client.get(scheme.WORK, name(wanted), namespace(wanted))
        if current["spec"] != wanted["spec"]:
            await self._client.update(current | {"spec": wanted["spec"]})

    async def _delete(self, found: Obj, *, as_seen: bool = False) -> None:
        """``as_seen``: only if it is still as it was read."""
        if deleting(found):
            return
        version = str(resource_version(found) or "") if as_seen else ""
        try:
            await self._client.delete(scheme.WORK, name(found), namespace(found), uid=uid(found), resource_version=version)
        except ApiError as error:
            if error.code != 404:
                raise


def _revision(found: Obj) -> int:
    return int(resource_version(found) or 0)


def _count(found: Obj) -> int:
    """How many replicas a Work tells its site to run; 1 of kinds that have none."""
    return int((found["spec"]["manifests"][0].get("spec") or {}).get("replicas", 1))


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: for workloads and what they refer to, and for whatever a changed Placement, policy or Work concerns."""
    informers = {k.kind: manager.informer(k) for k in scheme.WORKLOADS}

    def itself(obj: Obj) -> list[ObjectRef]:
        mirror = obj.get("kind") == "Pod" and bool((obj.get("metadata") or {}).get("ownerReferences"))
        return [] if mirror or namespace(obj).startswith(("nemo-cluster-", SYSTEM_NAMESPACE)) else [ref(obj)]

    def of_placement(obj: Obj) -> Iterable[ObjectRef]:
        about = workload_of(obj)
        if about is not None:
            yield about

    def of_rule(obj: Obj) -> Iterable[ObjectRef]:
        yield from (ref(o) for o in concerned(obj, informers) if itself(o))

    reconciler = WorkReconciler(manager, client, clock, settings)

    def followed(obj: Obj) -> list[ObjectRef]:
        return [about for about in itself(obj) if reconciler.is_followed(about)]

    manager.add(
        reconciler,
        [
            (scheme.POD, itself),
            *((k, followed) for k in scheme.DEPENDENCIES),
            (scheme.PLACEMENT, of_placement),
            (scheme.PLACEMENT_POLICY, of_rule),
        ],
        workers=WORKERS,
        turn=Turn.FIRST,
    )

    def on_work(old: Obj | None, new: Obj | None) -> None:
        about = source_of(new or old or {})
        mine = about.kind in informers or about.kind in _DEPENDENCY_KINDS
        told = old is not None and new is not None and asks(old) == asks(new)
        if mine and not (old is None and new is not None and reconciler.has_made(new)):
            manager.enqueue(NAME, about, TOLD_SECONDS if told else 0.0)
        if told:
            return
        for obj in (old, new):
            for each in referred(obj or {}):
                manager.enqueue(NAME, each)

    manager.informer(scheme.WORK).on_change(on_work)

    def on_workload(old: Obj | None, new: Obj | None) -> None:
        # Sites are not sent a status.
        if old is None or new is None or basis(old) != basis(new):
            for obj in (old, new):
                for about in itself(obj) if obj is not None else ():
                    manager.enqueue(NAME, about)

    for kind in scheme.WORKLOADS:
        if kind is not scheme.POD:
            manager.informer(kind).on_change(on_workload)
    # A site that has joined may have been chosen already; one that is ready again may end a wait.
    on_health(manager, lambda about: manager.enqueue(NAME, about))
    on_backing(manager, lambda about: manager.enqueue(NAME, about))
