"""Volumes backed up and brought back: whatever fails on the way, what is listed as a backup can be restored whole."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.volumes import backing, s3
from metaos.volumes.backing import run
from metaos.volumes.s3 import Listed, StoreError
from metaos.volumes.vault import BUSY, Vault
from tests.backups.hostile import Hostile, serving

KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def store() -> Iterator[Hostile]:
    with serving() as found:
        yield found


def asked(store: Hostile, root: Path, do: str = "backUp", **more: Any) -> dict[str, Any]:
    secret = {"accessKeyId": "id", "secretAccessKey": "secret", "encryptionKey": KEY}
    return {
        "do": do,
        "store": {"endpoint": store.endpoint, "bucket": "b", "prefix": "p"},
        "credentials": secret,
        "namespace": "shop",
        "claim": "data-db-0",
        "site": "west",
        "directory": str(root / "claims" / "data-db-0"),
        "state": str(root / "state" / "data-db-0"),
        **more,
    }


pytestmark = pytest.mark.usefixtures("same_clock")


@pytest.fixture
def same_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's clock is the site's."""
    usual = s3.Bucket.check

    def check(bucket: s3.Bucket) -> float:
        usual(bucket)
        return bucket._now()

    monkeypatch.setattr(s3.Bucket, "check", check)


class Clock:
    """Names of backups are a second apart: one clock for all of a volume."""

    def __init__(self) -> None:
        self.at = time.time()

    def __call__(self) -> float:
        self.at += 1.0
        return self.at


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    found = tmp_path / "claims" / "data-db-0"
    (found / "deep" / "er").mkdir(parents=True)
    (found / "log").write_bytes(b"line\n" * 1000)
    (found / "deep" / "er" / "page").write_bytes(Random(1).randbytes(256 * 9000))
    (found / "empty").touch()
    return found


def test_there_and_back(store: Hostile, volume: Path, tmp_path: Path) -> None:
    now = Clock()
    first = run(asked(store, tmp_path), now)
    assert first["consistency"] == "Quiet" and first["sentChunks"] == 4 and first["bytes"] == 5000 + 256 * 9000, first
    was = contents(volume)
    (volume / "log").write_bytes(b"line\n" * 1001)
    second = run(asked(store, tmp_path), now)
    assert second["sentChunks"] == 1, "only what has changed is sent"
    assert second["backups"] == [first["backup"], second["backup"]]
    shutil.rmtree(volume)
    back = run(asked(store, tmp_path, "bringBack"), now)
    assert back["backup"] == second["backup"] and (volume / "log").read_bytes() == b"line\n" * 1001
    back = run(asked(store, tmp_path, "bringBack", at=first["time"]), now)
    assert back["backup"] == first["backup"] and contents(volume) == was
    assert (volume.with_name(".data-db-0.before") / "log").read_bytes() == b"line\n" * 1001, "what lay there is kept"
    assert run(asked(store, tmp_path, "list"), now)["backups"] == second["backups"]


def test_the_store_learns_nothing(store: Hostile, volume: Path, tmp_path: Path) -> None:
    (volume / "log").write_bytes(b"a very secret line\n" * 100)
    assert "backup" in run(asked(store, tmp_path), Clock())
    for key, (data, _) in store.objects.items():
        assert b"secret line" not in data and b"page" not in data
        assert "page" not in key and "log" not in key


def test_old_backups_go_and_chunks_with_them(store: Hostile, volume: Path, tmp_path: Path) -> None:
    now = Clock()
    for number in range(4):
        (volume / "log").write_bytes(bytes([number]) * 5000)
        said = run(asked(store, tmp_path, keep={"count": 2}), now)
    assert len(said["backups"]) == 2 and said["sweptChunks"] == 1
    assert sum("/chunks/" in key for key in store.objects) == 5
    assert sum("/locks/" in key for key in store.objects) == 1, "locks do not pile up"


