"""The page about the bus: its commands, as they stand there, at other ports."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from metaos.messaging.embedded import free_port

TOP = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
async def test_the_page_about_messaging_is_right(tmp_path: Path, number: int) -> None:
    page = (TOP / "docs/how-to/messaging.md").read_text()
    blocks = [part.partition("```")[0] for part in page.split("```sh\n")[1:]]
    assert len(blocks) == 2
    # What ends in a number that a loop counts begins with a port that has others after it.
    script = re.sub(r"127\.0\.0\.1:(\d{3})\$n", r"127.0.0.1:${PORT_\1[$n]}", blocks[number])
    script = re.sub(r"127\.0\.0\.1([:/])(422|622|188)([1-4])\b", r"127.0.0.1\1${PORT_\2[\3]}", script)
    ports = "".join(f"PORT_{word}=(0 {' '.join(str(free_port('127.0.0.1')) for _ in range(3))})\n" for word in (422, 622, 188))
    for port in ("7001", "7002", "7422", "1885", "1886"):
        script = script.replace(port, str(free_port("127.0.0.1")))
    environment = {**os.environ, "SITE": str(TOP / "examples/sites/edge-paris.yaml")}
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euc", ports + script + "\nkill $(jobs -p)\nwait\n"),
        cwd=tmp_path,
        env=environment,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(90):
            out, err = await process.communicate()
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = await process.communicate()
    assert process.returncode == 0, out.decode() + err.decode()
    assert "nats-server: " not in err.decode()
