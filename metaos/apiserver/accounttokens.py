"""Tokens of ServiceAccounts: made by the subresource ``token``, bound to an account and, where asked, a Pod, Secret or Node.

A token is a JSON web token (RFC 7519), signed with ES256. The key is a Secret of ``nemo-system``, made with the first token: it
is encrypted with all Secrets, goes into backups, and hubs that share a store share it. A token counts as long as its account and
what it is bound to exist (with the same uid) and its time has not passed.
Source: ``k8s.io/kubernetes/pkg/serviceaccount`` and ``pkg/registry/core/serviceaccount/storage/token.go``.
"""

from __future__ import annotations

import base64
import binascii
from random import Random  # noqa: TID251 - the type of the source that is handed in
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import orjson

from metaos.apiserver.authn import Identity
from metaos.apiserver.schema import invalid
from metaos.clock import Clock
from metaos.resources import errors, scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, deleting, format_time, name, namespace, uid
from metaos.resources.scheme import Kind
from metaos.security.authz import UserInfo

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

KEY_SECRET = "service-account-key"  # noqa: S105 - the name of one
#: Who makes tokens, and whom they are for unless their request says otherwise.
ISSUER = "https://kubernetes.default.svc"
LEAST_SECONDS, USUAL_SECONDS, MOST_SECONDS = 600, 3600, 365 * 86400
MOST_AUDIENCES = 16
PREFIX = "system:serviceaccount:"
_EXTRA = "authentication.kubernetes.io"
_BINDS: dict[str, Kind] = {"Pod": scheme.POD, "Secret": scheme.SECRET, "Node": scheme.CLUSTER}
_HEAD = b'{"alg":"ES256","typ":"JWT"}'


class Objects(Protocol):
    """What is needed of the registry, as the API server itself."""

    def current(self, kind: Kind, name: str, namespace: str = "") -> Obj | None: ...

    async def make(self, obj: Obj) -> Obj: ...


