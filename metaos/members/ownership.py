"""Whose an object at a member is, and the one step that brings it closer to what is wanted. Pure.

Ours is what carries the membership's label and a tracking annotation that speaks of this very object. Drift is a difference
from what the server answered to the last apply: in the fields that it says ``nemo`` applied, as another writer has taken or
removed one; or in what stands in these fields, as servers before 1.22 do not note who scales. What a server or controller fills
in beside them, or writes in another form, is nobody's drift.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from metaos.members.health import Health, health
from metaos.members.manifests import ADOPTED, FIELD_MANAGER, MEMBER_LABEL, TRACKING, USE, WORK_LABEL, tracking
from metaos.resources import meta
from metaos.resources.meta import ADOPT, Obj, deleting, generation, labels, ref, uid

#: What tells the items of a list apart (containers, volumes, ports), so that others' items beside them do not count.
_LIST_KEYS = ("name", "containerPort", "port", "key", "type", "ip", "mountPath", "uid")
#: A longer status is not copied to the hub.
MAX_STATUS = 64 * 1024


@dataclass(frozen=True, slots=True)
class Live:
    """What is remembered of an object at the member. ``fields``: what the server says ``nemo`` applied, and a digest of what
    stands there."""

    uid: str
    generation: int
    deleting: bool
    fields: str
    health: Health
    status: Mapping[str, Any]
    adopted: bool
    work: str = ""

    @classmethod
    def of(cls, obj: Obj, body: Obj | None = None) -> Live:
        """``body``: what is applied, where it is wanted."""
        found = obj.get("status")
        status: Mapping[str, Any] = found if isinstance(found, dict) else {}
        if len(json.dumps(status)) > MAX_STATUS:
            status = {k: v for k, v in status.items() if not isinstance(v, list | dict) or k == "conditions"}
        return cls(
            uid(obj),
            generation(obj),
            deleting(obj),
            own_fields(obj) + (values(body, obj) if body is not None else ""),
            health(obj),
            status,
            ADOPTED in meta.annotations(obj),
            labels(obj).get(WORK_LABEL, ""),
        )

    @property
    def observed(self) -> bool:
        """Whether its status is about what it asks for now."""
        seen = self.status.get("observedGeneration")
        return not isinstance(seen, int) or seen >= self.generation


def own_fields(obj: Obj) -> str:
    """The fields that the server says were applied by ``nemo``; empty where it says none."""
    for entry in obj.get("metadata", {}).get("managedFields") or ():
        ours = entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply" and not entry.get("subresource")
        if ours:
            return json.dumps(entry.get("fieldsV1") or {}, sort_keys=True, separators=(",", ":"))
    return ""


def values(body: Obj, obj: Obj) -> str:
    """A digest of what an object has where ``body`` says something."""
    found = _within(body, {k: v for k, v in obj.items() if k != "status"})
    return hashlib.sha256(json.dumps(found, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def _within(said: Any, found: Any) -> Any:
    if isinstance(said, dict) and isinstance(found, dict):
        return {key: _within(value, found.get(key)) for key, value in said.items()}
    if isinstance(said, list) and isinstance(found, list) and said and all(isinstance(each, dict) for each in said):
        key = next((k for k in _LIST_KEYS if all(k in each for each in said)), "")
        if key:
            there = {json.dumps(each.get(key)): each for each in found if isinstance(each, dict)}
            return [_within(each, there.get(json.dumps(each[key]))) for each in said]
        if len(said) == len(found):
            return [_within(one, other) for one, other in zip(said, found, strict=True)]
    return found


def is_ours(obj: Obj, member: str) -> bool:
    """Whether this membership has made or adopted it. What controllers made of it carries copies of its labels, at most."""
    return labels(obj).get(MEMBER_LABEL) == member and meta.annotations(obj).get(TRACKING) == tracking(member, ref(obj))


def closed(space: Obj, member: str) -> str:
    """Why nothing may be written in a namespace of the cluster, with the remedy; empty where it may be: this membership has made
    it, or its owner has opened it. The name alone says nothing: pods in a namespace mount its Secrets and act with its service
    accounts, so a user of the hub would get those of whatever runs there."""
    if is_ours(space, member) or labels(space).get(USE) == "true":
        return ""
    where = meta.name(space)
    return (
        f"the cluster has a namespace {where!r} already that NEMO has not made: nothing is written there. Use another name, or "
        f"have the cluster's owner open it, with its Secrets and service accounts: 'kubectl label namespace {where} {USE}=true'"
    )


class Applied(NamedTuple):
    """What was applied last: a digest of the manifest, and the fields as the server wrote them down."""

    digest: str
    fields: str


class Action(StrEnum):
    """``APPLY`` takes back what others changed of our fields (force); ``CREATE`` never does."""

    NOTHING = "nothing"
    LOOK = "look"
    CREATE = "create"
    APPLY = "apply"
    ADOPT = "adopt"
    REFUSE = "refuse"
    WAIT = "wait"
    DELETE = "delete"
    RELEASE = "release"


def desired_step(live: Live | None, applied: Applied | None, digest: str) -> Action:
    """For an object that is wanted, by what is followed of ours. ``LOOK``: none of ours is known, so see what is there."""
    if live is None:
        return Action.LOOK
    if live.deleting:
        return Action.WAIT
    if applied is not None and applied == (digest, live.fields):
        return Action.NOTHING
    return Action.APPLY


def found_step(manifest: Obj, found: Obj | None, member: str, known: str) -> Action:
    """For a wanted object of which none of ours is followed: by what the server has under its name. ``known``: the uid of
    one that was ours the last time it was seen, whatever its labels say now."""
    if found is None:
        return Action.CREATE
    if manifest.get("kind") == "Namespace" and not is_ours(found, member) and uid(found) != known:
        return Action.REFUSE if closed(found, member) else Action.NOTHING  # What its owner has opened is used as it is.
    if is_ours(found, member) or (known and uid(found) == known):
        return Action.WAIT if deleting(found) else Action.APPLY
    if meta.annotations(found).get(ADOPT) == "true":  # Its owner's word: whoever wrote the manifest would say so of anything.
        return Action.WAIT if deleting(found) else Action.ADOPT
    return Action.REFUSE


def unwanted_step(kind: str, live: Live | None, *, sure: bool) -> Action:
    """For an object of ours that no Work asks for. ``sure``: the hub has said what there is."""
    if live is None or live.deleting:
        return Action.NOTHING
    if not sure:
        return Action.WAIT
    if kind == "Namespace":
        return Action.NOTHING  # Others may have put things there.
    return Action.RELEASE if live.adopted else Action.DELETE


def taken(found: Obj, member: str) -> str:
    """Why an object that is there is not touched, with the remedy."""
    other = labels(found).get(MEMBER_LABEL)
    whose = f"another NEMO membership ({other})" if other and other != member else "somebody else"
    managers = sorted({str(e.get("manager")) for e in found["metadata"].get("managedFields") or () if e.get("manager")})
    by = f", written by {', '.join(managers[:3])}" if managers else ""
    each = ref(found)
    kind = f"{each.kind.lower()}.{each.group}".rstrip(".")
    what = f"{kind} {each.name}{f' -n {each.namespace}' if each.namespace else ''}"
    return (
        f"the cluster has one of this name already that is {whose}'s{by}: it is not touched. Rename yours, delete that one, "
        f"or have the cluster's owner let NEMO have it: 'kubectl annotate {what} {ADOPT}=true' at the cluster"
    )
