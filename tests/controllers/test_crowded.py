"""Who waits for room at sites where it would be better off is looked at in turn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metaos.controllers.crowded import LOOKED_AT, Crowded
from metaos.resources.meta import ObjectRef

SITES = ("a", "b", "c")


def about(number: int) -> ObjectRef:
    return ObjectRef("apps", "Deployment", "shop", f"w{number:02}")


def test_those_for_whom_the_room_does_not_do_keep_nobody_from_it() -> None:
    crowded = Crowded()
    for number in range(LOOKED_AT + 1):
        crowded.note(about(number), ("a",))
    assert crowded.at(("a",)) == [about(number) for number in range(LOOKED_AT)]
    for number in range(LOOKED_AT):
        crowded.note(about(number), ("a",))  # They were looked at, and would still be better off there.
    assert crowded.at(("a",))[0] == about(LOOKED_AT)


@given(st.lists(st.tuples(st.integers(0, 20), st.sets(st.sampled_from(SITES))), max_size=40), st.sets(st.sampled_from(SITES)))
def test_everybody_has_a_turn_and_nothing_is_left_of_who_wants_nothing(
    notes: list[tuple[int, set[str]]], freed: set[str]
) -> None:
    crowded, wants = Crowded(), dict[ObjectRef, set[str]]()
    for number, sites in notes:
        crowded.note(about(number), sorted(sites))
        wants[about(number)] = sites
    wanted = {who for who, sites in wants.items() if sites & freed}
    looked: set[ObjectRef] = set()
    for _ in range(3):  # 21 of them, by eights.
        turn = crowded.at(sorted(freed))
        assert len(turn) == len(set(turn)) <= LOOKED_AT * len(freed)
        looked |= set(turn)
    assert looked == wanted
    for who in wants:
        crowded.note(who, ())
    assert not crowded._at and not crowded._wants
