"""Reads of the registry: get, list and watch from the watch cache, and who may do what."""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import orjson

from metaos.apiserver import nodes, subresources, views
from metaos.apiserver.addressing import key_of, stored_kind
from metaos.apiserver.cache import FIELDS, Change, EncodedEvent, Version, WatchCache
from metaos.apiserver.catalogue import Catalogue
from metaos.apiserver.customkind import CustomKind
from metaos.apiserver.transfer import PART_BYTES
from metaos.client import ObjList
from metaos.clock import Clock
from metaos.resources import errors, scheme
from metaos.resources.meta import Obj, cluster_namespace, parse_selector
from metaos.resources.scheme import Kind
from metaos.security.authz import MASTERS, Attributes, Decision, UserInfo, read_problem
from metaos.store.log import Compacted, Store

Authorizer = Callable[[UserInfo, Attributes], Decision]
Test = Callable[[Version], bool]


class Source(Protocol):
    """Where the objects of a kind come from that is not stored (``metrics.k8s.io``)."""

    async def get(self, name: str, namespace: str) -> Obj | None: ...

    async def list(self, namespace: str) -> list[Obj]: ...


#: Objects that are gone through in one turn of the event loop, where each is decoded: some 5 ms. Others have their turn then.
TURN_OBJECTS = 512
#: So many where nothing is done but to take them.
TURN_TAKEN = 16_384


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list, encoded. ``token`` leads to the next; ``left``: how many are there (-1: not counted)."""

    items: list[bytes]
    revision: int
    token: str
    left: int

    def metadata(self) -> Obj:
        found: Obj = {"resourceVersion": str(self.revision)}
        if self.token:
            found["continue"] = self.token
            if self.left >= 0:
                found["remainingItemCount"] = self.left
        return found

    def encoded(self, kind: Kind) -> bytes:
        """The whole ``…List``."""
        return b"".join(self.parts(kind))

    def size(self, kind: Kind) -> int:
        """Of :meth:`encoded`."""
        return len(self._head(kind)) + sum(map(len, self.items)) + max(0, len(self.items) - 1) + 2

    def _head(self, kind: Kind) -> bytes:
        head = f'{{"kind":"{kind.list_kind}","apiVersion":"{kind.api_version}","metadata":'.encode()
        return b"".join((head, orjson.dumps(self.metadata()), b',"items":['))

    def parts(self, kind: Kind) -> Iterator[bytes]:
        """The same in parts of :data:`PART_BYTES`, or of one object that is larger."""
        yield self._head(kind)
        start = size = 0
        for end, item in enumerate(self.items, 1):
            size += len(item)
            if size >= PART_BYTES or end == len(self.items):
                yield (b"," if start else b"") + b",".join(self.items[start:end])
                start, size = end, 0
        yield b"]}"


#: Kinds of which some may read only what is their own.
_PARTLY_READ = (scheme.POD, scheme.CERTIFICATE_SIGNING_REQUEST)


class Reading:
    """The part of the registry that changes nothing."""

    def __init__(self, cache: WatchCache, store: Store, clock: Clock, authorizer: Authorizer) -> None:
        self.cache = cache
        self._clock = clock
        self.kinds = Catalogue(cache)
        self._source = store
        self._authorizer = authorizer
        self.sources: dict[Kind, Source] = {}

    # -- who may -------------------------------------------------------------------------------------------

    def authorize(self, user: UserInfo, attributes: Attributes) -> Decision:
        """For what is no object too: ``path`` URLs (/metrics), log, exec, portforward, proxy and tunnel."""
        return self._authorizer(user, attributes)

    def check(self, user: UserInfo, attributes: Attributes) -> None:
        """:meth:`authorize`, raising the 403."""
        decision = self._authorizer(user, attributes)
        if decision.allowed:
            return
        a = attributes
        if a.path:
            why = f'forbidden: User "{user.name}" cannot {a.verb} path "{a.path}"'
            raise errors.ApiError(403, "Forbidden", f"{why}: {decision.reason}" if decision.reason else why)
        what = f"{a.resource}/{a.subresource}" if a.subresource else a.resource
        where = f' in the namespace "{a.namespace}"' if a.namespace else " at the cluster scope"
        why = f'User "{user.name}" cannot {a.verb} resource "{what}" in API group "{a.group}"{where}'
        raise errors.forbidden(a.group, a.resource, a.name, f"{why}: {decision.reason}" if decision.reason else why)

    async def check_now(self, user: UserInfo, attributes: Attributes) -> None:
        """:meth:`check` with the rights that every acknowledged write has left, also another hub's; what is read after it is as
        new. Raises ``ApiError``."""
        await self.cache.fresh()
        self.check(user, attributes)

    # -- get -----------------------------------------------------------------------------------------------

    async def get(self, user: UserInfo, kind: Kind, name: str, namespace: str = "", *, subresource: str = "") -> Obj:
        """``subresource``: ``status``, or ``scale`` (answers an autoscaling/v1 Scale)."""
        version = await self._get(user, kind, name, namespace, subresource)
        obj = decoded(kind, version)
        view = views.of(kind)
        if view is not None:
            return view.show(obj)
        return subresources.scale(kind, obj) if subresource == "scale" else obj

    async def get_encoded(self, user: UserInfo, kind: Kind, name: str, namespace: str = "") -> bytes:
        """The object's JSON, without decoding it."""
        version = await self._get(user, kind, name, namespace, "")
        return _encoded(kind, version)

    async def _get(self, user: UserInfo, kind: Kind, name: str, namespace: str, subresource: str) -> Version:
        await self.check_now(user, Attributes("get", kind.group, kind.plural, subresource, namespace, name))
        version = self.cache.get(key_of(stored_kind(kind), namespace, name))
        source = self.sources.get(kind)
        if source is not None and (obj := await source.get(name, namespace)):
            version = _made(kind, obj, self.cache.revision)
        if version is None and kind is scheme.LEASE and namespace == nodes.LEASES:
            held = self.cache.get(key_of(kind, cluster_namespace(name), name))
            version = held and _made(kind, nodes.lease(held.object()), self.cache.revision)
        if version is None:
            raise errors.not_found(kind.group, kind.plural, name)
        if (
            MASTERS not in user.groups
            and kind in _PARTLY_READ
            and (problem := read_problem(user, kind.resource, version.object()))
        ):
            raise errors.forbidden(kind.group, kind.plural, name, problem)
        return version

    # -- list ----------------------------------------------------------------------------------------------

    async def _selected(
        self, kind: Kind, namespace: str, labels: str, fields: str, *, after: str = "", most: int = 0
    ) -> list[Version]:
        """Objects that match, in key order, ``most`` at most, all as of the moment of the call: others have their turns while
        many are gone through. Raises ``ApiError`` 400 where a selector is none."""
        matches = selector(kind, labels, fields)
        where = namespace if kind.namespaced else ""
        chosen: list[Version] = []
        if node := node_of(kind, where, fields):
            chosen += filter(matches, self.cache.at_node(kind.resource, node, after=after))
            return chosen[:most] if most else chosen
        plain = not labels and not fields
        count = TURN_TAKEN if plain else TURN_OBJECTS
        held = self.cache.in_turns(stored_kind(kind).resource, where, after=after, count=min(count, most) if most else count)
        with contextlib.closing(held) as turns:
            for turn, some in enumerate(turns):
                if turn:
                    await self._clock.sleep(0)
                chosen += some if plain else filter(matches, some)
                if most and len(chosen) >= most:
                    return chosen[:most]
        return chosen

    async def _shown(self, kind: Kind, versions: list[Version]) -> list[bytes]:
        """Encoded, as ``kind`` shows them."""
        items: list[bytes] = []
        plain = _is_plain(kind)
        turn = TURN_TAKEN if plain else TURN_OBJECTS
        for start in range(0, len(versions), turn):
            if start:
                await self._clock.sleep(0)
            some = versions[start : start + turn]
            items += [version.encoded for version in some] if plain else [_encoded(kind, version) for version in some]
        return items

    async def _page(
        self,
        user: UserInfo,
        kind: Kind,
        namespace: str,
        labels: str,
        fields: str,
        limit: int,
        continue_token: str,
        resource_version: str,
        resource_version_match: str,
    ) -> tuple[list[bytes], int, str, int]:
        """Encoded items, their revision, the token of the next page, and how many are left (-1: not counted)."""
        await self.check_now(user, Attributes("list", kind.group, kind.plural, "", namespace, fields=fields))
        source = self.sources.get(kind)
        if source is not None:
            matches, revision = selector(kind, labels, fields), self.cache.revision
            made = (_made(kind, obj, revision) for obj in await source.list(namespace))
            return [version.encoded for version in made if matches(version)], revision, "", 0
        asked = revision_number(resource_version)
        if asked > self.cache.revision:
            raise errors.ApiError(
                504,
                "Timeout",
                f"Too large resource version: {asked}, current: {self.cache.revision}",
                details={
                    "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                    "retryAfterSeconds": 1,
                },
            )
        revision, after = _position(continue_token) if continue_token else (asked, "")
        if revision == _NOW:
            revision = self.cache.revision
        elif revision > self.cache.revision:
            raise errors.bad_request("continue key is not valid: it lies ahead; start a new list without the continue parameter")
        exact = resource_version_match == "Exact" and asked
        stored = stored_kind(kind).resource
        if (continue_token or exact) and revision < self.cache.resource(stored).revision:
            return await self._old_page(kind, namespace, labels, fields, limit, revision, after)
        # The cache is at this revision, or nothing of this kind has changed since.
        revision = revision if continue_token or exact else self.cache.revision
        count = -1 if labels or fields else self.cache.count(stored, namespace if kind.namespaced else "", after=after)
        found = await self._selected(kind, namespace, labels, fields, after=after, most=limit + 1 if limit else 0)
        if limit and len(found) > limit:
            token = _token(revision, found[limit - 1].key)
            return await self._shown(kind, found[:limit]), revision, token, count - limit if count >= 0 else -1
        return await self._shown(kind, found), revision, "", 0

    async def _old_page(
        self, kind: Kind, namespace: str, labels: str, fields: str, limit: int, revision: int, after: str
    ) -> tuple[list[bytes], int, str, int]:
        matches = selector(kind, labels, fields)
        resource = stored_kind(kind).resource
        prefix = f"{resource}/{namespace}/" if namespace else f"{resource}/"
        items: list[bytes] = []
        while True:
            try:
                listing = await self._source.list(prefix, revision=revision, limit=limit + 1 if limit else 0, after=after)
            except Compacted:
                raise _too_old(after) from None
            for number, entry in enumerate(listing.entries, 1):
                if not number % TURN_OBJECTS:
                    await self._clock.sleep(0)
                if limit and len(items) == limit:
                    return items, revision, _token(revision, after), -1
                version = Version(entry.key, entry.value, entry.revision)
                if matches(version):
                    items.append(_encoded(kind, version))
                after = entry.key
            if not listing.more:
                return items, revision, "", 0

    async def list(
        self,
        user: UserInfo,
        kind: Kind,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 0,
        continue_token: str = "",
        resource_version: str = "",
        resource_version_match: str = "",
    ) -> ObjList:
        items, revision, token, _ = await self._page(
            user, kind, namespace, labels, fields, limit, continue_token, resource_version, resource_version_match
        )
        objects: list[Obj] = []
        for start in range(0, len(items), TURN_OBJECTS):
            if start:
                await self._clock.sleep(0)
            objects += map(orjson.loads, items[start : start + TURN_OBJECTS])
        return ObjList(objects, str(revision), token)

    async def list_page(
        self,
        user: UserInfo,
        kind: Kind,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 0,
        continue_token: str = "",
        resource_version: str = "",
        resource_version_match: str = "",
    ) -> Page:
        """The encoded objects, without decoding them."""
        found = await self._page(
            user, kind, namespace, labels, fields, limit, continue_token, resource_version, resource_version_match
        )
        return Page(*found)

    # -- watch ---------------------------------------------------------------------------------------------

    async def watch(
        self,
        user: UserInfo,
        kind: Kind,
        namespace: str = "",
        *,
        resource_version: str = "",
        labels: str = "",
        fields: str = "",
        bookmarks: bool = False,
        initial_events: bool = False,
        begun: Callable[[], None] | None = None,
    ) -> AsyncGenerator[EncodedEvent, None]:
        """Events after ``resource_version``; with none (or ``0``) the current objects come first, as ``ADDED``.
        ``initial_events`` (``sendInitialEvents=true``, a streamed list): current objects, the annotated bookmark, then
        events. ``bookmarks``: one a minute. ``begun`` is called when only news are still to come."""
        await self.check_now(user, Attributes("watch", kind.group, kind.plural, "", namespace, fields=fields))
        matches = selector(kind, labels, fields)
        where = namespace if kind.namespaced else ""
        resource = stored_kind(kind).resource
        after = revision_number(resource_version)
        if after > self.cache.revision:
            raise errors.expired(f"resource version {after} lies ahead of this server's {self.cache.revision}; list again")
        if initial_events or not after:
            now = self.cache.revision
            # As of now: later changes follow as events.
            for version in await self._selected(kind, where, labels, fields):
                yield EncodedEvent("ADDED", _encoded(kind, version))
            after = now
            if initial_events:
                yield _bookmark(kind, now, initial=True)
        if begun is not None:
            begun()
        news = self.cache.changes(resource, after, where, node_of(kind, where, fields), bookmarks)
        async with contextlib.aclosing(news) as changes:
            async for change in changes:
                if isinstance(change, int):
                    if bookmarks:
                        yield _bookmark(kind, change)
                    continue
                event = _event(kind, change, where, matches)
                if event is not None:
                    yield event


