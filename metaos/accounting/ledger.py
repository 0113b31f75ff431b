"""A ledger that shows tampering: entries in a hash chain, signed checkpoints over them, receipts that are verified offline.

An entry is a header and lines. Its hash is SHA-256 over its position, the hash of the entry before it, its header and the root of
a Merkle tree (RFC 6962) over its lines. A checkpoint covers the entries since the one before it by the root of a Merkle tree
over their hashes, names the hash of that checkpoint, and is signed with Ed25519. A receipt is some of an entry's lines with the
paths to a checkpoint: it shows who has it nothing of the other lines but how many there are.

Each checkpoint names the key that signs the next one. So trust in one key of a chain is enough: older checkpoints are in the
digests that it signs, later keys are named by it. A key that was replaced need not be kept.

Texts that are hashed are canonical JSON (RFC 8785 for what is allowed here: no fractions, whole numbers below 2^53, ASCII keys).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaos.resources.meta import API_VERSION, format_time

GENESIS = bytes(32)
MAX_DEPTH = 12
_MOST = 2**53 - 1
_HEX = re.compile(r"(?:[0-9a-f]{2})+\Z")
_ENTRY, _CHECKPOINT = b"nemo ledger entry\0", b"nemo ledger checkpoint\0"
Sign = Callable[[bytes], bytes]


class Tampered(ValueError):
    """Something is not what it was. The message says what, and where."""


# -- canonical JSON ----------------------------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    """One byte string for one value. Raises ``ValueError`` for what has none here."""
    _check(value, MAX_DEPTH)
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a text of the ledger must be Unicode without lone surrogates") from None


def _check(value: Any, depth: int) -> None:
    if depth < 0:
        raise ValueError(f"an entry of the ledger must not be nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str) or not key.isascii():
                raise ValueError(f"key {key!r} of a ledger entry must be ASCII text")
            _check(part, depth - 1)
    elif isinstance(value, list | tuple):
        for part in value:
            _check(part, depth - 1)
    elif isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > _MOST:
            raise ValueError(f"{value} does not fit into a ledger entry: write it as text")
    elif value is not None and not isinstance(value, bool | str):
        raise ValueError(f"{value!r} cannot stand in a ledger entry: whole numbers and texts only")


# -- Merkle trees (RFC 6962) -------------------------------------------------------------------------------


def _leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _split(count: int) -> int:
    """The largest power of two below ``count``."""
    return 1 << ((count - 1).bit_length() - 1)


def _root(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    middle = _split(len(leaves))
    return _node(_root(leaves[:middle]), _root(leaves[middle:]))


def merkle_root(data: Sequence[bytes]) -> bytes:
    return _root([_leaf(each) for each in data])


def merkle_paths(data: Sequence[bytes], indexes: Iterable[int]) -> list[list[bytes]]:
    """For each index the hashes by which ``merkle_root`` follows from the data there, from the bottom up. All subtrees are
    hashed once."""
    leaves = [_leaf(each) for each in data]
    known: dict[tuple[int, int], bytes] = {}

    def root(first: int, count: int) -> bytes:
        found = known.get((first, count))
        if found is None:
            middle = _split(count) if count > 1 else 0
            found = _node(root(first, middle), root(first + middle, count - middle)) if middle else leaves[first]
            known[first, count] = found
        return found

    paths = []
    for index in indexes:
        path: list[bytes] = []
        first, count = 0, len(leaves)
        while count > 1:
            middle = _split(count)
            if index < first + middle:
                path.append(root(first + middle, count - middle))
                count = middle
            else:
                path.append(root(first, middle))
                first, count = first + middle, count - middle
        paths.append(path[::-1])
    return paths


def follow(data: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes:
    """The root that a path leads to. Raises ``Tampered`` where it has another length than a tree of ``count`` leaves."""
    if not 0 <= index < count:
        raise Tampered(f"there is no leaf {index} in a tree of {count}")
    sides = []
    while count > 1:
        middle = _split(count)
        sides.append(index < middle)
        index, count = (index, middle) if index < middle else (index - middle, count - middle)
    if len(sides) != len(path):
        raise Tampered(f"a path must have {len(sides)} hashes here, not {len(path)}")
    found = _leaf(data)
    for left, other in zip(reversed(sides), path, strict=True):
        found = _node(found, other) if left else _node(other, found)
    return found


# -- entries and checkpoints -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """One booking. Positions count from 1; ``previous`` is the hash of the entry before."""

    position: int
    previous: bytes
    header: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]

    def digest(self) -> bytes:
        return entry_hash(self.position, self.previous, self.header, merkle_root([canonical(line) for line in self.lines]))


def entry_hash(position: int, previous: bytes, header: Mapping[str, Any], lines_root: bytes) -> bytes:
    about = hashlib.sha256(canonical(header)).digest()
    return hashlib.sha256(_ENTRY + position.to_bytes(8, "big") + previous + about + lines_root).digest()


def verify_chain(entries: Iterable[tuple[Entry, bytes]], position: int = 0, head: bytes = GENESIS) -> tuple[int, bytes]:
    """Follows the chain from after ``position``; the last position and its hash. ``entries`` come with the hashes that the ledger
    has of them. Raises ``Tampered`` naming the first entry that is not what it was."""
    for entry, stored in entries:
        position += 1
        if entry.position != position:
            raise Tampered(f"entry {position} is missing from the ledger: the next one there is {entry.position}")
        if entry.previous != head:
            raise Tampered(f"entry {position} does not follow the one before it: one of both was changed")
        try:
            found = entry.digest()
        except (ValueError, TypeError, AttributeError) as error:
            raise Tampered(f"entry {position} was changed: {error}") from None
        if found != stored:
            raise Tampered(f"entry {position} was changed: it does not have the hash that it was booked with")
        head = stored
    return position, head


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was signed, and the signature."""

    body: Mapping[str, Any]
    signature: bytes

    @property
    def key(self) -> str:
        return str(self.body["key"])

    def digest(self) -> bytes:
        return hashlib.sha256(canonical(self.body)).digest()


