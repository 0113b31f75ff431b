"""Which site's images the commands are about."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaos.cli.operations import site_data


def hub(path: Path, *, local: bool = True) -> Path:
    path.mkdir()
    (path / "version").touch()
    (path / "state.db").touch()
    if local:
        site(path / "local/agent")
    return path


def site(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "version").touch()
    return path


def test_a_site_is_meant_as_it_is_named(tmp_path: Path) -> None:
    here = site(tmp_path / "edge-1")
    assert site_data(here, tmp_path / "agent", hub(tmp_path / "hub")) == here
    assert site_data(tmp_path / "new", here, here) == tmp_path / "new", "images may be there before the site is"


def test_of_a_hub_its_local_site_is_meant(tmp_path: Path) -> None:
    found = hub(tmp_path / "hub")
    assert site_data(found, tmp_path / "agent", tmp_path / "other") == found / "local/agent"


@pytest.mark.parametrize("agent", [True, False])
def test_without_a_name_the_agents_own_and_then_the_local_site(tmp_path: Path, agent: bool) -> None:
    local = hub(tmp_path / "hub") / "local/agent"
    if agent:
        site(tmp_path / "agent")
    assert site_data(None, tmp_path / "agent", tmp_path / "hub") == (tmp_path / "agent" if agent else local)
    assert site_data(None, tmp_path / "nobody", tmp_path / "nothing") == tmp_path / "nobody"
