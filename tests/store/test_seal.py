"""Encryption at rest: nothing readable in the file, keys that rotate, tampering that is seen."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.store.log import Conflict, StoreFailed
from metaos.store.seal import MAGIC, Keyring, SealedStore
from metaos.store.sqlite import SqliteStore

WORD = b"correct horse battery staple"


def is_secret(key: str) -> bool:
    return key.startswith("secrets/")


async def test_sealed_values_are_unreadable_on_disk(tmp_path: Path) -> None:
    inner = await SqliteStore.open(tmp_path / "state.db")
    store = SealedStore(inner, Keyring.open(tmp_path / "keys.json"), is_secret)
    revision = await store.create("secrets/shop/db", WORD)
    await store.update("secrets/shop/db", WORD + b"!", expected=revision)
    await store.create("configmaps/shop/c", b"in the clear")
    raw = await inner.get("secrets/shop/db")
    assert raw and raw.value.startswith(MAGIC) and WORD not in raw.value
    files = b"".join(p.read_bytes() for p in tmp_path.iterdir() if p.is_file())
    assert WORD not in files and b"in the clear" in files
    with pytest.raises(Conflict) as found:
        await store.create("secrets/shop/db", b"")
    assert found.value.current and found.value.current.value == WORD + b"!"
    await store.close()


def test_the_key_file_is_private_and_must_stay_so(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first = Keyring.open(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    sealed = first.seal("k", WORD)
    assert Keyring.open(path).unseal("k", sealed) == WORD
    path.chmod(0o640)
    with pytest.raises(StoreFailed, match="chmod 600"):
        Keyring.open(path)


@pytest.mark.parametrize("content", ["", "{}", '{"current": "1", "keys": {"1": "AAAA"}}', '{"current": "2", "keys": {}}', "[]"])
def test_a_damaged_key_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(StoreFailed, match="not a key file"):
        Keyring.open(path)


@given(st.text(max_size=30), st.binary(max_size=200), st.integers(0, 10_000))
def test_tampering_is_seen(key: str, value: bytes, position: int) -> None:
    ring = Keyring(Path("keys.json"), {"1": bytes(range(32))}, "1")
    sealed = ring.seal(key, value)
    assert ring.unseal(key, sealed) == value
    with pytest.raises(StoreFailed):
        ring.unseal(key + "x", sealed)
    start = len(MAGIC) + 1
    position = start + position % (len(sealed) - start)
    damaged = sealed[:position] + bytes([sealed[position] ^ 1]) + sealed[position + 1 :]
    with pytest.raises(StoreFailed):
        ring.unseal(key, damaged)
    assert ring.unseal(key, b"{}") == b"{}"


async def test_keys_rotate(tmp_path: Path) -> None:
    inner = await SqliteStore.open(tmp_path / "state.db")
    await inner.create("secrets/a", b"before it was sealed")
    ring = Keyring.open(tmp_path / "keys.json")
    store = SealedStore(inner, ring, is_secret)
    for n in range(3):
        await store.create(f"secrets/{n}", b"%d" % n)
    await store.create("pods/p", b"{}")
    assert ring.rotate() == "2"
    assert Keyring.open(tmp_path / "keys.json").current == "2"
    assert [e.value for e in (await store.list("secrets/")).entries] == [b"0", b"1", b"2", b"before it was sealed"]
    assert await store.reseal() == 4
    assert await store.reseal() == 0
    assert await store.keys_in_use() == {"1": True, "2": True}, "history needs the older one"
    assert await store.drop_unused_keys() == ()
    await store.compact(await store.revision())
    assert await store.drop_unused_keys() == ("1",) and Keyring.open(tmp_path / "keys.json").names == ("2",)
    only_new = Keyring(tmp_path / "x", {"2": ring._keys["2"]}, "2")
    entries = (await SealedStore(inner, only_new, is_secret).list("")).entries
    assert [e.value for e in entries] == [b"{}", b"0", b"1", b"2", b"before it was sealed"]
    lost = Keyring(tmp_path / "x", {"1": bytes(32)}, "1")
    with pytest.raises(StoreFailed, match="sealed with key '2'"):
        await SealedStore(inner, lost, is_secret).get("secrets/0")
    await store.close()
