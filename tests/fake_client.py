"""A ``Client`` over a dictionary, for unit tests of whatever acts through one.

It keeps the rules that matter to a controller: resourceVersion and 409, uid and generation, status apart from the rest
(``create`` and ``update`` drop or keep it, as the API server does), finalizers and ``deletionTimestamp``, pods with a
node that wait for their site, label and field selectors, watches that turn a no longer selected object into DELETED,
and 410. It has no authorisation, validation, defaulting, garbage collection or namespace life. A strategic merge patch
is refused; server-side apply is create-or-merge without field ownership.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import jsonpatch

from metaos.client import ObjList, PatchType, WatchEvent
from metaos.clock import Clock
from metaos.resources import errors, meta
from metaos.resources.meta import Obj, Predicate
from metaos.resources.scheme import POD, Kind, kind_of
from tests.clock import FakeClock

_Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Call:
    """One write that was asked for, refused or not."""

    verb: str
    kind: str
    namespace: str
    name: str
    subresource: str = ""


@dataclass(frozen=True, slots=True)
class _Change:
    revision: int
    kind: Kind
    old: Obj | None
    new: Obj | None


class FakeClient:
    """``seed`` arranges, the eight verbs act, ``find`` and ``objects`` look, ``calls`` tells what was written."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.calls: list[Call] = []
        self._objects: dict[_Key, Obj] = {}
        self._revision = 0
        self._uids = 0
        self._history: list[_Change] = []
        self._oldest = 0
        self._news: set[asyncio.Event] = set()
        self._ended = 0
        self._failures: dict[str, list[Exception]] = {}

    # -- for tests -----------------------------------------------------------------------------------------

    def seed(self, *objects: Obj) -> None:
        """Put objects as they are, with their status, over whatever was there; watchers see it."""
        for given in objects:
            kind, new = kind_of(given), copy.deepcopy(given)
            old = self._objects.get(self._key(kind, meta.name(new), meta.namespace(new)))
            self._new(kind, new)
            if old is not None and "uid" not in given["metadata"]:
                new["metadata"]["uid"] = old["metadata"]["uid"]
            self._put(kind, old, new)

    def drop(self, kind: Kind, name: str, namespace: str = "") -> None:
        """Remove an object at once, finalizers or not; watchers see it."""
        self._put(kind, self._objects[self._key(kind, name, namespace)], None)

    def find(self, kind: Kind, name: str, namespace: str = "") -> Obj | None:
        """A copy of an object, or ``None``."""
        return copy.deepcopy(self._objects.get(self._key(kind, name, namespace)))

    def objects(self, kind: Kind, namespace: str = "") -> list[Obj]:
        """Copies of all objects of a kind, ordered by (namespace, name)."""
        return [copy.deepcopy(o) for o in self._select(kind, namespace, "", "")]

    def fail(self, verb: str, error: Exception, times: int = 1) -> None:
        """The next ``times`` calls of ``verb`` (``get``, ``list``, ``watch``, ``create``, …) raise ``error``."""
        self._failures.setdefault(verb, []).extend([error] * times)

    def end_watches(self) -> None:
        """Every running watch ends, as when a server restarts."""
        self._ended += 1
        self._wake()

    def expire(self) -> None:
        """Forget history: a watch from before now gets 410, running ones too unless they have seen everything."""
        self._history.clear()
        self._oldest = self._revision
        self._wake()

    @property
    def watchers(self) -> int:
        return len(self._news)

    # -- Client --------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Obj:
        self._check("get")
        return copy.deepcopy(self._current(kind, name, namespace))

    async def list(
        self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "", limit: int = 0, continue_token: str = ""
    ) -> ObjList:
        self._check("list")
        found = list(self._select(kind, namespace, labels, fields))
        start = int(continue_token or 0)
        end = start + limit if limit else len(found)
        token = str(end) if end < len(found) else ""
        return ObjList([copy.deepcopy(o) for o in found[start:end]], str(self._revision), token)

    async def watch(
        self, kind: Kind, namespace: str = "", *, resource_version: str = "", labels: str = "", fields: str = ""
    ) -> AsyncIterator[WatchEvent]:
        self._check("watch")
        selected = _selection(labels, fields)
        news, ended = asyncio.Event(), self._ended
        self._news.add(news)
        try:
            if resource_version in ("", "0"):
                seen = self._revision
                for existing in list(self._select(kind, namespace, labels, fields)):
                    yield WatchEvent("ADDED", copy.deepcopy(existing))
            else:
                seen = int(resource_version)
            while self._ended == ended:
                news.clear()
                if seen < self._oldest:
                    raise errors.expired(f"too old resource version: {seen} ({self._oldest})")
                for change in [c for c in self._history if c.revision > seen]:
                    seen = change.revision
                    event = _event(change, kind, namespace, selected)
                    if event is not None:
                        yield event
                if not news.is_set():
                    await news.wait()
        finally:
            self._news.discard(news)

    async def create(self, obj: Obj, *, field_manager: str = "", dry_run: bool = False) -> Obj:
        kind, new = kind_of(obj), copy.deepcopy(obj)
        metadata = new.setdefault("metadata", {})
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = f"{metadata['generateName']}{self._uids + 1:05d}"
        name, namespace = meta.name(new), meta.namespace(new)
        self._record("create", kind, namespace, name)
        if kind.namespaced != bool(namespace):
            raise errors.bad_request(f"{kind.kind} {name}: namespace {namespace!r}, but namespaced is {kind.namespaced}")
        if self._key(kind, name, namespace) in self._objects:
            raise errors.already_exists(kind.group, kind.plural, name)
        if "status" in kind.subresources:
            new.pop("status", None)
        for field in ("uid", "creationTimestamp", "generation", "deletionTimestamp"):
            metadata.pop(field, None)
        self._new(kind, new)
        return copy.deepcopy(new if dry_run else self._put(kind, None, new))

    async def update(self, obj: Obj, *, subresource: str = "", field_manager: str = "", dry_run: bool = False) -> Obj:
        kind = kind_of(obj)
        self._record("update", kind, meta.namespace(obj), meta.name(obj), subresource)
        return self._replace(kind, obj, subresource, dry_run)

    async def patch(
        self,
        kind: Kind,
        name: str,
        namespace: str,
        patch: Any,
        *,
        type: PatchType = PatchType.MERGE,
        subresource: str = "",
        field_manager: str = "",
        force: bool = False,
        dry_run: bool = False,
    ) -> Obj:
        if type is PatchType.APPLY and self._key(kind, name, namespace) not in self._objects:
            if patch["metadata"].get("uid"):
                raise errors.conflict(kind.group, kind.plural, name, "Precondition failed: it is gone")
            return await self.create(patch, field_manager=field_manager, dry_run=dry_run)
        self._record("patch", kind, namespace, name, subresource)
        if subresource == "scale" and type is PatchType.MERGE:
            subresource = ""  # A Scale's replicas stand where those of the workload do.
        old = copy.deepcopy(self._current(kind, name, namespace))
        if type is PatchType.JSON:
            return self._replace(kind, jsonpatch.apply_patch(old, patch), subresource, dry_run)
        if type is PatchType.STRATEGIC:
            raise errors.unsupported_media_type("the fake client has no strategic merge patch")
        return self._replace(kind, _merge(old, copy.deepcopy(patch)), subresource, dry_run)

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        resource_version: str = "",
        propagation: str = "",
        grace_period_seconds: int | None = None,
        dry_run: bool = False,
    ) -> Obj:
        self._record("delete", kind, namespace, name)
        old = self._current(kind, name, namespace)
        for what, wanted, found in (
            ("uid", uid, meta.uid(old)),
            ("resourceVersion", resource_version, meta.resource_version(old)),
        ):
            if wanted and wanted != found:
                raise errors.conflict(kind.group, kind.plural, name, f"precondition failed: {what} is {found}, not {wanted}")
        if dry_run:
            return copy.deepcopy(old)
        on_site = kind is POD and old.get("spec", {}).get("nodeName") and grace_period_seconds != 0
        if not old["metadata"].get("finalizers") and not on_site:
            self._put(kind, old, None)
            return copy.deepcopy(old)
        new = copy.deepcopy(old)
        if not meta.deleting(new):
            new["metadata"]["deletionTimestamp"] = meta.format_time(self.clock.now())
            default = old.get("spec", {}).get("terminationGracePeriodSeconds", 30) if on_site else 0
            new["metadata"]["deletionGracePeriodSeconds"] = default if grace_period_seconds is None else grace_period_seconds
            self._put(kind, old, new)
        return copy.deepcopy(new)

    async def delete_collection(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> None:
        for found in list(self._select(kind, namespace, labels, fields)):
            await self.delete(kind, meta.name(found), meta.namespace(found))

    # -- inside --------------------------------------------------------------------------------------------

    def _key(self, kind: Kind, name: str, namespace: str) -> _Key:
        return kind.resource, namespace if kind.namespaced else "", name

    def _current(self, kind: Kind, name: str, namespace: str) -> Obj:
        found = self._objects.get(self._key(kind, name, namespace))
        if found is None:
            raise errors.not_found(kind.group, kind.plural, name)
        return found

    def _check(self, verb: str) -> None:
        waiting = self._failures.get(verb)
        if waiting:
            raise waiting.pop(0)

    def _record(self, verb: str, kind: Kind, namespace: str, name: str, subresource: str = "") -> None:
        self.calls.append(Call(verb, kind.kind, namespace, name, subresource))
        self._check(verb)

    def _new(self, kind: Kind, new: Obj) -> None:
        self._uids += 1
        metadata = new["metadata"]
        metadata.setdefault("uid", f"00000000-0000-4000-8000-{self._uids:012d}")
        metadata.setdefault("creationTimestamp", meta.format_time(self.clock.now()))
        metadata.setdefault("generation", 1)

    def _select(self, kind: Kind, namespace: str, labels: str, fields: str) -> Iterator[Obj]:
        selected = _selection(labels, fields)
        for (resource, where, _), found in sorted(self._objects.items()):
            if resource == kind.resource and (not namespace or where == namespace) and selected(found):
                yield found

    def _replace(self, kind: Kind, obj: Obj, subresource: str, dry_run: bool) -> Obj:
        if subresource not in ("", "status", "approval"):
            raise errors.bad_request(f"the fake client has no subresource {subresource!r}")
        name, namespace = meta.name(obj), meta.namespace(obj)
        old = self._current(kind, name, namespace)
        wanted = meta.resource_version(obj)
        if wanted and wanted != meta.resource_version(old):
            raise errors.conflict(kind.group, kind.plural, name)
        if meta.uid(obj) and meta.uid(obj) != meta.uid(old):
            raise errors.conflict(kind.group, kind.plural, name, f"uid is {meta.uid(old)}, not {meta.uid(obj)}")
        new, status_of = (copy.deepcopy(old), obj) if subresource else (copy.deepcopy(obj), old)
        if subresource or "status" in kind.subresources:
            new.pop("status", None)
            if "status" in status_of:
                new["status"] = copy.deepcopy(status_of["status"])
        for field in ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"):
            new["metadata"].pop(field, None)
            if field in old["metadata"]:
                new["metadata"][field] = old["metadata"][field]
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        if new == old:
            return copy.deepcopy(old)
        if {k: v for k, v in new.items() if k not in ("metadata", "status")} != {
            k: v for k, v in old.items() if k not in ("metadata", "status")
        }:
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        if dry_run:
            return new
        held = meta.namespace(new) and kind is POD and new.get("spec", {}).get("nodeName")
        if meta.deleting(new) and not new["metadata"].get("finalizers") and not held:
            self._put(kind, old, None)
            return new
        return copy.deepcopy(self._put(kind, old, new))

    def _put(self, kind: Kind, old: Obj | None, new: Obj | None) -> Obj:
        self._revision += 1
        kept = new if new is not None else copy.deepcopy(old or {})
        kept["metadata"]["resourceVersion"] = str(self._revision)
        key = self._key(kind, meta.name(kept), meta.namespace(kept))
        if new is None:
            del self._objects[key]
            self._history.append(_Change(self._revision, kind, kept, None))
        else:
            self._objects[key] = new
            self._history.append(_Change(self._revision, kind, old, new))
        self._wake()
        return kept

    def _wake(self) -> None:
        for news in self._news:
            news.set()


def _event(change: _Change, kind: Kind, namespace: str, selected: Predicate) -> WatchEvent | None:
    present = change.new if change.new is not None else change.old
    assert present is not None
    if change.kind.resource != kind.resource or (namespace and meta.namespace(present) != namespace):
        return None
    was = change.old is not None and selected(change.old)
    if change.new is not None and selected(change.new):
        return WatchEvent("MODIFIED" if was else "ADDED", copy.deepcopy(change.new))
    return WatchEvent("DELETED", copy.deepcopy(present)) if was else None


def _selection(labels: str, fields: str) -> Predicate:
    by_label, by_field = meta.parse_selector(labels), meta.parse_selector(fields)
    return lambda obj: by_label(meta.labels(obj)) and by_field(_flat(obj))  # type: ignore[arg-type]


def _flat(obj: Any, path: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in obj.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{path}{key}.")
        elif not isinstance(value, list):
            found[path + key] = str(value)
    return found


def _merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = target if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merge(result.get(key), value)
    return result
