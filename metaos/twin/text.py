"""Reading scenarios: YAML that remembers its lines, so that every mistake is told with file, line, field and remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

T = TypeVar("T")
D = TypeVar("D")

MAX_BYTES = 16 << 20
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_DURATION = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")


class ScenarioError(ValueError):
    """What is wrong, where, and what to do."""


class Part:
    """A value of the text, with where it is. ``[key]`` and iteration give parts of it."""

    def __init__(self, file: str, value: Any, node: yaml.Node | None, field: str = "") -> None:
        self.file, self.value, self._node, self.field = file, value, node, field

    @property
    def line(self) -> int:
        return self._node.start_mark.line + 1 if self._node is not None else 1

    def wrong(self, what: str, remedy: str) -> NoReturn:
        raise ScenarioError(f"{self.file}:{self.line}: {self.field or 'scenario'}: {what}; {remedy}")

    # -- descending ------------------------------------------------------------------------------------------

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, dict) and key in self.value

    def __getitem__(self, key: str) -> Part:
        node = None
        if isinstance(self._node, yaml.MappingNode):
            node = next((v for k, v in self._node.value if k.value == key), self._node)
        return Part(self.file, self.value[key], node, f"{self.field}.{key}" if self.field else key)

    def at(self, path: str) -> Part:
        """What ``path`` (``electricity.zone``, ``links[0].cluster``) leads to; as far as it leads, where that is not there."""
        found = self
        for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
            if index and isinstance(found.value, list):
                found = list(found)[int(index)]
            elif key in found:
                found = found[key]
            else:
                break
        return Part(found.file, found.value, found._node, f"{self.field}.{path}" if path else self.field)

    def __iter__(self) -> Iterator[Part]:
        if not isinstance(self.value, list):
            self.wrong(f"{_shown(self.value)} is no list", "write a list: lines that begin with '- ', or [a, b]")
        nodes: list[Any] = self._node.value if isinstance(self._node, yaml.SequenceNode) else [None] * len(self.value)
        for number, value in enumerate(self.value):
            yield Part(self.file, value, nodes[number], f"{self.field}[{number}]")

    def items(self) -> Iterator[tuple[str, Part]]:
        for key in self.mapping():
            yield key, self[key]

    def mapping(self, known: tuple[str, ...] = (), example: str = "") -> dict[str, Any]:
        """The value, which has none but the ``known`` fields (all, where none is named)."""
        if not isinstance(self.value, dict):
            self.wrong(f"{_shown(self.value)} is no mapping", f"write fields{f', for example {example}' if example else ''}")
        for key in self.value:
            if not isinstance(key, str):
                self.wrong(f"the field {key!r} is no text", "put it in quotes")
            if known and key not in known:
                near = [k for k in known if k.lower() == key.lower()]
                Part(self.file, None, self[key]._node, self[key].field).wrong(
                    "there is no such field", f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(known)}"
                )
        return dict(self.value)

    def fields(self, known: tuple[str, ...], example: str = "") -> Part:
        """Itself, after :meth:`mapping`."""
        self.mapping(known, example)
        return self

    def parts(self, key: str) -> list[Part]:
        """Of a list; none where it is not there."""
        return list(self[key]) if key in self and self.value[key] is not None else []

    def get(self, key: str, read: Callable[[Part], T], default: D) -> T | D:
        return read(self[key]) if key in self and self.value[key] is not None else default

    def need(self, key: str, read: Callable[[Part], T], example: str) -> T:
        if key not in self or self.value[key] is None:
            self.wrong(f"{key!r} is missing", f"say it, for example '{key}: {example}'")
        return read(self[key])

    # -- values ----------------------------------------------------------------------------------------------

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value:
            self.wrong(f"{_shown(self.value)} is no text", "write a word, in quotes where it looks like a number")
        return str(self.value)

    def texts(self) -> tuple[str, ...]:
        return tuple(part.text() for part in self)

    def number(self) -> float:
        found = self.value
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            self.wrong(f"{_shown(found)} is no finite number", "write a number, for example 2.5")
        return float(found)

    def count(self) -> int:
        found = self.number()
        if found != int(found) or found < 0:
            self.wrong(f"{_shown(self.value)} is no count", "write a whole number of at least 0")
        return int(found)

    def duration(self) -> float:
        """Seconds, at least 0."""
        found = self.signed()
        if found < 0:
            self.wrong(f"{_shown(self.value)} is negative", "write how long, for example 90s, 10m, 6h or 1d")
        return found

    def signed(self) -> float:
        """Seconds, also negative."""
        if isinstance(self.value, int | float) and not isinstance(self.value, bool) and math.isfinite(self.value):
            return float(self.value)
        found = _DURATION.fullmatch(self.value.strip()) if isinstance(self.value, str) else None
        if found is None:
            self.wrong(f"{_shown(self.value)} is no duration", "write a number and ms, s, m, h or d, for example 90s")
        seconds = float(found[1]) * _UNITS[found[2] or ""]
        if not math.isfinite(seconds) or abs(seconds) > 100 * 366 * 86400:
            self.wrong(f"{_shown(self.value)} is longer than a hundred years", "write a shorter time")
        return seconds

    def share(self) -> float:
        """0 to 1; '5%' is 0.05."""
        found = self.value
        if isinstance(found, str) and (percent := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", found)):
            found = float(percent[1]) / 100
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= 1:
            self.wrong(f"{_shown(self.value)} is no share", "write a number from 0 to 1, or a percentage, for example 5%")
        return float(found)


def one_of(*known: str) -> Callable[[Part], str]:
    """One of these words."""

    def read(part: Part) -> str:
        if part.value not in known:
            part.wrong(f"{_shown(part.value)} is not known", f"write one of {', '.join(known)}")
        return str(part.value)

    return read


def read(path: Path) -> Part:
    """A file. Raises ``ScenarioError``."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ScenarioError(f"{path}: more than {MAX_BYTES >> 20} MiB; put large traces into files of their own")
        return parse(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ScenarioError(f"{path}: cannot be read: {reason}; name a scenario file") from None


def parse(text: str, file: str) -> Part:
    """Raises ``ScenarioError``."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise ScenarioError(f"{file}:1: scenario: the file is empty; write at least 'title', 'duration' and 'sites'")
        _no_doubles(file, node, 0)
        value = yaml.load(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ScenarioError(f"{file}:{line}: {error.problem or error.context}; mend the YAML there") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ScenarioError):
            raise
        raise ScenarioError(f"{file}:1: this is no YAML: {error}; write a text file") from None
    return Part(file, value, node)


def _no_doubles(file: str, node: yaml.Node, depth: int) -> None:
    """A field that is written twice would silently lose its first value."""
    if depth > 60:
        raise ScenarioError(f"{file}:{node.start_mark.line + 1}: nested more than 60 deep; write it flatter")
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key.value, str):
                if key.value in seen:
                    raise ScenarioError(f"{file}:{key.start_mark.line + 1}: {key.value}: it is there twice; keep one of them")
                seen.add(key.value)
            _no_doubles(file, value, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _no_doubles(file, value, depth + 1)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
