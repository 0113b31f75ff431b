"""The tunnel: nothing lost, nothing reordered, no more in flight than the window, whatever the interleaving."""

import asyncio
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.tunnel import (
    MAX_DATA,
    MAX_HEADER,
    MAX_UNREAD,
    OVERHEAD,
    WINDOW,
    Frame,
    HeaderTooLong,
    Multiplexer,
    Stream,
    StreamReset,
    Tunnel,
    TunnelError,
)

Step = tuple[str, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["open", "data", "data", "data", "read", "read", "eof", "deliver", "deliver", "deliver", "reset"]),
        st.integers(0, 1),
        st.integers(0, 2**20),
    ),
    max_size=200,
)


class Peer:
    """One side of the protocol with an application that reads when told."""

    def __init__(self, client: bool) -> None:
        self.core = Multiplexer(client=client, max_streams=4)
        self.wire: deque[bytes] = deque()  # towards the other side
        self.known: list[int] = []
        self.sent: dict[int, list[bytes]] = {}
        self.got: dict[int, list[bytes]] = {}
        self.unread: dict[int, deque[bytes]] = {}
        self.ended: set[int] = set()
        self.reset: set[int] = set()

    def receive(self, message: bytes) -> None:
        event = self.core.receive(message)
        self.wire.extend(self.core.outbox)
        self.core.outbox.clear()
        if event is None:
            return
        if event.type is Frame.OPEN:
            self.known.append(event.stream)
        elif event.type is Frame.DATA:
            self.got.setdefault(event.stream, []).append(event.data)
            self.unread.setdefault(event.stream, deque()).append(event.data)
            held = sum(len(m) + OVERHEAD for m in self.unread[event.stream])
            assert held <= WINDOW, "more is buffered than the window allows"
        elif event.type is Frame.EOF:
            self.ended.add(event.stream)
        elif event.type is Frame.RESET:
            self.reset.add(event.stream)

    def read(self, stream: int) -> None:
        waiting = self.unread.get(stream)
        if waiting:
            frame = self.core.consumed(stream, len(waiting.popleft()))
            self.wire.extend([frame] if frame else [])


