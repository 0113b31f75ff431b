"""CustomResourceDefinitions: the kinds that they define, and which of their names are accepted. Pure.

Source: ``k8s.io/apiextensions-apiserver/pkg/controller/status`` (names) and ``apimachinery/pkg/version`` (order of versions).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from metaos.resources.meta import Obj, deleting, is_true, name, with_condition
from metaos.resources.scheme import Kind

#: Holds a definition that is being deleted until its objects have gone.
FINALIZER = "customresourcecleanup.apiextensions.k8s.io"
_VERSION = re.compile(r"v([1-9]\d*)(?:(alpha|beta)([1-9]\d*))?\Z")
_STAGES = {None: 2, "beta": 1, "alpha": 0}


def priority(version: str) -> tuple[int, int, int, int, str]:
    """A sort key: released versions first, then beta, then alpha, newer ones first; what is named otherwise comes last."""
    found = _VERSION.match(version)
    if found is None:
        return 1, 0, 0, 0, version
    return 0, -_STAGES[found[2]], -int(found[1]), -int(found[3] or 0), version


def served_versions(definition: Obj) -> list[Obj]:
    """The entries of the versions that are served, best first."""
    found = [each for each in definition["spec"]["versions"] if each.get("served")]
    return sorted(found, key=lambda each: priority(each["name"]))


def storage_version(definition: Obj) -> str:
    """The version in which objects are kept."""
    return str(next(each["name"] for each in definition["spec"]["versions"] if each.get("storage")))


def established(definition: Obj) -> bool:
    """Whether its kinds are served; they still are while it is being deleted."""
    return is_true(definition, "Established")


def subresources_of(version: Obj) -> tuple[str, ...]:
    return tuple(part for part in ("status", "scale") if (version.get("subresources") or {}).get(part) is not None)


def parts_of(definition: Obj, version: Obj) -> dict[str, Any]:
    """The arguments of a :class:`Kind` for one of a definition's versions."""
    spec = definition["spec"]
    accepted = (definition.get("status") or {}).get("acceptedNames") or spec["names"]
    return {
        "group": spec["group"],
        "version": version["name"],
        "kind": accepted["kind"],
        "plural": accepted["plural"],
        "namespaced": spec["scope"] == "Namespaced",
        "short_names": tuple(accepted.get("shortNames") or ()),
        "categories": tuple(accepted.get("categories") or ()),
        "subresources": subresources_of(version),
        "verbs": ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"),
    }


def kind_of(definition: Obj) -> Kind:
    """The kind of the best served version, of which there must be one: what a controller follows its objects by."""
    return Kind(**parts_of(definition, served_versions(definition)[0]))


def followed(definitions: Iterable[Obj]) -> list[Kind]:
    """The kinds whose objects can be listed, one for each definition."""
    return [kind_of(each) for each in definitions if established(each) and served_versions(each)]


#: In the order in which they come about.
_CONDITIONS = ("NamesAccepted", "Established", "Terminating")

# -- names ---------------------------------------------------------------------------------------------------


def _taken(others: Iterable[Obj]) -> tuple[set[str], set[str]]:
    """Resource names and kinds that others of the group have been granted."""
    resources: set[str] = set()
    kinds: set[str] = set()
    for other in others:
        held = (other.get("status") or {}).get("acceptedNames") or {}
        resources.update(each for each in (held.get("plural"), held.get("singular"), *(held.get("shortNames") or ())) if each)
        kinds.update(each for each in (held.get("kind"), held.get("listKind")) if each)
    return resources, kinds


def status(definition: Obj, definitions: Iterable[Obj], now: float) -> Obj:
    """What its status should be beside the others that there are: the names that it is granted, and the conditions."""
    spec, old = definition["spec"], definition.get("status") or {}
    others = [o for o in definitions if name(o) != name(definition) and o["spec"]["group"] == spec["group"]]
    resources, kinds = _taken(others)
    wanted, granted = spec["names"], dict(old.get("acceptedNames") or {})
    problems: list[tuple[str, str]] = []

    def grant(field: str, taken: set[str], reason: str) -> None:
        value = wanted.get(field)
        clash = next((v for v in (value if isinstance(value, list) else [value]) if v in taken), None)
        if clash is not None:
            problems.append((reason, f'"{clash}" is already in use'))
        elif value:
            granted[field] = value
        else:
            granted.pop(field, None)

    grant("plural", resources, "PluralConflict")
    grant("singular", resources, "SingularConflict")
    grant("shortNames", resources, "ShortNamesConflict")
    grant("kind", kinds, "KindConflict")
    grant("listKind", kinds, "ListKindConflict")
    if wanted.get("categories"):
        granted["categories"] = wanted["categories"]
    else:
        granted.pop("categories", None)
    conditions = list(old.get("conditions") or ())
    if problems:
        accepted = ("False", *problems[-1])
        serving = ("False", "NotAccepted", "not all names are accepted")
    else:
        accepted = ("True", "NoConflicts", "no conflicts found")
        serving = ("True", "InitialNamesAccepted", "the initial names have been accepted")
    conditions = with_condition(conditions, "NamesAccepted", *accepted, now)
    if not is_true(definition, "Established"):  # Once served, always served: later names that clash are only not granted.
        conditions = with_condition(conditions, "Established", *serving, now)
    conditions.sort(key=lambda each: _CONDITIONS.index(each["type"]) if each["type"] in _CONDITIONS else len(_CONDITIONS))
    granted.setdefault("plural", "")
    granted.setdefault("kind", "")
    return {**old, "acceptedNames": granted, "conditions": conditions}


def terminating(definition: Obj, left: int, now: float) -> Obj:
    """The status of a definition that waits for its objects."""
    old = definition.get("status") or {}
    text = f"CustomResource deletion is in progress, {left} left"
    return {
        **old,
        "conditions": with_condition(old.get("conditions") or (), "Terminating", "True", "InstanceDeletionInProgress", text, now),
    }


def waiting(definition: Obj) -> bool:
    """Whether it is being deleted and its objects are still to go."""
    return deleting(definition) and FINALIZER in (definition["metadata"].get("finalizers") or ())


def walk(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all below it that describe values (not those of anyOf, allOf, oneOf and not)."""
    if not isinstance(schema, dict):
        return
    yield schema
    for child in (schema.get("properties") or {}).values():
        yield from walk(child)
    for key in ("items", "additionalProperties"):
        yield from walk(schema.get(key))
