"""The ``Client`` protocol over HTTPS, small enough for an agent: h11 over asyncio streams, a few kept-alive connections.

Errors are ``ApiError``: what the server said, or 503 ``ServiceUnavailable`` where it could not be reached. RFC 9112.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import h11

from metaos import __version__
from metaos.client import ObjList, PatchType, WatchEvent
from metaos.clock import Clock
from metaos.resources import errors
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, name, namespace
from metaos.resources.scheme import Kind, kind_of

CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 60.0
#: A connection that was idle for longer is not used again; servers close theirs after 75 s or so.
IDLE_SECONDS = 45.0
#: The reason of an error that says nothing of the server: :meth:`HttpClient.drop_older` has broken the connection.
DROPPED = "ConnectionDropped"
#: Connections without a request that are kept, where the maker of a client says nothing.
IDLE_CONNECTIONS = 2
#: Where more requests went on at the same time, more are kept for a short time: a handshake costs both sides more than a request.
BURST_CONNECTIONS, BURST_SECONDS = 8, 3.0
#: Requests and watches at the same time; further ones wait.
MAX_REQUESTS = 16
MAX_WATCHES = 32
MAX_BODY = 64 * 1024 * 1024
MAX_LINE = 8 * 1024 * 1024
#: A TLS record has 16 KiB at most.
TLS_READ_BYTES = 32 * 1024
#: The server ends a watch after this long, spread by up to as much again, so that members do not come back at once.
WATCH_SECONDS = 300


def spare_memory() -> None:
    """TLS connections of this process set ``TLS_READ_BYTES`` aside each to read into, instead of asyncio's 256 KiB."""
    SSLProtocol.max_size = TLS_READ_BYTES


def tls_context(ca: str = "", certificate: str = "", key: str = "") -> ssl.SSLContext:
    """A client's context from PEM texts; without ``ca`` the machine's own authorities are trusted.

    ``ssl`` reads certificates from files only: the key goes through anonymous memory, never to disk.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca:
        context.load_verify_locations(cadata=ca)
    else:
        context.load_default_certs()
    if certificate:
        descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "w") as file:
            file.write(certificate.rstrip() + "\n" + key)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    return context


def unverified_context() -> ssl.SSLContext:
    """For the one request that fetches an authority whose fingerprint is then checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True, slots=True)
class Response:
    """One answer; header names are lower case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, wanted: str) -> str:
        return next((value for key, value in self.headers if key == wanted), "")


class _Dropped(ConnectionError):
    """We broke this connection ourselves."""


class _Connection:
    """One HTTP/1.1 connection: the state machine and the socket."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, opened: float, everyone: set[_Connection]
    ) -> None:
        self.reader, self.writer, self.opened = reader, writer, opened
        self._everyone = everyone
        everyone.add(self)
        self.machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=64 * 1024)
        self.idle_since = 0.0
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True
        self.abort()

    def why(self, error: Exception) -> Exception:
        """What an error on it means."""
        return _Dropped("given up after an outage, to be asked again") if self.dropped else error

    async def send(self, request: h11.Request, body: bytes) -> None:
        parts = [self.machine.send(request)]
        if body:
            parts.append(self.machine.send(h11.Data(data=body)))
        parts.append(self.machine.send(h11.EndOfMessage()))
        self.writer.write(b"".join(part for part in parts if part))
        await self.writer.drain()

    async def event(self) -> Any:
        while True:
            event = self.machine.next_event()
            if event is not h11.NEED_DATA:
                return event
            data = await self.reader.read(64 * 1024)
            if not data and self.machine.their_state is h11.SEND_RESPONSE:
                # So ends a TLS handshake whose certificate the server refuses, too: the alert is not always seen.
                raise h11.RemoteProtocolError(
                    "the server closed the connection without an answer; where it always does, it refuses the certificate "
                    "shown to it (expired, or of an authority that counts no more)"
                )
            self.machine.receive_data(data)

    async def response(self) -> h11.Response:
        while True:
            event = await self.event()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("the server closed the connection before it answered")

    async def body(self) -> AsyncGenerator[bytes, None]:
        while isinstance(event := await self.event(), h11.Data):
            yield bytes(event.data)

    def reusable(self) -> bool:
        if self.machine.our_state is not h11.DONE or self.machine.their_state is not h11.DONE or self.reader.at_eof():
            return False
        self.machine.start_next_cycle()
        return True

    def abort(self) -> None:
        """Close without the TLS goodbye: nothing is expected any more."""
        self._everyone.discard(self)
        self.writer.transport.abort()


