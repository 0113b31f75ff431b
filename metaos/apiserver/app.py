"""The hub's HTTP server: who asks, may they, what for, and what happened.

One handler serves every path. Each request is authenticated, authorised, limited in time and size (unless it lasts as
long as its caller likes: watches, logs, connections), counted, and, where it changes something, written to the audit
log. Callers see ``Status`` objects; what went wrong inside is logged under the request's id and not shown.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from random import Random  # noqa: TID251 - the type of the source that is handed in
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from metaos.apiserver import discovery, impersonation
from metaos.apiserver.accounts import PATHS as ACCOUNT_PATHS
from metaos.apiserver.accounts import Accounts
from metaos.apiserver.audit import Audit, no_audit
from metaos.apiserver.authn import ANONYMOUS, Authenticator, Identity, RefusedCertificate
from metaos.apiserver.bodies import MAX_BODY, decoded, flag, readable
from metaos.apiserver.customkind import CustomKind
from metaos.apiserver.discovery import Discovery
from metaos.apiserver.effort import objects_of, stored_bytes
from metaos.apiserver.fairness import classify, turn_of, width
from metaos.apiserver.gates import (
    BYTES_PER_SEAT,
    CONNECTIONS_UNKNOWN,
    LARGE_BYTES,
    Gate,
    Gates,
    TooManyConnections,
)
from metaos.apiserver.jointokens import BOOTSTRAPPERS, JoinTokens
from metaos.apiserver.metrics import Metrics, resident_bytes
from metaos.apiserver.negotiation import JSON, encoded, not_acceptable, ranges
from metaos.apiserver.openapi import OpenApi, v2_media
from metaos.apiserver.peers import PATH as HUB_LINK
from metaos.apiserver.peers import Peers
from metaos.apiserver.personaltokens import PATH as TOKENS_PATH
from metaos.apiserver.personaltokens import PersonalTokens
from metaos.apiserver.registry import Registry
from metaos.apiserver.routing import Target, parse
from metaos.apiserver.sessions import Sessions
from metaos.apiserver.transfer import announced, in_parts, large
from metaos.apiserver.upkeep import PATHS as UPKEEP_PATHS
from metaos.apiserver.upkeep import Upkeep
from metaos.apiserver.verbs import Call, Verbs, warning_headers
from metaos.clock import Clock
from metaos.reconcile.precedence import Precedence, Turn
from metaos.resources import errors, scheme
from metaos.resources.errors import ApiError
from metaos.security import audit
from metaos.security.authz import Attributes, UserInfo, cluster_of
from metaos.security.personal import narrowing
from metaos.store.log import StoreFailed, StoreFull, StoreUnknown, StoreUnreachable

log = logging.getLogger(__name__)

#: So long may a request take that ends by itself, once it has its seats; its body must have arrived within this time, too.
REQUEST_SECONDS = 60.0
#: A connection on which nothing was asked for so long is closed (clients keep theirs for at most 90 s).
IDLE_SECONDS = 120.0
#: The request line (``exec`` carries its command in the URL), each header, and how many of them.
MAX_LINE, MAX_FIELD, MAX_FIELDS = 64 * 1024, 16 * 1024, 128
#: A watch gives its seats back after this long, also where its reader has not yet taken all that was there.
BEGIN_SECONDS = 5.0
#: So long a command to a device holds its seat: what it waits for then is the device.
ASK_SECONDS = 0.2
PUBLIC = frozenset({"/version", "/livez", "/readyz", "/healthz", "/cacerts"})

#: What serves a call that lasts or reaches a site.
Connect = Callable[[Call], Awaitable[web.StreamResponse]]


class Api:
    """See the module. ``connect`` serves log, exec, attach, portforward, proxy and tunnel."""

    def __init__(
        self,
        registry: Registry,
        *,
        authenticator: Authenticator,
        connect: Connect | None,
        clock: Clock,
        random: Random,
        audit: Audit,
        metrics: Metrics,
        join_tokens: JoinTokens | None,
        upkeep: Upkeep | None,
        accounts: Accounts | None,
        personal: PersonalTokens | None,
        ca: Callable[[], bytes],
        ready: Callable[[], str],
        sessions: Sessions,
        peers: Peers | None = None,
        precedence: Precedence | None = None,
    ) -> None:
        self._registry, self._peers = registry, peers
        self._precedence = precedence or Precedence(clock)
        self._authenticator = authenticator
        self._connect = connect
        self._clock, self._random = clock, random
        self._audit, self._metrics = audit, metrics
        self._join_tokens = join_tokens
        self._upkeep, self._accounts, self._personal = upkeep, accounts, personal
        self._ca = ca
        self._ready = ready
        self._sessions = sessions
        self._verbs = Verbs(registry, clock, random)
        self._openapi = OpenApi()
        self._discovery, self._discovered = Discovery(scheme.KINDS), registry.kinds.custom
        self._gates = Gates(clock)
        metrics.parts.append(self._gates.render)

    # -- one request ---------------------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        started, wall = self._clock.monotonic(), self._clock.now()
        exchange = _Exchange(f"{self._random.getrandbits(64):016x}")
        code = 499  # The caller went away.
        try:
            answer = await self._serve(request, exchange)
            code = answer.status
            return answer
        except ApiError as error:
            code = error.code
            answer = self._refusal(exchange, error)
            if isinstance(error, TooManyConnections):
                answer.force_close()
            return answer
        except web.HTTPRequestEntityTooLarge:
            code = 413
            return self._refusal(exchange, errors.too_large(f"the body of a request may have {MAX_BODY} bytes"))
        except TimeoutError:
            code = 504
            return self._refusal(exchange, ApiError(504, "Timeout", "the request did not complete in time; try again"))
        except StoreFull as full:
            code = 507
            return self._refusal(
                exchange, errors.insufficient_storage(f"the hub's disk is full: {full}. Reads and deletes go on")
            )
        except StoreUnknown as unknown:
            code = 504
            return self._refusal(exchange, ApiError(504, "Timeout", f"{unknown}: look at the object before you try again"))
        except StoreUnreachable as away:
            code = 503
            return self._refusal(exchange, errors.unavailable(f"{away}; nothing was changed, try again"))
        except StoreFailed as failed:
            log.error("request %s: %s", exchange.id, failed)
            code = 503
            return self._refusal(exchange, errors.unavailable("the hub's store cannot do this now; its log says why"))
        except RecursionError:
            code = 400
            return self._refusal(exchange, errors.bad_request("the body of the request is nested too deeply"))
        except (ConnectionError, web.PayloadAccessError) as gone:
            log.debug("request %s: %s", exchange.id, gone)
            raise
        except Exception:
            log.exception("request %s failed", exchange.id)
            code = 500
            return self._refusal(exchange, errors.internal(f"an internal error occurred; the hub's log has it as {exchange.id}"))
        finally:
            self._note(request, exchange, code, wall, self._clock.monotonic() - started)

    async def _serve(self, request: web.Request, exchange: _Exchange) -> web.StreamResponse:
        path = request.rel_url.raw_path
        try:
            identity = await self._authenticator.authenticate(request)
        except ApiError as error:
            if isinstance(error, RefusedCertificate):
                # Whoever has it now: that they try is worth knowing, whatever they ask for.
                exchange.user, exchange.refused = error.user, True
                with suppress(ApiError):
                    target = self._target(request, path)
                    exchange.asked = target.attributes if target else Attributes(request.method.lower(), path=path)
            self._gates.connected(f"{request.remote} unknown", request.transport, CONNECTIONS_UNKNOWN)
            raise
        if identity is None:
            self._gates.connected(f"{request.remote} unknown", request.transport, CONNECTIONS_UNKNOWN)
        try:
            target = self._target(request, path)
        except ApiError as error:
            if error.code != 404 or identity is None:
                raise
            # A definition that another hub has acknowledged may be about to come here.
            await self._registry.cache.fresh()
            target = self._target(request, path)
        if target is None:
            return await self._serve_document(request, path.rstrip("/") or "/", identity, exchange)
        exchange.target = target
        if identity is None:
            raise errors.unauthorized()
        exchange.user = identity.user
        level, flow = classify(identity.user, target.kind.resource, target.subresource, request.remote or "")
        self._gates.connected(flow, request.transport)
        identity = await self._impersonated(request, identity, exchange)
        call = Call(request, identity, target, exchange.headers, dry_run="dryRun" in request.query)
        exchange.call = call
        if isinstance(target.kind, CustomKind) and target.kind.warning:
            call.warnings.append(target.kind.warning)
        if target.long_running:
            with self._gates.lasting(flow):
                if target.verb == "watch":
                    return await self._begin_watch(call, self._gates.of(level), flow)
                return await self._serve_long(call)
        size, turn = announced(request), turn_of(call.user, target.kind.resource, target.subresource)
        with self._gates.holding(flow, size):
            # The body comes first: while it arrives no seat is taken, and nobody waits for it.
            if size:
                async with asyncio.timeout(REQUEST_SECONDS):
                    await request.read()
            if turn is Turn.LAST:
                await self._precedence.after()
            with self._precedence.ahead() if turn is Turn.FIRST else nullcontext():
                answer = await self._serve_short(call, self._gates.of(level), flow, size)
        return await self._sent(request, answer, flow)

    def _target(self, request: web.Request, path: str) -> Target | None:
        return parse(request.method, path, watch=flag(request.query, "watch"), by_plural=self._registry.kinds.by_plural)

    async def _serve_short(self, call: Call, gate: Gate, flow: str, size: int) -> web.StreamResponse:
        """What ends by itself, once its body is there."""
        if self._join_tokens is not None and BOOTSTRAPPERS in call.user.groups:
            await self._admit_joining(call)
        size = max(size, stored_bytes(call.target, self._registry.cache))
        seats = width(gate.queue.level, objects_of(call, self._registry.cache), size // BYTES_PER_SEAT)
        if call.target.kind is scheme.DEVICE and call.target.subresource == "command":
            # How many wait for a device's answer the desk bounds.
            async with gate.seats_at_first(flow, seats, ASK_SECONDS), asyncio.timeout(REQUEST_SECONDS):
                return await self._verbs.serve(call)
        await gate.enter(flow, seats)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                if size < LARGE_BYTES:
                    return await self._verbs.serve(call)
                async with self._gates.one_by_one():
                    return await self._verbs.serve(call)
        finally:
            gate.leave(flow, seats)

    async def _begin_watch(self, call: Call, gate: Gate, flow: str) -> web.StreamResponse:
        """A watch takes seats as a list does until it has sent what was there, or for a while where its reader is slow."""
        seats = width(gate.queue.level, objects_of(call, self._registry.cache))
        async with gate.seats_at_first(flow, seats, BEGIN_SECONDS) as call.begun:
            return await self._serve_long(call)

    async def _sent(self, request: web.Request, answer: web.StreamResponse, flow: str) -> web.StreamResponse:
        """A large answer goes out in parts, so that what is held for a slow reader is bounded."""
        body = large(answer)
        if body is None:
            return answer
        with self._gates.holding(flow, body.size):
            return await in_parts(request, answer, body)

    async def _serve_long(self, call: Call) -> web.StreamResponse:
        target = call.target
        running = self._metrics.running(target.subresource or target.verb)
        with running, self._sessions.hold(call.request, call.identity):
            if target.verb == "watch":
                return await self._verbs.serve(call)
            await self._registry.check_now(call.user, target.attributes)
            if target.subresource == "tunnel" and cluster_of(call.user) != target.name:
                kind = target.kind
                raise errors.forbidden(kind.group, kind.plural, target.name, "only a site's own agent opens its tunnel")
            if self._connect is None:
                raise errors.unavailable("this hub carries no connections to sites")
            return await self._connect(call)

    async def _admit_joining(self, call: Call) -> None:
        """What a join token's holder may do depends on what the token was used for, which no role can say."""
        target = call.target
        if target.kind is not scheme.CERTIFICATE_SIGNING_REQUEST or target.subresource:
            return  # Left to the roles, which grant nothing else.
        name = target.name
        if target.verb == "create":
            name = _name_in(decoded(await call.request.read(), call.request.headers.get("Content-Type", "")))
        if self._join_tokens is not None:
            await self._join_tokens.admit(call.user, target.verb, name)

    async def _impersonated(self, request: web.Request, identity: Identity, exchange: _Exchange) -> Identity:
        """``kubectl --as``: another user, where the caller may be them. Raises ``ApiError`` 403."""
        name = readable(request.headers.get("Impersonate-User", ""))
        groups = tuple(map(readable, request.headers.getall("Impersonate-Group", ())))
        uid, extra = readable(request.headers.get("Impersonate-Uid", "")), impersonation.extras(request.headers.items())
        if not name:
            if any(header.lower().startswith("impersonate-") for header in request.headers):
                raise errors.bad_request("Impersonate-Group and others need Impersonate-User")
            return identity
        for attributes in impersonation.rights(name, groups, uid, extra):
            await self._registry.check_now(identity.user, attributes)
        exchange.impersonated = impersonation.user(name, groups, uid, extra + narrowing(identity.user))
        return Identity(exchange.impersonated, identity.valid, identity.credential)

    # -- what is no kind -----------------------------------------------------------------------------------

    async def _serve_document(
        self, request: web.Request, path: str, identity: Identity | None, exchange: _Exchange
    ) -> web.StreamResponse:
        if path in PUBLIC:
            return await self._document(request, path, identity, exchange)
        if self._peers is not None and path == HUB_LINK:
            self._admit(identity, exchange, Attributes("create", path=path))
            return await self._peers.accept(request)
        level, flow = classify(identity.user if identity else ANONYMOUS, "", "", request.remote or "")
        if identity is not None:
            self._gates.connected(flow, request.transport)
        async with self._gates.of(level).seats(flow, 1), asyncio.timeout(REQUEST_SECONDS):
            answer = await self._document(request, path, identity, exchange)
        return await self._sent(request, answer, flow)

    async def _document(
        self, request: web.Request, path: str, identity: Identity | None, exchange: _Exchange
    ) -> web.StreamResponse:
        if self._upkeep is not None and path in UPKEEP_PATHS:
            verb = "get" if request.method in ("GET", "HEAD") else "create"
            self._admit(identity, exchange, Attributes(verb, path=path))
            return await self._upkeep.serve(request, path, exchange.headers)
        if self._accounts is not None and path in ACCOUNT_PATHS:
            verb = "get" if request.method in ("GET", "HEAD") else "create"
            self._admit(identity, exchange, Attributes(verb, path=path))
            return await self._accounts.serve(request, path, exchange.headers)
        if self._personal is not None and (path == TOKENS_PATH or path.startswith(f"{TOKENS_PATH}/")):
            verbs = {"GET": "get", "HEAD": "get", "DELETE": "delete"}
            self._admit(identity, exchange, Attributes(verbs.get(request.method, "create"), path=path))
            return await self._personal.serve(request, path, exchange.user, exchange.headers)
        if request.method not in ("GET", "HEAD"):
            raise errors.method_not_allowed("the server does not allow this method on the requested resource")
        if path not in PUBLIC:
            self._admit(identity, exchange, Attributes("get", path=path))
        accept = request.headers.get("Accept", "")
        self._follow_kinds()
        if path.startswith("/openapi/v3"):
            return self._openapi_v3(request, path, exchange)
        if path == "/openapi/v2":
            media = v2_media(accept)
            return self._compressed(request, self._openapi.v2(media), exchange, self._openapi.tag(), media)
        if path == "/version":
            return _json(exchange, discovery.version())
        if path in ("/livez", "/readyz", "/healthz"):
            return self._health(path, exchange)
        if path == "/metrics":
            headers = {**exchange.headers, "Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
            return web.Response(body=self._metrics.render().encode(), headers=headers)
        if path == "/cacerts":
            return web.Response(body=self._ca(), headers={**exchange.headers, "Content-Type": "application/x-pem-file"})
        found = self._discovery.document(path, accept)
        if found is None:
            raise errors.ApiError(404, "NotFound", "the server could not find the requested resource")
        document, content_type = found
        answer = _json(exchange, document, content_type)
        # Clients keep what discovery says and ask whether it still holds.
        answer.headers["ETag"] = tag = f'"{hashlib.sha256(answer.body or b"").hexdigest()[:32].upper()}"'  # type: ignore[arg-type]
        return web.Response(status=304, headers=answer.headers) if _holds(request, tag) else answer

    def _follow_kinds(self) -> None:
        """What documents say of the kinds of definitions is as these are now."""
        custom = self._registry.kinds.custom
        if custom is not self._discovered:
            self._discovery, self._discovered = Discovery((*scheme.KINDS, *custom)), custom
        self._openapi.follow(custom)

    def _admit(self, identity: Identity | None, exchange: _Exchange, asked: Attributes) -> None:
        if identity is None:
            raise errors.unauthorized()
        exchange.user, exchange.asked = identity.user, asked
        self._registry.check(identity.user, asked)

    def _openapi_v3(self, request: web.Request, path: str, exchange: _Exchange) -> web.Response:
        name = path.removeprefix("/openapi/v3").strip("/")
        if not name:
            return _json(exchange, self._openapi.index())
        body = self._openapi.v3(name)
        if body is None:
            raise errors.ApiError(404, "NotFound", "the server could not find the requested resource")
        return self._compressed(request, body, exchange, self._openapi.tag(name))

    def _compressed(
        self, request: web.Request, body: bytes, exchange: _Exchange, version: str, media: str = JSON
    ) -> web.Response:
        accept = request.headers.get("Accept", "")
        if media == JSON and accept and not any(each.media in (JSON, "*/*", "application/*") for each in ranges(accept)):
            raise not_acceptable()
        tag = f'"{version}"'
        headers = {**exchange.headers, "Content-Type": media, "ETag": tag, "Vary": "Accept-Encoding, Accept"}
        if request.query.get("hash") == version:
            # Under this URL it stays as it is; so does kubectl's copy on disk.
            headers["Cache-Control"] = "public, max-age=31536000, immutable"
        if _holds(request, tag):
            return web.Response(status=304, headers=headers)
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=body, headers={**headers, "Content-Encoding": "gzip"})
        import gzip

        return web.Response(body=gzip.decompress(body), headers=headers)

    def _health(self, path: str, exchange: _Exchange) -> web.Response:
        """``livez``: the process answers. ``readyz`` and ``healthz``: it serves what is in the store."""
        problem = ""
        if path != "/livez":
            problem = "the watch cache has ended" if self._registry.cache.closed else self._ready()
        headers = {**exchange.headers, "Content-Type": "text/plain; charset=utf-8"}
        return web.Response(body=(problem or "ok").encode(), status=503 if problem else 200, headers=headers)

    # -- what happened -------------------------------------------------------------------------------------

    def _refusal(self, exchange: _Exchange, error: ApiError) -> web.Response:
        headers = [*exchange.headers.items(), ("Content-Type", JSON)]
        if "retryAfterSeconds" in error.details:
            headers.append(("Retry-After", str(error.details["retryAfterSeconds"])))
        if error.code == 401:
            headers.append(("WWW-Authenticate", "Bearer"))
        if exchange.call is not None:
            headers += warning_headers(exchange.call.warnings)
        return web.Response(body=encoded(error.status()), status=error.code, headers=headers)

    def _note(self, request: web.Request, exchange: _Exchange, code: int, wall: float, seconds: float) -> None:
        target = exchange.target
        if target is None:
            self._metrics.request("get", "", "", code, None)
            if exchange.asked is not None and (exchange.refused or audit.wanted(exchange.asked)):
                self._write_down(request, exchange, exchange.asked, code, wall, seconds)
            return
        label = f"{target.kind.plural}/{target.subresource}" if target.subresource else target.kind.plural
        self._metrics.request(target.verb, target.kind.group, label, code, None if target.long_running else seconds)
        asked = target.attributes if code != 400 or target.subresource != "proxy" else Attributes(target.verb)
        if audit.wanted(asked):
            self._write_down(request, exchange, asked, code, wall, seconds)

    def _write_down(
        self, request: web.Request, exchange: _Exchange, asked: Attributes, code: int, wall: float, seconds: float
    ) -> None:
        self._audit(
            audit.event(
                request=exchange.id,
                user=exchange.user,
                impersonated=exchange.impersonated,
                asked=asked,
                source=request.remote or "local",
                code=code,
                start_time=wall,
                duration_seconds=seconds,
                dry_run=exchange.call is not None and exchange.call.dry_run,
            )
        )


