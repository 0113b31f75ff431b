"""Who gets a certificate: a site its own, the bearer of a token the one of its site, a user what somebody has approved."""

import base64
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from cryptography import x509

from metaos.controllers.certificate import NAME, Denied, entitled, setup, subject, withdraw
from metaos.controllers.settings import Settings
from metaos.devices.credentials import CLAIM_SIGNER, CertifiedClaim
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, condition, format_time
from metaos.security import revocation
from metaos.security.identity import BACKDATE_SECONDS, USER_SIGNER, Authority, new_request
from tests.clock import FakeClock
from tests.fake_client import FakeClient

AGENTS = "meta-os.eu/agent"


def request(who: str, *groups: str, asker: str = "admin", signer: str = USER_SIGNER, **spec: Any) -> Obj:
    pem, _ = new_request(who, groups)
    asked = {"request": base64.b64encode(pem).decode(), "signerName": signer, "usages": ["client auth"], "username": asker}
    return {**scheme.CERTIFICATE_SIGNING_REQUEST.empty("r"), "spec": asked | spec}


def approved(obj: Obj) -> Obj:
    return obj | {"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "x"}]}}


class Signing:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.client = FakeClient(self.clock)
        self.authority = Authority.create(Random(1), self.clock.now())

    async def outcome(self, obj: Obj) -> tuple[x509.Certificate | None, Obj]:
        """The certificate, and the request as it then is."""
        self.client.seed(obj)
        manager = Manager(self.client, self.clock, Random(2))
        setup(manager, self.client, self.clock, Settings(sign=self.authority.sign_csr))
        await manager.start()
        for _ in range(20):
            await self.clock.settle()
        await manager.stop()
        found = self.client.find(scheme.CERTIFICATE_SIGNING_REQUEST, "r")
        assert found is not None
        text = (found.get("status") or {}).get("certificate")
        return x509.load_pem_x509_certificate(base64.b64decode(text)) if text else None, found


@pytest.fixture
def signing() -> Iterator[Signing]:
    yield Signing()


def site_request(site: str, asker: str, *groups: str) -> Obj:
    return request(f"system:cluster:{site}", "system:clusters", asker=asker, signer=AGENTS, groups=list(groups))


async def test_a_site_renews_its_own(signing: Signing) -> None:
    certificate, found = await signing.outcome(site_request("edge", "system:cluster:edge", "system:clusters"))
    assert certificate is not None and certificate.subject.rfc4514_string() == "CN=system:cluster:edge,O=system:clusters"
    assert (condition(found, "Approved") or {}).get("status") == "True"


@pytest.mark.parametrize(
    "obj",
    [
        site_request("other", "system:cluster:edge", "system:clusters"),
        site_request("edge", "system:cluster:edge"),  # the name without the group
        site_request("edge", "ann", "system:clusters"),
        site_request("edge", "admin", "system:masters"),
        site_request("edge", "system:bootstrap:other", "system:bootstrappers"),
        request("admin", "system:masters", asker="system:cluster:edge", signer=AGENTS, groups=["system:clusters"]),
    ],
)
async def test_nobody_gets_anothers(signing: Signing, obj: Obj) -> None:
    certificate, found = await signing.outcome(obj)
    denied = condition(found, "Denied")
    assert certificate is None and denied is not None and denied["message"]


async def test_what_was_approved_by_hand_and_cannot_be_has_failed(signing: Signing) -> None:
    certificate, found = await signing.outcome(approved(site_request("other", "system:cluster:edge", "system:clusters")))
    assert certificate is None and condition(found, "Failed") and not condition(found, "Denied")


async def test_a_user_gets_one_once_somebody_has_approved(signing: Signing) -> None:
    certificate, found = await signing.outcome(request("ann", "dev"))
    assert certificate is None and not found.get("status")
    certificate, _ = await signing.outcome(approved(request("ann", "dev", expirationSeconds=7200)))
    assert certificate is not None and certificate.subject.rfc4514_string() == "CN=ann,O=dev"
    assert certificate.not_valid_after_utc.timestamp() == int(signing.clock.now()) + 7200


@pytest.mark.parametrize(
    "obj",
    [
        request("system:cluster:edge", "dev"),
        request("ann", "system:masters"),
        request("ann", "system:clusters"),
        request("ann", "dev", usages=["server auth"]),
        request("ann", "dev", request="LS0tLS0="),
        request("ann", "dev", request="***"),
    ],
)
async def test_no_approval_makes_a_user_of_the_system(signing: Signing, obj: Obj) -> None:
    certificate, found = await signing.outcome(approved(obj))
    assert certificate is None and (condition(found, "Failed") or {}).get("message")


async def test_a_claims_certificate_lasts_as_long_as_the_claim(signing: Signing) -> None:
    until = signing.clock.now() + 3600
    made = {**scheme.DEVICE_CLAIM.empty("line", "shop"), "spec": {"count": 1, "expirationTime": format_time(until)}}
    made["metadata"]["uid"] = "u1"
    signing.client.seed(made)
    user, groups = CertifiedClaim("shop", "line", "u1").subject()
    asked = request(user, *groups, signer=CLAIM_SIGNER)
    certificate, _ = await signing.outcome(asked)
    assert certificate is None
    certificate, _ = await signing.outcome(approved(asked))
    assert certificate is not None and certificate.not_valid_after_utc.timestamp() == int(until)
    for of, why in (
        (CertifiedClaim("shop", "line", "u0"), "an earlier one"),
        (CertifiedClaim("shop", "other", "u1"), "no such claim"),
    ):
        user, groups = of.subject()
        certificate, found = await signing.outcome(approved(request(user, *groups, signer=CLAIM_SIGNER)))
        assert certificate is None and why in (condition(found, "Failed") or {})["message"]
    for user, *others in (("ann",), ("system:device-claim:u1", "system:masters"), ("system:device-claim:u1", *groups, "dev")):
        certificate, found = await signing.outcome(approved(request(user, *others, signer=CLAIM_SIGNER)))
        assert certificate is None and "not that of a DeviceClaim" in (condition(found, "Failed") or {})["message"]


async def test_a_certificate_after_a_withdrawal_counts_and_the_ones_before_do_not(signing: Signing) -> None:
    now = signing.clock.now()
    record = revocation.entry("ann", now)
    secret = {**scheme.SECRET.empty(revocation.RECORD, SYSTEM_NAMESPACE)}
    signing.client.seed(secret | {"data": {k: base64.b64encode(v.encode()).decode() for k, v in record.items()}})
    certificate, _ = await signing.outcome(approved(request("ann")))
    assert certificate is not None
    assert not revocation.is_withdrawn(record, "ann", certificate.not_valid_before_utc.timestamp())
    assert revocation.is_withdrawn(record, "ann", int(now) - BACKDATE_SECONDS)


async def test_a_name_that_is_withdrawn_until_later_can_be_withdrawn_again(signing: Signing) -> None:
    now = signing.clock.now()
    data = {k: base64.b64encode(v.encode()).decode() for k, v in revocation.entry("ann", now + 3600).items()}
    signing.client.seed({**scheme.SECRET.empty(revocation.RECORD, SYSTEM_NAMESPACE), "data": data})
    certificate, _ = await signing.outcome(approved(request("ann")))
    assert certificate is not None
    await withdraw(signing.client, "ann", now)
    record = (await signing.client.get(scheme.SECRET, revocation.RECORD, SYSTEM_NAMESPACE))["stringData"]
    assert revocation.is_withdrawn(record, "ann", certificate.not_valid_before_utc.timestamp())


def test_the_rules_by_themselves() -> None:
    assert NAME == "certificate"
    assert entitled(site_request("x", "system:bootstrap:edge")) == "edge"
    with pytest.raises(Denied, match="neither a site nor the bearer"):
        entitled(site_request("x", "ann"))
    assert subject(request("ann@example.org", "a/b")) == ("ann@example.org", ("a/b",))
