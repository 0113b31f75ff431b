"""Helm 4 as a library: install, upgrade, history, uninstall. Its rollback sets no wait strategy and fails by itself."""

import asyncio
import sys

import helm_sdkpy

NAMESPACE, CHART = sys.argv[1:]


async def main() -> None:
    config = helm_sdkpy.Configuration(namespace=NAMESPACE)
    made = await helm_sdkpy.Install(config).run("shop", CHART, wait=True, timeout=60)
    assert made["name"] == "shop", made
    await helm_sdkpy.Upgrade(config).run("shop", CHART, values={"greeting": "bye"}, wait=True, timeout=60)
    assert len(await helm_sdkpy.History(config).run("shop")) == 2
    assert [release["name"] for release in await helm_sdkpy.List(config).run()] == ["shop"]
    await helm_sdkpy.Uninstall(config).run("shop", wait=True, timeout=60)
    assert not await helm_sdkpy.List(config).run()
    print("helm library: all passed")


asyncio.run(main())
