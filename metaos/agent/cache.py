"""The agent's own records on disk: one SQLite file, durable on return. What is wanted is kept elsewhere (``sync.py``)."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VERSION = 1


class NewerCache(Exception):
    """The file was written by a newer release."""


class Cache:
    """Tables of JSON objects by key. A ``put`` that has returned survives a crash."""

    def __init__(self, path: Path) -> None:
        self._path = path
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.close(descriptor)
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        found = int(self._database.execute("PRAGMA user_version").fetchone()[0])
        if found > VERSION:
            self._database.close()
            raise NewerCache(
                f"{path} was written by a newer release (layout {found}, this one knows {VERSION}): use that release"
            )
        self._database.execute("CREATE TABLE IF NOT EXISTS record (space TEXT, key TEXT, value TEXT, PRIMARY KEY (space, key))")
        self._database.execute(f"PRAGMA user_version={VERSION}")

    def put(self, space: str, key: str, value: dict[str, Any]) -> int:
        """Its size in characters."""
        text = json.dumps(value, separators=(",", ":"))
        self._database.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", (space, key, text))
        return len(text)

    def get(self, space: str, key: str) -> dict[str, Any] | None:
        row = self._database.execute("SELECT value FROM record WHERE space=? AND key=?", (space, key)).fetchone()
        return None if row is None else json.loads(row[0])

    def items(self, space: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for key, value in self._database.execute("SELECT key, value FROM record WHERE space=? ORDER BY key", (space,)).fetchall():
            yield key, json.loads(value)

    def first(self, space: str, limit: int, after: str = "") -> list[tuple[str, dict[str, Any]]]:
        """The first so many by key, of those after ``after``."""
        query = "SELECT key, value FROM record WHERE space=? AND key>? ORDER BY key LIMIT ?"
        return [(key, json.loads(value)) for key, value in self._database.execute(query, (space, after, limit))]

    def size(self, space: str) -> tuple[int, int]:
        """(objects, characters of them)."""
        count, size = self._database.execute("SELECT COUNT(*), SUM(LENGTH(value)) FROM record WHERE space=?", (space,)).fetchone()
        return count, size or 0

    def delete_until(self, space: str, key: str) -> int:
        """Those up to and with ``key``; how many there were."""
        return self._database.execute("DELETE FROM record WHERE space=? AND key<=?", (space, key)).rowcount

    def delete(self, space: str, key: str) -> None:
        self._database.execute("DELETE FROM record WHERE space=? AND key=?", (space, key))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Writes inside become durable all at once or not at all."""
        if self._database.in_transaction:
            yield
            return
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def close(self) -> None:
        self._database.close()
