"""A pod's network card and the gateway at its other end. A program of its own (``python -I -S -E gateway.py FD``), never
imported by the agent; it serves requests that come over the unix socket FD, and ends when none came for a while.

The gateway is a second network namespace, owned by the pod's own user namespace as the first one is: no privilege is
needed, as root or as a plain user. A veth pair joins the two. Every Service's address is local to the gateway, so the
agent's sockets listen there and take no port from the pod. Nothing is forwarded anywhere: what no socket takes, is refused.
The pod's holder keeps the gateway: it is bound to a file in the holder's private view (``/dev/gateway``).

Each request is served by a child of its own, since a process cannot leave a user namespace that it has entered. A fork of
this small program is much cheaper than a new Python. Only the standard library, and little of it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import array
import os
import select
import struct
import sys

sys.path.append(os.path.dirname(os.path.abspath(__file__)))

from enter import _checked, _libc, _open, _owner, _setns, _started  # type: ignore[import-not-found]

#: Seconds without a request after which the program ends.
IDLE_SECONDS = 5.0
#: Where the holder keeps its gateway.
KEPT = "/dev/gateway"
#: What all Service and pod addresses of a site lie in (shared address space, RFC 6598), and the gateway's own address.
ADDRESSES = ("100.64.0.0", 10)
GATEWAY = "169.254.1.1"

_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_LOOPBACK, _CARD = 1, 2
_GATEWAY_MAC, _POD_MAC = bytes((2, 0, 0, 0, 0, 1)), bytes((2, 0, 0, 0, 0, 2))

# Netlink, as in rtnetlink(7) and linux/{netlink,rtnetlink,if_link,veth,neighbour}.h.
_REQUEST, _ACKNOWLEDGE, _EXCLUSIVE, _CREATE = 1, 4, 0x200, 0x400
_NEW_LINK, _NEW_ADDRESS, _NEW_ROUTE, _NEW_NEIGHBOUR = 16, 20, 24, 28
_MAIN, _LOCAL = 254, 255  # routing tables
_UNIVERSE, _LINK, _HOST = 0, 253, 254  # scopes
_UNICAST, _LOCAL_ROUTE = 1, 2
_PERMANENT = 0x80


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


class Netlink:
    """Requests to the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)

    def ask(self, kind: int, body: bytes, what: str, flags: int = _EXCLUSIVE | _CREATE) -> None:
        self._socket.send(struct.pack("IHHII", 16 + len(body), kind, _REQUEST | _ACKNOWLEDGE | flags, 1, 0) + body)
        answer = self._socket.recv(65536)
        (error,) = struct.unpack_from("i", answer, 16)
        if error:
            raise OSError(-error, f"{what}: {os.strerror(-error)}")

    def up(self, index: int) -> None:
        self.ask(_NEW_LINK, struct.pack("BxHiII", 0, 0, index, 1, 1), "setting a network card up", 0)

    def pair(self, pod: int) -> None:
        """A card here, the other end as ``eth0`` in the network namespace ``pod``."""

        def end(name: bytes, address: bytes) -> bytes:
            return _attribute(3, name + b"\0") + _attribute(1, address)

        peer = struct.pack("BxHiII", 0, 0, _CARD, 0, 0) + end(b"eth0", _POD_MAC) + _attribute(28, struct.pack("i", pod))
        info = _attribute(1, b"veth") + _attribute(2, _attribute(1, peer))
        body = struct.pack("BxHiII", 0, 0, _CARD, 0, 0) + end(b"pod", _GATEWAY_MAC) + _attribute(18, info)
        self.ask(_NEW_LINK, body, "making a veth pair")

    def address(self, index: int, address: str) -> None:
        packed = _socket.inet_aton(address)
        body = struct.pack("BBBBi", _socket.AF_INET, 32, 0, _UNIVERSE, index) + _attribute(2, packed) + _attribute(1, packed)
        self.ask(_NEW_ADDRESS, body, f"setting address {address}")

    def route(self, to: str, bits: int, index: int, *, table: int = _MAIN, kind: int = _UNICAST, via: str = "") -> None:
        scope = _HOST if kind == _LOCAL_ROUTE else _UNIVERSE if via else _LINK
        body = struct.pack("BBBBBBBBI", _socket.AF_INET, bits, 0, 0, table, 4, scope, kind, 0)
        body += _attribute(1, _socket.inet_aton(to)) + _attribute(4, struct.pack("i", index))
        if via:
            body += _attribute(5, _socket.inet_aton(via))
        self.ask(_NEW_ROUTE, body, f"setting a route to {to}/{bits}")

    def neighbour(self, index: int, address: str, mac: bytes) -> None:
        """For good, so that the machine's table of neighbours, which all share, never runs full."""
        body = struct.pack("BxxxiHBB", _socket.AF_INET, index, _PERMANENT, 0, _UNICAST)
        self.ask(_NEW_NEIGHBOUR, body + _attribute(1, _socket.inet_aton(address)) + _attribute(2, mac), "setting a neighbour")


