"""The screen of ``nemo status`` and the text of ``nemo why``: whole at 80 columns, current, and ended by Ctrl-C."""

from __future__ import annotations

import asyncio
import fcntl
import io
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from metaos.cli.status import Continuum, ago, render, sparkline
from metaos.clock import SystemClock
from metaos.resources.meta import Obj
from metaos.scheduler.explain import render as render_why
from tests.apiserver.objects import cluster
from tests.apiserver.serving import ServedHub, served

NAMES = ("cloud-frankfurt", "cloud-hamina", "gateway-brussels-07")


def continuum() -> Continuum:
    carbon = {"intensity": 384.4, "forecast": [float(n % 7) for n in range(48)], "source": "replay of week.csv"}
    ready = [{"type": "Ready", "status": "True"}]
    price = {"currency": "EUR", "cpuHour": 0.034}
    sites: list[Obj] = [
        cluster(n, tier="cloud", price=price) | {"status": {"conditions": ready, "carbon": carbon, "allocatable": {"cpu": "16"}}}
        for n in NAMES
    ]
    message = "job/report: latency from users in europe-southwest1 shall be below 1 ms, and it is 52 ms; nearest offer: 19 ms"
    intent: Obj = {
        "metadata": {"name": "impossible", "namespace": "shop"},
        "status": {"fulfilment": "NotFulfilled", "message": message},
    }
    event: Obj = {
        "involvedObject": {"kind": "Deployment", "name": "api"},
        "reason": "ReplacementReady",
        "message": "from gateway-brussels-07 to cloud-hamina (1): cloud-hamina is 7.6 points better than where it was",
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }
    return Continuum(sites, [intent], [event])


def screen(width: int, found: Continuum) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(render(found, 1767225600.0 + 400, width))
    file: Any = console.file
    return str(file.getvalue())


@pytest.mark.parametrize("width", [80, 100, 140])
def test_nothing_is_cut(width: int) -> None:
    text = screen(width, continuum())
    assert all(len(line) <= width for line in text.splitlines())
    for word in (
        *NAMES,
        "384",
        "0.034 EUR",
        "0.0/16",
        "NotFulfilled",
        "7 min",
        "deployment/api",
        "ReplacementReady",
        "better than",
    ):
        assert word in text, (word, text)
    assert ("europe-west1" in text) == (width >= 110) and "…" not in text and "replay of week.csv" in text


def test_an_empty_continuum_says_what_to_do() -> None:
    text = screen(80, Continuum([], [], []))
    assert "run 'nemo agent'" in text and "examples/intents/" in text


def test_ages_and_hours() -> None:
    assert [ago(s) for s in (-3, 0, 119, 120, 7199, 7200, 172800)] == ["0 s", "0 s", "119 s", "2 min", "120 min", "2 h", "2 d"]
    assert sparkline([1, 2, 3]) == "▁▅█" and sparkline([]) == "" and len(sparkline([1.0] * 48, 12)) == 12


def test_why_at_80_columns() -> None:
    terms = [
        {"name": n, "unit": u, "value": 99.9912, "weight": 0.5, "points": 98.0}
        for n, u in (
            ("latency", "ms"),
            ("carbon", "gCO2eq/kWh"),
            ("energy", "W"),
            ("cost", "EUR/h"),
            ("availability", "%"),
            ("free", "%"),
        )
    ]
    reason = "round trip from users in europe-southwest1 is 52 ms, and must be below 40 ms (intent 'fast-front')"
    found: dict[str, Any] = {
        "workload": {"kind": "Deployment", "namespace": "shop", "name": "web"},
        "clusters": [{"name": "gateway-brussels", "replicas": 2}],
        "reason": "first placement: best score",
        "decidedTime": "2026-11-25T09:38:16Z",
        "scheduled": "True",
        "message": "",
        "scores": [{"cluster": c, "total": 63.1, "terms": terms} for c in ("gateway-brussels", "edge-paris")],
        "rejected": [{"cluster": "cloud-hamina", "filter": "Latency", "reason": reason}],
        "alternatives": [{"clusters": [{"name": "edge-paris", "replicas": 2}], "difference": -0.1}],
        "intents": [{"name": "fast-front", "fulfilment": "Fulfilled", "message": "all targets hold"}],
    }
    narrow, wide = render_why(found, 80), render_why(found)
    assert all(len(line) <= 80 for line in narrow.splitlines()), narrow
    assert "98x0.5" in narrow and "99.99" in narrow and "g/kWh" in narrow and "availab." in narrow
    assert "99.99 (98x0.5)" in wide and reason in wide and "(intent 'fast-front')" in narrow
    assert max(map(len, wide.splitlines())) > 100


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[ServedHub]:
    async with served(tmp_path, SystemClock()) as running:
        await running.make(cluster("edge-paris"))
        yield running


class Terminal:
    """``nemo status --watch`` on a terminal of its own."""

    def __init__(self, kubeconfig: Path) -> None:
        self.master, slave = pty.openpty()
        self.resize(24, 80, slave)
        command = [sys.executable, "-m", "metaos", "status", "--watch", "--kubeconfig", str(kubeconfig)]
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment, preexec_fn=os.setsid)
        os.close(slave)

    def resize(self, rows: int, columns: int, fd: int = -1) -> None:
        fcntl.ioctl(fd if fd >= 0 else self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, word: str) -> None:
        """For as long as it runs: how fast that is, is the machine's business."""
        seen = ""
        while word not in seen:
            assert self.process.poll() is None, seen
            if select.select([self.master], [], [], 0.2)[0]:
                seen += os.read(self.master, 65536).decode(errors="replace")

    def end(self) -> int:
        os.killpg(self.process.pid, signal.SIGINT)
        while True:  # what nobody reads would keep it from ending
            try:
                os.read(self.master, 65536)
            except OSError:  # nobody has the terminal open any more
                return self.process.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.mark.system
async def test_the_screen_stays_current_and_ends_quietly(hub: ServedHub, tmp_path: Path) -> None:
    terminal = Terminal(hub.kubeconfig(tmp_path))
    try:
        await asyncio.to_thread(terminal.until, "edge-paris")
        await hub.make(cluster("edge-london"))
        await asyncio.to_thread(terminal.until, "edge-london")
        terminal.resize(40, 140)
        await asyncio.to_thread(terminal.until, "REGION")
        assert await asyncio.to_thread(terminal.end) == 0
    finally:
        terminal.close()
