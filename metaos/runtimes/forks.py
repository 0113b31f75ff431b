"""What the agent has the zygote fork (see ``zygote.py``): holders of pods, containers, sockets in pods' networks."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from metaos.runtimes import process
from metaos.runtimes.process import Identity

#: Requests that are served at the same time; further ones wait.
AT_ONCE = 8
#: How long an answer may take.
ANSWER_SECONDS = 20.0
#: Bytes of a request that go as a message, longer ones in a file: so many that those at once find room, also where the zygote
#: reads none. Descriptors that go with one, and with an answer.
MAX_BYTES, MAX_FDS, MAX_SOCKETS = 8 << 10, 250, 32
#: How long a holder starts containers. Then it becomes something smaller, and not at once: where many pods start together,
#: their containers come first.
LAUNCH_SECONDS = 3.0
#: In which what was started and is not wanted any more is killed: one of them may have started another meanwhile.
KILL_ROUNDS = 5
_PROGRAM = os.path.join(os.path.dirname(__file__), "zygote.py")


#: Who was started, the descriptors of sockets that it made, and where it may be told more.
_Answer = tuple[str, list[int], socket.socket]


class Undone(OSError):
    """Nobody was started."""


class Launcher:
    """A pod's holder, which starts containers for :data:`LAUNCH_SECONDS`. After that it is no program of ours any more."""

    def __init__(self, life: socket.socket) -> None:
        self.channel = life
        self._end = asyncio.get_running_loop().call_later(LAUNCH_SECONDS, life.close)

    def close(self) -> None:
        self._end.cancel()
        self.channel.close()


@dataclass(slots=True)
class Held:
    """A pod's holder that has just been started. It ends when we do, until it is told to stay."""

    holder: Identity
    _life: socket.socket
    #: Descriptors of sockets: in the pod's network, the first half; at its gateway, if it has one, the others.
    sockets: list[int] = field(default_factory=list)

    def stay(self) -> Launcher:
        """It is recorded: from now on it outlives us."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, which its watch will say
            self._life.send(b"stay")
        return Launcher(self._life)

    def let_go(self) -> None:
        """Without having been told to stay, it ends."""
        self._life.close()


@dataclass(frozen=True, slots=True)
class Waiting:
    """A sandbox that waits for its container. It ends when ``channel`` is closed."""

    monitor: Identity
    channel: socket.socket


class Forks:
    """The zygote runs from the first request until none came for a while. ``program``: another one that serves the same requests,
    with what it is told in further arguments."""

    def __init__(self, program: str = _PROGRAM, *arguments: str) -> None:
        self._command = [sys.executable, "-I", "-S", "-E", program]
        self._arguments = arguments
        self._channel: socket.socket | None = None
        self._zygote: Identity | None = None
        self._free = asyncio.Semaphore(AT_ONCE)

    async def hold(self, hostname: str, address: str, program: str, directory: str, counts: tuple[int, int]) -> Held:
        """Starts a pod's holder. ``program``: the bubblewrap that the pod gets a copy of; ``directory``: the pod's own;
        ``counts``: sockets to make in the pod and at its gateway. Raises ``OSError``."""
        said, made, life = await self._ask("hold", [hostname, address, program, directory, *map(str, counts)])
        return Held(_child(int(said)), life, made)

    async def sockets(self, holder: Identity, address: str, counts: tuple[int, int, int]) -> list[int]:
        """Descriptors of new ones in the holder's network, at its gateway, and there for UDP. Raises ``OSError``."""
        _, made, reply = await self._ask("sockets", [str(holder.pid), str(holder.start), address, *map(str, counts)])
        reply.close()
        return made

    async def start(self, words: Sequence[str], fds: Sequence[int], by: Launcher | None = None) -> Identity:
        """Starts a container, as ``zygote.start`` describes it; ``by`` its pod's holder, if that can. Raises ``OSError``,
        ``ValueError`` (it can never start)."""
        _few(fds)
        said, _, reply = await self._ask("start", words, fds, by)
        reply.close()
        pid, _, start = said.partition(" ")
        return Identity(int(pid), int(start)) if start else _child(int(pid))

    async def prepare(self, words: Sequence[str], fds: Sequence[int]) -> Waiting:
        """Has a sandbox made, as ``wasmzygote.prepare`` describes it. Raises ``OSError``."""
        said, _, life = await self._ask("prepare", words, fds)
        return Waiting(_child(int(said)), life)

    async def begin(self, waiting: Waiting, words: Sequence[str], fds: Sequence[int]) -> None:
        """Starts its container in it, as ``wasmzygote._begin`` describes it. Raises ``OSError`` (``Undone`` where the sandbox has
        ended, or cannot), ``ValueError`` (it can never start)."""
        _few(fds)
        request = b"\0" + os.fsencode("\0".join(("begin", *words)))
        answered = _taken(await self._exchange(request, fds, waiting.channel))
        if answered is None:
            raise Undone(errno.ESRCH, "the sandbox has ended")
        answered[2].close()

    async def _ask(self, task: str, words: Sequence[str], fds: Sequence[int] = (), by: Launcher | None = None) -> _Answer:
        """Who was started, what it made, and the socket on which it may be told more. A zygote that ended with the request unread
        is started again, once. What a holder does not do, the zygote does."""
        request = os.fsencode("\0".join((task, *words)))
        with contextlib.ExitStack() as opened:
            if len(request) > MAX_BYTES:
                body = process.in_memory(request)
                opened.callback(os.close, body)
                request, fds = b"", [body, *fds]
            request = b"\0" + request
            async with self._free:
                if by is not None and (found := await self._tried(by, request, fds)):
                    return found
                for _ in range(2):
                    if found := _taken(await self._exchange(request, fds)):
                        return found
                    self.close()
        raise OSError("the zygote ended without an answer")

    async def _tried(self, by: Launcher, request: bytes, fds: Sequence[int]) -> _Answer | None:
        """``None`` where a holder has done nothing, as it has become something else, has ended, or cannot."""
        try:
            return _taken(await self._exchange(request, fds, by.channel))
        except Undone:
            return None

    async def _exchange(self, request: bytes, fds: Sequence[int], channel: socket.socket | None = None) -> socket.socket:
        """Where the answer stands. One that waits no more for it closes it, and nothing is started. ``channel``: to whom, if not
        to the zygote."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            with theirs:
                self._send(request, [theirs.fileno(), *fds], channel)
            zygote = self._zygote if channel is None else None
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await process.readable(ours.fileno())
            except TimeoutError:
                if channel is not None:
                    raise TimeoutError(f"the pod's own process did not answer in {ANSWER_SECONDS:g} s") from None
                if zygote is not None:  # it hangs: the next request starts another one, and so do those that it has not read
                    zygote.kill()
                if zygote == self._zygote:
                    self.close()
                raise TimeoutError(f"the zygote did not answer in {ANSWER_SECONDS:g} s, and was ended") from None
        except BaseException:
            _give_up(ours)
            raise
        return ours

    def _send(self, request: bytes, fds: Sequence[int], channel: socket.socket | None) -> None:
        if channel is not None:
            try:
                socket.send_fds(channel, [request], fds)
            except OSError as error:
                raise Undone(error.errno, error.strerror) from None
            return
        try:
            socket.send_fds(self._started(), [request], fds)
        except (BrokenPipeError, ConnectionResetError):
            self.close()
            socket.send_fds(self._started(), [request], fds)

    def _started(self) -> socket.socket:
        if self._channel is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                argv = [*self._command, str(theirs.fileno()), *self._arguments]
                who = process.spawn(argv, env={}, pass_fds=(theirs.fileno(),))
            ours.setblocking(False)
            self._channel, self._zygote = ours, who
            process.Watch(who, lambda: self.close() if self._channel is ours else None)
        return self._channel

    def close(self) -> None:
        """Its end of the channel gone, the zygote ends by itself."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _few(fds: Sequence[int]) -> None:
    if len(fds) > MAX_FDS:
        raise ValueError(f"the container has {len(fds)} mounts and files; {MAX_FDS} are possible")


