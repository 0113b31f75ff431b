"""What ships with NEMO is found exactly as a third party's."""

import pytest

from metaos.plugins.registry import UnknownPlugin, load, load_all, names
from metaos.scheduler.filters import FILTERS
from metaos.scheduler.scores import SCORES


def test_every_built_in_filter_and_score_is_registered_in_its_order() -> None:
    assert load_all("metaos.filter", [name for name, _ in FILTERS])[: len(FILTERS)] == list(FILTERS)
    assert [score for _, score in load_all("metaos.score", [s.name for s in SCORES])][: len(SCORES)] == list(SCORES)


def test_an_unknown_plugin_is_named_with_those_that_are_known() -> None:
    with pytest.raises(UnknownPlugin, match=r"no plugin 'docker' in metaos.runtime: installed are podman, sandbox"):
        load("metaos.runtime", "docker")
    assert names("metaos.nothing") == []
