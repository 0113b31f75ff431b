"""What becomes of work with volumes when its site is lost: it waits for it, or goes on elsewhere from a backup.

The latter where a BackupSchedule knows a store, an intent says what may be lost (``rpo``), and the old site can be known to write
no more: such work is fenced as what keeps no data is (docs/adr/0009).
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any

from metaos.clock import Clock
from metaos.controllers.concern import works_by_source
from metaos.controllers.fencing import tolerated_seconds
from metaos.controllers.render import cluster_of, source_label
from metaos.controllers.settings import Settings
from metaos.data.backups import Verdict, best, recovery
from metaos.network.recovery import Recovery
from metaos.reconcile.manager import Manager
from metaos.resources import scheme, workload
from metaos.resources.backups import points, rpo_of, schedule_for, volumes_of, workload_of
from metaos.resources.meta import (
    Obj,
    ObjectRef,
    condition,
    deleting,
    format_time,
    generation,
    is_true,
    name,
    namespace,
    parse_time,
    ref,
    uid,
)


def restores(cluster: Obj | None) -> bool:
    """Whether a site's agent brings volumes back before their work starts. One of an earlier release would begin with nothing."""
    return bool(((cluster or {}).get("status") or {}).get("volumeRestores"))


class Recoveries:
    """Reads schedules, intents and sites."""

    def __init__(self, manager: Manager, clock: Clock, settings: Settings) -> None:
        self._clock, self._settings = clock, settings
        self._schedules, self._intents = manager.informer(scheme.BACKUP_SCHEDULE), manager.informer(scheme.INTENT)
        self._clusters, self._works = manager.informer(scheme.CLUSTER), works_by_source(manager)
        self._schedules.add_index("workload", lambda s: ["/".join((namespace(s), *workload_of(s)))])

    def schedule(self, obj: Obj) -> Obj | None:
        """The one that backs a workload up."""
        return schedule_for(self._schedules.by_index("workload", f"{namespace(obj)}/{obj.get('kind')}/{name(obj)}"), obj)

    def backed(self, obj: Obj) -> bool:
        """Whether a workload's volumes are to be brought back elsewhere when their site is lost: then its site stops it by itself
        when it hears nothing, so that there is never a second writer."""
        return self.schedule(obj) is not None and rpo_of(obj, self._intents.list(namespace(obj))) is not None

    def verdict(self, obj: Obj, site: str) -> Verdict | None:
        """On a workload whose volumes are at a site; ``None``: the site is there."""
        cluster = self._clusters.get(site)
        if cluster is not None and is_true(cluster, "Ready"):
            return None
        schedule, asked = self.schedule(obj), rpo_of(obj, self._intents.list(namespace(obj)))
        if schedule is None:
            return Verdict(False, "NoSchedule", "no BackupSchedule backs it up, so it waits for its site")
        rpo, hard = asked or (None, False)
        return recovery(points(schedule, volumes_of(schedule, obj)), rpo, hard, self._lost_since(site))

    def _lost_since(self, site: str) -> float:
        """Not before the site may have written last: from then on it was missed, or at least it is not before now."""
        found = condition(self._clusters.get(site) or {}, "Ready") or {}
        since = found.get("lastTransitionTime")
        return parse_time(since) if since else self._clock.now()

    def leaves(self, obj: Obj, sites: Iterable[str]) -> bool:
        """Whether a workload whose volumes are at these sites may be placed elsewhere, as all of them are lost."""
        found = [self.verdict(obj, site) for site in sites]
        return bool(found) and all(verdict is not None and verdict.restores for verdict in found)

    def returned(self, obj: Obj, sites: Collection[str]) -> str:
        """The site with a workload's volumes, where it is back before anything began at those that were chosen instead; empty: it
        is not. There the workload goes on: nothing is lost."""
        home = self._home(self.schedule(obj))
        cluster = self._clusters.get(home)
        if not sites or home in sites or cluster is None or deleting(cluster) or not is_true(cluster, "Ready"):
            return ""
        if all(((self._clusters.get(site) or {}).get("status") or {}).get("volumeMoves") for site in (home, *sites)):
            return ""  # Its volumes follow it from there.
        works = self._works.by_index("source", source_label(ref(obj)))
        there = {cluster_of(w) for w in works if not deleting(w) and uid(w["spec"]["manifests"][0]) == uid(obj)}
        return home if home in there and there.isdisjoint(sites) else ""

    @staticmethod
    def _home(schedule: Obj | None) -> str:
        return str(((schedule or {}).get("status") or {}).get("site") or "")

    def order(self, obj: Obj, site: str, there: Collection[str]) -> tuple[dict[str, Any] | None, str]:
        """(What a site where a workload is to start has to bring back first, why it may not start there). ``there``: sites with
        a Work of it."""
        schedule = self.schedule(obj) if workload.has_local_data(obj) else None
        home = self._home(schedule)
        if schedule is None or home in ("", site):
            return None, ""
        verdict = self.verdict(obj, home)
        if verdict is None:
            # Elsewhere it would begin with nothing.
            return None, f"its volumes are at {home}, which is back: it goes on there" if home in there else ""
        if not verdict.restores:
            return None, f"its volumes are at {home}, which is lost: {verdict.message}"
        if not restores(self._clusters.get(site)):
            return None, f"site {site} does not bring volumes back from backups: update its agent, or have another site chosen"
        lost = format_time(self._lost_since(home))
        return {"id": f"{home}@{lost}", "schedule": name(schedule), "claims": volumes_of(schedule, obj), "lostTime": lost}, ""

    def measured(self, obj: Obj, policies: Iterable[Obj]) -> Recovery:
        """What intents are told of a workload."""
        about = f"{str(obj['kind']).lower()}/{name(obj)}"
        loss = self._settings.lease_duration + tolerated_seconds(obj, policies, self._settings, self.backed(obj))
        if not workload.has_local_data(obj):
            return Recovery(about, loss=loss, stateless=True)
        schedule = self.schedule(obj)
        if schedule is None:
            return Recovery(about, loss=loss, problem="no BackupSchedule names it")
        claims, status = volumes_of(schedule, obj), schedule.get("status") or {}
        found = points(schedule, claims)
        rows = [row for row in status.get("volumes") or () if row.get("claim") in found]
        known = [point for point in found.values() if point is not None]
        longest = max((float(row["seconds"]) for row in rows if row.get("seconds") is not None), default=None)
        failed = next((row for row in rows if row.get("reason")), None)
        backed_up = condition(schedule, "BackedUp") or {}
        problem = f"{failed['reason']}: {failed.get('message', '')}" if failed else ""
        if not problem and backed_up.get("status") != "True":
            problem = str(backed_up.get("message") or "nothing is known of its backups yet")
        each = [row.get("restoreSeconds") for row in rows]
        whole = bool(found) and len(known) == len(found)
        return Recovery(
            about,
            point=min(known) if whole else None,
            best=None if longest is None else best(longest),
            loss=loss,
            restore=sum(map(float, each)) if whole and None not in each else None,
            problem=problem,
        )


def on_backing(manager: Manager, tell: Callable[[ObjectRef], None]) -> None:
    """Tells of every workload of which it may have changed whether it can be brought back elsewhere."""
    schedules = manager.informer(scheme.BACKUP_SCHEDULE)

    def of_schedule(old: Obj | None, new: Obj | None) -> None:
        if old is None or new is None or _says(old) != _says(new):
            for each in (old, new):
                if each is not None:
                    tell(_about(each))

    def of_intent(old: Obj | None, new: Obj | None) -> None:
        if old is None or new is None or (generation(old), deleting(old)) != (generation(new), deleting(new)):
            for each in schedules.list(namespace(new or old or {})):
                tell(_about(each))

    schedules.on_change(of_schedule)
    manager.informer(scheme.INTENT).on_change(of_intent)


def _says(schedule: Obj) -> tuple[Any, ...]:
    status = schedule.get("status") or {}
    return uid(schedule), generation(schedule), deleting(schedule), status.get("site"), bool(status.get("recoveryPointTime"))


def _about(schedule: Obj) -> ObjectRef:
    kind, called = workload_of(schedule)
    return ObjectRef("apps", kind, namespace(schedule), called)
