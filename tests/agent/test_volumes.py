"""Directories behind volumes: what is shown is exactly what is wanted, all of it at once, and nothing leads out."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.agent import memoryvolumes
from metaos.agent.containers import ConfigError, MountError
from metaos.agent.volumes import Volumes, write_files
from metaos.resources.meta import Obj

PATHS = st.sampled_from(["a", "b", "sub/c", "sub/d", "deep/er/e"])
FILES = st.dictionaries(PATHS, st.tuples(st.binary(max_size=20), st.sampled_from([0o644, 0o400])), max_size=5)


def shown(directory: Path) -> dict[str, tuple[bytes, int]]:
    """What a container sees, ``..`` entries apart."""
    found = {}
    for base, _, names in os.walk(directory, followlinks=True):
        relative = Path(base).relative_to(directory)
        if not any(part.startswith("..") for part in relative.parts):
            for name in names:
                path = Path(base, name)
                found[str(relative / name)] = (path.read_bytes(), path.stat().st_mode & 0o777)
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(FILES, max_size=6))
def test_any_sequence_of_contents(contents: list[dict[str, tuple[bytes, int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        for files in contents:
            write_files(directory, files)
            assert shown(directory) == files
            assert not write_files(directory, files), "the same again changes nothing"
            assert len([e for e in directory.iterdir() if e.name.startswith("..data-")]) == 1


def test_what_an_interrupted_write_left_is_cleaned_up(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": (b"1", 0o644)})
    (tmp_path / "..data-2").mkdir()
    (tmp_path / "..data-2" / "a").write_text("half")
    (tmp_path / "..data.new").symlink_to("..data-2")
    assert shown(tmp_path) == {"a": (b"1", 0o644)}
    write_files(tmp_path, {"a": (b"2", 0o644), "b": (b"2", 0o644)})
    assert shown(tmp_path) == {"a": (b"2", 0o644), "b": (b"2", 0o644)}


def test_files_of_an_earlier_release_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "gone").write_text("old")
    write_files(tmp_path, {"a": (b"new", 0o644)})
    assert shown(tmp_path) == {"a": (b"new", 0o644)}


def test_readers_never_see_a_mixture(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": (b"0", 0o644), "b": (b"0", 0o644)})
    stop, mixed = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                place = os.open(tmp_path / "..data", os.O_RDONLY)
            except OSError:
                continue
            try:
                seen = set()
                for name in ("a", "b"):
                    file = os.open(name, os.O_RDONLY, dir_fd=place)
                    seen.add(os.read(file, 10))
                    os.close(file)
                if len(seen) > 1:
                    mixed.append(seen)
            except FileNotFoundError:
                pass  # the old directory has gone meanwhile
            finally:
                os.close(place)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(300):
        content = str(turn).encode()
        write_files(tmp_path, {"a": (content, 0o644), "b": (content, 0o644)})
    stop.set()
    reader.join()
    assert not mixed


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "..data", "..", ""])
def test_paths_that_lead_out_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="leads out"):
        write_files(tmp_path, {path: (b"", 0o644)})


def pod(volume: dict[str, Any], **mount: Any) -> tuple[Obj, dict[str, Any]]:
    metadata = {"name": "p", "namespace": "shop", "uid": "u"}
    container = {"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v", **mount}]}
    return {"metadata": metadata, "spec": {"containers": [container], "volumes": [{"name": "v", **volume}]}}, container


def mounts(tmp_path: Path, volume: dict[str, Any], **mount: Any) -> tuple[tuple[str, str, bool], ...]:
    return Volumes(tmp_path, ("/opt/data",), lambda about: None).mounts(*pod(volume, **mount), {"WHO": "me"})


def test_memory_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(directory: Path, size: int) -> None:
        raise OSError(13, "a tmpfs cannot be mounted: Permission denied", str(directory))

    monkeypatch.setattr(memoryvolumes, "mount", refused)
    monkeypatch.setattr(memoryvolumes, "problem", lambda: "")
    volumes = Volumes(tmp_path, (), lambda about: None)
    volumes.memory = True
    with pytest.raises(ConfigError, match=r"MountVolume.SetUp failed .* a tmpfs cannot be mounted: Permission denied"):
        volumes.mounts(*pod({"emptyDir": {"medium": "Memory"}}), {})


def test_empty_directories(tmp_path: Path) -> None:
    ((path, target, read_only),) = mounts(tmp_path, {"emptyDir": {}})
    assert (target, read_only) == ("/v", False) and Path(path).stat().st_mode & 0o777 == 0o777
    ((path, _, _),) = mounts(tmp_path, {"emptyDir": {"mode": 0o750}}, subPathExpr="of-$(WHO)/x")
    assert path.endswith("/volumes/v/of-me/x") and Path(path).is_dir()
    assert Path(path).parents[1].stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("volume", "mount", "text"),
    [
        ({"emptyDir": {}}, {"subPath": "../../x"}, "leads out of volume"),
        ({"emptyDir": {}}, {"subPath": "/etc"}, "leads out of volume"),
        ({"hostPath": {"path": "/etc"}}, {}, "hostPath /etc is not allowed"),
        ({"persistentVolumeClaim": {"claimName": "d"}}, {}, 'persistentvolumeclaim "d" not found'),
        ({"secret": {"secretName": "s"}}, {}, 'MountVolume.SetUp failed for volume "v" : secret "s" not found'),
        ({"nfs": {"server": "x"}}, {}, "nfs is not supported"),
        ({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}, {}, "serviceAccountToken is not supported"),
    ],
)
def test_what_cannot_be_mounted(tmp_path: Path, volume: dict[str, Any], mount: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + text.replace("(", r"\(")):
        mounts(tmp_path, volume, **mount)
    if not mount:
        with pytest.raises(MountError):
            mounts(tmp_path, volume)


def test_optional_sources_may_be_missing(tmp_path: Path) -> None:
    sources = [{"configMap": {"name": "a", "optional": True}}, {"secret": {"name": "b", "optional": True}}]
    ((path, _, read_only),) = mounts(tmp_path, {"projected": {"sources": sources}})
    assert read_only and shown(Path(path)) == {}


def test_claims_stay_when_the_pod_goes(tmp_path: Path) -> None:
    volumes = Volumes(tmp_path, (), lambda about: {"kind": about.kind})
    ((path, _, _),) = volumes.mounts(*pod({"persistentVolumeClaim": {"claimName": "data"}}), {})
    Path(path, "kept").touch()
    volumes.message_file("u", "c").write_text("bye")
    assert volumes.message("u", "c") == "bye"
    volumes.remove("u")
    assert Path(path, "kept").exists() and not volumes.pod_directory("u").exists() and volumes.message("u", "c") == ""
