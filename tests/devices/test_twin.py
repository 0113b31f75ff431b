"""Twins: merge patches, deltas, and that nothing late or doubled moves one backwards."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.devices.twin import Malformed, Twin, born, delta, gone, heard, in_sync, overdue, pending, reported
from metaos.resources.mergepatch import merged

leaf = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "a"]) | st.lists(st.integers(0, 1), max_size=2)
keys = st.sampled_from(["a", "b", "c"])


def objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(keys, values, max_size=3)


patches = objects(st.recursive(leaf, objects, max_leaves=6))
#: What is reported holds no null: merge patches cannot say it.
states = patches.map(lambda patch: merged({}, patch))


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_the_examples_of_rfc_7396(target: Any, patch: Any, result: Any) -> None:
    assert merged(target, patch) == result


@given(states, patches)
def test_a_delta_does_what_the_whole_does_and_nothing_is_left_then(state: dict[str, Any], desired: dict[str, Any]) -> None:
    left = delta(state, desired)
    done = merged(state, left)
    assert _typed(done) == _typed(merged(state, desired))
    assert delta(done, desired) == {}
    assert bool(left) == (_typed(merged(state, desired)) != _typed(state))


def _typed(value: Any) -> Any:
    """With what tells ``true`` from 1."""
    if isinstance(value, dict):
        return {key: _typed(each) for key, each in value.items()}
    return [_typed(each) for each in value] if isinstance(value, list) else (type(value), value)


@given(st.permutations(range(1, 6)), st.lists(st.integers(0, 4), max_size=5))
def test_late_and_doubled_reports_never_move_a_twin_backwards(order: list[int], again: list[int]) -> None:
    twin = born(Twin(), {"session": "s"}, 1.0)
    said = [{"epoch": twin.epoch, "sequence": n, "reported": {"n": n}, "version": n, "app": {"state": str(n)}} for n in order] + [
        {"epoch": twin.epoch, "sequence": order[i], "reported": {"n": -1}, "version": 0} for i in again
    ]
    highest = 0
    for i, message in enumerate(said):
        before = twin
        twin = reported(twin, message, 2.0 + i)
        highest = max(highest, int(message["sequence"]))
        assert (twin.epoch, twin.sequence) >= (before.epoch, before.sequence)
        assert twin.reported == {"n": highest} and twin.reported_version == highest and twin.app == {"state": str(highest)}
        assert twin.online and twin.seen == 2.0 + i


def test_a_session_counts_from_anew_and_what_is_left_of_the_last_one_says_nothing() -> None:
    first = reported(born(Twin(), {"session": "a"}, 10.0), {"epoch": 10000, "sequence": 7, "reported": {"x": 7}}, 11.0)
    second = born(first, {"session": "b", "firmware": "2"}, 10.0)
    assert second.epoch == first.epoch + 1 and second.sequence == 0 and second.reported == {"x": 7} and second.firmware == "2"
    assert born(second, {"session": "b"}, 12.0).epoch == second.epoch
    late = reported(second, {"epoch": 10000, "sequence": 8, "reported": {"x": 8}}, 13.0)
    assert late.reported == {"x": 7} and late.seen == 13.0
    new = reported(late, {"epoch": second.epoch, "sequence": 1, "reported": {"x": 1}}, 14.0)
    assert new.reported == {"x": 1}
    # A hub that lost the number of a session in a crash believes the device.
    assert reported(new, {"epoch": second.epoch + 5, "sequence": 1, "reported": {}}, 15.0).epoch == second.epoch + 5


def test_a_will_of_an_earlier_connection_says_nothing() -> None:
    twin = born(born(Twin(), {"session": "a"}, 1.0), {"session": "b"}, 2.0)
    assert gone(twin, {"session": "a"}).online
    assert not gone(twin, {"session": "b"}).online
    assert heard(gone(twin, {"session": "b"}), 3.0).online


def test_silence() -> None:
    twin = born(Twin(), {"session": "a", "heartbeat": 10}, 100.0)
    assert not overdue(twin, 130.0) and overdue(twin, 130.1)
    assert not overdue(gone(twin, {"session": "a"}), 1e9)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({}, "session"),
        ({"session": 3}, "session"),
        ({"session": "x" * 65}, "session"),
        ({"session": "s", "heartbeat": 0.5}, "heartbeat"),
        ({"session": "s", "heartbeat": True}, "heartbeat"),
        ({"session": "s", "firmware": []}, "firmware"),
    ],
)
def test_a_birth_that_makes_no_sense_is_refused_by_field(message: dict[str, Any], said: str) -> None:
    with pytest.raises(Malformed, match=said):
        born(Twin(), message, 1.0)


@pytest.mark.parametrize(
    ("message", "said"),
    [({"epoch": -1}, "epoch"), ({"sequence": "1"}, "sequence"), ({"reported": []}, "reported"), ({"version": 1.5}, "version")],
)
def test_a_report_that_makes_no_sense_is_refused_by_field(message: dict[str, Any], said: str) -> None:
    with pytest.raises(Malformed, match=said):
        reported(Twin(), message, 1.0)


def test_in_sync_and_how_soon_it_is_told_again() -> None:
    twin = Twin(reported={"a": 1}, reported_version=3)
    assert in_sync(twin, {"a": 1}, 3) and not in_sync(twin, {"a": True}, 3) and not in_sync(twin, {"a": 1}, 4)
    assert [pending(n) for n in (0, 1, 2, 50)] == [5.0, 10.0, 20.0, 300.0]


def test_an_epoch_that_no_hub_gave_is_refused() -> None:
    """It would have every later report of the device count as an old one, also after it was set up anew."""
    twin = born(Twin(), {"session": "a"}, 10.0)
    with pytest.raises(Malformed, match="epoch: must be one that the hub gave"):
        reported(twin, {"epoch": 2**53 - 1, "sequence": 1, "reported": {}}, 10.0)
    # Of a hub that has ended before it could store it, with a clock that was ahead.
    assert reported(twin, {"epoch": 1_000_000, "sequence": 1, "reported": {"x": 1}}, 10.0).reported == {"x": 1}
