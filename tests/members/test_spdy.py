"""Commands over SPDY: standard input ends alone, and what the server answers instead is told. The peer is written here."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from random import Random

import pytest

from metaos.clock import SystemClock
from metaos.http import HttpClient
from metaos.members.spdy import SpdyExec
from metaos.resources.errors import ApiError
from metaos.spdy import FLAG_FIN, PING, SYN_STREAM, Headers, control, data_frame, frames


class Peer:
    """An API server that runs ``cat``: it answers when its input ends. ``answer``: what it says instead of 101."""

    def __init__(self) -> None:
        self.answer = b""
        self.asked = b""
        self.streams: dict[str, int] = {}
        self.serving: list[asyncio.Task[None]] = []
        self.status: bytes = json.dumps({"status": "Success"}).encode()

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked = await reader.readuntil(b"\r\n\r\n")
        writer.write(self.answer or b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
        buffer, compression, said = bytearray(), Headers(), b""
        while not self.answer and (data := await reader.read(1000)):
            buffer += data
            for kind, flags, stream, payload in frames(buffer):
                if kind == SYN_STREAM:
                    self.streams[compression.decode(payload[10:])["streamtype"]] = struct.unpack_from(">I", payload)[0]
                    writer.write(control(PING, 0, b"1234"))
                elif kind == 0 and stream == self.streams["stdin"]:
                    said += payload
                    if flags & FLAG_FIN:
                        writer.write(data_frame(self.streams["stdout"], said) + data_frame(self.streams["stderr"], b"done"))
                        writer.write(data_frame(self.streams["error"], self.status, FLAG_FIN))
        writer.close()


@pytest.fixture
async def peer() -> AsyncIterator[tuple[Peer, HttpClient]]:
    found = Peer()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield found, HttpClient(f"http://127.0.0.1:{port}", clock=SystemClock(), random=Random(1))
    server.close()
    await asyncio.gather(*found.serving)


async def test_input_ends_alone_and_all_output_comes(peer: tuple[Peer, HttpClient]) -> None:
    found, client = peer
    running = await SpdyExec.open(client, "/exec?command=cat", (("Impersonate-User", "nemo:alice"),), stdin=True, tty=False)
    sent = bytes(range(256)) * 1000
    await running.write(sent)
    await running.write(b"")
    heard = {1: b"", 2: b""}
    async for number, data in running.output():
        heard[number] += data
    assert heard == {1: sent, 2: b"done"} and await running.wait() == 0
    assert b"POST /exec?command=cat" in found.asked and b"Impersonate-User: nemo:alice" in found.asked
    assert list(found.streams) == ["error", "stdin", "stdout", "stderr"]


async def test_how_a_command_ended_is_told(peer: tuple[Peer, HttpClient]) -> None:
    found, client = peer
    causes = [{"reason": "ExitCode", "message": "7"}]
    for status, code in ((json.dumps({"status": "Failure", "details": {"causes": causes}}).encode(), 7), (b"no JSON", None)):
        found.status = status
        running = await SpdyExec.open(client, "/exec", (), stdin=True, tty=False)
        await running.write(b"")
        assert [number async for number, _ in running.output()] == [2]
        if code is None:
            with pytest.raises(ApiError, match="cannot be read"):
                await running.wait()
        else:
            assert await running.wait() == code


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (b'HTTP/1.1 403 Forbidden\r\nContent-Length: 40\r\n\r\n{"kind":"Status","message":"you may not"}', 403, "you may not"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\naway", 502, "away"),
        (b"no HTTP\r\n\r\n", 503, "protocol"),
    ],
)
async def test_a_refusal_is_the_servers_own(peer: tuple[Peer, HttpClient], answer: bytes, code: int, said: str) -> None:
    found, client = peer
    found.answer = answer
    with pytest.raises(ApiError, match=said) as refused:
        await SpdyExec.open(client, "/exec", (), stdin=True, tty=False)
    assert refused.value.code == code
