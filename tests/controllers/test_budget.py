"""Budgets over the ledger: a namespace's month is counted, warned of, and at the limit its new work is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from metaos.client import PatchType
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from metaos.security.authz import UserInfo
from tests.apiserver.accounting import Hub, pod, reported, running
from tests.apiserver.conftest import ADMIN
from tests.apiserver.objects import deployment
from tests.clock import FakeClock
from tests.controllers.test_accounting import shop

#: What a period of the tests' pod comes to: operation of 0.4 g and the hardware's.
FAR, NEAR, OVER = 1000.0, 1.0, 0.4


async def limited(hub: Hub, grams: float, name: str = "month", **spec: Any) -> None:
    await hub.registry.create(ADMIN, {**scheme.BUDGET.empty(name, "shop"), "spec": {"grams": grams} | spec})


async def standing(hub: Hub, name: str = "month") -> dict[str, Any]:
    await hub.settle()
    found: dict[str, Any] = (await hub.registry.get(ADMIN, scheme.BUDGET, name, "shop")).get("status") or {}
    return found | {c["type"]: c["status"] for c in found.get("conditions") or ()}


async def used(hub: Hub) -> None:
    await shop(hub)
    await hub.reports("paris", reported(hub.clock, 1, pod()))
    await hub.settle()


async def test_what_is_booked_counts_and_below_the_limit_all_is_let_in() -> None:
    async with running() as hub:
        await used(hub)
        await limited(hub, FAR)
        found = await standing(hub)
        (group,) = (await hub.statement(by="namespace"))["groups"]
        whole = float(group["operationalGrams"]["location"]) + float(group["embodiedGrams"] or 0)
        assert found["usedGrams"] == pytest.approx(whole) and found["month"] == "2023-11"
        assert found["Exhausted"] == found["NearLimit"] == "False"
        await hub.registry.create(ADMIN, deployment("new", "shop"))


async def test_at_the_limit_new_work_and_more_replicas_are_refused_and_what_runs_goes_on() -> None:
    async with running() as hub:
        await used(hub)
        before = await hub.registry.create(ADMIN, deployment("old", "shop"))
        job: Obj = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "later", "namespace": "shop"},
            "spec": {
                "suspend": True,
                "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "b"}]}},
            },
        }
        await hub.registry.create(ADMIN, job)
        await limited(hub, OVER)
        assert (await standing(hub))["Exhausted"] == "True"
        for change in (
            hub.registry.create(ADMIN, deployment("new", "shop")),
            hub.registry.patch(ADMIN, scheme.DEPLOYMENT, "old", "shop", {"spec": {"replicas": 5}}),
            hub.registry.patch(ADMIN, scheme.DEPLOYMENT, "old", "shop", {"spec": {"replicas": 5}}, subresource="scale"),
            hub.registry.patch(ADMIN, scheme.JOB, "later", "shop", {"spec": {"suspend": False}}),
        ):
            with pytest.raises(ApiError) as refused:
                await change
            assert (refused.value.code, refused.value.reason) == (403, "Forbidden")
            assert "exceeded budget: month, gCO2eq: " in refused.value.message and "of 0.4" in refused.value.message
        await hub.registry.patch(ADMIN, scheme.DEPLOYMENT, "old", "shop", {"metadata": {"labels": {"x": "y"}}})
        await hub.registry.patch(ADMIN, scheme.DEPLOYMENT, "old", "shop", {"spec": {"replicas": 0}})
        assert before["spec"]["replicas"] >= 1
        await hub.registry.create(ADMIN, deployment("elsewhere", "default"))
        told = [e["reason"] for e in (await hub.registry.list(ADMIN, scheme.EVENT, "shop")).items]
        assert "LimitReached" in told and "Warning" in told
        # Raised, it lets work in again.
        await hub.registry.patch(ADMIN, scheme.BUDGET, "month", "shop", {"spec": {"grams": FAR}}, type=PatchType.MERGE)
        assert (await standing(hub))["Exhausted"] == "False"
        await hub.registry.create(ADMIN, deployment("new", "shop"))


async def test_money_is_limited_in_its_currency_and_a_new_month_begins_anew() -> None:
    async with running(clock=FakeClock(datetime(2023, 11, 30, 23, 55, tzinfo=UTC).timestamp())) as hub:
        await used(hub)
        await limited(hub, FAR, cost={"amount": 0, "currency": "EUR"})
        assert (await standing(hub))["Exhausted"] == "True"
        await hub.clock.advance(600)
        found = await standing(hub)
        assert found["month"] == "2023-12" and found["Exhausted"] == "False", found


async def test_a_projection_warns_before_the_limit() -> None:
    async with running() as hub:
        await used(hub)
        status = {"scores": [{"cluster": "paris", "terms": [{"name": "energy", "value": 20}, {"name": "carbon", "value": 300}]}]}
        made = {**scheme.PLACEMENT.empty("deployment.web", "shop"), "spec": {"clusters": [{"name": "paris", "replicas": 1}]}}
        await hub.registry.create(ADMIN, made)
        await hub.registry.patch(ADMIN, scheme.PLACEMENT, "deployment.web", "shop", {"status": status}, subresource="status")
        await limited(hub, FAR)
        found = await standing(hub)
        assert found["gramsPerHour"] == 6.0 and found["projectedGrams"] > FAR
        assert (found["NearLimit"], found["Exhausted"]) == ("True", "False")
        warnings: list[str] = []
        await hub.registry.create(ADMIN, deployment("new", "shop"), warnings=warnings)
        assert any("budget month is near its limit" in said for said in warnings)


async def test_tenants_see_their_budgets_and_do_not_change_them() -> None:
    async with running() as hub:
        await used(hub)
        await limited(hub, FAR)
        role = {"kind": "ClusterRole", "name": "admin", "apiGroup": "rbac.authorization.k8s.io"}
        subjects = [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}]
        binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "roleRef": role, "subjects": subjects}
        await hub.registry.create(ADMIN, binding | {"metadata": {"name": "ann", "namespace": "shop"}})
        ann = UserInfo("ann", ("system:authenticated",))
        assert await hub.registry.get(ann, scheme.BUDGET, "month", "shop")
        for change in (
            hub.registry.patch(ann, scheme.BUDGET, "month", "shop", {"spec": {"grams": 1e6}}),
            hub.registry.delete(ann, scheme.BUDGET, "month", "shop"),
        ):
            with pytest.raises(ApiError, match="forbidden"):
                await change
