"""An agent goes on to the next hub where one fails, remembers those that it was told of, and takes no nonsense."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from metaos.agent.hubs import MOST, Hubs

FIRST = "https://hub.example.org:6443"
OTHERS = ["https://10.0.0.1:6443", "https://10.0.0.2:6443/"]


def test_the_next_one_where_one_fails(tmp_path: Path) -> None:
    file, moves = tmp_path / "hubs.json", list[str]()
    hubs = Hubs(FIRST, file)
    hubs.on_move(lambda: moves.append(hubs.url))
    hubs.failed(FIRST)
    assert hubs.url == FIRST and not moves, "there is no other"
    hubs.learn(OTHERS)
    for expected in ("https://10.0.0.1:6443", "https://10.0.0.2:6443", FIRST):
        hubs.failed(hubs.url)
        assert hubs.url == expected
    hubs.failed("https://10.0.0.1:6443")
    assert hubs.url == FIRST and len(moves) == 3, "another part has moved on already"
    assert Hubs(FIRST, file).urls == [FIRST, "https://10.0.0.1:6443", "https://10.0.0.2:6443"]
    file.write_text("{")
    assert Hubs(FIRST, file).urls == [FIRST]


def test_several_may_be_given() -> None:
    hubs = Hubs(FIRST, None, ["https://second.example.org:6443/"])
    hubs.learn([FIRST, OTHERS[0]])
    assert hubs.urls == [FIRST, "https://second.example.org:6443", OTHERS[0]]


@given(st.one_of(st.none(), st.text(), st.lists(st.one_of(st.integers(), st.text(), st.just("http://a"), st.just("https://a")))))
def test_what_is_no_list_of_hubs_is_left_out(said: object) -> None:
    hubs = Hubs(FIRST)
    hubs.learn(said)
    assert hubs.urls[0] == FIRST and len(hubs.urls) <= MOST + 1
    assert all(url.startswith("https://") for url in hubs.urls)
    for _ in range(len(hubs.urls) + 2):
        hubs.failed(hubs.url)
        assert hubs.url in hubs.urls