#: OpenSSL's codes for certificates that are not valid yet, and no longer.
_ABOUT_TIME = (9, 10)


def _said(error: BaseException) -> str:
    """An error's text as people read it: without numbers and addresses that stand elsewhere."""
    if isinstance(error, ssl.SSLCertVerificationError):
        asked = ", by this machine's clock: is it right?" if error.verify_code in _ABOUT_TIME else ""
        return f"its certificate is not trusted: {error.verify_message}{asked}"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        return str(error.strerror) if isinstance(error, socket.gaierror) else os.strerror(error.errno)
    return str(error)


class HttpClient:
    """Implements :class:`~metaos.client.Client`. ``ca``, ``certificate`` and ``key`` are PEM texts; ``peer`` is what errors call
    the server. ``bearer`` gives the token of each request where it changes; ``server_name`` is what the certificate must say
    where that is not the URL's host; ``watches``: so many go on at the same time;
    ``idle``: so many connections are kept alive between requests; after a burst of them, up to ``BURST_CONNECTIONS`` for
    ``BURST_SECONDS``."""

    def __init__(
        self,
        url: str,
        *,
        ca: str = "",
        certificate: str = "",
        key: str = "",
        token: str = "",
        context: ssl.SSLContext | None = None,
        peer: str = "the hub",
        server_name: str = "",
        bearer: Callable[[], Awaitable[str]] | None = None,
        watches: int = MAX_WATCHES,
        idle: int = IDLE_CONNECTIONS,
        clock: Clock,
        random: Random,
    ) -> None:
        self._named = server_name
        self._locate(url)
        secure = urlsplit(url).scheme == "https"
        self._context = (context or tls_context(ca, certificate, key)) if secure else None
        self._token, self._bearer = token, bearer
        self._peer = peer
        self._clock, self._random = clock, random
        self._idle: list[_Connection] = []
        self._keeps = idle
        self._trimming: asyncio.TimerHandle | None = None
        self._open: set[_Connection] = set()
        #: Called at every answer, whatever it is.
        self.on_answer: Callable[[], None] = lambda: None
        #: Called with its URL where the server could not be reached, or was too slow.
        self.on_unreachable: Callable[[str], None] = lambda url: None
        #: Called where the server does not accept who we are (401).
        self.on_refused: Callable[[], None] = lambda: None
        self._requests, self._watches = asyncio.Semaphore(MAX_REQUESTS), asyncio.Semaphore(watches)

    def _locate(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"hub address {url!r} must be a URL such as https://hub.example.org:6443")
        self.url = url.rstrip("/")
        self._host, self._prefix = parts.hostname, parts.path.rstrip("/")
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._authority = parts.netloc.rpartition("@")[2]
        self._server_name = self._named or self._host

    def move(self, url: str) -> None:
        """Ask another server, of the same authority, from now on; what is under way ends where it is."""
        self._locate(url)
        self._drop_idle()

    async def upgrade(self) -> tuple[ssl.SSLContext | None, str, str]:
        """For another protocol on a connection of its own: the TLS context, the name that the certificate must say, and the
        bearer token (empty where there is none)."""
        return self._context, self._server_name, await self._present_token()

    def use(self, context: ssl.SSLContext) -> None:
        """Take another certificate for new connections; requests under way end on theirs."""
        self._context = context
        self._drop_idle()

    def drop_older(self, moment: float) -> None:
        """Break the connections that were opened before a (monotonic) moment, with the requests and watches on them. After an
        outage they may go on, but not before the kernel's next retry, which may be as far away as the outage was long."""
        for connection in [each for each in self._open if each.opened < moment]:
            connection.drop()

    async def close(self) -> None:
        """Close what is kept alive."""
        if self._trimming is not None:
            self._trimming.cancel()
            self._trimming = None
        connections, self._idle = self._idle, []
        for connection in connections:
            connection.abort()
            with suppress(OSError):
                await connection.writer.wait_closed()

    # -- requests --------------------------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout_seconds: float = REQUEST_SECONDS,
        headers: Iterable[tuple[str, str]] = (),
    ) -> Response:
        """One exchange, whatever its status. Raises ``ApiError`` 503 where the server cannot be reached or is too slow."""
        token = await self._present_token()
        request = self._request(method, path, body, query or {}, content_type, accept, token, headers)
        async with self._requests:
            try:
                async with asyncio.timeout(timeout_seconds):
                    return await self._exchange(request, body)
            except (OSError, TimeoutError, h11.ProtocolError, EOFError) as error:
                raise self._unreachable(error) from error

    async def _exchange(self, request: h11.Request, body: bytes) -> Response:
        connection = self._reuse()
        if connection is not None and request.method != b"POST":
            # The server may just have closed an idle connection: once more on a new one, where that does no harm.
            try:
                return await self._converse(connection, request, body)
            except (OSError, h11.ProtocolError):
                connection = None
        return await self._converse(connection or await self._connect(), request, body)

    async def _converse(self, connection: _Connection, request: h11.Request, body: bytes) -> Response:
        keep = False
        try:
            await connection.send(request, body)
            head = await connection.response()
            self.on_answer()
            content = bytearray()
            async with aclosing(connection.body()) as chunks:
                async for chunk in chunks:
                    content += chunk
                    if len(content) > MAX_BODY:
                        raise errors.too_large(
                            f"{self.url} answered with more than {MAX_BODY} bytes: ask for less with a selector"
                        )
            keep = connection.reusable()
        except (OSError, h11.ProtocolError) as error:
            raise connection.why(error) from error
        finally:
            if keep and len(self._idle) < max(self._keeps, BURST_CONNECTIONS):
                connection.idle_since = self._clock.monotonic()
                self._idle.append(connection)
                self._trim()
            else:
                connection.abort()
        return self._answered(head, bytes(content))

    def _answered(self, head: h11.Response, content: bytes) -> Response:
        if head.status_code == 401:
            self.on_refused()
        headers = tuple((key.decode("ascii"), value.decode("latin-1")) for key, value in head.headers)
        return Response(head.status_code, headers, content)

    async def _present_token(self) -> str:
        return self._token if self._bearer is None else await self._bearer()

    def _request(
        self,
        method: str,
        path: str,
        body: bytes,
        query: dict[str, str],
        content_type: str,
        accept: str,
        token: str,
        more: Iterable[tuple[str, str]],
    ) -> h11.Request:
        target = self._prefix + path + ("?" + urlencode(query) if query else "")
        headers = [("Host", self._authority), ("User-Agent", f"nemo/{__version__}"), ("Accept", accept), *more]
        if token:
            headers.append(("Authorization", f"Bearer {token}"))
        if body:
            headers.append(("Content-Type", content_type))
        if body or method in ("POST", "PUT", "PATCH"):
            headers.append(("Content-Length", str(len(body))))
        return h11.Request(method=method, target=target, headers=headers)

    async def _connect(self) -> _Connection:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(
                self._host, self._port, ssl=self._context, server_hostname=self._server_name if self._context else None
            )
        keep_alive(writer.get_extra_info("socket"))
        return _Connection(reader, writer, self._clock.monotonic(), self._open)

    def _reuse(self) -> _Connection | None:
        now = self._clock.monotonic()
        while self._idle:
            connection = self._idle.pop()
            usable = not connection.reader.at_eof() and not connection.writer.is_closing()
            if now - connection.idle_since <= IDLE_SECONDS and usable:
                return connection
            connection.abort()
        return None

    def _trim(self) -> None:
        """Closes what a burst has left, the one that was idle longest first."""
        if self._trimming is not None:
            self._trimming.cancel()
            self._trimming = None
        since = self._clock.monotonic() - BURST_SECONDS
        while len(self._idle) > self._keeps and self._idle[0].idle_since <= since:
            self._idle.pop(0).abort()
        if len(self._idle) > self._keeps:
            self._trimming = asyncio.get_running_loop().call_later(self._idle[0].idle_since - since, self._trim)

    def _drop_idle(self) -> None:
        if self._trimming is not None:
            self._trimming.cancel()
            self._trimming = None
        while self._idle:
            self._idle.pop().abort()

    def _unreachable(self, error: BaseException) -> ApiError:
        why = _said(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
        found = errors.unavailable(f"cannot reach {self._peer} at {self.url}: {why}")
        if isinstance(error, _Dropped):
            found.reason = DROPPED
        else:
            self.on_unreachable(self.url)
        return found

    async def _json(
        self, method: str, path: str, body: Any = None, *, query: dict[str, str] | None = None, type_: str = ""
    ) -> Any:
        content = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        response = await self.request(method, path, content, query=query, content_type=type_ or "application/json")
        return json_of(response, f"{method} {self.url}{path}")

    # -- the eight verbs -------------------------------------------------------------------------------------

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Obj:
        found: Obj = await self._json("GET", path_of(kind, namespace, name))
        return found

    async def list(
        self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "", limit: int = 0, continue_token: str = ""
    ) -> ObjList:
        query = _given(labelSelector=labels, fieldSelector=fields, limit=str(limit or ""), **{"continue": continue_token})
        found = await self._json("GET", path_of(kind, namespace), query=query)
        metadata = found.get("metadata") or {}
        items = found.get("items") or []
        for item in items:  # lists leave out what all items share
            item.setdefault("apiVersion", kind.api_version)
            item.setdefault("kind", kind.kind)
        return ObjList(items, str(metadata.get("resourceVersion") or ""), str(metadata.get("continue") or ""))

    async def watch(
        self, kind: Kind, namespace: str = "", *, resource_version: str = "", labels: str = "", fields: str = ""
    ) -> AsyncIterator[WatchEvent]:
        query = _given(
            watch="true",
            allowWatchBookmarks="true",
            resourceVersion=resource_version,
            labelSelector=labels,
            fieldSelector=fields,
            timeoutSeconds=str(WATCH_SECONDS + self._random.randrange(WATCH_SECONDS)),
        )
        async with aclosing(self.lines(path_of(kind, namespace), query)) as lines:
            async for line in lines:
                try:
                    event = json.loads(line)
                except ValueError as error:
                    raise errors.internal(f"{self.url} sent news of {kind.resource} that are not JSON") from error
                if event.get("type") == "ERROR":
                    raise ApiError.of(event.get("object") or {})
                yield WatchEvent(str(event.get("type")), event.get("object") or {})

    async def lines(self, path: str, query: dict[str, str]) -> AsyncGenerator[bytes, None]:
        """Non-empty lines of an endless answer. Ends when the server ends it; raises ``ApiError``, also later on."""
        buffer = bytearray()
        async with aclosing(self.chunks("GET", path, query=query)) as chunks:
            async for chunk in chunks:
                buffer += chunk
                if b"\n" in chunk:
                    *complete, rest = buffer.split(b"\n")
                    buffer = rest
                    for line in complete:
                        if line:
                            yield bytes(line)
                if len(buffer) > MAX_LINE:
                    raise errors.too_large(f"{self.url} sent a line of more than {MAX_LINE} bytes")

    async def chunks(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        query: dict[str, str] | None = None,
        begin_seconds: float = REQUEST_SECONDS,
        headers: Iterable[tuple[str, str]] = (),
    ) -> AsyncGenerator[bytes, None]:
        """A long answer as it comes, on a connection of its own; it must begin within ``begin_seconds``. Raises ``ApiError``,
        also where it breaks off."""
        token = await self._present_token()
        request = self._request(method, path, body, query or {}, "application/json", "application/json", token, headers)
        async with self._watches:
            connection: _Connection | None = None
            try:
                async with asyncio.timeout(begin_seconds):
                    connection = await self._connect()
                    await connection.send(request, body)
                    head = await connection.response()
                self.on_answer()
                async with aclosing(connection.body()) as chunks:
                    if head.status_code >= 400:
                        content = b"".join([chunk async for chunk in chunks])
                        raise error_of(self._answered(head, content[:MAX_BODY]))
                    async for chunk in chunks:
                        yield chunk
            except (OSError, TimeoutError, h11.ProtocolError, EOFError) as error:
                raise self._unreachable(connection.why(error) if connection else error) from error
            finally:
                if connection is not None:
                    connection.abort()

    async def create(self, obj: Obj, *, field_manager: str = "", dry_run: bool = False) -> Obj:
        query = _given(fieldManager=field_manager, dryRun="All" if dry_run else "")
        created: Obj = await self._json("POST", path_of(_kind(obj), namespace(obj)), obj, query=query)
        return created

    async def update(self, obj: Obj, *, subresource: str = "", field_manager: str = "", dry_run: bool = False) -> Obj:
        query = _given(fieldManager=field_manager, dryRun="All" if dry_run else "")
        path = path_of(_kind(obj), namespace(obj), name(obj), subresource)
        updated: Obj = await self._json("PUT", path, obj, query=query)
        return updated

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
        query = _given(fieldManager=field_manager, force="true" if force else "", dryRun="All" if dry_run else "")
        path = path_of(kind, namespace, name, subresource)
        patched: Obj = await self._json("PATCH", path, patch, query=query, type_=type.value)
        return patched

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
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        preconditions = _given(uid=uid, resourceVersion=resource_version)
        if preconditions:
            options["preconditions"] = preconditions
        if propagation:
            options["propagationPolicy"] = propagation
        if grace_period_seconds is not None:
            options["gracePeriodSeconds"] = grace_period_seconds
        if dry_run:
            options["dryRun"] = ["All"]
        deleted: Obj = await self._json("DELETE", path_of(kind, namespace, name), options)
        return deleted

    async def delete_collection(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> None:
        await self._json("DELETE", path_of(kind, namespace), query=_given(labelSelector=labels, fieldSelector=fields))


def path_of(kind: Kind, namespace: str = "", name: str = "", subresource: str = "") -> str:
    """The URL path of a collection, an object or its subresource."""
    parts = ["apis", kind.group] if kind.group else ["api"]
    parts.append(kind.version)
    if kind.namespaced and namespace:
        parts += ["namespaces", namespace]
    parts += [kind.plural, *([name] if name else []), *([subresource] if subresource else [])]
    return "/" + "/".join(quote(part, safe=":") for part in parts)


def json_of(response: Response, asked: str) -> Any:
    """What an answer says. Raises ``ApiError`` where that is an error, and where it is not JSON. ``asked``: for the message."""
    if response.status >= 400:
        raise error_of(response)
    try:
        return response.json()
    except ValueError as error:
        raise errors.internal(f"{asked} was answered with something that is not JSON") from error


def error_of(response: Response) -> ApiError:
    """What an answer of 400 or above says: its ``Status`` body, or its first words; and after how long to ask again."""
    found = _error_of(response)
    later = response.header("retry-after")
    if later.isdigit():
        found.details = {"retryAfterSeconds": int(later)} | found.details
    return found


def _error_of(response: Response) -> ApiError:
    try:
        status = response.json()
    except ValueError:
        status = None
    if isinstance(status, dict) and status.get("kind") == "Status":
        return ApiError.of(status | {"code": status.get("code") or response.status})
    reasons = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 429: "TooManyRequests", 503: "ServiceUnavailable"}
    text = response.body[:300].decode(errors="replace").strip()
    return ApiError(response.status, reasons.get(response.status, "Unknown"), text or f"the server answered {response.status}")


def keep_alive(sock: socket.socket | None) -> None:
    """Let the kernel notice a dead path within half a minute, also where nothing is being sent."""
    options: Iterable[tuple[int, str, int]] = (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 10),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 25_000),
    )
    if sock is not None:
        with suppress(OSError):
            for level, option, value in options:
                if hasattr(socket, option):
                    sock.setsockopt(level, getattr(socket, option), value)


def _given(**query: str) -> dict[str, str]:
    return {key: value for key, value in query.items() if value}


def _kind(obj: Obj) -> Kind:
    try:
        return kind_of(obj)
    except KeyError as error:
        raise errors.bad_request(str(error.args[0])) from error