def _taken(reply: socket.socket) -> _Answer | None:
    """``None`` where whoever was asked has ended without an answer. Raises ``OSError``."""
    said, made, _, _ = socket.recv_fds(reply, 4096, MAX_SOCKETS, socket.MSG_CMSG_CLOEXEC)
    if said[:1] == b"+":
        return said[1:].decode(), made, reply
    reply.close()
    if not said:
        return None
    ended, number, text = said[1:].decode(errors="replace").split(" ", 2)
    _collect(int(ended))
    raise (OSError if int(ended) else Undone)(int(number), text)


def _child(pid: int) -> Identity:
    found = process.identity(pid)
    assert found is not None  # an uncollected child is always in /proc
    return found


def _collect(pid: int) -> None:
    """One that has failed and ends now; 0 where none was made."""
    if pid:
        with contextlib.suppress(ChildProcessError):  # the zygote's own
            os.waitpid(pid, 0)


def _give_up(reply: socket.socket) -> None:
    """Who has not answered yet will not go on; who has, is ended."""
    with reply, contextlib.suppress(OSError):
        reply.shutdown(socket.SHUT_RD)  # from here on nobody can answer
        said, made, _, _ = socket.recv_fds(reply, 4096, MAX_SOCKETS, socket.MSG_CMSG_CLOEXEC)
        for fd in made:
            os.close(fd)
        if said[:1] == b"+":
            # It leads a session, and may have started somebody by now.
            for _ in range(KILL_ROUNDS):
                members = process.in_sessions({int(said[1:].split()[0])})
                for each in members:
                    each.end()
                if not members:
                    break
