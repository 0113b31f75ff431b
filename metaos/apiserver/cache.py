"""The watch cache: every current object as encoded bytes, and a bounded window of the latest events.

One task follows the store; reads and watches are answered from here. Objects are kept encoded, once for all readers;
who needs a dictionary decodes a copy of their own (orjson: about 5 µs per kB), so nobody can change another's.
Bounds: ``WINDOW_EVENTS`` events and ``WINDOW_BYTES`` bytes over all resources; the one that has most gives its oldest. A
watcher holds no buffer: it walks the window, or the part of it that is about its namespace or node, and is told 410 where
the window has left it behind.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from operator import attrgetter
from sys import intern
from typing import Any

import orjson

from metaos.client import WatchEvent
from metaos.resources import errors, scheme
from metaos.resources.meta import Obj
from metaos.store.log import Compacted, EventType, LogEvent, Store, StoreUnreachable

WINDOW_EVENTS = 10_000
WINDOW_BYTES = 64 << 20

#: Paths that field selectors may use beside ``metadata.name`` and ``metadata.namespace``, by resource.
FIELDS: dict[str, tuple[str, ...]] = {
    "pods": (
        "spec.nodeName",
        "status.phase",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    "events": (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    "secrets": ("type",),
    "services": ("spec.clusterIP", "spec.type"),
    "namespaces": ("status.phase",),
    "nodes": ("spec.unschedulable",),
    "clusters.meta-os.eu": ("spec.unschedulable", "spec.tier", "spec.runtime"),
    "replicasets.apps": ("status.replicas",),
    "replicationcontrollers": ("status.replicas",),
    "jobs.batch": ("status.successful",),
    "certificatesigningrequests.certificates.k8s.io": ("spec.signerName",),
    "placements.meta-os.eu": ("spec.workloadRef.kind", "spec.workloadRef.name", "spec.workloadRef.uid"),
    "intents.meta-os.eu": ("status.fulfilment",),
}


#: What is called otherwise than it is written.
_WRITTEN = {"status.successful": "status.succeeded"}
#: What an absent field is; empty text otherwise, as in Kubernetes.
_ABSENT = {"spec.unschedulable": "false", "spec.hostNetwork": "false", "status.successful": "0", "status.replicas": "0"}


def field_values(resource: str, obj: Obj) -> dict[str, str]:
    """What field selectors see of an object."""
    metadata = obj.get("metadata") or {}
    found = {"metadata.name": metadata.get("name") or "", "metadata.namespace": metadata.get("namespace") or ""}
    for path in FIELDS.get(resource, ()):
        value: Any = obj
        for part in _WRITTEN.get(path, path).split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, bool):
            value = "true" if value else "false"
        if isinstance(value, dict):  # Event "source" selects on its component.
            value = value.get("component")
        if value is None:
            value = _ABSENT.get(path, "")
        found[path] = str(value)
    return found


def with_revision(value: bytes, revision: int) -> bytes:
    """Stored JSON with ``metadata.resourceVersion`` put in. Stored metadata is never empty."""
    head, found, tail = value.partition(b'"metadata":{')
    if found and head.count(b"{") == 1:
        return b'%b"metadata":{"resourceVersion":"%d",%b' % (head, revision, tail)
    obj = orjson.loads(value)
    obj.setdefault("metadata", {})["resourceVersion"] = str(revision)
    return orjson.dumps(obj)


def decode(encoded: bytes) -> Obj:
    """A fresh dictionary, the caller's own."""
    obj: Obj = orjson.loads(encoded)
    return obj


#: One for all objects without labels.
_NONE: dict[str, str] = {}


