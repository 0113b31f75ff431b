"""What a volume holds at one moment, without its content: entries, and the digests of their blocks. Pure.

Blocks have a fixed length: databases write in place and logs at their end, which leaves all other blocks as they are, and a block
is known by its place. (Content-defined chunks win only where bytes are inserted: docs/adr/0019.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from metaos.trees import MAX_DEPTH

BLOCK_BYTES = 1 << 20
#: What a manifest may say; a volume with more is refused.
MAX_BLOCK_BYTES = 16 << 20
MAX_ENTRIES = 200_000
MAX_BLOCKS = 1 << 20
MAX_ENCODED_BYTES = 128 << 20
MAX_PATH_BYTES, MAX_NAME_BYTES, MAX_TARGET_BYTES = 2048, 255, 4095
MAX_ATTRIBUTE_BYTES = 64 << 10
_FORMAT = 1

Kind = Literal["directory", "file", "link", "hardlink", "fifo"]
_KINDS = ("directory", "file", "link", "hardlink", "fifo")


class HostileManifest(ValueError):
    """It says what no volume of ours says; the message tells which entry and why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a volume. ``path`` is relative, with ``/``; the volume's own directory is ``""``, always first.

    ``owner`` is (uid, gid), ``None`` where it is whoever its site runs as. ``modified`` in nanoseconds since the epoch.
    ``target``: what a link says, or the path of the file that a hard link is another name of. ``blocks``: of a file, one SHA-256
    digest (32 bytes) for each block, ``None`` for zeros; the last one is as long as ``size`` leaves it. ``attributes``:
    ``user.*``, sorted. What a symbolic link says is not looked at: it means something in the container alone."""

    path: str
    kind: Kind
    mode: int = 0
    owner: tuple[int, int] | None = None
    modified: int = 0
    size: int = 0
    target: str = ""
    blocks: tuple[bytes | None, ...] = ()
    attributes: tuple[tuple[str, bytes], ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.path.split("/")) if self.path else ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """``entries`` in the order of their parts, so a directory comes before what is in it."""

    entries: tuple[Entry, ...]
    block_bytes: int = BLOCK_BYTES

    @property
    def size(self) -> int:
        """Bytes of all files, holes included."""
        return sum(entry.size for entry in self.entries)

    @property
    def content_bytes(self) -> int:
        """Bytes of all blocks that are not zeros."""
        return sum(length for _, _, _, length in self.blocks())

    @property
    def digest(self) -> str:
        """Of this state of the volume, in hex."""
        return hashlib.sha256(self.encode()).hexdigest()

    def blocks(self) -> Iterator[tuple[bytes, Entry, int, int]]:
        """(digest, file, offset, length) of every block that is not zeros."""
        for entry in self.entries:
            for number, digest in enumerate(entry.blocks):
                if digest is not None:
                    offset = number * self.block_bytes
                    yield digest, entry, offset, min(self.block_bytes, entry.size - offset)

    def encode(self) -> bytes:
        """Always the same bytes for the same manifest."""
        found = [_encoded(entry) for entry in self.entries]
        said = {"format": _FORMAT, "blockBytes": self.block_bytes, "entries": found}
        return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()

    @staticmethod
    def decode(data: bytes) -> Manifest:
        """Raises :class:`HostileManifest`."""
        if len(data) > MAX_ENCODED_BYTES:
            raise HostileManifest(f"a manifest may have {MAX_ENCODED_BYTES} bytes, this one has {len(data)}")
        try:
            said = json.loads(data)
            if said["format"] != _FORMAT:
                raise HostileManifest(f"format {str(said['format'])[:20]!r} is not known here: this version reads {_FORMAT}")
            manifest = Manifest(tuple(_decoded(entry) for entry in said["entries"]), said["blockBytes"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, HostileManifest):
                raise
            raise HostileManifest(f"this is no manifest: {type(error).__name__} {str(error)[:200]}") from None
        manifest.check()
        return manifest

    def check(self) -> None:
        """Raises :class:`HostileManifest` for what would lead out of a volume, or is no tree."""
        size = self.block_bytes
        if not isinstance(size, int) or not 4096 <= size <= MAX_BLOCK_BYTES or size & (size - 1):
            raise HostileManifest(f"blockBytes {str(size)[:20]} must be a power of two from 4096 to {MAX_BLOCK_BYTES}")
        if not self.entries or self.entries[0].path or self.entries[0].kind != "directory":
            raise HostileManifest("the first entry must be the volume's own directory")
        if len(self.entries) > MAX_ENTRIES:
            raise HostileManifest(f"a volume may have {MAX_ENTRIES} entries, this one has {len(self.entries)}")
        if sum(len(entry.blocks) for entry in self.entries) > MAX_BLOCKS:
            raise HostileManifest(f"a volume may have {MAX_BLOCKS} blocks: take larger ones")
        kinds: dict[str, Kind] = {}
        before: tuple[str, ...] = ()
        for entry in self.entries:
            if why := self._problem(entry, kinds) or ("is out of order" if kinds and entry.parts <= before else ""):
                raise HostileManifest(f"entry {entry.path[:200]!r} {why}")
            kinds[entry.path], before = entry.kind, entry.parts

    def _problem(self, entry: Entry, kinds: dict[str, Kind]) -> str:
        parts = entry.parts
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            return "leads out of its volume"
        if kinds and kinds.get("/".join(parts[:-1])) != "directory":
            return "is in no directory of this volume"
        longest = max((len(_raw(part)) for part in parts), default=0)
        if longest > MAX_NAME_BYTES or len(_raw(entry.path)) > MAX_PATH_BYTES or len(parts) > MAX_DEPTH:
            return f"is too long or too deep: {MAX_PATH_BYTES} bytes, {MAX_NAME_BYTES} in one name, {MAX_DEPTH} levels at most"
        if entry.kind not in _KINDS:
            return f"is of kind {str(entry.kind)[:20]!r}: volumes have {', '.join(_KINDS)}"
        if not 0 <= entry.mode <= 0o7777:
            return f"has mode {entry.mode:o}"
        if entry.owner is not None and not all(0 <= number < 2**32 - 1 for number in entry.owner):
            return "has an owner that cannot be"
        if not -(2**63) <= entry.modified < 2**63 or not 0 <= entry.size < 2**60:
            return "has a time or size that cannot be"
        if entry.kind == "file":
            number = -(-entry.size // self.block_bytes)
            if len(entry.blocks) != number or any(d is not None and len(d) != 32 for d in entry.blocks):
                return "has blocks that are not those of its size"
        elif entry.blocks or entry.size:
            return "is no file and has content"
        if (entry.kind in ("link", "hardlink")) != bool(entry.target) or "\0" in entry.target:
            return "has no target, or one that it cannot have"
        if len(_raw(entry.target)) > MAX_TARGET_BYTES:
            return "has a target that is too long"
        if entry.kind == "hardlink" and kinds.get(entry.target) != "file":
            return f"is another name of {entry.target[:200]!r}, which is no file before it in this volume"
        if any(not word.startswith("user.") or "\0" in word or len(_raw(word)) > MAX_NAME_BYTES for word, _ in entry.attributes):
            return "has an attribute that is not the user's"
        if sum(len(value) for _, value in entry.attributes) > MAX_ATTRIBUTE_BYTES:
            return f"has attributes of more than {MAX_ATTRIBUTE_BYTES} bytes"
        return ""


def changed(manifest: Manifest, known: Mapping[str, Entry]) -> Iterator[tuple[bytes, Entry, int, int]]:
    """As :meth:`Manifest.blocks`: those that ``known`` files (by path, of the same block length) have not at the same place."""
    for digest, entry, offset, length in manifest.blocks():
        old, number = known.get(entry.path), offset // manifest.block_bytes
        if old is None or number >= len(old.blocks) or old.blocks[number] != digest:
            yield digest, entry, offset, length


def _raw(text: str) -> bytes:
    """File names are bytes; those that are not UTF-8 are kept as Python's ``surrogateescape`` does."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise HostileManifest(f"{text[:200]!r} is no file name") from None


