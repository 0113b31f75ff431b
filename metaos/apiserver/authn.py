"""Who calls: client certificates, bearer tokens, and the local unix socket.

A verified certificate's common name is the user, its organisations are the groups, as in Kubernetes. TLS checks the
validity only once per connection, so it is looked at again for every request and while watches last.
"""

from __future__ import annotations

import logging
import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from aiohttp import web

from metaos.clock import Clock
from metaos.devices.credentials import CLAIM_PREFIX
from metaos.plugins.points import TokenAuthenticator
from metaos.resources import errors
from metaos.resources.errors import ApiError
from metaos.security.authz import AUTHENTICATED, UNAUTHENTICATED, UserInfo

log = logging.getLogger(__name__)

ANONYMOUS = UserInfo("system:anonymous", (UNAUTHENTICATED,))
#: ID tokens list groups.
MAX_TOKEN = 12 * 1024


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a verified client certificate says. ``serial`` is upper-case hex; times are seconds since the epoch; ``issuer``
    is the authority's common name."""

    name: str
    organizations: tuple[str, ...]
    serial: str
    not_before: float
    not_after: float
    issuer: str = ""

    @classmethod
    def of(cls, peer: dict[str, Any]) -> Certificate:
        """From ``ssl.SSLSocket.getpeercert()``."""
        parts = [pair for rdn in peer.get("subject") or () for pair in rdn]
        issuers = [value for rdn in peer.get("issuer") or () for key, value in rdn if key == "commonName"]
        names = [value for key, value in parts if key == "commonName"]
        # Of two names none counts: our authority makes no such certificate.
        name = names[0] if len(names) == 1 else ""
        return cls(
            name,
            tuple(value for key, value in parts if key == "organizationName"),
            str(peer.get("serialNumber") or ""),
            ssl.cert_time_to_seconds(peer["notBefore"]),
            ssl.cert_time_to_seconds(peer["notAfter"]),
            issuers[0] if len(issuers) == 1 else "",
        )


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated caller; ``valid`` says whether it still is one, ``credential`` which certificate says so."""

    user: UserInfo
    valid: Callable[[], bool] = lambda: True
    credential: str = ""


class RefusedCertificate(ApiError):
    """Somebody shows a certificate that counts no more: ``user`` is whose it was."""

    def __init__(self, user: UserInfo, message: str) -> None:
        super().__init__(401, "Unauthorized", message)
        self.user = user


class Authenticator(Protocol):
    """Turns a request into who sent it."""

    async def authenticate(self, request: web.BaseRequest) -> Identity | None:
        """``None``: nobody said who they are. Raises ``ApiError`` 401 where what they said is not so."""
        ...


#: A bearer token's user (or their identity, where it may end), or ``None`` where it is not one of ours.
Tokens = Callable[[str], Awaitable[UserInfo | Identity | None]]


class HubAuthenticator:
    """``revoked`` says whether a certificate has been withdrawn; ``claimed`` whom one of a DeviceClaim stands for, while that
    claim is there; ``unix_user`` is who comes through a unix socket."""

    def __init__(
        self,
        clock: Clock,
        *,
        revoked: Callable[[Certificate], bool] = lambda certificate: False,
        claimed: Callable[[Certificate], UserInfo | None] = lambda certificate: None,
        tokens: Tokens | Sequence[Tokens] = (),
        unix_user: UserInfo | None = None,
    ) -> None:
        self._clock = clock
        self._revoked = revoked
        self._claimed = claimed
        self._tokens = (tokens,) if callable(tokens) else tuple(tokens)
        self._unix_user = unix_user
        self._known: WeakKeyDictionary[Any, tuple[Certificate, UserInfo]] = WeakKeyDictionary()

    async def authenticate(self, request: web.BaseRequest) -> Identity | None:
        transport = request.transport
        if transport is None:
            return None
        peer = transport.get_extra_info("peercert")
        if peer:
            return self._certified(transport, peer)
        header = request.headers.get("Authorization", "")
        if header:
            return await self._bearer(header)
        connection = transport.get_extra_info("socket")
        if self._unix_user is not None and connection is not None and connection.family == socket.AF_UNIX:
            return Identity(_authenticated(self._unix_user))
        return None

    def _certified(self, transport: Any, peer: dict[str, Any]) -> Identity:
        found = self._known.get(transport)
        if found is None:
            certificate = Certificate.of(peer)
            user = UserInfo(certificate.name, certificate.organizations)
            found = self._known[transport] = certificate, _authenticated(user)
        certificate, user = found
        if not certificate.name:
            raise errors.unauthorized("the client certificate has no common name")
        if self._clock.now() > certificate.not_after:
            raise RefusedCertificate(user, "the client certificate has expired; get a new one")
        if self._revoked(certificate):
            raise RefusedCertificate(user, f"the certificate of {certificate.name} has been revoked")

        of_claim = certificate.name.startswith(CLAIM_PREFIX)
        if of_claim:
            claimant = self._claimed(certificate)
            if claimant is None:
                raise RefusedCertificate(user, "the claim of this certificate is there no more; get one of another claim")
            user = _authenticated(claimant)

        def valid() -> bool:
            counts = self._clock.now() <= certificate.not_after and not self._revoked(certificate)
            return counts and (not of_claim or self._claimed(certificate) is not None)

        return Identity(user, valid, certificate.serial)

    async def _bearer(self, header: str) -> Identity:
        scheme, _, token = header.partition(" ")
        if scheme.lower() == "bearer" and 0 < len(token) <= MAX_TOKEN:
            for source in self._tokens:
                found = await source(token.strip())
                if isinstance(found, Identity):
                    return replace(found, user=_authenticated(found.user))
                if found is not None:
                    return Identity(_authenticated(found))
        raise errors.unauthorized()


def _authenticated(user: UserInfo) -> UserInfo:
    return replace(user, groups=(*user.groups, AUTHENTICATED))


def people(name: str, authenticator: TokenAuthenticator, clock: Clock) -> Tokens:
    """The tokens of a plugin. What it says of the system's own users and groups does not count, nor does its failing."""

    async def identity(token: str) -> Identity | None:
        try:
            found = await authenticator.person(token)
        except Exception:
            log.exception("authenticator %s failed", name)
            return None
        if found is None or any(each.startswith("system:") for each in (found.name, *found.groups)):
            return None
        until = found.until if found.until is not None else math.inf
        user = UserInfo(found.name, found.groups, found.uid, found.extra)
        return Identity(user, lambda: clock.now() < until)

    return identity