class Version:
    """One object as one revision wrote it. What selectors see of it is decoded when one asks, and kept."""

    __slots__ = ("_labels", "_node", "_values", "encoded", "key", "revision")

    def __init__(self, key: str, value: bytes, revision: int) -> None:
        self.key = key
        self.revision = revision
        self.encoded = with_revision(value, revision)
        self._labels: dict[str, str] | None = None
        self._values: dict[str, str] | None = None
        self._node: str | None = None

    @property
    def namespace(self) -> str:
        return self.key.split("/", 2)[1]

    @property
    def name(self) -> str:
        return self.key.split("/", 2)[2]

    @property
    def labels(self) -> dict[str, str]:
        if self._labels is None:
            self._see()
        return self._labels or {}

    def field_values(self) -> dict[str, str]:
        if self._values is None:
            self._see()
        return self._values or {}

    @property
    def node(self) -> str:
        """Where a Pod is. Kept by itself, as it is asked of all Pods, and the other fields of few."""
        if self._node is None:
            self._node = intern((self.object().get("spec") or {}).get("nodeName") or "")
        return self._node

    def _see(self) -> None:
        obj = self.object()
        self._labels = obj["metadata"].get("labels") or _NONE
        self._values = field_values(self.key.partition("/")[0], obj)

    def object(self) -> Obj:
        return decode(self.encoded)


class EncodedEvent(WatchEvent):
    """A watch event whose object is decoded only where it is asked for; ``encoded`` is the object's JSON."""

    __slots__ = ("_object", "encoded")

    def __init__(self, type: str, encoded: bytes) -> None:
        object.__setattr__(self, "type", type)
        object.__setattr__(self, "encoded", encoded)
        object.__setattr__(self, "_object", None)

    encoded: bytes
    _object: Obj | None

    @property
    def object(self) -> Obj:
        """Decoded once per event and watcher."""
        if self._object is None:
            object.__setattr__(self, "_object", decode(self.encoded))
        found: Obj = self._object  # type: ignore[assignment]
        return found

    @property
    def line(self) -> bytes:
        """The event as one line of a watch response."""
        return b'{"type":"%b","object":%b}\n' % (self.type.encode(), self.encoded)


class Change:
    """One event of the window. ``now`` is ``None`` after a delete; ``last`` then carries the delete's revision."""

    __slots__ = ("before", "now", "revision")

    def __init__(self, revision: int, now: Version | None, before: Version | None) -> None:
        self.revision = revision
        self.now = now
        self.before = before

    def deleted(self) -> bytes:
        """The last state, with the delete's revision as its resourceVersion."""
        if self.before is None:
            raise errors.internal("a delete event without a previous object")
        old = b'"resourceVersion":"%d"' % self.before.revision
        return self.before.encoded.replace(old, b'"resourceVersion":"%d"' % self.revision, 1)

    def size(self) -> int:
        return len(self.now.encoded if self.now else b"") + 200


_revision = attrgetter("revision")
#: No character comes after this one.
_LAST = chr(0x10FFFF)
#: Before the name of a node among the topics of watchers; no namespace begins so.
NODE = "@"


def _nodes(change: Change) -> tuple[str, ...]:
    """Topics of the watchers of the nodes where a Pod is and was."""
    now, before = (version.node if version is not None else "" for version in (change.now, change.before))
    if now == before:
        return (f"{NODE}{now}",) if now else ()
    return tuple(f"{NODE}{node}" for node in (now, before) if node)


