"""metrics.k8s.io: measured by the sites, asked for when somebody looks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from metaos.clock import SystemClock
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.tunnel import Stream
from tests.apiserver.objects import cluster, pod
from tests.apiserver.serving import ServedHub, served, site

USED = {"cpu": 0.25, "memory": 64 << 20}


class Site:
    """Answers as it is told to; counts how often it was asked."""

    def __init__(self, *pods: str, answer: bytes = b"") -> None:
        shown = [{"namespace": "default", "name": p, "containers": {"web": USED}} for p in pods]
        self.answer = answer or json.dumps({"age": 2, "window": 10, "pods": shown}).encode()
        self.asked = 0

    async def __call__(self, header: dict[str, Any], stream: Stream) -> None:
        assert header == {"type": "usage"}
        self.asked += 1
        await stream.accept()
        await stream.write(self.answer)


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[ServedHub]:
    async with served(tmp_path, SystemClock()) as running:
        await running.make(
            cluster("a"), cluster("b"), pod("one", nodeName="a"), pod("two", nodeName="b"), pod("away", nodeName="c")
        )
        yield running


async def test_pods_and_sites_are_measured(hub: ServedHub) -> None:
    one = Site("one", "two")
    async with site(hub, "a", one), site(hub, "b", Site()), hub_client(hub) as client:
        found = (await client.list(scheme.POD_METRICS, "default")).items
        # Site a speaks for its own pods only; site b measured nothing; site c is away.
        assert [p["metadata"]["name"] for p in found] == ["one"]
        assert found[0]["containers"] == [{"name": "web", "usage": {"cpu": "250000000n", "memory": "65536Ki"}}]
        assert found[0]["window"] == "10.000s" and found[0]["metadata"]["labels"] == {"app": "web", "meta-os.eu/cluster": "a"}
        assert (await client.get(scheme.POD_METRICS, "one", "default"))["containers"] == found[0]["containers"]
        assert (await client.list(scheme.POD_METRICS, "default", labels="app=none")).items == []
        sites = (await client.list(scheme.NODE_METRICS)).items
        assert {s["metadata"]["name"]: s["usage"]["cpu"] for s in sites} == {"a": "500000000n", "b": "0n"}
        for missing in ("two", "away", "none"):
            with pytest.raises(ApiError) as refused:
                await client.get(scheme.POD_METRICS, missing, "default")
            assert refused.value.code == 404
        assert one.asked == 1, "an answer serves all who look within a moment"


@pytest.mark.parametrize("answer", [b"{", b"[]", b'{"age": 1}', b'{"age": 1, "window": 2, "pods": [{}]}', b'{"age":"x"}'])
async def test_a_site_that_talks_nonsense_has_no_metrics(hub: ServedHub, answer: bytes) -> None:
    async with site(hub, "a", Site(answer=answer)), hub_client(hub) as client:
        assert (await client.list(scheme.POD_METRICS)).items == []
        assert (await client.list(scheme.NODE_METRICS)).items == []


async def test_they_are_read_only(hub: ServedHub) -> None:
    async with hub_client(hub) as client:
        with pytest.raises(ApiError) as refused:
            await client.create(dict(scheme.POD_METRICS.empty("one", "default")))
        assert refused.value.code == 405


class hub_client:
    """The administrator over HTTPS."""

    def __init__(self, hub: ServedHub) -> None:
        self._client = hub.client()

    async def __aenter__(self) -> Any:
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
