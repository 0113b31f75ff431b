"""The backups of one volume in a store: what lies there is sealed before it leaves, and only what no backup needs goes.

Below ``PREFIX/NAMESPACE/CLAIM/KEY/`` lie ``backups/NAME`` (a sealed manifest each), ``chunks/NAME`` and ``locks/NUMBER``. ``KEY``
is derived from the key: two keys never mix. After a change of the key a new series begins, and the old key opens the old one.

One process at a time writes: it holds the lock with the highest number, which a store hands out once (``If-None-Match``); one
that is too old is passed over. So nothing is swept that a running backup refers to, and what was listed under the lock stays.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from metaos.volumes.chunks import MAX_CHUNK_BYTES, DamagedChunk, MissingChunk, Sealed, checked
from metaos.volumes.manifest import MAX_ENCODED_BYTES, HostileManifest, Manifest
from metaos.volumes.s3 import DAMAGED, REFUSED, Bucket, StoreError

BUSY = "AnotherBackupRuns"
#: A lock that is older is of a process that has ended: each ends by itself before.
LOCK_SECONDS = 7200.0
#: Of one volume and key.
MAX_BACKUPS = 10_000
_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")


def is_backup_name(text: str) -> bool:
    """``20261201T030405Z-SITE``: in the order of their times, by the store's clock."""
    return bool(_NAME.fullmatch(text))


def key_id(key: bytes) -> str:
    """What may be told of a key."""
    return hmac.digest(key, b"nemo volume backups: id", "sha256").hex()[:16]


class StoredChunks:
    """``Chunks`` in a bucket, below a prefix. What is there is listed once, when it is first asked for: nobody else may write or
    delete there meanwhile. An answer of ``put`` counts as durable, as S3 promises it."""

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket, self._prefix = bucket, prefix
        self._known: set[str] | None = None
        self.sent_chunks = self.sent_bytes = 0

    def _present(self) -> set[str]:
        if self._known is None:
            self._known = set(self.list())
        return self._known

    def has(self, names: Collection[str]) -> set[str]:
        return self._present().intersection(map(checked, names))

    def put(self, name: str, data: bytes) -> None:
        self._bucket.put(self._prefix + checked(name), data)
        self.sent_chunks, self.sent_bytes = self.sent_chunks + 1, self.sent_bytes + len(data)
        if self._known is not None:
            self._known.add(name)

    def get(self, name: str) -> bytes:
        found = self._bucket.get(self._prefix + checked(name), MAX_CHUNK_BYTES)
        if found is None:
            raise MissingChunk(f"{self._bucket.name} has no chunk {name}")
        return found

    def list(self) -> Iterator[str]:
        for each in self._bucket.list(self._prefix):
            name = each.key.removeprefix(self._prefix)
            if len(name) == 64 and not set(name) - set("0123456789abcdef"):
                yield name

    def delete(self, name: str) -> None:
        self._bucket.delete(self._prefix + checked(name))
        if self._known is not None:
            self._known.discard(name)


@dataclass(frozen=True, slots=True)
class Kept:
    """A backup that can be read. ``time``: its recovery point, seconds since the epoch; ``consistency``: see ``backing``."""

    name: str
    time: float
    consistency: str
    manifest: Manifest