class Resource:
    """All objects of one kind, in key order, with their part of the window."""

    __slots__ = (
        "at_node",
        "by_node",
        "changes",
        "endings",
        "floor",
        "keys",
        "lent",
        "objects",
        "parts",
        "revision",
        "size",
        "ticked",
        "waiters",
    )

    def __init__(self, *, by_node: bool = False) -> None:
        self.objects: dict[str, Version] = {}
        self.keys: list[str] = []
        self.changes: deque[Change] = deque()
        #: Their size, in bytes.
        self.size = 0
        #: The same by namespace and node: thousands of sites that go on watching each walk their own. None is empty. Lists, as
        #: most are short; the window bounds what is taken from the front of a long one.
        self.parts: dict[str, list[Change]] = {}
        #: Whether objects are at nodes, as Pods are, and the keys of each node's.
        self.by_node = by_node
        self.at_node: dict[str, set[str]] = {}
        #: Of each who goes through all in turns: what has been replaced since, by what was there.
        self.lent: list[dict[str, Version | None]] = []
        #: Events up to this revision may have left the window.
        self.floor = 0
        #: Above this revision nothing has changed.
        self.revision = 0
        #: Watchers that have seen all, by the namespace or node that they watch ("": all); each is told up to where that still
        #: holds.
        self.waiters: dict[str, list[asyncio.Future[int]]] = {}
        #: Those of them that asked for bookmarks, with what they watch.
        self.ticked: dict[asyncio.Future[int], str] = {}
        #: How often the kind has ceased to be served.
        self.endings = 0

    def load(self, objects: dict[str, Version], revision: int) -> None:
        """These are all, and what happened before is not known."""
        self.objects, self.keys = objects, sorted(objects)
        self.lent.clear()
        self.changes.clear()
        self.parts.clear()
        self.at_node.clear()
        self.size = 0
        if self.by_node:
            for key, version in objects.items():
                if version.node:
                    self.at_node.setdefault(version.node, set()).add(key)
        # What was deleted until then is not seen: any of them may have changed.
        self.floor = self.revision = revision

    def put(self, key: str, now: Version | None) -> Version | None:
        """``now`` takes the place of what was there, which is returned; ``None`` is a delete."""
        before = self.objects.get(key)
        for replaced in self.lent:
            replaced.setdefault(key, before)
        if now is not None:
            self.objects[key] = now
            if before is None:
                insort(self.keys, key)
        elif before is not None:
            del self.objects[key]
            del self.keys[bisect_left(self.keys, key)]
        if self.by_node and (was := before.node if before else "") != (now.node if now else ""):
            if was:
                held = self.at_node[was]
                held.discard(key)
                if not held:
                    del self.at_node[was]
            if now is not None and now.node:
                self.at_node.setdefault(now.node, set()).add(key)
        return before

    def in_turns(self, after: str, end: str, count: int) -> Generator[list[Version], None, None]:
        """Objects with keys between the two, as of the first ``next``, ``count`` at a time or a few more or less."""
        keys, objects = self.keys, self.objects
        replaced: dict[str, Version | None] = {}
        self.lent.append(replaced)
        try:
            while True:
                start, stop = bisect_right(keys, after), bisect_left(keys, end)
                some = keys[start : min(start + count, stop)]
                upto = some[-1] if start + count < stop else end
                # What was deleted meanwhile was there; what came was not.
                gone = [k for k, was in replaced.items() if was is not None and k not in objects and after < k <= upto]
                found = (replaced[k] if k in replaced else objects[k] for k in (sorted(some + gone) if gone else some))
                yield [version for version in found if version is not None]
                if upto == end:
                    return
                after = upto
        finally:
            self.lent = [each for each in self.lent if each is not replaced]

    def append(self, change: Change) -> tuple[str, ...]:
        """The topics that it concerns, beside "": all."""
        self.changes.append(change)
        self.size += change.size()
        topics = self._topics(change)
        for topic in topics:
            part = self.parts.get(topic)
            if part is None:
                self.parts[topic] = [change]
            else:
                part.append(change)
        return topics

    def drop(self) -> int:
        """Forgets the oldest change, and returns its size."""
        change = self.changes.popleft()
        self.floor = change.revision
        for topic in self._topics(change):
            part = self.parts[topic]
            if len(part) == 1:
                del self.parts[topic]
            else:
                del part[0]
        size = change.size()
        self.size -= size
        return size

    def _topics(self, change: Change) -> tuple[str, ...]:
        """The same at all times."""
        some = change.now or change.before
        where = some.namespace if some is not None else ""
        nodes = _nodes(change) if self.by_node else ()
        return (where, *nodes) if where else nodes

    def next(self, revision: int, topic: str = "") -> Change | None:
        """The first change above ``revision``: one, so that who takes them slowly keeps nothing else of the past alive."""
        changes = self.parts.get(topic, ()) if topic else self.changes
        if not changes or changes[-1].revision <= revision:
            return None
        if len(changes) == 1 or changes[-2].revision <= revision:
            return changes[-1]
        return changes[bisect_right(changes, revision, key=_revision)]

    def forget(self, namespace: str, waiter: asyncio.Future[int]) -> None:
        waiting = self.waiters.get(namespace, [])
        if waiter in waiting:
            waiting.remove(waiter)
        if not waiting:
            self.waiters.pop(namespace, None)

    def wake(self, seen: int, namespaces: Iterable[str] = ()) -> None:
        """Wakes the watchers of ``namespaces``, or all: up to revision ``seen`` there is nothing for them."""
        for namespace in namespaces or tuple(self.waiters):
            for waiter in self.waiters.pop(namespace, ()):
                if not waiter.done():
                    waiter.set_result(seen)


