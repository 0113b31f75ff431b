"""A ledger as text, and its verification without the hub: one JSON document a line. Pure.

First ``{"ledger": …}``: which entry is the first, and the hash of the one before it; where something was cut off before, the
checkpoint that signs it follows. Then the entries in order, each checkpoint behind the last entry that it signs, and
``{"end": …}``: without it the text was cut short. Lines are read one by one, so a ledger of any length takes little memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from metaos.accounting.ledger import (
    GENESIS,
    Checkpoint,
    Entry,
    Tampered,
    check_trust,
    exact_keys,
    unhex,
    verify_chain,
    verify_covers,
    verify_follows,
)
from metaos.resources.meta import API_VERSION

#: Entries that one checkpoint signs; their hashes are held until it comes.
MAX_COVERED = 100_000
_FIELDS = {
    "ledger": {"apiVersion", "first", "previous"},
    "entry": {"position", "previous", "hash", "header", "lines"},
    "checkpoint": {"body", "signature"},
    "end": {"last", "head", "checkpoint"},
}


def ledger_line(first: int, previous: bytes) -> dict[str, Any]:
    return {"ledger": {"apiVersion": API_VERSION, "first": first, "previous": previous.hex()}}


def entry_line(entry: Entry, digest: bytes) -> dict[str, Any]:
    about = {"position": entry.position, "previous": entry.previous.hex(), "hash": digest.hex()}
    return {"entry": {**about, "header": dict(entry.header), "lines": [dict(line) for line in entry.lines]}}


def checkpoint_line(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"checkpoint": {"body": dict(checkpoint.body), "signature": checkpoint.signature.hex()}}


def end_line(last: int, head: bytes, checkpoint: int) -> dict[str, Any]:
    """``checkpoint``: the number of the last one that is told; 0: none."""
    return {"end": {"last": last, "head": head.hex(), "checkpoint": checkpoint}}


@dataclass(slots=True)
class Verified:
    """What was found good: entries ``first`` to ``last``, of them up to ``signed`` signed with ``keys``."""

    first: int = 1
    last: int = 0
    head: bytes = GENESIS
    lines: int = 0
    checkpoint: Checkpoint | None = None
    checkpoints: int = 0
    keys: list[str] = field(default_factory=list)

    @property
    def signed(self) -> int:
        return int(self.checkpoint.body["last"]) if self.checkpoint else self.first - 1


def entries(texts: Iterable[str | bytes], trusted: str = "") -> Iterator[tuple[Verified, Entry | None]]:
    """Each entry once it was found to follow the one before it, and what is known by then; last the whole, with ``None``.

    Raises ``Tampered`` naming the entry or checkpoint that is not what it was, or the line that is none."""
    found = Verified()
    hashes: list[bytes] = []
    begun = ended = False
    for at, text in enumerate(texts, 1):
        what, said = _document(text, at)
        if ended or begun == (what == "ledger"):
            raise Tampered(f"line {at}: {what!r} does not stand there")
        try:
            exact_keys(said, _FIELDS[what], f"line {at}")
            if what == "ledger":
                begun = True
                if said["apiVersion"] != API_VERSION:
                    raise Tampered(f"line {at}: apiVersion {str(said['apiVersion'])[:80]!r} must be {API_VERSION}")
                found.first, found.head = int(said["first"]), unhex(said["previous"])
                found.last = found.first - 1
                if found.first < 1 or (found.first == 1 and found.head != GENESIS):
                    raise Tampered("a ledger begins with entry 1 and no hash before it, or at a cut")
            elif what == "entry":
                entry = Entry(int(said["position"]), unhex(said["previous"]), said["header"], said["lines"])
                digest = unhex(said["hash"])
                found.last, found.head = verify_chain([(entry, digest)], found.last, found.head)
                found.lines += len(entry.lines)
                hashes.append(digest)
                if len(hashes) > MAX_COVERED:
                    raise Tampered(f"more than {MAX_COVERED} entries are behind one another without a checkpoint")
                yield found, entry
            elif what == "checkpoint":
                checkpoint = Checkpoint(said["body"], unhex(said["signature"]))
                _take(found, checkpoint, hashes)
                hashes = []
            else:
                ended = True
                number = found.checkpoint.body["number"] if found.checkpoint else 0
                if (said["last"], unhex(said["head"]), said["checkpoint"]) != (found.last, found.head, number):
                    told = f"entry {said['last']} and checkpoint {said['checkpoint']}"
                    raise Tampered(f"it ends with entry {found.last} and checkpoint {number}, and should with {told}")
        except Tampered:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Tampered(f"line {at}: it was changed: {error}") from None
    if not ended:
        raise Tampered("the text is not whole: its last line is missing")
    check_trust(found.keys, trusted)
    yield found, None


def verify(texts: Iterable[str | bytes], trusted: str = "") -> Verified:
    """All of it. Raises ``Tampered``."""
    found = Verified()
    for found, _ in entries(texts, trusted):  # noqa: B007
        pass
    return found


def _take(found: Verified, checkpoint: Checkpoint, hashes: list[bytes]) -> None:
    verify_follows(checkpoint, found.checkpoint)
    body = checkpoint.body
    if not found.checkpoints and not hashes and found.first > 1:
        # What lies before a cut is not here; its checkpoint says which hash it ended with.
        if body["last"] != found.first - 1 or body["head"] != found.head.hex():
            raise Tampered(f"checkpoint {body['number']} does not sign what lies before entry {found.first}")
    else:
        if body["first"] != found.last - len(hashes) + 1:
            raise Tampered(f"checkpoint {body['number']} does not sign the entries before it")
        verify_covers(checkpoint, hashes)
    found.checkpoint, found.checkpoints = checkpoint, found.checkpoints + 1
    if checkpoint.key not in found.keys:
        found.keys.append(checkpoint.key)


def _document(text: str | bytes, number: int) -> tuple[str, Mapping[str, Any]]:
    try:
        said = json.loads(text)
        ((what, inner),) = said.items()
    except (ValueError, AttributeError):
        raise Tampered(f"line {number}: it is no line of a ledger") from None
    if what not in _FIELDS or not isinstance(inner, dict):
        raise Tampered(f"line {number}: it is no line of a ledger")
    return what, inner
