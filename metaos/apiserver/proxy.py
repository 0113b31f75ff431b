"""The stable URL: ``…/services/[scheme:]NAME[:PORT]/proxy/…`` reaches a ready endpoint on whichever site has one.

An endpoint that cannot be reached is passed over for a moment, and another one is tried: always where no byte of the
request has been sent, and for requests that may be repeated (RFC 9110, 9.2.2) also later, as long as no answer has begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import h11
from aiohttp import web

from metaos.apiserver.tunnels import Streams
from metaos.resources.errors import ApiError, not_found, unavailable
from metaos.resources.meta import SERVICE_NAME_LABEL, Obj, labels
from metaos.resources.workload import usable
from metaos.tunnel import Stream, StreamReset

ATTEMPTS = 4
#: How long an endpoint that failed is passed over, and how many are remembered.
PENALTY_SECONDS = 5.0
MAX_PENALTIES = 1000
ANSWER_SECONDS = 60.0
#: Request bodies up to this size can be sent again to another endpoint.
REPLAY_BYTES = 1 << 20
_IDEMPOTENT = {"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"}
_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "authorization",
    "host",
    "content-length",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod's port on a site."""

    cluster: str
    namespace: str
    pod: str
    port: int


def service_parts(text: str) -> tuple[str, str, str]:
    """``[scheme:]NAME[:PORT]`` → scheme, name, port (empty where not stated)."""
    parts = text.split(":")
    if len(parts) == 3:
        return parts[0], parts[1], parts[2]
    if len(parts) == 2:
        return ("", parts[0], parts[1]) if parts[0] not in ("http", "https") else (parts[0], parts[1], "")
    return "", parts[0], ""


def endpoints(service: Obj, slices: list[Obj], port: str) -> list[Endpoint]:
    """Ready endpoints of a Service's port: by name, by number, or the only (first) one."""
    found = []
    ports = (service.get("spec") or {}).get("ports") or []
    wanted = next((p for p in ports if port in (str(p.get("port")), p.get("name") or "")), None) if port else (ports or [None])[0]
    if wanted is None:
        known = ", ".join(str(p.get("name") or p.get("port")) for p in ports)
        name = service["metadata"]["name"]
        raise unavailable(f"service {name!r} has no port {port!r}: it has {known or 'none'}")
    word = usable(slices)
    for part in slices:
        number = next((p["port"] for p in part.get("ports") or () if (p.get("name") or "") == (wanted.get("name") or "")), None)
        if number is None:
            continue
        for endpoint in part.get("endpoints") or ():
            target = endpoint.get("targetRef") or {}
            if (endpoint.get("conditions") or {}).get(word) and target.get("kind") == "Pod":
                found.append(Endpoint(endpoint["nodeName"], target["namespace"], target["name"], int(number)))
    return found


class ServiceProxy:
    """``slices(namespace, service)`` gives EndpointSlices; ``monotonic`` is the clock."""

    def __init__(self, streams: Streams, slices: Callable[[str, str], list[Obj]], monotonic: Callable[[], float]) -> None:
        self._streams, self._slices, self._monotonic = streams, slices, monotonic
        self._failed: dict[Endpoint, float] = {}
        self._turn = 0

    def _ordered(self, found: list[Endpoint]) -> list[Endpoint]:
        """Round robin, with those that failed a moment ago last."""
        now = self._monotonic()
        self._turn += 1
        rotated = found[self._turn % len(found) :] + found[: self._turn % len(found)]
        return sorted(rotated, key=lambda e: now < self._failed.get(e, 0.0))

    def _failure(self, endpoint: Endpoint) -> None:
        if len(self._failed) >= MAX_PENALTIES:
            self._failed.clear()
        self._failed[endpoint] = self._monotonic() + PENALTY_SECONDS

    async def serve(self, request: web.Request, service: Obj, port: str, path: str) -> web.StreamResponse:
        """Passes one request on and its answer back."""
        where, name = service["metadata"]["namespace"], service["metadata"]["name"]
        upgrade = request.headers.get("Upgrade", "")
        body = (
            await request.read()
            if (request.content_length or 0) <= REPLAY_BYTES and not upgrade and request.can_read_body
            else None
        )
        tried: set[Endpoint] = set()
        problem = ""
        for _ in range(ATTEMPTS):
            # Asked anew each time: the switch of a migration may come between.
            found = [e for e in endpoints(service, self._slices(where, name), port) if e not in tried]
            if not found:
                break
            endpoint = self._ordered(found)[0]
            tried.add(endpoint)
            try:
                stream = await self._open(endpoint)
            except ApiError as error:
                self._failure(endpoint)
                problem = error.message
                continue
            try:
                return await Exchange(stream, endpoint).run(request, path, body, upgrade)
            except Broken as error:
                self._failure(endpoint)
                problem = str(error)
                if error.sent and (request.method not in _IDEMPOTENT or (body is None and request.can_read_body)):
                    break
        if not tried:
            raise unavailable(f"no endpoints available for service {name!r}: is a pod that it selects ready?")
        raise ApiError(502, "BadGateway", f"service {name!r}: {problem or 'no endpoint could be reached'}")

    async def serve_pod(self, request: web.Request, pod: Obj, port: int, path: str) -> web.StreamResponse:
        """The same for one pod."""
        metadata = pod["metadata"]
        cluster = (pod.get("spec") or {}).get("nodeName")
        if not cluster:
            raise not_found("", "pods", metadata["name"])
        endpoint = Endpoint(cluster, metadata["namespace"], metadata["name"], port)
        stream = await self._open(endpoint)
        body = await request.read() if request.can_read_body else None
        try:
            return await Exchange(stream, endpoint).run(request, path, body, request.headers.get("Upgrade", ""))
        except Broken as error:
            raise ApiError(502, "BadGateway", str(error)) from None

    async def _open(self, endpoint: Endpoint) -> Stream:
        header = {"type": "dial", "namespace": endpoint.namespace, "pod": endpoint.pod, "port": endpoint.port}
        return await self._streams.open(endpoint.cluster, header)


