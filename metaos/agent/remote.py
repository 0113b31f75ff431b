"""This site's end of the tunnel: the agent dials the hub, and the hub asks for logs, commands and connections.

Streams of the hub: ``log``, ``exec``, ``attach``, ``usage``, ``dial``, ``datagrams``, ``volumes``, ``renew``, ``hubs`` (see
:mod:`metaos.tunnel` for the framing). ``exec`` and ``attach`` carry messages as in the Kubernetes subprotocol
``v5.channel.k8s.io``: the first byte is the channel.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Literal, Protocol, overload

from metaos.agent.contact import Contact
from metaos.agent.datagrams import deliver
from metaos.agent.flows import Counts
from metaos.agent.hubs import Hubs
from metaos.agent.relay import relay_stream
from metaos.agent.websocket import Refused, WebSocket
from metaos.clock import Clock
from metaos.http import path_of
from metaos.plugins.points import Exec
from metaos.resources.errors import ApiError, unavailable
from metaos.resources.scheme import CLUSTER
from metaos.tunnel import FORBIDDEN, MAX_DATA, SUBPROTOCOL, Stream, Tunnel, TunnelError

log = logging.getLogger(__name__)

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
#: A tunnel that stood for so long was good: the next attempt is not delayed as after a failure.
STEADY_SECONDS = 30.0
OPEN_SECONDS = 10.0
#: How long a pod may take to accept a connection: less than the hub waits for an answer.
CONNECT_SECONDS = 5.0
PING_SECONDS = 20.0
#: After the hub was away for others, the tunnel has so long to show that it still carries something.
DOUBT_SECONDS = 5.0


class PodAccess(Protocol):
    """What a stream may do with the pods of this site. Raises ``ApiError``, or ``OSError`` where a connection fails."""

    def logs(
        self,
        namespace: str,
        pod: str,
        container: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        previous: bool = False,
        newest_seconds: float | None = None,
    ) -> AsyncIterator[bytes]:
        """``newest_seconds``: what is older than so many seconds is left out."""
        ...

    async def exec(
        self, namespace: str, pod: str, container: str, command: Sequence[str], *, stdin: bool = False, tty: bool = False
    ) -> Exec: ...

    async def attach(self, namespace: str, pod: str, container: str) -> Exec: ...

    async def connect(self, namespace: str, pod: str, port: int) -> socket.socket: ...


class SiteAccess(Protocol):
    """What the tunnel may do that concerns the site as a whole."""

    async def acting_for(self, header: dict[str, Any]) -> PodAccess:
        """What a stream may do that was opened with this header: ``user`` says in whose name the hub asks, where it is not its
        own business. Raises ``ApiError``."""
        ...

    def renew(self) -> None:
        """The hub asks for another certificate: the authority that made the present one is about to go."""
        ...

    def refusal(self, source: Any, namespace: str, pod: str, port: int, protocol: str = "TCP") -> str | None:
        """Why a pod of another site may not connect, or nothing. ``source``: who it is, as the hub has checked it."""
        ...

    async def datagrams(self, namespace: str, pod: str, port: int) -> socket.socket:
        """A UDP socket to a pod. Raises ``OSError``, ``LookupError``."""
        ...

    async def send_volumes(self, header: dict[str, Any], stream: Stream) -> None:
        """The volumes of work that moves to another site; returns at the end. Raises ``ApiError`` where it does not."""
        ...

    @property
    def counts(self) -> Counts:
        """Of this site's datagrams, and of the bytes that leave it."""
        ...

    async def usage(self) -> dict[str, Any]:
        """What the pods use: ``age`` and ``window`` of the measurement in seconds, ``pods`` as ``inventory.by_pod``."""
        ...


