"""Personal tokens: their form, their scopes, and what is kept of them. Pure.

A token is ``nemo_pat_ID SECRET CHECK`` without spaces: twelve hexadecimal digits, 32 letters and digits (190 random bits), and
six of a checksum, so that who scans repositories for lost ones knows one from chance. Of the secret a salted hash is
kept. A scope is ``ACCESS[:RESOURCE][@NAMESPACE]``; scopes narrow what their owner's roles allow and add nothing.
Source: GitHub, "Behind GitHub's new authentication token formats"; Kubernetes, "Using RBAC Authorization".
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from zlib import crc32

from metaos.security.authz import Attributes, UserInfo
from metaos.security.identity import Random

PREFIX = "nemo_pat_"
#: What a user's ``extra`` holds who came by a personal token.
SCOPES, TOKEN_ID = "meta-os.eu/scopes", "meta-os.eu/token-id"
MOST_SCOPES = 32
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID, _SECRET, _CHECK, _SALT = 12, 32, 6, 16
_TOKEN = re.compile(rf"{PREFIX}([0-9a-f]{{{_ID}}})([0-9A-Za-z]{{{_SECRET}}})([0-9A-Za-z]{{{_CHECK}}})")
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SCOPE = re.compile(
    r"(?P<access>read|write|connect|all)"
    rf"(?::(?P<resource>{_LABEL}(?:\.{_LABEL})*(?:/[a-z]+)?))?"
    rf"(?:@(?P<where>{_LABEL}))?"
)
_READ = frozenset({"get", "list", "watch"})
_WRITE = _READ | {"create", "update", "patch", "delete", "deletecollection"}
_CONNECT = frozenset({"exec", "attach", "portforward", "proxy"})
#: What a scope without a RESOURCE leaves out: by these one comes to more than the scope says.
#: Works carry the Secrets of their sites, and webhooks are shown every Secret that is written.
_APART = frozenset({("", "secrets"), ("", "serviceaccounts/token"), ("meta-os.eu", "works")})
_APART_GROUPS = frozenset({"rbac.authorization.k8s.io", "certificates.k8s.io", "admissionregistration.k8s.io"})
_SELF = frozenset({"authorization.k8s.io", "authentication.k8s.io"})
_DISCOVERY = ("/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz")


@dataclass(frozen=True, slots=True)
class Token:
    """``str`` of it is the secret that is shown once."""

    id: str
    secret: str

    @classmethod
    def create(cls, random: Random) -> Token:
        number = int.from_bytes(random.randbytes(40), "big")
        return cls(random.randbytes(_ID // 2).hex(), _base62(number, _SECRET))

    @classmethod
    def parse(cls, text: str) -> Token | None:
        """``None`` where it is none, also by its checksum."""
        found = _TOKEN.fullmatch(text)
        if found is None or _check(found[1] + found[2]) != found[3]:
            return None
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return PREFIX + self.id + self.secret + _check(self.id + self.secret)

    def __repr__(self) -> str:
        return f"Token(id={self.id!r})"

    def hashed(self, salt: bytes) -> str:
        """What is kept. The secret has 190 random bits, so nothing slower is needed."""
        return hashlib.sha256(salt + self.secret.encode()).hexdigest()

    def matches(self, salt: bytes, expected: str) -> bool:
        """Compared in constant time."""
        return hmac.compare_digest(self.hashed(salt), expected)


def salt(random: Random) -> bytes:
    return random.randbytes(_SALT)


def _base62(number: int, length: int) -> str:
    found = []
    for _ in range(length):
        number, rest = divmod(number, 62)
        found.append(_LETTERS[rest])
    return "".join(found)


def _check(text: str) -> str:
    return _base62(crc32(text.encode()), _CHECK)


def scope_problem(scopes: Sequence[str], served: Container[str] | None = None) -> str:
    """What is wrong with scopes, with the remedy; empty where nothing is. ``served``: resources of the hub, as scopes name
    them; ``None``: they are not known here."""
    if not 0 < len(scopes) <= MOST_SCOPES:
        return f"there must be 1 to {MOST_SCOPES} scopes, for example read or write:deployments.apps@shop"
    for scope in scopes:
        found = _SCOPE.fullmatch(scope)
        if found is None:
            return (
                f"scope {scope[:80]!r} must be ACCESS[:RESOURCE][@NAMESPACE] with read, write, connect or all, for example "
                "read:pods@shop, write:deployments.apps, connect"
            )
        resource = found["resource"]
        if resource and served is not None and resource not in served:
            return (
                f"scope {scope[:80]!r}: this hub has no resource {resource[:80]!r}: name one by its plural as 'kubectl "
                "api-resources' shows it, with its group where it has one (pods, deployments.apps, pods/log)"
            )
    return ""


def scoped(user: UserInfo) -> bool:
    """Whether they came by a personal token."""
    return any(key == SCOPES for key, _ in user.extra)


def narrowing(user: UserInfo) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What of a user's ``extra`` narrows whomever they act as: a token's scopes hold there as well."""
    return tuple(each for each in user.extra if each[0] in (SCOPES, TOKEN_ID))


def out_of_scope(user: UserInfo, asked: Attributes) -> str:
    """Why the token that ``user`` came by is not for this; empty where it is, or where they came otherwise."""
    scopes = next((values for key, values in user.extra if key == SCOPES), None)
    if scopes is None or _always(asked) or any(_allows(scope, asked) for scope in scopes):
        return ""
    return f"the personal token is for {', '.join(scopes) or 'nothing'} only"


def _always(asked: Attributes) -> bool:
    """Which interface this is, and what the caller may do."""
    if asked.path:
        return asked.verb == "get" and any(asked.path == each or asked.path.startswith(each + "/") for each in _DISCOVERY)
    return asked.group in _SELF and asked.resource.startswith("selfsubject")


def _allows(scope: str, asked: Attributes) -> bool:
    found = _SCOPE.fullmatch(scope)
    if found is None:
        return False
    access, resource, where = found["access"], found["resource"] or "", found["where"] or ""
    if asked.path:
        return access == "all" and not resource and not where
    if where and asked.namespace != where:
        return False
    whole = f"{asked.resource}/{asked.subresource}" if asked.subresource else asked.resource
    if resource:
        named = {asked.resource, whole, f"{asked.resource}.{asked.group}"}
        if resource not in named or (whole == "serviceaccounts/token" and resource != whole):
            return False
    elif access != "all" and ((asked.group, whole) in _APART or asked.group in _APART_GROUPS):
        return False
    connects = asked.subresource in _CONNECT
    if access == "all":
        return True
    if access == "connect":
        return connects
    return not connects and asked.verb in (_READ if access == "read" else _WRITE)