@given(steps)
@settings(max_examples=150, deadline=None)
def test_any_interleaving_keeps_every_message_in_order(plan: list[Step]) -> None:
    sides = (Peer(True), Peer(False))
    for action, which, number in plan:
        me, other = sides[which], sides[1 - which]
        stream = me.known[number % len(me.known)] if me.known else 0
        if action == "open" and len(me.core) < 4:
            opened, frame = me.core.open({"n": number})
            me.known.append(opened)
            me.wire.append(frame)
        elif action == "deliver" and other.wire:
            me.receive(other.wire.popleft())
        elif action == "data" and me.core.room(stream, size := number % MAX_DATA + 1):
            payload = number.to_bytes(4, "big") * (size // 4) + b"x" * (size % 4)
            me.wire.append(me.core.data(stream, payload))
            me.sent.setdefault(stream, []).append(payload)
        elif action == "read" and stream:
            me.read(stream)
        elif action in ("eof", "reset") and stream:
            ended = me.core.eof(stream) if action == "eof" else me.core.reset(stream, "why")
            if action == "reset":
                me.reset.add(stream)
            me.wire.extend([ended] if ended else [])
    while sides[0].wire or sides[1].wire:
        for me, other in (sides, sides[::-1]):
            if other.wire:
                me.receive(other.wire.popleft())
    for me, other in (sides, sides[::-1]):
        for stream, messages in me.sent.items():
            arrived = other.got.get(stream, [])
            assert arrived == messages[: len(arrived)]
            if stream not in me.reset | other.reset:
                assert arrived == messages


@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_refused_or_ignored_but_never_break_it(message: bytes) -> None:
    core = Multiplexer(client=False)
    try:
        core.receive(message)
    except TunnelError as error:
        assert str(error)


def test_limits_are_held() -> None:
    client, hub = Multiplexer(client=True, max_streams=9), Multiplexer(client=False, max_streams=2)
    with pytest.raises(HeaderTooLong):
        client.open({"x": "y" * MAX_HEADER})
    for _ in range(2):
        assert hub.receive(client.open({})[1])
    number, frame = client.open({})
    assert hub.receive(frame) is None
    refusal = client.receive(hub.outbox[0])
    assert refusal is not None and refusal.type is Frame.RESET and refusal.stream == number
    with pytest.raises(TunnelError, match="may not open"):
        hub.receive(frame[:1] + (2).to_bytes(4, "big") + b"{}")
    with pytest.raises(TunnelError, match="window"):
        for _ in range(10):
            hub.receive(bytes((Frame.DATA,)) + (1).to_bytes(4, "big") + bytes(MAX_DATA))
    with pytest.raises(TunnelError, match="credit"):
        hub.receive(bytes((Frame.WINDOW,)) + (1).to_bytes(4, "big") + (2**31).to_bytes(4, "big"))


class Pair:
    """Two tunnels in one process; messages cross through a bounded queue."""

    def __init__(self, on_open: Any) -> None:
        self.queues: tuple[asyncio.Queue[bytes], asyncio.Queue[bytes]] = (asyncio.Queue(4), asyncio.Queue(4))
        self.agent = Tunnel(self.queues[0].put, on_open, client=True)
        self.hub = Tunnel(self.queues[1].put, on_open, client=False)

    async def __aenter__(self) -> "Pair":
        async def carry(queue: asyncio.Queue[bytes], to: Tunnel) -> None:
            while True:
                await to.receive(await queue.get())

        self.tasks = [
            asyncio.create_task(carry(self.queues[0], self.hub)),
            asyncio.create_task(carry(self.queues[1], self.agent)),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.agent.close()
        await self.hub.close()


async def echo(header: dict[str, Any], stream: Stream) -> None:
    if header["type"] == "refuse":
        raise RuntimeError("no such pod")
    await stream.accept()
    while message := await stream.read():
        await stream.write(message)


async def read_all(stream: Stream) -> list[bytes]:
    messages = []
    while message := await stream.read():
        messages.append(message)
    return messages


async def test_messages_keep_their_boundaries_beyond_the_window_both_ways_at_once() -> None:
    async with Pair(echo) as pair:
        streams = [await side.open({"type": "echo"}) for side in (pair.hub, pair.agent) for _ in range(3)]
        messages = [bytes([i % 251]) * (i * 997 % MAX_DATA + 1) for i in range(40)]

        async def talk(stream: Stream) -> list[bytes]:
            async def write() -> None:
                for message in messages:
                    await stream.write(message)
                await stream.write_eof()

            writer = asyncio.create_task(write())
            answer = await read_all(stream)
            await writer
            return answer

        for answer in await asyncio.wait_for(asyncio.gather(*(talk(s) for s in streams)), 30):
            assert answer == messages
        assert len(pair.hub._core) == len(pair.agent._core) == 0
        assert not pair.hub._streams and not pair.agent._streams


async def test_a_slow_reader_does_not_hold_up_another_stream() -> None:
    async with Pair(echo) as pair:
        slow, quick = await pair.hub.open({"type": "echo"}), await pair.hub.open({"type": "echo"})

        async def flood() -> None:
            while True:
                await slow.write(bytes(MAX_DATA))

        flooding = asyncio.create_task(flood())
        for number in range(200):
            await quick.write(b"%d" % number)
            assert await asyncio.wait_for(quick.read(), 5) == b"%d" % number
        flooding.cancel()
        await slow.reset("done")


async def test_a_refused_stream_says_why_and_an_accepted_one_is_known() -> None:
    async with Pair(echo) as pair:
        refused = await pair.hub.open({"type": "refuse"})
        with pytest.raises(StreamReset, match="no such pod"):
            await refused.accepted()
        with pytest.raises(StreamReset, match="no such pod"):
            await refused.write(b"x")
        served = await pair.hub.open({"type": "echo"})
        await asyncio.wait_for(served.accepted(), 5)
        await served.reset("enough")
        await asyncio.wait_for(served.wait_closed(), 5)
        await asyncio.wait_for(pair.hub.ping(), 5)


async def test_what_was_written_before_close_still_arrives() -> None:
    async def speak(header: dict[str, Any], stream: Stream) -> None:
        for number in range(20):
            await stream.write(b"%d" % number)

    async with Pair(speak) as pair:
        stream = await pair.hub.open({})
        assert await asyncio.wait_for(read_all(stream), 5) == [b"%d" % n for n in range(20)]
        with pytest.raises(StreamReset):
            await stream.write(b"late")


async def test_closing_the_tunnel_fails_every_stream_and_ends_what_it_served() -> None:
    started = asyncio.Event()
    cancelled = []

    async def hang(header: dict[str, Any], stream: Stream) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(1)

    async with Pair(hang) as pair:
        stream = await pair.hub.open({})
        reading = asyncio.create_task(stream.read())
        await started.wait()
        await pair.agent.close()
        await pair.hub.close("the connection broke")
        with pytest.raises(StreamReset, match="broke"):
            await reading
        with pytest.raises(TunnelError):
            await pair.hub.open({})
        with pytest.raises(TunnelError):
            await pair.hub.receive(bytes((Frame.PING, 0, 0, 0, 0)))
    assert cancelled


async def test_a_peer_that_never_reads_is_cut_off() -> None:
    async def stuck(_: bytes) -> None:
        await asyncio.Event().wait()

    tunnel = Tunnel(stuck, echo, client=True)
    with pytest.raises(TunnelError, match="does not read"):
        for _ in range(10_000):
            await tunnel.receive(bytes((Frame.PING, 0, 0, 0, 0)))
    await tunnel.close()


def test_neither_side_uses_up_the_others_streams() -> None:
    client, hub = Multiplexer(client=True, max_streams=2), Multiplexer(client=False, max_streams=2)
    opened = [client.open({}) for _ in range(2)]
    for _, frame in opened:
        assert hub.receive(frame)
    with pytest.raises(TunnelError, match="carries 2 streams"):
        client.open({})
    mine = [hub.open({}) for _ in range(2)]
    with pytest.raises(TunnelError, match="carries 2 streams"):
        hub.open({})
    hub.reset(mine[0][0], "done")
    client.reset(opened[0][0], "done")
    assert hub.open({})[0] == 6 and client.open({})[0] == 5, "what has ended makes room, each for its own side"


async def settled(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_of_many_stuck_readers_the_longest_stuck_goes_and_the_others_stay() -> None:
    async def talk(header: dict[str, Any], stream: Stream) -> None:
        if header["type"] == "echo":
            return await echo(header, stream)
        while True:
            await stream.write(bytes(MAX_DATA))

    async with Pair(talk) as pair:
        quick = await pair.hub.open({"type": "echo"})
        count = MAX_UNREAD // (WINDOW // (MAX_DATA + OVERHEAD) * MAX_DATA) + 8
        stuck = [await pair.hub.open({"type": "flood"}) for _ in range(count)]
        await settled(lambda: sum(s._failure is not None for s in stuck) >= 4)
        await settled(lambda: all(s._failure is not None or s.unread + 4 * OVERHEAD + MAX_DATA > WINDOW for s in stuck))
        assert pair.hub._unread <= MAX_UNREAD, "however many are stuck"
        gone = [s for s in stuck if s._failure is not None]
        with pytest.raises(StreamReset, match="nobody reads it"):
            await gone[0].read()
        left = next(s for s in stuck if s._failure is None)
        assert await left.read() == bytes(MAX_DATA)
        for number in range(50):
            await quick.write(b"%d" % number)
            assert await asyncio.wait_for(quick.read(), 5) == b"%d" % number
        await settled(lambda: len(pair.agent._streams) == len(pair.hub._streams)), "the other side knows"
        for stream in stuck:
            await stream.close()
        assert pair.hub._unread == 0


async def test_idle_streams_end_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    async with Pair(echo) as pair:
        idle, busy, other = [await pair.hub.open({"type": "echo", "ends": word}) for word in (1, 1, 0)]
        for stream in (idle, busy, other):
            await stream.accepted()
        now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now + 99)
        await busy.write(b"x")
        monkeypatch.setattr(loop, "time", lambda: now + 101)
        pair.hub.end_idle(100, lambda header: bool(header["ends"]))
        monkeypatch.undo()
        with pytest.raises(StreamReset, match="nothing has passed for 100 s"):
            await idle.read()
        for stream in (busy, other):
            await stream.write(b"still")
        assert (await busy.read(), await busy.read(), await other.read()) == (b"x", b"still", b"still")


async def test_ending_a_stream_never_waits_for_a_stuck_transport() -> None:
    free = asyncio.Event()
    sent: list[bytes] = []

    async def send(message: bytes) -> None:
        await free.wait()
        sent.append(message)

    tunnel = Tunnel(send, echo, client=True)
    free.set()
    streams = [await tunnel.open({}) for _ in range(2)]
    free.clear()
    writing = asyncio.create_task(streams[0].write(b"last words"))
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        await streams[0].close()
        await streams[1].reset("why")
    free.set()
    await writing
    await settled(lambda: len(sent) == 6)
    kinds = [(Frame(m[0]), int.from_bytes(m[1:5], "big")) for m in sent[2:]]
    assert kinds == [(Frame.DATA, 1), (Frame.EOF, 1), (Frame.RESET, 1), (Frame.RESET, 3)]
    await tunnel.close()
