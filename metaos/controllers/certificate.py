"""Certificates: signs what sites and users may have, and nothing else.

A join token is worth one request for the site that it names (``apiserver/jointokens.py`` holds that). A site renews its own
certificate. A user's request is signed once somebody who may has approved it (``kubectl certificate approve``), never for a
name or group of the system itself; one for a DeviceClaim likewise, for as long as the claim counts. Everything else is denied,
and says so.
"""

import base64
import binascii
import logging
import re

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.settings import Settings
from metaos.devices.credentials import CLAIM_SIGNER, certified_claim, claim_refusal
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, ObjectRef, deleting, name, parse_time, ref, uid, with_condition
from metaos.security import revocation
from metaos.security.authz import AGENT_SIGNER, BOOTSTRAP_USER_PREFIX, CLUSTER_USER_PREFIX, CLUSTERS, UserInfo, cluster_of
from metaos.security.identity import SERVER_LIFETIME_SECONDS, USER_SIGNER, Request

log = logging.getLogger(__name__)

NAME = "certificate"
#: The least lifetime that may be asked for, as in Kubernetes.
LEAST_SECONDS = 600
#: Names of users and groups in certificates; ``system:`` begins those that the system gives itself.
SUBJECT = re.compile(r"(?!system:)[A-Za-z0-9][A-Za-z0-9._@:+/-]{0,63}")


class Denied(Exception):
    """Why a request gets no certificate."""


def secret_text(secret: Obj, key: str) -> str:
    """A Secret's value as text, empty where it has none."""
    try:
        return base64.b64decode((secret.get("data") or {}).get(key) or "").decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


async def withdrawn(client: Client) -> dict[str, str]:
    """The record of withdrawn certificates."""
    try:
        secret = await client.get(scheme.SECRET, revocation.RECORD, SYSTEM_NAMESPACE)
    except ApiError as error:
        if error.code != 404:
            raise
        return {}
    return {key: secret_text(secret, key) for key in secret.get("data") or {}}


async def withdraw(client: Client, user: str, now: float) -> None:
    """Whatever certificate this user has is worth nothing from now on. What is too old to matter leaves the record."""
    before = await withdrawn(client)
    until = revocation.withdrawn_time(before, user)
    if now - 1 <= until <= now or until == float("inf"):
        return
    # A name that is withdrawn until later may have a certificate that counts as issued just after that.
    now = max(now, until + 1)
    entry = {"stringData": revocation.entry(user, now), "data": dict.fromkeys(revocation.outdated(before, now))}
    try:
        await client.patch(scheme.SECRET, revocation.RECORD, SYSTEM_NAMESPACE, entry)
    except ApiError as error:
        if error.code != 404:
            raise
        secret: Obj = {**scheme.SECRET.empty(revocation.RECORD, SYSTEM_NAMESPACE), "stringData": entry["stringData"]}
        await client.create(secret)


async def take_over(client: Client) -> None:
    """The record as the first layout kept it counts on: before anybody is served, as who was removed would be let in."""
    before = await withdrawn(client)
    if not before:
        return
    clusters = (await client.list(scheme.CLUSTER)).items
    sites = {name(c): parse_time(c["metadata"]["creationTimestamp"]) for c in clusters if not deleting(c)}
    if found := revocation.taken_over(before, sites):
        await client.patch(scheme.SECRET, revocation.RECORD, SYSTEM_NAMESPACE, {"stringData": found})
        log.info("certificates of %d removed sites stay withdrawn, in a record of an earlier release", len(found))


