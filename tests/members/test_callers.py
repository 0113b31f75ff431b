"""Who a hub's user is at a cluster."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.members.callers import MAX_GROUPS, PREFIX, Identities, acting_as
from metaos.resources.errors import ApiError

words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["alice", "system:masters", " system:masters", "system:serviceaccount:shop:web", "a\nb", ""]),
)
users = st.one_of(
    st.none(), st.text(max_size=3), st.fixed_dictionaries({"name": words}, optional={"groups": st.lists(words, max_size=4)})
)


@given(users, st.sampled_from([Identities.PREFIXED, Identities.SAME]))
def test_nobody_of_the_hub_gets_a_name_that_the_cluster_itself_gives_a_meaning(user: Any, how: Identities) -> None:
    with contextlib.suppress(ApiError):
        headers = acting_as(user, how)
        assert headers[0][0] == "Impersonate-User" and headers[0][1] not in ("", PREFIX)
        for _, word in headers:
            assert not word.strip().startswith("system:") and word.isprintable() and word.isascii()
            assert how is Identities.SAME or word.startswith(PREFIX)


@pytest.mark.parametrize(
    ("user", "how", "why"),
    [
        (None, "prefixed", "does not say in whose name"),
        ({"name": "system:serviceaccount:a:b"}, "same", "only people act here"),
        ({"name": "jos\u00e9"}, "prefixed", "printable ASCII"),
        ({"name": "alice", "groups": [" system:masters"]}, "same", "no blank first or last"),
        ({"name": "alice", "groups": ["g"] * (MAX_GROUPS + 1)}, "same", "is in 65 groups"),
    ],
)
def test_what_is_refused_says_why(user: Any, how: str, why: str) -> None:
    with pytest.raises(ApiError, match=why) as caught:
        acting_as(user, Identities(how))
    assert caught.value.code == 403


def test_the_agent_acts_in_its_own_name_where_the_owner_wants_that() -> None:
    assert acting_as(None, Identities.AGENT) == ()
    assert acting_as({"name": "alice", "groups": ["devs", "system:authenticated"]}, Identities.SAME) == (
        ("Impersonate-User", "alice"),
        ("Impersonate-Group", "devs"),
    )