class Remote:
    """Keeps the tunnel of ``site`` open. ``context`` gives the TLS context with the present certificate."""

    def __init__(
        self, hubs: Hubs, site: str, context: Callable[[], ssl.SSLContext], contact: Contact, clock: Clock, pods: SiteAccess
    ) -> None:
        self._hubs, self._path = hubs, path_of(CLUSTER, "", site, "tunnel")
        self._context, self._contact, self._clock, self._pods = context, contact, clock, pods
        self._tunnel: Tunnel | None = None
        self._redial = asyncio.Event()
        self._doubted = asyncio.Event()

    def redial(self) -> None:
        """Open another tunnel, with the present certificate; the streams of this one go on until they end."""
        if self._tunnel is not None:
            self._redial.set()

    @property
    def connected(self) -> bool:
        return self._tunnel is not None

    async def dial(self, header: dict[str, Any]) -> Stream:
        """A stream to another site's pod. Raises ``TunnelError`` while there is no tunnel."""
        if self._tunnel is None:
            raise TunnelError("the hub cannot be reached, and with it no other site")
        return await self._tunnel.open(header)

    async def run(self) -> None:
        """Never returns."""
        self._contact.on_return(self._doubted.set)
        failures = 0
        connections: set[asyncio.Task[None]] = set()  # The present one, and one that ends its streams.
        try:
            while True:
                started = self._clock.monotonic()
                self._redial.clear()
                present = asyncio.create_task(self._connection())
                connections.add(present)
                present.add_done_callback(connections.discard)
                asked = asyncio.create_task(self._redial.wait())
                await asyncio.wait((present, asked), return_when=asyncio.FIRST_COMPLETED)
                asked.cancel()
                if not present.done():
                    present.add_done_callback(_ignore)
                    continue
                failures += 1
                error = present.exception()
                if isinstance(error, ApiError):
                    self._contact.missed(error)
                    if error.code != 503:
                        log.warning("the tunnel to the hub: %s", error.message)
                elif error is not None:
                    raise error
                if self._clock.monotonic() - started > STEADY_SECONDS:
                    failures = 0
                await self._contact.pause(failures)
        finally:
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    async def _connection(self) -> None:
        """One connection from beginning to end. Raises ``ApiError``."""
        hub = self._hubs.url
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                context = self._context() if hub.startswith("https:") else None
                socket = await WebSocket.open(hub + self._path, context, SUBPROTOCOL, MAX_DATA + 1024)
        except Refused as error:
            body = error.body[:300].decode(errors="replace")
            raise ApiError(error.status, "Refused", f"the hub refuses the tunnel: {body or error}") from error
        except (OSError, TimeoutError) as error:
            raise self._unreachable(hub, error) from error
        tunnel = self._tunnel = Tunnel(socket.send, self.serve, client=True)
        self._contact.reached()
        self._doubted.clear()
        watching = asyncio.create_task(self._watch(socket))
        try:
            async with aclosing(socket.messages()) as messages:
                async for message in messages:
                    await tunnel.receive(message)
        except TunnelError as error:
            raise ApiError(400, "BadRequest", str(error)) from error
        except OSError as error:
            raise self._unreachable(hub, error) from error
        finally:
            watching.cancel()
            socket.abort()
            if self._tunnel is tunnel:
                self._tunnel = None
            await tunnel.close("the connection to the hub broke")

    def _unreachable(self, hub: str, error: BaseException) -> ApiError:
        self._hubs.failed(hub)
        return unavailable(f"cannot reach the hub at {hub}: {error or type(error).__name__}")

    async def _watch(self, socket: WebSocket) -> None:
        """A ping now and then, and soon after an outage: does this connection still carry anything?"""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(PING_SECONDS):
                    await self._doubted.wait()
            seconds = DOUBT_SECONDS if self._doubted.is_set() else PING_SECONDS
            self._doubted.clear()
            try:
                async with asyncio.timeout(seconds):
                    await socket.ping()
            except (TimeoutError, OSError):
                log.info("the tunnel carries nothing any more: another one is opened")
                socket.abort()
                return

    # -- what the hub asks for -------------------------------------------------------------------------------

    async def serve(self, header: dict[str, Any], stream: Stream) -> None:
        """One stream that the hub has opened. An error's text becomes the reason of its reset."""
        kind = header.get("type")
        where, pod, container = (str(header.get(k) or "") for k in ("namespace", "pod", "container"))
        try:
            pods = await self._pods.acting_for(header)
            if kind == "log":
                await self._log(pods, header, stream, where, pod, container)
            elif kind == "exec":
                await self._exec(pods, header, stream, where, pod, container)
            elif kind == "attach":
                await self._attach(pods, stream, where, pod, container)
            elif kind == "usage":
                await self._usage(stream)
            elif kind == "renew":
                self._pods.renew()
            elif kind == "hubs":
                self._hubs.learn(header.get("hubs"))
            elif kind == "dial":
                await self._dial(pods, header, stream, where, pod, _number(header, "port") or 0)
            elif kind == "volumes":
                await self._pods.send_volumes(header, stream)
            elif kind == "datagrams":
                await self._datagrams(header, stream, where, pod, _number(header, "port") or 0)
            else:
                raise ApiError(400, "BadRequest", f"this agent knows no stream of type {kind!r}; is it older than the hub?")
        except ApiError as error:
            await stream.reset((FORBIDDEN if error.code == 403 else "") + error.message)

    async def _log(self, pods: PodAccess, header: dict[str, Any], stream: Stream, where: str, pod: str, container: str) -> None:
        tail, newest = _number(header, "tail"), _number(header, "newestSeconds", whole=False)
        lines = pods.logs(
            where,
            pod,
            container,
            follow=bool(header.get("follow")),
            tail=tail,
            previous=bool(header.get("previous")),
            newest_seconds=None if newest is None else float(newest),
        )
        await stream.accept()
        await _until_closed(stream, _write_all(stream, lines))

    async def _attach(self, pods: PodAccess, stream: Stream, where: str, pod: str, container: str) -> None:
        await self._talk(stream, await pods.attach(where, pod, container))

    async def _usage(self, stream: Stream) -> None:
        data = json.dumps(await self._pods.usage()).encode()
        await stream.accept()
        for start in range(0, len(data), MAX_DATA):
            await stream.write(data[start : start + MAX_DATA])

    async def _dial(self, pods: PodAccess, header: dict[str, Any], stream: Stream, where: str, pod: str, port: int) -> None:
        """For a pod of another site (``source``), or for the hub itself: port-forward and the proxy, which are node traffic."""
        if "source" in header and (why := self._pods.refusal(header["source"], where, pod, port)) is not None:
            raise ApiError(403, "Forbidden", why)
        async with asyncio.timeout(CONNECT_SECONDS):
            target = await pods.connect(where, pod, port)
        try:
            await stream.accept()
            if "source" in header:
                await relay_stream(target, stream, partial(self._pods.counts.leave, (where, pod)))
            else:
                await relay_stream(target, stream)
        finally:
            target.close()

    async def _datagrams(self, header: dict[str, Any], stream: Stream, where: str, pod: str, port: int) -> None:
        """By UDP, for a pod of another site."""

        def refusal() -> str | None:
            return self._pods.refusal(header.get("source"), where, pod, port, "UDP")

        if (why := refusal()) is not None:
            raise ApiError(403, "Forbidden", why)
        await deliver(stream, lambda: self._pods.datagrams(where, pod, port), refusal, self._pods.counts, (where, pod))

    async def _exec(self, pods: PodAccess, header: dict[str, Any], stream: Stream, where: str, pod: str, container: str) -> None:
        command = [str(part) for part in header.get("command") or ()]
        process = await pods.exec(where, pod, container, command, stdin=bool(header.get("stdin")), tty=bool(header.get("tty")))
        await self._talk(stream, process)

    async def _talk(self, stream: Stream, process: Exec) -> None:
        feeding = asyncio.ensure_future(_feed(process, stream))
        try:
            await stream.accept()
            await _until_closed(stream, _exec_output(process, stream))
        finally:
            feeding.cancel()
            with suppress(OSError):
                await process.kill()
            await asyncio.gather(feeding, return_exceptions=True)


