"""The real kubectl against a hub over TLS in this process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metaos.clock import SystemClock
from tests.apiserver.serving import ServedHub, served

KUBECTL = Path(sys.executable).with_name("kubectl")


class Kubectl:
    """Runs kubectl as the administrator; every call has a deadline, and its cache lies in the test's folder."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self._config, self._folder = kubeconfig, folder

    async def start(self, *arguments: str, stdin: bool = False) -> asyncio.subprocess.Process:
        environment = {"HOME": str(self._folder), "KUBECONFIG": str(self._config), "PATH": os.environ["PATH"]}
        return await asyncio.create_subprocess_exec(
            str(KUBECTL),
            *arguments,
            env=environment,
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str, text: str = "") -> tuple[int, str, str]:
        """Exit code, output, errors."""
        process = await self.start(*arguments, stdin=bool(text))
        try:
            out, err = await asyncio.wait_for(process.communicate(text.encode() if text else None), 20)
        except TimeoutError:
            process.kill()
            await process.communicate()
            raise
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def __call__(self, *arguments: str, text: str = "") -> str:
        """The output of a call that must succeed."""
        code, out, err = await self.run(*arguments, text=text)
        assert code == 0, f"kubectl {' '.join(arguments)}: {code}\n{out}{err}"
        return out


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[ServedHub]:
    async with served(tmp_path, SystemClock()) as running:
        yield running


@pytest.fixture
def kubectl(hub: ServedHub, tmp_path: Path) -> Kubectl:
    return Kubectl(hub.kubeconfig(tmp_path), tmp_path)
