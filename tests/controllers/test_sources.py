"""Plugins for carbon and prices are found by name, and what they say of themselves reaches the decisions."""

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.client import Client
from metaos.clock import Clock
from metaos.config import Address, HubConfig
from metaos.controllers import carbon, price
from metaos.controllers.outlook import ahead, in_its_currency, prices_ahead
from metaos.controllers.settings import Settings
from metaos.controllers.sources import CARBON_SOURCES, PRICE_SOURCES, figures, source
from metaos.plugins import registry
from metaos.plugins.points import SEASONAL, PriceSource
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.server import _carbon_source, _price_source
from tests.controllers.continuum import cluster, running, until

HOW_TO = Path(__file__).parents[2] / "docs/how-to/defer-work.md"


@pytest.fixture
def windmill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugin of the how-to, installed."""
    (code,) = re.findall(r"```python\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
    (tmp_path / "windmill.py").write_text(code + "\n\nclass Bare:\n    def __init__(self, text, *, now):\n        pass\n")
    info = tmp_path / "windmill-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: windmill\nVersion: 1\n")
    points = "windmill = windmill:Windmill\nbare = windmill:Bare\ngone = windmill:Gone\n"
    (info / "entry_points.txt").write_text(f"[{CARBON_SOURCES}]\n{points}")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    registry._group.cache_clear()
    yield
    registry._group.cache_clear()


async def test_a_plugin_is_loaded_by_name_and_its_step_and_error_are_told_in_decisions(windmill: None) -> None:
    config = HubConfig(Path(), Address("127.0.0.1", 0), carbon_source=("windmill", "30"))
    found = _carbon_source(config, 0.0)

    def with_source(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        carbon.setup(manager, client, clock, replace(settings, carbon=found))

    async with running(with_source, objects=(cluster("a", electricity={"zone": "DE"}),)) as (client, clock):

        def site() -> Any:
            return client.find(scheme.CLUSTER, "a") or {}

        await until(clock, lambda: (site().get("status") or {}).get("carbon"))
        assert site()["status"]["carbon"]["intensity"] == 30
        told = ahead(site(), clock.now()).as_data()
        assert (told["source"], told["step"], told["errorPercent"]) == ("a windmill", "Stale", 25.0)


async def test_a_price_source_says_itself_how_far_it_had_to_fall_back() -> None:
    class Guess(PriceSource):
        def price(self, site: str, zone: str, now: float) -> Sequence[float] | None:
            return [0.05, 0.06]

        def describe(self) -> str:
            return "a guess"

        def step(self, site: str, zone: str, now: float) -> tuple[str, float | None]:
            return SEASONAL, 0.5

    def with_source(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        price.setup(manager, client, clock, replace(settings, price=Guess()))

    async with running(with_source, objects=(cluster("a"),)) as (client, clock):

        def site() -> Any:
            return client.find(scheme.CLUSTER, "a") or {}

        await until(clock, lambda: (site().get("status") or {}).get("price"))
        told = prices_ahead(site(), clock.now()).as_data()
        assert (told["source"], told["step"], told["errorPercent"]) == ("a guess", "Seasonal", 50.0)


def test_what_a_plugin_lacks_is_said(windmill: None) -> None:
    with pytest.raises(registry.UnknownPlugin, match="installed are"):
        source(CARBON_SOURCES, "tea", "", 0.0)
    with pytest.raises(ValueError, match=r"plugin 'bare' .* has no .*intensity.*: derive it from .*CarbonSource"):
        source(CARBON_SOURCES, "bare", "", 0.0)
    with pytest.raises(ValueError, match=r"plugin 'gone' .* cannot be made"):
        source(CARBON_SOURCES, "gone", "", 0.0)
    with pytest.raises(ValueError, match=r"plugin 'windmill' .* cannot be made of 'much': ValueError: could not convert"):
        source(CARBON_SOURCES, "windmill", "much", 0.0)


def test_what_ships_with_nemo_has_names_too(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("hour_utc,a\n0,5\n1,6\n")
    config = HubConfig(Path(), Address("127.0.0.1", 0), carbon_source=("trace", str(file)), price_source=("trace", str(file)))
    prices = _price_source(config, 5000.0)
    assert prices is not None and prices.price("a", "", 3600.0) == [5, 6] == _carbon_source(config, 0.0).intensity("a", 0.0)
    assert _price_source(HubConfig(Path(), Address("127.0.0.1", 0)), 0.0) is None
    assert source(CARBON_SOURCES, "feed", "uk-carbon-intensity", 0.0).describe() == "uk-carbon-intensity"
    with pytest.raises(ValueError, match="it takes nothing"):
        source(PRICE_SOURCES, "static", "5", 0.0)


@pytest.mark.parametrize("said", [[1.0, None], [1.0, "many"], [1.0, [2.0]], [1.0, 10**400]])
def test_what_is_no_number_at_all_is_not_taken(said: list[Any]) -> None:
    found, problem = figures(said)
    assert found is None
    assert "its figure of hour 1 is no number" in problem


@given(st.none() | st.lists(st.floats()))
def test_only_numbers_are_taken_of_what_a_plugin_says(said: list[float] | None) -> None:
    found, problem = figures(said)
    bad = said is not None and (not said or any(v != v or abs(v) == float("inf") for v in said))
    assert bool(problem) == bad
    assert found == (None if bad else said)


@pytest.mark.parametrize("rate", [{}, {"exchangeRate": 0.006}])
def test_what_a_site_offers_is_in_one_currency_whatever_that_is_worth(rate: dict[str, float]) -> None:
    price = {"currency": "JPY", "cpuHour": 5.0, "spot": {"cpuHour": 4.0}} | rate
    found = in_its_currency(cluster("tokyo", price=price))
    assert found.cpu_hour == 5.0 and found.spot is not None and found.spot.cpu_hour == 4.0
