"""Server-side apply: who owns which field, what a new configuration changes, and what conflicts. Pure.

Source: Kubernetes, "Server-Side Apply", and sigs.k8s.io/structured-merge-diff (FieldsV1). A field set is a mapping from
path to value; path elements are ``f:NAME``, ``k:{KEYS}`` (an item of a list map) and ``v:VALUE`` (an item of a list
set). Ownership is recorded from an object's creation on. Objects that NEMO itself made have no record until they are
applied; what was there before belongs to ``before-first-apply``, or to ``kubectl-client-side-apply`` where its
annotation says so.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import orjson

from metaos.apiserver.messages import message_of
from metaos.apiserver.schema import ANY, Node
from metaos.resources import errors, meta
from metaos.resources.meta import Obj

Path = tuple[str, ...]
Fields = dict[Path, Any]

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_CLIENT_SIDE = "kubectl-client-side-apply"
_BEFORE = "before-first-apply"
#: Never owned: identity, and what the server keeps.
_UNOWNED = frozenset(
    (
        *("name", "namespace", "uid", "generation", "resourceVersion", "selfLink", "managedFields"),
        *("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"),
    )
)
#: Stands for the value of what has parts of its own: an item of a list map; in updates also maps and objects.
_ITEM = object()
#: Managers of updates that an object remembers, and who stands for the older ones, as in Kubernetes.
MAX_UPDATERS = 10
_ANCIENT = "ancient-changes"


@dataclass(frozen=True, slots=True)
class Manager:
    """Who writes: by ``Apply`` or by ``Update``, and through which subresource."""

    name: str
    operation: str
    subresource: str
    api_version: str


@dataclass(slots=True)
class Owned:
    """A manager's entry in ``managedFields``."""

    manager: Manager
    time: str
    paths: set[Path] = field(default_factory=set)
    #: As it was read, so that what stays need not be written anew.
    read: tuple[frozenset[Path], dict[str, Any]] | None = None

    def encode(self) -> dict[str, Any]:
        entry = {
            "manager": self.manager.name,
            "operation": self.manager.operation,
            "apiVersion": self.manager.api_version,
            "time": self.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.read[1] if self.read and self.paths == self.read[0] else fields_v1(self.paths),
        }
        return entry | ({"subresource": self.manager.subresource} if self.manager.subresource else {})


# -- sets --------------------------------------------------------------------------------------------------


def fields_of(node: Node, obj: Obj, *, status: bool, whole: bool = False) -> Fields:
    """The leaves of an object. ``status``: only those below ``status``, otherwise all others. ``whole``: also the maps,
    objects and lists that have parts, as updates own them and applies do not."""
    found: Fields = {}
    for key, value in obj.items():
        if key == "metadata" and not status:
            child = node.child("metadata")
            for name, part in value.items():
                if name not in _UNOWNED:
                    _leaves(child.child(name), part, ("f:metadata", f"f:{name}"), found, whole)
        elif key not in ("apiVersion", "kind", "metadata") and (key == "status") == status:
            _leaves(node.child(key), value, (f"f:{key}",), found, whole)
    return found


@lru_cache(maxsize=512)
def always_there(node: Node) -> frozenset[Path]:
    """What every object of a native kind has, empty, in Kubernetes' own representation, so that nobody adds it: objects
    that are no pointers, and required lists."""
    found: set[Path] = set()
    waiting: list[tuple[Node, Path]] = [(node, ())]
    while waiting:
        holder, path = waiting.pop()
        message = message_of(holder.name)
        for name, (kind, flags) in message.items():
            child = holder.properties.get(name)
            if child is None:
                continue
            if child.kind == "object" and not child.atomic and "." in kind and not set(flags) & {"p", "r", "m"}:
                found.add((*path, f"f:{name}"))
                waiting.append((child, (*path, f"f:{name}")))
            elif child.kind == "array" and name in holder.required:
                found.add((*path, f"f:{name}"))
    return frozenset(found)


def _granular(node: Node, value: Any) -> bool:
    """Whether parts of this value can have different owners."""
    if isinstance(value, dict):
        # "any" with a name is a native kind's raw extension, of which nobody knows the parts.
        return not node.atomic and (node.kind in ("object", "map") or (node.kind == "any" and not node.name))
    return isinstance(value, list) and node.list_type in ("map", "set")


