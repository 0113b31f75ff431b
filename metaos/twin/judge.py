"""What must hold in every world at every step, whatever fails. Told of each write and of each change of what runs.

- No acknowledged write is lost: after every start of the hub each key is as it was last written.
- Nothing of a workload with a residency is ever on a site outside it: no Work for the site, no mirror, no running pod; the
  same for the Secrets, ConfigMaps and claims that follow it, as long as nothing else needs them there. Nor does an agent there
  keep one of them on its disk.
- Never more than the policy allows: a decision never adds up to more replicas than asked for, of work that must not run twice
  (StatefulSets, and what a policy fences) no more copies exist anywhere, stopping ones too, what a policy keeps whole is decided
  to be on one site, and what it keeps to some sites is on no other.
- Healthy work is not deleted: a Work goes only when its workload is gone, has ended, or is decided to be elsewhere.
- What a hub that was restored from a backup does not know goes on where it ran, until its operator is done; what must not run
  twice is not among it.
- A site that is cut off keeps what ran there, work that fences itself apart.
- In the end, when all is healed, all that can run does (judged by the player, once).

Bounds: ``MOST`` violations are kept.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from metaos.resources import scheme
from metaos.resources.meta import CLUSTER_NAMESPACE_PREFIX, Obj, is_true, name, namespace, uid
from metaos.store.log import EventType, LogEvent
from metaos.twin.scenario import Scenario, WorkloadText
from metaos.twin.site import Copy
from metaos.twin.world import World

MOST = 100
_WORKLOADS = {kind.kind: kind for kind in scheme.WORKLOADS}
_WORK, _POD, _PLACEMENT = (f"{k.resource}/" for k in (scheme.WORK, scheme.POD, scheme.PLACEMENT))

Key = tuple[str, str, str]


class Judge:
    """``violations``: (seconds, what), in order."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        self._world = world
        self.violations: list[tuple[float, str]] = []
        self._subjects: dict[Key, WorkloadText] = {(w.kind.kind, w.namespace, w.name): w for w in scenario.workloads}
        #: The most replicas that were ever asked for, since a decision may be a moment behind.
        self._asked: dict[Key, int] = {key: w.replicas for key, w in self._subjects.items()}
        policies = {key: _policy(w) for key, w in self._subjects.items()}
        self._once: dict[Key, dict[str, int]] = {
            key: {} for key, w in self._subjects.items() if w.kind is scheme.STATEFUL_SET or policies[key].get("fencing")
        }
        self._whole = {key for key, policy in policies.items() if (policy.get("division") or {}).get("mode") == "Whole"}
        self._allowed = {
            key: frozenset(allowed)
            for key, policy in policies.items()
            if (allowed := (policy.get("clusters") or {}).get("allowed"))
        }
        places = {name(s.obj): frozenset((s.obj.get("spec") or {}).get("jurisdictions") or ()) for s in scenario.sites}
        self._homes = _homes(scenario.workloads, places)
        self._last: dict[str, int] = {}
        self._decided: dict[str, bytes] = {}
        #: Of sites that are cut off: what ran there then.
        self._kept: dict[str, dict[Key, int]] = {}
        #: Of workloads that a restored hub does not know: what ran where.
        self._unknown: dict[Key, dict[str, int]] = {}
        world.on_write.append(self.written)
        world.on_site.append(self.site_changed)

    def wrong(self, what: str) -> None:
        self._world.note("VIOLATION", what)
        if len(self.violations) < MOST:
            self.violations.append((self._world.now, what))

    def asked(self, workload: str, replicas: int) -> None:
        """The user scales it."""
        for key in self._asked:
            if key[2] == workload:
                self._asked[key] = max(self._asked[key], replicas)

    # -- writes ----------------------------------------------------------------------------------------------

    def written(self, event: LogEvent) -> None:
        if event.type is EventType.DELETE:
            self._last.pop(event.key, None)
            self._decided.pop(event.key, None)
        else:
            self._last[event.key] = event.revision
        if self._unknown and event.type is EventType.CREATE:
            # Applied again, it is decided anew.
            self._unknown = {key: found for key, found in self._unknown.items() if _store_key(key) != event.key}
        if event.key.startswith(_WORK):
            self._work(event)
        elif event.key.startswith(_POD) and event.type is EventType.CREATE and self._homes:
            self._mirror(orjson.loads(event.value))
        elif event.key.startswith(_PLACEMENT) and event.type is not EventType.DELETE:
            # A status that is written says nothing new about the decision.
            head = event.value.partition(b',"status":{')[0].partition(b'"spec":')[2]
            if head != self._decided.get(event.key):
                self._decided[event.key] = head
                self._decision(orjson.loads(event.value))

    def _work(self, event: LogEvent) -> None:
        if event.type is EventType.UPDATE or (event.type is EventType.CREATE and not self._homes):
            # What an existing Work is about does not change.
            return
        work = orjson.loads(event.value)
        site = namespace(work).removeprefix(CLUSTER_NAMESPACE_PREFIX)
        for manifest in (work.get("spec") or {}).get("manifests") or ():
            key = (str(manifest["kind"]), namespace(manifest), name(manifest))
            if event.type is EventType.CREATE:
                self._check_home(key, site, "a Work of it was written for")
            elif manifest["kind"] in _WORKLOADS:
                self._check_deleted(key, uid(manifest), site)

    def _check_home(self, key: Key, site: str, what: str) -> None:
        homes = self._homes.get(key)
        if homes is not None and site not in homes:
            self.wrong(f"{key[0]} {key[1]}/{key[2]} may not be on site {site}, and {what} it")

    def _check_allowed(self, key: Key, site: str) -> None:
        allowed = self._allowed.get(key)
        if allowed is not None and site not in allowed:
            self.wrong(f"{key[0]} {key[1]}/{key[2]} is kept to {', '.join(sorted(allowed))} by its policy, and is on site {site}")

    def _check_deleted(self, key: Key, uid_: str, site: str) -> None:
        if key not in self._subjects:
            return
        workload = self._stored(_store_key(key))
        if workload is None or uid(workload) != uid_ or workload["metadata"].get("deletionTimestamp"):
            return
        placement = self._stored(f"{_PLACEMENT}{key[1]}/{key[0].lower()}-{key[2]}")
        decided = ((placement or {}).get("spec") or {}).get("clusters") or ()
        cluster = self._stored(f"{scheme.CLUSTER.resource}//{site}")
        leaving = cluster is None or cluster["metadata"].get("deletionTimestamp")
        if placement is not None and any(c["name"] == site for c in decided) and not leaving:
            self.wrong(f"{key[0]} {key[1]}/{key[2]} is decided to be on site {site}, and its Work there was deleted")

    def _stored(self, key: str) -> Obj | None:
        entry = self._world.hub.disk.store.peek(key)
        return None if entry is None else dict(orjson.loads(entry))

    def _mirror(self, pod: Obj) -> None:
        owner = next(iter(pod["metadata"].get("ownerReferences") or ()), None)
        site = (pod.get("spec") or {}).get("nodeName") or ""
        if owner and site:
            self._check_home((str(owner["kind"]), namespace(pod), str(owner["name"])), site, "a pod of it was shown on")

    def _decision(self, placement: Obj) -> None:
        spec = placement.get("spec") or {}
        about = spec.get("workloadRef") or {}
        key = (str(about.get("kind")), namespace(placement), str(about.get("name")))
        asked = self._asked.get(key)
        if asked is None or key[0] == "DaemonSet":
            return
        total = sum(int(c["replicas"]) for c in spec.get("clusters") or ())
        if total > asked:
            self.wrong(f"{key[0]} {key[1]}/{key[2]} was decided to have {total} replicas, and {asked} were asked for")
        chosen = [str(c["name"]) for c in spec.get("clusters") or ()]
        if key in self._whole and len(chosen) > 1:
            self.wrong(f"{key[0]} {key[1]}/{key[2]} is to stay whole, and was decided to be on {', '.join(chosen)}")
        for cluster in chosen:
            self._check_home(key, cluster, "it was decided to be on")
            self._check_allowed(key, cluster)

    # -- what runs -------------------------------------------------------------------------------------------

    def site_changed(self, site: str) -> None:
        copies = self._world.sites[site].copies()
        for copy in copies:
            self._check_home(_key(copy), site, "a pod of it ran on")
            self._check_allowed(_key(copy), site)
        if self._homes:
            for about in self._world.sites[site].holds():
                self._check_home((about.kind, about.namespace, about.name), site, "its agent keeps")
        counted = _counts(copies)
        for key, by_site in self._once.items():
            before, found = by_site.get(site, 0), counted.get(key, 0)
            by_site[site] = found
            if found > before and sum(by_site.values()) > self._asked[key]:
                told = ", ".join(f"{n} on {s}" for s, n in sorted(by_site.items()) if n)
                self.wrong(f"{key[0]} {key[1]}/{key[2]} must not run twice, and {told} exist")
        for key, running in self._unknown.items():
            if counted.get(key, 0) < running.get(site, 0):
                self.wrong(f"{key[0]} {key[1]}/{key[2]} ran on site {site}, the restored hub does not know it, and it was ended")
                running[site] = counted.get(key, 0)
        kept = self._kept.get(site)
        if kept is not None:
            for key, count in kept.items():
                if counted.get(key, 0) < count:
                    self.wrong(
                        f"site {site} is cut off and ran {count} of {key[0]} {key[1]}/{key[2]}, and now {counted.get(key, 0)}"
                    )
                    kept[key] = counted.get(key, 0)

    def cut_off(self, site: str) -> None:
        """From now on it keeps what it has."""
        ready = [copy for copy in self._world.sites[site].copies() if copy.ready]
        found = _counts(ready)
        self._kept[site] = {k: n for k, n in found.items() if k[0] in ("Deployment", "DaemonSet") and k in self._subjects}

    def reached(self, site: str) -> None:
        """It may be told something else again."""
        self._kept.pop(site, None)

    def lost_power(self, site: str) -> None:
        """What it had is gone."""
        self.reached(site)
        for running in self._unknown.values():
            running.pop(site, None)

    def hub_started(self) -> None:
        """Nothing that was ever acknowledged is missing."""
        registry = self._world.hub.registry
        assert registry is not None
        for key, revision in self._last.items():
            found = registry.cache.get(key)
            if found is None or found.revision < revision:
                self.wrong(f"{key} was written at revision {revision}, and after the hub's start it is not there")

    def hub_lost(self) -> None:
        """Before it is restored: what serves where it was decided to be."""
        self._unknown = {}
        for site in self._world.sites.values():
            for key, count in _counts(copy for copy in site.copies() if copy.ready).items():
                placement = self._stored(f"{_PLACEMENT}{key[1]}/{key[0].lower()}-{key[2]}") or {}
                decided = {c["name"] for c in (placement.get("spec") or {}).get("clusters") or ()}
                if (
                    key in self._subjects
                    and key[0] in ("Deployment", "DaemonSet")
                    and key not in self._once
                    and site.name in decided
                ):
                    self._unknown.setdefault(key, {})[site.name] = count

    def hub_restored(self) -> None:
        """What was acknowledged after the backup is lost, as a backup's age says."""
        self._last = dict(self._world.hub.disk.store.revisions())
        self._decided.clear()
        self._unknown = {key: found for key, found in self._unknown.items() if _store_key(key) not in self._last}

    def restoring_done(self) -> None:
        """The operator says so: what the hub does not know ends."""
        self._unknown.clear()

    # -- the end ---------------------------------------------------------------------------------------------

    def unfinished(self) -> list[str]:
        """What could run and does not: to be asked when all is healed."""
        world, found = self._world, []
        ready = _counts(c for c in world.copies() if c.ready)
        every = _counts(world.copies())
        for key, subject in self._subjects.items():
            obj = world.hub.find(subject.kind, key[2], key[1])
            if obj is None or (subject.until is not None and world.now >= subject.until):
                continue
            if subject.kind is scheme.JOB:
                if not (is_true(obj, "Complete") or is_true(obj, "Failed") or ready.get(key)):
                    found.append(f"{key[0]} {key[1]}/{key[2]} has neither ended nor runs")
                continue
            decided = world.placed(*key)
            if not decided:
                found.append(f"{key[0]} {key[1]}/{key[2]} is placed nowhere")
                continue
            wanted = len(decided) if key[0] == "DaemonSet" else int((obj.get("spec") or {}).get("replicas", 1))
            if not ready.get(key, 0) == every.get(key, 0) == wanted:
                found.append(
                    f"{key[0]} {key[1]}/{key[2]}: {ready.get(key, 0)} of {every.get(key, 0)} copies serve, {wanted} wanted"
                )
                continue
            status = obj.get("status") or {}
            told = int(status.get("numberAvailable" if key[0] == "DaemonSet" else "availableReplicas") or 0)
            if told != wanted:
                found.append(f"{key[0]} {key[1]}/{key[2]}: {wanted} serve, and its status says {told}")
        return found


def _store_key(key: Key) -> str:
    return f"{_WORKLOADS[key[0]].resource}/{key[1]}/{key[2]}"


def _key(copy: Copy) -> Key:
    return copy.owner.kind, copy.namespace, copy.owner.name


def _counts(copies: Iterable[Copy]) -> dict[Key, int]:
    found: dict[Key, int] = {}
    for copy in copies:
        found[_key(copy)] = found.get(_key(copy), 0) + 1
    return found


def _policy(workload: WorkloadText) -> Obj:
    """What it says of its own; a policy that stands among the objects is not judged."""
    return next((o["spec"] for o in workload.objects if o["kind"] == scheme.PLACEMENT_POLICY.kind), {})


def _homes(workloads: Iterable[WorkloadText], places: dict[str, frozenset[str]]) -> dict[Key, frozenset[str]]:
    """(kind, namespace, name) → sites where it may be, of what has a residency."""
    found: dict[Key, frozenset[str]] = {}
    for workload in workloads:
        if workload.residency:
            lawful = frozenset(site for site, where in places.items() if where & set(workload.residency))
            found[workload.kind.kind, workload.namespace, workload.name] = lawful
            for kind, each in workload.referents:
                found[kind, workload.namespace, each] = lawful
    return found
