"""A run of thousands of seeds may be interrupted: it goes on where it stopped, as long as the program is the same."""

from __future__ import annotations

import json
from pathlib import Path

from bench.chaos import Piece, Record


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file = tmp_path / "seeds.json"
    record = Record(file, "aaa")
    assert [*record.left("small", 1, 100)] == [range(1, 101)]
    record.add("small", 1, 20, [], 10.0)
    record.add("small", 21, 40, [33], 12.0)
    record.add("tight", 1, 20, [], 11.0)
    again = Record(file, "aaa")
    assert again.pieces == [Piece("small", "aaa", 1, 40, [33], 22.0), Piece("tight", "aaa", 1, 20, [], 11.0)]
    assert [*again.left("small", 1, 100)] == [range(41, 101)]
    assert [*again.left("small", 1, 40)] == [] and [*again.left("long", 1, 5)] == [range(1, 6)]
    again.add("small", 61, 80, [], 9.0)
    assert [*again.left("small", 1, 100)] == [range(41, 61), range(81, 101)]
    assert [*again.left("small", 70, 90)] == [range(81, 91)]
    assert not file.with_suffix(".new").exists()


def test_what_another_program_has_played_says_nothing_of_this_one_and_stays_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "seeds.json"
    Record(file, "aaa").add("small", 1, 20, [], 10.0)
    record = Record(file, "bbb")
    assert [*record.left("small", 1, 20)] == [range(1, 21)] and not record.of("small")
    record.add("small", 1, 20, [7], 10.0)
    assert [(p["commit"], p["failed"]) for p in json.loads(file.read_text())] == [("aaa", []), ("bbb", [7])]
