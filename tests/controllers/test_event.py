"""Events that pass through: the loudest makes room, and no time that an author writes keeps an event or stops the sweep."""

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metaos.controllers.event import brief, event_time, source_of, surplus
from metaos.resources.meta import Obj, format_time

NOW = 1_700_000_000.0


def event(source: str, **more: Any) -> Obj:
    return {"metadata": {"name": "e", "creationTimestamp": format_time(NOW - 50)}, "source": {"host": source}, **more}


@given(st.lists(st.sampled_from("aaaaaabc"), max_size=60), st.integers(0, 70))
def test_who_has_most_loses_first(sources: list[str], limit: int) -> None:
    events = [event(source) for source in sources]
    gone = surplus(events, limit)
    assert len(gone) == max(0, len(events) - limit)
    left = Counter(source_of(e) for e in events) - Counter(source_of(e) for e in gone)
    for source in {source_of(e) for e in gone}:
        assert left[source] >= max(left.values(), default=0) - 1, "nobody loses one while somebody else has two more"
    for source in set(sources):
        mine = [e for e in events if source_of(e) == source]
        lost = sum(any(e is g for g in gone) for e in mine)
        assert all(any(e is g for g in gone) for e in mine[:lost]), "the oldest ones go"


def test_a_flood_of_one_site_leaves_what_others_said() -> None:
    others = [event(f"site-{n % 10}") for n in range(100)]
    assert all(source_of(e) == "loud" for e in surplus([*others, *(event("loud") for _ in range(10_000))], 5000))


@given(st.none() | st.text(max_size=30) | st.integers() | st.sampled_from(["9999-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59"]))
def test_any_time_is_one_that_passes(stated: Any) -> None:
    assert event_time(brief(event("a", lastTimestamp=stated)), NOW) <= NOW


def test_of_an_event_its_time_and_its_author_are_kept() -> None:
    kept = brief(event("a", lastTimestamp=format_time(NOW - 5), message="long" * 100))
    assert event_time(kept, NOW) == NOW - 5 and source_of(kept) == "a" and "message" not in kept
    assert event_time(brief(event("a", lastTimestamp="no time")), NOW) == NOW - 50
    assert source_of(brief({"metadata": {}, "source": {"component": "kubelet"}})) == "kubelet"
