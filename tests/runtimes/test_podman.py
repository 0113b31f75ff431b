"""The podman runtime against a real podman, with storage of its own: what every runtime must do, and what is particular to it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from metaos.clock import SystemClock
from metaos.plugins.points import ContainerConfig, ImageError, Pull, RuntimeUnavailable
from metaos.runtimes import podmanimages
from metaos.runtimes.mounts import Mounts
from metaos.runtimes.podman import PodmanRuntime
from tests.runtimes.conformance import RuntimeConformance, container, pod, run
from tests.runtimes.registries import Registry, pem, running
from tests.runtimes.test_images import config_of, layer, shell_layer

pytestmark = [pytest.mark.system, pytest.mark.slow]
Make = Callable[[], PodmanRuntime]


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """A podman's socket."""
    if shutil.which("podman") is None or os.geteuid() != 0:
        pytest.skip("podman is not installed, or we are not root: 'apt-get install podman runc catatonit'")
    place = Path(tempfile.mkdtemp(prefix="nemo-podman-"))
    # crun does not run where cgroups of both versions are mounted.
    engine = f'[engine]\nruntime = "{"runc" if shutil.which("runc") else "crun"}"\nexit_command_delay = 1\n'
    (place / "containers.conf").write_text(engine)
    argv = ["podman", "--root", str(place / "root"), "--runroot", str(place / "run"), "--cgroup-manager", "cgroupfs"]
    env = {**os.environ, "CONTAINERS_CONF": str(place / "containers.conf")}
    path = str(place / "api.sock")
    with (place / "log").open("wb") as log:
        process = subprocess.Popen([*argv, "system", "service", "--time", "0", f"unix://{path}"], stdout=log, stderr=log, env=env)
    try:
        deadline = time.monotonic() + 30
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(path)
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, (place / "log").read_text()
                    time.sleep(0.05)
        yield path
    finally:
        process.terminate()
        process.wait(20)
        subprocess.run([*argv, "rm", "--all", "--force", "--time", "0"], env=env, check=False, capture_output=True, timeout=60)
        with open("/proc/self/mountinfo") as mounts:
            below = [line.split(" ")[4] for line in mounts if str(place) in line]
        for each in reversed(below):
            subprocess.run(["umount", "-l", each], check=False, capture_output=True)
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def make(service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{service}")
    return lambda: PodmanRuntime(str(tmp_path / "runtime"), clock=SystemClock(suspended=True))


class TestPodman(RuntimeConformance):
    # Podman reads both outputs through pipes of their own, and ends the input with whoever leaves.
    one_order = False
    lasting_input = False

    @pytest.fixture
    def make(self, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
        monkeypatch.setenv("CONTAINER_HOST", f"unix://{service}")
        return lambda: PodmanRuntime(str(tmp_path / "runtime"), clock=SystemClock(suspended=True))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def signed(service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry) -> tuple[PodmanRuntime, Any]:
    """With a policy, and its key."""
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{service}")
    key = ec.generate_private_key(ec.SECP256R1())
    policy = [
        {"images": f"{registry.host}/signed/*", "action": "Signed", "keys": [pem(key)]},
        {"images": f"{registry.host}/*", "action": "Accept"},
    ]
    place = str(tmp_path / "runtime")
    return PodmanRuntime(place, clock=SystemClock(), registries=[registry.settings], image_policy=policy), key


async def test_images_come_from_registries_and_start_only_as_the_owner_says(
    signed: tuple[PodmanRuntime, Any], registry: Registry
) -> None:
    runtime, key = signed
    layers = [shell_layer()]
    config = config_of(layers, Entrypoint=["/bin/sh", "-c"], Cmd=["echo by itself"], Env=["COLOUR=red"])
    digest = registry.push("signed/app", "1", layers, config)
    pull, image = Pull(credentials=registry.credentials), f"{registry.host}/signed/app:1"
    assert not await runtime.image_ready(image, pull)
    with pytest.raises(ImageError, match="is not signed") as caught:
        await runtime.fetch_image(image, pull)
    assert caught.value.reason == "SignatureValidationFailed"
    registry.sign("signed/app", digest, key)
    with pytest.raises(ImageError, match="imagePullSecrets"):
        await runtime.fetch_image(image, Pull())
    await runtime.fetch_image(image, pull)
    assert await runtime.image_ready(image, pull) and not await runtime.image_ready(image, Pull("Always"))
    await runtime.fetch_image(image, pull)  # only asks
    await runtime.start_pod(pod())
    try:
        ended, said = await run(runtime, pod().uid, ContainerConfig("main", image, (), (), (), "", ()))
        assert (ended.exit_code, said) == (0, "by itself\n")
        again = ContainerConfig("main", image, (), ("echo $COLOUR",), (), "", (), attempt=1)
        assert (await run(runtime, pod().uid, again))[1] == "red\n"
        # Somebody gives another image that name: it does not start, as nobody has signed it.
        unsigned = f"{registry.host}/team/other:1"
        other = [layer({"etc/other": b"x"}), *layers]
        registry.push("team/other", "1", other, config_of(other, Cmd=["/bin/sh"]))
        await runtime.fetch_image(unsigned, pull)
        await runtime._podman.call("POST", f"/images/{unsigned}/tag", repo=f"{registry.host}/signed/app", tag="1")
        with pytest.raises(ImageError, match="was not fetched with such a signature"):
            await runtime.start_container(pod().uid, ContainerConfig("main", image, (), (), (), "", (), attempt=2))
        pinned = f"{registry.host}/signed/app@{digest}"
        await runtime.fetch_image(pinned, pull)
        ended, said = await run(runtime, pod().uid, ContainerConfig("main", pinned, (), (), (), "", (), attempt=2))
        assert (ended.exit_code, said) == (0, "by itself\n")
    finally:
        await runtime.stop_pod(pod().uid)
        await runtime.close()


async def test_who_uses_too_much_memory_is_told(make: Make) -> None:
    runtime = make()
    await runtime.check()
    await runtime.start_pod(pod())
    try:
        eats = container("python3", "-c", "x = bytearray(200 << 20); print(len(x))", memory_limit=64 << 20)
        ended, _ = await run(runtime, pod().uid, eats)
        assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    finally:
        await runtime.stop_pod(pod().uid)
        await runtime.close()


async def test_volumes_are_mounted_and_nothing_else(make: Make, tmp_path: Path) -> None:
    runtime = make()
    await runtime.check()
    volume = tmp_path / "runtime/volumes/a"
    volume.mkdir(parents=True)
    (volume / "file").write_text("here\n")
    await runtime.start_pod(pod())
    try:
        mounts = ((str(volume), "/data", False), (str(volume), "/fixed", True))
        script = "cat /data/file; echo x > /data/new; echo y > /fixed/new; ls /work /root/.ssh; id -u"
        config = container("sh", "-c", script, mounts=mounts, run_as_user=7000)
        volume.chmod(0o777)
        _, said = await run(runtime, pod().uid, config)
        assert said.startswith("here\n") or "here\n" in said
        assert (volume / "new").read_text() == "x\n" and "7000\n" in said and "Read-only" in said
        with pytest.raises(ValueError, match="may not be mounted"):
            await runtime.start_container(pod().uid, container("true", mounts=(("/etc", "/e", True),), attempt=1))
    finally:
        await runtime.stop_pod(pod().uid)
        await runtime.close()


async def test_a_link_that_comes_after_the_look_is_not_followed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that another container writes to, and a subPath below it."""
    runtime = make()
    await runtime.check()
    volume, outside = tmp_path / "runtime/volumes/a/sub", tmp_path / "outside"
    for each in (volume, outside):
        each.mkdir(parents=True)
        (each / "file").write_text(f"{each.name}\n")
    look = Mounts.open

    def looked(*arguments: Any) -> Any:
        found = look(*arguments)
        volume.rename(volume.with_name("moved"))
        volume.symlink_to(outside)
        return found

    monkeypatch.setattr(Mounts, "open", looked)
    await runtime.start_pod(pod())
    try:
        with pytest.raises(ValueError, match="at /data was changed meanwhile"):
            await runtime.start_container(pod().uid, container("cat", "/data/file", mounts=((str(volume), "/data", True),)))
    finally:
        await runtime.stop_pod(pod().uid)
        await runtime.close()


async def test_where_no_podman_is_it_says_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{tmp_path}/none.sock")
    runtime = PodmanRuntime(str(tmp_path / "runtime"), clock=SystemClock())
    with pytest.raises(RuntimeUnavailable, match="podman system service"):
        await runtime.check()
    await runtime.close()


async def test_images_that_others_brought_are_not_collected(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry
) -> None:
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{service}")
    monkeypatch.setattr(podmanimages, "IMAGE_SECONDS", -1.0)
    ours, other = (PodmanRuntime(str(tmp_path / each), clock=SystemClock(), registries=[registry.settings]) for each in "ab")
    pull = Pull(credentials=registry.credentials)
    images = {}
    for number, runtime in enumerate((ours, other)):
        layers = [layer({"etc/name": str(number).encode()})]
        registry.push(f"team/collected{number}", "1", layers, config_of(layers, Cmd=["/bin/sh"]))
        images[runtime] = f"{registry.host}/team/collected{number}:1"
        await runtime.fetch_image(images[runtime], pull)
    assert await ours.collect_images({images[ours]}, 1 << 40) == [], "it is wanted"
    assert await ours.collect_images(set(), 1 << 40) == [images[ours]]
    assert not await ours.image_ready(images[ours], Pull()) and await other.image_ready(images[other], Pull())
    assert await other.collect_images(set(), 1 << 40) == [images[other]]
    await ours.close()
    await other.close()
