"""Withdrawn names: old certificates are worth nothing, new ones count, and the record does not grow."""

import re

from hypothesis import given
from hypothesis import strategies as st

from metaos.security import revocation
from metaos.security.identity import BACKDATE_SECONDS, SERVER_LIFETIME_SECONDS

times = st.floats(1.6e9, 2e9)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64)


def not_before(issued: float) -> float:
    """As a certificate has it: whole seconds, a little early."""
    return float(int(issued - BACKDATE_SECONDS))


@given(names, times, st.floats(0, 1e8))
def test_what_was_issued_before_is_withdrawn_and_what_is_issued_later_counts(user: str, now: float, age: float) -> None:
    record = revocation.entry(user, now)
    assert revocation.is_withdrawn(record, user, not_before(now - age))
    for later in (now, now + 0.5, now + age):
        assert not revocation.is_withdrawn(record, user, not_before(revocation.issue_time(record, user, later)))
    assert revocation.issue_time(record, user, now) <= now + 2, "a new certificate is valid at once"


@given(names, names, times)
def test_nobody_is_taken_for_another(one: str, other: str, now: float) -> None:
    record = revocation.entry(one, now)
    assert revocation.is_withdrawn(record, other, not_before(now)) == (one == other)
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]+", key) for key in record), "a Secret's key"


def test_the_first_layouts_entries_count_on() -> None:
    early, late = 1.7e9, 1.8e9
    old = {key: revocation.format_time(early + 9) for key in ("gone", "back", "ann", "x_2fy")} | {"torn": "sometime"}
    sites = {"back": late, "ann": early}  # Since when they are members.
    found = revocation.taken_over(old, sites)
    record = old | found
    for site in ("gone", "back", "torn"):
        assert revocation.is_withdrawn(record, f"system:cluster:{site}", not_before(early)), site
    assert not revocation.is_withdrawn(record, "system:cluster:back", not_before(late)), "it joined anew"
    assert not revocation.is_withdrawn(record, "system:cluster:ann", not_before(early)), "a user is called so"
    assert not revocation.taken_over(record, sites), "once is enough"
    later = record | revocation.entry("system:cluster:gone", late)
    assert not revocation.taken_over(later, sites), "no entry is set back"


def test_a_damaged_entry_withdraws_all() -> None:
    assert revocation.is_withdrawn({"ann": "sometime"}, "ann", 4e9)


@given(times, st.lists(st.floats(0, 4 * SERVER_LIFETIME_SECONDS), max_size=20))
def test_entries_are_kept_for_as_long_as_they_matter(now: float, ages: list[float]) -> None:
    record = {str(i): revocation.format_time(now - age) for i, age in enumerate(ages)}
    gone = revocation.outdated(record, now)
    for i, age in enumerate(ages):
        lives = age <= SERVER_LIFETIME_SECONDS
        assert not (lives and str(i) in gone)
        assert lives or str(i) in gone or age < SERVER_LIFETIME_SECONDS + 2 * BACKDATE_SECONDS
