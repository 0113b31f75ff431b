"""Certificates: signs what sites may have, and nothing else.

A join token is worth one request for the site that it names (``apiserver/jointokens.py`` holds that). A site renews its own
certificate. Everything else is denied, and says so.
"""

import base64
import binascii

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.cluster import REVOKED
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, ObjectRef, ref, with_condition
from metaos.security.authz import CLUSTER_USER_PREFIX, CLUSTERS
from metaos.security.identity import SIGNER

NAME = "certificate"
BOOTSTRAP_USER_PREFIX = "system:bootstrap:"


class Denied(Exception):
    """Why a request gets no certificate."""


def secret_text(secret: Obj, key: str) -> str:
    """A Secret's value as text, empty where it has none."""
    try:
        return base64.b64decode((secret.get("data") or {}).get(key) or "").decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


class CertificateReconciler:
    """Keys are CertificateSigningRequests."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        self._client, self._clock, self._settings = client, clock, settings
        self._requests = manager.informer(scheme.CERTIFICATE_SIGNING_REQUEST)

    async def reconcile(self, about: ObjectRef) -> Result:
        request = self._requests.get(about.name)
        if request is None or (request.get("spec") or {}).get("signerName") != SIGNER:
            return DONE
        status = request.get("status") or {}
        if status.get("certificate") or status.get("conditions"):
            return DONE
        now = self._clock.now()
        try:
            site = await self._entitled(str(request["spec"].get("username") or ""))
            certificate = self._settings.sign(
                base64.b64decode(request["spec"].get("request") or ""),
                common_name=CLUSTER_USER_PREFIX + site,
                organization=CLUSTERS,
                lifetime_seconds=self._settings.agent_certificate_lifetime,
                now=now,
            )
        except (Denied, ValueError) as error:
            conditions = with_condition((), "Denied", "True", "Denied", str(error), now)
            await self._client.update(request | {"status": {"conditions": conditions}}, subresource="approval")
            return DONE
        conditions = with_condition((), "Approved", "True", "Entitled", f"for site {site}", now)
        approved = await self._client.update(request | {"status": {"conditions": conditions}}, subresource="approval")
        found = (approved.get("status") or {}) | {"certificate": base64.b64encode(certificate).decode()}
        await self._client.update(approved | {"status": found}, subresource="status")
        return DONE

    async def _entitled(self, user: str) -> str:
        """The site that a caller may have a certificate for. Raises :class:`Denied`."""
        if user.startswith(CLUSTER_USER_PREFIX):
            return user.removeprefix(CLUSTER_USER_PREFIX)
        if not user.startswith(BOOTSTRAP_USER_PREFIX):
            raise Denied(f"user {user!r} is neither a site nor the bearer of a join token")
        # Who brings a join token was admitted for one request only, for the site that the token names.
        site = user.removeprefix(BOOTSTRAP_USER_PREFIX)
        await self._readmit(site)
        return site

    async def _readmit(self, site: str) -> None:
        """A name that was removed may join anew."""
        try:
            await self._client.patch(scheme.SECRET, REVOKED, SYSTEM_NAMESPACE, {"data": {site: None}})
        except ApiError as error:
            if error.code != 404:
                raise


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it."""
    manager.add(
        CertificateReconciler(manager, client, clock, settings), [(scheme.CERTIFICATE_SIGNING_REQUEST, lambda o: [ref(o)])]
    )


def is_finished(request: Obj) -> bool:
    """Whether a request has been answered, one way or the other."""
    status = request.get("status") or {}
    return bool(status.get("certificate")) or any(c.get("type") == "Denied" for c in status.get("conditions") or ())
