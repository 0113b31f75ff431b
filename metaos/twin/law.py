"""What may be where in a story, as its Intents, Clusters and workloads say at every moment, and since when. Read from the writes.

A site that has come to be barred, by an Intent that came later or a Cluster that says otherwise now, has ``LEAVE_SECONDS`` to run
and keep nothing of it any more; what is barred from a workload's beginning is never there at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import orjson

from metaos.resources import scheme
from metaos.resources.meta import Obj, name, namespace, ref
from metaos.resources.reading import residency_of
from metaos.resources.targets import lawful
from metaos.resources.workload import pod_spec, references, requests
from metaos.store.log import EventType, LogEvent

#: Of reachable sites, while the hub is there: for a decision, the words to a site over a bad line, and pods that end.
LEAVE_SECONDS = 120.0
_RULES, _SITES = f"{scheme.INTENT.resource}/", f"{scheme.CLUSTER.resource}/"
_WORKLOADS = tuple(f"{kind.resource}/" for kind in scheme.WORKLOADS if kind is not scheme.POD)
PREFIXES = (_RULES, _SITES, *_WORKLOADS)

Key = tuple[str, str, str]


class Law:
    """``now``: seconds of the story. Keys are (kind, namespace, name). Bounded by the workloads times the sites."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._rules: dict[str, Obj] = {}
        self._places: dict[str, frozenset[str]] = {}
        self._workloads: dict[Key, Obj] = {}
        self._asks: dict[Key, tuple[int, int]] = {}
        self._barred: dict[Key, dict[str, float]] = {}
        #: What follows workloads: which ones, and when that changed last.
        self._dependents: dict[Key, set[Key]] = {}
        self._changed: dict[Key, float] = {}

    def written(self, event: LogEvent) -> None:
        """Of a key that begins with one of ``PREFIXES``."""
        obj = None if event.type is EventType.DELETE else orjson.loads(event.value)
        if event.key.startswith(_RULES):
            before = self._rules.pop(event.key, None)
            if obj is not None:
                self._rules[event.key] = obj
            if (before or {}).get("spec") != (obj or {}).get("spec"):
                self._judge_all(event.key.split("/")[1])
        elif event.key.startswith(_SITES):
            site = event.key.rpartition("/")[2]
            where = None if obj is None else frozenset((obj.get("spec") or {}).get("jurisdictions") or ())
            if where != self._places.get(site):
                self._places.pop(site, None)
                if where is not None:
                    self._places[site] = where
                self._judge_all()
        else:
            self._workload(event, obj)

    def read(self, values: Mapping[str, bytes]) -> None:
        """Everything anew, as a hub that was restored has it: what is barred by it only now has time to leave."""
        kept = {key: value for key, value in values.items() if key.startswith(PREFIXES)}
        loaded = {key: orjson.loads(value) for key, value in kept.items()}
        self._rules = {key: obj for key, obj in loaded.items() if key.startswith(_RULES)}
        self._places = {
            name(o): frozenset((o.get("spec") or {}).get("jurisdictions") or ())
            for k, o in loaded.items()
            if k.startswith(_SITES)
        }
        self._workloads = {_key(obj): obj for key, obj in loaded.items() if key.startswith(_WORKLOADS)}
        self._barred = {key: sites for key, sites in self._barred.items() if key in self._workloads}
        self._dependents, self._changed = {}, dict.fromkeys(self._changed, self._now())
        for key, obj in self._workloads.items():
            self._refer(key, obj)
        self._judge_all()

    def since(self, key: Key, site: str) -> float | None:
        """Since when it may not be on a site; minus infinity: it never could be. ``None``: it may be there."""
        dependents = self._dependents.get(key)
        if dependents is None:
            return self._barred.get(key, {}).get(site)
        # As long as something may be there that needs it, it may.
        times = [self._barred.get(each, {}).get(site) for each in dependents]
        if not times or None in times:
            return None
        return max(*(t for t in times if t is not None), self._changed.get(key, -math.inf), -math.inf)

    def anywhere(self, key: Key) -> bool:
        """Whether there is a site where a workload may be."""
        return len(self._barred.get(key, {})) < len(self._places)

    def leaving(self) -> bool:
        """Whether anything has to leave any site."""
        return any(since > -math.inf for sites in self._barred.values() for since in sites.values())

    def asks(self, key: Key) -> tuple[int, int]:
        """Milli-CPU and bytes of memory that a pod of a workload asks for, also of one that has been deleted."""
        return self._asks.get(key, (0, 0))

    def _workload(self, event: LogEvent, obj: Obj | None) -> None:
        before = None if obj is None else self._workloads.get(_key(obj))
        if obj is None:
            key = _key(orjson.loads(event.previous or b"{}"))
            gone = self._workloads.pop(key, None)
            self._barred.pop(key, None)
            for about in references(gone) if gone else ():
                self._dependents.get((about.kind, about.namespace, about.name), set()).discard(key)
                self._changed[about.kind, about.namespace, about.name] = self._now()
            return
        key = _key(obj)
        self._workloads[key] = obj
        if (
            before is not None
            and before.get("spec") == obj.get("spec")
            and before["metadata"].get("labels") == obj["metadata"].get("labels")
        ):
            return
        asked = requests(pod_spec(obj))
        self._asks[key] = asked["cpu"], asked["memory"]
        self._refer(key, obj)
        self._judge(key, -math.inf if before is None else self._now())

    def _refer(self, key: Key, obj: Obj) -> None:
        for about in references(obj):
            self._dependents.setdefault((about.kind, about.namespace, about.name), set()).add(key)

    def _judge_all(self, where: str | None = None) -> None:
        for key in self._workloads:
            if where is None or key[1] == where:
                self._judge(key, self._now())

    def _judge(self, key: Key, now: float) -> None:
        rules = [rule for rule in self._rules.values() if namespace(rule) == key[1]]
        targets = residency_of(self._workloads[key], rules)
        before = self._barred.pop(key, {})
        if targets:
            out = [site for site, where in self._places.items() if not all(lawful(t, where) for t in targets)]
            self._barred[key] = {site: before.get(site, now) for site in out}


def _key(obj: Obj) -> Key:
    about = ref(obj)
    return about.kind, about.namespace, about.name
