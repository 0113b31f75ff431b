"""A real ``nemo up`` with its local site, and clients of others' make, unmodified."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metaos.cli.doctor import isolation
from metaos.twin.processes import HERE, free_port, wait_for
from tests.ecosystem.tools import Missing, Tools, installed

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="session")
def tools() -> Tools:
    try:
        return installed()
    except Missing as error:
        pytest.skip(f"THE ECOSYSTEM IS NOT TESTED HERE: {error}")


class Up:
    """``nemo up`` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.data = folder, folder / "hub"
        self.kubeconfig = self.data / "admin.kubeconfig"
        self.url = f"https://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "metaos", "up", "--data", str(self.data), "--listen", self.url.removeprefix("https://")]
        with (folder / "hub.log").open("wb") as log:
            self.process = subprocess.Popen([*command, *arguments], stdout=log, stderr=log, cwd=HERE, start_new_session=True)

    @property
    def environment(self) -> dict[str, str]:
        own = {"KUBECONFIG": str(self.kubeconfig), "HOME": str(self.folder), "PYTHONWARNINGS": "ignore"}
        return {"PATH": os.environ["PATH"]} | own

    def run(self, *command: Any, text: str = "", seconds: float = 90, check: bool = True, **environment: str) -> str:
        """What a command prints; the test fails with what it said where it does."""
        done = subprocess.run(
            list(map(str, command)),
            input=text,
            capture_output=True,
            text=True,
            timeout=seconds,
            env=self.environment | environment,
            cwd=self.folder,
        )
        if check:
            assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + ("" if check else done.stderr)

    def kubectl(self, *arguments: str, text: str = "", check: bool = True) -> str:
        return self.run(Path(sys.executable).with_name("kubectl"), *arguments, text=text, check=check)

    def ready(self) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, (self.folder / "hub.log").read_text()[-2000:]
            return self.kubeconfig.exists() and "ok" in self.kubectl("get", "--raw", "/readyz", check=False)

        wait_for("the hub", answers, 60)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    if isolation().level != "ok":
        pytest.skip("this kernel refuses user namespaces: see 'nemo doctor'")
    # Other ports than those of nodes, and those that systems give to whoever connects somewhere.
    running = Up(tmp_path_factory.mktemp("ecosystem"), "--expose", "127.0.0.1:20000-29999")
    try:
        running.ready()
        wait_for("the local site", lambda: "True" in running.kubectl("get", "clusters", "--no-headers", check=False), 60)
        yield running
    finally:
        # The local site's pods outlive the hub on purpose.
        running.kubectl("delete", "deployments,jobs,pods", "--all", "--all-namespaces", "--timeout=30s", check=False)
        running.stop()


@pytest.fixture
def namespace(up: Up, request: pytest.FixtureRequest) -> str:
    name = request.node.name.replace("_", "-").replace("[", "-").rstrip("]")
    up.kubectl("create", "namespace", name)
    return name
