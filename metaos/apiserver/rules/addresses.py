"""Addresses and blocks of addresses as text. Source: ``apimachinery/pkg/util/validation/ip.go`` of Kubernetes 1.36.

What older releases took (leading zeros, bits beyond the prefix, IPv4 in IPv6) is refused: programs read it in different ways. An
object that has it already keeps it: callers leave out what stood there before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from metaos.apiserver.schema import invalid
from metaos.resources.errors import Cause

_ZEROS = re.compile(r"(?<![0-9a-fA-F:])0+(?=[0-9])")
_LENGTH = re.compile(r"[0-9]{1,3}\Z")


def address_of(text: str) -> IPv4Address | IPv6Address | None:
    """As leniently as older releases; ``None``: it is none."""
    try:
        return None if "%" in text else ip_address(text if ":" in text else _ZEROS.sub("", text))
    except ValueError:
        return None


def block_of(text: str) -> IPv4Network | IPv6Network | None:
    """As leniently as older releases; ``None``: it is none."""
    first, slash, length = text.partition("/")
    address = address_of(first)
    if address is None or not slash or not _LENGTH.match(length) or int(length) > address.max_prefixlen:
        return None
    return ip_network(f"{address}/{int(length)}", strict=False)


def address_causes(text: str, path: str) -> Iterator[Cause]:
    address = address_of(text)
    if address is None:
        yield invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
    elif isinstance(address, IPv4Address) and str(address) != text:
        yield invalid(path, text, "must not have leading 0s")
    elif isinstance(address, IPv6Address) and address.ipv4_mapped:
        yield invalid(path, text, "must not be an IPv4-mapped IPv6 address")


def block_causes(text: str, path: str) -> Iterator[Cause]:
    block = block_of(text)
    if block is None:
        yield invalid(path, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")
        return
    first, _, length = text.partition("/")
    address = ip_address(address_of(first) or 0)
    if (isinstance(address, IPv4Address) and str(address) != first) or str(int(length)) != length:
        yield invalid(path, text, "must not have leading 0s in IP or prefix length")
    elif isinstance(address, IPv6Address) and address.ipv4_mapped:
        yield invalid(path, text, "must not have an IPv4-mapped IPv6 address")
    elif address != block.network_address:
        yield invalid(path, text, "must not have bits set beyond the prefix length")
