"""The tunnel's protocol against a peer that sends anything: errors are its own, and memory stays within the stated bounds."""

import asyncio
import json
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.agent.hubs import Hubs
from metaos.agent.remote import Remote
from metaos.apiserver.measured import MOST, parsed
from metaos.clock import SystemClock
from metaos.tunnel import MAX_CONTROL, MAX_DATA, OVERHEAD, WINDOW, Frame, Multiplexer, Stream, StreamReset, Tunnel, TunnelError

numbers = st.sampled_from([0, 1, 2, 3, 4, 5, 2**31, 2**32 - 1])
payloads = st.one_of(
    st.binary(max_size=40),
    st.just(b"{}"),
    st.just(b"[" * 8000),
    st.just(b'{"a":' * 1500),
    st.just(b"1" * 8192),
    st.just((WINDOW - 1).to_bytes(4, "big")),
    st.just((2**32 - 1).to_bytes(4, "big")),
    st.just(bytes(MAX_DATA)),
)
frames = st.builds(
    lambda kind, number, payload: bytes((kind,)) + number.to_bytes(4, "big") + payload, st.integers(0, 9), numbers, payloads
)


@settings(max_examples=300, deadline=None)
@given(st.lists(frames | st.binary(max_size=12), max_size=60), st.booleans())
def test_any_frames_end_in_an_error_of_the_protocols_or_within_its_bounds(messages: list[bytes], client: bool) -> None:
    core = Multiplexer(client=client, max_streams=3)
    held: dict[int, int] = {}
    for message in messages:
        try:
            event = core.receive(message)
        except TunnelError as error:
            assert 0 < len(str(error)) < 300
            return
        assert len(core) <= 3 and len(core.outbox) <= len(messages)
        if event is not None and event.type is Frame.DATA:
            held[event.stream] = held.get(event.stream, 0) + len(event.data) + OVERHEAD
            # Nobody reads: no more than the window is ever accepted.
            assert held[event.stream] <= WINDOW
        elif event is not None and event.type in (Frame.RESET, Frame.OPEN):
            held.pop(event.stream, None)


async def test_a_peer_that_floods_costs_bounded_memory_and_is_cut_off() -> None:
    """Opens, pings and data without end, to one who cannot send a byte."""
    stuck = asyncio.Event()

    async def never(_: bytes) -> None:
        await stuck.wait()

    async def serve(header: dict[str, Any], stream: Stream) -> None:
        await stuck.wait()

    tunnel = Tunnel(never, serve, client=False, max_streams=16)
    random, refused = Random(3), 0
    for turn in range(20_000):
        kind = (Frame.OPEN, Frame.PING, Frame.DATA)[turn % 3]
        number = 2 * random.randrange(40) + 1
        payload = {Frame.OPEN: b"{}", Frame.PING: b"12345678", Frame.DATA: bytes(1000)}[kind]
        try:
            await tunnel.receive(bytes((kind,)) + number.to_bytes(4, "big") + payload)
        except TunnelError as error:
            refused += 1
            if "does not read" in str(error):
                break  # Here the owner closes the transport.
        assert tunnel.streams <= 16 and len(tunnel._served) <= 16 and len(tunnel._control) <= MAX_CONTROL
    assert refused and turn < 3 * MAX_CONTROL, "it broke the rules and was told so"
    held = sum(len(message) for stream in tunnel._streams.values() for message in stream._messages)
    assert held <= 16 * WINDOW
    await tunnel.close()


# -- what the hub asks an agent for ------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
headers = st.dictionaries(
    st.sampled_from(["type", "namespace", "pod", "container", "port", "tail", "newestSeconds", "command", "follow", "source"]),
    anything | st.sampled_from(["log", "exec", "attach", "usage", "dial", "renew"]),
)


class Nothing:
    """A site without pods."""

    def renew(self) -> None: ...

    def refusal(self, *_: object) -> str | None:
        return None

    async def usage(self) -> dict[str, Any]:
        return {"pods": []}

    async def connect(self, namespace: str, pod: str, port: int) -> Any:
        assert isinstance(port, int) and isinstance(pod, str) and isinstance(namespace, str)
        raise ConnectionRefusedError(f"no pod {pod}")

    async def exec(self, namespace: str, pod: str, container: str, command: list[str], **_: object) -> Any:
        assert all(isinstance(part, str) for part in command)
        raise LookupError(f"no pod {pod}")

    async def logs(self, *_: object, tail: int | None, **__: object) -> Any:
        assert tail is None or tail >= 0
        yield b"line\n"


@settings(max_examples=150, deadline=None)
@given(headers)
def test_any_header_is_served_or_refused_in_words(header: dict[str, Any]) -> None:
    async def run() -> None:
        there: asyncio.Queue[bytes] = asyncio.Queue()
        back: asyncio.Queue[bytes] = asyncio.Queue()
        remote = Remote(Hubs("https://hub"), "edge", lambda: None, None, SystemClock(), Nothing())  # type: ignore[arg-type]

        async def quiet(header: dict[str, Any], stream: Stream) -> None: ...

        hub = Tunnel(there.put, quiet, client=False)
        agent = Tunnel(back.put, remote.serve, client=True)

        async def carry(queue: asyncio.Queue[bytes], to: Tunnel) -> None:
            while True:
                await to.receive(await queue.get())

        carrying = [asyncio.create_task(carry(there, agent)), asyncio.create_task(carry(back, hub))]
        stream = await hub.open(header)
        try:
            async with asyncio.timeout(5):
                while await stream.read():
                    pass
        except StreamReset as error:
            assert str(error) and "object at 0x" not in str(error) and len(str(error)) < 600
        await hub.close()
        await agent.close()
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    asyncio.run(run())


# -- what a site says it uses ------------------------------------------------------------------------------


@given(st.binary(max_size=40) | anything.map(lambda v: json.dumps(v).encode()))
def test_any_measurement_is_refused_or_countable(data: bytes) -> None:
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        parsed(data, 1e9)


@pytest.mark.parametrize("value", ["1e400", "-1e400", '"inf"', '"nan"', "true", "[]", "1e17", "-5"])
def test_figures_stay_countable(value: str) -> None:
    pods = f'[{{"namespace":"a","name":"b","containers":{{"c":{{"cpu":{value},"memory":{value}}}}}}}]'
    try:
        report = parsed(f'{{"age":{value},"window":{value},"pods":{pods}}}'.encode(), 1e9)
    except (ValueError, TypeError):
        return
    assert 0 <= report.window <= MOST and 1e9 - MOST <= report.time <= 1e9
    assert all(0 <= n <= MOST for n in report.pods[("a", "b")]["c"].values())
