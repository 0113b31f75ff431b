"""Commands that wait, rates, waves, credentials, batches and topics."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.devices import batch, credentials
from metaos.devices.rate import BURST_SECONDS, Rate, flooding, sent
from metaos.devices.waiting import MOST_WAITING, Full, added, answered, living
from metaos.devices.waves import Member, bound, chosen, wave
from metaos.resources.meta import format_time

# -- commands that wait --------------------------------------------------------------------------------------


@given(st.lists(st.floats(1, 100), max_size=40), st.floats(0, 10))
def test_never_more_wait_than_may_and_none_beyond_its_time(lasting: list[float], step: float) -> None:
    waiting: list[dict[str, Any]] = []
    now = 1000.0
    for i, lasts in enumerate(lasting):
        now += step
        try:
            waiting = added(waiting, {"id": str(i), "action": "a"}, now, lasts)
        except Full as full:
            assert "16 commands" in str(full) and len(living(waiting, now)[0]) == MOST_WAITING
        assert len(waiting) <= MOST_WAITING
        assert [int(each["id"]) for each in waiting] == sorted(int(each["id"]) for each in waiting)
    left, expired = living(waiting, now + 200)
    assert left == [] and expired == waiting
    assert all(each["id"] != "0" for each in answered(waiting, "0"))


# -- rates ---------------------------------------------------------------------------------------------------


@given(st.floats(0.5, 50), st.lists(st.floats(0, 2), min_size=1, max_size=200))
def test_no_more_is_taken_than_the_rate_and_one_burst(per_second: float, gaps: list[float]) -> None:
    rate, now, taken = Rate(), 100.0, 0
    for gap in gaps:
        now += gap
        rate, ok, _ = sent(rate, now, per_second)
        taken += ok
    assert taken <= max(1.0, per_second * BURST_SECONDS) + per_second * (now - 100.0) + 1


@given(st.floats(0.5, 50), st.integers(1, 300))
def test_who_keeps_to_its_rate_loses_nothing(per_second: float, messages: int) -> None:
    rate, now = Rate(), 50.0
    for _ in range(messages):
        now += 1.001 / per_second
        rate, ok, cut = sent(rate, now, per_second)
        assert ok and not cut and not flooding(rate, now)


def test_a_flood_is_cut_off_at_once_and_for_longer_each_time() -> None:
    rate, cuts, now = Rate(), [], 0.0
    for _ in range(3):
        for n in range(2000):
            rate, _, cut = sent(rate, now + n / 10000, 10)
            if cut:
                cuts.append(rate.out - (now + n / 10000))
        assert flooding(rate, now + 1)
        now = rate.out + 1
        assert not flooding(rate, now)
    assert [round(c) for c in cuts] == [30, 60, 120]
    rate, ok, _ = sent(rate, now + 1000, 10)
    assert ok and rate.cuts == 0


def test_a_device_that_is_a_little_too_fast_is_cut_off_only_when_it_goes_on() -> None:
    rate, first = Rate(), None
    for n in range(2000):
        rate, _, cut = sent(rate, n / 20, 10)
        if cut:
            first = n / 20
            break
    assert first is not None and 9 < first < 12


# -- waves ---------------------------------------------------------------------------------------------------

members = st.lists(
    st.builds(Member, st.sampled_from([f"d{i}" for i in range(12)]), st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    max_size=12,
    unique_by=lambda m: m.name,
)


@given(members, st.integers(1, 5))
def test_a_wave_never_has_more_change_than_may(found: list[Member], most: int) -> None:
    made = wave(found, most)
    by_name = {m.name: m for m in found}
    changing = [m for m in found if m.given and not m.ready]
    assert all(not by_name[n].given for n in made.give)
    there = [n for n in made.give if by_name[n].online]
    assert len(there) <= max(0, most - len(changing))
    if len(there) < len(made.give):
        assert not there and not any(m.online for m in changing) and all(m.given for m in found if m.online)
    if sum(m.failed for m in changing) >= most:
        assert made.give == () and (made.halted or all(m.given for m in found))
    assert made == wave(list(reversed(found)), most)


@given(st.lists(st.booleans(), min_size=1, max_size=15), st.integers(1, 4))
def test_waves_reach_everybody(online: list[bool], most: int) -> None:
    state = {f"d{i:02}": Member(f"d{i:02}", there, False, False) for i, there in enumerate(online)}
    for _ in range(2 * len(online) + 2):
        for name in wave(state.values(), most).give:
            there = state[name].online
            state[name] = Member(name, there, True, there)
    assert all(m.given for m in state.values())


def test_bounds_and_choices() -> None:
    assert [bound(*each) for each in ((3, 10), ("10%", 100), ("10%", 5), ("100%", 7))] == [3, 10, 1, 7]
    for wrong in (0, "0%", "101%", "ten", "5", True):
        with pytest.raises(ValueError, match="must be a number"):
            bound(wrong, 10)
    assert chosen(["c", "a", "b"], ["c"], 2) == ("a", "c")
    assert chosen(["c", "a", "b"], [], None) == ("a", "b", "c")


# -- credentials ---------------------------------------------------------------------------------------------


def test_what_a_claim_allows() -> None:
    spec = {"sha256": credentials.hashed("t"), "count": 2, "expirationTime": format_time(100), "namePrefix": "s-", "owner": "o"}
    claim: dict[str, Any] = {"metadata": {"name": "c"}, "spec": spec | {"labels": {"a": "b"}}, "status": {"used": 1}}
    assert credentials.claim_refusal(claim, 99) == ""
    assert "expired" in credentials.claim_refusal(claim, 100)
    assert "all made" in credentials.claim_refusal(claim | {"status": {"used": 2}}, 99)
    assert "no such" in credentials.claim_refusal(None, 99)
    assert credentials.shows(claim, "t") and not credentials.shows(claim, "u") and not credentials.shows(None, "t")
    made = credentials.enrolled(claim, {"name": "s-1"})
    assert made == {"name": "s-1", "labels": {"a": "b"}, "owner": "o"}
    for wrong in ("x-1", "s-1.2", "s-", 3, None):
        with pytest.raises(ValueError, match=r"spec\.name: must be"):
            credentials.enrolled(claim, {"name": wrong})


@given(st.from_regex(r"[a-z0-9][-a-z0-9]{0,20}", fullmatch=True), st.from_regex(r"[a-z0-9][-.a-z0-9]{0,20}", fullmatch=True))
def test_a_certificate_says_which_claim_it_is_for(namespace: str, name: str) -> None:
    claim = credentials.CertifiedClaim(namespace, name, "0b1c8f9e-0000-4000-8000-000000000000")
    user, groups = claim.subject()
    assert len(user) <= 64 and all(len(each) <= 64 for each in groups)
    assert credentials.certified_claim(user, groups) == credentials.certified_claim(user, groups[::-1]) == claim
    for wrong in (groups[:1], groups[1:], (*groups, "more"), (groups[0], "more"), (groups[0], "system:device-claim:shop")):
        assert credentials.certified_claim(user, wrong) is None
    assert credentials.certified_claim("ann", groups) is None


def test_a_claim_of_a_long_name_has_no_certificate_and_one_without_a_hash_no_token() -> None:
    with pytest.raises(ValueError, match="43 characters"):
        credentials.CertifiedClaim("n" * 20, "c" * 24, "u").subject()
    assert not credentials.shows({"metadata": {"name": "c"}, "spec": {}}, "")


def test_a_token_says_whose_it_is() -> None:
    token = credentials.ClaimToken("shop", "line-3.b", "0" * 48)
    assert credentials.claim_token(str(token)) == token
    for wrong in ("", "ndc_shop_line", f"ndc_shop_line_{'0' * 47}", f"ndc_shop_line_{'0' * 48}\n", "0" * 48):
        assert credentials.claim_token(wrong) is None


# -- batches -------------------------------------------------------------------------------------------------


def test_rows_of_a_file() -> None:
    text = 'name,labels,label.line,place,latitude,desired,owner\na,x=1;y=2,7,hall 3,48.5,"{""led"": true}",ann\n\nb,,,,,,\n'
    first, second = batch.rows(text.splitlines())
    assert first == {
        "name": "a",
        "owner": "ann",
        "location": {"place": "hall 3", "latitude": 48.5},
        "labels": {"x": "1", "y": "2", "line": "7"},
        "desired": {"led": True},
    }
    assert second == {"name": "b"}
    assert batch.device(first)["spec"]["desired"] == {"led": True}
    assert batch.device(second) == {"labels": {}, "spec": {"credential": {"generation": 1}}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be called name"),
        ("nam\na", "must be called name"),
        ("name,colour\na,b", "column 'colour'"),
        ("name,name\na,b", "twice"),
        ("name\na,b", "line 2: 2 values for 1"),
        ("name,owner\n,x", "line 2: name is empty"),
        ("name\na\na", "line 3: name 'a' stands in line 2"),
        ("name,latitude\na,north", "latitude 'north'"),
        ("name,labels\na,x", "labels 'x'"),
        ("name,desired\na,[1]", "in braces"),
        ("name,desired\na,{", "JSON object"),
    ],
)
def test_a_file_that_makes_no_sense_says_where(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        batch.rows(text.splitlines())
