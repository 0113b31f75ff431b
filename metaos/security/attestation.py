"""What a site says of its own software, signed with the key of its certificate, and whether that is what was expected. Pure.

What it proves: who holds the key of the site's certificate said, at that time, that its agent's files have this digest. What
it does not prove: that it said the truth. Nothing measures the one who measures: whoever has the key and wants to lie can. So it
finds versions that nobody approved, and files that were changed by mistake or by somebody without the key, not an adversary who
has it, and a statement may be shown again until it is too old. More takes a root of trust in hardware: another verifier, behind
the entry point ``metaos.attestation``.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from metaos.plugins.points import Verdict
from metaos.security.authz import CLUSTER_USER_PREFIX

#: A statement may be so far ahead of the hub's clock.
AHEAD_SECONDS = 300.0
#: Of a statement and of a certificate; both take below 2 KiB.
MOST_BYTES = 16_384


class SoftwareVerifier:
    """Entry point ``software``. See the module."""

    def verify(
        self, site: str, evidence: Mapping[str, Any], expected: Sequence[str], max_age: float, roots: bytes, now: float
    ) -> Verdict:
        try:
            statement = _checked(site, evidence, roots, now)
        except ValueError as problem:
            return Verdict(False, "BadEvidence", str(problem))
        said, measurement = statement["time"], statement["measurement"]
        if said > now + AHEAD_SECONDS:
            return Verdict(False, "Ahead", f"it is from {said - now:.0f} s after now: set the site's clock")
        if now >= said + max_age:
            return Verdict(False, "Stale", f"it is {now - said:.0f} s old, and may be {max_age:g} s old")
        if measurement not in expected:
            known = ", ".join(expected) or "none"
            text = f"the agent says that its software is {measurement}; spec.attestation expects {known}"
            return Verdict(False, "Unexpected", text)
        text = f"who holds the site's key says that its agent's software is {measurement}; no hardware vouches for that"
        return Verdict(True, "Verified", text, said + max_age)


def _checked(site: str, evidence: Mapping[str, Any], roots: bytes, now: float) -> dict[str, Any]:
    """The statement, signed by a certificate of this site. Raises ``ValueError`` with what is wrong."""
    text, pem = str(evidence.get("statement") or ""), str(evidence.get("certificate") or "")
    if not text:
        raise ValueError("the site's agent has sent no statement: it may be of an earlier release")
    if len(text) > MOST_BYTES or len(pem) > MOST_BYTES:
        raise ValueError(f"statement and certificate may have {MOST_BYTES} bytes each")
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        signature = base64.b64decode(str(evidence.get("signature") or ""), validate=True)
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"its certificate or signature cannot be read: {error}") from None
    if not any(_issued(certificate, root) for root in x509.load_pem_x509_certificates(roots)):
        raise ValueError("its certificate is of no authority of this hub")
    if [str(n.value) for n in names] != [CLUSTER_USER_PREFIX + site]:
        raise ValueError(f"its certificate is not that of site {site}")
    if not certificate.not_valid_before_utc.timestamp() <= now <= certificate.not_valid_after_utc.timestamp():
        raise ValueError("its certificate is not valid now")
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("its certificate has no elliptic-curve key")
    try:
        key.verify(signature, text.encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise ValueError("the statement was not signed with the key of its certificate") from None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("measurement"), str) or not _moment(found.get("time")):
        raise ValueError("the statement has no time (a number) or no measurement (a text)")
    if found.get("site") != site:
        raise ValueError(f"the statement is about site {found.get('site')!r}")
    return found


def _moment(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _issued(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