def _leaves(node: Node, value: Any, path: Path, found: Fields, whole: bool) -> None:
    if not value or not _granular(node, value):
        found[path] = value
        return
    if whole:
        found[path] = _ITEM
    if isinstance(value, dict):
        for key, child in value.items():
            _leaves(node.child(key), child, (*path, f"f:{key}"), found, whole)
    elif node.list_type == "set":
        for item in value:
            found[(*path, "v:" + _json(item))] = item
    else:
        item_node = node.item or ANY
        for item in value:
            below = (*path, _key(node, item))
            found[below] = _ITEM
            for key, child in item.items():
                _leaves(item_node.child(key), child, (*below, f"f:{key}"), found, whole)


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


_KEY_DEFAULTS = {"protocol": "TCP"}


def _key(node: Node, item: Any) -> str:
    if not isinstance(item, dict):
        raise errors.bad_request(f"an item of a list that is keyed by {', '.join(node.keys)} must be an object, not {item!r}")
    known = node.item.properties if node.item else {}
    keys = {key: item.get(key, (known[key].default if key in known else None) or _KEY_DEFAULTS.get(key)) for key in node.keys}
    return "k:" + _json({key: value for key, value in keys.items() if value is not None})


def fields_v1(paths: set[Path]) -> dict[str, Any]:
    """A set in its wire form, a trie; ``.`` marks what is itself in the set where parts of it are too."""
    root: dict[str, Any] = {}
    for path in sorted(paths):
        place = root
        for depth, element in enumerate(path, 1):
            below = place.get(element)
            if below is None:
                below = place[element] = {}
            elif not below and depth < len(path):
                below["."] = {}  # It ended here before: the shorter of two paths comes first.
            place = below
    return root


def _paths(trie: Mapping[str, Any], path: Path = ()) -> set[Path]:
    found: set[Path] = set()
    for element, below in trie.items():
        if element == ".":
            found.add(path)
        elif not below or not isinstance(below, dict):
            found.add((*path, element))
        else:
            found |= _paths(below, (*path, element))
    return found


@lru_cache(maxsize=512)
def _paths_of(trie: bytes) -> frozenset[Path]:
    """Objects of one kind often have the same fields, and a writer comes again."""
    return frozenset(_paths(orjson.loads(trie)))


def owners(obj: Obj) -> list[Owned]:
    """Decodes ``metadata.managedFields``."""
    found = []
    for entry in obj.get("metadata", {}).get("managedFields") or ():
        manager = Manager(
            str(entry.get("manager") or ""),
            str(entry.get("operation") or "Update"),
            str(entry.get("subresource") or ""),
            str(entry.get("apiVersion") or ""),
        )
        trie = entry.get("fieldsV1")
        if not isinstance(trie, dict):  # Whatever a writer sent.
            trie = {}
        paths = _paths_of(orjson.dumps(trie))
        found.append(Owned(manager, str(entry.get("time") or ""), set(paths), (paths, trie)))
    return found


def _same(one: Manager, other: Manager) -> bool:
    return (one.name, one.operation, one.subresource) == (other.name, other.operation, other.subresource)


def _store(obj: Obj, held: list[Owned]) -> None:
    kept = _bounded([entry for entry in held if entry.paths])
    kept.sort(key=lambda e: (e.manager.operation, e.time, e.manager.name, e.manager.api_version, e.manager.subresource))
    obj["metadata"].pop("managedFields", None)
    if kept:
        obj["metadata"]["managedFields"] = [entry.encode() for entry in kept]


def _bounded(held: list[Owned]) -> list[Owned]:
    """At most ``MAX_UPDATERS`` that update: the oldest become one."""
    updaters = [entry for entry in held if entry.manager.operation == "Update"]
    if len(updaters) <= MAX_UPDATERS:
        return held
    updaters.sort(key=lambda entry: entry.time)
    oldest = updaters[: len(updaters) - MAX_UPDATERS + 1]
    last = oldest[-1]
    ancient = Owned(Manager(_ANCIENT, "Update", "", last.manager.api_version), last.time, set().union(*(e.paths for e in oldest)))
    return [*(entry for entry in held if entry not in oldest), ancient]


# -- operations --------------------------------------------------------------------------------------------


def first_fields(node: Node, applied_obj: Obj, manager: Manager, now: str) -> list[dict[str, Any]]:
    """``managedFields`` of an object that an apply creates."""
    return [Owned(manager, now, set(fields_of(node, applied_obj, status=manager.subresource == "status"))).encode()]


