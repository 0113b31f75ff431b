"""The audit log on disk: one JSON line per request, in files of bounded size and number."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

log = logging.getLogger(__name__)

#: A file is put aside at this size; ``FILES`` of them are kept beside the present one.
MAX_BYTES = 16 * 1024 * 1024
FILES = 4

#: Where events go; never fails.
Audit = Callable[[dict[str, Any]], None]


def no_audit(event: dict[str, Any]) -> None:
    """For a registry that nobody keeps a log of."""


class AuditLog:
    """Appends to ``path``; older files are ``path.1`` (the latest) to ``path.FILES``. Readable by its owner only."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, files: int = FILES) -> None:
        self._path, self._max_bytes, self._files = path, max_bytes, files
        self._descriptor = self._open()
        self._size = os.fstat(self._descriptor).st_size
        self._failed = False

    def __call__(self, event: dict[str, Any]) -> None:
        """One ``write`` per line, so that a crash leaves whole lines. A full disk is said once and loses lines, not requests."""
        line = orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
        try:
            if self._size + len(line) > self._max_bytes:
                self._rotate()
            os.write(self._descriptor, line)
            self._size += len(line)
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.error("the audit log %s cannot be written: %s", self._path, error)
            self._failed = True

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _rotate(self) -> None:
        for number in range(self._files, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number}"))
        os.close(self._descriptor)
        self._descriptor = self._open()
        self._size = 0
