"""What a Job or CronJob may say, and what is filled in."""

from __future__ import annotations

from typing import Any

import pytest

from metaos.apiserver.registry import Registry
from metaos.resources import scheme
from metaos.resources.meta import Obj
from tests.apiserver.conftest import ADMIN
from tests.apiserver.test_kinds import make, refused


def job(restart: str = "Never", **spec: Any) -> Obj:
    template = {"spec": {"restartPolicy": restart, "containers": [{"name": "c", "image": "python:3"}]}}
    return make(scheme.JOB, spec={"template": template, **spec})


async def test_defaults_that_depend_on_others(registry: Registry) -> None:
    plain = (await registry.create(ADMIN, job()))["spec"]
    assert (plain["backoffLimit"], plain["podReplacementPolicy"], plain["completions"]) == (6, "TerminatingOrFailed", 1)
    rules = [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]
    policy = job(completions=2, completionMode="Indexed", backoffLimitPerIndex=1, podFailurePolicy={"rules": rules})
    policy["metadata"]["name"] = "b"
    made = (await registry.create(ADMIN, policy))["spec"]
    assert (made["backoffLimit"], made["podReplacementPolicy"]) == (2**31 - 1, "Failed")
    assert made["podFailurePolicy"]["rules"][0]["onPodConditions"][0]["status"] == "True"


def rule(**codes: Any) -> dict[str, Any]:
    return {"rules": [{"action": "FailJob", "onExitCodes": codes}]}


INDEXED = {"completions": 3, "completionMode": "Indexed"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"completionMode": "Indexed"} | {"parallelism": 1}, "spec.completions"),
    ({"maxFailedIndexes": 1} | INDEXED, "spec.backoffLimitPerIndex"),
    ({"backoffLimitPerIndex": 1}, "spec.backoffLimitPerIndex"),
    ({"successPolicy": {"rules": [{"succeededCount": 1}]}}, "spec.successPolicy"),
    ({"successPolicy": {"rules": [{"succeededCount": 4}]}} | INDEXED, "spec.successPolicy.rules[0].succeededCount"),
    ({"successPolicy": {"rules": [{"succeededIndexes": "2-1"}]}} | INDEXED, "spec.successPolicy.rules[0].succeededIndexes"),
    ({"successPolicy": {"rules": [{"succeededIndexes": "0-3"}]}} | INDEXED, "spec.successPolicy.rules[0].succeededIndexes"),
    ({"successPolicy": {"rules": [{}]}} | INDEXED, "spec.successPolicy.rules[0]"),
    ({"podFailurePolicy": rule(operator="In", values=[0, 1])}, "spec.podFailurePolicy.rules[0].onExitCodes.values[0]"),
    ({"podFailurePolicy": rule(operator="In", values=[2, 1])}, "spec.podFailurePolicy.rules[0].onExitCodes.values"),
    ({"podFailurePolicy": rule(operator="In", values=[])}, "spec.podFailurePolicy.rules[0].onExitCodes.values"),
    ({"podFailurePolicy": rule(operator="Is", values=[1])}, "spec.podFailurePolicy.rules[0].onExitCodes.operator"),
    (
        {"podFailurePolicy": rule(operator="In", values=[1], containerName="d")},
        "spec.podFailurePolicy.rules[0].onExitCodes.containerName",
    ),
    ({"podFailurePolicy": {"rules": [{"action": "Count"}]}}, "spec.podFailurePolicy.rules[0]"),
    ({"podFailurePolicy": {"rules": [{"action": "Stop"}]}}, "spec.podFailurePolicy.rules[0].action"),
    ({"podFailurePolicy": rule(operator="In", values=[1]), "restart": "OnFailure"}, "spec.template.spec.restartPolicy"),
    ({"podReplacementPolicy": "Never"}, "spec.podReplacementPolicy"),
    (
        {"podFailurePolicy": rule(operator="In", values=[1]), "podReplacementPolicy": "TerminatingOrFailed"},
        "spec.podReplacementPolicy",
    ),
]


@pytest.mark.parametrize(("spec", "field"), REFUSED)
async def test_refused(registry: Registry, spec: dict[str, Any], field: str) -> None:
    assert field in await refused(registry, job(**spec))


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"schedule": "* * *"}, "spec.schedule"),
        ({"schedule": "@sometimes"}, "spec.schedule"),
        ({"schedule": "TZ=UTC * * * * *"}, "spec.schedule"),
        ({"schedule": "* * * * *", "timeZone": "Moon/Base"}, "spec.timeZone"),
        ({"schedule": "* * * * *", "timeZone": "Local"}, "spec.timeZone"),
        ({"schedule": "* * * * *", "timeZone": "../etc/passwd"}, "spec.timeZone"),
    ],
)
async def test_refused_schedules(registry: Registry, spec: dict[str, Any], field: str) -> None:
    cron = make(scheme.CRON_JOB, spec={"jobTemplate": {"spec": job()["spec"]}, **spec})
    assert field in await refused(registry, cron)


async def test_policies_are_immutable(registry: Registry) -> None:
    made = await registry.create(ADMIN, job(**INDEXED, backoffLimitPerIndex=1))
    made["spec"]["backoffLimitPerIndex"] = 2
    with pytest.raises(Exception, match="field is immutable"):
        await registry.update(ADMIN, made)
