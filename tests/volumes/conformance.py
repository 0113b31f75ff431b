"""What every store of chunks has to do. A test module imports these tests and gives a fixture ``chunks``: an empty store."""

from __future__ import annotations

import hashlib

import pytest

from metaos.volumes import Chunks, MissingChunk


def _name(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_what_was_put_is_there(chunks: Chunks) -> None:
    chunks.put(_name(1), b"one")
    assert chunks.get(_name(1)) == b"one"
    assert chunks.has((_name(1), _name(2))) == {_name(1)}


def test_an_empty_store_has_nothing(chunks: Chunks) -> None:
    assert list(chunks.list()) == []
    assert chunks.has(()) == set()
    assert chunks.has((_name(1),)) == set()


def test_a_missing_chunk_says_so(chunks: Chunks) -> None:
    with pytest.raises(MissingChunk, match=_name(1)):
        chunks.get(_name(1))


def test_putting_twice_is_once(chunks: Chunks) -> None:
    for _ in range(2):
        chunks.put(_name(1), b"one")
    assert list(chunks.list()) == [_name(1)]


def test_all_are_listed(chunks: Chunks) -> None:
    names = {_name(number) for number in range(40)}
    for name in names:
        chunks.put(name, name.encode())
    assert sorted(chunks.list()) == sorted(names)
    assert chunks.has(names) == names


def test_what_was_deleted_is_gone(chunks: Chunks) -> None:
    chunks.put(_name(1), b"one")
    chunks.put(_name(2), b"two")
    chunks.delete(_name(1))
    chunks.delete(_name(1))
    assert list(chunks.list()) == [_name(2)]
    assert chunks.has((_name(1),)) == set()


def test_large_and_binary_content(chunks: Chunks) -> None:
    content = bytes(range(256)) * 8192
    chunks.put(_name(1), content)
    chunks.put(_name(2), b"")
    assert chunks.get(_name(1)) == content
    assert chunks.get(_name(2)) == b""


@pytest.mark.parametrize("name", ["", "..", "../" + _name(1), _name(1).upper(), _name(1)[:-1], _name(1) + "\n", "/etc/passwd"])
def test_what_is_no_name_is_refused(chunks: Chunks, name: str) -> None:
    for act in (
        lambda: chunks.put(name, b""),
        lambda: chunks.get(name),
        lambda: chunks.has((name,)),
        lambda: chunks.delete(name),
    ):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            act()
