"""Tokens of DeviceClaims as the hub sees them: who shows one may enrol devices by that claim, and nothing else."""

from __future__ import annotations

from metaos.apiserver.registry import Registry
from metaos.devices.credentials import CLAIMANTS, claim_token, claim_user, shows
from metaos.resources import scheme
from metaos.security.authz import UserInfo


class ClaimTokens:
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
