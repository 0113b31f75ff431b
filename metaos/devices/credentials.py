"""Names of devices, and the tokens of claims by which devices enrol themselves. Pure.

A token is random and long (:data:`SECRET_BYTES`), so that a plain SHA-256 of it tells nobody anything: only that is kept.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
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


def claim_user(namespace: str, claim: str) -> str:
    """The name of the user who shows a claim's token."""
    return f"system:device-claim:{namespace}:{claim}"


def hashed(secret: str) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def shows(claim: Obj | None, secret: str) -> bool:
    """Whether a secret is that of a claim's token, in a time that tells nothing."""
    return claim is not None and not deleting(claim) and hmac.compare_digest(hashed(secret), str(claim["spec"]["sha256"]))


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
