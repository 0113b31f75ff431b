"""The checker accepts what an atomic object did, and nothing else."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.linearizability import FOREVER, Operation, Outcome, Verb, linearizable

DONE, CONFLICT, MISSING, UNKNOWN = Outcome.DONE, Outcome.CONFLICT, Outcome.MISSING, Outcome.UNKNOWN


def atomic(random: Random, count: int) -> list[Operation]:
    """What concurrent clients see of an object that does one thing at a time, at a moment within each call."""
    state: str | None = None
    known: str | None = None
    history = []
    for moment in range(count):
        called, answered = moment - random.random() * 5, moment + random.random() * 5
        verb, expected = random.choice(list(Verb)), random.choice([state, known])
        before, value = state, None
        if verb is Verb.GET:
            outcome, value = (DONE, state) if state else (MISSING, None)
        elif verb is Verb.CREATE:
            value = f"v{moment}"
            outcome = CONFLICT if state else DONE
            state = state or value
        elif state is None:
            outcome = MISSING
        elif state != expected or expected is None:
            outcome = CONFLICT
        else:
            value = f"v{moment}" if verb is Verb.UPDATE else None
            outcome, state = DONE, value
        known = before if random.random() < 0.5 else known
        if verb is not Verb.GET and random.random() < 0.1 and outcome is DONE:
            outcome, answered = UNKNOWN, FOREVER
        history.append(Operation(verb, outcome, called, answered, value, expected))
    return history


@given(st.integers(0, 10_000), st.integers(1, 60))
def test_an_atomic_object_is_linearizable(seed: int, count: int) -> None:
    assert linearizable(atomic(Random(seed), count))


@pytest.mark.parametrize(
    "history",
    [
        # Read after a later write had been acknowledged.
        [
            Operation(Verb.CREATE, DONE, 0, 1, "a"),
            Operation(Verb.UPDATE, DONE, 2, 3, "b", "a"),
            Operation(Verb.GET, DONE, 4, 5, "a"),
        ],
        # An acknowledged write is lost.
        [Operation(Verb.CREATE, DONE, 0, 1, "a"), Operation(Verb.GET, MISSING, 2, 3)],
        # Two updates of one value both succeed.
        [
            Operation(Verb.CREATE, DONE, 0, 1, "a"),
            Operation(Verb.UPDATE, DONE, 2, 5, "b", "a"),
            Operation(Verb.UPDATE, DONE, 3, 6, "c", "a"),
        ],
        # What may have happened is seen, and then never was.
        [
            Operation(Verb.CREATE, UNKNOWN, 0, FOREVER, "a"),
            Operation(Verb.GET, DONE, 2, 3, "a"),
            Operation(Verb.GET, MISSING, 4, 5),
        ],
        # Two concurrent readers disagree about the order.
        [
            Operation(Verb.CREATE, DONE, 0, 1, "a"),
            Operation(Verb.UPDATE, DONE, 2, 9, "b", "a"),
            Operation(Verb.GET, DONE, 3, 4, "b"),
            Operation(Verb.GET, DONE, 5, 6, "a"),
        ],
    ],
    ids=["stale-read", "lost-write", "two-winners", "undone", "back-in-time"],
)
def test_what_no_atomic_object_does_is_found(history: list[Operation]) -> None:
    assert not linearizable(history)


def test_an_unknown_write_may_have_happened_or_not() -> None:
    created = Operation(Verb.CREATE, UNKNOWN, 0, FOREVER, "a")
    assert linearizable([created, Operation(Verb.GET, MISSING, 2, 3), Operation(Verb.GET, DONE, 4, 5, "a")])
    assert linearizable([created, Operation(Verb.GET, MISSING, 2, 3), Operation(Verb.CREATE, DONE, 4, 5, "b")])