def created_fields(node: Node, obj: Obj, manager: Manager, now: str) -> list[dict[str, Any]]:
    """``managedFields`` of an object that was created otherwise: all of it belongs to ``manager``."""
    paths = fields_of(node, obj, status=False, whole=True).keys() - always_there(node)
    if "status" in obj:
        paths |= fields_of(node, {"status": obj["status"]}, status=True, whole=True).keys() - always_there(node)
    return [Owned(manager, now, set(paths)).encode()] if paths else []


def tracked(node: Node, obj: Obj, old: Obj, manager: Manager, now: str) -> Obj:
    """``obj`` with ownership after an update: what changed belongs to ``manager`` alone."""
    result = {**obj, "metadata": dict(obj["metadata"])}
    sent = result["metadata"].get("managedFields")
    if sent is None:
        result["metadata"]["managedFields"] = old["metadata"].get("managedFields")
    elif not any(entry for entry in sent):
        result["metadata"].pop("managedFields")  # An emptied list ends the tracking, as in Kubernetes.
        return result
    status = manager.subresource == "status"
    before, after = (fields_of(node, each, status=status, whole=True) for each in _changed_parts(old, obj))
    changed = {path for path, value in after.items() if path not in before or before[path] != value} - always_there(node)
    removed = before.keys() - after.keys()
    if not changed and not removed and sent in (None, old["metadata"].get("managedFields")):
        return result
    held = owners(result)
    if changed or removed:
        mine = next((entry for entry in held if _same(entry.manager, manager)), None)
        if mine is None and changed:
            mine = Owned(manager, now)
            held.append(mine)
        for entry in held:
            entry.paths -= removed
            if entry is not mine:
                entry.paths -= changed
        if mine is not None:
            mine.paths |= changed
            mine.time = now
    _store(result, held)
    return result


def _changed_parts(old: Obj, obj: Obj) -> tuple[Obj, Obj]:
    """Both without the parts that are equal: most writes change little, and only what changes can change owners."""
    parts: tuple[Obj, Obj] = ({}, {})
    for key in old.keys() | obj.keys():
        if key == "metadata":
            fields = [k for k in old[key].keys() | obj[key].keys() if old[key].get(k) != obj[key].get(k)]
            for part, whole in zip(parts, (old, obj), strict=True):
                part[key] = {k: whole[key][k] for k in fields if k in whole[key]}
        elif old.get(key) != obj.get(key):
            for part, whole in zip(parts, (old, obj), strict=True):
                if key in whole:
                    part[key] = whole[key]
    return parts


def inherited(obj: Obj, manager: Manager) -> Obj:
    """``obj``, where what ``manager`` owns by updates it owns by applies: it made the object otherwise, and applies from now on.
    Source: client-go, ``util/csaupgrade``."""
    held = owners(obj)
    mine = next((e for e in held if _same(e.manager, manager)), None) or Owned(manager, "")
    before = [e for e in held if _same(e.manager, replace(manager, operation="Update"))]
    if not before:
        return obj
    mine.paths |= before[0].paths
    mine.time = mine.time or before[0].time
    result = {**obj, "metadata": dict(obj["metadata"])}
    _store(result, [*(e for e in held if e not in before and e is not mine), mine])
    return result


def applied(node: Node, current: Obj, config: Obj, manager: Manager, now: str, force: bool, *, shown_as: str = "") -> Obj:
    """``current`` after ``manager`` applied ``config``. Raises ``ApiError`` 409 with a cause per field that another
    manager owns with another value, unless ``force``. ``shown_as``: the version that conflicts are told in, where it is not
    the one that is stored."""
    status = manager.subresource == "status"
    held = owners(current)
    if not held:
        name = _CLIENT_SIDE if _LAST_APPLIED in meta.annotations(current) else _BEFORE
        everything = set(fields_of(node, current, status=False, whole=True)) - always_there(node)
        held = [Owned(Manager(name, "Update", "", manager.api_version), now, everything)]
    wanted, live = fields_of(node, config, status=status), fields_of(node, current, status=status)
    mine = next((entry for entry in held if _same(entry.manager, manager)), None)
    others = [entry for entry in held if entry is not mine]
    _conflicts(wanted, live, others, force, shown_as)
    result: Obj = _merged(node, current, config)
    if mine is not None:
        dropped = mine.paths - wanted.keys()
        kept = set(wanted).union(*(entry.paths for entry in others))
        # Whole items first: with them goes what was defaulted in them, which nobody owns.
        for path in sorted(dropped, key=len):
            if not any(path == other[: len(path)] for other in kept):
                _remove(node, result, path)
        if dropped:
            result = _merged(node, result, config)  # An applied empty map stays, even though its last key went.
    if mine is None:
        mine = Owned(manager, now)
        held.append(mine)
    if mine.paths != set(wanted) or fields_of(node, result, status=status) != live:
        mine.time = now
    mine.paths = set(wanted)
    result["metadata"] = dict(result["metadata"])
    _store(result, held)
    if not config["metadata"].get("resourceVersion"):
        result["metadata"].pop("resourceVersion", None)
    return result


