"""Patches: JSON patch (RFC 6902), JSON merge patch (RFC 7396) and Kubernetes' strategic merge patch. Pure.

Source for the last: ``k8s.io/apimachinery/pkg/util/strategicpatch`` and "Strategic Merge Patch" of the community
contributors' guide. Lists with a merge key are merged by it; directives ``$patch``, ``$retainKeys``,
``$setElementOrder/F`` and ``$deleteFromPrimitiveList/F`` are obeyed.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import jsonpatch
import jsonpointer
import orjson

from metaos.apiserver.schema import ANY, Node
from metaos.client import PatchType
from metaos.resources import errors
from metaos.resources.mergepatch import merged
from metaos.resources.meta import Obj

_ORDER = "$setElementOrder/"
_DELETE = "$deleteFromPrimitiveList/"
_LISTS = ("$retainKeys", _ORDER, _DELETE)
#: Of one JSON patch, as in Kubernetes: a patch of copies could otherwise grow an object without bound.
MAX_OPERATIONS = 10_000
#: What all ``copy`` operations of one patch may copy, for the same reason.
MAX_COPIED = 3 * 1024 * 1024
#: The length of what is repeated of a patch that fails.
MAX_TEXT = 1000
#: What the library raises on operations that are none.
_WRONG = (TypeError, KeyError, ValueError, IndexError, AttributeError)


def apply_patch(type: PatchType, obj: Obj, patch: Any, node: Node) -> Obj:
    """The patched copy. Raises ``ApiError`` 400 or 422 where the patch does not fit."""
    if type is PatchType.JSON:
        return _json_patch(obj, patch)
    if not isinstance(patch, dict):
        raise errors.bad_request(f"the patch must be an object, not {patch.__class__.__name__}")
    if type is PatchType.MERGE:
        patched: Obj = merge(obj, patch)
        return patched
    return strategic(obj, patch, node)


def _json_patch(obj: Obj, patch: Any) -> Obj:
    if not isinstance(patch, list):
        raise errors.bad_request("a JSON patch must be an array of operations")
    if len(patch) > MAX_OPERATIONS:
        raise errors.too_large(f"the allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(patch)}")
    patched: Any = copy.deepcopy(obj)
    copied = 0
    try:
        for operation in patch:
            if isinstance(operation, dict) and operation.get("op") == "copy":
                copied += len(orjson.dumps(jsonpointer.resolve_pointer(patched, str(operation.get("from")))))
                if copied > MAX_COPIED:
                    raise errors.too_large(f"the copies of a JSON patch may have {MAX_COPIED} bytes together")
            patched = jsonpatch.apply_patch(patched, [operation], in_place=True)
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException, *_WRONG) as failed:
        raise errors.ApiError(
            422, "Invalid", f"the server rejected our request due to an error in our request: {str(failed)[:MAX_TEXT]}"
        ) from None
    if not isinstance(patched, dict):
        raise errors.bad_request("the patch leaves no object")
    return patched


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396. Nothing of ``patch`` is in the result."""
    return merged(target, copy.deepcopy(patch))


def strategic(target: Obj, patch: Obj, node: Node) -> Obj:
    directive = patch.get("$patch")
    if directive == "replace":
        return {k: copy.deepcopy(v) for k, v in patch.items() if k != "$patch"}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise errors.bad_request(f"unknown patch type {directive!r}: $patch must be merge, replace or delete")
    result = dict(target)
    retain = patch.get("$retainKeys")
    for key, value in patch.items():
        if key.startswith(_LISTS) and not isinstance(value, list):
            what = (
                "retainKeys" if key == "$retainKeys" else "setElementOrder list" if key.startswith(_ORDER) else "primitive list"
            )
            raise errors.bad_request(f"invalid patch format of {what}")
    if retain is not None:
        result = {k: v for k, v in result.items() if k in retain}
    orders: dict[str, list[Any]] = {}
    for key, value in patch.items():
        if key in ("$patch", "$retainKeys"):
            continue
        if key.startswith(_ORDER):
            orders[key.removeprefix(_ORDER)] = value
        elif key.startswith(_DELETE):
            name = key.removeprefix(_DELETE)
            if isinstance(result.get(name), list):
                gone = {_identity(v, "") for v in value}
                result[name] = [v for v in result[name] if _identity(v, "") not in gone]
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = _value(result.get(key), value, node.child(key))
    for name, order in orders.items():
        if isinstance(result.get(name), list):
            result[name] = _ordered(result[name], order, target.get(name) or [], node.child(name).merge_key)
    return result