class Broken(Exception):
    """The endpoint failed before an answer began. ``sent``: whether it may have seen the request."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class Exchange:
    """One HTTP/1.1 exchange over a tunnel's stream."""

    def __init__(self, stream: Stream, endpoint: Endpoint) -> None:
        self._stream, self._endpoint = stream, endpoint
        self._http = h11.Connection(h11.CLIENT)

    async def run(self, request: web.Request, path: str, body: bytes | None, upgrade: str) -> web.StreamResponse:
        """The answer, sent. Raises :class:`Broken` before one has begun."""
        try:
            return await self._run(request, path, body, upgrade)
        finally:
            await self._stream.close()

    async def _run(self, request: web.Request, path: str, body: bytes | None, upgrade: str) -> web.StreamResponse:
        sent = False
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._send(h11.Request(method=request.method, target=path, headers=self._headers(request, body, upgrade)))
                sent = True
                if not upgrade:
                    async for chunk in _body(request, body):
                        await self._send(h11.Data(data=chunk))
                    await self._send(h11.EndOfMessage())
                answer = await self._answer()
        except (StreamReset, h11.RemoteProtocolError, TimeoutError) as error:
            raise Broken(f"{self._endpoint.pod} on {self._endpoint.cluster}: {error or 'no answer in time'}", sent=sent) from None
        if answer.status_code == 101:
            return await self._upgraded(request, answer)
        response = web.StreamResponse(status=answer.status_code, reason=answer.reason.decode("latin-1"))
        for key, value in answer.headers:
            name = key.decode("latin-1")
            if name.lower() not in _HOP:
                response.headers.add(name, value.decode("latin-1"))
            elif name.lower() == "content-length":
                response.content_length = int(value)
        await response.prepare(request)
        try:
            while True:
                event = await self._event()
                if isinstance(event, h11.Data):
                    await response.write(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                    break
        except (StreamReset, h11.RemoteProtocolError):
            # The answer broke off half way: the client must see that it is not whole.
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response

    def _headers(self, request: web.Request, body: bytes | None, upgrade: str) -> list[tuple[str, str]]:
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in _HOP]
        headers.append(("Host", f"{self._endpoint.pod}:{self._endpoint.port}"))
        headers.append(("X-Forwarded-Host", request.headers.get("Host", "")))
        if upgrade:
            headers += [("Connection", "Upgrade"), ("Upgrade", upgrade)]
            return headers
        headers.append(("Connection", "close"))
        if body is not None:
            headers.append(("Content-Length", str(len(body))))
        elif request.can_read_body:
            length = request.content_length
            headers.append(("Content-Length", str(length)) if length is not None else ("Transfer-Encoding", "chunked"))
        return headers

    async def _send(self, event: Any) -> None:
        data = self._http.send(event)
        if data:
            await self._stream.write(data)

    async def _event(self) -> Any:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._http.receive_data(await self._stream.read())

    async def _answer(self) -> Any:
        while True:
            event = await self._event()
            if isinstance(event, h11.Response):
                return event
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    return event
                continue
            raise h11.RemoteProtocolError("the connection ended without an answer")

    async def _upgraded(self, request: web.Request, answer: Any) -> web.StreamResponse:
        """From now on bytes pass both ways as they come (WebSocket or anything else)."""
        transport = request.transport
        assert transport is not None
        head = [f"HTTP/1.1 101 {answer.reason.decode('latin-1') or 'Switching Protocols'}"]
        head += [f"{k.decode('latin-1')}: {v.decode('latin-1')}" for k, v in answer.headers]
        transport.write(("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))
        inbox = _Inbox()
        # aiohttp hands raw bytes to whatever reads frames for it; here they stay raw.
        request.protocol.set_parser(inbox)  # type: ignore[arg-type]
        rest, _ = self._http.trailing_data
        if rest:
            transport.write(rest)

        async def up() -> None:
            while data := await inbox.get():
                await self._stream.write(data)
            await self._stream.write_eof()

        sending = asyncio.create_task(up())
        try:
            while data := await self._stream.read():
                transport.write(data)
                # As StreamResponse does it: a slow reader holds the stream back.
                await request.protocol._drain_helper()
        except StreamReset:
            pass
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            transport.close()
        return web.Response(status=101)


class _Inbox:
    """What aiohttp's connection feeds with raw bytes after an upgrade. Bounded: beyond it the connection is ended."""

    LIMIT = 4 << 20

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._size = 0

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._size += len(data)
        if self._size > self.LIMIT:
            self._queue.put_nowait(b"")
            return True, b""
        if data:
            self._queue.put_nowait(bytes(data))
        return False, b""

    def feed_eof(self) -> None:
        self._queue.put_nowait(b"")

    def set_exception(self, *_: object) -> None:
        self._queue.put_nowait(b"")

    async def get(self) -> bytes:
        data = await self._queue.get()
        self._size -= len(data)
        return data


async def _body(request: web.Request, body: bytes | None) -> AsyncIterator[bytes]:
    if body is not None:
        if body:
            yield body
    elif request.can_read_body:
        async for chunk in request.content.iter_chunked(64 * 1024):
            yield chunk


def service_slices(found: list[Obj], service: str) -> list[Obj]:
    """Those of one Service."""
    return [s for s in found if labels(s).get(SERVICE_NAME_LABEL) == service]