class WatchCache:
    """Follows ``store``. ``revision`` is how far it has come. ``shared``: others write to the store, too, and a read sees what
    they were acknowledged."""

    def __init__(
        self, store: Store, *, shared: bool = False, window_events: int = WINDOW_EVENTS, window_bytes: int = WINDOW_BYTES
    ) -> None:
        self._store, self._shared = store, shared
        self._window_events = window_events
        self._window_bytes = window_bytes
        self._resources: dict[str, Resource] = {}
        self._events = self._bytes = 0
        self._floor = 0
        self._definitions = self.resource(scheme.CUSTOM_RESOURCE_DEFINITION.resource)
        self.revision = 0
        self._written = 0
        self._reached: list[tuple[int, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._ticks = 0
        #: How often all was loaded.
        self._loads = 0
        self.closed = False
        self.failure: BaseException | None = None

    # -- following the store -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Loads the objects and, where the store still has them, the latest events, so that watchers can go on where
        they were before a restart. Returns when it has caught up."""
        latest = await self._store.revision()
        await self._load(max(0, latest - self._window_events))
        self._task = asyncio.create_task(self._follow(), name="watch-cache")
        await self._reach(latest)

    async def _load(self, revision: int) -> None:
        try:
            # Revision 0 would mean "now": nothing had been written then, so there is nothing to load.
            listing = await self._store.list("", revision=revision) if revision else None
        except Compacted as compacted:
            revision = compacted.oldest
            listing = await self._store.list("", revision=revision)
        self._events = self._bytes = 0
        self._floor = self.revision = revision
        self._loads += 1
        found: dict[str, dict[str, Version]] = {}
        for entry in listing.entries if listing else ():
            found.setdefault(entry.key.partition("/")[0], {})[entry.key] = Version(entry.key, entry.value, entry.revision)
        for name in found:
            self.resource(name)
        for name, resource in self._resources.items():
            resource.load(found.get(name, {}), revision)

    async def _follow(self) -> None:
        try:
            while not self.closed:
                # The store itself waits for a database that is away.
                with contextlib.suppress(StoreUnreachable):
                    try:
                        async for event in self._store.watch("", after=self.revision):
                            self._apply(event)
                        return
                    except Compacted:
                        await self._start_over()
        except asyncio.CancelledError:
            raise
        except BaseException as failure:
            self.failure = failure
            raise
        finally:
            self.closed = True
            self._wake_all()
            self._release()

    async def _start_over(self) -> None:
        """Fallen behind the store's own bound, or the store is an older copy of itself: watchers are told 410."""
        promised = self._written
        latest = await self._store.revision()
        with contextlib.suppress(Compacted):  # Twice in a row: the next watch says so, and it is tried again.
            await self._load(latest)
            if latest < promised:
                # What was acknowledged is gone. Nobody waits for it.
                self._written = latest
                lost, self._reached = self._reached, []
                for _, future in lost:
                    if not future.done():
                        future.set_result(None)
            self._wake_all(seen=0)
            self._release()

    def _apply(self, event: LogEvent) -> None:
        resource = self.resource(event.key.partition("/")[0])
        now = None if event.type is EventType.DELETE else Version(event.key, event.value, event.revision)
        before = resource.put(event.key, now)
        self.revision = resource.revision = event.revision
        if now is None and before is not None and resource is self._definitions:
            self._end(before.name)
        if now is not None or before is not None:
            change = Change(event.revision, now, before)
            topics = resource.append(change)
            self._events += 1
            self._bytes += change.size()
            self._make_room()
            # Nobody is bothered with what happens in other namespaces, or at other sites: sites have one each.
            resource.wake(event.revision - 1, ("", *topics))
        if self._reached:
            self._release()

    def _make_room(self) -> None:
        """The kind that has most of the window gives its oldest: a thousand heartbeats a second push out nothing but heartbeats,
        and who was away for a minute still finds the few changes of its own."""
        if self._events > self._window_events:
            most = max(self._resources.values(), key=lambda resource: len(resource.changes))
            # Some at once, as it is dear to see who has most.
            for _ in range(min(len(most.changes), 1 + self._window_events // 100)):
                self._bytes -= most.drop()
                self._events -= 1
        while self._bytes > self._window_bytes:
            self._bytes -= max(self._resources.values(), key=lambda resource: resource.size).drop()
            self._events -= 1

    def _end(self, resource: str) -> None:
        """Watches of what a deleted definition had defined end: who goes on asks again, and is told 404."""
        held = self._resources.get(resource)
        if held is not None:
            held.endings += 1
            held.wake(self.revision)

    def _release(self) -> None:
        waiting, self._reached = self._reached, []
        for revision, future in waiting:
            if revision <= self.revision or self.closed:
                if not future.done():
                    future.set_result(None)
            else:
                self._reached.append((revision, future))

    def _wake_all(self, seen: int | None = None) -> None:
        for resource in self._resources.values():
            resource.wake(self.revision if seen is None else seen)

    async def close(self) -> None:
        self.closed = True
        self._wake_all()
        self._release()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._task

    # -- reading -------------------------------------------------------------------------------------------

    def written(self, revision: int) -> None:
        """An acknowledged write: later reads wait until they can see it."""
        self._written = max(self._written, revision)

    async def fresh(self) -> None:
        """Returns when every acknowledged write can be seen. Raises ``ApiError`` 503 where a shared store cannot be asked."""
        if self._shared:
            try:
                self.written(await self._store.revision())
            except StoreUnreachable as away:
                raise errors.unavailable(f"{away}; try again") from None
        await self.settled()

    async def settled(self) -> None:
        """Returns when this hub's own acknowledged writes can be seen, whatever the store does."""
        if self.revision < self._written:
            await self._reach(self._written)

    async def _reach(self, revision: int) -> None:
        if self.revision < revision and not self.closed:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._reached.append((revision, future))
            await future
        if self.revision < revision:
            why = "the API server is stopping" if self.closed else "the store is an older copy of itself by now"
            raise errors.unavailable(f"{why}; try again")

    def resource(self, name: str) -> Resource:
        found = self._resources.get(name)
        if found is None:
            found = self._resources[name] = Resource(by_node=name == scheme.POD.resource)
            found.floor = found.revision = self._floor
        return found

    def get(self, key: str) -> Version | None:
        return self.resource(key.partition("/")[0]).objects.get(key)

    def range(self, resource: str, namespace: str = "", *, after: str = "", stem: str = "") -> Iterator[Version]:
        """In key order: of one namespace or of all, after key ``after``. ``stem``: of one namespace, or of a kind that has none,
        those whose names begin so. To be consumed before anything is awaited."""
        held = self.resource(resource)
        start, end = self._bounds(held, resource, namespace, after)
        if stem:
            first = f"{resource}/{namespace}/{stem}"
            start = bisect_left(held.keys, first, lo=start, hi=end)
            end = bisect_left(held.keys, first + _LAST, lo=start, hi=end)
        # Without a copy: who pages through a million takes 500.
        return map(held.objects.__getitem__, map(held.keys.__getitem__, range(start, end)))

    def in_turns(
        self, resource: str, namespace: str = "", *, after: str = "", count: int
    ) -> Generator[list[Version], None, None]:
        """As :meth:`range`, ``count`` at a time, all as of the first of them: others may write while it is gone through. To be
        closed."""
        first = f"{resource}/{namespace}" if namespace else resource
        return self.resource(resource).in_turns(max(after, f"{first}/"), f"{first}0", count)  # "0" follows "/"

    def at_node(self, resource: str, node: str, *, after: str = "") -> Iterator[Version]:
        """As :meth:`range`, of the Pods that are at a node."""
        held = self.resource(resource)
        return map(held.objects.__getitem__, sorted(key for key in held.at_node.get(node, ()) if key > after))

    def count_at_node(self, resource: str, node: str) -> int:
        """How many :meth:`at_node` has."""
        held = self.resource(resource)
        return len(held.at_node.get(node, ()))

    def count(self, resource: str, namespace: str = "", *, after: str = "") -> int:
        """How many :meth:`range` has."""
        start, end = self._bounds(self.resource(resource), resource, namespace, after)
        return end - start

    @staticmethod
    def _bounds(held: Resource, resource: str, namespace: str, after: str) -> tuple[int, int]:
        keys = held.keys
        start, end = 0, len(keys)
        if namespace:
            start = bisect_left(keys, f"{resource}/{namespace}/")
            end = bisect_left(keys, f"{resource}/{namespace}0", lo=start)  # "0" follows "/"
        if after:
            start = min(bisect_right(keys, after, lo=start), end)
        return start, end

    def tick(self) -> None:
        """Lets watchers that asked for bookmarks send one. Nobody else is bothered: of a thousand sites' watches most have no
        news for hours."""
        self._ticks += 1
        for resource in self._resources.values():
            for waiter, topic in list(resource.ticked.items()):
                resource.forget(topic, waiter)
                if not waiter.done():
                    waiter.set_result(self.revision)

    async def changes(
        self, resource: str, after: int, namespace: str = "", node: str = "", bookmarks: bool = True
    ) -> AsyncGenerator[Change | int, None]:
        """Changes with a revision above ``after``, in order; a number is a bookmark: all up to it has been seen. With a
        ``namespace``, or a ``node`` (of Pods that are or were there), its changes alone. ``bookmarks``: also where there is no
        change. Ends when the cache closes, and when the definition of what is watched is deleted. Raises
        ``ApiError`` 410 when the window has gone on."""
        held = self.resource(resource)
        ticks, loads, topic = self._ticks, self._loads, f"{NODE}{node}" if node else namespace
        endings = held.endings
        while True:
            # Taken again on every round: nothing is awaited between the check of the floor and the copy.
            if after < held.floor or loads != self._loads:
                raise errors.expired(f"too old resource version: {after} ({held.floor})")
            change = held.next(after, topic)
            if change is not None:
                after = change.revision
                yield change
                continue
            if self.closed or endings != held.endings:
                return
            after = max(after, self.revision)
            if bookmarks and ticks != self._ticks:
                ticks = self._ticks
                yield after
                continue
            waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            held.waiters.setdefault(topic, []).append(waiter)
            if bookmarks:
                held.ticked[waiter] = topic
            try:
                after = max(after, await waiter)
            finally:
                held.ticked.pop(waiter, None)
                if not waiter.done() or waiter.cancelled():
                    held.forget(topic, waiter)
