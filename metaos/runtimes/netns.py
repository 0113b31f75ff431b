"""Networks of pods and sockets inside them, used from outside.

A socket belongs to the network namespace in which it was made, whoever holds it. What the zygote forks enters the namespaces,
makes a pod's network card and gateway (see ``gateway.py``) and batches of unconnected sockets, and passes these out;
connecting and listening is then done here. Where a machine allows no virtual network card, pods have their loopback only,
and Service addresses are loopback addresses inside them. Each pod's stores of sockets are bounded by :data:`POOL`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence

from metaos.runtimes.forks import Forks
from metaos.runtimes.process import Identity

#: Sockets that a pod has in store on each side at most (each 2 to 3 kB of kernel memory).
POOL = 16
#: How many of them are made with the network: probes, and Services to listen for, come at once.
FIRST = 8
_BACKLOG = 128
#: Where a socket is made, and of which kind: TCP in the pod, TCP at its gateway, UDP at its gateway.
INSIDE, OUTSIDE, DATAGRAM = 0, 1, 2
_KINDS = (socket.SOCK_STREAM, socket.SOCK_STREAM, socket.SOCK_DGRAM)
#: Of ip(7): each datagram comes with the address that it was sent to. (Python names it from 3.13 on.)
IP_PKTINFO = 8


class Sockets:
    """Those of one pod. ``holder``: the process that keeps its network; without ``address`` it has its loopback only. ``made``:
    descriptors of sockets that there are, of which the first :data:`FIRST` are in the pod."""

    def __init__(
        self,
        forks: Forks,
        holder: Identity,
        address: str,
        made: Sequence[int] = (),
    ) -> None:
        self.address = address
        self._forks, self._holder = forks, holder
        self._stores: tuple[list[int], ...] = (list(made[:FIRST]), list(made[FIRST:]), [])
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
                if self._closed or not self._holder.alive():
                    raise ConnectionRefusedError("the pod has ended")
                counts = (POOL if kind == INSIDE else 0, POOL if kind == OUTSIDE else 0, POOL if kind == DATAGRAM else 0)
                store += await self._forks.sockets(self._holder, self.address, counts)
                if self._closed:  # meanwhile
                    self.close()
                    raise ConnectionRefusedError("the pod has ended")
            return socket.socket(socket.AF_INET, _KINDS[kind], fileno=store.pop())

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
            while store:
                os.close(store.pop())


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
