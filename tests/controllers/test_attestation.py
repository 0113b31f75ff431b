"""The condition Attested follows evidence, expectations and time, and placements follow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from metaos.controllers import attestation as controller
from metaos.controllers import placement
from metaos.plugins.points import Verdict
from metaos.resources import scheme
from metaos.resources.meta import Obj, condition
from tests.controllers.continuum import cluster, deployment, intent, places, running, until
from tests.fake_client import FakeClient


class Stub:
    """Believes whatever is of the expected measurement, for as long as it may be old."""

    def verify(
        self, site: str, evidence: Mapping[str, Any], expected: Sequence[str], max_age: float, roots: bytes, now: float
    ) -> Verdict:
        good = evidence.get("measurement") in expected and now < evidence["time"] + max_age
        return Verdict(good, "Verified" if good else "Refused", site, evidence["time"] + max_age if good else None)


@pytest.fixture(autouse=True)
def _stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "provision", lambda group, name: Stub())


def site(measurement: str, time: float, **asked: Any) -> Obj:
    policy = {"measurements": ["good"], "maxAgeSeconds": 100} | asked
    return cluster("a", attestation=policy, status={"attestation": {"measurement": measurement, "time": time}})


def told(client: FakeClient) -> tuple[Any, ...]:
    found = client.find(scheme.CLUSTER, "a") or {}
    said = condition(found, "Attested") or {}
    return said.get("status"), said.get("reason"), (found.get("status") or {}).get("attested")


async def test_it_holds_until_it_is_too_old_and_work_that_must_be_attested_leaves() -> None:
    wish = intent({"name": "attestation", "condition": "IsOneOf", "value": ["software"], "hard": True})
    async with running(controller.setup, placement.setup, objects=(cluster("plain"), wish, deployment())) as (client, clock):
        client.seed(site("good", clock.now()))
        await until(clock, lambda: told(client) == ("True", "Verified", "software"))
        await until(clock, lambda: places(client) == {"a": 1})
        found = client.find(scheme.PLACEMENT, "deployment-web", "shop") or {}
        assert "must be one of software (intent 'wish'), and the site has none that holds" in str(found["status"]["rejected"])
        await clock.advance(101)
        await until(clock, lambda: told(client) == ("False", "Refused", None))
        await until(clock, lambda: "conflict" in (client.find(scheme.PLACEMENT, "deployment-web", "shop") or {})["status"])
        found = client.find(scheme.PLACEMENT, "deployment-web", "shop") or {}
        assert found["status"]["conflict"]["requirements"] == [{"text": "attestation one of software", "source": "intent 'wish'"}]


@pytest.mark.parametrize("answer", [RuntimeError("no such quote"), "good"], ids=["raises", "is none"])
async def test_a_verifier_that_fails_takes_back_what_was_good(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = False
    verify = Stub.verify

    def sometimes(self: Stub, *arguments: Any) -> Any:
        if not failing:
            return verify(self, *arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(Stub, "verify", sometimes)
    async with running(controller.setup) as (client, clock):
        client.seed(site("good", clock.now(), maxAgeSeconds=1000))
        await until(clock, lambda: told(client) == ("True", "Verified", "software"))
        failing = True
        client.seed((client.find(scheme.CLUSTER, "a") or {}) | {"spec": site("good", 0, maxAgeSeconds=999)["spec"]})
        await until(clock, lambda: told(client) == ("False", "VerifierFailed", None))
        said = condition(client.find(scheme.CLUSTER, "a") or {}, "Attested") or {}
        assert "'software' failed" in said["message"] and (
            "no such quote" in said["message"] or "not a Verdict" in said["message"]
        )
        failing = False
        await clock.advance(controller.FAILED_SECONDS)
        await until(clock, lambda: told(client) == ("True", "Verified", "software"))


async def test_who_expects_nothing_gets_no_answer_and_an_unknown_verifier_is_named() -> None:
    async with running(controller.setup, objects=(cluster("a"),)) as (client, clock):
        await clock.advance(1)
        assert told(client) == (None, None, None)
        client.seed(site("bad", clock.now()))
        await until(clock, lambda: told(client) == ("False", "Refused", None))
        client.seed(cluster("a", attestation={"verifier": "crystal-ball"}))
        await until(clock, lambda: told(client) == ("False", "NoVerifier", None))
        said = condition(client.find(scheme.CLUSTER, "a") or {}, "Attested") or {}
        assert "install it, or name one of software" in said["message"]
