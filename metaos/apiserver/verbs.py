"""The verbs over HTTP: from a request to a call of the registry, and from what it returned to an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random  # noqa: TID251 - the type of the source that is handed in
from typing import Any, TypeVar

import orjson
from aiohttp import web

from metaos.apiserver import bodies, table, watch
from metaos.apiserver.addressing import key_of, stored_kind
from metaos.apiserver.authn import Identity
from metaos.apiserver.bodies import WriteOptions
from metaos.apiserver.deletion import DeleteOptions
from metaos.apiserver.negotiation import JSON, YAML, Accepted, Form, accepted, encoded
from metaos.apiserver.reading import Page, revision_number, selector
from metaos.apiserver.registry import EncodedEvent, Registry
from metaos.apiserver.routing import Target
from metaos.apiserver.transfer import PART_BYTES, Large
from metaos.client import PatchType
from metaos.clock import Clock
from metaos.resources import errors
from metaos.resources.meta import Obj
from metaos.security.authz import UserInfo

#: Warnings that one answer may carry, and the length of each.
MAX_WARNINGS = 50
MAX_WARNING = 256
#: Objects that are shown in another form in one turn of the event loop, 5 ms; of YAML, which is slow, fewer.
TURN_OBJECTS, TURN_YAML = 64, 4
#: Texts of YAML from this length on are read in a thread.
LONG_YAML = 16 * 1024

T = TypeVar("T")


@dataclass(slots=True)
class Call:
    """One request on its way through. ``warnings`` become ``Warning`` headers of the answer; ``begun`` is called when a watch
    has sent what was there."""

    request: web.Request
    identity: Identity
    target: Target
    headers: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    dry_run: bool = False
    begun: Callable[[], None] | None = None

    @property
    def user(self) -> UserInfo:
        return self.identity.user

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query


def warning_headers(warnings: list[str]) -> list[tuple[str, str]]:
    """RFC 9111's predecessor, RFC 7234, section 5.5, code 299; the form that Kubernetes clients read."""
    found = []
    for text in warnings[:MAX_WARNINGS]:
        plain = "".join(c if c.isprintable() else " " for c in text)[:MAX_WARNING]
        escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
        found.append(("Warning", f'299 - "{escaped}"'))
    return found


