"""Whether an image may run here by what a site's owner says of it: rules, and cosign's signatures by known keys.

Pure: documents in, a verdict out. ``cryptography`` is loaded with the first key, and only by the process that fetches images.
Formats: cosign's simple signing (``SIGNATURE_SPEC.md``), and the newer bundle (sigstore bundle 0.3: a DSSE envelope around an
in-toto statement). Signatures without keys (Fulcio, Rekor) would need a trusted clock, log and root on every gateway.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaos.plugins.points import ImageError

#: As kubelets word it.
REFUSED = "SignatureValidationFailed"
SIGNATURE = "dev.cosignproject.cosign/signature"
SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_IN_TOTO = "application/vnd.in-toto+json"
#: So many signatures of one image are looked at.
MAX_SIGNATURES = 32


@dataclass(frozen=True, slots=True)
class Rule:
    """``images``: a pattern (``*`` stands for anything) for full names without tag. ``keys``: PEM texts, for ``Signed``."""

    images: str
    action: str
    keys: tuple[str, ...] = ()


def rules(entries: Sequence[Mapping[str, Any]]) -> tuple[Rule, ...]:
    """A site file's ``imagePolicy``. Raises ``ValueError`` naming field and remedy; keys are read when they are used."""
    found = []
    for number, entry in enumerate(entries):
        where = f"spec.imagePolicy[{number}]"
        pattern, action, keys = str(entry.get("images") or ""), str(entry.get("action") or ""), tuple(entry.get("keys") or ())
        if not pattern:
            raise ValueError(f"{where}.images: it is missing; say which images it is about, for example registry.example/team/*")
        if action not in ("Accept", "Signed", "Refuse"):
            raise ValueError(f"{where}.action: {action!r} must be one of Accept, Signed, Refuse")
        if (action == "Signed") != bool(keys):
            raise ValueError(f"{where}.keys: give public keys in PEM with action Signed, and with no other")
        for key in keys:
            if "-----BEGIN PUBLIC KEY-----" not in str(key):
                raise ValueError(
                    f"{where}.keys: a key must be a PUBLIC KEY in PEM (the cosign.pub of 'cosign generate-key-pair')"
                )
            try:
                key_id(str(key))
            except ImageError as error:
                raise ValueError(f"{where}.keys: {error.message}") from error
        found.append(Rule(pattern, action, tuple(map(str, keys))))
    return tuple(found)


def rule_for(repository: str, policy: Sequence[Rule]) -> Rule | None:
    """The first rule about a repository (``registry/path``); ``None`` where there is no policy. Raises :class:`ImageError`
    where it is refused: also what no rule of a policy is about."""
    if not policy:
        return None
    found = next((rule for rule in policy if fnmatch.fnmatchcase(repository, rule.images)), None)
    if found is None or found.action == "Refuse":
        why = "no rule of it is about them" if found is None else f"its rule for {found.images} refuses them"
        raise ImageError(REFUSED, f"images of {repository} do not run at this site by its imagePolicy: {why}")
    return found


def key_id(pem: str) -> str:
    """Of a public key, the same however its PEM is laid out: the SHA-256 of its DER form, in hexadecimal."""
    try:
        body = pem.partition("-----BEGIN PUBLIC KEY-----")[2].partition("-----END PUBLIC KEY-----")[0]
        return hashlib.sha256(base64.b64decode("".join(body.split()), validate=True)).hexdigest()
    except binascii.Error as error:
        raise ImageError(REFUSED, "a key of this site's imagePolicy is no PEM: its base64 is damaged") from error


def simple(payload: bytes, signature: str, digest: str, keys: Sequence[str]) -> str | None:
    """The id of the key that signed this simple-signing payload for the digest, if one did."""
    try:
        said = json.loads(payload)["critical"]
        good = said["type"] == "cosign container image signature" and said["image"]["docker-manifest-digest"] == digest
    except (ValueError, KeyError, TypeError):
        return None
    return _signer(payload, signature, keys) if good else None


def bundled(bundle: bytes, digest: str, keys: Sequence[str]) -> str | None:
    """The same of a sigstore bundle."""
    try:
        envelope = json.loads(bundle)["dsseEnvelope"]
        payload, kind = base64.b64decode(envelope["payload"], validate=True), str(envelope["payloadType"])
        statement = json.loads(payload)
        subjects = [f"sha256:{each['digest']['sha256']}" for each in statement["subject"]]
        signatures = [str(each["sig"]) for each in envelope["signatures"][:MAX_SIGNATURES]]
    except (ValueError, KeyError, TypeError):
        return None
    if kind != _IN_TOTO or digest not in subjects or statement.get("predicateType") != "https://sigstore.dev/cosign/sign/v1":
        return None
    # DSSE's pre-authentication encoding: the type is signed with the content.
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    return next((found for each in signatures if (found := _signer(signed, each, keys)) is not None), None)


def _signer(data: bytes, signature: str, keys: Sequence[str]) -> str | None:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        raw = base64.b64decode(signature, validate=True)
    except binascii.Error:
        return None
    for pem in keys:
        try:
            key = serialization.load_pem_public_key(pem.encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ImageError(REFUSED, f"a key of this site's imagePolicy cannot be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise ImageError(REFUSED, "a key of this site's imagePolicy is not an ECDSA key on P-256, as cosign makes them")
        try:
            key.verify(raw, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            continue
        return key_id(pem)
    return None
