"""What may be where in a story, as its Intents, Clusters, data sets and workloads say at every moment, and since when. Read from
the writes.

A site that has come to be barred, by an Intent that came later or a Cluster that says otherwise now, of itself or of the data
that it holds, has ``LEAVE_SECONDS`` to run and keep nothing of it any more; what is barred from a workload's beginning is never
there at all. What a write changes is judged anew, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from metaos.controllers.facts import about as named_by
from metaos.resources import scheme
from metaos.resources.meta import Obj, ObjectRef, labels, name, namespace, ref
from metaos.resources.reading import residency_of
from metaos.resources.snapshot import Target
from metaos.resources.targets import lawful
from metaos.resources.traffic import edges_of
from metaos.resources.workload import pod_spec, references, requests
from metaos.store.log import EventType, LogEvent

#: Of reachable sites, while the hub is there: for a decision, the words to a site over a bad line, and pods that end.
LEAVE_SECONDS = 120.0
_RULES, _SITES = f"{scheme.INTENT.resource}/", f"{scheme.CLUSTER.resource}/"
_WORKLOADS = tuple(f"{kind.resource}/" for kind in scheme.WORKLOADS if kind is not scheme.POD)
PREFIXES = (_RULES, _SITES, *_WORKLOADS)

Key = tuple[str, str, str]
#: A target's condition and values.
Rule = tuple[str, tuple[str, ...]]
_NOWHERE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Workload:
    """As much of one as laws are about. ``says`` is its spec, in JSON."""

    bare: Obj
    says: bytes
    refers: frozenset[ObjectRef]


@dataclass(slots=True)
class _Barred:
    """``out``: the sites where it may not be, shared by all with the same laws. ``times``: of those that came to be so later."""

    out: frozenset[str] = _NOWHERE
    times: dict[str, float] = field(default_factory=dict)


class Law:
    """``now``: seconds of the story. Keys are (kind, namespace, name). Bounded by the workloads and the sites, and by their
    product for those alone that came to be barred later."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._rules: dict[str, Obj] = {}
        #: The keys of the rules that name a workload, and of those that may concern all of a namespace.
        self._ruling: dict[str, dict[str, None]] = {}
        self._places: dict[str, frozenset[str]] = {}
        #: By data set: the laws that each site says which holds it.
        self._data: dict[str, dict[str, tuple[str, ...]]] = {}
        self._workloads: dict[Key, _Workload] = {}
        self._within: dict[str, dict[Key, None]] = {}
        self._asks: dict[Key, tuple[int, int]] = {}
        self._barred: dict[Key, _Barred] = {}
        #: Those of them that have to leave a site.
        self._late: dict[Key, None] = {}
        #: What the laws of anybody come to, until a site says otherwise.
        self._outlaws: dict[tuple[Rule, ...], frozenset[str]] = {}
        #: What follows workloads: which ones, and when that changed last.
        self._dependents: dict[Key, set[Key]] = {}
        self._changed: dict[Key, float] = {}

    def written(self, event: LogEvent) -> None:
        """Of a key that begins with one of ``PREFIXES``."""
        obj = None if event.type is EventType.DELETE else orjson.loads(event.value)
        if event.key.startswith(_RULES):
            self._rule(event.key, obj)
        elif event.key.startswith(_SITES):
            self._site(event.key.rpartition("/")[2], obj)
        else:
            self._workload(event, obj)

    def restored(self, values: Mapping[str, bytes]) -> Law:
        """As a hub that was restored has it: what is barred by it only now has time to leave."""
        law = Law(self._now)
        law._asks, law._changed = self._asks, dict.fromkeys(self._changed, self._now())
        for key, value in values.items():
            if key.startswith(_SITES):
                law._tell(key.rpartition("/")[2], orjson.loads(value))
            elif key.startswith(_RULES):
                law._keep(key, orjson.loads(value))
            elif key.startswith(_WORKLOADS):
                obj = orjson.loads(value)
                law._know(_key(obj), obj)
        law._barred = {key: barred for key, barred in self._barred.items() if key in law._workloads}
        law._judge_all(law._workloads)
        return law

    def since(self, key: Key, site: str) -> float | None:
        """Since when it may not be on a site; minus infinity: it never could be. ``None``: it may be there."""
        dependents = self._dependents.get(key)
        if dependents is None:
            return self._since(key, site)
        # As long as something may be there that needs it, it may.
        times = [self._since(each, site) for each in dependents]
        if not times or None in times:
            return None
        return max(*(t for t in times if t is not None), self._changed.get(key, -math.inf), -math.inf)

    def _since(self, key: Key, site: str) -> float | None:
        barred = self._barred.get(key)
        return None if barred is None or site not in barred.out else barred.times.get(site, -math.inf)

    def anywhere(self, key: Key) -> bool:
        """Whether there is a site where a workload may be."""
        barred = self._barred.get(key)
        return barred is None or len(barred.out) < len(self._places)

    def leaving(self) -> bool:
        """Whether anything has to leave any site."""
        return bool(self._late)

    def asks(self, key: Key) -> tuple[int, int]:
        """Milli-CPU and bytes of memory that a pod of a workload asks for, also of one that has been deleted."""
        return self._asks.get(key, (0, 0))

    # -- what is said ----------------------------------------------------------------------------------------

    def _rule(self, key: str, obj: Obj | None) -> None:
        before = self._rules.get(key)
        if before is not None and obj is not None and _said(before) == _said(obj):
            return
        about = {word: None for rule in (before, obj) if rule is not None for word in named_by(rule)}
        self._keep(key, obj)
        keys = [_named(word) for word in about if "/" in word]
        for where in (word for word in about if "/" not in word):
            keys += self._within.get(where, ())
        self._judge_all(dict.fromkeys(key for key in keys if key in self._workloads))

    def _keep(self, key: str, obj: Obj | None) -> None:
        before = self._rules.pop(key, None)
        for word in named_by(before) if before is not None else ():
            self._ruling[word].pop(key, None)
        if obj is not None:
            self._rules[key] = obj
            for word in named_by(obj):
                self._ruling.setdefault(word, {})[key] = None

    def _site(self, site: str, obj: Obj | None) -> None:
        # Sites say most of what they say about other things.
        if self._tell(site, obj):
            self._outlaws.clear()
            self._judge_all(self._workloads)

    def _tell(self, site: str, obj: Obj | None) -> bool:
        """Whether it says anything else than before."""
        spec = (obj or {}).get("spec") or {}
        where = None if obj is None else frozenset(spec.get("jurisdictions") or ())
        data = {str(data["name"]): tuple(data.get("residency") or ()) for data in spec.get("datasets") or ()}
        before = {word: laws[site] for word, laws in self._data.items() if site in laws}
        if where == self._places.get(site) and data == before:
            return False
        self._places.pop(site, None)
        if where is not None:
            self._places[site] = where
        for word in before:
            del self._data[word][site]
        for word, laws in data.items():
            self._data.setdefault(word, {})[site] = laws
        return True

    def _workload(self, event: LogEvent, obj: Obj | None) -> None:
        if obj is None:
            key = _key(orjson.loads(event.previous or b"{}"))
            gone = self._workloads.pop(key, None)
            self._within.get(key[1], {}).pop(key, None)
            self._barred.pop(key, None)
            self._late.pop(key, None)
            for about in gone.refers if gone else ():
                self._dependents.get((about.kind, about.namespace, about.name), set()).discard(key)
                self._changed[about.kind, about.namespace, about.name] = self._now()
            return
        key = _key(obj)
        before = self._workloads.get(key)
        if before is None or before.says != _says(obj) or labels(before.bare) != labels(obj):
            self._know(key, obj)
            self._judge(key, -math.inf if before is None else self._now())

    def _know(self, key: Key, obj: Obj) -> None:
        bare: dict[str, Any] = {"apiVersion": obj["apiVersion"], "kind": obj["kind"]}
        bare["metadata"] = {"name": name(obj), "namespace": namespace(obj), "labels": dict(labels(obj))}
        self._workloads[key] = _Workload(bare, _says(obj), frozenset(references(obj)))
        self._within.setdefault(key[1], {})[key] = None
        asked = requests(pod_spec(obj))
        self._asks[key] = asked["cpu"], asked["memory"]
        for about in self._workloads[key].refers:
            self._dependents.setdefault((about.kind, about.namespace, about.name), set()).add(key)

    # -- what follows ----------------------------------------------------------------------------------------

    def _judge_all(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._judge(key, self._now())

    def _judge(self, key: Key, now: float) -> None:
        before = self._barred.pop(key, None) or _Barred()
        self._late.pop(key, None)
        laws = self._laws(self._workloads[key].bare)
        if not laws:
            return
        out = self._outlaws.get(laws)
        if out is None:
            targets = [Target("residency", condition, values=values, hard=True) for condition, values in laws]
            out = frozenset(site for site, where in self._places.items() if not all(lawful(t, where) for t in targets))
            self._outlaws[laws] = out
        times = {site: time for site, time in before.times.items() if site in out}
        if now > -math.inf:
            times |= dict.fromkeys(out - before.out, now)
        self._barred[key] = _Barred(out, times)
        if times:
            self._late[key] = None

    def _laws(self, obj: Obj) -> tuple[Rule, ...]:
        """Of a workload, and of the data that it reads, whether those that hold it answer or not."""
        words = f"{namespace(obj)}/{obj['kind']}/{name(obj)}", namespace(obj)
        rules = [self._rules[key] for word in words for key in self._ruling.get(word, ())]
        found = [(t.condition, t.values) for t in residency_of(obj, rules)]
        for edge in edges_of(ref(obj), rules):
            found += (("IsOneOf", laws) for laws in self._data.get(edge.dataset, {}).values() if laws)
        return tuple(dict.fromkeys(found))


def _key(obj: Obj) -> Key:
    about = ref(obj)
    return about.kind, about.namespace, about.name


def _named(word: str) -> Key:
    where, kind, one = word.split("/")
    return kind, where, one


def _said(rule: Obj) -> tuple[Any, bool]:
    """What of an Intent decides: one that is about to go says nothing any more."""
    return rule.get("spec"), "deletionTimestamp" in rule["metadata"]


def _says(obj: Obj) -> bytes:
    return orjson.dumps(obj.get("spec"))