class Verbs:
    """The resource verbs. Everything that lasts or reaches a site is elsewhere."""

    def __init__(self, registry: Registry, clock: Clock, random: Random) -> None:
        self._registry, self._clock, self._random = registry, clock, random
        self._by_verb: dict[str, Callable[[Call], Any]] = {
            "get": self._get,
            "list": self._list,
            "watch": self._watch,
            "create": self._create,
            "update": self._update,
            "patch": self._patch,
            "delete": self._delete,
            "deletecollection": self._delete_collection,
        }

    async def serve(self, call: Call) -> web.StreamResponse:
        answer: web.StreamResponse = await self._by_verb[call.target.verb](call)
        return answer

    # -- answers -------------------------------------------------------------------------------------------

    def _answer(self, call: Call, obj: Obj, status: int = 200) -> web.Response:
        form = accepted(call.request.headers.get("Accept", ""))
        if form.form is not Form.OBJECT and obj.get("kind") not in ("Status", "Scale", "TokenRequest"):
            obj = self._shown(call, form, obj)
        else:
            form = Accepted(form.media)
        return self._raw(call, encoded(obj, form.media, pretty=bodies.flag(call.query, "pretty")), form.content_type, status)

    def _raw(self, call: Call, body: bytes, content_type: str = JSON, status: int = 200) -> web.Response:
        return web.Response(body=body, status=status, headers=self._headers(call, content_type))

    def _headers(self, call: Call, content_type: str) -> list[tuple[str, str]]:
        return [*call.headers.items(), ("Content-Type", content_type), *warning_headers(call.warnings)]

    def _shown(self, call: Call, form: Accepted, obj: Obj, *, header: bool = True) -> Obj:
        if form.form is Form.METADATA:
            return table.partial(obj, form.version)
        metadata = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
        include = call.query.get("includeObject", "")
        return table.table(
            call.target.kind, [obj], self._clock.now(), metadata=metadata, include=include, version=form.version, header=header
        )

    # -- reading -------------------------------------------------------------------------------------------

    async def _get(self, call: Call) -> web.Response:
        t = call.target
        form = accepted(call.request.headers.get("Accept", ""))
        if form == Accepted() and t.subresource in ("", "status") and not bodies.flag(call.query, "pretty"):
            if t.subresource:
                await self._registry.check_now(call.user, t.attributes)
            return self._raw(call, await self._registry.get_encoded(call.user, t.kind, t.name, t.namespace))
        return self._answer(call, await self._registry.get(call.user, t.kind, t.name, t.namespace, subresource=t.subresource))

    async def _list(self, call: Call) -> web.Response:
        t, query = call.target, call.query
        form = accepted(call.request.headers.get("Accept", ""))
        bodies.check_list_options(query, watch=False)
        asked: dict[str, Any] = {
            "labels": query.get("labelSelector", ""),
            "fields": query.get("fieldSelector", ""),
            "limit": max(0, bodies.number(query, "limit", negative=True) or 0),
            "continue_token": query.get("continue", ""),
            "resource_version": query.get("resourceVersion", ""),
            "resource_version_match": query.get("resourceVersionMatch", ""),
        }
        page = await self._registry.list_page(call.user, t.kind, t.namespace, **asked)
        pretty = bodies.flag(query, "pretty")
        if form == Accepted() and not pretty:
            # Counted once, and never in one piece where it is large.
            size = page.size(t.kind)
            if size < PART_BYTES:
                return self._raw(call, page.encoded(t.kind))
            return Large(page.parts(t.kind), size, self._headers(call, JSON))
        body = await self._listed(call, form, page, pretty=pretty)
        return self._raw(call, body, form.content_type)

    async def _listed(self, call: Call, form: Accepted, page: Page, *, pretty: bool) -> bytes:
        """A list in another form than the stored one, made in turns: others are served meanwhile."""
        kind, now, include = call.target.kind, self._clock.now(), call.query.get("includeObject", "")
        yaml, parts = form.media == YAML, []
        for i, item in enumerate(page.items, 1):
            shown: Obj = orjson.loads(item)
            if form.form is Form.TABLE:
                shown = table.row(kind, shown, now, include)
            elif form.form is Form.METADATA:
                shown = table.partial(shown, form.version)
            parts.append(encoded([shown], YAML) if yaml else encoded(shown))
            if not i % (TURN_YAML if yaml else TURN_OBJECTS):
                await self._clock.sleep(0)
        head: Obj = {"kind": kind.list_kind, "apiVersion": kind.api_version, "metadata": page.metadata()}
        what = "items"
        if form.form is Form.TABLE:
            head, what = table.table(kind, (), now, metadata=page.metadata(), version=form.version), "rows"
            head.pop(what)
        elif form.form is Form.METADATA:
            head |= {"kind": "PartialObjectMetadataList", "apiVersion": f"meta.k8s.io/{form.version}"}
        if yaml:
            return b"".join((encoded(head, YAML), what.encode(), b":\n" if parts else b": []\n", *parts))
        body = b"".join((encoded(head)[:-1], b',"', what.encode(), b'":[', b",".join(parts), b"]}"))
        return encoded(orjson.loads(body), pretty=True) if pretty else body

    async def _watch(self, call: Call) -> web.StreamResponse:
        t, query = call.target, call.query
        form = accepted(call.request.headers.get("Accept", "").replace(";stream=watch", ""))
        fields = query.get("fieldSelector", "")
        if t.name:
            fields = f"metadata.name={t.name}" + (f",{fields}" if fields else "")
        labels = query.get("labelSelector", "")
        # Refusals that are known now are answers, not events.
        await self._registry.check_now(call.user, replace(t.attributes, fields=fields))
        selector(t.kind, labels, fields)
        bodies.check_list_options(query, watch=True)
        revision_number(query.get("resourceVersion", ""))
        asked = bodies.number(query, "timeoutSeconds")
        seconds = asked or watch.DEFAULT_SECONDS + self._random.randrange(watch.DEFAULT_SECONDS)
        events = self._registry.watch(
            call.user,
            t.kind,
            t.namespace,
            resource_version=query.get("resourceVersion", ""),
            labels=labels,
            fields=fields,
            bookmarks=bodies.flag(query, "allowWatchBookmarks"),
            initial_events=bodies.flag(query, "sendInitialEvents"),
            begun=call.begun,
        )
        response = web.StreamResponse(headers={**call.headers, "Content-Type": form.content_type})
        return await watch.stream(
            call.request, response, events, seconds=seconds, valid=call.identity.valid, line=self._line_of(call, form)
        )

    def _line_of(self, call: Call, form: Accepted) -> Callable[[EncodedEvent], bytes]:
        if form.form is Form.OBJECT:
            return lambda event: event.line
        first = True

        def line(event: EncodedEvent) -> bytes:
            nonlocal first
            if event.type == "BOOKMARK" and form.form is Form.TABLE:
                shown = table.table(
                    call.target.kind, [], 0.0, metadata=event.object["metadata"], version=form.version, header=False
                )
            else:
                shown = self._shown(call, form, event.object, header=first)
                first = False
            return watch.line_of(event.type, shown)

        return line

    # -- writing -------------------------------------------------------------------------------------------

    async def _body(self, call: Call, field_validation: str) -> Any:
        sent, media = await call.request.read(), call.request.headers.get("Content-Type", "")
        value = await self._decoded(sent, lambda: bodies.decoded(sent, media))
        await self._check_doubles(call, field_validation, sent, value)
        return value

    async def _check_doubles(self, call: Call, field_validation: str, sent: bytes, value: Any) -> None:
        """Fields that a body has twice: an error, a warning, or nothing, as the caller asked."""
        if field_validation == "Ignore":
            return
        texts = await self._decoded(sent, lambda: bodies.doubled(sent, value))
        if texts and field_validation == "Strict":
            kind = call.target.kind
            what = f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}'
            raise errors.bad_request(f"{what}: strict decoding error: {', '.join(texts)}")
        call.warnings.extend(texts)

    async def _decoded(self, sent: bytes, decode: Callable[[], T]) -> T:
        """A long text of YAML takes long to read: others are served meanwhile."""
        if len(sent) > LONG_YAML and sent[:1] not in (b"{", b"["):
            return await asyncio.to_thread(decode)
        return decode()

    def _options(self, call: Call, kind: str, *, apply: bool = False) -> WriteOptions:
        options = WriteOptions.of(call.query, bodies.readable(call.request.headers.get("User-Agent", "")), kind, apply=apply)
        call.dry_run = options.dry_run
        return options

    async def _create(self, call: Call) -> web.Response:
        t = call.target
        options = self._options(call, "CreateOptions")
        body = await self._body(call, options.field_validation)
        if t.subresource:
            self._check_dry_run_of(call, body)
            made = await self._registry.create_subresource(
                call.user, t.kind, t.name, t.namespace, t.subresource, body, dry_run=call.dry_run, warnings=call.warnings
            )
            return self._answer(call, made, 201)
        made = await self._registry.create(
            call.user,
            body,
            kind=t.kind,
            namespace=t.namespace,
            field_manager=options.field_manager,
            dry_run=options.dry_run,
            field_validation=options.field_validation,
            warnings=call.warnings,
        )
        return self._answer(call, made, 201)

    @staticmethod
    def _check_dry_run_of(call: Call, body: Any) -> None:
        """An Eviction carries its DeleteOptions within."""
        if not isinstance(body, dict):
            raise errors.bad_request("the body must be an object")
        _, dry = bodies.delete_options(call.query, body.get("deleteOptions"))
        call.dry_run = call.dry_run or dry

    async def _update(self, call: Call) -> web.Response:
        t = call.target
        options = self._options(call, "UpdateOptions")
        body = await self._body(call, options.field_validation)
        if not isinstance(body, dict):
            raise errors.bad_request("the body must be an object")
        if t.subresource == "scale":
            body.setdefault("metadata", {})
        made = await self._registry.update(
            call.user,
            body,
            kind=t.kind,
            name=t.name,
            namespace=t.namespace,
            subresource=t.subresource,
            field_manager=options.field_manager,
            dry_run=options.dry_run,
            field_validation=options.field_validation,
            warnings=call.warnings,
        )
        return self._answer(call, made)

    async def _patch(self, call: Call) -> web.Response:
        t = call.target
        sent, media = await call.request.read(), call.request.headers.get("Content-Type", "")
        kind, patch = await self._decoded(sent, lambda: bodies.patch(sent, media))
        options = self._options(call, "PatchOptions", apply=kind is PatchType.APPLY)
        await self._check_doubles(call, options.field_validation, sent, patch)
        known = kind is not PatchType.APPLY or self._registry.cache.get(key_of(stored_kind(t.kind), t.namespace, t.name))
        made = await self._registry.patch(
            call.user,
            t.kind,
            t.name,
            t.namespace,
            patch,
            type=kind,
            subresource=t.subresource,
            field_manager=options.field_manager,
            force=options.force,
            dry_run=options.dry_run,
            field_validation=options.field_validation,
            warnings=call.warnings,
        )
        return self._answer(call, made, 200 if known else 201)

    async def _deletion(self, call: Call) -> DeleteOptions:
        sent = await call.request.read()
        body = bodies.decoded(sent, call.request.headers.get("Content-Type", "")) if sent else None
        options, call.dry_run = bodies.delete_options(call.query, body)
        return options

    async def _delete(self, call: Call) -> web.Response:
        t, options = call.target, await self._deletion(call)
        left = await self._registry.delete(
            call.user,
            t.kind,
            t.name,
            t.namespace,
            uid=options.uid,
            resource_version=options.resource_version,
            propagation=options.propagation,
            grace_period_seconds=options.grace_period_seconds,
            dry_run=call.dry_run,
            warnings=call.warnings,
        )
        return self._answer(call, left)

    async def _delete_collection(self, call: Call) -> web.Response:
        t, options = call.target, await self._deletion(call)
        gone = await self._registry.delete_collection(
            call.user,
            t.kind,
            t.namespace,
            labels=call.query.get("labelSelector", ""),
            fields=call.query.get("fieldSelector", ""),
            propagation=options.propagation,
            grace_period_seconds=options.grace_period_seconds,
            dry_run=call.dry_run,
        )
        body = {
            "kind": t.kind.list_kind,
            "apiVersion": t.kind.api_version,
            "metadata": {"resourceVersion": str(self._registry.cache.revision)},
            "items": gone,
        }
        return self._raw(call, encoded(body))
