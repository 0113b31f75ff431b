"""Kubernetes' own functions of CEL: quantities, URLs, addresses, regular expressions, lists and formats.

The library has no values of one's own types: a quantity, URL, address or network is a map with one canonical entry, so that
equal ones are equal. Two functions are left out, as the library lets nobody add to its own: ``string`` of these maps, and
``indexOf`` of lists. Loaded in the process of :mod:`.judging` only. Source: ``k8s.io/apiserver/pkg/cel/library``.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from fractions import Fraction
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import SplitResult, urlsplit

import re2
from cel_expr_python import cel

from metaos.apiserver import metadata
from metaos.resources import quantity

T = cel.Type
_MAP = T.Map(T.STRING, T.DYN)
_LIST = T.List(T.DYN)
_STRINGS = T.List(T.STRING)
Declared = dict[str, list[cel.Overload]]


def declarations() -> list[cel.FunctionDecl]:
    """All of them, by name."""
    found: Declared = {}
    for part in (_quantities, _urls, _addresses, _patterns, _lists, _formats):
        part(found)
    return [cel.FunctionDecl(name, overloads) for name, overloads in found.items()]


def _add(
    found: Declared, name: str, result: Any, parameters: list[Any], call: Callable[..., Any], *, member: bool = True
) -> None:
    overloads = found.setdefault(name, [])
    kinds = "_".join(re.sub(r"\W+", "_", str(each.name())) for each in parameters)
    overloads.append(
        cel.Overload(
            f"k8s_{name}_{'m' if member else 'g'}_{kinds}_{len(overloads)}", result, parameters, member, impl=_plain(call)
        )
    )


def _plain(call: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any) -> Any:
        return call(*(plain(each) for each in arguments))

    return called


def plain(value: Any) -> Any:
    """What the library hands over, as Python's own."""
    if isinstance(value, cel.Value):
        return plain(value.value())
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items()}
    return value


def _tests(call: Callable[[str], Any]) -> Callable[[str], bool]:
    def works(text: str) -> bool:
        try:
            call(text)
        except ValueError:
            return False
        return True

    return works


# -- quantities ----------------------------------------------------------------------------------------------


def _quantity(text: str) -> dict[str, str]:
    return {"quantity": str(quantity.parse(text))}


def _amount(value: Any) -> Fraction:
    if not isinstance(value, dict) or "quantity" not in value:
        raise ValueError("no such overload: this is no quantity")
    return Fraction(value["quantity"])


def _whole(value: Any) -> int:
    amount = _amount(value)
    if amount.denominator != 1:
        raise ValueError("cannot convert value to integer")
    return int(amount)


def _quantities(found: Declared) -> None:
    _add(found, "quantity", _MAP, [T.STRING], _quantity, member=False)
    _add(found, "isQuantity", T.BOOL, [T.STRING], _tests(_quantity), member=False)
    _add(found, "compareTo", T.INT, [_MAP, _MAP], lambda a, b: (_amount(a) > _amount(b)) - (_amount(a) < _amount(b)))
    _add(found, "isGreaterThan", T.BOOL, [_MAP, _MAP], lambda a, b: _amount(a) > _amount(b))
    _add(found, "isLessThan", T.BOOL, [_MAP, _MAP], lambda a, b: _amount(a) < _amount(b))
    _add(found, "asInteger", T.INT, [_MAP], _whole)
    _add(found, "isInteger", T.BOOL, [_MAP], lambda a: _amount(a).denominator == 1)
    _add(found, "asApproximateFloat", T.DOUBLE, [_MAP], lambda a: float(_amount(a)))
    _add(found, "sign", T.INT, [_MAP], lambda a: (_amount(a) > 0) - (_amount(a) < 0))
    for name, sign in (("add", 1), ("sub", -1)):
        _add(found, name, _MAP, [_MAP, _MAP], functools.partial(_sum, sign))
        _add(found, name, _MAP, [_MAP, T.INT], functools.partial(_sum, sign))