def _conflicts(wanted: Fields, live: Fields, others: list[Owned], force: bool, shown_as: str = "") -> None:
    found: list[tuple[Manager, Path]] = []
    for entry in others:
        for path in sorted(entry.paths & wanted.keys()):
            if wanted[path] is not _ITEM and live.get(path) != wanted[path]:
                found.append((replace(entry.manager, api_version=shown_as or entry.manager.api_version), path))
                if force:
                    entry.paths.discard(path)
    if not found or force:
        return
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {_described(manager)}", "field": readable(path)}
        for manager, path in found
    ]
    if len(causes) == 1:
        text = f"{causes[0]['message']}: {causes[0]['field']}"
    else:
        # By manager, in the order of what identifies one in Kubernetes.
        by_manager: dict[tuple[str, ...], list[str]] = {}
        for manager, path in found:
            identity = manager.name, manager.operation, manager.api_version, manager.subresource
            by_manager.setdefault(identity, [f"conflicts with {_described(manager)}:"]).append(f"- {readable(path)}")
        text = "\n".join(line for _, lines in sorted(by_manager.items()) for line in lines)
    raise errors.ApiError(
        409,
        "Conflict",
        f"Apply failed with {len(causes)} conflict{'s' if len(causes) > 1 else ''}: {text}",
        details={"causes": causes},
    )


def _described(manager: Manager) -> str:
    by = f' with subresource "{manager.subresource}"' if manager.subresource else ""
    return f'"{manager.name}"{by} using {manager.api_version}' if manager.operation == "Update" else f'"{manager.name}"{by}'


def readable(path: Path) -> str:
    """``.spec.template.spec.containers[name="web"].image``."""
    text = ""
    for element in path:
        kind, _, value = element.partition(":")
        if kind == "f":
            text += f".{value}"
        elif kind == "k":
            text += "[" + ",".join(f"{k}={_json(v)}" for k, v in orjson.loads(value).items()) + "]"
        else:
            text += f"[={value}]"
    return text


def _merged(node: Node, live: Any, config: Any) -> Any:
    """``config`` over ``live``; what is atomic is replaced."""
    if isinstance(config, dict) and isinstance(live, dict) and _granular(node, config):
        result = dict(live)
        for key, value in config.items():
            result[key] = _merged(node.child(key), live.get(key), value)
        return result
    if isinstance(config, list) and isinstance(live, list) and node.list_type == "set":
        return [*live, *(item for item in config if item not in live)]
    if isinstance(config, list) and isinstance(live, list) and node.list_type == "map":
        before = {_key(node, item): item for item in live}
        wanted = {_key(node, item): item for item in config}
        if len(wanted) != len(config):
            raise errors.bad_request(f"duplicate entries for the key {', '.join(node.keys)}")
        order = [*wanted] if before.keys() <= wanted.keys() else [*before, *(k for k in wanted if k not in before)]
        item = node.item or ANY
        return [_merged(item, before.get(k), wanted[k]) if k in wanted else before[k] for k in order]
    return copy.deepcopy(config)


def _remove(node: Node, obj: Any, path: Path) -> None:
    """Takes a leaf out, with containers that become empty by it. Containers on the way are copied."""
    element, rest = path[0], path[1:]
    if element.startswith("f:"):
        key = element[2:]
        if not isinstance(obj, dict) or key not in obj:
            return
        if not rest:
            del obj[key]
            return
        obj[key] = copy.copy(obj[key])
        _remove(node.child(key), obj[key], rest)
        if obj[key] in ({}, []):
            del obj[key]
    elif isinstance(obj, list):
        item = node.item or ANY
        for i, value in enumerate(obj):
            if element == ("v:" + _json(value) if element.startswith("v:") else _key(node, value)):
                if not rest:
                    del obj[i]
                else:
                    obj[i] = copy.copy(value)
                    _remove(item, obj[i], rest)
                return
