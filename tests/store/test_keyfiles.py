"""The keys that hubs share: sealed in the store, the same files at every hub, and one change at a time."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from metaos.store.keyfiles import KEY, KeyFiles
from metaos.store.log import StoreFailed
from metaos.store.memory import MemoryStore
from metaos.store.seal import Keyring, SealedStore


def hub(folder: Path, name: str, **files: bytes) -> Path:
    data = folder / name
    (data / "pki").mkdir(parents=True)
    for file, content in files.items():
        (data / "pki" / f"{file.replace('_', '-')}.pem").write_bytes(content)
    return data


async def joined(store: MemoryStore, data: Path) -> KeyFiles:
    return await KeyFiles.open(store, data, data.parent / "hub.key")


async def test_a_second_hub_has_the_firsts_keys_and_not_its_own(tmp_path: Path) -> None:
    store, one, two = MemoryStore(), hub(tmp_path, "1", ca_1=b"one", server=b"own"), hub(tmp_path, "2", ca_1=b"two", ca_2=b"x")
    await (await joined(store, one)).push()
    entry = await store.get(KEY)
    assert entry is not None and b"one" not in base64.b64decode(entry.value.partition(b'"sealed": "')[2][:-2])
    await joined(store, two)
    assert {path.name: path.read_bytes() for path in (two / "pki").iterdir()} == {"ca-1.pem": b"one"}
    assert (two / "pki" / "ca-1.pem").stat().st_mode & 0o077 == 0 and (tmp_path / "hub.key").stat().st_mode & 0o077 == 0


async def test_of_two_changes_at_a_time_one_counts(tmp_path: Path) -> None:
    store, one, two = MemoryStore(), hub(tmp_path, "1", ca_1=b"one"), hub(tmp_path, "2")
    first = await joined(store, one)
    await first.push()
    second = await joined(store, two)
    (one / "pki" / "ca-2.pem").write_bytes(b"first")
    (two / "pki" / "ca-2.pem").write_bytes(b"second")
    await first.push()
    with pytest.raises(StoreFailed, match="at the same time"):
        await second.push()
    assert (two / "pki" / "ca-2.pem").read_bytes() == b"first"
    (two / "pki" / "ca-1.pem").unlink()
    await second.push()
    changed: list[bool] = []
    first.on_change(lambda: changed.append(True))
    async for event in store.watch("", after=0):
        first.follow(event)
        if event.revision == await store.revision():
            break
    assert changed == [True] and not (one / "pki" / "ca-1.pem").exists()


async def test_a_key_is_known_before_what_it_sealed(tmp_path: Path) -> None:
    """Both hubs follow the log; one rotates, and writes at once."""
    store = MemoryStore()

    async def opened(name: str) -> SealedStore:
        data = hub(tmp_path, name)
        keys = await joined(store, data)
        ring = Keyring.open(data / "keys.json")
        await keys.push()
        ring.reload()
        return SealedStore(store, ring, lambda key: key.startswith("secrets/"), keys)

    one, two = await opened("1"), await opened("2")
    assert one.keys == two.keys
    await one.create("secrets/a", b"a")
    assert await one.rotate() == "2"
    await one.create("secrets/b", b"b")
    found = await two.get("secrets/b")
    assert found is not None and found.value == b"b", "also where it has not yet followed so far"
    three = await opened("3")
    assert await three.rotate() == "3"
    await three.create("secrets/c", b"c")
    values = {}
    async with asyncio.timeout(5):
        async for event in one.watch("", after=0):
            values[event.key] = event.value
            if event.key == "secrets/c":
                break
    assert values["secrets/a"] == b"a" and values["secrets/c"] == b"c" and one.current_key == "3"
    assert await one.drop_unused_keys() == () and set(one.keys) == {"1", "2", "3"}


async def test_who_uses_the_files_is_told_of_new_ones_however_they_are_learned(tmp_path: Path) -> None:
    store = MemoryStore()
    data = hub(tmp_path, "1", ca_1=b"one")
    first = await joined(store, data)
    ring = Keyring.open(data / "keys.json")
    await first.push()
    one = SealedStore(store, ring, lambda key: key.startswith("secrets/"), first)

    async def learns(name: str) -> tuple[SealedStore, list[list[str]]]:
        there = hub(tmp_path, name)
        keys, told = await joined(store, there), list[list[str]]()
        keys.on_change(lambda: told.append(sorted(path.name for path in (there / "pki").iterdir())))
        return SealedStore(store, Keyring.open(there / "keys.json"), lambda key: key.startswith("secrets/"), keys), told

    lists, listed = await learns("2")
    reads, read = await learns("3")
    (data / "pki" / "ca-2.pem").write_bytes(b"two")
    await first.push()
    await lists.list("")
    assert listed == [["ca-1.pem", "ca-2.pem"]]
    await one.rotate()
    await one.create("secrets/a", b"a")
    found = await reads.get("secrets/a")
    assert found is not None and found.value == b"a" and read == [["ca-1.pem", "ca-2.pem"]]


def key_line(n: int) -> str:
    return base64.b64encode(bytes([n]) * 32).decode() + "\n"


def key_file(file: Path, *lines: int) -> Path:
    file.write_text("".join(map(key_line, lines)))
    file.chmod(0o600)
    return file


async def test_hubs_are_given_another_key_one_by_one_and_each_opens_at_every_step(tmp_path: Path) -> None:
    """Both hubs start at every step, in either order, and one is killed between reading and sealing."""
    store, one, two = MemoryStore(), hub(tmp_path, "1", ca_1=b"one"), hub(tmp_path, "2")
    files = key_file(tmp_path / "1.key", 1), key_file(tmp_path / "2.key", 1)

    async def start(which: int) -> KeyFiles:
        keys = await KeyFiles.open(store, (one, two)[which], files[which])
        await keys.push()
        return keys

    await start(0)
    await start(1)
    for step in ((1, 2), (2, 1)):
        for which in (0, 1):
            key_file(files[which], *step)
            await KeyFiles.open(store, (one, two)[which], files[which])  # Killed here.
            running = await start(1 - which)
            await start(which)
            keys = await start(0)
            await keys.replace("pki/ca-1.pem", b"%d%d" % (step[0], which))
            await running.pull()
            await start(1)
            assert (two / "pki/ca-1.pem").read_bytes() == b"%d%d" % (step[0], which)
    before = await store.revision()
    key_file(files[0], 2)
    await start(0)
    assert await store.revision() == before, "nothing is left to be sealed anew"
    with pytest.raises(StoreFailed, match=r"have another hub\.key"):
        await KeyFiles.open(store, one, key_file(tmp_path / "former.key", 1))
    key_file(files[1], 2)
    await start(1)


async def test_a_hub_whose_key_is_the_later_one_opens_what_one_with_the_former_has_sealed_meanwhile(tmp_path: Path) -> None:
    store, one, two = MemoryStore(), hub(tmp_path, "1", ca_1=b"one"), hub(tmp_path, "2")
    former = await KeyFiles.open(store, one, key_file(tmp_path / "1.key", 1, 2))
    await former.push()
    later = await KeyFiles.open(store, two, key_file(tmp_path / "2.key", 2, 1))
    await later.push()
    await former.pull()
    await former.replace("pki/ca-2.pem", b"new")
    await later.pull()
    assert (two / "pki/ca-2.pem").read_bytes() == b"new"
    await later.push()
    await KeyFiles.open(store, two, key_file(tmp_path / "new.key", 2))


async def test_a_state_that_was_moved_here_is_not_given_new_keys(tmp_path: Path) -> None:
    store, moved, empty = MemoryStore(), hub(tmp_path, "1", ca_1=b"one"), hub(tmp_path, "2")
    await store.create("k/a", b"sealed")
    with pytest.raises(StoreFailed, match="start its first hub with the data directory that was moved"):
        await joined(store, empty)
    assert not (tmp_path / "hub.key").exists()
    (moved / "keys.json").write_text("{}")
    await (await joined(store, moved)).push()
    await joined(store, empty)
    assert (empty / "keys.json").exists()


async def test_what_is_wrong_with_the_hubs_key_is_said(tmp_path: Path) -> None:
    store, one = MemoryStore(), hub(tmp_path, "1", ca_1=b"one")
    key = tmp_path / "hub.key"
    await (await joined(store, one)).push()
    with pytest.raises(StoreFailed, match=r"this store has hubs already; copy hub\.key"):
        await KeyFiles.open(store, one, tmp_path / "other.key")
    (tmp_path / "other.key").write_text(base64.b64encode(bytes(32)).decode())
    (tmp_path / "other.key").chmod(0o600)
    with pytest.raises(StoreFailed, match=r"have another hub\.key"):
        await KeyFiles.open(store, one, tmp_path / "other.key")
    key.chmod(0o604)
    with pytest.raises(StoreFailed, match="chmod 600"):
        await joined(store, one)
    for text in ("short", key_line(1) + "short", ""):
        key.write_text(text)
        key.chmod(0o600)
        with pytest.raises(StoreFailed, match="holds no hub key"):
            await joined(store, one)
    key_file(key, 1, 2, 3, 4, 5)
    with pytest.raises(StoreFailed, match="4 are the most"):
        await joined(store, one)
