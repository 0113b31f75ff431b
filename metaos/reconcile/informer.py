"""A local copy of one kind, kept up to date by list and watch.

Source: client-go ``tools/cache`` (reflector, store, indexer). List, then watch from the list's revision; a watch that
ends is taken up again where it was; 410 lists again. Every change is reported as (old, new), also what changed between
two lists, so callbacks never miss one. Bounds: the cache holds what the server has and no more; lists come in pages;
reconnecting backs off from 100 ms to 30 s.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from sys import intern

from metaos.client import Client, WatchEvent
from metaos.clock import Clock
from metaos.reconcile.workqueue import backoff_seconds
from metaos.resources import meta
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from metaos.resources.scheme import Kind

log = logging.getLogger(__name__)

#: What is kept of each object.
Keep = Callable[[Obj], Obj]
OnChange = Callable[[Obj | None, Obj | None], None]
IndexFunction = Callable[[Obj], Iterable[str]]

PAGE = 500
#: Where kubectl keeps the whole object as it was applied.
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_FIRST_SECONDS, _MOST_SECONDS = 0.1, 30.0
_GONE = 410

_Key = tuple[str, str]


class Informer:
    """Objects of ``kind`` (in ``namespace``, matching the selectors), as of a moment ago.

    Objects handed out are the cache's own: **never change them**, copy first (``copy.deepcopy``).
    """

    def __init__(
        self,
        client: Client,
        clock: Clock,
        random: Random,
        kind: Kind,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        keep: Keep | None = None,
    ) -> None:
        self.kind = kind
        self.namespace = namespace
        self._client = client
        self._clock = clock
        self._random = random
        self._labels = labels
        self._fields = fields
        self._keep: Keep = keep or (lambda obj: obj)
        self._objects: dict[_Key, Obj] = {}
        self._by_namespace: dict[str, dict[_Key, Obj]] = {}
        self._indexes: dict[str, tuple[IndexFunction, dict[str, dict[_Key, Obj]]]] = {}
        self._callbacks: list[OnChange] = []
        self._synced = asyncio.Event()
        self._revision = ""
        self._progress = False

    def get(self, name: str, namespace: str = "") -> Obj | None:
        """The cached object, or ``None``."""
        return self._objects.get((namespace, name))

    def list(self, namespace: str = "") -> builtins.list[Obj]:
        """All cached objects, or those of one namespace, ordered by (namespace, name)."""
        return _ordered(self._by_namespace.get(namespace, {}) if namespace else self._objects)

    def by_index(self, index_name: str, value: str) -> builtins.list[Obj]:
        """The objects for which the index function yielded ``value``, ordered by (namespace, name)."""
        return _ordered(self._indexes[index_name][1].get(value, {}))

    def add_index(self, name: str, fn: IndexFunction) -> None:
        """Keep an index, also of what is cached already; adding the same name again does nothing."""
        if name not in self._indexes:
            index: dict[str, dict[_Key, Obj]] = {}
            self._indexes[name] = (fn, index)
            for key, obj in self._objects.items():
                _index(index, _values(fn, obj), key, obj)

    def on_change(self, callback: OnChange) -> None:
        """Call ``callback(old, new)`` after every change (``old`` None: added; ``new`` None: gone), and at once for what
        is cached already. The cache holds ``new`` by then. Callbacks run in the event loop and must not block."""
        self._callbacks.append(callback)
        for obj in self.list():
            self._tell(callback, None, obj)

    async def synced(self) -> None:
        """Returns once the first list is in the cache and was reported."""
        await self._synced.wait()

    @property
    def resource_version(self) -> str:
        """Up to where the cache has followed the server."""
        return self._revision

    async def run(self) -> None:
        """Follow the server until cancelled. The manager calls this."""
        failures = 0
        while True:
            began = self._clock.monotonic()
            self._progress = False
            try:
                if not self._revision:
                    await self._list()
                await self._watch()
            except Exception as error:
                if isinstance(error, ApiError) and error.code == _GONE:
                    self._revision = ""
                    log.info("%s: too far behind to go on watching, listing again", self.kind.resource)
                else:
                    log.warning("%s: cannot follow the server, trying again: %s", self.kind.resource, error or repr(error))
            # A watch that ends is ordinary; one that ends at once, again and again, must not become a busy loop.
            lasted = self._clock.monotonic() - began
            failures = 1 if self._progress or lasted >= _MOST_SECONDS else failures + 1
            await self._clock.sleep(backoff_seconds(failures, self._random.random(), _FIRST_SECONDS, _MOST_SECONDS))

    async def _list(self) -> None:
        found: dict[_Key, Obj] = {}
        token = ""
        while True:
            page = await self._client.list(
                self.kind, self.namespace, labels=self._labels, fields=self._fields, limit=PAGE, continue_token=token
            )
            for obj in page.items:
                # Items of a list come without their type where a server leaves it out.
                obj.setdefault("apiVersion", self.kind.api_version)
                obj.setdefault("kind", self.kind.kind)
                found[_key(obj)] = self._keep(obj)
            token = page.continue_token
            if not token:
                break
        for key in [k for k in self._objects if k not in found]:
            self._change(key, None)
        for key, obj in found.items():
            before = self._objects.get(key)
            if before is None or meta.resource_version(before) != meta.resource_version(obj):
                self._change(key, obj)
        self._revision = page.resource_version
        self._synced.set()

    async def _watch(self) -> None:
        """Until the server ends it."""
        events = self._client.watch(
            self.kind, self.namespace, resource_version=self._revision, labels=self._labels, fields=self._fields
        )
        async with _closing(events):
            async for event in events:
                self._follow(event)
                self._progress = True

    def _follow(self, event: WatchEvent) -> None:
        if event.type == "ERROR":
            raise ApiError.of(event.object)
        if event.type != "BOOKMARK":
            key = _key(event.object)
            if event.type == "DELETED":
                self._change(key, None, last=event.object)
            else:
                self._change(key, self._keep(event.object))
        self._revision = meta.resource_version(event.object) or self._revision

    def _change(self, key: _Key, new: Obj | None, last: Obj | None = None) -> None:
        old = self._objects.pop(key, None)
        if old is not None:
            _unindex(self._by_namespace, (key[0],), key)
        for fn, index in self._indexes.values():
            if old is not None:
                _unindex(index, _values(fn, old), key)
            if new is not None:
                _index(index, _values(fn, new), key, new)
        if new is not None:
            self._objects[key] = new
            _index(self._by_namespace, (key[0],), key, new)
        elif old is None:
            return
        for callback in self._callbacks:
            # Of what is gone the last state counts, not the last one that was seen.
            self._tell(callback, old if new is not None else last or old, new)

    def _tell(self, callback: OnChange, old: Obj | None, new: Obj | None) -> None:
        try:
            callback(old, new)
        except Exception:
            # One faulty callback must not stop the cache for all others.
            seen = new if new is not None else old or {}
            log.exception("%s %s/%s: callback failed", self.kind.resource, meta.namespace(seen), meta.name(seen))


def metadata_only(obj: Obj) -> Obj:
    """An object without its content, and without what only writers need to know."""
    metadata = {k: v for k, v in obj["metadata"].items() if k != "managedFields"}
    if LAST_APPLIED in meta.annotations(obj):
        metadata["annotations"] = {k: v for k, v in metadata["annotations"].items() if k != LAST_APPLIED}
    if "namespace" in metadata:
        metadata["namespace"] = intern(metadata["namespace"])
    # Of words that all have in common one copy is enough.
    return {"apiVersion": intern(obj["apiVersion"]), "kind": intern(obj["kind"]), "metadata": metadata}


def _key(obj: Obj) -> _Key:
    return meta.namespace(obj), meta.name(obj)


def _ordered(found: dict[_Key, Obj]) -> list[Obj]:
    return [found[key] for key in sorted(found)]


def _values(fn: IndexFunction, obj: Obj) -> Iterable[str]:
    try:
        return set(fn(obj))
    except Exception:
        # An index that cannot read one object must not stop the cache for all others.
        log.exception("%s %s/%s: index function failed", obj.get("kind"), meta.namespace(obj), meta.name(obj))
        return ()


def _index(index: dict[str, dict[_Key, Obj]], values: Iterable[str], key: _Key, obj: Obj) -> None:
    for value in values:
        index.setdefault(value, {})[key] = obj


def _unindex(index: dict[str, dict[_Key, Obj]], values: Iterable[str], key: _Key) -> None:
    for value in values:
        held = index.get(value)
        if held is not None:
            held.pop(key, None)
            if not held:
                del index[value]


@contextlib.asynccontextmanager
async def _closing(events: AsyncIterator[WatchEvent]) -> AsyncIterator[None]:
    """A watch is closed in its own task, also when this one is cancelled: an async generator left to the garbage
    collector would keep its connection."""
    try:
        yield
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