class Vault:
    """``where``: ``[PREFIX/]NAMESPACE/CLAIM``. ``key``: 32 secret bytes."""

    def __init__(self, bucket: Bucket, where: str, key: bytes) -> None:
        self._bucket, self._where = bucket, where.strip("/")
        self.form, self.key_id = Sealed(key), key_id(key)
        self._base = f"{self._where}/{self.key_id}"
        self.chunks = StoredChunks(bucket, f"{self._base}/chunks/")

    def backups(self) -> list[str]:
        """Names, the oldest first."""
        prefix, found = f"{self._base}/backups/", []
        for each in self._bucket.list(prefix):
            name = each.key.removeprefix(prefix)
            if is_backup_name(name):
                found.append(name)
            if len(found) > MAX_BACKUPS:
                raise StoreError(REFUSED, f"{self._bucket.name} has more than {MAX_BACKUPS} backups in {self._base}: keep fewer")
        return found

    def other_keys(self) -> list[str]:
        """Ids of keys that seal other backups of this volume."""
        prefix = f"{self._where}/"
        parts = (each.key.removeprefix(prefix).split("/") for each in self._bucket.list(prefix))
        return sorted({p[0] for p in parts if len(p) == 3 and p[1] == "backups"} - {self.key_id})

    def read(self, name: str) -> Kept:
        """Raises :class:`StoreError`."""
        sealed = self._bucket.get(f"{self._base}/backups/{name}", MAX_ENCODED_BYTES)
        if sealed is None:
            raise StoreError(DAMAGED, f"{self._bucket.name} has no backup {name} that is sealed with the key {self.key_id}")
        try:
            head, _, manifest = self.form.open(self._label(name), sealed, MAX_ENCODED_BYTES).partition(b"\n")
            said = json.loads(head)
            return Kept(name, float(said["time"]), str(said["consistency"]), Manifest.decode(manifest))
        except (DamagedChunk, HostileManifest, ValueError, KeyError, TypeError) as error:
            text = f"the backup {name} in {self._bucket.name} was damaged or exchanged, and nothing of it is used: {error}"
            raise StoreError(DAMAGED, text) from error

    def write(self, kept: Kept) -> None:
        """The last step of a backup: it is there from then on."""
        head = json.dumps({"time": kept.time, "consistency": kept.consistency}).encode()
        sealed = self.form.seal(self._label(kept.name), head + b"\n" + kept.manifest.encode())
        if not self._bucket.put(f"{self._base}/backups/{kept.name}", sealed, new=True) and self.read(kept.name) != kept:
            raise StoreError(REFUSED, f"{self._bucket.name} has another backup {kept.name} already")

    def remove(self, name: str) -> None:
        self._bucket.delete(f"{self._base}/backups/{name}")

    def sweep(self, backups: Collection[str]) -> int:
        """Deletes every chunk that none of these backups refers to; how many. Only while the lock is held: a manifest that cannot
        be read keeps them all (raises :class:`StoreError`)."""
        needed = {self.form.name(digest) for name in backups for digest, *_ in self.read(name).manifest.blocks()}
        found = [name for name in self.chunks.list() if name not in needed]
        for name in found:
            self.chunks.delete(name)
        return len(found)

    def lacking(self, manifest: Manifest) -> int:
        """How many chunks of a manifest the store does not list, asked anew."""
        present = set(self.chunks.list())
        return len({self.form.name(digest) for digest, *_ in manifest.blocks()} - present)

    @contextmanager
    def locked(self, owner: str, now: float) -> Iterator[None]:
        """``now``: the store's time. A lock of the same ``owner`` is taken over: an owner has one process at a time.
        Raises :class:`StoreError` where another has it, or the store hands one number out twice."""
        prefix = f"{self._base}/locks/"
        numbers = sorted(word for each in self._bucket.list(prefix) if (word := each.key.removeprefix(prefix)).isdecimal())
        last = numbers[-1] if numbers else "0"
        holder, until = _holder(self._bucket.get(prefix + last) if numbers else None)
        if holder not in ("", owner) and until > now:
            raise StoreError(BUSY, f"site {holder} is backing this volume up, or ended in doing so: it is tried again")
        mine = f"{prefix}{int(last) + 1:012d}"
        content = json.dumps({"owner": owner, "until": now + LOCK_SECONDS}).encode()
        if not self._bucket.put(mine, content, new=True):
            raise StoreError(BUSY, "another process began a backup of this volume at the same moment: it is tried again")
        try:
            if self._bucket.put(mine, content, new=True):
                raise StoreError(
                    REFUSED,
                    f"{self._bucket.name} does not know conditional writes (If-None-Match), so two backups could undo each "
                    "other: use a release of it that does",
                )
            yield
        finally:
            self._bucket.put(mine, b"{}")
            for word in numbers:
                self._bucket.delete(prefix + word)

    def _label(self, name: str) -> str:
        """Bound into what is sealed, so that no manifest stands for another volume's, or for another moment."""
        return f"{self._where}/{name}"


def _holder(content: bytes | None) -> tuple[str, float]:
    """(Owner, until when); one that was given back, or makes no sense, holds nothing up."""
    try:
        said = json.loads(content or b"{}")
        return str(said.get("owner") or ""), float(said.get("until") or 0)
    except (ValueError, AttributeError, TypeError):
        return "", 0.0
