"""The hub's end of the tunnels: which sites are connected, and streams to them and between them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from aiohttp import WSMsgType, web

from metaos.apiserver.dialling import PROTOCOLS, VOLUMES, Refused
from metaos.resources.errors import ApiError, bad_request, unavailable
from metaos.tunnel import FORBIDDEN, MAX_DATA, SUBPROTOCOL, HeaderTooLong, Stream, StreamReset, Tunnel, TunnelError

log = logging.getLogger(__name__)

#: How long a site may take to accept a stream (a dial that connects).
ACCEPT_SECONDS = 10.0
HEARTBEAT_SECONDS = 20.0
#: What a hub says to another that wants a site which is not connected to it.
ABSENT = "the site is not connected to this hub"
#: A user's stream (a log, a command, a port) on which nothing passes ends after this long, as a kubelet has it.
#: Connections between pods may be idle for as long as their ends wish.
IDLE_SECONDS = 4 * 3600.0


class Streams(Protocol):
    """Opens streams to sites. Raises ``ApiError`` 503 where the site is not connected or refuses."""

    async def open(self, cluster: str, header: dict[str, Any]) -> Stream: ...


#: What site ``target`` is told when site ``source`` dials (namespace, pod, port) there. Raises ``Refused``.
DialCheck = Callable[[str, str, dict[str, Any]], dict[str, Any]]


class Tunnels:
    """One tunnel for each connected site; a second one of the same site replaces the first.

    Where the second one comes with another certificate, the site has renewed it and knows of the first: that one carries
    its streams to their end, and takes no new ones.
    """

    def __init__(self, may_dial: DialCheck) -> None:
        #: Where sites are that are not connected here; and what a site is told when it connects.
        self.elsewhere: Streams | None = None
        self.greeting: Callable[[], dict[str, Any] | None] = lambda: None
        self._tunnels: dict[str, Tunnel] = {}
        self._credentials: dict[str, str] = {}
        #: By site: the tunnel that only ends its streams; one at most.
        self._leaving: dict[str, Tunnel] = {}
        self._may_dial = may_dial

    def connected(self) -> list[str]:
        return sorted(self._tunnels)

    async def open(self, cluster: str, header: dict[str, Any]) -> Stream:
        if cluster not in self._tunnels:
            if self.elsewhere is not None:
                return await self.elsewhere.open(cluster, header)
            raise unavailable(f"site {cluster!r} is not connected: its agent is away, or has no way to this hub")
        return await self.open_here(cluster, header)

    async def open_here(self, cluster: str, header: dict[str, Any]) -> Stream:
        """Only where the site is connected to this very hub; otherwise the error's message is :data:`ABSENT`."""
        tunnel = self._tunnels.get(cluster)
        if tunnel is None:
            raise unavailable(ABSENT)
        stream: Stream | None = None
        try:
            async with asyncio.timeout(ACCEPT_SECONDS):
                stream = await tunnel.open(header)
                await stream.accepted()
                return stream
        except HeaderTooLong as error:
            raise bad_request(f"{error}: is the command too long?") from None
        except TunnelError as error:
            raise unavailable(f"site {cluster!r}: {error}") from None
        except StreamReset as error:
            if str(error).startswith(FORBIDDEN):
                why = str(error).removeprefix(FORBIDDEN)
                raise ApiError(403, "Forbidden", f"site {cluster!r} does not let you: {why}") from None
            raise ApiError(502, "BadGateway", f"site {cluster!r}: {error}") from None
        except BaseException as error:  # the caller may have gone, too
            if stream is not None:
                await stream.reset("the hub waited in vain for the site's answer")
            if isinstance(error, TimeoutError):
                raise unavailable(f"site {cluster!r} did not answer within {ACCEPT_SECONDS:g} s") from None
            raise

    async def announce(self, header: dict[str, Any]) -> None:
        """Tells every connected site something by a stream that carries nothing else. Who does not take it finds out later."""
        await asyncio.gather(*(_tell(tunnel, header) for tunnel in list(self._tunnels.values())))

    async def serve(self, cluster: str, request: web.Request, credential: str = "") -> web.WebSocketResponse:
        """Accepts a site's WebSocket and serves it until it ends. ``credential``: the certificate that it came with."""
        socket = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,), heartbeat=HEARTBEAT_SECONDS, max_msg_size=MAX_DATA + 1024, compress=False
        )
        await socket.prepare(request)

        async def relay(header: dict[str, Any], stream: Stream) -> None:
            await self._relay(cluster, header, stream)

        loop = asyncio.get_running_loop()
        tunnel = Tunnel(socket.send_bytes, relay, client=False)
        await self._replace(cluster, tunnel, credential)
        log.info("site %s is connected", cluster)
        greeting = self.greeting()
        greeted = None if greeting is None else asyncio.create_task(_tell(tunnel, greeting))
        try:
            swept = loop.time()
            while not tunnel.closed and (self._tunnels.get(cluster) is tunnel or tunnel.streams):
                if loop.time() - swept >= HEARTBEAT_SECONDS:
                    swept = loop.time()
                    tunnel.end_idle(IDLE_SECONDS, _is_users)
                try:
                    message = await socket.receive(timeout=HEARTBEAT_SECONDS)
                except TimeoutError:
                    continue
                if message.type is WSMsgType.BINARY:
                    await tunnel.receive(message.data)
                elif message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
                    break
        except (TunnelError, ConnectionError) as error:
            log.warning("tunnel of site %s: %s", cluster, error)
        finally:
            if greeted is not None:
                greeted.cancel()
            if self._leaving.get(cluster) is tunnel:
                del self._leaving[cluster]
            if self._tunnels.get(cluster) is tunnel:
                del self._tunnels[cluster]
                del self._credentials[cluster]
                log.info("site %s is not connected any more", cluster)
            await tunnel.close("the connection to the site broke")
            await socket.close()
        return socket

    async def _replace(self, cluster: str, tunnel: Tunnel, credential: str) -> None:
        before, came_with = self._tunnels.get(cluster), self._credentials.get(cluster)
        self._tunnels[cluster], self._credentials[cluster] = tunnel, credential
        if before is None:
            return
        if came_with == credential:
            await before.close("the site has opened another tunnel")
            return
        older = self._leaving.get(cluster)
        self._leaving[cluster] = before
        if older is not None:
            await older.close("the site has opened other tunnels")

    async def _relay(self, source: str, header: dict[str, Any], stream: Stream) -> None:
        """A stream from one site to a pod of another, where a Service leads there."""
        target = str(header.get("cluster") or "")
        if str(header.get("type")) not in (*PROTOCOLS, VOLUMES):
            types = ", ".join((*PROTOCOLS, VOLUMES))
            await stream.reset(f"a site may open streams of type {types} only, not {header.get('type')!r}")
            return
        try:
            far = await self.open(target, self._may_dial(source, target, header))
        except Refused as error:
            await stream.reset(str(error))
            return
        except ApiError as error:
            await stream.reset(error.message)
            return
        await stream.accept()
        await join(stream, far)

    async def close(self) -> None:
        for tunnel in (*self._tunnels.values(), *self._leaving.values()):
            await tunnel.close("the hub stops")


async def _tell(tunnel: Tunnel, header: dict[str, Any]) -> None:
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(ACCEPT_SECONDS):
            await (await tunnel.open(header)).write_eof()


def _is_users(header: dict[str, Any]) -> bool:
    return "source" not in header and "cluster" not in header


async def join(one: Stream, other: Stream) -> None:
    """Carries data both ways until both have ended; a reset of one resets the other."""

    async def carry(source: Stream, sink: Stream) -> None:
        while data := await source.read():
            await sink.write(data)
        await sink.write_eof()

    tasks = [asyncio.create_task(carry(one, other)), asyncio.create_task(carry(other, one))]
    try:
        await asyncio.gather(*tasks)
        await one.close()
        await other.close()
    except ConnectionError as error:
        await one.reset(str(error))
        await other.reset(str(error))
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
