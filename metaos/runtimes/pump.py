"""Moves what containers write from their pipes into their log files. Two roles, one job:

in the agent a :class:`Pump` in a thread of its own, as a slow disk must not hold up anything else; and, where the agent has
ended and containers run on, the program ``python -I -S -E pump.py DIRECTORY``, the *keeper*: a shell waits for the agent's end
and becomes it (:data:`KEEP`), until the next agent ends it or the last container has ended.

A log file never exceeds :data:`BOUND` bytes; a full one becomes ``log.1`` and replaces the one before. A container that writes
faster than :data:`CAPACITY` bytes in :data:`PAUSE_MS` waits. ``splice`` moves bytes without reading them: whoever is killed,
none is lost or doubled. Only what stands in the pipe of a container that ends while nobody at all reads it is lost.
Only the standard library, and little of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator

#: Bytes of a log file; there are two for each start of a container, and of earlier starts only the last is kept.
BOUND = 10 << 20
#: Bytes that a container may be ahead of us, and how long all of them rest after each turn: 12.8 MB a second at most.
CAPACITY = 256 << 10
PAUSE_MS = 20
#: What is taken at the end of a container in one go; what it leaves running may write on for ever.
LAST_BYTES = 16 * CAPACITY

#: What the keeper's shell does: it says who it is, and waits for the end of its input, which comes when the agent ends,
#: however that happens.
KEEP = """read -r line <"/proc/$$/stat" && printf '%s\\n' "$line" >"$1"; shift; read -r nothing; exec "$@" </dev/null """


def keeper_command(directory: str) -> list[str]:
    """The keeper of a runtime's directory; the file ``keeper`` in it says who it is."""
    program = [sys.executable, "-I", "-S", "-E", os.path.abspath(__file__), directory]
    return ["/bin/sh", "-c", KEEP, "nemo", os.path.join(directory, "keeper"), *program]


def make(directory: str) -> int:
    """The pipe of a container, kept below its directory; the end to write to. The caller closes it."""
    path = os.path.join(directory, "out")
    os.mkfifo(path, 0o600)
    # Both ends at once, as nobody else has it open yet.
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # beyond what one user may have, it stays smaller
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, CAPACITY)
    return fd


def move(pipe: int, directory: str, most: int = CAPACITY) -> int | None:
    """Moves what there is, at most so much, into the log: bytes moved, 0 at the end of the pipe, ``None`` for nothing now."""
    path = os.path.join(directory, "log")
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.lseek(log, 0, os.SEEK_END)
        if size >= BOUND:
            _rotate(path)
            fresh = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.close(log)
            log, size = fresh, 0
        return os.splice(pipe, log, min(most, BOUND - size), flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
    except BlockingIOError:
        return None
    finally:
        os.close(log)


def _rotate(path: str) -> None:
    os.rename(path, path + ".1")
    try:
        os.rename(path + ".times", path + ".times.1")
    except FileNotFoundError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + ".times.1")


class Pump:
    """``moved(directory)`` is called, in the pump's thread or in the caller's, when something has come."""

    def __init__(self, moved: Callable[[str], None]) -> None:
        self._moved = moved
        self._pipes: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # Registering is noticed by a wait that has begun before.
        self._events = select.epoll()
        self._rest = select.poll()
        self._stop, self._stopping = os.pipe2(os.O_CLOEXEC)
        self._events.register(self._stop, select.EPOLLIN)
        self._rest.register(self._stop, select.POLLIN)

    def add(self, directory: str) -> bool:
        """Takes care of a container's pipe from now on, if it has one."""
        try:
            pipe = os.open(os.path.join(directory, "out"), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        with self._lock:
            self._pipes[directory], self._names[pipe] = pipe, directory
            self._events.register(pipe, select.EPOLLIN)
        return True

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self.run, name="logs", daemon=True)
            self._thread.start()

    @property
    def busy(self) -> bool:
        return bool(self._pipes)

    def drain(self) -> None:
        """What stands in the pipes now."""
        for directory in list(self._pipes):
            self._take(directory)

    def run(self, *, until_empty: bool = False) -> None:
        self.drain()  # a pipe that nobody writes to any more is at its end, and no event says so
        while self._pipes or not until_empty:
            for fd, _ in self._events.poll():
                if fd == self._stop:
                    return
                if found := self._names.get(fd):
                    self._take(found)
            if self._rest.poll(PAUSE_MS):
                return

    def _take(self, directory: str) -> int:
        with self._lock:
            pipe = self._pipes.get(directory)
            if pipe is None:
                return 0
            count = _move_or_drop(pipe, directory)
            if count == 0:
                self._forget(directory)
        if count:
            self._moved(directory)
        return count or 0

    def _forget(self, directory: str) -> None:
        pipe = self._pipes.pop(directory, None)
        if pipe is not None:
            del self._names[pipe]
            self._events.unregister(pipe)
            os.close(pipe)
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(directory, "out"))

    def finish(self, directory: str) -> None:
        """The container has ended: what it wrote stands in its log when this returns."""
        left = LAST_BYTES
        while left > 0 and (count := self._take(directory)):
            left -= count

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """No log changes meanwhile."""
        with self._lock:
            yield

    def drop(self, directory: str) -> None:
        """Its directory goes."""
        with self._lock:
            self._forget(directory)

    def close(self) -> None:
        """The pipes stay as they are."""
        os.close(self._stopping)
        if self._thread is not None:
            self._thread.join()
        for pipe in self._pipes.values():
            os.close(pipe)
        self._pipes.clear()
        self._names.clear()
        self._events.close()
        os.close(self._stop)


def _move_or_drop(pipe: int, directory: str) -> int | None:
    """On a full disk what is written is lost, and the container goes on."""
    try:
        return move(pipe, directory)
    except OSError:
        try:
            return len(os.read(pipe, CAPACITY))
        except BlockingIOError:
            return None


def main(directory: str) -> None:
    pump = Pump(lambda _: None)
    pods = os.path.join(directory, "pods")
    for pod in os.listdir(pods):
        containers = os.path.join(pods, pod, "containers")
        for name in os.listdir(containers) if os.path.isdir(containers) else ():
            for sequence in os.listdir(os.path.join(containers, name)):
                pump.add(os.path.join(containers, name, sequence))
    pump.run(until_empty=True)


if __name__ == "__main__":
    main(sys.argv[1])
