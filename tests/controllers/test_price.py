"""Prices of a table stand in the status of each site, by the hour."""

from dataclasses import replace
from typing import Any

from metaos.accounting.price import TracePriceSource
from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers import price
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from tests.clock import FakeClock
from tests.controllers.continuum import cluster, running, until


async def test_prices_of_a_table_stand_in_the_status_of_each_site() -> None:
    source = TracePriceSource("hour_utc,DE,a\n0,0.05,0.01\n1,0.06,0.02\n", start_time=FakeClock().now() // 3600 * 3600)

    def with_prices(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        price.setup(manager, client, clock, replace(settings, price=source))

    here, there = cluster("a"), cluster("b", electricity={"zone": "XX"})
    async with running(with_prices, objects=(here, there)) as (client, clock):

        def found(name: str) -> dict[str, Any]:
            return ((client.find(scheme.CLUSTER, name) or {}).get("status") or {}).get("price") or {}

        await until(clock, lambda: found("a") and found("b"))
        assert found("a")["forecast"] == [0.01, 0.02] and found("a")["step"] == "Fresh"
        assert found("b")["step"] == "Unknown" and "forecast" not in found("b")
        await clock.advance(3700)
        await until(clock, lambda: found("a")["cpuHour"] == 0.02)