class CertificateReconciler:
    """Keys are CertificateSigningRequests."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        self._client, self._clock, self._settings = client, clock, settings
        self._requests = manager.informer(scheme.CERTIFICATE_SIGNING_REQUEST)

    async def reconcile(self, about: ObjectRef) -> Result:
        request = self._requests.get(about.name)
        if request is None or is_finished(request):
            return DONE
        signer = (request.get("spec") or {}).get("signerName")
        approved = any(c.get("type") == "Approved" for c in (request.get("status") or {}).get("conditions") or ())
        if signer == AGENT_SIGNER:
            await self._sign_site(request, approved)
        elif signer == USER_SIGNER and approved:
            await self._sign_user(request)
        elif signer == CLAIM_SIGNER and approved:
            await self._sign_claim(request)
        return DONE

    async def _sign_site(self, request: Obj, approved: bool) -> None:
        try:
            site = entitled(request)
            lifetime = self._settings.agent_certificate_lifetime
            certificate = await self._signed(request, CLUSTER_USER_PREFIX + site, (CLUSTERS,), lifetime)
        except (Denied, ValueError) as error:
            # A verdict is final: what was approved and cannot be signed has failed.
            await self._conclude(request, "Failed" if approved else "Denied", "NotEntitled", str(error))
            return
        if not approved:
            request = await self._conclude(request, "Approved", "Entitled", f"for site {site}")
        await self._issue(request, certificate)

    async def _sign_user(self, request: Obj) -> None:
        try:
            user, groups = subject(request)
            asked = request["spec"].get("expirationSeconds")
            lifetime = min(SERVER_LIFETIME_SECONDS, max(LEAST_SECONDS, asked if asked is not None else SERVER_LIFETIME_SECONDS))
            certificate = await self._signed(request, user, groups, lifetime)
        except (Denied, ValueError) as error:
            await self._conclude(request, "Failed", "SignerValidationFailure", str(error))
            return
        await self._issue(request, certificate)

    async def _sign_claim(self, request: Obj) -> None:
        try:
            asked = Request.read(pem_of(request))
            said = certified_claim(" ".join(asked.common_names), asked.organizations)
            if said is None:
                raise Denied("the request's subject is not that of a DeviceClaim: ask with 'nemo device claim --certificate'")
            claim = await self._claim(said.claim, said.namespace)
            why = claim_refusal(claim, self._clock.now())
            if claim is None or why or uid(claim) != said.uid:
                raise Denied(f"claim {said.namespace}/{said.claim}: {why or 'the request is for an earlier one of this name'}")
            until = parse_time(claim["spec"]["expirationTime"])
            lifetime = min(SERVER_LIFETIME_SECONDS, until - self._clock.now())
            certificate = await self._signed(request, *said.subject(), lifetime)
        except (Denied, ValueError) as error:
            await self._conclude(request, "Failed", "SignerValidationFailure", str(error))
            return
        await self._issue(request, certificate)

    async def _claim(self, named: str, where: str) -> Obj | None:
        try:
            return await self._client.get(scheme.DEVICE_CLAIM, named, where)
        except ApiError as error:
            if error.code != 404:
                raise
            return None

    async def _signed(self, request: Obj, user: str, groups: tuple[str, ...], lifetime: float) -> bytes:
        now = revocation.issue_time(await withdrawn(self._client), user, self._clock.now())
        return self._settings.sign(pem_of(request), common_name=user, organizations=groups, lifetime_seconds=lifetime, now=now)

    async def _conclude(self, request: Obj, verdict: str, reason: str, message: str) -> Obj:
        before = (request.get("status") or {}).get("conditions") or ()
        conditions = with_condition(before, verdict, "True", reason, message, self._clock.now())
        part = "status" if verdict == "Failed" else "approval"
        status = (request.get("status") or {}) | {"conditions": conditions}
        return await self._client.update(request | {"status": status}, subresource=part)

    async def _issue(self, request: Obj, certificate: bytes) -> None:
        found = (request.get("status") or {}) | {"certificate": base64.b64encode(certificate).decode()}
        await self._client.update(request | {"status": found}, subresource="status")


def pem_of(request: Obj) -> bytes:
    """What is asked for. Raises ``ValueError`` where it is not base64."""
    return base64.b64decode(request["spec"].get("request") or "")


def entitled(request: Obj) -> str:
    """The site that the one who asks may have a certificate for. Raises :class:`Denied`."""
    spec = request["spec"]
    asker = UserInfo(str(spec.get("username") or ""), tuple(spec.get("groups") or ()))
    site = cluster_of(asker)
    if site is not None:
        return site
    # Who brings a join token was admitted for one request only, for the site that the token names.
    if asker.name.startswith(BOOTSTRAP_USER_PREFIX):
        return asker.name.removeprefix(BOOTSTRAP_USER_PREFIX)
    raise Denied(f"user {asker.name!r} is neither a site nor the bearer of a join token")


def subject(request: Obj) -> tuple[str, tuple[str, ...]]:
    """The user and the groups that an approved request is for. Raises :class:`Denied` or ``ValueError``."""
    if "client auth" not in (request["spec"].get("usages") or ()):
        raise Denied('spec.usages must contain "client auth": certificates of users are for nothing else')
    asked = Request.read(pem_of(request))
    user = asked.common_names[0] if asked.common_names else ""
    for word in (user, *asked.organizations):
        if not SUBJECT.fullmatch(word):
            raise Denied(
                f"the name {word[:80]!r} in the request's subject must be 1 to 64 letters, digits or ._@:+/- and may not begin "
                'with "system:"; to make an administrator, bind the user to the ClusterRole cluster-admin'
            )
    return user, asked.organizations


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it."""
    manager.add(
        CertificateReconciler(manager, client, clock, settings), [(scheme.CERTIFICATE_SIGNING_REQUEST, lambda o: [ref(o)])]
    )


def is_finished(request: Obj) -> bool:
    """Whether a request has been answered, one way or the other."""
    status = request.get("status") or {}
    return bool(status.get("certificate")) or any(c.get("type") in ("Denied", "Failed") for c in status.get("conditions") or ())