class _Exchange:
    """What is known of one request so far."""

    __slots__ = ("asked", "call", "headers", "id", "impersonated", "refused", "target", "user")

    def __init__(self, id: str) -> None:
        self.id = id
        self.headers = {"Audit-Id": id, "Cache-Control": "no-cache, private", "Server": "nemo"}
        self.user = ANONYMOUS
        self.impersonated: UserInfo | None = None
        self.target: Target | None = None
        #: What was asked for where it is no kind.
        self.asked: Attributes | None = None
        #: Whether it came with a certificate that counts no more.
        self.refused = False
        self.call: Call | None = None


def _json(exchange: _Exchange, value: Any, content_type: str = JSON) -> web.Response:
    return web.Response(body=encoded(value), headers={**exchange.headers, "Content-Type": content_type, "Vary": "Accept"})


def _http_log() -> logging.Logger:
    """Where aiohttp reports. What is no HTTP is its sender's fault, and must not fill the hub's log with tracebacks."""

    def of_the_hub(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))

    found = logging.getLogger(f"{__name__}.http")
    if not found.filters:
        found.addFilter(of_the_hub)
    return found


def _holds(request: web.Request, tag: str) -> bool:
    """Whether the caller has what the tag stands for."""
    return request.headers.get("If-None-Match", "").removeprefix("W/") == tag