def test_a_site_whose_clock_was_ahead_leaves_nothing_that_outlives_what_came_after(
    store: Hostile, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter((1.8e9, 1.8e9 + 60))
    monkeypatch.setattr(s3.Bucket, "check", lambda bucket: next(times))
    run(asked(store, tmp_path, keep={"count": 1}), lambda: 1.8e9 + 600)
    (volume / "log").write_bytes(b"newer")
    said = run(asked(store, tmp_path, site="east", state=str(tmp_path / "east" / "s"), keep={"count": 1}), lambda: 1.8e9 + 60)
    assert said["backups"] == [said["backup"]] and said["time"] == 1.8e9 + 60
    back = run(asked(store, tmp_path, "bringBack"), Clock())
    assert back["backup"] == said["backup"] and (volume / "log").read_bytes() == b"newer"


def test_a_restore_that_ended_between_two_renames_loses_nothing(store: Hostile, volume: Path, tmp_path: Path) -> None:
    run(asked(store, tmp_path), Clock())
    volume.rename(volume.with_name(".data-db-0.before"))
    for key in [key for key in store.objects if "/chunks/" in key]:
        del store.objects[key]
    assert run(asked(store, tmp_path, "bringBack"), Clock())["reason"] == s3.DAMAGED
    assert (volume / "log").read_bytes() == b"line\n" * 1000


@pytest.mark.parametrize("can", [True, False])
def test_a_volume_is_never_missing_while_another_state_takes_its_place(
    store: Hostile, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool
) -> None:
    """Who begins between two renames would begin on an empty directory. Some file systems cannot do better."""
    run(asked(store, tmp_path), Clock())
    (volume / "log").write_bytes(b"newer")
    there: list[bool] = []
    rename = os.rename

    def watched(one: Any, other: Any) -> None:
        rename(one, other)
        there.append(volume.exists())

    monkeypatch.setattr(os, "rename", watched)
    if not can:
        monkeypatch.setattr(backing, "exchange", lambda one, other: False)
    assert "reason" not in run(asked(store, tmp_path, "bringBack"), Clock())
    assert (volume / "log").read_bytes() == b"line\n" * 1000
    assert (volume.with_name(".data-db-0.before") / "log").read_bytes() == b"newer"
    assert all(there) is can


@pytest.mark.parametrize("key", ["", "c2hvcnQ=", "no base64!"])
def test_a_key_that_is_none(store: Hostile, volume: Path, tmp_path: Path, key: str) -> None:
    request = asked(store, tmp_path)
    request["credentials"]["encryptionKey"] = key
    said = run(request, Clock())
    assert said["reason"] == "KeyMissing" and "openssl rand -base64 32" in said["message"]


def test_another_key_opens_nothing_and_says_which_one_would(store: Hostile, volume: Path, tmp_path: Path) -> None:
    now = Clock()
    first = run(asked(store, tmp_path), now)
    request = asked(store, tmp_path, "bringBack")
    request["credentials"]["encryptionKey"] = base64.b64encode(b"x" * 32).decode()
    said = run(request, now)
    assert said["reason"] == "NoBackup" and first["key"] in said["message"]
    request["do"] = "backUp"
    again = run(request, now)
    assert again["key"] != first["key"] and again["otherKeys"] == [first["key"]] and again["sentChunks"] == 4


@pytest.mark.parametrize("what", ["/chunks/", "/backups/"])
@pytest.mark.parametrize("how", ["flip", "cut", "swap", "gone"])
def test_a_store_that_lies_gives_nothing_back(store: Hostile, volume: Path, tmp_path: Path, what: str, how: str) -> None:
    now = Clock()
    run(asked(store, tmp_path), now)
    (volume / "log").write_text("newer")
    run(asked(store, tmp_path), now)
    keys = sorted(key for key in store.objects if what in key)
    was = contents(volume)
    kept = dict(store.objects)
    for key, other in zip(keys, keys[1:] + keys[:1], strict=True):
        data = kept[key][0]
        bent = {"flip": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[: len(data) // 2], "swap": kept[other][0]}
        if how == "gone":
            del store.objects[key]
        else:
            store.objects[key] = bent[how], 0.0
    said = run(asked(store, tmp_path, "bringBack"), now)
    assert said["reason"] in ("ChecksumWrong", "NoBackup"), said
    assert contents(volume) == was, "what lies at the site is touched only when all has arrived"
    assert not volume.with_name(".data-db-0.before").exists()


def test_a_chunk_that_the_store_has_lost_is_sent_again(store: Hostile, volume: Path, tmp_path: Path) -> None:
    now = Clock()
    run(asked(store, tmp_path), now)
    for key in [key for key in store.objects if "/chunks/" in key]:
        del store.objects[key]
    said = run(asked(store, tmp_path), now)
    assert said["sentChunks"] == 4
    was = contents(volume)
    assert "digest" in run(asked(store, tmp_path, "bringBack"), now) and contents(volume) == was


def test_another_site_that_backs_up_is_not_disturbed(store: Hostile, volume: Path, tmp_path: Path) -> None:
    now = Clock()
    vault = Vault(store.bucket(), "p/shop/data-db-0", bytes(range(32)))
    with vault.locked("east", time.time()):
        said = run(asked(store, tmp_path), now)
        assert said["reason"] == BUSY and "east" in said["message"]
    assert "backup" in run(asked(store, tmp_path), now)
    with pytest.raises(RuntimeError), vault.locked("west", time.time()):
        raise RuntimeError
    with vault.locked("east", time.time() - 10 * 3600):
        assert "backup" in run(asked(store, tmp_path), now), "a lock that is too old is passed over"


def test_a_store_without_conditional_writes_is_refused(store: Hostile, volume: Path, tmp_path: Path) -> None:
    store.conditional = False
    said = run(asked(store, tmp_path), Clock())
    assert said["reason"] == s3.REFUSED and "If-None-Match" in said["message"]
    assert not any("/backups/" in key for key in store.objects)


def test_a_volume_that_is_never_quiet_is_said_to_be(
    store: Hostile, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = Clock()
    looks = iter(range(10**6))
    real = backing.save

    def busy(*arguments: Any, **more: Any) -> Any:
        (volume / "log").write_text(f"look {next(looks)}")
        return real(*arguments, **more)

    monkeypatch.setattr(backing, "save", busy)
    said = run(asked(store, tmp_path), now)
    assert said["consistency"] == "PerFile" and next(looks) == backing.ROUNDS + 1
    assert run(asked(store, tmp_path, hooked=True), now)["consistency"] == "Hook"


def test_no_room_at_the_site(store: Hostile, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = Clock()
    run(asked(store, tmp_path), now)
    monkeypatch.setattr(backing, "SPARE_BYTES", 1 << 62)
    said = run(asked(store, tmp_path, "bringBack"), now)
    assert said["reason"] == "SiteFull" and "make room" in said["message"]


@pytest.mark.parametrize("more", [{"backup": "../../etc"}, {"backup": "20260101T000000Z-none"}, {"at": 1.0}])
def test_backups_that_are_not_there(store: Hostile, volume: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    now = Clock()
    run(asked(store, tmp_path), now)
    said = run(asked(store, tmp_path, "bringBack", **more), now)
    assert said["reason"] == "NoBackup" and "shop/data-db-0" in said["message"]


def test_a_process_of_its_own(store: Hostile, volume: Path, tmp_path: Path) -> None:
    import json

    done = subprocess.run(
        [sys.executable, "-I", "-m", "metaos.volumes.backing"],
        input=json.dumps(asked(store, tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout)["sentChunks"] == 4


# -- any course of events ----------------------------------------------------------------------------------


class Broken(StoreError):
    def __init__(self) -> None:
        super().__init__(s3.UNREACHABLE, "broken off")


class Memory:
    """A bucket in memory that fails at one request, before or after it is done, as a network does."""

    name = "store memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.left, self.done_first = 10**9, False
        self.time = 1.8e9

    def _step(self) -> bool:
        """Whether this request is done; raises after it where it is to fail then."""
        self.left -= 1
        if self.left == 0 and not self.done_first:
            raise Broken
        return True

    def _after(self) -> None:
        if self.left == 0:
            raise Broken

    def get(self, key: str, most: int = 0) -> bytes | None:
        self._step()
        return self.objects.get(key)

    def put(self, key: str, data: bytes, *, new: bool = False) -> bool:
        self._step()
        fresh = not (new and key in self.objects)
        if fresh:
            self.objects[key] = data
        self._after()
        return fresh

    def delete(self, key: str) -> None:
        self._step()
        self.objects.pop(key, None)
        self._after()

    def list(self, prefix: str) -> Iterator[Listed]:
        self._step()
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield Listed(key, len(self.objects[key]), 0.0)

    def check(self) -> float:
        self._step()
        self.time += 10.0
        return self.time


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["one", "two", "three"]),
        st.binary(max_size=3),
        st.sampled_from(["west", "east"]),
        st.none() | st.tuples(st.integers(1, 30), st.booleans()),
        st.integers(1, 3),
    ),
    max_size=8,
)


@settings(max_examples=15, deadline=None)
@given(STEPS)
def test_every_backup_that_is_listed_is_whole(steps: list[tuple[str, bytes, str, tuple[int, bool] | None, int]]) -> None:
    """Files change, sites take turns, and each backup may be broken off at any request, that being done or not."""
    memory, now = Memory(), Clock()
    states: dict[str, dict[str, bytes]] = {}
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=in_memory) as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(backing, "Bucket", lambda *a, **k: memory)
        root = Path(folder)
        volume = root / "claims" / "data-db-0"
        volume.mkdir(parents=True)
        for file, data, site, broken, count in steps:
            (volume / file).write_bytes(data * 100)
            before = set(memory.objects)
            memory.left, memory.done_first = (broken[0], broken[1]) if broken else (10**9, False)
            request = asked(Hostile("http://h"), root, site=site, keep={"count": count}, state=str(root / site / "state"))
            # The clock of one site is ahead of the other's, and of the store's.
            said = run(request, lambda ahead=600.0 if site == "east" else 0.0: now() + ahead)
            memory.left = 10**9
            assert broken or "backup" in said or said["reason"] == BUSY, said
            assert said.get("backup", "") in {"", *(key.rpartition("/")[2] for key in memory.objects)}, "the newest stays"
            new = {key for key in memory.objects if "/backups/" in key} - before
            for key in new:
                states[key.rpartition("/")[2]] = contents(volume)
            for key in sorted(key for key in memory.objects if "/backups/" in key):
                name = key.rpartition("/")[2]
                other = root / "other" / name
                back = run(asked(Hostile("http://h"), root, "bringBack", backup=name, directory=str(other)), now)
                assert back.get("backup") == name, back
                assert contents(other) == states[name]
                shutil.rmtree(other)
