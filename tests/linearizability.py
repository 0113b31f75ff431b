"""Whether a history of concurrent operations on one object could have happened one after the other.

The search of Wing and Gong (1993) with Lowe's memory of configurations (2017): operations are ordered so that each lies
between its call and its answer, and each says what an object would say at that point. The object is a register with compare
and swap whose values are unique, so that a value names the write that made it; ``None`` is an object that does not exist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

FOREVER = math.inf


class Verb(StrEnum):
    CREATE = "create"
    GET = "get"
    UPDATE = "update"
    DELETE = "delete"


class Outcome(StrEnum):
    DONE = "done"
    #: The object exists already, or is not what the caller said it was.
    CONFLICT = "conflict"
    MISSING = "missing"
    #: No answer came: done at any later time, or never.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Operation:
    """``value`` is what was written, or read; ``expected`` what an update or delete wanted to find."""

    verb: Verb
    outcome: Outcome
    called: float
    answered: float
    value: str | None = None
    expected: str | None = None


def step(operation: Operation, state: str | None) -> tuple[bool, str | None]:
    """Whether an object in ``state`` could answer so, and its state afterwards."""
    o = operation
    match o.verb:
        case Verb.GET:
            return (state is None if o.outcome is Outcome.MISSING else state is not None and state == o.value), state
        case Verb.CREATE:
            if o.outcome is Outcome.CONFLICT:
                return state is not None, state
            return state is None, o.value
        case Verb.UPDATE | Verb.DELETE:
            if o.outcome is Outcome.MISSING:
                return state is None, state
            if o.outcome is Outcome.CONFLICT:
                return state is not None and state != o.expected, state
            return state is not None and state == o.expected, o.value if o.verb is Verb.UPDATE else None
    raise AssertionError(o.verb)


def linearizable(history: Sequence[Operation], state: str | None = None) -> bool:
    """Whether there is an order. Operations of unknown outcome may be left out of it."""
    operations = sorted(history, key=lambda o: (o.called, o.answered))
    needed = sum(1 << i for i, o in enumerate(operations) if o.outcome is not Outcome.UNKNOWN)
    seen: set[tuple[int, str | None]] = set()
    stack: list[tuple[int, str | None, int]] = [(0, state, 0)]
    while stack:
        done, state, first = stack.pop()
        if done & needed == needed:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        while done >> first & 1:
            first += 1
        latest, candidates = FOREVER, []
        for index in range(first, len(operations)):
            operation = operations[index]
            if operation.called > latest:
                break  # This one, and all that follow, began after another that is still to come had ended.
            if done >> index & 1:
                continue
            latest = min(latest, operation.answered)
            possible, after = step(operation, state)
            if possible:
                candidates.append((done | 1 << index, after, first))
        stack.extend(reversed(candidates))
    return False
