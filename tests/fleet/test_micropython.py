"""The example's device under a real MicroPython (its port to WebAssembly, from npm), at a real server of the bus."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fleet.real import FILE, real_station
from tests.fleet.test_device import app, in_sync
from tests.fleet.test_images import deployed
from tests.runtimes import registries

pytestmark = [pytest.mark.slow, pytest.mark.system]
HERE = Path(__file__).parent / "micropython"
BUILD = Path(__file__).parents[2] / "build/micropython"


@pytest.fixture(scope="session")
def modules() -> Path:
    """Where MicroPython is installed."""
    for program in ("npm", "node"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing, so nothing is tried under MicroPython: apt-get install nodejs npm")
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (BUILD / "node_modules").exists():
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, BUILD / name)
            done = subprocess.run(
                ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
                cwd=BUILD,
                capture_output=True,
                text=True,
                timeout=300,
            )
            if done.returncode:
                pytest.skip(f"MicroPython could not be installed, so nothing is tried under it: {done.stderr[-300:]}")
    return BUILD


@asynccontextmanager
async def running(modules: Path, folder: Path, config: dict[str, object]) -> AsyncIterator[list[str]]:
    """A device; what it printed."""
    (folder / "files").mkdir()
    shutil.copy(FILE, folder / "files/nemo_device.py")
    (folder / "files/nemo.json").write_text(json.dumps(config))
    command = ["node", str(HERE / "run.mjs"), str(modules), str(folder / "files"), str(HERE / "program.py")]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    said: list[str] = []

    async def read() -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            said.append(line.decode().rstrip())

    reading = asyncio.create_task(read())
    try:
        yield said
    except AssertionError as error:
        raise AssertionError(f"{error}; the device said: {said[-20:]}") from error
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def test_twin_commands_measurements_and_an_application(modules: Path, tmp_path: Path) -> None:
    async with real_station(tmp_path) as hub:
        good = "import asyncio\nasync def main(device):\n    device.report(app=1)\n    await asyncio.sleep(1000)\n"
        sha = await app(hub, good + "# more than one part\n" * 150)
        config = await hub.add("lamp", desired={"led": True}, messagesPerSecond=100)
        async with running(modules, tmp_path, config):
            found = await hub.until("lamp", in_sync, 40)
            assert found["reported"] == {"led": True} and found["firmware"] == "mp"
            found = await hub.until("lamp", lambda s: s["telemetry"])
            assert found["telemetry"]["temperature"]["value"] == 21.5
            answer = await hub.command("lamp", "blink", arguments={"times": 3})
            assert answer["result"] == {"blinked": 3}
            # Ed25519 in MicroPython, with a SHA-512 of the file's own.
            await hub.patch("lamp", {"app": {"configMap": "app", "version": "1"}})
            found = await hub.until("lamp", lambda s: (s.get("app") or {}).get("state") == "Running", 40)
            assert found["app"]["sha256"] == sha
            bad = await app(hub, "async def main(device):\n    raise RuntimeError('no sensor')\n")
            found = await hub.until("lamp", lambda s: s["app"].get("state") == "RolledBack", 40)
            assert found["app"]["sha256"] == sha and found["app"]["tried"] == bad
            # The server goes and comes: the device comes back by itself, and what it measured meanwhile is not lost.
            server = hub.exchange.server
            assert server is not None
            os.kill(server.pid, signal.SIGKILL)
            await hub.patch("lamp", {"desired": {"led": False}})
            await hub.until("lamp", lambda s: s["online"] and s["reported"].get("led") is False, 60)
        await hub.until("lamp", lambda s: not s["online"])


async def test_an_application_that_the_hub_did_not_sign_is_refused(modules: Path, tmp_path: Path) -> None:
    async with real_station(tmp_path) as hub:
        await app(hub, "async def main(device): pass")
        config = await hub.add("lamp", app={"configMap": "app"})
        async with running(modules, tmp_path, config | {"appKey": "11" * 32}):
            await hub.until("lamp", lambda s: (s.get("app") or {}).get("state") == "Refused", 60)


async def test_a_deployment_of_an_artifact(modules: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with registries.running(tmp_path_factory.mktemp("registry")) as registry:
        async with real_station(tmp_path) as hub:
            config = await hub.add("lamp", messagesPerSecond=100)
            await deployed(hub, registry, tmp_path, running(modules, tmp_path, config))
