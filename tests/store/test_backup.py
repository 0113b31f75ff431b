"""A backup is one moment of the store, and a store restored from it never repeats a revision."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from pathlib import Path

import pytest

from metaos.store import backup
from metaos.store.backup import Stretched
from metaos.store.log import BUMP, Compacted, StoreFailed, restored_revision
from metaos.store.seal import Keyring, SealedStore
from metaos.store.sqlite import SqliteStore
from tests.store.disk import mark

SECRET = Stretched.of("correct horse", b"0" * 16)


async def opened(data: Path) -> SealedStore:
    return SealedStore(await SqliteStore.open(data / "state.db"), Keyring.open(data / "keys.json"), lambda k: k.startswith("s/"))


def keys(data: Path) -> dict[str, bytes]:
    return {"keys.json": (data / "keys.json").read_bytes(), "pki/ca.key": b"key"}


async def test_a_backup_under_load_is_one_moment(tmp_path: Path) -> None:
    data, target = tmp_path / "hub", tmp_path / "backup"
    data.mkdir()
    store = await opened(data)
    done = asyncio.Event()
    states: dict[int, dict[str, bytes]] = {}

    async def load() -> None:
        current: dict[str, bytes] = {}
        known: dict[str, int] = {}
        number = 0
        while not done.is_set():
            number += 1
            key, value = f"s/{number % 40}", b"secret %d" % number
            if key in known:
                known[key] = await store.update(key, value, expected=known[key])
            else:
                known[key] = await store.create(key, value)
            current[key] = value
            states[known[key]] = dict(current)

    loading = asyncio.create_task(load())
    while len(states) < 100:
        await asyncio.sleep(0)
    await asyncio.to_thread(backup.snapshot, data / "state.db", target)
    backup.describe(target, {"version": "1"}, keys(data), SECRET)
    manifest = backup.read_manifest(target)
    done.set()
    await loading
    await store.close()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert b"secret" not in target.read_bytes()

    files = backup.open_files(target, manifest, "correct horse")
    assert files == keys(data)
    begin = backup.restore(target, tmp_path / "new", files, 0.0, mark)
    assert begin == manifest["revision"] + BUMP > max(states)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "new").rglob("*") if p.is_file()} == {0o600}
    again = await opened(tmp_path / "new")
    listing = await again.list("")
    assert listing.revision == begin == await again.revision()
    key, value = mark(begin)
    assert {entry.key: entry.value for entry in listing.entries} == states[manifest["revision"]] | {key: value}
    for seen in (1, manifest["revision"], max(states), begin - 1):
        with pytest.raises(Compacted):
            await anext(again.watch("", after=seen))
    events = again.watch("", after=begin)
    assert await again.create("s/new", b"x") == begin + 1
    assert (await anext(events)).revision == begin + 1
    await again.compact(begin + 1)
    await events.aclose()  # type: ignore[attr-defined]
    await again.close()


@pytest.fixture
async def made(tmp_path: Path) -> Path:
    data, target = tmp_path / "hub", tmp_path / "backup"
    data.mkdir()
    store = await opened(data)
    for number in range(20):
        await store.create(f"s/{number}", b"x" * 4000)
    await store.close()
    backup.snapshot(data / "state.db", target)
    backup.describe(target, {"version": "1"}, keys(data), SECRET)
    return target


async def test_what_is_wrong_with_a_backup_is_said(made: Path, tmp_path: Path) -> None:
    manifest = backup.read_manifest(made)
    assert backup.sealed_with(made) == {"1"}
    with pytest.raises(StoreFailed, match="passphrase does not open"):
        backup.open_files(made, manifest, "another")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").touch()
    with pytest.raises(StoreFailed, match="is not empty"):
        backup.restore(made, tmp_path / "new", {}, 0.0, mark)
    for content in (b"", b"no database", made.read_bytes()[:5000]):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(StoreFailed, match=r"no backup|damaged"):
            backup.read_manifest(tmp_path / "bad")
    torn = bytearray(made.read_bytes())
    torn[8192 : 8192 + 4096] = bytes(4096)
    (tmp_path / "bad").write_bytes(torn)
    with pytest.raises(StoreFailed, match="damaged"):
        backup.read_manifest(tmp_path / "bad")
    with pytest.raises(StoreFailed, match="no backup"):
        backup.read_manifest(tmp_path / "hub" / "state.db")
    db = sqlite3.connect(made)
    db.execute("""UPDATE backup SET value = '{"schema": 99, "version": "9"}' WHERE name = 'manifest'""")
    db.commit()
    db.close()
    with pytest.raises(StoreFailed, match="newer NEMO"):
        backup.read_manifest(made)


async def test_an_interrupted_restore_leaves_nothing_that_looks_whole(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(backup, "_sync_all", lambda paths: (_ for _ in ()).throw(OSError("full")))
        backup.restore(made, tmp_path / "new", {"keys.json": b"{}"}, 0.0, mark)
    assert not (tmp_path / "new").exists()
    backup.restore(made, tmp_path / "new", keys(tmp_path / "hub"), 0.0, mark)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["keys.json", "pki", "state.db"]


def test_the_same_backup_may_be_restored_twice() -> None:
    """What was seen of the first restored hub is older than all that the second says."""
    first = restored_revision(100, 1_800_000_000.0)
    assert restored_revision(100, 1_800_000_060.0) > first + 59 * 100_000
    assert restored_revision(100, 0.0) == 100 + BUMP
    assert restored_revision(first, 1_700_000_000.0) == first + BUMP