def _sum(sign: int, one: Any, other: Any) -> dict[str, str]:
    return {"quantity": str(_amount(one) + sign * (other if isinstance(other, int) else _amount(other)))}


# -- URLs ----------------------------------------------------------------------------------------------------


def _url(text: str) -> dict[str, str]:
    parts = urlsplit(text)
    if not (parts.scheme and parts.netloc) and not text.startswith("/"):
        raise ValueError(f"URL parse error: {text!r} is no absolute URL or path")
    _ = parts.port  # Raises where it is none.
    return {"url": text}


def _parts(value: Any) -> SplitResult:
    if not isinstance(value, dict) or "url" not in value:
        raise ValueError("no such overload: this is no URL")
    return urlsplit(value["url"])


def _hostname(value: Any) -> str:
    return (_parts(value).hostname or "").strip("[]")


def _query(value: Any) -> dict[str, list[str]]:
    from urllib.parse import parse_qs

    return parse_qs(_parts(value).query, keep_blank_values=True)


def _urls(found: Declared) -> None:
    _add(found, "url", _MAP, [T.STRING], _url, member=False)
    _add(found, "isURL", T.BOOL, [T.STRING], _tests(_url), member=False)
    _add(found, "getScheme", T.STRING, [_MAP], lambda u: _parts(u).scheme)
    _add(found, "getHost", T.STRING, [_MAP], lambda u: _parts(u).netloc.rpartition("@")[2])
    _add(found, "getHostname", T.STRING, [_MAP], _hostname)
    _add(found, "getPort", T.STRING, [_MAP], lambda u: str(_parts(u).port or ""))
    _add(found, "getEscapedPath", T.STRING, [_MAP], lambda u: _parts(u).path)
    _add(found, "getQuery", T.Map(T.STRING, _STRINGS), [_MAP], _query)


# -- addresses -----------------------------------------------------------------------------------------------


def _ip(text: str) -> dict[str, str]:
    if "%" in text or text.lower().startswith("::ffff:"):
        raise ValueError(f"IP address {text!r} must have no zone and be no IPv4 address in IPv6's form")
    return {"ip": str(ip_address(text))}


def _cidr(text: str) -> dict[str, str]:
    if "/" not in text:
        raise ValueError(f"network address parse error: {text!r}")
    ip_network(text, strict=False)
    return {"cidr": text}


def _address(value: Any) -> Any:
    if isinstance(value, str):
        value = _ip(value)
    if not isinstance(value, dict) or "ip" not in value:
        raise ValueError("no such overload: this is no IP address")
    return ip_address(value["ip"])


def _network(value: Any) -> Any:
    if isinstance(value, str):
        value = _cidr(value)
    if not isinstance(value, dict) or "cidr" not in value:
        raise ValueError("no such overload: this is no network")
    return ip_network(value["cidr"], strict=False)


def _contains(outer: Any, inner: Any) -> bool:
    one, other = _network(outer), _network(inner)
    return bool(one.version == other.version and other.subnet_of(one))


def _addresses(found: Declared) -> None:
    _add(found, "ip", _MAP, [T.STRING], _ip, member=False)
    _add(found, "isIP", T.BOOL, [T.STRING], _tests(_ip), member=False)
    _add(found, "ip.isCanonical", T.BOOL, [T.STRING], lambda text: _ip(text)["ip"] == text, member=False)
    _add(found, "cidr", _MAP, [T.STRING], _cidr, member=False)
    _add(found, "isCIDR", T.BOOL, [T.STRING], _tests(_cidr), member=False)
    _add(found, "ip", _MAP, [_MAP], lambda net: _ip(net["cidr"].partition("/")[0]))
    _add(found, "family", T.INT, [_MAP], lambda a: _address(a).version)
    for name, field in (
        ("isUnspecified", "is_unspecified"),
        ("isLoopback", "is_loopback"),
        ("isLinkLocalUnicast", "is_link_local"),
        ("isLinkLocalMulticast", "is_multicast"),
    ):
        _add(found, name, T.BOOL, [_MAP], functools.partial(_is, field))
    _add(found, "isGlobalUnicast", T.BOOL, [_MAP], _is_global)
    for kind in (_MAP, T.STRING):
        _add(found, "containsIP", T.BOOL, [_MAP, kind], lambda net, a: _address(a) in _network(net))
        _add(found, "containsCIDR", T.BOOL, [_MAP, kind], _contains)
    _add(found, "masked", _MAP, [_MAP], lambda net: {"cidr": str(_network(net))})
    _add(found, "prefixLength", T.INT, [_MAP], lambda net: _network(net).prefixlen)


