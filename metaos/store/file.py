"""The SQLite store's file: its schema and versions, who may open it, and how.

An older file is migrated on opening, a newer one, another program's, or one in use is refused.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from metaos.files import sync_directory
from metaos.store.log import StoreFailed

READERS = 2
#: Every commit is synced before it is acknowledged.
SYNCHRONOUS = "FULL"

#: "NEMO": says whose file it is (``PRAGMA application_id``).
APPLICATION_ID = 0x4E454D4F
#: One script per schema version, applied in order; ``PRAGMA user_version`` says how many have been.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE log (
        revision INTEGER PRIMARY KEY,
        key TEXT NOT NULL,
        type TEXT NOT NULL,
        create_revision INTEGER NOT NULL,
        previous_revision INTEGER,
        value BLOB NOT NULL
    );
    CREATE INDEX log_by_key ON log (key, revision);
    CREATE TABLE current (
        key TEXT PRIMARY KEY,
        revision INTEGER NOT NULL,
        create_revision INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE compaction (oldest INTEGER NOT NULL);
    INSERT INTO compaction VALUES (0);
    """,
    # What sites used (``sqliteledger``). What is looked for stands before what is large.
    """
    CREATE TABLE ledger (
        position INTEGER PRIMARY KEY,
        end INTEGER NOT NULL,
        count INTEGER NOT NULL,
        previous BLOB NOT NULL,
        hash BLOB NOT NULL,
        header BLOB NOT NULL,
        lines BLOB NOT NULL
    );
    CREATE INDEX ledger_by_end ON ledger (end, position, count);
    CREATE TABLE ledger_site (site TEXT PRIMARY KEY, sequence INTEGER NOT NULL, end INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE ledger_head (position INTEGER NOT NULL, hash BLOB NOT NULL);
    INSERT INTO ledger_head VALUES (0, zeroblob(32));
    CREATE TABLE ledger_checkpoint (
        number INTEGER PRIMARY KEY,
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        body BLOB NOT NULL,
        signature BLOB NOT NULL
    );
    CREATE INDEX ledger_checkpoint_by_last ON ledger_checkpoint (last);
    """,
)
#: The first bytes of all values that begin with some: (how many, how many of the beginning, the beginning).
HEADS = "SELECT DISTINCT substr(value, 1, ?) FROM log WHERE substr(value, 1, ?) = ?"


def bounds(db: sqlite3.Connection) -> tuple[int, int]:
    """The oldest revision that can be asked for, and the latest."""
    row = db.execute("SELECT oldest, MAX(oldest, (SELECT COALESCE(MAX(revision), 0) FROM log)) FROM compaction").fetchone()
    return int(row[0]), int(row[1])


class Reserve:
    """Disk space set aside beside a store (``PATH.reserve``). When the disk is full it is given up, so that deletes and what is
    vital go on; it is taken again once there is room."""

    def __init__(self, state: Path, size: int) -> None:
        self._path, self.size = Path(f"{state}.reserve"), size
        self.held = size == 0
        if size and self._path.exists():
            self.held = self._path.stat().st_blocks * 512 >= size

    def take(self) -> bool:
        """Whether the space is held, perhaps from now on."""
        if not self.held and self._free() >= 2 * self.size:
            try:
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(descriptor, 0, self.size)
                finally:
                    os.close(descriptor)
                self.held = True
            except OSError:
                self._path.unlink(missing_ok=True)
        return self.held

    def give_up(self) -> bool:
        """Whether there was something to give up."""
        if not self.held or not self.size:
            return False
        self._path.unlink(missing_ok=True)
        self.held = False
        return True

    def give_up_where_needed(self) -> None:
        """Before opening: a store cannot be opened on a disk without any room."""
        if self._free() < self.size:
            self.give_up()

    def _free(self) -> int:
        found = os.statvfs(self._path.parent)
        return found.f_bavail * found.f_frsize


def lock_file(path: Path) -> int:
    """One process per file: revisions are counted in memory. A lock of its own, as closing any descriptor of the database
    would drop SQLite's locks on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StoreFailed(f"{path} is in use by another process; stop it first, or use another data directory") from error
    return descriptor


def prepare(path: Path, connections: list[sqlite3.Connection]) -> int:
    """Fill ``connections`` with the writer and the readers, migrate, and return the latest revision."""
    # Values may be confidential even where they are not sealed.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    sync_directory(path.parent)
    try:
        writer = connect(path)
        connections.append(writer)
        _migrate(writer, path)
        writer.execute(f"PRAGMA synchronous={SYNCHRONOUS}")
        # Some builds of SQLite overwrite what is deleted, which costs as much as writing it: what is confidential is sealed.
        writer.execute("PRAGMA secure_delete=OFF")
        writer.execute("PRAGMA journal_size_limit=67108864")
        for _ in range(READERS):
            reader = connect(path)
            connections.append(reader)
            reader.execute("PRAGMA query_only=1")
        return bounds(writer)[1]
    except sqlite3.Error as error:
        raise StoreFailed(f"{path} cannot be opened as a store: {error}") from error


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if tables and application != APPLICATION_ID:
        raise StoreFailed(f"{path} is a database of another program; use another data directory")
    if version > len(MIGRATIONS):
        raise StoreFailed(
            f"{path} was written by a newer NEMO (schema {version}, this one knows {len(MIGRATIONS)}): "
            "upgrade this one, or restore a backup"
        )
    db.execute("PRAGMA journal_mode=WAL")
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        # One transaction each, so that a crash leaves the version before it.
        db.executescript(
            f"BEGIN IMMEDIATE; {script}; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={number}; COMMIT;"
        )
