"""Options that several commands could have."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from metaos.cli.main import nemo
from metaos.cli.options import ADDRESS, HOST


@pytest.mark.parametrize("given", ["127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.1"])
def test_an_address_is_one_at_which_others_reach_this_machine(given: str) -> None:
    with pytest.raises(click.BadParameter, match="is not one at which pods reach this machine"):
        ADDRESS.convert(given, None, None)


def test_an_address_is_an_address() -> None:
    assert ADDRESS.convert("10.0.0.7", None, None) == "10.0.0.7"
    with pytest.raises(click.BadParameter, match="is no IPv4 address"):
        ADDRESS.convert("here", None, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("agent", "--hub", "https://h", "--expose", "0.0.0.0"), "name that of one card"),
        (("agent", "--hub", "https://h", "--runtime", "kubernetes", "--expose", "127.0.0.1"), "has load balancers of its own"),
        (("up", "--no-local", "--expose", "127.0.0.1"), "--expose is of the local site"),
    ],
)
def test_where_a_site_answers_is_checked_before_anything_starts(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "site.yaml").touch()
    site = ("--site", str(tmp_path / "site.yaml")) if arguments[0] == "agent" else ()
    result = CliRunner().invoke(nemo, [*arguments, *site])
    assert result.exit_code == 2 and said in " ".join(result.output.split())


@pytest.mark.parametrize("given", ["hub.example.org", "Hub-1", "*.example.org", "10.0.0.7", "::1"])
def test_a_hub_has_names_and_addresses(given: str) -> None:
    assert HOST.convert(given, None, None) == given


@pytest.mark.parametrize("given", ["a b", "", "-a", "https://hub", "a..b", "x" * 254])
def test_what_no_certificate_can_hold_is_no_name_of_a_hub(given: str) -> None:
    with pytest.raises(click.BadParameter, match="is neither a host name"):
        HOST.convert(given, None, None)
