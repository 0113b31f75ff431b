"""Image names, host images, and taking in archives that may be hostile."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.clock import SystemClock
from metaos.plugins.points import ImageError
from metaos.runtimes import archive
from metaos.runtimes.images import ImageStore, host_image, normalise
from metaos.runtimes.sandbox import SandboxRuntime
from tests.runtimes.conformance import container, execute, log, pod, until_ended, until_logged

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def layer(entries: dict[str, Any]) -> bytes:
    """A layer's tar: path → bytes (file), None (directory), str (symbolic link), or a ready ``TarInfo``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, content in entries.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            elif isinstance(content, bytes):
                info.size, info.mode = len(content), 0o755
            made.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o4755
    return info


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def config_of(layers: Sequence[bytes], **settings: Any) -> bytes:
    document = {"architecture": MACHINE, "os": "linux", "config": settings}
    return json.dumps(document | {"rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha(each)}" for each in layers]}}).encode()


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as made:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return path


def docker_archive(place: Path, layers: Sequence[bytes], names: Sequence[str], **settings: Any) -> Path:
    config = config_of(layers, **settings)
    files = {f"{sha(config)}.json": config} | {f"{n}/layer.tar": each for n, each in enumerate(layers)}
    manifest = [
        {"Config": f"{sha(config)}.json", "RepoTags": list(names), "Layers": [f"{n}/layer.tar" for n in range(len(layers))]}
    ]
    return pack(place / "image.tar", files | {"manifest.json": json.dumps(manifest).encode()})


def oci_files(layers: Sequence[bytes], name: str, **settings: Any) -> dict[str, bytes]:
    config = config_of(layers, **settings)
    packed = [gzip.compress(each, mtime=0) for each in layers]
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": {"digest": f"sha256:{sha(config)}"},
            "layers": [{"digest": f"sha256:{sha(each)}"} for each in packed],
        }
    ).encode()
    here = {"digest": f"sha256:{sha(manifest)}", "platform": {"os": "linux", "architecture": MACHINE}}
    other = {"digest": f"sha256:{'0' * 64}", "platform": {"os": "linux", "architecture": "vax"}}
    inner = json.dumps({"schemaVersion": 2, "manifests": [other, here]}).encode()
    annotations = {"org.opencontainers.image.ref.name": "latest", "io.containerd.image.name": name}
    index = {"schemaVersion": 2, "manifests": [{"digest": f"sha256:{sha(inner)}", "annotations": annotations}]}
    blobs = {f"blobs/sha256/{sha(each)}": each for each in (config, manifest, inner, *packed)}
    return blobs | {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode()}


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "images"))


def rootfs(store: ImageStore, name: str) -> Path:
    found = store.find(name).rootfs
    assert found is not None
    return Path(found)


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("python:3", "docker.io/library/python:3"),
        ("python", "docker.io/library/python:latest"),
        ("docker.io/python:3", "docker.io/library/python:3"),
        ("index.docker.io/library/python:3", "docker.io/library/python:3"),
        ("team/app", "docker.io/team/app:latest"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
        ("ghcr.io/a/b/c:v1.2", "ghcr.io/a/b/c:v1.2"),
        ("app@sha256:" + "a" * 64, "docker.io/library/app@sha256:" + "a" * 64),
    ],
)
def test_names(name: str, full: str) -> None:
    assert normalise(name) == full
    assert normalise(full) == full