def _name_in(body: Any) -> str:
    metadata = body.get("metadata") if isinstance(body, dict) else None
    return str(metadata.get("name") or "") if isinstance(metadata, dict) else ""


def make_app(
    registry: Registry,
    *,
    authenticator: Authenticator,
    clock: Clock,
    random: Random,
    connect: Connect | None = None,
    audit: Audit = no_audit,
    metrics: Metrics | None = None,
    join_tokens: JoinTokens | None = None,
    upkeep: Upkeep | None = None,
    accounts: Accounts | None = None,
    personal: PersonalTokens | None = None,
    ca: Callable[[], bytes] = bytes,
    ready: Callable[[], str] = lambda: "",
    sessions: Sessions | None = None,
    peers: Peers | None = None,
    precedence: Precedence | None = None,
) -> web.Application:
    """The application; run it with ``web.AppRunner``. ``ca`` (PEM) is served at ``/cacerts`` to those who pin it by a join
    token, and to sites; ``ready`` says what is still missing, or nothing; ``sessions`` holds what lasts;
    ``peers`` are other hubs of the same store; ``precedence`` is shared with the controllers."""
    measured = metrics or Metrics()
    measured.gauges.setdefault("nemo_store_revision", ("Latest revision that is served.", lambda: float(registry.cache.revision)))
    measured.gauges.setdefault("process_resident_memory_bytes", ("Resident memory.", resident_bytes))
    api = Api(
        registry,
        authenticator=authenticator,
        connect=connect,
        clock=clock,
        random=random,
        audit=audit,
        metrics=measured,
        join_tokens=join_tokens,
        upkeep=upkeep,
        accounts=accounts,
        personal=personal,
        ca=ca,
        ready=ready,
        sessions=sessions or Sessions(),
        peers=peers,
        precedence=precedence,
    )
    app = web.Application(
        client_max_size=MAX_BODY,
        handler_args={
            # A watcher that has gone is noticed at once, not at the next event.
            "handler_cancellation": True,
            # Bodies of proxied requests go through as they are.
            "auto_decompress": False,
            "keepalive_timeout": IDLE_SECONDS,
            "max_line_size": MAX_LINE,
            "max_field_size": MAX_FIELD,
            "max_headers": MAX_FIELDS,
            "access_log": None,
            "logger": _http_log(),
        },
    )
    app.router.add_route("*", r"/{path:[\s\S]*}", api.handle)
    return app
