"""What may be on a disk after a power loss, from the steps that a program took before it.

What was synced is there. Of what was written since then any sectors may be there and any may not, in whatever order; of new,
renamed and removed names in a directory that was not synced since, as many as the file system had got to.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.store.disk import Kind, Step

SECTOR = 512


@dataclass
class _File:
    """One file, whatever its name: what is safe, and the writes and truncates that are not yet."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Step] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Luck:
    """How much of what was not synced survives, from 0 (nothing) to 1 (all)."""

    share: float
    random: Random

    def keeps(self) -> bool:
        return self.random.random() < self.share


def survivors(steps: Sequence[Step], luck: Luck) -> dict[str, bytes]:
    """The files (path → content) that one possible power loss after ``steps`` leaves."""
    names: dict[str, _File] = {}
    durable: dict[str, _File] = {}
    waiting: dict[str, list[tuple[str, _File | str | None]]] = {}

    def rename(path: str, file: _File | None) -> None:
        waiting.setdefault(os.path.dirname(path), []).append((path, file))

    for step in steps:
        match step.kind:
            case Kind.CREATE:
                names[step.path] = _File()
                rename(step.path, names[step.path])
            case Kind.WRITE | Kind.TRUNCATE:
                names[step.path].pending.append(step)
            case Kind.SYNC:
                file = names[step.path]
                for each in file.pending:
                    _apply(file.durable, each, None)
                file.pending.clear()
            case Kind.RENAME if step.path not in names:
                _move(names, step.path, step.target)
                _move(waiting, step.path, step.target)
                waiting.setdefault(os.path.dirname(step.target), []).append((step.path, step.target))
            case Kind.RENAME:
                file = names.pop(step.path)
                names[step.target] = file
                rename(step.target, file)
                rename(step.path, None)
            case Kind.UNLINK:
                names.pop(step.path, None)
                rename(step.path, None)
            case Kind.SYNC_DIRECTORY:
                _names(durable, waiting.pop(step.path, []))
    for changes in waiting.values():
        reached = sum(luck.keeps() for _ in changes)
        _names(durable, changes[:reached])
    return {path: _left(file, luck) for path, file in durable.items()}


def _names(durable: dict[str, _File], changes: Sequence[tuple[str, _File | str | None]]) -> None:
    """Each change gives a file to a path, takes it away, or moves the directory at a path."""
    for path, what in changes:
        if what is None:
            durable.pop(path, None)
        elif isinstance(what, str):
            _move(durable, path, what)
        else:
            durable[path] = what


def _move(below: dict[str, Any], source: str, target: str) -> None:
    for path in [path for path in below if path == source or path.startswith(source + "/")]:
        below[target + path.removeprefix(source)] = below.pop(path)


def _left(file: _File, luck: Luck) -> bytes:
    content = bytearray(file.durable)
    for step in file.pending:
        _apply(content, step, luck)
    return bytes(content)


def _apply(content: bytearray, step: Step, luck: Luck | None) -> None:
    if step.kind is Kind.TRUNCATE:
        if luck is None or luck.keeps():
            del content[step.offset :]
            content.extend(bytes(step.offset - len(content)))
        return
    start = step.offset
    while start < step.offset + len(step.data):
        end = min(start - start % SECTOR + SECTOR, step.offset + len(step.data))
        if luck is None or luck.keeps():
            content.extend(bytes(max(0, end - len(content))))
            content[start:end] = step.data[start - step.offset : end - step.offset]
        start = end


def lay_out(files: dict[str, bytes], source: Path, target: Path) -> None:
    """Writes what survived below ``source`` to ``target``."""
    for path, content in files.items():
        place = target / Path(path).relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch(0o600)
        place.write_bytes(content)
