"""Which kinds this API server serves: the native ones, and those that CustomResourceDefinitions add.

Follows the watch cache: what has been written is served from the next request on. Without a definition nothing is loaded.
Bounds: ``MAX_DEFINITIONS`` definitions, each at most as large as any object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from metaos.apiserver.cache import Version, WatchCache
from metaos.resources import errors, scheme
from metaos.resources.meta import Obj
from metaos.resources.scheme import Kind

if TYPE_CHECKING:
    from metaos.apiserver.customkind import CustomKind

MAX_DEFINITIONS = 500
_RESOURCE = scheme.CUSTOM_RESOURCE_DEFINITION.resource


class Catalogue:
    """The kinds of one API server: several may run in one process."""

    def __init__(self, cache: WatchCache) -> None:
        self._definitions = cache.resource(_RESOURCE)
        self._seen = 0
        self._made: dict[str, _Made] = {}
        self._by_plural: dict[tuple[str, str, str], CustomKind] = {}
        self._by_kind: dict[tuple[str, str, str], CustomKind] = {}
        self._custom: tuple[CustomKind, ...] = ()

    @property
    def custom(self) -> tuple[CustomKind, ...]:
        """Those that definitions add, by group, best version first; another tuple whenever one has changed."""
        if self._definitions.revision != self._seen:
            self._follow()
        return self._custom

    def all(self) -> tuple[Kind, ...]:
        return (*scheme.KINDS, *self.custom)

    def by_plural(self, group: str, version: str, plural: str) -> Kind | None:
        found = scheme.by_plural(group, version, plural)
        return found or (self._by_plural.get((group, version, plural)) if self.custom else None)

    def by_kind(self, api_version: str, kind: str) -> Kind | None:
        found = scheme.by_kind(api_version, kind)
        if found is not None or not self.custom:
            return found
        group, _, version = api_version.rpartition("/")
        return self._by_kind.get((group, version, kind))

    def kind_of(self, obj: Obj) -> Kind:
        """The kind of an object. Raises ``ApiError`` 404."""
        found = self.by_kind(str(obj.get("apiVersion", "")), str(obj.get("kind", "")))
        if found is None:
            what = str(obj.get("kind", "")).lower() or "kind"
            raise errors.not_found("", what, f"no kind {obj.get('kind')!r} in {obj.get('apiVersion')!r}")
        return found

    def own(self, kind: Kind) -> Kind:
        """This server's kind for one that a client knows. Raises ``ApiError`` 404."""
        if scheme.by_plural(kind.group, kind.version, kind.plural) is kind:
            return kind
        found = self.by_plural(kind.group, kind.version, kind.plural)
        if found is None:
            raise errors.ApiError(404, "NotFound", "the server could not find the requested resource")
        return found

    def _follow(self) -> None:
        """Only what has changed is made anew: a hundred definitions come one after another."""
        from metaos.resources import definitions

        made: dict[str, _Made] = {}
        for version in self._definitions.objects.values():
            held = self._made.get(version.name)
            made[version.name] = held if held is not None and held.revision == version.revision else _kinds_of(version, held)
        found = [kind for each in made.values() for kind in each.kinds]
        self._made = made
        self._custom = tuple(sorted(found, key=lambda kind: (kind.group, definitions.priority(kind.version), kind.plural)))
        self._by_plural = {(kind.group, kind.version, kind.plural): kind for kind in found}
        self._by_kind = {(kind.group, kind.version, kind.kind): kind for kind in found}
        self._seen = self._definitions.revision


@dataclass(frozen=True, slots=True)
class _Made:
    """What one definition serves. ``since``: objects of a later revision are as its schemas, ``spec``, want them."""

    revision: int
    spec: Obj
    since: int
    kinds: tuple[CustomKind, ...]


def _kinds_of(version: Version, before: _Made | None) -> _Made:
    from metaos.apiserver.customkind import CustomKind
    from metaos.resources import definitions

    definition = version.object()
    spec = definition["spec"]
    if not definitions.established(definition):
        return _Made(version.revision, {}, 0, ())
    # Its status, which changes too, does not matter to objects.
    since = before.since if before is not None and before.spec == spec else version.revision
    names = (definition.get("status") or {}).get("acceptedNames") or spec["names"]
    found = []
    for entry in definitions.served_versions(definition):
        made = CustomKind(
            **definitions.parts_of(definition, entry),
            entry=entry,
            singular_name=names.get("singular") or names["kind"].lower(),
            list_kind_name=names.get("listKind") or f"{names['kind']}List",
            storage=definitions.storage_version(definition),
            since=since,
            terminating=bool(definition["metadata"].get("deletionTimestamp")),
        )
        held = next((kind for kind in before.kinds if kind.same(made)), None) if before is not None else None
        found.append(held or made)
    return _Made(version.revision, spec, since, tuple(found))
