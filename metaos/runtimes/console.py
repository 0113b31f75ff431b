"""Keeps a container's standard input, and its terminal, while people attach and leave. A program of its own
(``python -I -S -E console.py``), never imported by the agent, which it outlives as the container does.

``console.py LISTENER INPUT LOG ONCE``
    LISTENER: a unix socket (SOCK_SEQPACKET) on which those who attach come. INPUT: where what they type goes: a pipe, or the
    master of a terminal, whose output then goes into LOG (−1: a pipe has none) and to them. ONCE: 1 if the input ends with the
    first who leaves.

Messages: ``0`` and what was typed; ``4ROWS COLUMNS``; ``E`` at the end of the input. Only the standard library, and little of it.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys

_CHUNK = 32 << 10
MAX_CLIENTS = 8
_TIOCSWINSZ = 0x5414
_END_OF_FILE = b"\x04"


class Console:
    """``waiting``: what could not be passed on yet, by descriptor; of whoever it comes from nothing more is read meanwhile."""

    def __init__(self, listener: int, entry: int, log: int, once: bool) -> None:
        import _socket

        self._listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, listener)
        self._entry, self._log, self._once = entry, log, once
        self._terminal = log >= 0
        self._clients: dict[int, _socket.socket] = {}
        self._waiting: dict[int, bytes] = {}
        os.set_blocking(entry, False)

    def run(self) -> None:
        """Until the container has closed its end."""
        while True:
            poll = select.poll()
            poll.register(self._listener.fileno(), select.POLLIN if len(self._clients) < MAX_CLIENTS else 0)
            flow = 0 if self._entry in self._waiting else select.POLLIN
            for fd in self._clients:
                # Not at all where nothing is wanted of it: that it has left would be reported all the same, again and again.
                if wanted := flow | (select.POLLOUT if fd in self._waiting else 0):
                    poll.register(fd, wanted)
            held = any(fd in self._waiting for fd in self._clients)
            poll.register(
                self._entry,
                (select.POLLIN if self._terminal and not held else 0) | (select.POLLOUT if self._entry in self._waiting else 0),
            )
            for fd, events in poll.poll():
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == self._entry:
                    if not self._container(events):
                        return
                elif fd in self._clients and not self._client(fd, events):
                    return

    def _accept(self) -> None:
        import _socket

        fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)
        client.setblocking(False)
        self._clients[fd] = client

    def _container(self, events: int) -> bool:
        """False once it has ended."""
        if events & select.POLLOUT and self._entry in self._waiting:
            self._type(self._waiting.pop(self._entry))
        if self._terminal and events & (select.POLLIN | select.POLLHUP):
            try:
                data = os.read(self._entry, _CHUNK)
            except BlockingIOError:
                return True
            except OSError:
                return False
            os.write(self._log, data)
            for fd in list(self._clients):
                self._send(fd, data)
            return bool(data)
        return not events & (select.POLLERR | select.POLLHUP | select.POLLNVAL)

    def _client(self, fd: int, events: int) -> bool:
        """False once nobody is needed here any more."""
        if events & select.POLLOUT and fd in self._waiting:
            self._send(fd, self._waiting.pop(fd))
        if self._entry in self._waiting or not events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return True
        try:
            message = self._clients[fd].recv(_CHUNK + 1)
        except BlockingIOError:
            return True
        except OSError:
            message = b""
        if message[:1] == b"0":
            self._type(message[1:])
        elif message[:1] == b"4" and self._terminal:
            rows, columns = message[1:].split()
            fcntl.ioctl(self._entry, _TIOCSWINSZ, struct.pack("HHHH", int(rows) & 0xFFFF, int(columns) & 0xFFFF, 0, 0))
        elif message == b"E":
            return self._end()
        elif not message:
            self._waiting.pop(fd, None)
            self._clients.pop(fd).close()
            return self._end() if self._once and not self._clients else True
        return True

    def _end(self) -> bool:
        """The end of the input: for a pipe there is nothing left to do."""
        if self._terminal:
            self._type(_END_OF_FILE)
        return self._terminal

    def _type(self, data: bytes) -> None:
        try:
            data = data[os.write(self._entry, data) :]
        except BlockingIOError:
            pass
        except OSError:
            return
        if data:
            self._waiting[self._entry] = data

    def _send(self, fd: int, data: bytes) -> None:
        try:
            self._clients[fd].send(data)
        except BlockingIOError:
            self._waiting[fd] = data
        except OSError:
            return


def main(arguments: list[str]) -> int:
    listener, entry, log, once = (int(a) for a in arguments)
    Console(listener, entry, log, bool(once)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