def _encoded(entry: Entry) -> dict[str, Any]:
    said: dict[str, Any] = {"path": entry.path, "kind": entry.kind, "mode": entry.mode, "modified": entry.modified}
    if entry.owner is not None:
        said["owner"] = list(entry.owner)
    if entry.kind == "file":
        said |= {"size": entry.size, "blocks": [None if d is None else d.hex() for d in entry.blocks]}
    if entry.target:
        said["target"] = entry.target
    if entry.attributes:
        said["attributes"] = {word: value.hex() for word, value in entry.attributes}
    return said


def _decoded(said: dict[str, Any]) -> Entry:
    """Raises what a wrong type raises."""
    whole = {key: _whole(said.get(key, 0)) for key in ("mode", "modified", "size")}
    owner = said.get("owner")
    uid, gid = (0, 0) if owner is None else map(_whole, owner)
    return Entry(
        path=_text(said["path"]),
        kind=said["kind"],
        mode=whole["mode"],
        owner=None if owner is None else (uid, gid),
        modified=whole["modified"],
        size=whole["size"],
        target=_text(said.get("target", "")),
        blocks=tuple(None if text is None else bytes.fromhex(text) for text in said.get("blocks", ())),
        attributes=tuple(sorted((word, bytes.fromhex(value)) for word, value in said.get("attributes", {}).items())),
    )


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{str(value)[:20]!r} is no whole number")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{str(value)[:20]!r} is no text")
    return value
