"""Networks of pods and sockets inside them, used from outside.

A socket belongs to the network namespace in which it was made, whoever holds it. A small program enters the namespaces,
makes a pod's network card and gateway (see ``gateway.py``) and batches of unconnected sockets, and passes these out;
connecting and listening is then done here. Where a machine allows no virtual network card, pods have their loopback only,
and Service addresses are loopback addresses inside them. Each pod's stores of sockets are bounded by :data:`POOL`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys

from metaos.runtimes import process

#: Sockets that a pod has in store on each side at most (each 2 to 3 kB of kernel memory).
POOL = 16
#: How many of them are made with the network: probes, and Services to listen for, come at once.
FIRST = 8
#: Requests that the program serves at the same time, each in a process of its own; further ones wait.
AT_ONCE = 8
#: How long the program may take to answer.
ANSWER_SECONDS = 20.0
_BACKLOG = 128
#: Where a socket is made, and of which kind: TCP in the pod, TCP at its gateway, UDP at its gateway.
INSIDE, OUTSIDE, DATAGRAM = 0, 1, 2
#: Of ip(7): each datagram comes with the address that it was sent to. (Python names it from 3.13 on.)
IP_PKTINFO = 8
_PROGRAM = os.path.join(os.path.dirname(__file__), "gateway.py")


class Networks:
    """Makes networks and sockets. The program runs from the first request until none came for a while."""

    def __init__(self) -> None:
        self._channel: socket.socket | None = None
        self._free = asyncio.Semaphore(AT_ONCE)

    async def make(self, holder: process.Identity, address: str) -> Sockets:
        """A network card with this address, and the gateway. Raises ``OSError``."""
        made = await self._ask("network", holder, address, (FIRST, FIRST, 0))
        return Sockets(self, holder, address, made[:FIRST], made[FIRST:])

    def of(self, holder: process.Identity, address: str) -> Sockets:
        """Of a pod whose network was made before; without ``address`` it has its loopback only."""
        return Sockets(self, holder, address)

    async def more(self, holder: process.Identity, address: str, kind: int) -> list[socket.socket]:
        return await self._ask("sockets", holder, address, tuple(POOL if each == kind else 0 for each in range(3)))

    async def _ask(self, task: str, holder: process.Identity, address: str, counts: tuple[int, ...]) -> list[socket.socket]:
        """Raises ``OSError``. A program that ended with the request unread is started again, once."""
        if not holder.alive():
            raise ConnectionRefusedError("the pod has ended")
        async with self._free:
            return await self._exchange(f"{task} {holder.pid} {holder.start} {address} {' '.join(map(str, counts))}".encode())

    async def _exchange(self, request: bytes) -> list[socket.socket]:
        for last in (False, True):
            ours, theirs = socket.socketpair()
            try:
                ours.setblocking(False)
                with theirs:
                    try:
                        socket.send_fds(self._started(), [request], [theirs.fileno()])
                    except (BrokenPipeError, ConnectionResetError):
                        self.close()
                        continue
                async with asyncio.timeout(ANSWER_SECONDS):
                    await process.readable(ours.fileno())
                said, fds, _, _ = socket.recv_fds(ours, 4096, 2 * POOL)
            finally:
                ours.close()
            if said[:1] == b"-":
                number, _, text = said[1:].decode(errors="replace").partition(" ")
                raise OSError(int(number), f"no socket could be made in the pod's network: {text}")
            if said:
                return [socket.socket(fileno=fd) for fd in fds]
            self.close()
            if last:
                break
        raise OSError("the program that makes sockets in pods' networks ended without an answer")

    def _started(self) -> socket.socket:
        if self._channel is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                who = process.spawn(
                    [sys.executable, "-I", "-S", "-E", _PROGRAM, str(theirs.fileno())], env={}, pass_fds=(theirs.fileno(),)
                )
            self._channel = ours
            process.Watch(who, lambda: self.close() if self._channel is ours else None)
        return self._channel

    def close(self) -> None:
        """Its end of the channel gone, the program ends by itself."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


class Sockets:
    """Those of one pod. ``holder``: a process in the pod's network namespace."""

    def __init__(
        self,
        networks: Networks,
        holder: process.Identity,
        address: str,
        inside: list[socket.socket] | None = None,
        outside: list[socket.socket] | None = None,
    ) -> None:
        self.address = address
        self._networks, self._holder = networks, holder
        self._stores: tuple[list[socket.socket], ...] = (inside or [], outside or [], [])
        self._filling = asyncio.Lock()
        self._closed = False

    @property
    def id(self) -> str:
        """Another one when the network was made anew."""
        return f"{self._holder.pid}-{self._holder.start}"

    async def _take(self, kind: int) -> socket.socket:
        """A fresh socket. Raises ``OSError``."""
        store = self._stores[kind]
        async with self._filling:
            if not store:
                if self._closed:
                    raise ConnectionRefusedError("the pod has ended")
                store += await self._networks.more(self._holder, self.address, kind)
            return store.pop()

    async def connect(self, port: int) -> socket.socket:
        """To the pod's address, as others reach it; where nobody listens there, to its own loopback."""
        if self.address:
            made = await self._take(OUTSIDE)
            try:
                return await connected(made, port, self.address)
            except ConnectionRefusedError:
                pass
        return await connected(await self._take(INSIDE), port)

    async def listen(self, address: str, port: int) -> socket.socket:
        """At the gateway where there is one, otherwise inside the pod."""
        return listening(await self._take(OUTSIDE if self.address else INSIDE), address, port)

    async def datagrams(self, port: int) -> socket.socket:
        """To the pod's UDP port. Whether somebody listens shows later, by ``ConnectionRefusedError``."""
        made = await self._take_datagram()
        try:
            made.connect((self.address, port))
        except OSError:
            made.close()
            raise
        return made

    async def receive(self, port: int) -> socket.socket:
        """What the pod sends to any address by UDP, with that address (``IP_PKTINFO``)."""
        made = await self._take_datagram()
        try:
            made.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            made.bind(("0.0.0.0", port))
        except OSError as error:
            made.close()
            raise OSError(error.errno, f"cannot receive on UDP port {port}: {error.strerror}") from error
        return made

    async def _take_datagram(self) -> socket.socket:
        if not self.address:
            raise OSError(errno.EOPNOTSUPP, "the pod has no network card: nothing is carried by UDP")
        return await self._take(DATAGRAM)

    def close(self) -> None:
        self._closed = True
        for store in self._stores:
            for each in store:
                each.close()
            store.clear()


async def connect_shared(address: str, port: int) -> socket.socket:
    """Where pods have no network of their own: a server may listen at its pod's address, or at any."""
    for host in (address or "127.0.0.1", "127.0.0.1"):
        try:
            return await connected(socket.socket(socket.AF_INET, socket.SOCK_STREAM), port, host)
        except ConnectionRefusedError:
            if host == "127.0.0.1":
                raise
    raise AssertionError("unreachable")


def listen_shared(address: str, port: int) -> socket.socket:
    """The listeners of all pods, and of all agents of one machine, are at the same place: each may take each connection."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return listening(made, address, port)


def has_gateway(holder: process.Identity) -> bool:
    """Whether a pod that is to have a network card got it."""
    return holder.alive() and os.path.exists(f"/proc/{holder.pid}/root/dev/gateway")


async def connected(made: socket.socket, port: int, address: str = "127.0.0.1") -> socket.socket:
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(made, (address, port))
    except BaseException:
        made.close()
        raise
    return made


def listening(made: socket.socket, address: str, port: int) -> socket.socket:
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"cannot listen on {address}:{port}: {error.strerror}") from error
    return made
