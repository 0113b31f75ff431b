"""The page that says how devices are used, command by command, with a real hub, its bus, and the page's own program."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from random import SystemRandom

import pytest

from metaos.clock import SystemClock
from metaos.config import Address, HubConfig
from metaos.server import Hub
from tests.fleet.real import FILE, client_module

pytestmark = [pytest.mark.system, pytest.mark.slow]
PAGE = (Path(__file__).parents[2] / "docs/how-to/devices.md").read_text()
LOOPBACK = Address("127.0.0.1", 0)
BIN = Path(sys.executable).parent


async def run(line: str, folder: Path, environment: dict[str, str]) -> str:
    program, *words = shlex.split(line)
    process = await asyncio.create_subprocess_exec(
        str(BIN / program),
        *words,
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 90)
    return out.decode()


def fits(expected: str, out: str) -> bool:
    """``…`` stands for anything."""
    pattern = ".*".join(re.escape(" ".join(part.split())) for part in expected.split("…"))
    return re.search(pattern, " ".join(out.split())) is not None


async def test_what_the_page_says_happens(tmp_path: Path) -> None:
    steps = [step.strip() for block in re.findall(r"```console\n(.*?)```", PAGE, re.S) for step in block.split("$ ")[1:]]
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(steps) > 12
    shutil.copy(FILE, tmp_path / "nemo_device.py")
    (tmp_path / "program.py").write_text(program)
    device: asyncio.subprocess.Process | None = None
    async with Hub(HubConfig(tmp_path / "hub", LOOPBACK, mqtt=LOOPBACK), SystemClock(), SystemRandom()) as hub:
        environment = {**os.environ, "KUBECONFIG": str(tmp_path / "hub/admin.kubeconfig"), "HOME": str(tmp_path)}
        try:
            for step in steps:
                line, *expected = step.splitlines()
                out = await run(line, tmp_path, environment)
                for each in expected:
                    assert fits(each, out), f"{line}\n{out}"
                if line.startswith("nemo device add"):
                    device = await asyncio.create_subprocess_exec(sys.executable, "program.py", cwd=tmp_path)
                if "--certificate" in line:
                    nemo, authority = client_module(), hub._pki.bundle.decode()
                    shown = str(tmp_path / "line-4.pem")
                    made = await nemo.enrol(hub.url, authority, "default/line-4", "line-4-1", certificate=shown)
                    assert made["name"] == "line-4-1"
                elif line.startswith("nemo device claim"):
                    # A device enrols itself over TLS, and connects with what it got.
                    nemo = client_module()
                    authority = hub._pki.bundle.decode()
                    made = await nemo.enrol(hub.url, authority, out.strip(), "line-3-1")
                    assert made["name"] == "line-3-1" and made["servers"] == list(hub.exchange.urls)
                    with pytest.raises(OSError, match="begins with 'line-3-'"):
                        await nemo.enrol(hub.url, authority, out.strip(), "other")
                    with pytest.raises(OSError, match="Unauthorized"):
                        await nemo.enrol(hub.url, authority, out.strip()[:-4] + "0bad", "line-3-2")
        finally:
            if device is not None:
                device.kill()
                await device.wait()
        rows = "name,labels,desired\n" + "".join(f'b{n},line=3,"{{""n"": {n}}}"\n' for n in range(50)) + "No,,\n"
        (tmp_path / "devices.csv").write_text(rows)
        out = await run("nemo device import devices.csv --out credentials.jsonl", tmp_path, environment)
        assert "50 devices were made: their credentials are in credentials.jsonl" in out and "No: " in out
        lines = [json.loads(each) for each in (tmp_path / "credentials.jsonl").read_text().splitlines()]
        assert len(lines) == 50 and lines[7]["name"] == "b7" and lines[7]["servers"] and lines[7]["appKey"]
        assert (tmp_path / "credentials.jsonl").stat().st_mode & 0o777 == 0o600
