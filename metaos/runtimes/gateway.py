"""A pod's network card and the gateway at its other end. Part of the program that ``zygote.py`` is, never imported by the agent.

The gateway is a second network namespace, owned by the pod's own user namespace as the first one is: no privilege is
needed, as root or as a plain user. A veth pair joins the two. Every Service's address is local to the gateway, so the
agent's sockets listen there and take no port from the pod. Nothing is forwarded anywhere: what no socket takes, is refused.
The pod's holder keeps the gateway, as a descriptor. Only the standard library, and little of it.
"""

from __future__ import annotations

import _socket
import os
import struct

from enter import _checked, _libc  # type: ignore[import-not-found]

#: What all Service and pod addresses of a site lie in (shared address space, RFC 6598), and the gateway's own address.
ADDRESSES = ("100.64.0.0", 10)
GATEWAY = "169.254.1.1"

_CLONE_NEWNET = 0x40000000
_LOOPBACK, _CARD = 1, 2
_GATEWAY_MAC, _POD_MAC = bytes((2, 0, 0, 0, 0, 1)), bytes((2, 0, 0, 0, 0, 2))

# Netlink, as in rtnetlink(7) and linux/{netlink,rtnetlink,if_link,veth,neighbour}.h.
_REQUEST, _ACKNOWLEDGE, _EXCLUSIVE, _CREATE = 1, 4, 0x200, 0x400
_NEW_LINK, _NEW_ADDRESS, _NEW_ROUTE, _NEW_NEIGHBOUR = 16, 20, 24, 28
_MAIN, _LOCAL = 254, 255  # routing tables
_UNIVERSE, _LINK, _HOST = 0, 253, 254  # scopes
_UNICAST, _LOCAL_ROUTE = 1, 2
_PERMANENT = 0x80


for _layout in ("HH", "i", "IHHII", "BxHiII", "BBBBi", "BBBBBBBBI", "BxxxiHBB"):
    struct.calcsize(_layout)  # read once, and not again in each fork of the zygote


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


def written(path: str, text: str, *, needed: bool = True) -> None:
    """``needed``: whether it is an error where the kernel has no such file, or not for us."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError:
        if needed:
            raise


def _without_ipv6() -> None:
    written("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1", needed=False)


def loopback() -> None:
    """Of a new network namespace: the kernel gives it its addresses."""
    Netlink().up(_LOOPBACK)


def make(pod: int, address: str) -> None:
    """Called inside the pod's user and network namespaces; returns inside the gateway. ``pod``: the pod's network namespace."""
    _without_ipv6()
    inside = Netlink()
    _checked(_libc.unshare(_CLONE_NEWNET), "making a network namespace")
    _without_ipv6()
    written("/proc/sys/net/ipv4/ip_forward", "0")
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
