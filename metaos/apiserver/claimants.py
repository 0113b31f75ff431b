"""DeviceClaims as the hub sees them: who shows the token or a certificate of one may enrol devices by it, and nothing else."""

from __future__ import annotations

from metaos.apiserver.authn import Certificate
from metaos.apiserver.registry import Registry
from metaos.devices.credentials import CLAIMANTS, certified_claim, claim_token, claim_user, shows
from metaos.resources import scheme
from metaos.resources.meta import deleting, uid
from metaos.security.authz import UserInfo


class Claimants:
    """The claims of a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def user_of(self, bearer: str) -> UserInfo | None:
        """``None`` where it is no claim's token, or not one of a claim that is there."""
        token = claim_token(bearer)
        if token is None:
            return None
        claim = self._registry.current(scheme.DEVICE_CLAIM, token.claim, token.namespace)
        if not shows(claim, token.secret):
            return None
        return UserInfo(claim_user(token.namespace, token.claim), (CLAIMANTS,))

    def certified(self, certificate: Certificate) -> UserInfo | None:
        """Whom a claim's certificate stands for; ``None`` where that very claim is there no more."""
        said = certified_claim(certificate.name, certificate.organizations)
        claim = self._registry.current(scheme.DEVICE_CLAIM, said.claim, said.namespace) if said else None
        if said is None or claim is None or deleting(claim) or uid(claim) != said.uid:
            return None
        return UserInfo(claim_user(said.namespace, said.claim), (CLAIMANTS,))
