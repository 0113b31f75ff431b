"""The real kubectl: against a hub over TLS in this process, and against a real hub with real sites that all tests share."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.demo.continuum import Continuum
from metaos.cli.doctor import isolation
from metaos.clock import SystemClock
from metaos.twin.processes import namespaces_work, wait_for
from tests.apiserver.serving import ServedHub, served

KUBECTL = Path(sys.executable).with_name("kubectl")


class Kubectl:
    """Runs kubectl as the administrator; every call has a deadline, and its cache lies in the test's folder."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self._config, self._folder = kubeconfig, folder

    async def start(self, *arguments: str, stdin: bool = False, **variables: str) -> asyncio.subprocess.Process:
        environment = {"HOME": str(self._folder), "KUBECONFIG": str(self._config), "PATH": os.environ["PATH"]} | variables
        return await asyncio.create_subprocess_exec(
            str(KUBECTL),
            *arguments,
            env=environment,
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str, text: str = "", **variables: str) -> tuple[int, str, str]:
        """Exit code, output, errors. ``variables`` are of the environment."""
        process = await self.start(*arguments, stdin=bool(text), **variables)
        try:
            out, err = await asyncio.wait_for(process.communicate(text.encode() if text else None), 60)
        except TimeoutError:
            process.kill()
            await process.communicate()
            raise
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def __call__(self, *arguments: str, text: str = "", **variables: str) -> str:
        """The output of a call that must succeed."""
        code, out, err = await self.run(*arguments, text=text, **variables)
        assert code == 0, f"kubectl {' '.join(arguments)}: {code}\n{out}{err}"
        return out


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[ServedHub]:
    async with served(tmp_path, SystemClock()) as running:
        yield running


@pytest.fixture
def kubectl(hub: ServedHub, tmp_path: Path) -> Kubectl:
    return Kubectl(hub.kubeconfig(tmp_path), tmp_path)


class Real:
    """kubectl in a namespace of a real hub with two real sites, edge-paris and edge-london."""

    def __init__(self, continuum: Continuum, namespace: str) -> None:
        self.continuum, self.namespace = continuum, namespace

    def _environment(self) -> dict[str, str]:
        folder = self.continuum.directory
        return os.environ | {"KUBECONFIG": str(self.continuum.kubeconfig), "KUBECACHEDIR": str(folder / "kubecache")}

    def start(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        command = [str(KUBECTL), *arguments, "-n", self.namespace]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=stdin, stdout=pipe, stderr=pipe, text=True, env=self._environment())

    def run(self, *arguments: str, text: str = "") -> tuple[int, str, str]:
        """Exit code, output, errors."""
        place = arguments.index("--") if "--" in arguments else len(arguments)
        command = [str(KUBECTL), *arguments[:place], "-n", self.namespace, *arguments[place:]]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, env=self._environment())
        return done.returncode, done.stdout, done.stderr

    def __call__(self, *arguments: str, text: str = "") -> str:
        """The output of a call that must succeed."""
        code, out, err = self.run(*arguments, text=text)
        assert code == 0, f"kubectl {' '.join(arguments)}: {code}\n{out}{err}"
        return out

    def apply(self, *manifests: dict[str, Any]) -> None:
        self("apply", "-f", "-", text=yaml.safe_dump_all(manifests))

    def rolled_out(self, *workloads: str) -> None:
        for each in workloads:
            self("rollout", "status", each, "--timeout=40s")

    def first(self, selector: str) -> str:
        """The name of a running pod."""
        return self("get", "pods", "-l", selector, "-o", "jsonpath={.items[0].metadata.name}")

    def terminal(self, *arguments: str, say: list[tuple[str, str]], size: tuple[int, int] = (40, 120)) -> tuple[int, str]:
        """Runs it on a terminal of its own: (exit code, what was seen). ``say``: when this text was seen since the last
        answer, that is typed."""
        import fcntl
        import struct
        import termios

        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        place = arguments.index("--") if "--" in arguments else len(arguments)
        command = [str(KUBECTL), *arguments[:place], "-n", self.namespace, *arguments[place:]]

        def own() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=self._environment(), preexec_fn=own)
        os.close(slave)
        seen, fresh, deadline = "", "", time.monotonic() + 30
        try:
            while time.monotonic() < deadline:
                if select.select([master], [], [], 0.2)[0]:
                    try:
                        data = os.read(master, 4096).decode(errors="replace")
                    except OSError:
                        break
                    seen, fresh = seen + data, fresh + data
                if say and say[0][0] in fresh:
                    os.write(master, say.pop(0)[1].encode())
                    fresh = ""
            return process.wait(10), seen
        finally:
            process.kill()
            process.wait()
            os.close(master)


def until(what: str, test: Callable[[], Any], seconds: float = 30) -> Any:
    return wait_for(what, test, seconds)


@pytest.fixture(scope="session")
def continuum(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Continuum]:
    """One hub and two sites for all tests that a worker runs."""
    if isolation().level != "ok" or not namespaces_work():
        pytest.skip("this kernel refuses user namespaces: see 'nemo doctor'")
    found = Continuum(tmp_path_factory.mktemp("kubectl") / "c", isolated=True)
    found.directory.mkdir()
    try:
        found.start_hub("--autoscale-interval", "1")
        found.add_sites("edge-paris", "edge-london")
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def real(continuum: Continuum, request: pytest.FixtureRequest) -> Real:
    """A namespace for each module."""
    name = request.module.__name__.rpartition(".")[2].replace("_", "-")
    continuum.kubectl("create", "namespace", name)
    return Real(continuum, name)


def deployment(name: str, script: str, replicas: int = 1, **container: Any) -> dict[str, Any]:
    """One whose pods run a shell script and end at once when they are told to."""
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": "python:3", "command": ["sh", "-c", script]} | container],
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
    }
