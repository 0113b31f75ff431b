"""What the cluster's own ResourceQuotas and LimitRanges leave to the federation, so that the hub decides what they let in.

Quotas of requests for CPU and memory, and of pods, count; those with a scope speak of some pods only, and are left out, as are
limits. Bound: the quotas and ranges of the cluster, of which ``MAX_TOLD`` namespaces are told.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from metaos.agent.contact import Follower
from metaos.client import ObjList, WatchEvent
from metaos.clock import Clock
from metaos.members.member import Member
from metaos.resources import quantity, workload
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, namespace, uid
from metaos.resources.scheme import LIMIT_RANGE, RESOURCE_QUOTA, Kind

log = logging.getLogger(__name__)

#: Namespaces with quotas that the hub is told of.
MAX_TOLD = 100
_KINDS = (RESOURCE_QUOTA, LIMIT_RANGE)
#: A quota's name for a resource → ours.
_NAMES = {
    "requests.cpu": "cpu",
    "cpu": "cpu",
    "requests.memory": "memory",
    "memory": "memory",
    "pods": "pods",
    "count/pods": "pods",
}


class MemberQuotas:
    """``problem`` says why they are not known; empty where they are."""

    def __init__(self, member: Member, clock: Clock) -> None:
        self._found: dict[str, dict[str, Obj]] = {}
        self._problems = {kind.kind: f"the cluster's {kind.plural} have not been read yet" for kind in _KINDS}
        self.followers = [self._follower(member, clock, kind) for kind in _KINDS]

    @property
    def problem(self) -> str:
        return next((problem for problem in self._problems.values() if problem), "")

    def told(self, ours: Iterable[Obj]) -> list[dict[str, Any]]:
        """``Cluster.status.quotas``. ``ours``: pods of the federation, which take their part of what is used."""
        quotas, ranges = (self._found.get(kind.kind, {}).values() for kind in _KINDS)
        told = left_by_namespace(quotas, ranges, ours)
        if len(told) > MAX_TOLD:
            log.warning("the hub is told the quotas of %d namespaces only, of %d", MAX_TOLD, len(told))
        return told[:MAX_TOLD]

    def _follower(self, member: Member, clock: Clock, kind: Kind) -> Follower:
        def on_list(found: ObjList) -> None:
            self._found[kind.kind] = {uid(each): each for each in found.items}
            self._problems[kind.kind] = ""

        def on_event(event: WatchEvent) -> None:
            known = self._found.setdefault(kind.kind, {})
            if event.type == "DELETED":
                known.pop(uid(event.object), None)
            else:
                known[uid(event.object)] = event.object

        def on_error(error: ApiError) -> None:
            if error.code != 410:
                text = f"the cluster's {kind.plural} cannot be read, so what they refuse is seen only when it is tried"
                self._problems[kind.kind] = f"{text}: {error.message}"

        return Follower(member.client, member.contact, clock, kind, on_list=on_list, on_event=on_event, on_error=on_error)


def left_by_namespace(quotas: Iterable[Obj], ranges: Iterable[Obj], ours: Iterable[Obj]) -> list[dict[str, Any]]:
    """By namespace, in order: ``requests`` that pods of the federation may come to together, ``defaults`` of a container and the
    ``most`` of a pod. Pure. Of several quotas the narrowest counts."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for each in ranges:
        said = found.setdefault(namespace(each), {})
        for item in (each.get("spec") or {}).get("limits") or ():
            if item.get("type") == "Container":
                # What has a limit and no request asks for the limit.
                said.setdefault("defaults", {}).update(_each(item.get("defaultRequest") or item.get("default")))
            elif item.get("type") == "Pod":
                most = said.setdefault("most", {})
                for word, amount in _each(item.get("max")).items():
                    most[word] = min(amount, most.get(word, amount))
    taken: dict[str, Counter[str]] = {}
    for pod in ours:
        if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            usual = found.get(namespace(pod), {}).get("defaults", {})
            taken.setdefault(namespace(pod), Counter()).update(_asked(pod, usual))
    for each in quotas:
        spec, status, where = each.get("spec") or {}, each.get("status") or {}, namespace(each)
        if spec.get("scopes") or spec.get("scopeSelector"):
            continue
        hard, used = _amounts(spec.get("hard") or {}), _amounts(status.get("used") or {})
        for word, amount in hard.items():
            others = max(0, used.get(word, 0) - taken.get(where, Counter())[word])
            left = found.setdefault(where, {}).setdefault("requests", {})
            left[word] = min(max(0, amount - others), left.get(word, amount))
    told: list[dict[str, Any]] = []
    for where, said in sorted(found.items()):
        parts = {part: {k: _text(k, v) for k, v in sorted(said[part].items())} for part in _PARTS if said.get(part)}
        if parts:
            told.append({"namespace": where} | parts)
    return told


_PARTS = ("requests", "defaults", "most")


def _asked(pod: Obj, usual: Mapping[str, int]) -> dict[str, int]:
    try:
        asked = workload.requests(pod.get("spec") or {})
    except ValueError:
        asked = {}
    return {word: asked.get(word, 0) or usual.get(word, 0) for word in ("cpu", "memory")} | {"pods": 1}


def _each(said: Mapping[str, Any] | None) -> dict[str, int]:
    return _amounts({key: amount for key, amount in (said or {}).items() if key in ("cpu", "memory")})


def _amounts(said: Mapping[str, Any]) -> dict[str, int]:
    """By our names; the smaller one where a resource is named twice. What cannot be read is left out."""
    found: dict[str, int] = {}
    for key, amount in said.items():
        word = _NAMES.get(key)
        if word is None:
            continue
        try:
            value = quantity.milli(amount) if word == "cpu" else quantity.whole(amount)
        except ValueError:
            continue
        found[word] = min(value, found.get(word, value))
    return found


def _text(word: str, amount: int) -> str:
    return quantity.format_milli(amount) if word == "cpu" else str(amount)