class AccountTokens:
    """Makes and reads them."""

    def __init__(self, objects: Objects, clock: Clock, random: Random) -> None:
        self._objects, self._clock, self._random = objects, clock, random
        self._key: tuple[str, EllipticCurvePrivateKey] | None = None

    # -- making ------------------------------------------------------------------------------------------------

    async def request(self, account: Obj, asked: Obj, *, dry_run: bool = False) -> Obj:
        """The TokenRequest with its token. Raises ``ApiError`` 422 where it asks for what cannot be."""
        spec = dict(asked.get("spec") or {})
        audiences = spec.get("audiences") or [ISSUER]
        seconds = spec.get("expirationSeconds", USUAL_SECONDS)
        causes = []
        if not isinstance(seconds, int) or seconds < LEAST_SECONDS:
            causes.append(invalid("spec.expirationSeconds", seconds, "may not specify a duration less than 10 minutes"))
        elif seconds > 1 << 32:
            causes.append(invalid("spec.expirationSeconds", seconds, "may not specify a duration larger than 2^32 seconds"))
        if len(audiences) > MOST_AUDIENCES or not all(isinstance(each, str) and each for each in audiences):
            causes.append(invalid("spec.audiences", audiences, f"must be at most {MOST_AUDIENCES} names"))
        if causes:
            raise errors.invalid("authentication.k8s.io", "TokenRequest", "", causes)
        claims = self._claims(account, min(seconds, MOST_SECONDS), audiences)
        claims["kubernetes.io"] |= self._bound(spec.get("boundObjectRef"), namespace(account))
        token = "" if dry_run else await self._signed(claims)
        return {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": name(account), "namespace": namespace(account), "creationTimestamp": format_time(claims["iat"])},
            "spec": spec | {"audiences": audiences, "expirationSeconds": seconds},
            "status": {"token": token, "expirationTimestamp": format_time(claims["exp"])},
        }

    def _claims(self, account: Obj, seconds: int, audiences: list[str]) -> dict[str, Any]:
        now = int(self._clock.now())
        where, named = namespace(account), name(account)
        return {
            "aud": audiences,
            "exp": now + seconds,
            "iat": now,
            "iss": ISSUER,
            "jti": str(UUID(int=self._random.getrandbits(128), version=4)),
            "kubernetes.io": {"namespace": where, "serviceaccount": {"name": named, "uid": uid(account)}},
            "nbf": now,
            "sub": f"{PREFIX}{where}:{named}",
        }

    def _bound(self, reference: Any, where: str) -> dict[str, Any]:
        if not reference:
            return {}
        kind = _BINDS.get(str(reference.get("kind")))
        if kind is None:
            raise errors.bad_request(
                f"cannot bind token for serviceaccount to object {reference.get('kind')!r}: must be a Pod, Secret or Node"
            )
        found = self._objects.current(kind, str(reference.get("name")), where if kind.namespaced else "")
        if found is None:
            raise errors.not_found("", f"{str(reference['kind']).lower()}s", str(reference.get("name")))
        if reference.get("uid") and reference["uid"] != uid(found):
            text = f"the UID in the bound object reference ({reference['uid']}) does not match the UID in record ({uid(found)})"
            raise errors.conflict("", kind.plural, name(found), text)
        return {str(reference["kind"]).lower(): {"name": name(found), "uid": uid(found)}}

    async def _signed(self, claims: dict[str, Any]) -> str:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        key = self._load() or await self._add()
        signed = f"{_text(_HEAD)}.{_text(orjson.dumps(claims))}"
        r, s = decode_dss_signature(key.sign(signed.encode(), ECDSA(hashes.SHA256())))
        return f"{signed}.{_text(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    # -- the key -------------------------------------------------------------------------------------------------

    def _load(self) -> EllipticCurvePrivateKey | None:
        """The stored key, read anew when it was replaced. Whoever deletes the Secret ends all tokens."""
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        stored = self._objects.current(scheme.SECRET, KEY_SECRET, SYSTEM_NAMESPACE)
        if stored is None:
            return None
        revision = stored["metadata"]["resourceVersion"]
        if self._key is None or self._key[0] != revision:
            try:
                key = load_pem_private_key(base64.b64decode(stored["data"]["key"]), None)
            except (KeyError, ValueError):
                key = None
            if not isinstance(key, EllipticCurvePrivateKey):
                raise errors.internal(
                    f"the Secret {SYSTEM_NAMESPACE}/{KEY_SECRET} holds no key: delete it, and ask for new tokens"
                )
            self._key = revision, key
        return self._key[1]

    async def _add(self) -> EllipticCurvePrivateKey:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        secret = scheme.SECRET.empty(KEY_SECRET, SYSTEM_NAMESPACE)
        try:
            await self._objects.make({**secret, "type": "Opaque", "data": {"key": base64.b64encode(pem).decode()}})
        except ApiError as error:
            if error.reason != "AlreadyExists":  # Another hub was faster: its key counts.
                raise
        key = self._load()
        if key is None:
            raise errors.unavailable("the key that signs tokens cannot be read yet; try again")
        return key

    # -- reading -------------------------------------------------------------------------------------------------

    def identity(self, bearer: str, audiences: tuple[str, ...] = (ISSUER,)) -> tuple[Identity, tuple[str, ...]] | None:
        """Whose token this is, and which of ``audiences`` it is for; ``None`` where it is no token of ours that counts."""
        if bearer.count(".") != 2 or not bearer.startswith("ey"):
            return None
        claims = self._verified(bearer)
        if claims is None:
            return None
        meant = tuple(each for each in audiences if each in claims["aud"])
        if not meant or not self._counts(claims):
            return None
        held = claims["kubernetes.io"]
        where, account = held["namespace"], held["serviceaccount"]
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{where}")
        extra = [(f"{_EXTRA}/credential-id", (f"JTI={claims['jti']}",))]
        for part in ("node", "pod"):
            if part in held:
                extra += [(f"{_EXTRA}/{part}-{key}", (held[part][key],)) for key in ("name", "uid")]
        user = UserInfo(f"{PREFIX}{where}:{account['name']}", groups, account["uid"], tuple(extra))
        return Identity(user, lambda: self._counts(claims), f"JTI={claims['jti']}"), meant

    def _verified(self, bearer: str) -> dict[str, Any] | None:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

        signed, _, signature = bearer.rpartition(".")
        key = self._load()
        try:
            head, body = (orjson.loads(_bytes(part)) for part in signed.split("."))
            raw = _bytes(signature)
            if key is None or head.get("alg") != "ES256" or len(raw) != 64:
                return None
            encoded = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
            key.public_key().verify(encoded, signed.encode(), ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError, AttributeError, binascii.Error):
            return None
        return body if isinstance(body, dict) and body.get("iss") == ISSUER else None

    def _counts(self, claims: dict[str, Any]) -> bool:
        """Whether its time has come and not passed, and what it is bound to is still there."""
        if not claims["nbf"] <= self._clock.now() < claims["exp"]:
            return False
        held = claims["kubernetes.io"]
        bound = [(scheme.SERVICE_ACCOUNT, held["serviceaccount"])]
        bound += [(kind, held[part.lower()]) for part, kind in _BINDS.items() if part.lower() in held]
        for kind, reference in bound:
            found = self._objects.current(kind, reference["name"], held["namespace"] if kind.namespaced else "")
            if found is None or uid(found) != reference["uid"] or (kind is scheme.SERVICE_ACCOUNT and deleting(found)):
                return False
        return True


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
