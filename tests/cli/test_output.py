"""Tables: nothing is lost on a screen of any width, and nothing is wider than it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metaos.cli.output import table

names = st.from_regex(r"[a-z]{1,12}(/[a-z-]{1,30}){0,2}", fullmatch=True)
figures = st.from_regex(r"[0-9]{1,9}", fullmatch=True)


@given(st.lists(st.tuples(names, *[figures] * 6), min_size=1, max_size=4), st.integers(40, 200))
def test_every_figure_is_there_once_and_fits(rows: list[tuple[str, ...]], width: int) -> None:
    head = ["by", "energy kWh", "cost", "core hours", "pod hours", "SCI g/core-hour", "x"]
    lines = table(head, rows, width)
    assert max(map(len, lines)) <= width
    every = " ".join(lines).split()
    for figure in {cell for row in rows for cell in row[1:]}:
        assert every.count(figure) == sum(cell == figure for row in rows for cell in row[1:])
    if max(map(len, table(head, rows))) <= width:
        assert lines == table(head, rows)


def test_headings_break_first_then_columns_go_below() -> None:
    head, rows = ["by", "energy kWh", "core hours"], [["a", "1", "2"]]
    assert table(head, rows) == ["by  energy kWh  core hours", "a            1           2"]
    assert table(head, rows, 20) == ["by  energy   core", "       kWh  hours", "a        1      2"]
    assert table(head, rows, 12) == ["by  energy", "       kWh", "a        1", "", "by   core", "    hours", "a       2"]