@pytest.mark.parametrize("name", ["", "Python", "a b", "../x", "a//b", "a:b:c", "a@sha256:1", ":1", "x" * 600, "docker.io/"])
def test_bad_names(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        normalise(name)
    assert caught.value.reason == "InvalidImageName"


@given(st.text(max_size=40))
def test_every_name_is_normal_or_refused(name: str) -> None:
    try:
        full = normalise(name)
    except ImageError as error:
        assert error.reason == "InvalidImageName"
    else:
        assert normalise(full) == full


def test_host_images(tmp_path: Path) -> None:
    entry = {"name": "tools", "paths": ["/opt/tools"], "env": [{"name": "A", "value": "b"}], "command": ["/opt/tools/run"]}
    store = ImageStore(str(tmp_path), [entry])
    image = store.find("tools:latest")
    assert (image.paths, image.env, image.argv((), ("x",))) == (("/opt/tools",), (("A", "b"),), ["x"])
    with pytest.raises(ImageError, match=r"This site has: docker\.io/library/tools:latest"):
        store.find("python:3")
    for bad in ("/", "relative"):
        with pytest.raises(ImageError, match="must be absolute"):
            host_image({"name": "x", "paths": [bad]})


def test_other_versions_of_python_are_other_images(store: ImageStore) -> None:
    for name in ("python:3-slim", "python:3.11", "python"):
        with pytest.raises(ImageError, match="nemo image import"):
            store.find(name)


def test_docker_archive(store: ImageStore, tmp_path: Path) -> None:
    base = layer(
        {"etc": None, "etc/passwd": b"root:x:0:0::/:\napp:x:70:71::/:\n", "bin/run": b"#!", "old/a": b"1", "old/b": b"2"}
    )
    top = layer({"old/.wh.a": b"", "bin/new": b"x", "link": "bin/run"})
    settings = {"Env": ["A=1"], "Entrypoint": ["/bin/run"], "Cmd": ["x"], "WorkingDir": "/srv", "User": "app"}
    path = docker_archive(tmp_path, [base, top], ["app:1", "team/app:2"], **settings)
    assert store.import_archive(str(path)) == ["docker.io/library/app:1", "docker.io/team/app:2"]
    image = store.find("app:1")
    assert (image.user, image.group, image.working_dir) == (70, 71, "/srv")
    assert dict(image.env)["A"] == "1" and "PATH" in dict(image.env)
    assert image.argv((), ()) == ["/bin/run", "x"] and image.argv((), ("y",)) == ["/bin/run", "y"]
    assert image.argv(("/other",), ()) == ["/other"]
    root = rootfs(store, "app:1")
    assert sorted(os.listdir(root / "old")) == ["b"] and os.readlink(root / "link") == "bin/run"
    assert (root / "etc/hosts").exists() and (root / "proc").is_dir()
    assert image.size > 0
    assert [entry for entry in os.listdir(tmp_path / "images") if entry.startswith("new-")] == []


def test_oci_layouts(store: ImageStore, tmp_path: Path) -> None:
    files = oci_files([layer({"hello": b"world"})], "ghcr.io/team/app:3", Cmd=["/hello"])
    assert store.import_archive(str(pack(tmp_path / "oci.tar", files))) == ["ghcr.io/team/app:3"]
    assert (rootfs(store, "ghcr.io/team/app:3") / "hello").read_bytes() == b"world"
    directory = tmp_path / "layout"
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    assert store.import_archive(str(directory), "other:1") == ["docker.io/library/other:1"]
    assert rootfs(store, "other:1") == rootfs(store, "ghcr.io/team/app:3")


def test_removal_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    path = docker_archive(tmp_path, [layer({"x": b"1"})], ["a:1", "b:1"])
    store.import_archive(str(path))
    root = rootfs(store, "a:1")
    store.remove("a:1")
    assert root.exists() and store.find("b:1")
    user = tmp_path / "container"
    user.mkdir()
    store.hold(store.find("b:1"), str(user))
    store.remove("b:1")
    assert root.exists(), "a container uses it"
    user.rmdir()
    store.import_archive(str(path))
    store.remove("a:1")
    store.remove("b:1")
    assert not root.exists()
    assert sorted(os.listdir(tmp_path / "images")) == ["index.json", "lock"]
    with pytest.raises(ImageError, match="is not on this site"):
        store.remove("b:1")
    with pytest.raises(ImageError, match="site file"):
        store.remove("python:3")


def test_images_that_nothing_needs_are_collected_oldest_first(store: ImageStore, tmp_path: Path) -> None:
    for number, name in enumerate(("old:1", "kept:1", "used:1", "newer:1", "newest:1")):
        store.import_archive(str(docker_archive(tmp_path, [layer({"file": b"%d" % number * 100_000})], [name])))
        place = Path(store.find(name).rootfs or "").parent
        if name == "used:1":
            (tmp_path / "container").mkdir()
            store.hold(store.find(name), str(tmp_path / "container"))
        os.utime(place, (1000 + number, 1000 + number))
    stale = store.find("old:1")
    assert store.collect({"kept:1", "Not A Name"}, 0, 2000) == []
    assert store.collect({"kept:1"}, 1, 2000) == ["docker.io/library/old:1"]
    with pytest.raises(ImageError, match="import it again"):
        store.hold(stale, str(tmp_path / "container"))
    assert store.collect({"kept:1"}, 1 << 40, 1004) == ["docker.io/library/newer:1"]
    assert store.collect({"kept:1"}, 1 << 40, 2000) == ["docker.io/library/newest:1"]
    left = {name for image in store.all() for name in image.names} - {"docker.io/library/python:3"}
    assert left == {"docker.io/library/kept:1", "docker.io/library/used:1"}
    assert all(os.path.isdir(store.find(name).rootfs or "") for name in left)
    (tmp_path / "container").rmdir()
    assert store.collect({"kept:1"}, 1 << 40, 1 << 40) == ["docker.io/library/used:1"]
    assert len([each for each in os.scandir(Path(store.find("kept:1").rootfs or "").parent.parent) if each.is_dir()]) == 1


def test_another_process_sees_the_import(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        store.find("a:1")
    ImageStore(str(tmp_path / "images")).import_archive(str(docker_archive(tmp_path, [layer({"x": b"1"})], ["a:1"])))
    assert store.find("a:1").rootfs


def test_whiteouts(store: ImageStore, tmp_path: Path) -> None:
    base = layer({"d/a": b"1", "d/b": b"2", "d/sub/c": b"3", "e": b"4"})
    top = layer({"d/new": b"5", "d/.wh..wh..opq": b"", ".wh.e": b"", ".wh.never": b""})
    store.import_archive(str(docker_archive(tmp_path, [base, top], ["a:1"])))
    root = rootfs(store, "a:1")
    assert os.listdir(root / "d") == ["new"] and not (root / "e").exists()


@pytest.mark.parametrize(
    "entries",
    [
        {"../evil": b"x"},
        {"a/../../evil": b"x"},
        {"hard": special("hard", tarfile.LNKTYPE, "../../outside")},
        {"hard": special("hard", tarfile.LNKTYPE, "/etc/passwd")},
        {".wh...": b""},
        {"loop": "loop", "loop/x": b""},
    ],
)
def test_hostile_layers_are_refused(store: ImageStore, tmp_path: Path, entries: dict[str, Any]) -> None:
    (tmp_path / "outside").write_text("kept")
    with pytest.raises(ImageError) as caught:
        store.import_archive(str(docker_archive(tmp_path, [layer(entries)], ["a:1"])))
    assert caught.value.reason == "ErrImagePull"
    assert os.listdir(tmp_path / "images") == ["lock"]
    assert (tmp_path / "outside").read_text() == "kept" and not (tmp_path / "evil").exists()


def test_a_directory_that_a_link_replaces_changes_no_mode_outside(store: ImageStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "keys").mkdir(parents=True)
    (outside / "keys").chmod(0o700)
    path = docker_archive(tmp_path, [layer({"a": None, "a/keys": None, "./a": str(outside)})], ["team/links:1"])
    store.import_archive(str(path))
    assert (outside / "keys").stat().st_mode & 0o777 == 0o700


def test_links_lead_nowhere_else(store: ImageStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    entries = {
        "abs": str(outside),
        "abs/file": b"inside",
        "up": "../../../../../../tmp",
        "up/file": b"inside",
        "etc": str(outside),
    }
    device = {"dev/null": special("dev/null", tarfile.CHRTYPE), "suid": b"x"}
    store.import_archive(str(docker_archive(tmp_path, [layer(entries), layer(device)], ["a:1"])))
    root = rootfs(store, "a:1")
    assert os.listdir(outside) == []
    assert (root / str(outside).lstrip("/") / "file").read_bytes() == b"inside" and (root / "tmp/file").read_bytes() == b"inside"
    assert not (root / "dev/null").exists() and not (root / "etc").is_symlink()
    for path in root.rglob("*"):
        assert path.is_symlink() or not path.stat().st_mode & 0o6000


def test_set_user_id_is_lost(store: ImageStore, tmp_path: Path) -> None:
    info = special("su", tarfile.REGTYPE)
    store.import_archive(str(docker_archive(tmp_path, [layer({"su": info})], ["a:1"])))
    assert (rootfs(store, "a:1") / "su").stat().st_mode & 0o7777 == 0o755


def test_content_must_have_its_digest(store: ImageStore, tmp_path: Path) -> None:
    good = oci_files([layer({"hello": b"world"})], "a:1")
    for name, data in good.items():
        if not name.startswith("blobs/"):
            continue
        broken = dict(good)
        broken[name] = (
            gzip.compress(layer({"hello": b"evil!"})) if data[:2] == b"\x1f\x8b" else data.replace(b"schema", b"schemb") + b" "
        )
        with pytest.raises(ImageError, match=r"digest|content"):
            store.import_archive(str(pack(tmp_path / "oci.tar", broken)))
    with pytest.raises(ImageError):
        store.find("a:1")


def test_what_unpacks_is_bounded(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    with pytest.raises(ImageError, match="unpacks to more"):
        store.import_archive(str(docker_archive(tmp_path, [layer({"a": b"x" * 600, "b": b"x" * 600})], ["a:1"])))
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    with pytest.raises(ImageError, match="more than 3 files"):
        store.import_archive(str(docker_archive(tmp_path, [layer({str(n): b"" for n in range(4)})], ["a:1"])))


@pytest.mark.parametrize("data", [b"", b"not a tar at all", gzip.compress(b"nothing", mtime=0)[:15]])
def test_damaged_files_are_named(store: ImageStore, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(ImageError, match=r"x\.tar"):
        store.import_archive(str(tmp_path / "x.tar"))
    with pytest.raises(ImageError, match="does not exist"):
        store.import_archive(str(tmp_path / "missing.tar"))


def test_other_machines_are_refused(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = docker_archive(tmp_path, [layer({"a": b""})], ["a:1"])
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(ImageError, match="this machine is riscv64"):
        store.import_archive(str(path))


@given(st.lists(st.text(alphabet="ab./\0", max_size=8), min_size=1, max_size=6), st.text(alphabet="ab./", min_size=1, max_size=8))
def test_no_path_leaves_the_root(names: list[str], link: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        entries: dict[str, Any] = {name: b"x" for name in names if name}
        entries["a"] = link
        outer = Path(place, "outer")
        outer.mkdir()
        store = ImageStore(str(outer / "images"))
        try:
            path = docker_archive(Path(place), [layer(entries), layer({"a/b": b"y", "b/a/b": b"z"})], ["a:1"])
            store.import_archive(str(path))
        except (ImageError, ValueError):
            pass
        assert os.listdir(outer) == ["images"] and sorted(os.listdir(place)) == ["image.tar", "outer"]
        for entry in os.listdir(outer / "images"):
            assert entry in ("lock", "index.json") or len(entry) == 64


def shell_layer() -> bytes:
    """A root file system that can run: this machine's shell and its libraries, copied."""
    entries: dict[str, Any] = {"opt/empty": None, "lib": "usr/lib"}
    for program in ("sh", "cat", "touch", "ls", "id", "sleep"):
        path = shutil.which(program)
        assert path is not None
        entries[f"bin/{program}"] = Path(path).read_bytes()
        for word in subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout.split():
            if word.startswith("/"):
                entries[word.lstrip("/").replace("lib/", "usr/lib/", 1) if word.startswith("/lib/") else word.lstrip("/")] = Path(
                    os.path.realpath(word)
                ).read_bytes()
    return layer(entries)


@pytest.fixture
async def runtime() -> Any:
    place = tempfile.mkdtemp(prefix="nemo-images-")
    made = SandboxRuntime(place, clock=SystemClock())
    await made.check()
    await made.start_pod(pod())
    yield made
    await made.stop_pod(pod().uid)
    await made.close()
    shutil.rmtree(place)


@pytest.mark.system
async def test_an_imported_image_runs(runtime: SandboxRuntime, tmp_path: Path) -> None:
    settings = {
        "Env": ["COLOUR=red"],
        "Entrypoint": ["sh", "-c"],
        "Cmd": ["echo default"],
        "WorkingDir": "/opt/empty",
        "User": "70:71",
    }
    await runtime.import_archive(str(docker_archive(tmp_path, [shell_layer()], ["shell:1"], **settings)))

    def shell(*args: str, **more: Any) -> Any:
        return dataclasses.replace(container(args=args, **more), image="shell:1")

    await runtime.start_container(pod().uid, shell())
    assert (await until_ended(runtime, pod().uid)).exit_code == 0
    assert await log(runtime, pod().uid) == b"default\n"
    script = "echo $COLOUR; pwd; id -u; id -g; cat /etc/hostname; ls /usr/bin/python3; touch /opt/x /bin/y"
    script += "; ls /opt; echo ready; sleep 100"
    await runtime.start_container(pod().uid, shell(script, read_only_root=False))
    said = (await until_logged(runtime, pod().uid, b"ready")).decode().splitlines()
    assert [line for line in said if "python3" not in line] == ["red", "/opt/empty", "70", "71", "web-0", "empty", "x", "ready"]
    assert any("No such file" in line for line in said)
    assert await execute(runtime, pod().uid, ("sh", "-c", "ls /bin/y; pwd")) == (0, b"/bin/y\n/opt/empty\n", b"")
    await runtime.stop_container(pod().uid, "main", 0)
    # What a container wrote is its own, and gone with it.
    await runtime.start_container(pod().uid, shell("ls /opt; touch /opt/z; touch /tmp/fine; ls /tmp"))
    await until_ended(runtime, pod().uid)
    said = (await log(runtime, pod().uid)).decode().splitlines()
    assert said[0] == "empty" and "Read-only" in said[1] and said[2] == "fine"
    assert not (rootfs(runtime._images, "shell:1") / "opt/x").exists()


def test_what_another_program_would_unpack_is_weighed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Podman has no bounds of its own."""

    def laid(name: str, *layers: bytes) -> str:
        place = tmp_path / name
        for path, data in oci_files(layers, "a:1").items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(data)
        return str(place)

    good = laid("good", layer({"a": b"x" * 600, "b": b"x" * 600}))
    assert archive.weigh(good, 1 << 30) == 1200
    with pytest.raises(ImageError, match="unpacks to more"):
        archive.weigh(good, 1000)
    monkeypatch.setattr(archive, "MAX_BYTES", 1 << 20)
    with pytest.raises(ImageError, match="unpacks to more"):
        archive.weigh(laid("long", layer({"a": bytes(2 << 20)})), 1 << 30)
    with pytest.raises(ImageError, match="unpacks to more"):
        archive.weigh(laid("padded", layer({"a": b"x"}) + bytes(4 << 20)), 1 << 30)
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    with pytest.raises(ImageError, match="more than 3 files"):
        archive.weigh(laid("many", layer({str(number): b"" for number in range(5)})), 1 << 30)
    with pytest.raises(ImageError, match="damaged"):
        archive.weigh(laid("odd", b"this is no archive" * 100), 1 << 30)
