"""Code of devices' applications from OCI artifacts: fetched from a real registry, by digest, and only what is signed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from metaos.fleet.apps import MOST_BYTES
from metaos.fleet.images import AGAIN_SECONDS, fetching_by
from metaos.plugins.points import ImageError
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from tests.fleet.real import RealStation, client_module, real_station
from tests.fleet.site import ADMIN, Thing, station
from tests.fleet.test_device import running as running_device
from tests.fleet.test_workload import changed
from tests.runtimes.registries import MANIFEST, Registry, pem, running

CODE = b"import asyncio\nasync def main(device):\n    device.report(app='artifact')\n    await asyncio.sleep(1000)\n"
OTHER = f"registry.example/app@sha256:{'0' * 64}"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running(tmp_path_factory.mktemp("registry")) as found:
        yield found


def pushed(registry: Registry, *files: tuple[str, bytes], kind: str = "text/x-python") -> str:
    """As ``oras push`` does; its name with the digest."""
    rows = []
    for name, data in files:
        row = registry.blob("team/app", data, kind)
        rows.append(row | {"annotations": {"org.opencontainers.image.title": name}})
    config = registry.blob("team/app", b"{}", "application/vnd.oci.empty.v1+json")
    document = {"mediaType": MANIFEST, "artifactType": "application/vnd.example.app", "config": config, "layers": rows}
    return f"{registry.host}/team/app@{registry.manifest('team/app', '', document)}"


def settings(registry: Registry, folder: Path, policy: Sequence[Obj] = ()) -> Path:
    file = folder / "images.yaml"
    file.write_text(json.dumps({"registries": [registry.settings], "imagePolicy": list(policy)}))
    return file


async def test_an_artifact_is_fetched_whole_within_bounds_or_refused_with_a_reason(registry: Registry, tmp_path: Path) -> None:
    fetch, known = fetching_by(settings(registry, tmp_path), MOST_BYTES), registry.credentials
    two = pushed(registry, ("main.py", CODE), ("other.py", b"other"))
    assert await fetch(two, "main.py", known) == CODE and await fetch(two, "other.py", known) == b"other"
    assert await fetch(pushed(registry, ("app.py", CODE)), "main.py", known) == CODE, "its only file"
    big = bytes(MOST_BYTES)
    assert await fetch(pushed(registry, ("main.py", big)), "main.py", known) == big
    for image, credentials, said in (
        (two, (), "refuses team/app to us as one without credentials"),
        (f"{registry.host}/team/app@sha256:{'0' * 64}", known, "has no team/app sha256:0000"),
        (pushed(registry, ("main.py", big + b"x")), known, f"its file main.py has {MOST_BYTES + 1} bytes: 1 to {MOST_BYTES}"),
        (pushed(registry, ("a.py", b"a"), ("b.py", b"b")), known, "it has no file main.py: it has a.py, b.py"),
        (
            pushed(registry, ("main.py", b"x"), kind="application/vnd.oci.image.layer.v1.tar+gzip"),
            known,
            "it is an image of layers, and not an artifact: push the file itself",
        ),
    ):
        with pytest.raises(ImageError, match=said.replace("(", r"\(")):
            await fetch(image, "main.py", credentials)


async def test_only_what_is_signed_where_the_operator_says_so(registry: Registry, tmp_path: Path) -> None:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    rule = {"images": f"{registry.host}/team/*", "action": "Signed", "keys": [pem(key)]}
    fetch, known = fetching_by(settings(registry, tmp_path, [rule]), MOST_BYTES), registry.credentials
    image = pushed(registry, ("main.py", CODE + b"# signed\n"))
    with pytest.raises(ImageError, match="it is not signed"):
        await fetch(image, "main.py", known)
    registry.sign("team/app", image.partition("@")[2], other)
    with pytest.raises(ImageError, match="none of them by a key of the policy"):
        await fetch(image, "main.py", known)
    registry.sign("team/app", image.partition("@")[2], key)
    assert await fetch(image, "main.py", known) == CODE + b"# signed\n"
    with pytest.raises(ImageError, match="no rule of it is about them"):
        await fetch(image.replace("/team/", "/other/"), "main.py", ())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "is not YAML"),
        ("[1]", "must be a mapping"),
        ("policy: []", "with registries, imagePolicy or both"),
        ("registries: [{plainHttp: true}]", "registries: must be a list of mappings that have host each"),
        ("imagePolicy: [{images: x, action: Maybe}]", r"imagePolicy\[0\].action: 'Maybe' must be one of"),
    ],
)
def test_a_file_that_says_nothing_sensible_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "images.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"--device-images .*images.yaml.*{said}"):
        fetching_by(tmp_path / "images.yaml", MOST_BYTES)


async def test_only_registries_that_the_operator_named_are_asked(tmp_path: Path) -> None:
    """Else whoever may write a Device has the hub connect to any host."""
    file = tmp_path / "images.yaml"
    for text, taken in (
        ("", "nowhere"),
        ("registries: [{host: registry.example}, {host: 10.0.0.7:5000}]", "10.0.0.7:5000, registry"),
    ):
        file.write_text(text)
        with pytest.raises(ImageError, match=f"its registry is 169.254.169.254:80; this hub takes devices' images from {taken}"):
            await fetching_by(file, MOST_BYTES)(f"169.254.169.254:80/a/b@sha256:{'0' * 64}", "main.py", ())


async def test_nobody_waits_for_a_registry_and_what_fails_is_tried_again() -> None:
    async with station() as hub:
        asked: list[str] = []
        go, problem = asyncio.Event(), "registry registry.example cannot be reached"

        async def fetch(image: str, name: str, known: Sequence[tuple[str, str, str]]) -> bytes:
            asked.append(image)
            if len(asked) < 3:
                raise ImageError("ErrImagePull", problem)
            await go.wait()
            return CODE

        await hub.make("none", app={"image": OTHER})
        await hub.settle(7)
        status, why = await hub.condition("none", "UpToDate")
        assert status == "False" and "start the hub with --device-images FILE" in why
        hub.apps.images._fetch = fetch
        lamp = Thing(hub, "lamp")
        await hub.make("lamp", app={"image": OTHER, "version": "1"})
        await hub.settle()
        assert [end for end, _ in await lamp.connect("a", heartbeat=3600)] == ["twin.desired"]
        await hub.settle(6)
        assert await hub.condition("lamp", "UpToDate") == ("False", problem)
        await hub.settle(3 * AGAIN_SECONDS[0] + 7)
        assert len(asked) == 3
        assert await hub.condition("lamp", "UpToDate") == ("False", problem), "until there is other news"
        go.set()
        await hub.settle(7)
        told = [said for end, said in await lamp.told() if end == "app.desired"]
        assert told[0]["size"] == len(CODE) and told[0]["version"] == "1"
        # Nobody wants it any more: it is not asked for again.
        hub.apps._held.clear()
        go.clear()
        await hub.patch("lamp", {"app": None})
        await hub.patch("none", {"app": None})
        await hub.settle(700)
        assert len(asked) <= 4 and not hub.apps.images._tasks


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ({"image": OTHER, "configMap": "x"}, "spec.app.configMap: Required value: say where the code is"),
        ({"version": "1"}, "spec.app.configMap: Required value"),
        ({"image": "registry.example/app:1"}, "spec.app.image: Invalid value: .*must name an OCI artifact by its digest"),
        ({"configMap": "x", "imagePullSecrets": ["y"]}, "spec.app.imagePullSecrets: Forbidden"),
    ],
)
async def test_an_application_is_from_one_place(app: Obj, said: str) -> None:
    async with station() as hub:
        with pytest.raises(ApiError, match=said) as refused:
            await hub.make("lamp", app=app)
        assert refused.value.code == 422


async def deployed(hub: RealStation, registry: Registry, folder: Path, device: AbstractAsyncContextManager[Any]) -> None:
    """A Deployment of a private, signed artifact, to where ``device`` is on line as ``lamp`` of floor 2."""
    key = ec.generate_private_key(ec.SECP256R1())
    rule = {"images": f"{registry.host}/team/*", "action": "Signed", "keys": [pem(key)]}
    image = pushed(registry, ("blink.py", CODE + b"# deployed\n"))
    hub.fleet.apps.images._fetch = fetching_by(settings(registry, folder, [rule]), MOST_BYTES)
    secret: Any = {**scheme.SECRET.empty("registry", "shop"), "type": "kubernetes.io/dockerconfigjson"}
    await hub.registry.create(ADMIN, secret | {"stringData": {".dockerconfigjson": registry.docker_config().decode()}})
    await hub.registry.patch(ADMIN, scheme.DEVICE, "lamp", "shop", {"metadata": {"labels": {"floor": "2"}}})
    async with device:
        await hub.until("lamp", lambda s: s["online"], 40)
        container = {"name": "main", "image": image, "command": ["blink.py"]}
        body = changed(volumes=[], containers=[container], imagePullSecrets=[{"name": "registry"}])
        body["metadata"].pop("generation")
        body["spec"]["replicas"] = 1
        await hub.registry.create(ADMIN, body)

        def refused(found: Obj) -> bool:
            return any(c["type"] == "UpToDate" and "it is not signed" in c["message"] for c in found["conditions"])

        await hub.until("lamp", refused, 30)
        registry.sign("team/app", image.partition("@")[2], key)
        found = await hub.until("lamp", lambda s: (s.get("app") or {}).get("state") == "Running", 60)
        assert found["reported"]["app"] == "artifact"
        for _ in range(300):
            status = (await hub.registry.get(ADMIN, scheme.DEPLOYMENT, "blink", "shop")).get("status") or {}
            if status.get("availableReplicas") == 1:
                break
            await asyncio.sleep(0.05)
        assert status["availableReplicas"] == 1


@pytest.mark.system
@pytest.mark.slow
async def test_a_deployment_of_an_artifact_runs_on_a_device(registry: Registry, tmp_path: Path) -> None:
    nemo = client_module()
    async with real_station(tmp_path) as hub:
        config = await hub.add("lamp", messagesPerSecond=100)
        await deployed(hub, registry, tmp_path, running_device(nemo.Device(config, str(tmp_path), trial=0.2)))
