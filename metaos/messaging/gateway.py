"""The gateway for MQTT 5: a process between clients and the server's own listener for 3.1.1.

Clients of 3.1.1 may come to it too, and are passed through as they are. It keeps no messages: sessions, retained messages and
what was acknowledged are the server's, so it may end at any moment. Settings come as JSON in one line of standard input.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import secrets
import signal
import ssl
import sys
from collections.abc import Awaitable
from contextlib import suppress

import mqtt5

from metaos.clock import Clock, SystemClock
from metaos.config import allow_files, forbid_core_files
from metaos.messaging import mqtt3
from metaos.messaging.child import READY
from metaos.messaging.embedded import GatewaySettings
from metaos.messaging.mqtt import PACKET_BYTES, Out, Sessions, Translator

#: Connections at once. Until the first packet of one is there, and until the server has answered it, in seconds.
CONNECTIONS = 20_000
HELLO_SECONDS = 10.0
#: Longest first packet, of somebody who is nobody yet.
HELLO_BYTES = 16 << 10
#: What may wait for a client or the server, in bytes, before nothing more is read for it.
WAITING_BYTES = 64 << 10
READ_BYTES = 16 << 10


class Gateway:
    def __init__(self, settings: GatewaySettings, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self._sessions = Sessions()
        self._open = 0
        #: Who came last, to say of a client that another one took its place.
        self._present: dict[tuple[str, str], Translator] = {}
        self._listening = self._context()
        self._dialling: ssl.SSLContext | None = None
        if settings.trust:
            self._dialling = ssl.create_default_context(cadata=settings.trust)

    def _context(self) -> ssl.SSLContext | None:
        if not self._settings.certificate:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._settings.certificate, self._settings.key)
        return context

    def renew(self) -> None:
        """The certificate has changed: who comes from now on sees the new one."""
        if self._listening is not None:
            self._listening.load_cert_chain(self._settings.certificate, self._settings.key)

    async def serve(self) -> asyncio.Server:
        """Raises ``OSError``."""
        handshake = {"ssl_handshake_timeout": HELLO_SECONDS} if self._listening else {}
        return await asyncio.start_server(
            self._come,
            self._settings.host,
            self._settings.port,
            ssl=self._listening,
            limit=WAITING_BYTES,
            backlog=1024,
            **handshake,
        )

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= CONNECTIONS:
            writer.transport.abort()
            return
        self._open += 1
        writer.transport.set_write_buffer_limits(WAITING_BYTES)
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await _packet(reader, HELLO_BYTES)
            if hello is not None:
                five = mqtt3.level(hello) == 5
                await (self._translate(hello, reader, writer) if five else self._pass(hello, reader, writer))
        except (OSError, TimeoutError, ValueError, EOFError):
            pass  # Whoever it was has gone, or speaks something else.
        finally:
            self._open -= 1
            _close(writer)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        settings = self._settings
        async with asyncio.timeout(HELLO_SECONDS):
            found = await asyncio.open_connection(
                settings.server_host,
                settings.server_port,
                ssl=self._dialling,
                server_hostname="localhost" if self._dialling else None,
                limit=WAITING_BYTES,
            )
        found[1].transport.set_write_buffer_limits(WAITING_BYTES)
        return found

    # -- 3.1.1 ---------------------------------------------------------------------------------------------------

    async def _pass(self, hello: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await self._dial()
        try:
            server_writer.write(hello)
            await _first(_copy(reader, server_writer), _copy(server_reader, writer))
        finally:
            _close(server_writer)

    # -- 5 -------------------------------------------------------------------------------------------------------

    async def _translate(self, hello: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        translator = Translator(self._sessions, lambda: secrets.token_hex(8))
        begun = translator.said(mqtt5.read(memoryview(hello))[0], self._clock.now())
        server: asyncio.StreamWriter | None = None
        try:
            if begun.close:
                await _send(begun, writer, None)
                return
            try:
                if begun.reset:
                    await self._reset(translator)
                server_reader, server = await self._dial()
            except (OSError, TimeoutError, EOFError):
                await _send(translator.lost(taken_over=False), writer, None)
                return
            self._present[translator.key] = translator
            await _send(begun, writer, server)
            more = asyncio.Event()
            await _first(
                self._from_client(translator, reader, writer, server, more),
                self._from_server(translator, server_reader, writer, server, more),
            )
        finally:
            if server is not None:
                _close(server)
            if self._present.get(translator.key) is translator:
                del self._present[translator.key]
            if translator.gone(self._clock.now()):
                with suppress(OSError, TimeoutError, EOFError, ValueError):
                    await self._reset(translator)

    async def _from_client(
        self,
        translator: Translator,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
        more: asyncio.Event,
    ) -> None:
        while True:
            raw = await _packet(reader)
            if raw is None:
                return
            try:
                packet, used = mqtt5.read(memoryview(raw))
            except (ValueError, IndexError, UnicodeDecodeError) as error:
                out = translator.end(mqtt5.DisconnectReasonCode.MALFORMED_PACKET, str(error)[:200])
            else:
                if used != len(raw):
                    out = translator.end(mqtt5.DisconnectReasonCode.MALFORMED_PACKET, "a packet is shorter than it says")
                else:
                    out = translator.said(packet, self._clock.now())
            await _send(out, writer, server)
            more.set()
            if out.close:
                return

    async def _from_server(
        self,
        translator: Translator,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
        more: asyncio.Event,
    ) -> None:
        while True:
            while translator.full:
                more.clear()
                await more.wait()
            try:
                raw = await _packet(reader)
            except OSError:
                raw = None
            if raw is None:
                present = self._present.get(translator.key)
                await _send(translator.lost(taken_over=present not in (None, translator)), writer, None)
                return
            out = translator.heard(mqtt3.read(raw))
            await _send(out, writer, server)
            if out.close:
                return

    async def _reset(self, translator: Translator) -> None:
        """Has the server forget a session. Raises ``OSError``, ``EOFError``, ``TimeoutError``."""
        reader, writer = await self._dial()
        try:
            writer.write(translator.reset())
            async with asyncio.timeout(HELLO_SECONDS):
                await _packet(reader)
                writer.write(mqtt3.disconnect())
                await writer.drain()
        finally:
            _close(writer)


async def _packet(reader: asyncio.StreamReader, most: int = PACKET_BYTES) -> bytes | None:
    """A whole packet; ``None``: the other side has ended. Raises ``ValueError`` for one that is too long, or none."""
    head = bytearray()
    try:
        while not (length := mqtt3.size(head)):
            head += await reader.readexactly(1 if head else 2)
        if length > most:
            raise ValueError(f"a packet has {length} bytes: {most} is the most")
        return bytes(head) + await reader.readexactly(length - len(head))
    except asyncio.IncompleteReadError:
        return None


async def _send(out: Out, client: asyncio.StreamWriter, server: asyncio.StreamWriter | None) -> None:
    if out.server and server is not None:
        server.write(bytes(out.server))
        await server.drain()
    if out.client:
        client.write(bytes(out.client))
        await client.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(READ_BYTES):
        writer.write(data)
        await writer.drain()


async def _first(*works: Awaitable[None]) -> None:
    """Until one of them is over; the others are cancelled. Raises what the first one raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _close(writer: asyncio.StreamWriter) -> None:
    """What was written still goes out."""
    with suppress(OSError, RuntimeError):
        writer.close()


async def run(settings: GatewaySettings, clock: Clock) -> None:
    """Until it is told to end. Raises ``OSError`` where it cannot listen."""
    gateway = Gateway(settings, clock)
    server = await gateway.serve()
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGHUP, gateway.renew)
    print(READY, file=sys.stderr, flush=True)
    await stop.wait()
    server.close()


def main() -> int:
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG: it ends with the hub
    forbid_core_files()
    allow_files()
    settings = GatewaySettings(**json.loads(sys.stdin.buffer.readline()))
    try:
        asyncio.run(run(settings, SystemClock()))
    except OSError as error:
        print(f"gateway: cannot listen on {settings.host}:{settings.port}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
