"""The image and the Compose file, run by podman: what was acknowledged is there after every kill, and whoever talks to a hub that
is killed goes on at another.

Wanted: podman with DNS between containers (netavark and aardvark-dns), podman-compose, and the images that the files name, from a
registry or by ``python -m tests.deploy.standins``. What a build needs to reach PyPI from here (``--network host --volume …``) may
be said with ``NEMO_BUILD_OPTIONS``."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.wire import Connection, Endpoint, NotSent, Unanswered, config_map
from metaos.twin.processes import free_port
from tests.deploy.standins import NATS, POSTGRES, PYTHON, has

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/nemo:latest"
MAPS = "/api/v1/namespaces/default/configmaps"
CLOSED = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


#: While whoever writes goes on.
aside = asyncio.to_thread


def run(*command: str, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, **options)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr[-3000:]}{done.stdout[-1000:]}"
    return done.stdout


def podman(*arguments: str) -> str:
    return run("podman", *arguments)


@pytest.fixture(scope="module")
def image() -> str:
    if shutil.which("podman") is None:
        pytest.skip("NOT RUN: there is no podman")
    if not has(PYTHON):
        pytest.skip(f"NOT RUN: podman has no {PYTHON}: pull it, or run python -m tests.deploy.standins")
    options = shlex.split(os.environ.get("NEMO_BUILD_OPTIONS", ""))
    podman("build", "--pull=never", *options, "-f", str(ROOT / "deploy/Containerfile"), "-t", IMAGE, str(ROOT))
    return IMAGE


@pytest.fixture
def name() -> Iterator[str]:
    """Of a container and its volume, gone afterwards."""
    made = f"nemo-test-{secrets.token_hex(4)}"
    yield made
    subprocess.run(["podman", "rm", "-f", "-t", "0", made], capture_output=True, check=False)
    subprocess.run(["podman", "volume", "rm", "-f", made], capture_output=True, check=False)


def eventually(what: Callable[[], Any], seconds: float = 90) -> Any:
    """What it is once it is something."""
    deadline, last = time.monotonic() + seconds, "nothing"
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except AssertionError as error:
            last = str(error)
        time.sleep(0.5)
    raise AssertionError(f"not after {seconds} s: {last}")


class Writers:
    """Clients that make objects at any of some hubs, one after the other, and remember what was acknowledged."""

    def __init__(self, endpoints: Sequence[Endpoint], count: int = 4) -> None:
        self.made: list[str] = []
        #: The longest time between two acknowledgements, in seconds.
        self.longest = 0.0
        self._endpoints, self._stop = endpoints, asyncio.Event()
        self._last = time.monotonic()
        self._tasks = [asyncio.create_task(self._write(n)) for n in range(count)]

    async def _write(self, number: int) -> None:
        place, turn = number, 0
        connection = Connection(self._endpoints[place % len(self._endpoints)])
        while not self._stop.is_set():
            turn += 1
            name = f"w-{number}-{turn}"
            try:
                async with asyncio.timeout(15):
                    status, _ = await connection.call("POST", MAPS, config_map(name, name))
            except (NotSent, Unanswered, TimeoutError, OSError):
                place += 1
                connection.close()
                connection = Connection(self._endpoints[place % len(self._endpoints)])
                await asyncio.sleep(0.1)
                continue
            if status == 201:
                self.made.append(name)
                now = time.monotonic()
                self.longest, self._last = max(self.longest, now - self._last), now
            await asyncio.sleep(0.02)
        connection.close()

    async def some(self, count: int = 100) -> None:
        """Waits until so many more were acknowledged."""
        wanted = len(self.made) + count
        async with asyncio.timeout(120):
            while len(self.made) < wanted:
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)


async def listed(endpoint: Endpoint) -> set[str]:
    connection = Connection(endpoint)
    status, body = await connection.call("GET", MAPS)
    connection.close()
    assert status == 200, body
    return {item["metadata"]["name"] for item in json.loads(body)["items"]}


def kubeconfig(container: str, port: int, file: Path) -> Endpoint:
    text = eventually(
        lambda: podman("exec", container, "nemo", "kubeconfig", "--data", "/data/hub", "--server", f"https://127.0.0.1:{port}")
    )
    file.write_text(text)
    file.chmod(0o600)
    return Endpoint.of(file)


async def ready(endpoint: Endpoint, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while True:
            connection = Connection(endpoint)
            with contextlib.suppress(NotSent, Unanswered, OSError):
                if (await connection.call("GET", "/readyz"))[0] == 200:
                    connection.close()
                    return
            await asyncio.sleep(0.1)


async def test_a_hub_in_a_container_keeps_all_that_it_has_acknowledged(image: str, name: str, tmp_path: Path) -> None:
    port = free_port()
    outside = ["-v", f"{name}:/data", "-p", f"127.0.0.1:{port}:6443"]
    told = ["--no-local", "--data=/data/hub", "--listen=0.0.0.0:6443"]
    podman("run", "-d", "--name", name, *CLOSED, *outside, image, "up", *told)
    endpoint = kubeconfig(name, port, tmp_path / "kubeconfig")
    await ready(endpoint)
    who = "import os; print(os.getuid(), os.getgid())\ntry: open('/opt/x', 'w')\nexcept OSError as e: print(e.strerror)"
    assert podman("exec", name, "python", "-c", who).splitlines() == ["65532 65532", "Read-only file system"]
    writers = Writers([endpoint])
    for _ in range(3):
        await writers.some()
        await aside(podman, "kill", "-s", "KILL", name)
        await aside(podman, "start", name)
        await ready(endpoint)
    await writers.some()
    began = time.monotonic()
    await aside(podman, "stop", "-t", "60", name)
    assert time.monotonic() - began < 30
    assert podman("inspect", "-f", "{{.State.ExitCode}}", name).strip() == "0"
    podman("start", name)
    await ready(endpoint)
    await writers.stop()
    assert set(writers.made) <= await listed(endpoint)


class Composed:
    """The Compose file beside secrets of its own, with ports that are free."""

    def __init__(self, folder: Path) -> None:
        self.project = f"nemo-test-{secrets.token_hex(4)}"
        self.folder = folder
        self.ports = {n: free_port() for n in ("6443", "6444", "8883", "8884", "8885")}
        text = (ROOT / "deploy/hub/compose.yaml").read_text()
        for published, free in self.ports.items():
            text = text.replace(f'"{published}:', f'"127.0.0.1:{free}:')
        (folder / "compose.yaml").write_text(text)
        self._write("database-password", secrets.token_hex(16))
        password = (folder / "database-password").read_text()
        self._write("store", f"postgresql://nemo:{password}@postgres/nemo?sslmode=disable\n")
        self._write("hub.key", base64.b64encode(secrets.token_bytes(32)).decode() + "\n")
        (folder / "tls").mkdir()
        # Its own authority.
        names = "subjectAltName=" + ",".join(f"DNS:{each}" for each in ("nats-1", "nats-2", "nats-3", "localhost"))
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(folder / "tls/server.key")]
        run(
            "openssl", "req", "-x509", *key, "-days=1", "-subj=/CN=nats", "-addext", names, "-out", str(folder / "tls/server.crt")
        )
        shutil.copy(folder / "tls/server.crt", folder / "tls/ca.crt")

    def _write(self, file: str, text: str) -> None:
        path = self.folder / file
        path.touch(0o600)
        path.write_text(text)

    def __call__(self, *arguments: str) -> str:
        environment = {**os.environ, "NEMO_USER": str(os.getuid())}
        return run("podman-compose", "-p", self.project, *arguments, cwd=self.folder, env=environment)

    def container(self, service: str) -> str:
        return f"{self.project}_{service}_1"


@pytest.fixture
def composed(image: str, tmp_path: Path) -> Iterator[Composed]:
    if shutil.which("podman-compose") is None:
        pytest.skip("NOT RUN: there is no podman-compose")
    for wanted in (POSTGRES, NATS):
        if not has(wanted):
            pytest.skip(f"NOT RUN: podman has no {wanted}: pull it, or run python -m tests.deploy.standins")
    made = Composed(tmp_path)
    try:
        made("up", "-d", "--no-build")
        yield made
    finally:
        made("--profile", "devices", "down", "-v", "-t", "5")


@contextlib.asynccontextmanager
async def writing(endpoints: Sequence[Endpoint]) -> AsyncIterator[Writers]:
    writers = Writers(endpoints)
    try:
        yield writers
    finally:
        await writers.stop()


async def test_composed_hubs_outlive_each_other_and_their_servers(composed: Composed, name: str, tmp_path: Path) -> None:
    ports = [composed.ports["6443"], composed.ports["6444"]]
    endpoints = [kubeconfig(composed.container(f"hub-{n}"), ports[n - 1], tmp_path / f"hub-{n}.kubeconfig") for n in (1, 2)]
    for endpoint in endpoints:
        await ready(endpoint)

    def ask(which: int, *arguments: str) -> str:
        return run("kubectl", "--kubeconfig", str(tmp_path / f"hub-{which}.kubeconfig"), *arguments)

    # The servers of the bus, as the file says.
    routes = [f"--route=nats-{n}:6222" for n in (1, 2, 3)]
    keys = ["--cert=/tls/server.crt", "--key=/tls/server.key", "--ca=/tls/ca.crt"]
    hub = ["exec", composed.container("hub-1"), "nemo"]
    for n in (1, 2, 3):
        listens = ["--listen=0.0.0.0:4222", "--cluster=0.0.0.0:6222", "--mqtt=0.0.0.0:8883"]
        where = ["--data=/data/hub", "--folder=/data", *listens, *routes, *keys]
        made = podman(*hub, "bus", "config", f"nats-{n}", *where)
        (tmp_path / f"nats-{n}.conf").write_text(made)
    composed("--profile", "devices", "up", "-d", "--no-build")

    # An agent, told of one hub.
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/site.yaml").write_text(yaml.safe_dump(SITE))
    token = podman(*hub, "join-token", "yard", "--data=/data/hub")
    (tmp_path / "agent/token").write_text(token)
    inside = ["--network", f"{composed.project}_default", *CLOSED, "-v", f"{name}:/data", "-v", f"{tmp_path}/agent:/given:ro"]
    told = ["--hub=https://hub-1:6443", "--token-file=/given/token", "--site=/given/site.yaml", "--data=/data/agent"]
    podman("run", "-d", "--name", name, *inside, IMAGE, "agent", "--heartbeat=2", *told)

    def heard(which: int) -> str:
        found = json.loads(ask(which, "get", "leases", "-A", "-o", "json"))["items"]
        times = [each["spec"]["renewTime"] for each in found if each["metadata"]["name"] == "yard"]
        assert times, podman("logs", "--tail=5", name)
        return str(times[0])

    eventually(lambda: heard(1), 180)
    async with writing(endpoints) as writers:
        await writers.some()
        await aside(podman, "kill", "-s", "KILL", composed.container("hub-1"))
        await writers.some()
        last = await aside(heard, 2)
        await aside(eventually, lambda: heard(2) > last)
        await aside(podman, "start", composed.container("hub-1"))
        await ready(endpoints[0])
        await aside(podman, "kill", "-s", "KILL", composed.container("postgres"))
        await aside(podman, "start", composed.container("postgres"))
        await writers.some()
    for endpoint in endpoints:
        assert set(writers.made) <= await listed(endpoint)
    print(f"{len(writers.made)} acknowledged, the longest gap was {writers.longest:.1f} s")


SITE = {"apiVersion": "meta-os.eu/v1alpha1", "kind": "Cluster", "metadata": {"name": "yard"}, "spec": {"isolation": "none"}}
