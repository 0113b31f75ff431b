"""Services for the world outside: the site answers on an address of its machine, and leads what comes to a ready pod.

Only where the site's owner named the address (``--expose``): nothing listens otherwise. A load balancer is answered on its own
ports, and like a ``NodePort`` on its ports of the nodes, as far as the owner's range goes. No two Services have one port: who has
it keeps it, over a restart too; else the first by namespace and name. NetworkPolicies and ``loadBalancerSourceRanges`` hold, by
the address that a connection comes from. The pods see the agent as who connects.
Bounds: ``MAX_PORTS`` sockets and ``MAX_CONNECTIONS`` connections, of one namespace or address fewer; of datagrams those of flows.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from metaos.agent.datagrams import PKTINFO, Datagrams, Endpoint
from metaos.agent.flows import Counts
from metaos.agent.relay import Dial, Relayed, reach, refuse, relay_sockets, relay_stream
from metaos.agent.routes import Listener, LocalEndpoint, Outward, RemoteEndpoint, Route, choices, outward
from metaos.config import Exposure
from metaos.files import write_private
from metaos.network.policies import in_ranges
from metaos.plugins.points import Runtime
from metaos.resources.meta import Obj, ObjectRef
from metaos.resources.services import EXPOSED
from metaos.tunnel import Stream

log = logging.getLogger(__name__)

MAX_PORTS, MAX_PORTS_OF_NAMESPACE = 256, 64
MAX_CONNECTIONS, MAX_OF_NAMESPACE, MAX_OF_ADDRESS = 1024, 512, 256
MAX_TRIES = 4
CONNECT_SECONDS = 5.0
#: A port that could not be opened is tried again after this long.
RETRY_SECONDS = 10.0
#: Of a connection on which nothing comes: when the other end is asked whether it is there, how often, and how many times.
KEEP_ALIVE = (socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 6)
#: Who sends datagrams to a pod of another site is one of many: all of a Service go by one stream.
ANYBODY = "0.0.0.0/0"

#: Protocol and number.
Port = tuple[str, int]
#: (address that it comes from, pod's uid, port, protocol) → why it may not, or nothing.
Refusal = Callable[[str, str, int, str], str | None]

#: Reasons by error number, and what to do.
_REASONS = {
    errno.EADDRINUSE: ("PortTaken", "another program of the machine has it"),
    errno.EACCES: (
        "NotPermitted",
        "the agent may not open ports this low: allow it (net.ipv4.ip_unprivileged_port_start, CAP_NET_BIND_SERVICE), or give "
        "the Service a port from 1024 on",
    ),
    errno.EADDRNOTAVAIL: ("NoAddress", "the machine does not have the address that the agent was given with --expose"),
}


@dataclass
class _Held:
    """A port that a Service has. Without a socket it is not open, for the reason."""

    whose: Outward
    sock: socket.socket | None = None
    reason: str = ""
    message: str = ""


class Exposed:
    """``dial`` opens a stream to another site's pod; ``refusal`` is the NetworkPolicies'; ``file`` keeps whose which port is;
    ``changed`` is called when :meth:`status` may be another without an :meth:`update`."""

    def __init__(
        self,
        exposure: Exposure,
        site: str,
        runtime: Runtime,
        dial: Dial,
        refusal: Refusal,
        counts: Counts,
        file: Path,
        changed: Callable[[], None],
    ) -> None:
        self._exposure, self._site, self._runtime, self._dial = exposure, site, runtime, dial
        self._refusal, self._file, self._changed = refusal, file, changed
        self._services: dict[tuple[str, str], list[Outward]] = {}
        self._held: dict[Port, _Held] = {}
        self._holders = self._stored = _load(file)
        self._datagrams = Datagrams(runtime, self._choose, self._reach, counts)
        self._relayed = Relayed()
        self._retry: asyncio.TimerHandle | None = None
        self._turn = 0

    def update(self, manifests: Iterable[Obj], pods: Iterable[Obj]) -> None:
        """What is wanted and which pods there are has changed: ports are open when this returns."""
        self._services = {}
        wanted: dict[Port, list[Outward]] = {}
        for found in outward(manifests, pods, self._site):
            self._services.setdefault((found.route.namespace, found.route.service), []).append(found)
            for number in self._numbers(found):
                wanted.setdefault((found.protocol, number), []).append(found)
        chosen = {port: self._holder(port, claims) for port, claims in wanted.items()}
        for port in [port for port, held in self._held.items() if port not in chosen or held.whose.uid != chosen[port].uid]:
            self._close(port)
        for port, whose in chosen.items():
            self._held.setdefault(port, _Held(whose)).whose = whose
        self._holders = {_key(port): held.whose.uid for port, held in self._held.items()}
        if self._holders != self._stored:
            try:
                write_private(self._file, json.dumps(self._holders))
                self._stored = self._holders
            except OSError as error:  # with the next change again
                log.warning("%s cannot be written: %s", self._file, error)
        self._open_all()

    def status(self, about: ObjectRef) -> Obj:
        """Of a Service, as this site sees it: where it is a load balancer (``loadBalancer``, as in the API), and a condition."""
        ports = [each for each in self._services.get((about.namespace, about.name), ()) if each.balanced or each.node_port]
        if not ports:
            return {}
        said, open_at, reason = [], [], ""
        own: list[dict[str, Any]] = []
        for found in ports:
            # A load balancer's ports of the nodes are there besides: it does not matter where they are not.
            problem, message = self._problem(found, found.port if found.balanced else found.node_port)
            if found.balanced:
                error = {"error": f"meta-os.eu/{problem}"} if problem else {}
                own.append({"port": found.port, "protocol": found.protocol, **error})
            open_at += [f"{n}/{found.protocol}" for n in self._numbers(found) if not self._problem(found, n)[0]]
            if problem:
                reason = reason or problem
                said.append(message)
        if open_at:
            said.insert(0, f"{self._exposure.address} answers on {', '.join(open_at)}")
        ready = any(found.ready for found in ports)
        if not ready:
            reason, said = reason or "NoEndpoint", [*said, "no pod is ready"]
        holds = bool(open_at) and ready
        status: dict[str, Any] = {
            "conditions": [
                {"type": EXPOSED, "status": str(holds), "reason": reason or "Exposed", "message": "; ".join(dict.fromkeys(said))}
            ]
        }
        if own and holds:
            one: dict[str, Any] = {"ip": self._exposure.address, "ipMode": "Proxy"}
            if any("error" in each for each in own):
                one["ports"] = own
            status["loadBalancer"] = {"ingress": [one]}
        return status

    async def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        for port in list(self._held):
            self._close(port)
        await self._relayed.close()
        await self._datagrams.close()

    # -- ports ---------------------------------------------------------------------------------------------------

    def _numbers(self, found: Outward) -> list[int]:
        """On which it is to be answered, and the site's owner has nothing against it."""
        numbers = [found.port] * found.balanced + [found.node_port] * bool(found.node_port)
        return [n for n in dict.fromkeys(numbers) if self._exposure.holds(n) and found.protocol in ("TCP", "UDP")]

    def _holder(self, port: Port, claims: list[Outward]) -> Outward:
        return next((each for each in claims if each.uid == self._holders.get(_key(port))), claims[0])

    def _problem(self, found: Outward, number: int) -> tuple[str, str]:
        """Why a port is not open for a Service, as a reason and in people's words; empty where it is."""
        name = f"port {number}/{found.protocol} of {self._exposure.address}"
        if found.protocol not in ("TCP", "UDP"):
            return "ProtocolNotCarried", f"{name} is not open: only TCP and UDP are carried"
        if not self._exposure.holds(number):
            allowed = str(self._exposure).partition(":")[2].replace(",", ", ")
            return "NotAllowed", f"{name} is not open: the site's owner allows {allowed} (--expose)"
        held = self._held[(found.protocol, number)]
        if held.whose.uid != found.uid:
            return "PortTaken", f"{name} is another Service's: give this one another port"
        return held.reason, f"{name} is not open: {held.message}"

    def _open_all(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        open_of = Counter(held.whose.route.namespace for held in self._held.values() if held.sock is not None)
        for port, held in sorted(self._held.items()):
            if held.sock is not None:
                continue
            whose = held.whose.route.namespace
            if open_of.total() >= MAX_PORTS or open_of[whose] >= MAX_PORTS_OF_NAMESPACE:
                most = f"it has {MAX_PORTS_OF_NAMESPACE} for a namespace and {MAX_PORTS} in all, and no more"
                held.reason, held.message = "TooManyPorts", f"the site opens no further one: {most}"
                continue
            try:
                held.sock = self._open(port, held.whose.uid)
            except OSError as error:
                reason, message = _REASONS.get(error.errno or 0, ("NotOpened", error.strerror or str(error)))
                if held.reason != reason:
                    log.warning("port %d/%s of %s cannot be opened: %s", port[1], port[0], self._exposure.address, message)
                held.reason, held.message = reason, message
                continue
            open_of[whose] += 1
            held.reason = held.message = ""
            log.info(
                "%s answers on %d/%s for Service %s/%s",
                *(self._exposure.address, port[1], port[0], held.whose.route.namespace, held.whose.route.service),
            )
        if any(held.reason for held in self._held.values()):
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._again)

    def _again(self) -> None:
        self._retry = None
        before = {port: held.reason for port, held in self._held.items()}
        self._open_all()
        if before != {port: held.reason for port, held in self._held.items()}:
            self._changed()

    def _open(self, port: Port, whose: str) -> socket.socket:
        """Raises ``OSError``."""
        protocol, number = port
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if protocol == "TCP":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((self._exposure.address, number))
                sock.listen(128)
                asyncio.get_running_loop().add_reader(sock, self._accept, port, sock)
            else:
                sock.setsockopt(socket.IPPROTO_IP, PKTINFO, 1)
                sock.bind((self._exposure.address, number))
                self._datagrams.take(whose, number, sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def _close(self, port: Port) -> None:
        held = self._held.pop(port)
        if held.sock is None:
            return
        if port[0] == "UDP":
            self._datagrams.release(held.whose.uid, port[1])
            return
        asyncio.get_running_loop().remove_reader(held.sock)
        held.sock.close()

    # -- connections ---------------------------------------------------------------------------------------------

    def _accept(self, port: Port, sock: socket.socket) -> None:
        try:
            accepted, (peer, _) = sock.accept()
        except OSError:
            return
        held = self._held.get(port)
        if held is None or not _welcome(held.whose, peer):
            refuse(accepted)
            return
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE:
            accepted.setsockopt(socket.IPPROTO_TCP, option, value)
        self._turn += 1
        shares = (("namespace", held.whose.route.namespace), MAX_OF_NAMESPACE), (("address", peer), MAX_OF_ADDRESS)
        self._relayed.begin(accepted, partial(self._relay, held.whose, accepted, peer, self._turn), MAX_CONNECTIONS, *shares)

    async def _relay(self, found: Outward, accepted: socket.socket, peer: str, turn: int) -> None:
        endpoints, why = self._allowed(found, peer, turn)
        for endpoint in endpoints[:MAX_TRIES]:
            try:
                target = await self._connect(found.route, endpoint, peer)
            except (OSError, LookupError, TimeoutError) as error:
                why = str(error) or type(error).__name__
                continue
            if isinstance(target, Stream):
                await relay_stream(accepted, target)
            else:
                await relay_sockets(accepted, target)
            return
        log.debug("a connection from %s to %s/%s fails: %s", peer, found.route.namespace, found.route.service, why)
        refuse(accepted)

    def _allowed(self, found: Outward, peer: str, turn: int) -> tuple[list[Endpoint], str]:
        """The endpoints in the order to try, and why there is none. What leads to other sites the hub decides."""
        why, allowed = "it has no ready endpoint", []
        for endpoint in choices(found.route, turn, peer):
            local = isinstance(endpoint, LocalEndpoint)
            refused = self._refusal(peer, endpoint.pod, endpoint.port, found.protocol) if local else None
            why = refused or why
            allowed += [] if refused else [endpoint]
        return allowed, why

    async def _connect(self, route: Route, endpoint: Endpoint, peer: str) -> socket.socket | Stream:
        """Raises ``OSError``, ``LookupError`` or ``TimeoutError``."""
        async with asyncio.timeout(CONNECT_SECONDS):
            if isinstance(endpoint, LocalEndpoint):
                found: socket.socket = await self._runtime.connect(endpoint.pod, endpoint.port)
                return found
            return await self._stream("dial", route, endpoint, peer)

    async def _stream(self, kind: str, route: Route, endpoint: RemoteEndpoint, peer: str) -> Stream:
        """Raises ``OSError``."""
        return await reach(self._dial, kind, route, endpoint, {"outside": True, "address": peer})

    # -- datagrams -----------------------------------------------------------------------------------------------

    def _choose(self, whose: str, listener: Listener, source: Listener) -> tuple[Route, list[Endpoint]] | None:
        held = self._held.get(("UDP", listener[1]))
        if held is None or held.whose.uid != whose:
            return None
        if not _welcome(held.whose, source[0]):
            return held.whose.route, []
        self._turn += 1
        return held.whose.route, self._allowed(held.whose, source[0], self._turn)[0]

    async def _reach(self, service: str, whose: str, route: Route, endpoint: RemoteEndpoint) -> Stream:
        return await self._stream("datagrams", route, endpoint, ANYBODY)


def _welcome(found: Outward, peer: str) -> bool:
    return not found.sources or in_ranges(peer, found.sources)


def _key(port: Port) -> str:
    return f"{port[0]}/{port[1]}"


def _load(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
