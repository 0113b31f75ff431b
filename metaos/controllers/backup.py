"""Backup: gives the site of a workload its BackupSchedule, with the store and its Secret, and says what became of it.

A schedule is one Work at the one site where its workload is decided to be; the Secret of the store follows it there. Where an
intent bars the country in which a store lies, the site is told nothing of it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.concern import works_by_source
from metaos.controllers.facts import decided, decides, placeable, placement_name
from metaos.controllers.moving import arrives
from metaos.controllers.recorder import Recorder
from metaos.controllers.render import available, cluster_of, source_label, source_of, work
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.backups import (
    MOST_RESTORES,
    asked_by_hand,
    points,
    rendered,
    reported,
    rpo_of,
    store_of,
    volumes_of,
    workload_of,
)
from metaos.resources.errors import ApiError
from metaos.resources.meta import (
    Obj,
    ObjectRef,
    condition,
    deleting,
    format_time,
    generation,
    name,
    namespace,
    parse_time,
    ref,
    uid,
    with_condition,
)
from metaos.resources.reading import is_kubernetes, residency_of
from metaos.resources.targets import lawful, wanted_text

NAME = "backup"
_KINDS = {"StatefulSet": scheme.STATEFUL_SET, "Deployment": scheme.DEPLOYMENT}


class BackupReconciler:
    """Keys are BackupSchedules."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._recorder = Recorder(client, clock, "backup-controller")
        self._schedules, self._stores = manager.informer(scheme.BACKUP_SCHEDULE), manager.informer(scheme.BACKUP_STORE)
        self._workloads = {word: manager.informer(kind) for word, kind in _KINDS.items()}
        self._placements, self._intents = manager.informer(scheme.PLACEMENT), manager.informer(scheme.INTENT)
        self._clusters, self._works = manager.informer(scheme.CLUSTER), works_by_source(manager)

    async def reconcile(self, about: ObjectRef) -> Result:
        schedule = self._schedules.get(about.name, about.namespace)
        existing = {cluster_of(w): w for w in self._works.by_index("source", source_label(about)) if not deleting(w)}
        if schedule is None or deleting(schedule):
            if existing:
                await self._deserted(about)
            await self._only({}, existing)
            return DONE
        obj = self._workload(schedule)
        wanted, reason, message = self._decide(schedule, obj)
        await self._only(wanted, existing)
        await self._say(schedule, obj, wanted, existing, reason, message)
        return DONE

    async def _deserted(self, about: ObjectRef) -> None:
        """Who waits for volumes that a schedule was to bring back, which is gone, is told."""
        for found in self._works.list():
            order: Mapping[str, Any] = found["spec"].get("restore") or {}
            source = source_of(found)
            if order.get("schedule") != about.name or source.namespace != about.namespace or deleting(found) or available(found):
                continue
            obj = self._workloads[source.kind].get(source.name, source.namespace) if source.kind in self._workloads else None
            if obj is not None:
                claims = ", ".join(order.get("claims") or ())
                text = f"at {cluster_of(found)} it waits for its volumes ({claims}), and BackupSchedule {about.name}, by "
                text += "which they are brought back, was deleted: make it again, with the same store"
                await self._recorder.event(obj, "NotRestored", text, warning=True)

    def _workload(self, schedule: Obj) -> Obj | None:
        kind, called = workload_of(schedule)
        return self._workloads[kind].get(called, namespace(schedule)) if kind in self._workloads else None

    def _decide(self, schedule: Obj, obj: Obj | None) -> tuple[dict[str, Obj], str, str]:
        """(Site → its Work, why there is none, the same for people)."""
        kind, called = workload_of(schedule)
        store = self._stores.get(store_of(schedule), namespace(schedule))
        if obj is None or not placeable(obj):
            return {}, "NoWorkload", f"there is no {kind.lower()}/{called} in this namespace"
        if store is None or deleting(store):
            return (
                {},
                "NoStore",
                f"there is no BackupStore {store_of(schedule)!r} in this namespace: make it, or correct storeRef",
            )
        claims = volumes_of(schedule, obj)
        if not claims:
            return {}, "NoVolumes", f"{kind.lower()}/{called} has no volumes of claims"
        intents = self._intents.list(namespace(schedule))
        law = frozenset(str(each) for each in (store.get("spec") or {}).get("jurisdictions") or ())
        for target in residency_of(obj, intents):
            if not lawful(target, law):
                lies = f"lies in {', '.join(sorted(law))}" if law else "states no jurisdictions"
                text = f"intent {target.intent!r} wants residency {wanted_text(target)}, and store {name(store)!r} {lies}"
                return {}, "ResidencyForbids", f"{text}: nothing is sent there"
        asked = rpo_of(obj, intents)
        if asked is None and not (schedule.get("spec") or {}).get("schedule"):
            return {}, "NoSchedule", "write spec.schedule, or an intent with the target rpo"
        placement = self._placements.get(placement_name(ref(obj)), namespace(obj))
        sites = decided(placement) if placement is not None and decides(placement, obj) else {}
        if len(sites) != 1:
            return (
                {},
                "Divided" if sites else "NotPlaced",
                "it is placed nowhere yet"
                if not sites
                else (f"it is divided over {', '.join(sorted(sites))}, where volumes have the same names: keep it on one site"),
            )
        (site,) = sites
        works = self._of_workload(obj)
        holders = [cluster_of(w) for w in works if not deleting(w) and not arrives(w)]
        if site not in holders and len(holders) == 1:
            # Its volumes are there still, and may be written.
            (site,) = holders
        cluster = self._clusters.get(site)
        if cluster is not None and is_kubernetes(cluster):
            return {}, "Unsupported", f"site {site} is a Kubernetes cluster, whose volumes are its own: back them up there"
        told = rendered(schedule, store, claims, None if asked is None else asked[0])
        return {site: work(ref(schedule), site, [told])}, "", ""

    async def _only(self, wanted: Mapping[str, Obj], existing: Mapping[str, Obj]) -> None:
        for site, found in existing.items():
            if site not in wanted:
                try:
                    await self._client.delete(scheme.WORK, name(found), namespace(found), uid=uid(found))
                except ApiError as error:
                    if error.code != 404:
                        raise
        for site, made in wanted.items():
            present = existing.get(site)
            if present is None:
                await self._client.create(made)
            elif present["spec"] != made["spec"]:
                await self._client.update(present | {"spec": made["spec"]})

    # -- what became of it ----------------------------------------------------------------------------------

    async def _say(
        self,
        schedule: Obj,
        obj: Obj | None,
        wanted: Mapping[str, Obj],
        existing: Mapping[str, Obj],
        reason: str,
        message: str,
    ) -> None:
        before: dict[str, Any] = schedule.get("status") or {}
        status: dict[str, Any] = {**before, "observedGeneration": generation(schedule)}
        said: dict[str, Any] = {}
        news: list[tuple[str, bool]] = []
        for site in wanted:
            said = self._report(schedule, existing.get(site))
            rows = said.get("restores") or ()
            status["restores"], news = self._restored(schedule, obj, site, status.get("restores") or (), rows)
            fresh = [row for row in said.get("volumes") or () if row.get("recoveryPointTime") or row.get("reason")]
            if site != before.get("site") and not self._began(obj, site, status["restores"]):
                # What it knows is of an earlier time when the workload was there.
                fresh = []
            if any(row.get("recoveryPointTime") for row in fresh):
                # Only now: what a lost site said counts until its successor has backed up itself.
                status["site"] = site
            if fresh:
                others = [row for row in status.get("volumes") or () if row["claim"] not in {each["claim"] for each in fresh}]
                status["volumes"] = sorted((*others, *fresh), key=lambda row: str(row["claim"]))
        claims = volumes_of(schedule, obj) if obj is not None else []
        status["volumes"] = [row for row in status.get("volumes") or () if not claims or row["claim"] in claims]
        found = points(schedule | {"status": status}, claims)
        known = [point for point in found.values() if point is not None]
        status.pop("recoveryPointTime", None)
        if known and len(known) == len(found):
            status["recoveryPointTime"] = format_time(min(known))
        now = self._clock.now()
        failed = next((row for row in status["volumes"] if row.get("reason")), None)
        if not reason and failed is not None:
            reason, message = str(failed["reason"]), str(failed.get("message") or "")
        if not reason and len(known) < len(found):
            reason, message = "Pending", "no backup of all volumes has been made yet"
        good = not reason
        text = message or f"all volumes can be brought back to {status['recoveryPointTime']}"
        conditions = before.get("conditions") or ()
        status["conditions"] = with_condition(
            conditions, "BackedUp", "True" if good else "False", reason or "BackedUp", text if not good else "", now
        )
        if {k: v for k, v in status.items() if v or k in before} == before:
            return
        was = condition(schedule, "BackedUp") or {}
        if not good and reason != "Pending" and was.get("reason") != reason:
            await self._recorder.event(schedule, reason, message, warning=True)
        if good and was.get("status") == "False":
            await self._recorder.event(schedule, "BackedUp", text)
        await self._client.update(schedule | {"status": status}, subresource="status")
        # Only now: whoever has seen an older status is told that there is a newer one, and says nothing twice.
        for message, warning in news:
            await self._recorder.event(schedule if obj is None else obj, "Restored", message, warning=warning)

    def _report(self, schedule: Obj, found: Obj | None) -> dict[str, Any]:
        for entry in ((found or {}).get("status") or {}).get("manifests") or ():
            if entry.get("kind") == scheme.BACKUP_SCHEDULE.kind and entry.get("uid") == uid(schedule):
                return reported(entry.get("status"))
        return {}

    def _restored(
        self, schedule: Obj, obj: Obj | None, site: str, before: Iterable[Mapping[str, Any]], said: Iterable[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[tuple[str, bool]]]:
        """The rows of what was brought back, with what was lost, and what is to be said of each that is new (message, whether
        something was lost). The site itself tells the schedule."""
        order, news = self._order(obj, site), []
        known = {(row.get("id"), row.get("claim")): dict(row) for row in before}
        for row in said:
            if row.get("id") == order.get("id") and row.get("recoveryPointTime") and order.get("lostTime"):
                row["lostSeconds"] = max(0.0, parse_time(order["lostTime"]) - parse_time(row["recoveryPointTime"]))
            old = known.get((row.get("id"), row.get("claim")), {})
            if row.get("backup") and not old.get("backup"):
                lost = (
                    f"; of what was written at the lost site at most {row['lostSeconds']:.0f} s are lost"
                    if "lostSeconds" in row
                    else ""
                )
                moment = row.get("recoveryPointTime", "a moment that the site does not tell")
                text = f"volume {row['claim']} was brought back at {site} from {row['backup']}, as at {moment}"
                news.append((text + lost, bool(lost)))
            known[row.get("id"), row.get("claim")] = row
        # What could not be done and is not asked for any more, as something else was since, says nothing.
        open_ = {each["id"] for each in asked_by_hand(schedule)} | {order.get("id")}
        known = {key: row for key, row in known.items() if row.get("backup") or key[0] in open_}
        # What is asked for still is not forgotten, or it would be done again.
        asked = {each.get("id") for each in (schedule.get("spec") or {}).get("restores") or ()}
        others = [key for key in known if key[0] not in asked]
        for key in others[:-MOST_RESTORES]:
            del known[key]
        return list(known.values()), news

    def _began(self, obj: Obj | None, site: str, restores: Iterable[Mapping[str, Any]]) -> bool:
        """Whether a site has this workload, and its volumes as they were to be brought back."""
        if obj is None or not any(cluster_of(w) == site and not arrives(w) for w in self._of_workload(obj)):
            return False
        order = self._order(obj, site)
        done = {row["claim"] for row in restores if row.get("id") == order.get("id") and row.get("backup")}
        return done.issuperset(order.get("claims") or ())

    def _of_workload(self, obj: Obj) -> list[Obj]:
        found = self._works.by_index("source", source_label(ref(obj)))
        return [each for each in found if uid(each["spec"]["manifests"][0]) == uid(obj)]

    def _order(self, obj: Obj | None, site: str) -> dict[str, Any]:
        found = [] if obj is None else self._of_workload(obj)
        return next((dict(w["spec"]["restore"]) for w in found if cluster_of(w) == site and w["spec"].get("restore")), {})


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: for schedules, and for those whose store, workload, placement, intents or Works changed."""
    schedules = manager.informer(scheme.BACKUP_SCHEDULE)

    def named(where: str, kind: str, called: str) -> list[ObjectRef]:
        return [ref(s) for s in schedules.list(where) if workload_of(s) == (kind, called)]

    def of_placement(obj: Obj) -> list[ObjectRef]:
        about = (obj.get("spec") or {}).get("workloadRef") or {}
        return named(namespace(obj), str(about.get("kind")), str(about.get("name")))

    def of_store(obj: Obj) -> list[ObjectRef]:
        return [ref(s) for s in schedules.list(namespace(obj)) if store_of(s) == name(obj)]

    def of_intent(obj: Obj) -> list[ObjectRef]:
        return [ref(s) for s in schedules.list(namespace(obj))]

    def of_work(obj: Obj) -> list[ObjectRef]:
        about = source_of(obj)
        if about.kind == scheme.BACKUP_SCHEDULE.kind:
            return [about]
        return named(about.namespace, about.kind, about.name) if about.kind in _KINDS else []

    manager.add(
        BackupReconciler(manager, client, clock),
        [
            (scheme.BACKUP_SCHEDULE, lambda obj: [ref(obj)]),
            (scheme.BACKUP_STORE, of_store),
            (scheme.PLACEMENT, of_placement),
            (scheme.INTENT, of_intent),
            (scheme.WORK, of_work),
            *((kind, lambda obj: named(namespace(obj), str(obj.get("kind")), name(obj))) for kind in _KINDS.values()),
        ],
    )