def _value(target: Any, value: Any, node: Node) -> Any:
    if isinstance(value, dict):
        if "replace" in node.strategy or node.kind == "any":
            return {k: v for k, v in value.items() if k != "$patch"} if node is not ANY else merge(target, value)
        return strategic(target if isinstance(target, dict) else {}, value, node)
    if isinstance(value, list) and "merge" in node.strategy and isinstance(target, list):
        return _list(target, value, node)
    if isinstance(value, list):
        # What is new or replaced is taken as it stands, without directives.
        items = [v for v in value if not (isinstance(v, dict) and v.get("$patch") in ("delete", "replace"))]
        return [strategic({}, v, node.item or ANY) if isinstance(v, dict) else v for v in items]
    return value


def _list(target: list[Any], patch: list[Any], node: Node) -> list[Any]:
    key, item = node.merge_key, node.item or ANY
    if not key or not all(isinstance(v, dict) for v in patch):
        present = {_identity(v, "") for v in target}
        return _ordered([*target, *(v for v in patch if _identity(v, "") not in present)], patch, target, "")
    if any(v.get("$patch") == "replace" for v in patch):
        return [strategic({}, v, item) for v in patch if v.get("$patch") != "replace"]
    result: list[Any] = list(target)
    #: Where the items of each identity stand; the places of deleted ones are empty.
    places: dict[Any, list[int]] = {}
    for i, value in enumerate(result):
        if isinstance(value, dict):
            places.setdefault(_identity(value, key), []).append(i)
    for value in patch:
        if key not in value:
            raise errors.bad_request(f"map: {str(value)[:MAX_TEXT]} does not contain declared merge key: {key}")
        matching = places.get(_identity(value, key), [])
        if value.get("$patch") == "delete":
            for i in matching:
                result[i] = _GONE
            matching.clear()
        elif matching:
            result[matching[0]] = strategic(result[matching[0]], value, item)
        else:
            places.setdefault(_identity(value, key), []).append(len(result))
            result.append(strategic({}, value, item))
    left = [v for v in result if v is not _GONE]
    return _ordered(left, [v for v in patch if v.get("$patch") != "delete"], target, key)


_GONE = object()


def _identity(value: Any, key: str) -> Any:
    """What tells an item from others: the value of its merge key, or itself. Something that can be looked up."""
    found = value.get(key) if key and isinstance(value, dict) else value
    if isinstance(found, dict | list):
        return orjson.dumps(found, option=orjson.OPT_SORT_KEYS)
    # In Python true is 1.
    return (isinstance(found, bool), found)


def _ordered(items: list[Any], order: list[Any], before: list[Any], key: str) -> list[Any]:
    """``items`` as Kubernetes sorts a merged list: those of ``order`` in its order; each other one in front of the next of
    them that it stood in front of ``before``, all else behind."""

    def places(values: list[Any]) -> dict[Any, int]:
        return {_identity(value, key): i for i, value in reversed(list(enumerate(values)))}

    wanted, was = places(order), places(before)

    def place(values: dict[Any, int], value: Any) -> int:
        return values.get(_identity(value, key), -1)

    named = deque(sorted((v for v in items if place(wanted, v) >= 0), key=lambda v: place(wanted, v)))
    others = deque(sorted((v for v in items if place(wanted, v) < 0), key=lambda v: place(was, v)))
    result: list[Any] = []
    while named and others:
        left, right = place(was, others[0]), place(was, named[0])
        result.append(others.popleft() if -1 < left < right else named.popleft())
    return [*result, *named, *others]
