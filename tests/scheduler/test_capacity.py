"""Two series as one, and means along runs."""

import pytest

from metaos.scheduler.capacity import blended, mean_along


def test_two_series_count_alike_whatever_their_units() -> None:
    assert blended([100.0, 300.0, 1.0], [0.03, 0.01]) == pytest.approx([100.0, 100.0])
    assert blended([0.0, 0.0], [1.0, 3.0]) == pytest.approx([75.0, 125.0])


def test_a_mean_along_runs_counts_the_parts_of_hours_and_the_width() -> None:
    assert mean_along([100.0, 200.0], ((0.5, 1.0, 1),), 0.0) == 150.0
    assert mean_along([100.0, 200.0], ((0.0, 1.0, 1), (1.0, 1.0, 3)), 0.0) == 175.0
    assert mean_along([100.0], ((5.0, 1.0, 1),), 0.5) == 100.0