def node_of(kind: Kind, namespace: str, fields: str) -> str:
    """The node whose Pods alone are asked for, as agents do; "" for all else."""
    found, _, node = fields.partition("spec.nodeName=")
    return "" if kind is not scheme.POD or namespace or found or "," in node or node.startswith("=") else node


def _made(kind: Kind, obj: Obj, revision: int) -> Version:
    metadata = obj["metadata"]
    return Version(key_of(kind, metadata.get("namespace") or "", metadata["name"]), orjson.dumps(obj), revision)


def _event(kind: Kind, change: Change, namespace: str, matches: Test) -> EncodedEvent | None:
    some = change.now or change.before
    if some is None or (namespace and some.namespace != namespace):
        return None
    is_in = change.now is not None and matches(change.now)
    was_in = change.before is not None and matches(change.before)
    if is_in and change.now is not None:
        return EncodedEvent("MODIFIED" if was_in else "ADDED", _encoded(kind, change.now))
    if was_in and change.before is not None:
        return EncodedEvent("DELETED", _encoded(kind, change.before, change.deleted()))
    return None


def decoded(kind: Kind, version: Version) -> Obj:
    """A stored object in the version of ``kind``, the caller's own."""
    obj = version.object()
    if isinstance(kind, CustomKind):
        from metaos.apiserver.custom import objects

        return obj if objects.is_current(kind, version.encoded, version.revision) else objects.shown(kind, obj)
    return obj


