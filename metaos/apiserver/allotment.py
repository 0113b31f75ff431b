"""Addresses of Services and ports of nodes, given when a Service is written and free again when it has gone.

Nothing but the Services themselves says what is taken, so a hub that dies leaves nothing behind. What one hub is about to write
it remembers until it can be seen; hubs that share a store claim each address with the write (``store.log.CLAIM``), so none is
given twice, whoever writes beside. Which address is chosen follows from the Service's name: where it is taken, the next free one.
Source: ``pkg/registry/core/service`` (``alloc.go``, ``ipallocator``, ``portallocator``) of Kubernetes.
Bounds: one entry of memory for each Service; an allotment looks at what has changed since the one before.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Container
from contextlib import asynccontextmanager
from typing import Any

from metaos.apiserver.addressing import encode
from metaos.apiserver.cache import Version, WatchCache
from metaos.apiserver.schema import invalid
from metaos.resources import errors, scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, name, namespace
from metaos.resources.services import (
    ADDRESSES,
    FIRST_ADDRESS,
    HEADLESS,
    NODE_PORTS,
    RANGE,
    addresses,
    allotted,
    dotted,
    lacks_address,
    needs_address,
    needs_health_port,
    needs_node_ports,
    node_ports,
    own_endpoints,
)
from metaos.store.log import CLAIM, Conflict, Overtaken, Store, claimed

#: An address, or a port.
Thing = str | int
#: So many at the beginning of each range are left to those who name theirs, as in Kubernetes, until the rest is taken.
NAMED_ADDRESSES, NAMED_PORTS = 256, 86
_FIRST = FIRST_ADDRESS + 1
_TAKEN = "provided {} is already allocated"


def choose(seed: str, count: int, kept: int, taken: Container[int]) -> int | None:
    """A number of ``range(count)`` that is not taken: by ``seed``, or the next after it, the first ``kept`` only where nothing
    else is left."""
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") % (count - kept)
    for step in range(count - kept):
        if (number := kept + (start + step) % (count - kept)) not in taken:
            return number
    return next((number for number in range(kept) if number not in taken), None)


class _Numbers:
    """What is taken, as numbers of a range."""

    def __init__(self, taken: Container[Thing], first: int, shown: bool) -> None:
        self._taken, self._first, self._shown = taken, first, shown

    def __contains__(self, number: object) -> bool:
        value = self._first + int(number)  # type: ignore[call-overload]
        return (dotted(value) if self._shown else value) in self._taken


class _Taken:
    """What Services have, by the watch cache and by what is being written."""

    def __init__(self, cache: WatchCache) -> None:
        self._cache = cache
        self._seen = -1
        self._of: dict[str, frozenset[Thing]] = {}
        self._holders: dict[Thing, set[str]] = {}
        #: What is being written, and for which Service.
        self.pending: dict[Thing, str] = {}

    def catch_up(self) -> None:
        held = self._cache.resource(scheme.SERVICE.resource)
        if not held.floor <= self._seen <= held.revision:
            self._of, self._holders = {}, {}
            for version in held.objects.values():
                self._note(version.key, version)
        else:
            while change := held.next(self._seen):
                self._seen = change.revision
                found = change.now or change.before
                if found is not None:
                    self._note(found.key, change.now)
        self._seen = held.revision

    def _note(self, key: str, now: Version | None) -> None:
        spec = (now.object().get("spec") or {}) if now is not None else {}
        things = frozenset[Thing](node_ports(spec)).union(addresses(spec)) - {HEADLESS}
        before = self._of.pop(key, frozenset())
        if things:
            self._of[key] = things
        for gone in before - things:
            self._holders[gone].discard(key)
            if not self._holders[gone]:
                del self._holders[gone]
        for new in things - before:
            self._holders.setdefault(new, set()).add(key)

    def __contains__(self, thing: object) -> bool:
        return thing in self._holders or thing in self.pending


class Allotment:
    """Of one API server."""

    def __init__(self, cache: WatchCache) -> None:
        self._cache = cache
        self._taken = _Taken(cache)

    @asynccontextmanager
    async def given(self, obj: Obj, old: Obj | None, *, ports: bool = True) -> AsyncIterator[None]:
        """The time in which a Service is written: with an address and ports, as its type needs them. Raises ``ApiError`` 422
        where what it names is not to be had, 500 where nothing is left. The write raises ``Overtaken`` where another hub has
        given the same meanwhile: begin again. Without ``ports``: an address only. Where it is not written, ``obj`` is as it
        was."""
        spec, before = obj.get("spec") or {}, (old or {}).get("spec") or {}
        await self._cache.settled()
        self._taken.catch_up()
        wanted, new = self._filled(obj, spec, before, ports)
        obj["spec"] = wanted
        key = f"{namespace(obj)}/{name(obj)}"
        self._taken.pending.update(dict.fromkeys(new, key))
        token = CLAIM.set(claimed(self._cache.revision, *(f"service/{each}" for each in sorted(map(str, new))))) if new else None
        try:
            yield
            if token is not None:
                CLAIM.reset(token)
                token = None
                await self._cache.settled()
        except BaseException as failure:
            obj["spec"] = spec
            if isinstance(failure, Overtaken):
                await self._cache.fresh()
            raise
        finally:
            if token is not None:
                CLAIM.reset(token)
            for each in new:
                self._taken.pending.pop(each, None)

    def _filled(self, obj: Obj, spec: dict[str, Any], before: dict[str, Any], ports: bool) -> tuple[dict[str, Any], set[Thing]]:
        """The spec with all that it needs, and what of that is newly taken."""
        wanted = {**spec}
        if "ports" in spec:
            wanted["ports"] = [dict(port) for port in spec["ports"]]
        new: set[Thing] = set()
        if needs_address(spec):
            new |= self._address(obj, wanted, set(addresses(before)))
            both = own_endpoints(wanted)
            policy = wanted.setdefault("ipFamilyPolicy", "RequireDualStack" if both else "SingleStack")
            families = wanted.get("ipFamilies") or ["IPv4"]
            if both and policy != "SingleStack" and len(families) == 1:
                families = [*families, "IPv6" if families[0] == "IPv4" else "IPv4"]
            wanted["ipFamilies"] = families
        if ports and (needs_node_ports(spec) or needs_health_port(spec)):
            new |= self._ports(obj, wanted, node_ports(before), new)
        return wanted, new

    def _address(self, obj: Obj, wanted: dict[str, Any], held: set[str]) -> set[Thing]:
        named = addresses(wanted)
        if not named:
            taken = _Numbers(self._taken, _FIRST, True)
            number = choose(f"{namespace(obj)}/{name(obj)}", ADDRESSES - 2, NAMED_ADDRESSES, taken)
            if number is None:
                raise errors.internal("failed to allocate a serviceIP: range is full")
            named = [dotted(_FIRST + number)]
        elif new := [each for each in named if each != HEADLESS and each not in held]:
            for each in new:
                if ":" in each:
                    raise self._refused(obj, "spec.clusterIPs[0]", named, "IPv6 is not configured on this cluster")
                why = ""
                if not allotted(each):
                    why = f"the provided IP ({each}) is not in the valid range. The range of valid IPs is {RANGE}"
                elif each in self._taken:
                    why = _TAKEN.format("IP")
                if why:
                    raise self._refused(obj, "spec.clusterIPs", named, f"failed to allocate IP {each}: {why}")
        wanted["clusterIP"], wanted["clusterIPs"] = named[0], named
        return {each for each in named if each != HEADLESS and each not in held}

    def _ports(self, obj: Obj, wanted: dict[str, Any], held: set[int], taken: set[Thing]) -> set[Thing]:
        new: set[Thing] = set()
        ports = wanted.get("ports") or [] if needs_node_ports(wanted) else []
        for i, port in enumerate(ports):
            if number := port.get("nodePort"):
                self._check_port(obj, f"spec.ports[{i}].nodePort", number, held)
                new |= {number} - held
        # The same port of two protocols has one port of the nodes.
        by_port = {port["port"]: port["nodePort"] for port in reversed(ports) if port.get("nodePort")}
        for port in ports:
            if not port.get("nodePort"):
                if port["port"] not in by_port:
                    by_port[port["port"]] = self._next_port(f"{namespace(obj)}/{name(obj)}/{port['port']}", new)
                port["nodePort"] = by_port[port["port"]]
                new |= {port["nodePort"]} - held
        if needs_health_port(wanted):
            number = wanted.get("healthCheckNodePort")
            if number:
                self._check_port(obj, "spec.healthCheckNodePort", number, held)
            else:
                number = self._next_port(f"{namespace(obj)}/{name(obj)}", new)
            wanted["healthCheckNodePort"] = number
            new |= {number} - held
        return new

    def _check_port(self, obj: Obj, path: str, number: int, held: set[int]) -> None:
        if number in held:
            return
        if number not in NODE_PORTS:
            why = f"provided port is not in the valid range. The range of valid ports is {NODE_PORTS[0]}-{NODE_PORTS[-1]}"
            raise self._refused(obj, path, number, why)
        if number in self._taken:
            raise self._refused(obj, path, number, _TAKEN.format("port"))

    def _next_port(self, seed: str, new: set[Thing]) -> int:
        taken = _Numbers(_Either(self._taken, new), NODE_PORTS[0], False)
        number = choose(seed, len(NODE_PORTS), NAMED_PORTS, taken)
        if number is None:
            raise errors.internal("failed to allocate a nodePort: range is full")
        return NODE_PORTS[number]

    @staticmethod
    def _refused(obj: Obj, path: str, value: Any, why: str) -> ApiError:
        return errors.invalid("", scheme.SERVICE.kind, name(obj), [invalid(path, value, why)])

    async def complete(self, store: Store) -> int:
        """Gives addresses to Services that have none, as an earlier release left them; how many. Another hub may do the same.
        Ports of nodes are given when such a Service is written next."""
        done = 0
        for version in list(self._cache.range(scheme.SERVICE.resource)):
            obj = version.object()
            if not lacks_address(obj):
                continue
            try:
                async with self.given(obj, None, ports=False):
                    self._cache.written(await store.update(version.key, encode(obj), expected=version.revision))
                    done += 1
            except (Conflict, Overtaken, ApiError):
                continue  # Whoever wrote it then has given one; or none is left, which the next write says.
        return done


class _Either:
    def __init__(self, one: Container[Thing], other: Container[Thing]) -> None:
        self._one, self._other = one, other

    def __contains__(self, thing: object) -> bool:
        return thing in self._one or thing in self._other
