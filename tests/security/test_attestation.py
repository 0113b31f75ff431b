"""What a site says of its software: signed by its own key, fresh, expected; everything else is refused with the reason."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.agent.identity import attest, software
from metaos.security.attestation import SoftwareVerifier
from metaos.security.authz import CLUSTER_USER_PREFIX, CLUSTERS, agent_write_problem
from metaos.security.identity import Authority, new_request

NOW = 1_700_000_000.0
AUTHORITY = Authority.create(Random(1), NOW)
ROOTS = AUTHORITY.pair.certificate


def member(site: str, authority: Authority = AUTHORITY) -> tuple[str, str]:
    user = CLUSTER_USER_PREFIX + site
    pem, key = new_request(user, (CLUSTERS,))
    certificate = authority.sign_csr(pem, common_name=user, organizations=(CLUSTERS,), lifetime_seconds=86400.0, now=NOW)
    return certificate.decode(), key.decode()


CERTIFICATE, KEY = member("a")
GOOD = attest("a", NOW, CERTIFICATE + ROOTS.decode(), KEY)
HERE = json.loads(GOOD["statement"])["measurement"]


def judged(evidence: dict[str, Any], *, site: str = "a", expected: tuple[str, ...] = (HERE,), now: float = NOW + 60) -> Any:
    return SoftwareVerifier().verify(site, evidence, expected, 3600.0, ROOTS, now)


def test_a_good_statement_holds_until_it_is_too_old_and_says_what_it_does_not_prove() -> None:
    found = judged(GOOD)
    assert (found.good, found.reason, found.until) == (True, "Verified", NOW + 3600)
    assert found.message.endswith("no hardware vouches for that") and software() == HERE and HERE.startswith("sha256:")
    assert (judged(GOOD, now=NOW + 3600).good, judged(GOOD, now=NOW + 3600).reason) == (False, "Stale")
    assert judged(GOOD, now=NOW - 301).reason == "Ahead"


@pytest.mark.parametrize(
    ("evidence", "reason", "says"),
    [
        ({}, "BadEvidence", "has sent no statement"),
        (GOOD | {"statement": GOOD["statement"].replace("sha256:", "sha256:0")}, "BadEvidence", "was not signed with the key"),
        (GOOD | {"signature": "?"}, "BadEvidence", "cannot be read"),
        (GOOD | {"certificate": "no certificate"}, "BadEvidence", "cannot be read"),
        (GOOD | {"statement": "x" * 20_000}, "BadEvidence", "16384 bytes"),
        (attest("a", NOW, *member("a", Authority.create(Random(2), NOW))), "BadEvidence", "of no authority of this hub"),
        (attest("a", NOW, *member("b")), "BadEvidence", "is not that of site a"),
        (attest("b", NOW, CERTIFICATE, KEY), "BadEvidence", "the statement is about site 'b'"),
        (attest("a", float("nan"), CERTIFICATE, KEY), "BadEvidence", "no time (a number)"),
        (attest("a", NOW, CERTIFICATE, member("a")[1]), "BadEvidence", "was not signed with the key"),
    ],
)
def test_whatever_is_wrong_is_refused_with_the_reason(evidence: dict[str, Any], reason: str, says: str) -> None:
    found = judged(evidence)
    assert (found.good, found.reason, found.until) == (False, reason, None) and says in found.message


def test_software_that_nobody_expects_is_named() -> None:
    found = judged(GOOD, expected=("sha256:other",))
    assert (found.good, found.reason) == (False, "Unexpected") and HERE in found.message and "sha256:other" in found.message
    assert not judged(GOOD, expected=()).good
    assert judged(GOOD, now=NOW + 2 * 86400).message == "its certificate is not valid now"


anything = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.text(max_size=3), max_size=2)


@given(st.dictionaries(st.sampled_from(["statement", "signature", "certificate"]), anything))
def test_nothing_that_a_site_sends_breaks_the_hub_or_is_believed(evidence: dict[str, Any]) -> None:
    assert not judged(evidence).good and not judged(GOOD | evidence | {"statement": evidence.get("statement")}).good


class Nothing(frozenset[str]):
    """No workload belongs to it."""

    def workload(self, kind: str, where: str, named: str) -> None:
        return None

    def templates(self, workload: object) -> tuple[()]:
        return ()


def test_a_site_brings_no_expectations_of_itself() -> None:
    brings = {"metadata": {"name": "a"}, "spec": {"attestation": {"measurements": [HERE]}}}
    assert "an operator states it" in agent_write_problem("a", "clusters.meta-os.eu", brings, None, Nothing())
    assert not agent_write_problem("a", "clusters.meta-os.eu", {"metadata": {"name": "a"}, "spec": {}}, None, Nothing())
