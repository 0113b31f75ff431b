"""The record of one start of a container, the file ``record`` in its directory: lines of JSON, each appended by whoever knows.

The agent says what it is about to start; the monitor (the process that outlives us and records the end), who it is; whoever saw
the command's end, its ``exit-code``: the file's time is then that of the end. One file, as a new one is what costs.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any


def path(directory: str) -> str:
    return os.path.join(directory, "record")


def begin(directory: str, known: dict[str, Any]) -> None:
    """What is about to be started. Raises ``OSError``."""
    fd = os.open(path(directory), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps(known).encode() + b"\n")
    finally:
        os.close(fd)


def read(directory: str) -> dict[str, Any]:
    """All that is known; a line that is not whole says nothing."""
    merged: dict[str, Any] = {}
    try:
        with open(path(directory), encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.endswith("}\n"):
                    with contextlib.suppress(ValueError):  # what found no room on the disk has the next line at its end
                        merged.update(json.loads(line))
    except FileNotFoundError:
        pass
    return merged
