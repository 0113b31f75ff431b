"""Random trees come back as they were; any flipped byte is found; what is hostile is refused."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.volumes import (
    Assembly,
    DamagedChunk,
    DirectoryChunks,
    Entry,
    HostileManifest,
    Manifest,
    Plain,
    Sealed,
    Unsettled,
    Unsupported,
    fetcher,
    restore,
    save,
    scan,
)

BLOCK = 4096
_NAMES = st.sampled_from(["a", "b", "c.log", "ü", "d e", "\udcff"])
_CONTENT = st.lists(
    st.tuples(st.sampled_from([0, 1, 100, BLOCK, 2 * BLOCK]), st.sampled_from([b"\0", b"x", b"y"])), max_size=4
).map(lambda parts: b"".join(byte * size for size, byte in parts))
_LEAF = st.one_of(
    st.tuples(st.just("file"), _CONTENT, st.sampled_from([0o600, 0o644, 0o4755, 0o000])),
    st.tuples(st.just("link"), st.sampled_from(["a", "../..", "/etc/passwd", "nowhere"])),
    st.just(("fifo",)),
    st.tuples(st.just("hardlink"), st.integers(0, 5)),
)
_TREES: Any = st.recursive(
    st.dictionaries(_NAMES, _LEAF, max_size=4),
    lambda below: st.dictionaries(_NAMES, st.one_of(_LEAF, below), max_size=4),
    max_leaves=8,
)


@contextmanager
def _directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="nemo-volumes-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _build(root: Path, tree: dict[str, Any], files: list[Path], time: int = 10**18) -> None:
    root.mkdir()
    for name, what in tree.items():
        path = root / name
        if isinstance(what, dict):
            _build(path, what, files, time)
        elif what[0] == "file":
            path.write_bytes(what[1])
            path.chmod(what[2])
            files.append(path)
        elif what[0] == "link":
            path.symlink_to(what[1])
        elif what[0] == "fifo":
            os.mkfifo(path, 0o620)
        elif files:
            os.link(files[what[1] % len(files)], path)
        if os.path.lexists(path):
            os.utime(path, ns=(time, time), follow_symlinks=False)
    root.chmod(0o750)
    os.utime(root, ns=(time, time))


def _seen(root: Path) -> dict[str, Any]:
    """What an onlooker sees, by means of his own."""
    found: dict[str, Any] = {}
    inodes: dict[int, int] = {}
    for path in sorted([root, *root.rglob("*")]):
        about = path.lstat()
        what: Any = None
        if stat.S_ISREG(about.st_mode):
            what = (path.read_bytes(), inodes.setdefault(about.st_ino, len(inodes)))
        elif stat.S_ISLNK(about.st_mode):
            what = os.readlink(path)
        found[str(path.relative_to(root))] = (about.st_mode, about.st_mtime_ns, what)
    return found


@given(_TREES, st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_tree_comes_back_as_it_was(tree: dict[str, Any], sealed: bool) -> None:
    with _directory() as place:
        _build(place / "from", tree, [])
        chunks, form = DirectoryChunks(place / "chunks"), Sealed(bytes(32)) if sealed else Plain()
        snapshot = save(place / "from", 2e9, chunks, form, block_bytes=BLOCK)
        manifest = Manifest.decode(snapshot.manifest.encode())
        assert manifest == snapshot.manifest
        restore(manifest, fetcher(chunks, form), place / "to")
        assert _seen(place / "to") == _seen(place / "from")
        assert scan(place / "to", 2e9, block_bytes=BLOCK).manifest.digest == manifest.digest


@given(_TREES, _TREES, _TREES)
@settings(max_examples=25, deadline=None)
def test_one_state_after_the_other(first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]) -> None:
    with _directory() as place:
        assembly = Assembly(place / "to")
        for number, tree in enumerate((first, second, third)):
            source = place / f"from{number}"
            _build(source, tree, [], 10**18 + number)
            blocks: dict[bytes, bytes] = {}
            manifest = scan(source, 2e9, seen=blocks.__setitem__, block_bytes=BLOCK).manifest
            missing = assembly.missing(manifest)
            fetched: list[bytes] = []

            def fetch(digest: bytes, blocks: dict[bytes, bytes] = blocks, fetched: list[bytes] = fetched) -> bytes:
                fetched.append(digest)
                return blocks[digest]

            assembly.apply(manifest, fetch)
            assert fetched == [digest for digest, _ in missing]
            assert _seen(place / "to") == _seen(source)
            assert assembly.missing(manifest) == []


@given(_TREES, _TREES, st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_a_transfer_that_breaks_goes_on(first: dict[str, Any], second: dict[str, Any], after: int) -> None:
    with _directory() as place:
        for number, tree in enumerate((first, second)):
            _build(place / f"from{number}", tree, [], 10**18 + number)
        blocks: dict[bytes, bytes] = {}
        states = [scan(place / f"from{n}", 2e9, seen=blocks.__setitem__, block_bytes=1 << 20).manifest for n in range(2)]
        assembly = Assembly(place / "to")
        assembly.apply(states[0], blocks.__getitem__)
        left = after

        def breaking(digest: bytes) -> bytes:
            nonlocal left
            left -= 1
            if left < 0:
                raise ConnectionError("the line broke")
            return blocks[digest]

        try:
            assembly.apply(states[1], breaking)
        except ConnectionError:
            again = Assembly(place / "to")  # the process, too, begins anew
            assert len(again.missing(states[1])) <= len(list(states[1].blocks()))
            again.apply(states[1], blocks.__getitem__)
        assert _seen(place / "to") == _seen(place / "from1")


@given(st.data(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_flipped_byte_is_found(data: st.DataObject, sealed: bool) -> None:
    with _directory() as place:
        _build(place / "from", {"a": ("file", b"x" * 5000 + bytes(range(256)), 0o600), "b": ("file", b"hello", 0o600)}, [])
        chunks, form = DirectoryChunks(place / "chunks"), Sealed(bytes(range(32))) if sealed else Plain()
        manifest = save(place / "from", 2e9, chunks, form, block_bytes=BLOCK).manifest
        name = data.draw(st.sampled_from(sorted(chunks.list())))
        stored = bytearray(chunks.get(name))
        place_of = data.draw(st.integers(0, len(stored) - 1))
        stored[place_of] ^= 1 << data.draw(st.integers(0, 7))
        (place / "chunks" / name[:2] / name).write_bytes(bytes(stored))
        try:
            restore(manifest, fetcher(chunks, form), place / "to")
        except DamagedChunk:
            assert not os.path.lexists(place / "to")
        else:
            # Zstandard's frame has bits that mean nothing; the content is what counts.
            assert not sealed
            assert _seen(place / "to") == _seen(place / "from")


def test_only_what_was_touched_is_read_again(tmp_path: Path) -> None:
    root = tmp_path / "v"
    root.mkdir()
    for number in range(4):
        (root / str(number)).write_bytes(bytes([number + 1]) * BLOCK * 4)
    later = max(p.stat().st_ctime for p in root.iterdir()) + 10
    first = scan(root, later, block_bytes=BLOCK)
    assert first.read_bytes == 16 * BLOCK
    with (root / "2").open("r+b") as file:
        file.seek(BLOCK)
        file.write(b"other")
    second = scan(root, later, before=first, block_bytes=BLOCK)
    assert second.read_bytes == 4 * BLOCK
    assert second.manifest == scan(root, later, block_bytes=BLOCK).manifest
    # Touched just before the look began: times may not tell what comes after.
    assert scan(root, later, before=scan(root, later - 10, block_bytes=BLOCK), block_bytes=BLOCK).read_bytes == 16 * BLOCK


def test_a_store_that_has_lost_a_chunk_gets_it_again(tmp_path: Path) -> None:
    root = tmp_path / "v"
    root.mkdir()
    (root / "a").write_bytes(b"x" * BLOCK)
    chunks = DirectoryChunks(tmp_path / "chunks")
    later = (root / "a").stat().st_ctime + 10
    first = save(root, later, chunks, Plain(), block_bytes=BLOCK)
    chunks.delete(next(chunks.list()))
    second = save(root, later, chunks, Plain(), before=first, block_bytes=BLOCK)
    restore(second.manifest, fetcher(chunks, Plain()), tmp_path / "to")
    assert (tmp_path / "to" / "a").read_bytes() == b"x" * BLOCK


def test_holes_stay_holes(tmp_path: Path) -> None:
    root = tmp_path / "v"
    root.mkdir()
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(b"in the middle")
    snapshot = scan(root, 2e9)
    assert snapshot.read_bytes <= 2 << 20
    assert (snapshot.manifest.size, snapshot.manifest.content_bytes) == (1 << 30, 1 << 20)
    chunks = DirectoryChunks(tmp_path / "chunks")
    save(root, 2e9, chunks, Plain())
    restore(snapshot.manifest, fetcher(chunks, Plain()), tmp_path / "to")
    assert (tmp_path / "to" / "sparse").stat().st_blocks * 512 <= 2 << 20
    assert (tmp_path / "to" / "sparse").stat().st_size == 1 << 30


def test_a_recycled_file_is_not_sent_again(tmp_path: Path) -> None:
    root = tmp_path / "v"
    root.mkdir()
    (root / "log").write_bytes(b"x" * BLOCK)
    blocks: dict[bytes, bytes] = {}
    assembly = Assembly(tmp_path / "to")
    assembly.apply(scan(root, 2e9, seen=blocks.__setitem__).manifest, blocks.__getitem__)
    (root / "log").rename(root / "log.1")
    (root / "log").write_bytes(b"new")
    manifest = scan(root, 2e9, seen=blocks.__setitem__).manifest
    assert [length for _, length in assembly.missing(manifest)] == [3]
    assembly.apply(manifest, blocks.__getitem__)
    assert _seen(tmp_path / "to") == _seen(root)


def test_what_is_not_to_be_had_now_is_missing_later(tmp_path: Path) -> None:
    root = tmp_path / "v"
    root.mkdir()
    (root / "a").write_bytes(b"x" * BLOCK + b"y" * BLOCK)
    blocks: dict[bytes, bytes] = {}
    manifest = scan(root, 2e9, seen=blocks.__setitem__, block_bytes=BLOCK).manifest
    first, assembly = manifest.entries[1].blocks[0], Assembly(tmp_path / "to")
    assembly.apply(manifest, lambda digest: None if digest == first else blocks[digest])
    assert assembly.missing(manifest) == [(first, BLOCK)]
    assembly.apply(manifest, blocks.__getitem__)
    assert assembly.missing(manifest) == []
    assert _seen(tmp_path / "to") == _seen(root)


def test_what_is_written_while_it_is_read_is_named(tmp_path: Path) -> None:
    root = tmp_path / "v"
    root.mkdir()
    (root / "a").write_bytes(b"x" * BLOCK * 3)

    def grow(digest: bytes, data: bytes) -> None:
        with (root / "a").open("ab") as file:
            file.write(b"more")

    assert scan(root, 2e9, live=True, seen=grow, block_bytes=BLOCK).unsettled == ("a",)
    with pytest.raises(Unsettled, match="'a' changed"):
        scan(root, 2e9, seen=grow, block_bytes=BLOCK)


def test_attributes_come_along(tmp_path: Path) -> None:
    root = tmp_path / "v"
    root.mkdir()
    (root / "a").write_bytes(b"x")
    try:
        os.setxattr(root / "a", "user.colour", b"blue")
    except OSError:
        pytest.skip("this file system keeps no attributes of users")
    chunks = DirectoryChunks(tmp_path / "chunks")
    restore(save(root, 2e9, chunks, Plain()).manifest, fetcher(chunks, Plain()), tmp_path / "to")
    assert os.getxattr(tmp_path / "to" / "a", "user.colour") == b"blue"


def test_devices_are_refused_and_sockets_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    root = tmp_path / "v"
    root.mkdir()
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        assert [entry.path for entry in scan(root, 2e9).manifest.entries] == [""]
    if os.geteuid() != 0:
        return
    try:
        os.mknod(root / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        return
    with pytest.raises(Unsupported, match="'null' is a device"):
        scan(root, 2e9)


ROOT = Entry("", "directory", 0o755)
X = bytes(32)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ((), "the volume's own directory"),
        ((Entry("a", "directory"),), "the volume's own directory"),
        ((ROOT, Entry("..", "file")), "leads out"),
        ((ROOT, Entry("../a", "file")), "leads out"),
        ((ROOT, Entry("/etc/passwd", "file")), "leads out"),
        ((ROOT, Entry("a/./b", "file")), "leads out"),
        ((ROOT, Entry("a\0b", "file")), "leads out"),
        ((ROOT, Entry("a", "link", target="/etc"), Entry("a/passwd", "file")), "in no directory"),
        ((ROOT, Entry("a", "file"), Entry("a/b", "file")), "in no directory"),
        ((ROOT, Entry("b", "file"), Entry("a", "file")), "out of order"),
        ((ROOT, Entry("a", "file"), Entry("a", "file")), "out of order"),
        ((ROOT, Entry("a", "device")), "of kind 'device'"),  # type: ignore[arg-type]
        ((ROOT, Entry("a", "hardlink", target="../../etc/passwd")), "no file before it"),
        ((ROOT, Entry("a", "link", target="/etc/passwd"), Entry("b", "hardlink", target="a")), "no file before it"),
        ((ROOT, Entry("a", "link")), "no target"),
        ((ROOT, Entry("a", "file", size=1)), "not those of its size"),
        ((ROOT, Entry("a", "file", blocks=(X,))), "not those of its size"),
        ((ROOT, Entry("a", "file", size=1, blocks=(b"short",))), "not those of its size"),
        ((ROOT, Entry("a", "link", target="b" * 5000)), "target that is too long"),
        ((ROOT, Entry("a", "file", mode=0o170000)), "has mode"),
        ((ROOT, Entry("a", "file", owner=(-1, 0))), "owner"),
        ((ROOT, Entry("a", "file", size=2**60)), "cannot be"),
        ((ROOT, Entry("a" * 256, "file")), "too long"),
        ((ROOT, Entry("a", "file", attributes=(("security.capability", b"x"),))), "not the user's"),
    ],
)
def test_a_hostile_manifest_is_refused(entries: tuple[Entry, ...], why: str, tmp_path: Path) -> None:
    manifest = Manifest(entries)
    with pytest.raises(HostileManifest, match=why):
        Manifest.decode(manifest.encode())
    with pytest.raises(HostileManifest, match=why):
        restore(manifest, lambda digest: b"x", tmp_path / "to")
    assert not list(tmp_path.iterdir())


@given(st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
@settings(max_examples=50, deadline=None)
def test_noise_is_no_manifest(noise: bytes) -> None:
    with pytest.raises(HostileManifest):
        Manifest.decode(noise)


@pytest.mark.parametrize("field", ["mode", "modified", "size", "path", "kind", "target", "owner", "blocks", "attributes"])
@pytest.mark.parametrize("value", [None, True, 1.5, "x", [], {}, [1], {"a": 1}, 2**70])
def test_fields_of_the_wrong_type(field: str, value: Any) -> None:
    import json

    said = json.loads(
        Manifest((ROOT, Entry("a", "file", 0o600, (1, 1), 0, 1, blocks=(X,), attributes=(("user.a", b"x"),)))).encode()
    )
    if said["entries"][1].get(field) == value:
        return
    said["entries"][1][field] = value
    try:
        Manifest.decode(json.dumps(said).encode())
    except HostileManifest:
        return
    assert (field, value) in (("owner", None), ("attributes", {}), ("path", "x"), ("target", "")), (
        "taken though it is of the wrong type"
    )


def test_keys_decide(tmp_path: Path) -> None:
    one, other = Sealed(bytes(32)), Sealed(bytes([1]) * 32)
    block, digest = b"secret" * 100, __import__("hashlib").sha256(b"secret" * 100).digest()
    assert one.name(digest) != other.name(digest) != digest.hex()
    assert one.wrap(digest, block) == one.wrap(digest, block)
    with pytest.raises(DamagedChunk):
        other.unwrap(digest, one.wrap(digest, block))
    sealed = one.seal("manifest of a", b"{}")
    assert one.open("manifest of a", sealed, 2) == b"{}"
    for form, label, limit in ((other, "manifest of a", 2), (one, "manifest of b", 2), (one, "manifest of a", 1)):
        with pytest.raises(DamagedChunk):
            form.open(label, sealed, limit)
    with pytest.raises(ValueError, match="32"):
        Sealed(b"short")


def test_what_would_become_huge_is_damage() -> None:
    from backports import zstd

    bomb = zstd.compress(bytes(64 << 20), 1)
    with pytest.raises(DamagedChunk):
        Plain().unwrap(bytes(32), b"\x01" + bomb)
