"""A process of the bus that is kept running: its start, its log, its return when it dies, and its end with ours."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

from metaos.clock import Clock
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
#: What it says when it serves.
READY = "[INF] Server is ready"


class Child:
    """``what`` it is called in messages; ``command`` makes the command line for each start, and ``given`` goes to its input."""

    def __init__(self, what: str, command: Callable[[], Sequence[str]], clock: Clock, given: bytes = b"") -> None:
        self._what, self._command, self._clock, self._given = what, command, clock, given
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._said: list[str] = []

    @property
    def pid(self) -> int:
        """0: it does not run at this moment."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def start(self) -> None:
        """Returns when it serves. Raises ``Unavailable`` with what it said."""
        await self._launch()
        self._keeper = asyncio.create_task(self._keep(), name=self._what)

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        await self._end()

    def reload(self) -> None:
        """Makes it read its files anew."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGHUP)

    async def _launch(self) -> None:
        self._ready.clear()
        self._said.clear()
        command = list(self._command())
        # It ends with us, however we end; util-linux has this for it.
        if (setpriv := shutil.which("setpriv")) is not None:
            command = [setpriv, "--pdeathsig", "TERM", *command]
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE if self._given else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=64 << 10,
            env={},
        )
        if self._process.stdin is not None:
            self._process.stdin.write(self._given)
            self._process.stdin.close()
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
            raise Unavailable(f"{self._what} could not be started: {said}")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Its log: what went wrong becomes ours, within bounds."""
        assert process.stderr is not None
        since, count = self._clock.monotonic(), 0
        while True:
            try:
                raw = await process.stderr.readline()
            except ValueError:
                continue  # A line without end: what was read of it is gone.
            if not raw:
                return
            line = re.sub(r"^\[\d+\] ", "", raw[:LINE_BYTES].decode(errors="replace").strip())
            if line.startswith(READY):
                self._ready.set()
            level, _, text = line.partition(" ")
            if level not in ("[ERR]", "[WRN]", "[FTL]"):
                if line and not line.startswith("["):
                    self._said.append(line)
                continue
            if not self._ready.is_set():
                self._said.append(text)
            if self._clock.monotonic() - since > 60:
                since, count = self._clock.monotonic(), 0
            count += 1
            if count <= LINES_A_MINUTE:
                log.warning("%s", text)
            elif count == LINES_A_MINUTE + 1:
                log.warning("%s says more than %d lines a minute: the rest is left out", self._what, LINES_A_MINUTE)

    async def _keep(self) -> None:
        wait = RESTART_SECONDS[0]
        while True:
            assert self._process is not None
            started = self._clock.monotonic()
            code = await self._process.wait()
            if self._clock.monotonic() - started > SETTLED_SECONDS:
                wait = RESTART_SECONDS[0]
            log.error("%s ended with %d; it is started again in %g s", self._what, code, wait)
            while True:
                await self._clock.sleep(wait)
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
