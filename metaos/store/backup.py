"""A backup: one SQLite file with everything as of one revision and, where a passphrase was given, the keys.

The file is a store of its own with one table more, ``backup``: ``manifest`` (JSON: which NEMO, which revision, which files, how
the passphrase was stretched) and ``files`` (key files, sealed with AES-256-GCM under the stretched passphrase). Values that
are sealed in the store stay so. Without the keys nobody reads a Secret in it, its owner neither.

Restoring makes a data directory of it whose revisions begin far above the old ones and whose history is forgotten, as
``etcdutl snapshot restore --bump-revision --mark-compacted`` does: whoever had seen more than the backup holds is told to list
again, and no revision is ever given to two writes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaos.files import make_private, sync_directory, write_private
from metaos.store.file import APPLICATION_ID, HEADS, MIGRATIONS, bounds
from metaos.store.log import StoreFailed, StoreFull, restored_revision
from metaos.store.seal import MAGIC, MOST_NAME, key_id

_SCRYPT = {"n": 1 << 15, "r": 8, "p": 1}
_ABOUT = b"nemo backup"

Entropy = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Stretched:
    """A passphrase, stretched by scrypt (RFC 7914) into a key; ``salt`` makes the same key again."""

    key: bytes
    salt: bytes

    @classmethod
    def of(cls, passphrase: str, salt: bytes) -> Stretched:
        key = hashlib.scrypt(passphrase.encode(), salt=salt, maxmem=1 << 27, dklen=32, **_SCRYPT)
        return cls(key, salt)


def snapshot(state: Path, target: Path) -> None:
    """Copies the state as of one revision to the new file ``target``, also while a hub runs on it. Raises ``StoreFailed``."""
    target.unlink(missing_ok=True)
    target.touch(0o600)
    try:
        with closing(sqlite3.connect(f"{state.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None)) as db:
            db.execute("VACUUM INTO ?", (str(target),))
    except sqlite3.Error as error:
        target.unlink()
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StoreFull("no space is left for a backup beside the store: free some on its disk, and try again") from error
        raise StoreFailed(f"{state} cannot be backed up: {error}") from error


def describe(
    backup: Path, about: Mapping[str, Any], files: Mapping[str, bytes], secret: Stretched | None, entropy: Entropy = os.urandom
) -> None:
    """Writes into a fresh snapshot what it is and, sealed, ``files`` (path → content); without a secret none goes in."""
    with closing(sqlite3.connect(backup, isolation_level=None)) as db:
        manifest = {**about, "revision": bounds(db)[1], "schema": len(MIGRATIONS), "files": sorted(files) if secret else []}
        db.execute("CREATE TABLE backup (name TEXT PRIMARY KEY, value BLOB NOT NULL)")
        if secret is not None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            manifest["scrypt"] = {**_SCRYPT, "salt": base64.b64encode(secret.salt).decode()}
            nonce = entropy(12)
            content = json.dumps({name: base64.b64encode(data).decode() for name, data in files.items()}).encode()
            db.execute("INSERT INTO backup VALUES ('files', ?)", (nonce + AESGCM(secret.key).encrypt(nonce, content, _ABOUT),))
        db.execute("INSERT INTO backup VALUES ('manifest', ?)", (json.dumps(manifest),))


def read_manifest(backup: Path) -> dict[str, Any]:
    """What a backup says of itself, after its file was found whole. Raises ``StoreFailed``."""
    try:
        with closing(sqlite3.connect(f"{backup.resolve().as_uri()}?mode=ro", uri=True)) as db:
            (application,) = db.execute("PRAGMA application_id").fetchone()
            row = db.execute("SELECT value FROM backup WHERE name = 'manifest'").fetchone()
            if application != APPLICATION_ID or row is None:
                raise StoreFailed(f"{backup} is no backup made by 'nemo backup'")
            (damage,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if damage != "ok":
                raise StoreFailed(f"{backup} is damaged ({damage}): take another copy")
            manifest: dict[str, Any] = json.loads(row[0])
    except (sqlite3.Error, ValueError) as error:
        raise StoreFailed(f"{backup} is no backup made by 'nemo backup', or it is damaged: {error}") from error
    if int(manifest.get("schema") or 0) > len(MIGRATIONS):
        raise StoreFailed(f"{backup} was made by a newer NEMO ({manifest.get('version')}): install that release or newer")
    return manifest


def sealed_with(backup: Path) -> set[str]:
    """The ids of the keys without which some of its values cannot be read."""
    size = len(MAGIC) + 1 + MOST_NAME
    with closing(sqlite3.connect(f"{backup.resolve().as_uri()}?mode=ro", uri=True)) as db:
        return {key_id(bytes(row[0])) for row in db.execute(HEADS, (size, len(MAGIC), MAGIC))}


def open_files(backup: Path, manifest: Mapping[str, Any], passphrase: str) -> dict[str, bytes]:
    """The key files in it. Raises ``StoreFailed`` where the passphrase is another."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    with closing(sqlite3.connect(f"{backup.resolve().as_uri()}?mode=ro", uri=True)) as db:
        row = db.execute("SELECT value FROM backup WHERE name = 'files'").fetchone()
    if row is None:
        raise StoreFailed(f"{backup} holds no keys, it was made without a passphrase: give a directory that has them with --keys")
    secret = Stretched.of(passphrase, base64.b64decode(manifest["scrypt"]["salt"]))
    try:
        content = AESGCM(secret.key).decrypt(row[0][:12], row[0][12:], _ABOUT)
    except InvalidTag:
        raise StoreFailed(f"the passphrase does not open {backup}: use the one with which it was made") from None
    return {name: base64.b64decode(data) for name, data in json.loads(content).items()}


def restore(backup: Path, data: Path, files: Mapping[str, bytes], now: float, mark: Callable[[int], tuple[str, bytes]]) -> int:
    """Makes the data directory ``data``, which must not exist or be empty, whole or not at all. Returns the revision at which
    it begins, by ``now`` in seconds since the epoch; ``mark`` makes of it the key and value that say in it that it was restored.
    Raises ``StoreFailed``."""
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise StoreFailed(f"{data} is not empty: restore into a new directory, and keep the old one until you have seen it work")
    unfinished = data.with_name(f"{data.name}.restoring")
    shutil.rmtree(unfinished, ignore_errors=True)
    make_private(unfinished)
    for name, content in files.items():
        target = unfinished / name
        make_private(target.parent)
        write_private(target, content)
    state = unfinished / "state.db"
    state.touch(0o600)
    shutil.copyfile(backup, state)
    with closing(sqlite3.connect(state, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=FULL")
        db.execute("BEGIN IMMEDIATE")
        db.execute("DROP TABLE backup")
        revision = restored_revision(bounds(db)[1], now)
        db.execute("UPDATE compaction SET oldest = ?", (revision,))
        key, value = mark(revision)
        db.execute("INSERT INTO log VALUES (?, ?, 'CREATE', ?, NULL, ?)", (revision, key, revision, value))
        db.execute("INSERT OR REPLACE INTO current VALUES (?, ?, ?)", (key, revision, revision))
        db.execute("COMMIT")
    _sync_all([state, *(unfinished / name for name in files), unfinished])
    if data.exists():
        data.rmdir()
    os.replace(unfinished, data)
    sync_directory(data.absolute().parent)
    return revision


def _sync_all(paths: Iterable[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
