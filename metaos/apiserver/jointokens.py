"""Join tokens as the hub sees them: for one site, for a while, for one certificate request.

A token stands as a Secret in ``nemo-system`` (:mod:`metaos.security.identity`), which holds the site's name, the time
until which it counts, a hash of the token's secret part, and the name of the one request that it was used for.
"""

from __future__ import annotations

import base64
import binascii

from metaos.client import Client, PatchType
from metaos.clock import Clock
from metaos.resources import errors, scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, parse_time
from metaos.security.authz import BOOTSTRAP_USER_PREFIX, UserInfo
from metaos.security.identity import TOKEN_PREFIX, TOKEN_TYPE, token_matches

#: A token's user is ``system:bootstrap:SITE``, its group is Kubernetes' own for those who are about to join.
BOOTSTRAPPERS = "system:bootstrappers"


class JoinTokens:
    """``client`` must be allowed to read and patch Secrets in ``nemo-system``."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client = client
        self._clock = clock

    async def user_of(self, bearer: str) -> UserInfo | None:
        """``None`` where it is no join token, or one that does not count (any more)."""
        parts = bearer.split(".")
        if len(parts) != 3 or parts[0] != TOKEN_PREFIX or not parts[1].isalnum() or len(parts[1]) > 32:
            return None
        try:
            secret = await self._client.get(scheme.SECRET, f"join-token-{parts[1]}", SYSTEM_NAMESPACE)
        except ApiError as error:
            if error.code == 404:
                return None
            raise
        try:
            fits = secret.get("type") == TOKEN_TYPE and token_matches(parts[2], _value(secret, "hash"))
            in_time = self._clock.now() < parse_time(_value(secret, "expiration"))
        except ValueError:
            return None
        site = _value(secret, "cluster")
        if not (fits and in_time and site):
            return None
        return UserInfo(BOOTSTRAP_USER_PREFIX + site, (BOOTSTRAPPERS,), parts[1])

    async def admit(self, user: UserInfo, verb: str, request: str) -> None:
        """A token's holder may create one certificate request, named ``SITE-…``, and read it. Raises ``ApiError`` 403."""
        kind = scheme.CERTIFICATE_SIGNING_REQUEST
        site = user.name.removeprefix(BOOTSTRAP_USER_PREFIX)
        secret = await self._client.get(scheme.SECRET, f"join-token-{user.uid}", SYSTEM_NAMESPACE)
        used = _value(secret, "request")
        if used == request and verb in ("create", "get"):
            return
        if verb != "create" or not request.startswith(f"{site}-"):
            raise errors.forbidden(
                kind.group, kind.plural, request, f'a join token may only ask for a certificate, in a request named "{site}-…"'
            )
        spent = errors.forbidden(kind.group, kind.plural, request, "the join token has been used; make a new one")
        if used:
            raise spent
        patch = {
            "metadata": {"resourceVersion": secret["metadata"]["resourceVersion"]},
            "data": {"request": base64.b64encode(request.encode()).decode()},
        }
        try:
            await self._client.patch(
                scheme.SECRET, f"join-token-{user.uid}", SYSTEM_NAMESPACE, patch, type=PatchType.MERGE, field_manager="join-token"
            )
        except ApiError as error:
            raise spent if error.code == 409 else error from None


def _value(secret: Obj, key: str) -> str:
    """Raises ``ValueError`` where it is not text."""
    try:
        return base64.b64decode((secret.get("data") or {}).get(key) or "").decode()
    except binascii.Error as wrong:
        raise ValueError(f"{key} is not base64") from wrong
