"""What must hold in every world at every step, whatever fails. Told of each write and of each change of what runs.

- No acknowledged write is lost: after every start of the hub each key is as it was last written.
- Nothing of a workload with a residency is ever on a site outside it: no Work for the site, no mirror, no running pod; the
  same for the Secrets, ConfigMaps and claims that follow it, as long as nothing else needs them there. Nor does an agent there
  keep one of them on its disk. Where the residency came later, all of that holds after a bounded time (``metaos.twin.law``).
- What runs on a site asks for no more than there is, longer than ``GRACE_SECONDS``. Of a site that has ever lied about its room
  nothing is said, nor of any while a restored hub does not know what runs.
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

import math
from collections.abc import Iterable, Mapping
from typing import cast

import orjson

from metaos.agent.inventory import capacity
from metaos.controllers.facts import finished
from metaos.resources import scheme
from metaos.resources.meta import CLUSTER_NAMESPACE_PREFIX, Obj, ObjectRef, cluster_namespace, name, namespace, uid
from metaos.resources.workload import replicas, work_name
from metaos.store.log import EventType, LogEvent
from metaos.twin.law import LEAVE_SECONDS, PREFIXES, Key, Law
from metaos.twin.overdue import Overdue
from metaos.twin.site import Copy, Machine
from metaos.twin.story import Scenario, WorkloadText
from metaos.twin.world import World

MOST = 100
#: For how long a site may hold more than it has room for: what leaves it serves on until its replacement is ready.
GRACE_SECONDS = 180.0
LOOK_SECONDS = 1.0
_WORKLOADS = {kind.kind: kind for kind in scheme.WORKLOADS}
_WORK, _POD, _PLACEMENT = (f"{k.resource}/" for k in (scheme.WORK, scheme.POD, scheme.PLACEMENT))


class Judge:
    """``violations``: (seconds, what), in order."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        self._world = world
        self.violations: list[tuple[float, str]] = []
        self._subjects: dict[Key, WorkloadText] = {(w.kind.kind, w.namespace, w.name): w for w in scenario.workloads}
        #: The most replicas that were ever asked for, since a decision may be a moment behind.
        self._asked: dict[Key, int] = {key: w.replicas for key, w in self._subjects.items()}
        for key, most in _scaled(scenario.objects):
            if key in self._asked:
                self._asked[key] = max(self._asked[key], most)
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
        self._law = Law(lambda: world.now)
        self._stray, self._crowded = Overdue(LEAVE_SECONDS), Overdue(GRACE_SECONDS)
        #: Sites that have more than they have room for, with what that comes to; those that lied; those without an agent now.
        self._full: dict[str, str] = {}
        self._liars: set[str] = set()
        #: Of each site: milli-CPU and bytes of memory that pods may have.
        self._sizes: dict[str, tuple[int, int]] = {}
        self.stopped: set[str] = set()
        self._looked = 0.0
        self._last: dict[str, int] = {}
        self._decided: dict[str, bytes] = {}
        #: Of sites that are cut off: what ran there then.
        self._kept: dict[str, dict[Key, int]] = {}
        #: Of workloads that a restored hub does not know: what ran where.
        self._unknown: dict[Key, dict[str, int]] = {}
        #: From a hub's restore until its operator is done.
        self._restoring = False
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
        if event.key.startswith(PREFIXES):
            self._law.written(event)
        self._look()
        if event.key.startswith(_WORK):
            self._work(event)
        elif event.key.startswith(_POD) and event.type is EventType.CREATE:
            self._mirror(orjson.loads(event.value))
        elif event.key.startswith(_PLACEMENT) and event.type is not EventType.DELETE:
            # A status that is written says nothing new about the decision.
            head = event.value.partition(b',"status":{')[0].partition(b'"spec":')[2]
            if head != self._decided.get(event.key):
                self._decided[event.key] = head
                self._decision(orjson.loads(event.value))

    def _work(self, event: LogEvent) -> None:
        if event.type is EventType.UPDATE:
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
        since = self._law.since(key, site)
        if since is not None and self._world.now > since + LEAVE_SECONDS:
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
        counted = _counts(self._world.sites[site].copies())
        for key in counted:
            self._check_allowed(key, site)
        for key, what in self._strays(site, counted):
            if self._law.since(key, site) == -math.inf:
                self._check_home(key, site, what)
        self._room(site, counted)
        self._look()
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

    def _strays(self, site: str, counted: Mapping[Key, int]) -> list[tuple[Key, str]]:
        """What is there and may not be."""
        found = [(key, "a pod of it ran on") for key in counted]
        found += [((about.kind, about.namespace, about.name), "its agent keeps") for about in self._world.sites[site].holds()]
        return [(key, what) for key, what in found if self._law.since(key, site) is not None]

    def _room(self, site: str, counted: Mapping[Key, int]) -> None:
        self._full.pop(site, None)
        cpu, memory = self._free(site, counted)
        if site not in self._liars and (cpu < 0 or memory < 0):
            self._full[site] = f"{max(0, -cpu)} m CPU and {max(0, -memory) >> 20} MiB more than there is"

    def _has_room(self, key: Key) -> bool:
        """Whether any site where it may be has room for one copy more of it, all that truly runs there counted."""
        cpu, memory = self._law.asks(key)
        return any(
            self._law.since(key, site) is None and free >= cpu and left >= memory
            for site in self._world.sites
            for free, left in [self._free(site, _counts(self._world.sites[site].copies()))]
        )

    def _free(self, site: str, counted: Mapping[Key, int]) -> tuple[int, int]:
        """Milli-CPU and bytes of memory that nothing asks for; below 0 where too much is there."""
        if site not in self._sizes:
            obj = self._world.sites[site].obj
            size = capacity(obj, Machine(obj).measure())[1]
            self._sizes[site] = size.cpu, size.memory
        cpu, memory = self._sizes[site]
        for key, count in counted.items():
            asked = self._law.asks(key)
            cpu, memory = cpu - asked[0] * count, memory - asked[1] * count
        return cpu, memory

    def lied(self, site: str) -> None:
        """About its room: what is too much there from now on is not the hub's fault."""
        self._liars.add(site)
        self._full.pop(site, None)

    def _look(self) -> None:
        """What may be wrong for a time."""
        passed = self._world.now - self._looked
        if passed < LOOK_SECONDS:
            return
        self._looked = self._world.now
        leaving = self._law.leaving()
        for site, here in self._world.sites.items() if leaving or self._full else ():
            reached = self._world.hub.up and not here.line.cut and site not in self.stopped
            strays = self._strays(site, _counts(here.copies())) if leaving else ()
            for stray in self._stray.look(site, strays, passed, reached=reached):
                (kind, where, word), what = cast(tuple[Key, str], stray)
                self.wrong(f"{kind} {where}/{word} may not be on site {site} for {LEAVE_SECONDS:g} s by now, and {what} it")
            full = [self._full[site]] if site in self._full and not self._restoring else []
            if self._crowded.look(site, full and ["full"], passed, reached=reached):
                self.wrong(f"what has run on site {site} for {GRACE_SECONDS:g} s asks for {full[0]}")

    def cut_off(self, site: str) -> None:
        """From now on it keeps what it has, unless it was told otherwise: that may be on its way, or just being done."""
        ready = [copy for copy in self._world.sites[site].copies() if copy.ready]
        self._kept[site] = {
            key: min(count, self._told(key, site))
            for key, count in _counts(ready).items()
            if key[0] in ("Deployment", "DaemonSet") and key in self._subjects
        }

    def _told(self, key: Key, site: str) -> int:
        """How many the hub has a site run."""
        kind, where, word = key
        about = ObjectRef(_WORKLOADS[kind].group, kind, where, word)
        work = self._stored(f"{_WORK}{cluster_namespace(site)}/{work_name(about)}")
        return 0 if work is None else replicas(work["spec"]["manifests"][0])

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
        store = self._world.hub.disk.store
        self._last = dict(store.revisions())
        self._law = self._law.restored({key: value for key in self._last if (value := store.peek(key)) is not None})
        self._decided.clear()
        self._restoring = True
        self._unknown = {key: found for key, found in self._unknown.items() if _store_key(key) not in self._last}

    def restoring_done(self) -> None:
        """The operator says so: what the hub does not know ends."""
        self._unknown.clear()
        self._restoring = False

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
            decided = world.placed(*key)
            if not self._law.anywhere(key):
                if decided or every.get(key, 0):
                    found.append(f"{key[0]} {key[1]}/{key[2]}: {every.get(key, 0)} copies are there, and it may be nowhere")
                continue
            if subject.kind is scheme.JOB:
                held = (obj.get("spec") or {}).get("suspend")
                if not held and not finished(obj) and not ready.get(key) and (decided or self._has_room(key)):
                    found.append(f"{key[0]} {key[1]}/{key[2]} has neither ended nor runs")
                continue
            if (
                key[0] != "DaemonSet"
                and ready.get(key, 0) == every.get(key, 0) == sum(decided.values())
                and not self._has_room(key)
            ):
                continue
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


def _scaled(objects: Iterable[Obj]) -> Iterable[tuple[Key, int]]:
    """What autoscalers may ask for."""
    for obj in objects:
        if obj["kind"] == scheme.HORIZONTAL_POD_AUTOSCALER.kind:
            spec = obj.get("spec") or {}
            target = spec.get("scaleTargetRef") or {}
            yield (
                (str(target.get("kind")), namespace(obj) or "default", str(target.get("name"))),
                int(spec.get("maxReplicas") or 0),
            )


def _policy(workload: WorkloadText) -> Obj:
    """What it says of its own; a policy that stands among the objects is not judged."""
    return next((o["spec"] for o in workload.objects if o["kind"] == scheme.PLACEMENT_POLICY.kind), {})
