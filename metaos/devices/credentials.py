"""Names of devices, and the tokens and certificates of claims by which devices enrol themselves. Pure.

A token is random and long (:data:`SECRET_BYTES`), so that a plain SHA-256 of it tells nobody anything: only that is kept.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metaos.resources.meta import Obj, deleting, parse_time

SECRET_BYTES = 24
#: Names of devices are a part of their topics: a DNS label.
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_TOKEN = re.compile(r"ndc_([a-z0-9][-a-z0-9]{0,62})_([a-z0-9][-.a-z0-9]{0,252})_([0-9a-f]{48})\Z")


class ClaimToken(NamedTuple):
    """``ndc_NAMESPACE_CLAIM_SECRET``."""

    namespace: str
    claim: str
    secret: str

    def __str__(self) -> str:
        return f"ndc_{self.namespace}_{self.claim}_{self.secret}"


def claim_token(text: str) -> ClaimToken | None:
    """What a bearer says; ``None`` where it is no claim's token."""
    found = _TOKEN.match(text)
    return ClaimToken(*found.groups()) if found else None


#: The group of those who show one.
CLAIMANTS = "system:device-claimants"
#: Begins the names of claims' certificates, and of those who show a token or a certificate.
CLAIM_PREFIX = "system:device-claim:"
#: Who signs certificates of claims.
CLAIM_SIGNER = "meta-os.eu/device-claim"
#: Of a name in a certificate's subject (RFC 5280, appendix A: ub-common-name, ub-organization-name).
MOST_SUBJECT = 64


def claim_user(namespace: str, claim: str) -> str:
    """The name of the user who shows a claim's token or certificate."""
    return f"{CLAIM_PREFIX}{namespace}:{claim}"


class CertifiedClaim(NamedTuple):
    """What a claim's certificate is for: ``uid`` tells the claim from a later one of its name."""

    namespace: str
    claim: str
    uid: str

    def subject(self) -> tuple[str, tuple[str, ...]]:
        """Common name and organisations. Raises ``ValueError`` where a name is longer than a subject's may be."""
        most = MOST_SUBJECT - len(claim_user("", ""))
        if len(self.namespace) + len(self.claim) > most:
            raise ValueError(
                f"claim {self.namespace}/{self.claim}: namespace and name together may have {most} characters where it has a "
                "certificate: give it a shorter name, or use its token"
            )
        return CLAIM_PREFIX + self.uid, (CLAIMANTS, claim_user(self.namespace, self.claim))


def certified_claim(user: str, organizations: Sequence[str]) -> CertifiedClaim | None:
    """What a certificate's subject says; ``None`` where it is no claim's certificate."""
    others = [each for each in organizations if each != CLAIMANTS]
    if not user.startswith(CLAIM_PREFIX) or len(organizations) != 2 or len(others) != 1 or not others[0].startswith(CLAIM_PREFIX):
        return None
    namespace, colon, claim = others[0].removeprefix(CLAIM_PREFIX).partition(":")
    found = CertifiedClaim(namespace, claim, user.removeprefix(CLAIM_PREFIX))
    return found if colon and all(found) else None


def hashed(secret: str) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def shows(claim: Obj | None, secret: str) -> bool:
    """Whether a secret is that of a claim's token, in a time that tells nothing."""
    if claim is None or deleting(claim) or "sha256" not in claim["spec"]:
        return False
    return hmac.compare_digest(hashed(secret), str(claim["spec"]["sha256"]))


def claim_refusal(claim: Obj | None, now: float) -> str:
    """Why a claim makes no device; empty where it does."""
    if claim is None or deleting(claim):
        return "there is no such claim"
    spec = claim["spec"]
    if parse_time(spec["expirationTime"]) <= now:
        return f"the claim expired at {spec['expirationTime']}"
    used = int((claim.get("status") or {}).get("used") or 0)
    if used >= int(spec["count"]):
        return f"the claim's {spec['count']} devices are all made"
    return ""


def enrolled(claim: Obj, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a batch for a device that enrols. Raises ``ValueError`` saying what is wrong."""
    spec, name = claim["spec"], asked.get("name")
    prefix = str(spec.get("namePrefix") or "")
    if not isinstance(name, str) or not NAME.match(name) or not name.startswith(prefix):
        begin = f" that begins with {prefix!r}" if prefix else ""
        raise ValueError(f"spec.name: must be a DNS label (a-z, 0-9, '-'; at most 63){begin}, not {str(name)[:80]!r}")
    row: dict[str, Any] = {"name": name, "labels": dict(spec.get("labels") or {})}
    return row | ({"owner": spec["owner"]} if spec.get("owner") else {})
