"""A server of the bus at a site: devices there talk while the site is cut off, and what they measured is passed on afterwards.

It dials out to the hub's servers as a leaf node, once for each tenant that the site was given, and once to learn of accounts:
what is revoked at the hub is revoked here as soon as the link is there. Tokens that it has learned are on its disk.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from metaos.clock import Clock
from metaos.config import Address
from metaos.files import make_private, write_private
from metaos.messaging.accounts import DISK_BYTES as TENANT_BYTES
from metaos.messaging.bus import Unavailable
from metaos.messaging.child import Child
from metaos.messaging.embedded import Listener, free_port, near, program, quoted

log = logging.getLogger("nemo.bus")

#: What a tenant's measurements may take at the site, and of a site at the hub, in bytes; beyond that the oldest go. What the
#: site's server has beside what it sets aside for each tenant.
KEPT_BYTES = 256 << 20
DISK_BYTES = 1 << 30
#: How often a link is tried again, in seconds, and how long learned accounts count without it.
RECONNECT_SECONDS = 2
ACCOUNTS_HOURS = 720
#: How long making the streams may take at once, and when it is tried again.
STREAMS_SECONDS = 60.0
AGAIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class LeafTenant:
    """``credentials``: as NATS reads them, a secret. ``opener``: see :mod:`metaos.messaging.opening`."""

    namespace: str
    account: str
    credentials: str
    opener: str = ""


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a site needs to have a server of its own: a secret. ``hub``: ``HOST:PORT`` of the hub's listener for leaf nodes;
    ``ca``: PEM of whoever has made its certificate, empty where it has none (loopback alone)."""

    site: str
    hub: str
    ca: str
    operator: str
    system: str
    system_token: str
    system_credentials: str
    tenants: tuple[LeafTenant, ...]

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, file: Path) -> Leaf:
        """Raises ``ValueError`` naming the file and the remedy."""
        remedy = "make it anew with 'nemo bus leaf'"
        try:
            data = json.loads(file.read_text())
            tenants = tuple(LeafTenant(**tenant) for tenant in data.pop("tenants"))
            found = cls(**data, tenants=tenants)
            Address.parse(found.hub)
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}; {remedy}") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{file} is no description of a leaf node: {remedy}") from None
        texts = [v for v in (*data.values(), *(v for tenant in tenants for v in asdict(tenant).values()))]
        if not tenants or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{file} is no description of a leaf node: {remedy}")
        return found


class LeafServer:
    """The server's process at a site, in ``folder``. ``mqtt``: where devices connect."""

    def __init__(self, leaf: Leaf, folder: Path, clock: Clock, mqtt: Address, pair: Path | None = None) -> None:
        loopback = mqtt.host in ("localhost", "::1") or mqtt.host.startswith("127.")
        if not loopback and pair is None:
            raise ValueError(f"{mqtt} can be reached from elsewhere: give it a certificate with --mqtt-pair, or choose 127.0.0.1")
        self._leaf, self._folder, self._clock = leaf, folder, clock
        self.mqtt = Listener(mqtt.host, mqtt.port or free_port(mqtt.host), pair, pair)
        self.listen = Listener("127.0.0.1", free_port("127.0.0.1"))
        self._child = Child("the bus of this site", lambda: (program(), "-c", str(folder / "nats.conf")), clock)
        self._streams: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when it serves, whether the hub is there or not. Raises ``Unavailable``."""
        make_private(self._folder)
        write_private(self._folder / "system.creds", self._leaf.system_credentials)
        write_private(self._folder / "ca.pem", self._leaf.ca)
        for tenant in self._leaf.tenants:
            write_private(self._folder / f"{tenant.namespace}.creds", tenant.credentials)
        write_private(self._folder / "nats.conf", self._text())
        await self._child.start()
        self._streams = asyncio.create_task(self._keep_streams(), name="streams")

    async def stop(self) -> None:
        if self._streams is not None:
            self._streams.cancel()
            await asyncio.gather(self._streams, return_exceptions=True)
        await self._child.stop()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def settled(self) -> bool:
        """Whether the streams are there, for which the hub had to be."""
        return self._streams is not None and self._streams.done()

    def _text(self) -> str:
        """The server's configuration."""
        leaf, folder = self._leaf, self._folder
        scheme = "tls" if leaf.ca else "nats"
        tls = f", tls: {{ ca_file: {quoted(folder / 'ca.pem')} }}" if leaf.ca else ""

        def remote(account: str, file: str) -> str:
            url, credentials = quoted(f"{scheme}://{leaf.hub}"), quoted(folder / file)
            return f"  {{ url: {url}, account: {account}, credentials: {credentials}{tls} }}\n"

        remotes = remote(leaf.system, "system.creds") + "".join(remote(t.account, f"{t.namespace}.creds") for t in leaf.tenants)
        accounts = f"type: cache, dir: {quoted(folder / 'accounts')}, limit: 10000, ttl: '{ACCOUNTS_HOURS}h'"
        return (
            f"server_name: {quoted(f'site-{leaf.site}')}\n{self.listen.text()}logtime: false\n"
            f"operator: {leaf.operator}\nsystem_account: {leaf.system}\n"
            f"resolver: {{ {accounts} }}\n"
            f"resolver_preload {{ {leaf.system}: {leaf.system_token} }}\n"
            f"jetstream {{ store_dir: {quoted(folder)}, domain: {quoted(f'site-{leaf.site}')}, max_mem: 0, "
            f"max_file: {len(leaf.tenants) * TENANT_BYTES + DISK_BYTES}, sync_interval: '1s' }}\n"
            f"mqtt {{\n{self.mqtt.text()}}}\n"
            f"leafnodes {{ reconnect: {RECONNECT_SECONDS}, remotes: [\n{remotes}] }}\n"
        )

    async def _keep_streams(self) -> None:
        """Has the streams made that keep what devices measure, by a process that ends: NATS' client is too large for an agent."""
        command: Sequence[str] = (sys.executable, "-m", "metaos.messaging.sitestreams")
        names = [tenant.namespace for tenant in self._leaf.tenants]
        known = {"site": self._leaf.site, "port": self.listen.port, "folder": str(self._folder), "tenants": names}
        openers = [tenant.opener for tenant in self._leaf.tenants if tenant.opener]
        known |= {"mqtt": [near(self.mqtt.host), self.mqtt.port, bool(self.mqtt.certificate)], "openers": openers}
        told = json.dumps(known).encode() + b"\n"
        while True:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
            )
            try:
                async with asyncio.timeout(STREAMS_SECONDS):
                    _, said = await process.communicate(told)
            except (TimeoutError, asyncio.CancelledError) as error:
                process.kill()
                await process.wait()
                if isinstance(error, asyncio.CancelledError):
                    raise
                said = b"no answer"
            if process.returncode == 0:
                return
            log.info("what devices measure is not passed on yet: %s", said.decode(errors="replace").strip()[-300:])
            await self._clock.sleep(AGAIN_SECONDS)


@asynccontextmanager
async def running(server: LeafServer, clock: Clock) -> AsyncIterator[None]:
    """The server beside an agent, which goes on without it where it cannot be started."""

    async def run() -> None:
        while True:
            try:
                return await server.start()
            except (Unavailable, OSError) as error:
                log.error("%s; it is tried again in %g s", error, AGAIN_SECONDS)
                await clock.sleep(AGAIN_SECONDS)

    starting = asyncio.create_task(run(), name="bus")
    try:
        yield
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await server.stop()
