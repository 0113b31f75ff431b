"""The hub's side of the bus: its server, started with the first use, its connection, its tenants and their devices' credentials.

A hub without devices runs no server. Servers keep the accounts that they were told, so devices come back to them without the hub.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from metaos.clock import Clock
from metaos.config import Address
from metaos.messaging.accounts import CONNECTIONS_SUBJECT, Accounts, DeviceUser, Tenant
from metaos.messaging.bus import BusError, Message, Subscription, Unavailable
from metaos.messaging.child import Child
from metaos.messaging.embedded import DISK_BYTES, Embedded, GatewaySettings, Listener, ServerConfig, free_port, near
from metaos.messaging.keys import read_token, signed_by
from metaos.messaging.opening import opened

if TYPE_CHECKING:
    from metaos.messaging.nats import NatsBus

log = logging.getLogger("nemo.bus")

LOOPBACK = "127.0.0.1"
#: Accounts that are told to the servers at once.
AT_ONCE = 16
TELL_SECONDS = 10.0
#: Devices that came or went and wait to be looked at; of more the oldest are lost.
CONNECTED_WAITING = 10_000
#: How long a connection to servers of one's own, and to others, is waited for.
PATIENCE_SECONDS = (5.0, 10.0)


@dataclass(frozen=True, slots=True)
class ExchangeConfig:
    """``servers``: of a cluster that is there (``nats://HOST:PORT`` or ``tls://…``); without them one is run here, in ``folder``.
    ``mqtt``, ``mqtt5`` and ``leaf``: where it listens for devices, for those with MQTT 5, and for servers at sites; port 0: any
    free one."""

    folder: Path
    servers: tuple[str, ...] = ()
    mqtt: Address | None = None
    mqtt5: Address | None = None
    leaf: Address | None = None
    disk_bytes: int = DISK_BYTES
    #: Why there is no bus, and what to do about it; empty: there is one.
    off: str = ""
    #: The host by which others know a listener that listens everywhere.
    host: str = ""


@dataclass(frozen=True, slots=True)
class Connected:
    """A device has connected over MQTT, or is gone where not ``there``; ``number`` is the connection's. Of two in one namespace
    with one ``client_id`` the servers cut the earlier off."""

    namespace: str
    name: str
    client_id: str
    number: str = ""
    there: bool = True


class Exchange:
    """See the module. ``root`` gives the secret that everything is derived from. ``pair``: files with the server's certificates
    and key, for listeners beyond loopback, and ``authorities``: PEM of those that made them; ``trust``: for servers of others."""

    def __init__(
        self,
        config: ExchangeConfig,
        clock: Clock,
        root: Callable[[], Awaitable[bytes]],
        pair: Callable[[], tuple[Path, Path]] | None = None,
        trust: Callable[[], ssl.SSLContext] | None = None,
        authorities: Callable[[], str] = str,
    ) -> None:
        self.config, self._clock, self._root, self._pair, self._trust = config, clock, root, pair, trust
        self._authorities = authorities
        self._turn, self._telling = asyncio.Lock(), asyncio.Lock()
        self.accounts: Accounts | None = None
        self.server: Embedded | None = None
        self._gateway: Child | None = None
        self._five: Listener | None = None
        self._bus: NatsBus | None = None
        self._system: NatsBus | None = None
        self._held: dict[str, Tenant] = {}
        #: Accounts that no server knew before, until it has made what it keeps of their devices.
        self._new: set[str] = set()
        #: Of each account the newest token's time: an older one would be taken without effect.
        self._issued: dict[str, float] = {}

    @property
    def running(self) -> bool:
        return self._bus is not None

    @property
    def mqtt(self) -> Address | None:
        """Where devices connect, once the server runs."""
        listener = self.server.config.mqtt if self.server is not None else None
        return None if listener is None else Address(listener.host, listener.port)

    @property
    def mqtt5(self) -> Address | None:
        """Where those with MQTT 5 connect."""
        return None if self._five is None else Address(self._five.host, self._five.port)

    @property
    def urls(self) -> tuple[str, ...]:
        """How devices reach it, once the server runs: ``mqtt://HOST:PORT``, ``mqtts`` with TLS."""
        found = []
        for listener in (self.server.config.mqtt if self.server is not None else None, self._five):
            if listener is not None:
                host = self.config.host if listener.host in ("0.0.0.0", "::") and self.config.host else listener.host
                found.append(f"{'mqtts' if listener.certificate else 'mqtt'}://{Address(host, listener.port)}")
        return tuple(found)

    async def bus(self) -> NatsBus:
        """The connection of the hub's account, made with the first call. Raises ``Unavailable``."""
        async with self._turn:
            if self._bus is None:
                await self._start()
            assert self._bus is not None
            return self._bus

    async def known(self) -> Accounts:
        """Keys and tokens, for which no server is needed."""
        if self.config.off:
            raise Unavailable(self.config.off)
        if self.accounts is None:
            self.accounts = Accounts(await self._root())
        return self.accounts

    async def device(
        self, tenant: Tenant, name: str, uid: str, *, generation: int = 1, expires: float | None = None
    ) -> DeviceUser:
        """Credentials of a device; see :meth:`Accounts.device`. They count once the tenant is held."""
        accounts = await self.known()
        return accounts.device(tenant, name, uid, self._clock.now(), generation=generation, expires=expires)

    async def tenant(self, tenant: Tenant) -> NatsBus:
        """A connection in a tenant's account, to read its streams; the caller closes it. Raises ``Unavailable``."""
        from metaos.messaging.nats import NatsBus

        await self.bus()
        accounts = await self.known()
        key, _ = accounts.tenant_user(tenant, self._clock.now())
        tls = self._trust() if self._trust is not None and self.config.servers else None

        def token() -> str:
            return accounts.tenant_user(tenant, self._clock.now())[1]

        return await NatsBus.connect(self._servers(), key, token, "hub", tls, PATIENCE_SECONDS[bool(self.config.servers)])

    def _servers(self) -> Sequence[str]:
        if self.config.servers or self.server is None:
            return self.config.servers
        return [f"nats://{LOOPBACK}:{self.server.config.listen.port}"]

    async def hold(self, tenants: Collection[Tenant]) -> None:
        """Makes the servers know these tenants, as they are said to be, and no others that this hub told them. Who is revoked is
        cut off at once. Raises ``Unavailable``, ``BusError``."""
        await self.bus()
        async with self._telling:
            wanted = {t.namespace: t for t in tenants}
            accounts = await self.known()
            changed = [t for t in wanted.values() if self._held.get(t.namespace) != t]
            gone = [t for t in self._held.values() if t.namespace not in wanted or wanted[t.namespace].uid != t.uid]
            room = asyncio.Semaphore(AT_ONCE)

            async def tell(tenant: Tenant) -> None:
                key = accounts.account(tenant.namespace, tenant.uid).public
                async with room:
                    await self._tell(key, lambda now: accounts.tenant_token(tenant, now))
                    if key in self._new and tenant.connections:
                        await self._open(accounts.opener(tenant, self._clock.now()))
                    self._new.discard(key)
                self._held[tenant.namespace] = tenant

            await asyncio.gather(*(tell(tenant) for tenant in changed))
            for tenant in gone:
                if self._held.get(tenant.namespace) == tenant:
                    del self._held[tenant.namespace]
            if gone:
                keys = [accounts.account(t.namespace, t.uid).public for t in gone]
                await self._ask("$SYS.REQ.CLAIMS.DELETE", accounts.removal_token(keys, self._clock.now()))

    async def connections(self) -> Subscription:
        """Clients as they come and go from now on: see :meth:`connected`. Raises ``Unavailable``."""
        await self.bus()
        assert self._system is not None
        return await self._system.subscribe(CONNECTIONS_SUBJECT, waiting=CONNECTED_WAITING)

    def connected(self, said: Message) -> Connected | None:
        """What a server says of a client that came or went; ``None`` for those that are no devices. Of a client's own words only
        its ID is taken: the others stand in its token. Servers at sites are another's, so it is looked at who signed that, where
        anything can follow from it: for an ID that is not the device's name."""
        try:
            event = json.loads(said.data)
            client = event["client"]
            if client.get("client_type") != "mqtt":
                return None
            token, tenant = str(client["jwt"]), self._held.get(str(client["name_tag"]))
            name, id_ = str(read_token(token)["name"]), str(client["client_id"])
            if tenant is None or self.accounts is None:
                return None
            if id_ != name and not signed_by(token, self.accounts.account(tenant.namespace, tenant.uid).public):
                return None
            number = f"{event['server']['id']}/{client['id']}"
            return Connected(tenant.namespace, name, id_, number, said.subject.endswith(".CONNECT"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def renew(self) -> None:
        """The server's certificate has changed."""
        for process in (self.server, self._gateway):
            if process is not None:
                process.reload()

    async def stop(self) -> None:
        for connection in (self._bus, self._system):
            if connection is not None:
                await connection.close()
        self._bus = self._system = None
        if self._gateway is not None:
            await self._gateway.stop()
        if self.server is not None:
            await self.server.stop()

    async def _start(self) -> None:
        # The client takes half a second to load, and 10 MB: a hub without devices has neither.
        from metaos.messaging.nats import NatsBus

        accounts = await self.known()
        if not self.config.servers:
            if self.server is None:
                server = Embedded(self._server(accounts), self._clock)
                await server.start()
                self.server = server
            if self._gateway is None and self.config.mqtt5 is not None:
                await self._open_gateway(self.config.mqtt5)
        servers = self._servers()
        patience = PATIENCE_SECONDS[bool(self.config.servers)]
        tls = self._trust() if self._trust is not None and self.config.servers else None
        found = []
        for system in (True, False):
            key, _ = accounts.hub_user(self._clock.now(), system=system)

            def token(system: bool = system) -> str:
                return accounts.hub_user(self._clock.now(), system=system)[1]

            # A cluster of three or more keeps what it acknowledges at three.
            copies = 3 if len(self.config.servers) >= 3 else 1
            found.append(await NatsBus.connect(servers, key, token, "hub", tls, patience, copies))
        self._system, self._bus = found

    async def _open(self, token: str) -> None:
        """At the hub's own server; others are none of its business. Raises ``Unavailable``."""
        listener = self.server.config.mqtt if self.server is not None else None
        if listener is None:
            return
        tls = ssl.create_default_context(cadata=self._authorities()) if listener.certificate else None
        await opened(near(listener.host), listener.port, token, tls, self._clock)

    async def _open_gateway(self, address: Address) -> None:
        """For MQTT 5, in front of the server's listener for 3.1.1. Raises ``Unavailable``."""
        assert self.server is not None
        server, five = self.server.config.mqtt, self._listener(address)
        if server is None or five is None:
            raise Unavailable("MQTT 5 needs the listener for MQTT 3.1.1, which it translates to: say --mqtt too")
        settings = GatewaySettings(
            host=five.host,
            port=five.port,
            server_host=near(server.host),
            server_port=server.port,
            certificate=str(five.certificate or ""),
            key=str(five.key or ""),
            trust=self._authorities() if server.certificate else "",
        )
        command = (sys.executable, "-m", "metaos.messaging.gateway")
        gateway = Child("the gateway for MQTT 5", lambda: command, self._clock, settings.line())
        await gateway.start()
        self._gateway, self._five = gateway, five

    def _server(self, accounts: Accounts) -> ServerConfig:
        known = {accounts.system.public: accounts.system_token(), accounts.hub.public: accounts.hub_token()}
        return ServerConfig(
            name="hub",
            folder=self.config.folder,
            listen=Listener(LOOPBACK, free_port(LOOPBACK)),
            operator=accounts.operator_token(),
            system=accounts.system.public,
            accounts=known,
            mqtt=self._listener(self.config.mqtt),
            leaf=self._listener(self.config.leaf),
            disk_bytes=self.config.disk_bytes,
        )

    def _listener(self, address: Address | None) -> Listener | None:
        """With TLS, unless only this machine can reach it."""
        if address is None:
            return None
        port = address.port or free_port(address.host)
        if address.host in ("localhost", "::1") or address.host.startswith("127."):
            return Listener(address.host, port)
        if self._pair is None:
            raise Unavailable(f"{address} can be reached from elsewhere, and there is no certificate for it")
        certificate, key = self._pair()
        return Listener(address.host, port, certificate, key)

    async def _tell(self, account: str, token: Callable[[float], str]) -> None:
        """The servers learn an account's token. Told again, with a clock that was set back, it is still the newer one."""
        if account not in self._issued:
            found = await self._look(f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP")
            self._issued[account] = float(read_token(found)["iat"]) if found else 0.0
            if not found:
                self._new.add(account)
        issued = self._issued[account] = max(self._clock.now(), self._issued[account])
        await self._ask("$SYS.REQ.CLAIMS.UPDATE", token(issued))

    async def _look(self, subject: str) -> str:
        assert self._system is not None
        return (await self._system.request(subject, b"", seconds=TELL_SECONDS)).data.decode()

    async def _ask(self, subject: str, token: str) -> None:
        """Raises ``BusError`` with what the server has against it."""
        assert self._system is not None
        found = await self._system.request(subject, token.encode(), seconds=TELL_SECONDS)
        try:
            answer = json.loads(found.data)
        except ValueError:
            raise BusError("the bus gave an answer about an account that is no JSON") from None
        if "error" in answer:
            raise BusError(f"the bus does not take an account: {answer['error'].get('description', answer['error'])}")


def read_servers(text: str) -> tuple[str, ...]:
    """URLs of servers, with commas between, or of a file that holds them. Raises ``ValueError``."""
    if "://" not in text:
        try:
            text = Path(text).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ValueError(
                f"--bus must be URLs such as nats://nats-1:4222, or a file that holds some; {text} is neither: {reason}"
            ) from None
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for url in found:
        parts = urlsplit(url)
        loopback = parts.hostname in ("localhost", "::1") or (parts.hostname or "").startswith("127.")
        if parts.scheme not in ("nats", "tls") or not parts.hostname:
            raise ValueError(f"--bus: {url!r} is no URL of a NATS server, such as tls://nats-1.example.org:4222")
        if parts.username or parts.password:
            raise ValueError(f"--bus: leave out the user of {parts.hostname}: the hub has a key of its own")
        if parts.scheme == "nats" and not loopback:
            raise ValueError(f"--bus: {url} is not encrypted, which is for this machine alone: use tls://")
    if not found:
        raise ValueError("--bus names no server")
    return found


def revoked(tenant: Tenant, *keys: str) -> Tenant:
    """The same tenant, with more credentials that count no more."""
    return replace(tenant, revoked=tenant.revoked | frozenset(keys))