def _is(field: str, value: Any) -> bool:
    return bool(getattr(_address(value), field))


def _is_global(value: Any) -> bool:
    address = _address(value)
    return not (address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local)


# -- text and lists ------------------------------------------------------------------------------------------


def _find(text: str, pattern: str) -> str:
    found = re2.search(pattern, text)
    return found.group(0) if found else ""


def _find_all(text: str, pattern: str, most: int = -1) -> list[str]:
    found: list[str] = []
    for match in re2.finditer(pattern, text):
        if 0 <= most <= len(found):
            break
        found.append(match.group(0))
    return found


def _patterns(found: Declared) -> None:
    _add(found, "find", T.STRING, [T.STRING, T.STRING], _find)
    _add(found, "findAll", _STRINGS, [T.STRING, T.STRING], _find_all)
    _add(found, "findAll", _STRINGS, [T.STRING, T.STRING, T.INT], _find_all)


def _filled(items: list[Any]) -> list[Any]:
    if not items:
        raise ValueError("min/max called on empty list")
    return items


def _lists(found: Declared) -> None:
    _add(found, "isSorted", T.BOOL, [_LIST], lambda items: all(a <= b for a, b in itertools.pairwise(items)))
    _add(found, "sum", T.DYN, [_LIST], lambda items: sum(items))
    _add(found, "min", T.DYN, [_LIST], lambda items: min(_filled(items)))
    _add(found, "max", T.DYN, [_LIST], lambda items: max(_filled(items)))


# -- formats -------------------------------------------------------------------------------------------------


def _format_of(test: Callable[[str], bool], text: str) -> Callable[[str], list[str]]:
    return lambda value: [] if test(value) else [text]


def _label(value: str) -> list[str]:
    return [] if len(value) <= 63 and metadata.SUBDOMAIN.match(value) and "." not in value else [metadata.DNS_LABEL]


FORMATS: dict[str, Callable[[str], list[str]]] = {
    "dns1123Label": _label,
    "dns1123Subdomain": _format_of(lambda v: len(v) <= 253 and metadata.SUBDOMAIN.match(v) is not None, metadata.DNS_SUBDOMAIN),
    "dns1035Label": _format_of(lambda v: len(v) <= 63 and metadata.LETTER_FIRST.match(v) is not None, metadata.DNS_1035),
    "qualifiedName": lambda value: metadata.key_problems(value),
    "labelValue": lambda value: [cause.message for cause in metadata.label_causes({"key": value}, "")],
    "uri": _format_of(_tests(_url), "must be a URI"),
    "uuid": _format_of(
        lambda v: re.fullmatch(r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}", v) is not None, "must be a UUID"
    ),
    "date": _format_of(lambda v: re.fullmatch(r"\d{4}-\d\d-\d\d", v) is not None, "must be a date"),
    "datetime": _format_of(lambda v: re.match(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d", v) is not None, "must be a date and time"),
}


def _formats(found: Declared) -> None:
    for name in FORMATS:
        _add(found, f"format.{name}", _MAP, [], functools.partial(dict, format=name), member=False)
    _add(found, "validate", T.DYN, [_MAP, T.STRING], lambda form, value: FORMATS[form["format"]](value))
