"""Every namespace has a ServiceAccount ``default``."""

from __future__ import annotations

from metaos.controllers import serviceaccount as controller
from metaos.resources import scheme
from metaos.resources.meta import name, namespace
from tests.controllers.continuum import running, until

SA = scheme.SERVICE_ACCOUNT


async def test_it_is_there_and_comes_back() -> None:
    objects = [scheme.NAMESPACE.empty(each) for each in ("old", "nemo-system", "nemo-cluster-a")]
    async with running(controller.setup, objects=tuple(objects)) as (client, clock):
        await until(clock, lambda: client.find(SA, "default", "old"))
        client.seed(scheme.NAMESPACE.empty("new"))
        await until(clock, lambda: client.find(SA, "default", "new"))
        await client.delete(SA, "default", "new")
        await until(clock, lambda: client.find(SA, "default", "new"))
        own = SA.empty("default", "mine") | {"automountServiceAccountToken": False}
        client.seed(own, scheme.NAMESPACE.empty("mine"))
        await clock.advance(5)
        found = client.find(SA, "default", "mine")
        assert found is not None and found["automountServiceAccountToken"] is False, "one that is there is left alone"
        assert {(namespace(each), name(each)) for each in client.objects(SA)} == {
            (where, "default") for where in ("old", "new", "mine")
        }, "NEMO's own namespaces have none"


async def test_a_namespace_that_goes_gets_none() -> None:
    going = scheme.NAMESPACE.empty("going")
    going["metadata"] |= {"finalizers": ["x"], "deletionTimestamp": "2024-01-01T00:00:00Z"}
    async with running(controller.setup, objects=(going,)) as (client, clock):
        await clock.advance(5)
        assert not client.objects(SA)