def make_checkpoint(
    hashes: Sequence[bytes], first: int, previous: Checkpoint | None, *, now: float, key: str, sign: Sign, next_key: str = ""
) -> Checkpoint:
    """Over the entries from position ``first`` on, whose hashes these are. ``next_key``: that signs the next one, if another."""
    body = {
        "number": int(previous.body["number"]) + 1 if previous else 1,
        "first": first,
        "last": first + len(hashes) - 1,
        "root": merkle_root(hashes).hex(),
        "head": hashes[-1].hex(),
        "previous": previous.digest().hex() if previous else GENESIS.hex(),
        "time": format_time(now),
        "key": key,
        "next": next_key or key,
    }
    return Checkpoint(body, sign(_CHECKPOINT + canonical(body)))


def key_text(public: bytes) -> str:
    """How a public key (32 bytes) is written."""
    return f"ed25519:{public.hex()}"


def verify_checkpoint(checkpoint: Checkpoint, trusted: str = "") -> None:
    """Raises ``Tampered``. Without ``trusted`` it is only shown that whoever has the named key signed it."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key = checkpoint.key
    if trusted and key != trusted:
        raise Tampered(f"it was signed with another key ({key}) than the one that is trusted ({trusted})")
    kind, _, public = key.partition(":")
    if kind != "ed25519" or len(public) != 64:
        raise Tampered(f"key {key[:80]!r} must be 'ed25519:' and 64 hexadecimal digits")
    try:
        verifier = Ed25519PublicKey.from_public_bytes(unhex(public))
        verifier.verify(checkpoint.signature, _CHECKPOINT + canonical(checkpoint.body))
    except InvalidSignature:
        raise Tampered("the checkpoint's signature does not hold: it, or what it signs, was changed") from None


def verify_follows(checkpoint: Checkpoint, before: Checkpoint | None) -> None:
    """That it is signed, with the key and at the place that the one before it says. Raises ``Tampered``."""
    number = checkpoint.body.get("number")
    verify_checkpoint(checkpoint)
    if before is None:
        return
    if checkpoint.body["previous"] != before.digest().hex() or checkpoint.body["first"] != before.body["last"] + 1:
        raise Tampered(f"checkpoint {number} does not follow the one before it")
    if checkpoint.key != before.body["next"]:
        raise Tampered(f"checkpoint {number} was signed with another key ({checkpoint.key}) than the one before it announced")


def verify_covers(checkpoint: Checkpoint, hashes: Sequence[bytes]) -> None:
    """That it signs the entries with these hashes. Raises ``Tampered``."""
    body = checkpoint.body
    if len(hashes) != body["last"] - body["first"] + 1 or merkle_root(hashes).hex() != body["root"]:
        raise Tampered(f"checkpoint {body['number']} signs other entries than those that are there")


def verify_checkpoints(
    checkpoints: Iterable[Checkpoint], hashes: Callable[[int, int], Sequence[bytes]], trusted: str = ""
) -> int:
    """That each follows the one before it and signs the entries that are there (``hashes`` gives those from a position to
    another), and that one of them is signed with the key ``trusted``; how many there were. Raises ``Tampered``."""
    before: Checkpoint | None = None
    count, keys = 0, set()
    for each in checkpoints:
        verify_follows(each, before)
        verify_covers(each, hashes(int(each.body["first"]), int(each.body["last"])))
        before, count = each, count + 1
        keys.add(each.key)
    check_trust(keys, trusted)
    return count


def check_trust(keys: Iterable[str], trusted: str) -> None:
    """Raises ``Tampered`` where ``trusted`` is given and is none of the keys of a chain."""
    found = sorted(keys)
    if trusted and trusted not in found:
        raise Tampered(f"nothing is signed with the key that is trusted ({trusted}), but with {', '.join(found) or 'none'}")


# -- receipts ----------------------------------------------------------------------------------------------


def make_receipt(entry: Entry, indexes: Sequence[int], hashes: Sequence[bytes], checkpoint: Checkpoint) -> dict[str, Any]:
    """Of some lines of an entry; ``hashes``: of the entries that the checkpoint covers."""
    lines = [canonical(line) for line in entry.lines]
    offset = entry.position - int(checkpoint.body["first"])
    return {
        "apiVersion": API_VERSION,
        "kind": "Receipt",
        "entry": {
            "position": entry.position,
            "previous": entry.previous.hex(),
            "header": dict(entry.header),
            "lineCount": len(lines),
            "linesRoot": merkle_root(lines).hex(),
            "path": [each.hex() for each in merkle_paths(hashes, [offset])[0]],
        },
        "lines": [
            {"index": index, "line": dict(entry.lines[index]), "path": [each.hex() for each in path]}
            for index, path in zip(indexes, merkle_paths(lines, indexes), strict=True)
        ],
        "checkpoint": {"body": dict(checkpoint.body), "signature": checkpoint.signature.hex()},
    }


def verify_receipt(receipt: Any, trusted: str = "") -> str:
    """The key it was signed with. Raises ``Tampered`` saying what is wrong. Needs nothing but the receipt."""
    try:
        exact_keys(receipt, {"apiVersion", "kind", "entry", "lines", "checkpoint"}, "the receipt")
        if (receipt["apiVersion"], receipt["kind"]) != (API_VERSION, "Receipt"):
            raise Tampered(f"it must be of 'apiVersion: {API_VERSION}', 'kind: Receipt'")
        entry, signed = receipt["entry"], receipt["checkpoint"]
        exact_keys(entry, {"position", "previous", "header", "lineCount", "linesRoot", "path"}, "entry")
        exact_keys(signed, {"body", "signature"}, "checkpoint")
        checkpoint = Checkpoint(signed["body"], unhex(signed["signature"]))
        verify_checkpoint(checkpoint, trusted)
        lines_root = unhex(entry["linesRoot"])
        for each in receipt["lines"]:
            exact_keys(each, {"index", "line", "path"}, "a line")
            path = [unhex(step) for step in each["path"]]
            if follow(canonical(each["line"]), _number(each["index"]), _number(entry["lineCount"]), path) != lines_root:
                raise Tampered(f"line {each['index']} is not one of the entry: it was changed")
        if not entry["lineCount"] and lines_root != merkle_root([]):
            raise Tampered("the entry's lines are not those that were booked")
        digest = entry_hash(_number(entry["position"]), unhex(entry["previous"]), entry["header"], lines_root)
        first, last = _number(checkpoint.body["first"]), _number(checkpoint.body["last"])
        path = [unhex(step) for step in entry["path"]]
        if follow(digest, entry["position"] - first, last - first + 1, path).hex() != checkpoint.body["root"]:
            raise Tampered(f"entry {entry['position']} is not one that the checkpoint signs: it was changed")
    except Tampered:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Tampered(f"it is no receipt, or a part of it was changed: {error}") from None
    return checkpoint.key


def exact_keys(value: Any, wanted: set[str], what: str) -> None:
    if not isinstance(value, dict) or value.keys() != wanted:
        raise Tampered(f"{what} must have the fields {', '.join(sorted(wanted))} and no others")


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        raise Tampered(f"{str(value)[:80]!r} must be a whole number")
    return value


def unhex(text: Any) -> bytes:
    """Lower-case hexadecimal digits only: one text for one value. Raises ``Tampered``."""
    if not isinstance(text, str) or (text and not _HEX.match(text)):
        raise Tampered(f"{str(text)[:80]!r} must be lower-case hexadecimal digits")
    return bytes.fromhex(text)