def _is_plain(kind: Kind) -> bool:
    """Whether objects are shown as they are stored."""
    return views.of(kind) is None and not isinstance(kind, CustomKind)


def _encoded(kind: Kind, version: Version, text: bytes = b"") -> bytes:
    """A stored object as ``kind`` shows it. ``text``: its JSON, where it is not the version's own."""
    text = text or version.encoded
    view = views.of(kind)
    if view is not None:
        return orjson.dumps(view.show(orjson.loads(text)))
    if isinstance(kind, CustomKind):
        from metaos.apiserver.custom import objects

        if not objects.is_current(kind, text, version.revision):
            return orjson.dumps(objects.shown(kind, orjson.loads(text)))
    return text


def _bookmark(kind: Kind, revision: int, *, initial: bool = False) -> EncodedEvent:
    metadata: dict[str, object] = {"resourceVersion": str(revision)}
    if initial:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return EncodedEvent("BOOKMARK", orjson.dumps({"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata}))


def selector(kind: Kind, labels: str, fields: str) -> Test:
    """One test for both selectors. Raises ``ApiError`` 400."""
    try:
        by_label = parse_selector(labels) if labels else None
        by_field = parse_selector(fields) if fields else None
    except ValueError as wrong:
        raise errors.bad_request(str(wrong)) from None
    if fields:
        own = kind.selectable if isinstance(kind, CustomKind) else FIELDS.get(kind.resource, ())
        known = {"metadata.name", "metadata.namespace", *own}
        for part in fields.split(","):
            asked = part.replace("==", "=").replace("!=", "=").partition("=")[0].strip()
            if asked and asked not in known:
                if own or isinstance(kind, CustomKind):
                    raise errors.bad_request(f"field label not supported: {asked}")
                raise errors.bad_request(f'"{asked}" is not a known field selector: only "metadata.name", "metadata.namespace"')
    if by_label is None and by_field is None:
        return lambda version: True

    view = views.of(kind)

    def matches(version: Version) -> bool:
        shown: Mapping[str, str] = version.labels
        if by_label is not None:
            if view is not None and view.changes_labels:
                shown = view.show(version.object())["metadata"]["labels"]
            if not by_label(shown):
                return False
        return by_field is None or by_field(_fields(kind, version))

    return matches


def _fields(kind: Kind, version: Version) -> Mapping[str, str]:
    if isinstance(kind, CustomKind) and kind.selectable:
        from metaos.apiserver.custom import objects

        return objects.field_values(kind, decoded(kind, version))
    return version.field_values()


def revision_number(resource_version: str) -> int:
    """A ``resourceVersion`` that a caller named; 0 for none. Raises ``ApiError`` 400."""
    if not resource_version:
        return 0
    if not resource_version.isdecimal():
        raise errors.bad_request(f"Invalid value: {resource_version!r}: resourceVersion must be a number")
    return int(resource_version)


#: The revision of a token that goes on with what is there now.
_NOW = -1


def _too_old(after: str) -> errors.ApiError:
    """410. A list that was read in part may go on with what is there now, as in Kubernetes."""
    if not after:
        return errors.expired("The resourceVersion for the provided list is too old.")
    error = errors.expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the "
        "continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing "
        "with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the "
        "time the first chunk was returned and now may show up in the list."
    )
    error.continue_token = _token(_NOW, after)
    return error


def _token(revision: int, key: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([revision, key])).decode().rstrip("=")


def _position(token: str) -> tuple[int, str]:
    try:
        revision, key = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if type(revision) is int and revision >= _NOW and isinstance(key, str):
            return revision, key
        raise ValueError
    except (ValueError, TypeError, binascii.Error):
        raise errors.bad_request("continue key is not valid: start a new list without the continue parameter") from None