def _write(path: str, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return  # a kernel without IPv6
    os.write(fd, text.encode())
    os.close(fd)


def _sockets(count: int, kind: int = _socket.SOCK_STREAM) -> list[_socket.socket]:
    kind |= _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
    return [_socket.socket(_socket.AF_INET, kind) for _ in range(count)]


def make(pod: int, mounts: int, address: str) -> None:
    """Called inside the pod's user and network namespaces; returns inside the gateway."""
    _write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
    inside = Netlink()
    _checked(_libc.unshare(_CLONE_NEWNET), "making a network namespace")
    _write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
    _write("/proc/sys/net/ipv4/ip_forward", "0")
    outside = Netlink()
    outside.pair(pod)
    outside.up(_LOOPBACK)
    outside.up(_CARD)
    outside.address(_CARD, GATEWAY)
    outside.route(*ADDRESSES, _LOOPBACK, table=_LOCAL, kind=_LOCAL_ROUTE)
    outside.route(address, 32, _CARD, table=_LOCAL)
    outside.neighbour(_CARD, address, _POD_MAC)
    inside.up(_CARD)
    inside.address(_CARD, address)
    inside.route(GATEWAY, 32, _CARD)
    inside.neighbour(_CARD, GATEWAY, _GATEWAY_MAC)
    inside.route(*ADDRESSES, _CARD, via=GATEWAY)
    _setns(mounts, "mnt")
    os.close(os.open(KEPT, os.O_CREAT | os.O_WRONLY, 0o444))
    _checked(_libc.mount(b"/proc/self/ns/net", KEPT.encode(), None, _MS_BIND, None), "keeping the gateway")


def serve(words: list[str], reply: _socket.socket) -> None:
    """``network|sockets PID START ADDRESS INSIDE OUTSIDE DATAGRAM``: the last three say how many sockets to make in the pod, at
    its gateway, and there for UDP. Without an address the pod has no gateway."""
    task, pid, address = words[0], int(words[1]), words[3]
    network, mounts = _open(pid, "net"), _open(pid, "mnt")
    gateway = -1 if task == "network" or not address else os.open(f"/proc/{pid}/root{KEPT}", os.O_RDONLY | os.O_CLOEXEC)
    if _started(pid) != int(words[2]):
        raise OSError(3, "the pod has ended")
    _setns(_owner(network), "user")
    _setns(network, "net")
    made = _sockets(int(words[4]))
    if task == "network":
        make(network, mounts, address)
    elif gateway >= 0:
        _setns(gateway, "net")
    made += _sockets(int(words[5])) + _sockets(int(words[6]), _socket.SOCK_DGRAM)
    reply.sendmsg([b"+"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [each.fileno() for each in made]))])


def main(channel: int) -> None:
    requests = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, channel)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # nobody waits for the children
    while select.select([requests], [], [], IDLE_SECONDS)[0]:
        data, rights, _, _ = requests.recvmsg(4096, _socket.CMSG_SPACE(4))
        if not data:
            return
        fd = array.array("i", rights[0][2])[0]
        if os.fork() == 0:
            reply = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
            requests.close()
            try:
                serve(data.decode().split(" "), reply)
            except OSError as error:
                reply.send(f"-{error.errno or 0} {error.strerror or error}".encode())
            os._exit(0)
        os.close(fd)


if __name__ == "__main__":
    main(int(sys.argv[1]))
