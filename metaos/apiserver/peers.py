"""The other hubs of one store: which there are, and streams to sites that are connected to one of them.

Each hub keeps a Lease ``nemo-hub-…`` whose holder is its URL. A hub holds a link to every other: one WebSocket, with the streams
of a tunnel. A site is connected to one hub; another that wants it asks over its links, one after the other. So agents, and what
stands between them and the hubs, need to know nothing of it. What is asked about devices is answered by the hub that leads, over
its link too.

Bounds: ``MOST_HUBS`` hubs; streams and their buffers as in any tunnel; ``MOST_ASKED`` bytes of a question or an answer about
devices, for which ``ANSWER_SECONDS`` are waited.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import aiohttp
from aiohttp import WSMsgType, web

from metaos.apiserver.tunnels import ABSENT, ACCEPT_SECONDS, Tunnels, join
from metaos.client import Client
from metaos.clock import Clock, sleep_or
from metaos.reconcile.informer import Informer
from metaos.resources.errors import ApiError, bad_request, unavailable
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, format_time, name
from metaos.resources.scheme import LEASE
from metaos.store.log import StoreFailed
from metaos.tunnel import FORBIDDEN, MAX_DATA, SUBPROTOCOL, HeaderTooLong, Stream, StreamReset, Tunnel, TunnelError

log = logging.getLogger(__name__)

PATH = "/hubs/link"
PREFIX = "nemo-hub-"
RENEW_SECONDS = 5.0
#: A hub whose Lease has not changed for so long is away, and after so long forgotten.
AWAY_SECONDS, FORGET_SECONDS = 15.0, 600.0
HEARTBEAT_SECONDS, RETRY_SECONDS, CONNECT_SECONDS = 4.0, 1.0, 3.0
#: A link that has just broken is made again so soon: only where its hub has ended that fails at once.
SOON_SECONDS = 0.05
MOST_HUBS = 16
#: A batch of as many devices as may be in one, with what each logs in with.
MOST_ASKED, ANSWER_SECONDS = 32 << 20, 120.0


class Peers:
    """``url``: how the others, and agents, reach this hub. ``context`` gives the TLS context with which it dials them."""

    def __init__(self, client: Client, clock: Clock, url: str, context: Callable[[], ssl.SSLContext], tunnels: Tunnels) -> None:
        self._client, self._clock, self.url, self._context, self._tunnels = client, clock, url, context, tunnels
        #: Answers what another hub asks about devices.
        self.desk: Callable[[str, Sequence[Any]], Awaitable[Obj]] | None = None
        #: URL → (its Lease, since when it is so).
        self._seen: dict[str, tuple[Obj, float]] = {}
        self._links: dict[str, Tunnel] = {}
        #: Where nothing listens any more: the hub's process has ended, and not only its answers.
        self._refused: set[str] = set()
        self._dialling: dict[str, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        self._hubs: tuple[str, ...] = ()

    @property
    def _name(self) -> str:
        return f"{PREFIX}{hashlib.sha256(self.url.encode()).hexdigest()[:10]}"

    def greeting(self) -> dict[str, Any]:
        """What agents are told: the URLs of all hubs that are there, this one first."""
        return {"type": "hubs", "hubs": list(self._hubs)}

    def gone(self, url: str) -> bool:
        """Whether a hub's process has ended, as its machine says."""
        return url in self._refused

    @property
    def linked(self) -> list[str]:
        return sorted(self._links)

    async def run(self, leases: Informer) -> None:
        """Until cancelled."""
        leases.on_change(self._see)
        try:
            while True:
                try:
                    await self._renew()
                    await self._look()
                except (ApiError, StoreFailed) as error:
                    log.debug("the hubs cannot be looked at: %s", error)
                self._news.clear()
                await sleep_or(self._clock, RENEW_SECONDS, self._news)
        finally:
            for task in self._dialling.values():
                task.cancel()
            await asyncio.gather(*self._dialling.values(), return_exceptions=True)
            with suppress(ApiError, StoreFailed, TimeoutError):
                async with asyncio.timeout(1):
                    await self._client.delete(LEASE, self._name, SYSTEM_NAMESPACE)

    def _see(self, old: Obj | None, new: Obj | None) -> None:
        lease = new or old or {}
        if not name(lease).startswith(PREFIX):
            return
        spec = lease.get("spec") or {}
        url = str(spec.get("holderIdentity") or "")
        if new is None:
            self._seen.pop(url, None)
            self._news.set()
        elif url != self.url and (url in self._seen or len(self._seen) < MOST_HUBS):
            fresh = url not in self._seen or self._clock.monotonic() - self._seen[url][1] > AWAY_SECONDS
            self._seen[url] = lease, self._clock.monotonic()
            if fresh:
                self._news.set()

    async def _renew(self) -> None:
        spec = {
            "holderIdentity": self.url,
            "renewTime": format_time(self._clock.now(), micro=True),
            "leaseDurationSeconds": round(AWAY_SECONDS),
        }
        try:
            await self._client.patch(LEASE, self._name, SYSTEM_NAMESPACE, {"spec": spec})
        except ApiError as error:
            if error.code != 404:
                raise
            await self._client.create({**LEASE.empty(self._name, SYSTEM_NAMESPACE), "spec": spec})

    async def _look(self) -> None:
        now = self._clock.monotonic()
        for lease, since in list(self._seen.values()):
            if now - since > FORGET_SECONDS:
                # As it was when last seen: this one may be behind, and the other has renewed it.
                version = lease["metadata"]["resourceVersion"]
                with suppress(ApiError, StoreFailed):
                    await self._client.delete(LEASE, name(lease), SYSTEM_NAMESPACE, resource_version=version)
        there = sorted(url for url, (_, since) in self._seen.items() if now - since <= AWAY_SECONDS)
        for url in there:
            if url not in self._dialling or self._dialling[url].done():
                self._dialling[url] = asyncio.create_task(self._dial(url), name=f"link to {url}")
        hubs = (self.url, *there)
        if hubs != self._hubs:
            self._hubs = hubs
            log.info("the hubs of this store: %s", ", ".join(hubs))
            await self._tunnels.announce(self.greeting())

    # -- links ---------------------------------------------------------------------------------------------

    async def _dial(self, url: str) -> None:
        """Keeps a link to one other hub as long as it is there."""
        reached = False
        while url in self._seen and self._clock.monotonic() - self._seen[url][1] <= AWAY_SECONDS:
            pause = RETRY_SECONDS
            try:
                timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS)
                async with (
                    aiohttp.ClientSession(timeout=timeout) as session,
                    session.ws_connect(
                        url + PATH,
                        ssl=self._context(),
                        protocols=(SUBPROTOCOL,),
                        heartbeat=HEARTBEAT_SECONDS,
                        max_msg_size=MAX_DATA + 1024,
                    ) as socket,
                ):
                    self._refused.discard(url)
                    pause, reached = SOON_SECONDS, True
                    await self._serve(url, socket, client=True)
            except aiohttp.ClientConnectorError as error:
                # An address that never was the right one says nothing: two hubs would take each other's lease for ever.
                if reached and isinstance(error.os_error, ConnectionRefusedError):
                    self._refused.add(url)
            except (aiohttp.ClientError, OSError, TimeoutError, TunnelError):
                pass
            await self._clock.sleep(pause)
        self._refused.discard(url)

    async def _serve(self, url: str, socket: Any, *, client: bool) -> None:
        tunnel = Tunnel(socket.send_bytes, self._relay, client=client)
        if client:
            self._links[url] = tunnel
            log.info("linked to the hub %s", url)
        try:
            async for message in socket:
                if message.type is WSMsgType.BINARY:
                    await tunnel.receive(message.data)
        finally:
            if client and self._links.get(url) is tunnel:
                del self._links[url]
                log.info("the link to the hub %s ended", url)
            await tunnel.close("the link between the hubs broke")

    async def accept(self, request: web.Request) -> web.WebSocketResponse:
        """Another hub's end. The caller has made sure that it is one."""
        socket = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,), heartbeat=HEARTBEAT_SECONDS, max_msg_size=MAX_DATA + 1024, compress=False
        )
        await socket.prepare(request)
        with suppress(TunnelError, ConnectionError):
            await self._serve("", socket, client=False)
        await socket.close()
        return socket

    async def _relay(self, header: dict[str, Any], stream: Stream) -> None:
        """Another hub wants a site that may be connected here, or an answer about devices."""
        if header.get("type") == "desk" and self.desk is not None:
            await self._answer(stream, self.desk)
            return
        wanted = header.get("header")
        if header.get("type") != "site" or not isinstance(wanted, dict):
            await stream.reset(f"a hub may open streams of type site or desk, not {header.get('type')!r}")
            return
        try:
            far = await self._tunnels.open_here(str(header.get("cluster") or ""), wanted)
        except ApiError as error:
            await stream.reset((FORBIDDEN if error.code == 403 else "") + error.message)
            return
        await stream.accept()
        await join(stream, far)

    # -- devices -------------------------------------------------------------------------------------------

    async def ask(self, url: str, asked: str, given: Sequence[Any]) -> Obj:
        """What the desk of another hub, the one that leads, answers. Raises ``ApiError``."""
        tunnel = self._links.get(url)
        if tunnel is None:
            who = f"the hub that leads, {url}, is not linked to this one" if url else "no hub leads"
            raise unavailable(f"devices are served by the hub that leads: {who} at this moment; try again")
        stream: Stream | None = None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                stream = await tunnel.open({"type": "desk"})
                await stream.write(json.dumps([asked, *given]).encode())
                await stream.write_eof()
                answer = json.loads(await _whole(stream))
        except (TunnelError, StreamReset, ValueError) as error:
            raise unavailable(f"the hub that leads, {url}, did not answer about devices: {error}; try again") from error
        except TimeoutError:
            raise unavailable(f"the hub that leads, {url}, did not answer in {ANSWER_SECONDS:g} s: try again") from None
        finally:
            if stream is not None:
                await stream.reset("the asking hub has what it needs, or gave up")
        if "error" in answer:
            raise ApiError.of(answer["error"])
        found: Obj = answer["found"]
        return found

    async def _answer(self, stream: Stream, desk: Callable[[str, Sequence[Any]], Awaitable[Obj]]) -> None:
        asked, *given = json.loads(await _whole(stream))
        try:
            answer: Obj = {"found": await desk(str(asked), given)}
        except ApiError as error:
            answer = {"error": error.status()}
        await stream.write(json.dumps(answer).encode())

    # -- sites ---------------------------------------------------------------------------------------------

    async def open(self, cluster: str, header: dict[str, Any]) -> Stream:
        """A stream to a site at whichever hub it is connected to. Raises ``ApiError``."""
        for tunnel in list(self._links.values()):
            stream: Stream | None = None
            try:
                async with asyncio.timeout(ACCEPT_SECONDS):
                    stream = await tunnel.open({"type": "site", "cluster": cluster, "header": header})
                    await stream.accepted()
                    return stream
            except HeaderTooLong as error:
                raise bad_request(f"{error}: is the command too long?") from None
            except StreamReset as error:
                why = str(error)
                if why.startswith(FORBIDDEN):
                    raise ApiError(403, "Forbidden", why.removeprefix(FORBIDDEN)) from None
                if why != ABSENT:
                    raise ApiError(502, "BadGateway", why) from None
            except TunnelError:
                continue
            except BaseException as error:
                if stream is not None:
                    await stream.reset("the hub waited in vain for another hub's answer")
                if isinstance(error, TimeoutError):
                    continue
                raise
        raise unavailable(f"site {cluster!r} is not connected to any hub: its agent is away, or has no way to them")


async def _whole(stream: Stream) -> bytes:
    """All that the other side says. Raises ``StreamReset``, ``ValueError``."""
    found = bytearray()
    while part := await stream.read():
        found += part
        if len(found) > MOST_ASKED:
            raise ValueError(f"it is more than {MOST_ASKED} bytes")
    return bytes(found)
