"""When volumes are backed up, what is kept, and from which is restored: for any course of events."""

from __future__ import annotations

import base64
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.data.backups import (
    Past,
    best,
    chosen,
    derived,
    due,
    every,
    kept,
    never_a_store,
    pace,
    recovery,
    restore_seconds,
)

SECONDS = st.floats(0, 1e6, allow_nan=False)
MOMENTS = st.floats(1e9, 2e9, allow_nan=False)
BACKUPS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), MOMENTS, max_size=8)


@given(st.floats(1, 1e6), SECONDS)
def test_what_a_lost_site_loses_is_never_more_than_asked_where_that_can_be(rpo: float, seconds: float) -> None:
    worst = every(rpo, seconds) + seconds
    if rpo >= best(seconds):
        assert worst <= rpo + 1e-6
    else:
        assert worst <= best(seconds) + 1e-6, "what cannot be kept is missed by as little as can be"


@given(st.floats(1, 1e6), SECONDS)
def test_the_best_that_can_be_is_itself_kept(rpo: float, seconds: float) -> None:
    assert every(best(seconds), seconds) + seconds <= best(seconds) + 1e-6


@given(st.floats(30, 1e5), st.lists(st.tuples(st.booleans(), st.floats(0.1, 100)), max_size=30))
def test_a_schedule_from_a_recovery_point_goes_on_whatever_fails(rpo: float, tries: list[tuple[bool, float]]) -> None:
    past, now = Past(), 1e9
    for good, seconds in tries:
        at = due("", rpo, past, 1e9)
        assert at < math.inf
        if past.failures:
            assert past.ended + 10.0 <= at <= past.ended + 600.0
        begun = max(now, at)
        now = begun + seconds
        past = Past(begun, now, 0, seconds) if good else Past(begun, now, past.failures + 1, past.seconds)


def test_cron_schedules_begin_at_their_times_and_are_made_up_for_once() -> None:
    hour = 1_800_000_000.0 // 3600 * 3600
    assert due("0 * * * *", None, Past(), hour + 60) == hour + 3600
    assert due("0 * * * *", None, Past(begun=hour + 1, ended=hour + 9), 0) == hour + 3600
    assert due("0 * * * *", None, Past(begun=hour - 10 * 3600 + 1), 0) == hour - 9 * 3600
    assert due("0 * * * *", None, Past(begun=hour + 1, ended=hour + 9, failures=1), 0) == hour + 19
    assert due("", None, Past(), hour) == math.inf
    with pytest.raises(ValueError, match="schedule 'whenever' cannot be used"):
        due("whenever", None, Past(), hour)


@given(BACKUPS, st.none() | st.integers(1, 5), st.none() | SECONDS, MOMENTS)
def test_what_is_kept(backups: dict[str, float], count: int | None, seconds: float | None, now: float) -> None:
    stays = kept(backups, count, seconds, now)
    assert stays <= backups.keys()
    if not backups:
        assert not stays
        return
    newest = max(backups, key=lambda name: (backups[name], name))
    assert newest in stays, "the newest stays in any case"
    assert count is None or len(stays) <= count
    for name in stays - {newest}:
        assert seconds is None or now - backups[name] <= seconds
    if count is None and seconds is None:
        assert stays == backups.keys()
    # Nothing older than what goes for its number stays, and keeping is idempotent.
    again = kept({name: backups[name] for name in stays}, count, seconds, now)
    assert again == stays


@given(BACKUPS, st.none() | MOMENTS)
def test_what_is_restored(backups: dict[str, float], at: float | None) -> None:
    allowed = {name for name, time in backups.items() if at is None or time <= at}
    if not allowed:
        with pytest.raises(ValueError, match=r"no backup yet|younger than that"):
            chosen(backups, at=at)
        return
    found = chosen(backups, at=at)
    assert found in allowed and all(backups[other] <= backups[found] for other in allowed)
    assert chosen(backups, name=found) == found
    with pytest.raises(ValueError, match="there is no backup 'zz'"):
        chosen(backups, name="zz")


@given(st.dictionaries(st.sampled_from("abc"), st.none() | MOMENTS), st.none() | SECONDS, st.booleans(), MOMENTS)
def test_what_a_lost_site_leaves_is_restored_only_where_an_intent_allows_it(
    points: dict[str, float | None], rpo: float | None, hard: bool, lost_since: float
) -> None:
    found = recovery(points, rpo, hard, lost_since)
    known = [point for point in points.values() if point is not None]
    if found.restores:
        assert rpo is not None and known and len(known) == len(points)
        assert found.lost is not None and found.lost >= lost_since - min(known)
        assert not hard or found.lost <= rpo
    else:
        assert found.reason in ("NoRpo", "NoBackup", "RpoExceeded") and found.message
        assert found.reason != "RpoExceeded" or (hard and found.lost is not None and rpo is not None and found.lost > rpo)


def test_how_long_a_restore_takes() -> None:
    assert restore_seconds(1000, pace(0.0, 0, 1.0)) is None
    assert restore_seconds(1000, pace(0.0, 100, 1.0)) == 10.0
    assert restore_seconds(1000, pace(pace(0.0, 100, 1.0), 3, 1.0)) == 10.0
    assert pace(7.0, 100, 0.0) == 7.0


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[fe80::1]",
        "::ffff:169.254.169.254",
        "fd00:ec2::254",
        "metadata.google.internal.",
        "0.0.0.0",
        "224.0.0.1",
    ],
)
def test_what_is_never_a_store(host: str) -> None:
    assert never_a_store(host.strip("[]"))


@pytest.mark.parametrize("host", ["s3.example.eu", "127.0.0.1", "10.0.0.7", "fd00::7", "minio", "::1"])
def test_what_may_be_a_store(host: str) -> None:
    assert never_a_store(host) == ""


def test_keys_are_those_that_hkdf_derives() -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    secret = bytes(range(32))
    expected = HKDF(hashes.SHA256(), 32, b"nemo volume backups", b"workload\0shop\0StatefulSet\0db").derive(secret)
    whole = base64.b64encode(secret).decode()
    assert base64.b64decode(derived(whole, "shop", "StatefulSet", "db")) == expected
    assert len({derived(whole, *each) for each in (("a", "b", "c"), ("ab", "", "c"), ("a", "b", "d"), ("x", "b", "c"))}) == 4
    assert derived("short", "shop", "StatefulSet", "db") == "short"
