"""Copying the write-ahead log back into the main file, beside the writer: no write waits for it.

SQLite would do it within the commit that makes the log long enough, which then takes some milliseconds more. A checkpoint
of kind PASSIVE waits for nobody and blocks nobody; https://www.sqlite.org/wal.html.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from pathlib import Path

from metaos.store.file import SYNCHRONOUS, connect

#: Writes, or bytes of values, after which the log is copied. Until then the disk holds both: a full one must not be full of log.
EVERY, EVERY_BYTES = 128, 2 << 20
#: Where the thread cannot keep up, a commit does it, so that the log stays below 16 MiB (in pages of 4 KiB).
MOST_PAGES = 4096
#: Bytes of values after which the writer copies what is left, so that the log begins anew: where writes never pause, the thread
#: never finds an end.
MOST_BYTES = 8 << 20


class Checkpointer:
    """A thread with a connection of its own."""

    def __init__(self, path: Path, writer: sqlite3.Connection) -> None:
        writer.execute(f"PRAGMA wal_autocheckpoint={MOST_PAGES}")
        self._db = connect(path)
        self._db.execute(f"PRAGMA synchronous={SYNCHRONOUS}")
        self._due, self._ended = threading.Event(), False
        self._writer, self._copying = writer, threading.Lock()
        self._writes = self._bytes = self._unbroken = 0
        self._thread = threading.Thread(target=self._run, name="store-checkpoint", daemon=True)
        self._thread.start()

    def wrote(self, count: int, size: int) -> None:
        """So many writes were committed, with so many bytes of values. In the writer's thread."""
        self._unbroken += size
        if self._unbroken >= MOST_BYTES:
            self._unbroken = self._writes = self._bytes = 0
            self._copy(self._writer)
            return
        self._writes += count
        self._bytes += size
        if self._writes >= EVERY or self._bytes >= EVERY_BYTES:
            self._writes = self._bytes = 0
            self._due.set()

    def close(self) -> None:
        """Ends when what is under way is done."""
        self._ended = True
        self._due.set()
        self._thread.join()
        self._db.close()

    def _run(self) -> None:
        while self._due.wait():
            self._due.clear()
            if self._ended:
                return
            self._copy(self._db)

    def _copy(self, db: sqlite3.Connection) -> None:
        # A full disk: the log keeps what it has, and the writer says so to those who write.
        with self._copying, contextlib.suppress(sqlite3.Error):
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