@overload
def _number(header: dict[str, Any], word: str, *, whole: Literal[True] = True) -> int | None: ...
@overload
def _number(header: dict[str, Any], word: str, *, whole: Literal[False]) -> float | None: ...
def _number(header: dict[str, Any], word: str, *, whole: bool = True) -> float | None:
    """Raises ``ApiError`` 400 where a stream's header says something else there."""
    value = header.get(word)
    wanted = (int,) if whole else (int, float)
    if value is None or (isinstance(value, wanted) and not isinstance(value, bool) and 0 <= value < 2**63):
        return value
    kind = "whole number" if whole else "number"
    raise ApiError(400, "BadRequest", f"{word} {str(value)[:80]!r} of a stream must be a {kind} from 0")


def _ignore(left: asyncio.Task[None]) -> None:
    """What ended a tunnel that was left anyway says nothing about the present one."""
    if not left.cancelled():
        left.exception()


async def _write_all(stream: Stream, chunks: AsyncIterator[bytes], prefix: bytes = b"") -> None:
    async for chunk in chunks:
        for start in range(0, len(chunk), MAX_DATA - 1):
            await stream.write(prefix + chunk[start : start + MAX_DATA - 1])


async def _until_closed(stream: Stream, work: Any) -> None:
    """Do ``work``, but no longer than the stream lives (nobody reads the log any more)."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(stream.wait_closed())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(process: Exec, stream: Stream) -> None:
    """Channels 0 (standard input), 4 (terminal size) and 255 (end of a channel)."""
    with suppress(OSError, ValueError):
        while message := await stream.read():
            channel, data = message[0], message[1:]
            if channel == STDIN and data:
                await process.write(data)
            elif channel == RESIZE:
                size = json.loads(data)
                await process.resize(int(size.get("Width") or 80), int(size.get("Height") or 24))
            elif channel == CLOSE and data[:1] == bytes((STDIN,)):
                await process.write(b"")
        await process.write(b"")


async def _exec_output(process: Exec, stream: Stream) -> None:
    async for channel, data in process.output():
        for start in range(0, len(data), MAX_DATA - 1):
            await stream.write(bytes((channel,)) + data[start : start + MAX_DATA - 1])
    await stream.write(bytes((ERROR,)) + json.dumps(exit_status(await process.wait())).encode())


def exit_status(code: int) -> dict[str, Any]:
    """The ``Status`` on channel 3 that ends an exec."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }
