"""Commands about certificates: kubeconfigs for users, withdrawing, and replacing the hub's authority."""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path
from random import SystemRandom
from typing import Any

from metaos.cli.connection import authority_text, kubeconfig_path, load_kubeconfig, with_client
from metaos.clock import SystemClock
from metaos.controllers.certificate import LEAST_SECONDS, SUBJECT, withdraw
from metaos.http import HttpClient
from metaos.pki import render_kubeconfig
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, name, with_condition
from metaos.security.authz import CLUSTER_USER_PREFIX
from metaos.security.identity import SERVER_LIFETIME_SECONDS, USER_SIGNER, new_request

AUTHORITY = "certificate-authority"
WAIT_SECONDS = 30.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str, option: str = "--ttl") -> int:
    """A duration such as ``12h``. Raises ``ValueError``."""
    found = re.fullmatch(r"([0-9]{1,8})([smhd])", text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not LEAST_SECONDS <= seconds <= SERVER_LIFETIME_SECONDS:
        raise ValueError(f"{option} {text!r} must be from 10m to 365d: a number and one of s, m, h, d, for example 30d")
    return seconds


def user_kubeconfig(user: str, groups: tuple[str, ...], ttl: str, kubeconfig: Path | None, data: Path, server: str | None) -> str:
    """A kubeconfig for another user. The key is made here; the hub sees the request for a certificate, and signs it because the
    caller may approve it."""
    for word in (user, *groups):
        if not SUBJECT.fullmatch(word):
            raise ValueError(
                f"name {word!r} must be 1 to 64 letters, digits or ._@:+/- and may not begin with 'system:'; to make an "
                f"administrator: kubectl create clusterrolebinding {user}-admin --clusterrole=cluster-admin --user={user}"
            )
    seconds = seconds_of(ttl)
    pem, key = new_request(user, groups)

    async def signed(client: HttpClient) -> bytes:
        return await certified(client, pem, USER_SIGNER, f"user {user}", seconds)

    certificate = with_client(kubeconfig, data, signed)
    url = server or str(load_kubeconfig(kubeconfig_path(kubeconfig, data))["cluster"].get("server"))
    return render_kubeconfig(url, authority_text(kubeconfig, data).encode(), certificate, key, user)


async def certified(client: HttpClient, pem: bytes, signer: str, who: str, seconds: int) -> bytes:
    """The certificate for a request that the caller makes and approves at once. Raises ``ValueError`` where there is none."""
    word = who.split()[0]
    wanted: Obj = dict(scheme.CERTIFICATE_SIGNING_REQUEST.empty(f"{word}-{SystemRandom().randbytes(6).hex()}"))
    wanted["spec"] = {
        "request": base64.b64encode(pem).decode(),
        "signerName": signer,
        "usages": ["client auth"],
        "expirationSeconds": seconds,
    }
    made = await client.create(wanted)
    why = f"for {who}, as asked for on the command line"
    conditions = with_condition((), "Approved", "True", "CommandLine", why, SystemClock().now())
    await client.update(made | {"status": {"conditions": conditions}}, subresource="approval")
    return await _certificate(client, name(made))


async def _certificate(client: HttpClient, request: str) -> bytes:
    clock = SystemClock()
    deadline = clock.monotonic() + WAIT_SECONDS
    while clock.monotonic() < deadline:
        status = (await client.get(scheme.CERTIFICATE_SIGNING_REQUEST, request)).get("status") or {}
        if status.get("certificate"):
            return base64.b64decode(status["certificate"])
        for condition in status.get("conditions") or ():
            if condition.get("type") in ("Denied", "Failed"):
                raise ValueError(f"the hub makes no such certificate: {condition.get('message')}")
        await asyncio.sleep(0.1)
    raise ValueError(f"the hub has not signed request {request} within {WAIT_SECONDS:g} s: see its log")


def revoke(user: str, *, site: bool, kubeconfig: Path | None, data: Path) -> str:
    """Withdraws the certificates of a user or a site; what to print."""
    whole = CLUSTER_USER_PREFIX + user if site else user

    async def act(client: HttpClient) -> None:
        if site:
            await client.get(scheme.CLUSTER, user)
        await withdraw(client, whole, SystemClock().now())

    with_client(kubeconfig, data, act)
    if site:
        return (
            f"the certificates of site {user} are withdrawn and its connections cut; its agent stops its pods and ends. Its work "
            f"is placed elsewhere once the site counts as lost. To have it back: nemo join-token {user}"
        )
    return f"the certificates of {user} are withdrawn and their connections cut; ones that are made from now on count"


# -- the authority -----------------------------------------------------------------------------------------


def authority_status(kubeconfig: Path | None, data: Path) -> dict[str, Any]:
    """The authorities that count, and which sites still have a certificate of an older one."""
    return with_client(kubeconfig, data, _status)


async def _status(client: HttpClient) -> dict[str, Any]:
    record = await _record(client)
    sites = {
        name(cluster): ((cluster.get("status") or {}).get("certificate") or {}).get("authority", "")
        for cluster in (await client.list(scheme.CLUSTER)).items
    }
    current = _common_names(record.get("ca.crt", ""))
    trusted = record.get("trusted", "").split()
    return {
        "current": {"name": current[0] if current else "", "fingerprint": record.get("current", "")},
        "older": [{"name": n, "fingerprint": f} for n, f in zip(current[1:], trusted[1:], strict=False)],
        "sites": sites,
        "behind": sorted(site for site, authority in sites.items() if current and authority != current[0]),
    }


def status_text(status: dict[str, Any]) -> str:
    """For people."""
    lines = [f"signing  {status['current']['name']}  {status['current']['fingerprint']}"]
    lines += [f"trusted  {each['name']}  {each['fingerprint']}" for each in status["older"]]
    lines += [f"site {site} has a certificate of {status['sites'][site] or 'an unknown authority'}" for site in status["behind"]]
    if status["older"] and not status["behind"]:
        lines.append("every site has a certificate of the signing one: 'nemo ca retire' ends the trust in the older ones")
    return "\n".join(lines)


def rotate(kubeconfig: Path | None, data: Path) -> dict[str, Any]:
    """Orders a new authority and waits until it signs; the status then."""

    async def act(client: HttpClient) -> dict[str, Any]:
        before = (await _record(client)).get("current", "")
        await client.patch(scheme.CONFIG_MAP, AUTHORITY, SYSTEM_NAMESPACE, {"data": {"rotate": before}})
        await _until(client, lambda record: record.get("current") != before)
        return await _status(client)

    return with_client(kubeconfig, data, act)


def retire(kubeconfig: Path | None, data: Path, *, force: bool) -> dict[str, Any]:
    """Orders that older authorities count no more, and waits until it is so; the status then. Raises ``ValueError`` where that
    would lock a site out."""

    async def act(client: HttpClient) -> dict[str, Any]:
        status = await _status(client)
        if status["behind"] and not force:
            raise ValueError(
                f"sites {', '.join(status['behind'])} still have a certificate of an older authority and would be locked out: "
                "wait until they are connected ('nemo ca status'), or use --force and let them join again with a token"
            )
        older = [each["fingerprint"] for each in status["older"]]
        await client.patch(scheme.CONFIG_MAP, AUTHORITY, SYSTEM_NAMESPACE, {"data": {"retire": ",".join(older)}})
        return status

    before = with_client(kubeconfig, data, act)

    async def confirm(client: HttpClient) -> dict[str, Any]:
        await _until(client, lambda record: len(record.get("trusted", "").split()) == 1)
        return await _status(client)

    try:
        return with_client(kubeconfig, data, confirm)
    except ApiError as error:
        if error.code not in (401, 503):
            raise
        # Our own certificate was made by what was retired.
        return before | {"older": [], "locked": True}


async def _record(client: HttpClient) -> dict[str, str]:
    found = await client.get(scheme.CONFIG_MAP, AUTHORITY, SYSTEM_NAMESPACE)
    return dict(found.get("data") or {})


async def _until(client: HttpClient, done: Any) -> None:
    clock = SystemClock()
    deadline = clock.monotonic() + WAIT_SECONDS
    while not done(await _record(client)):
        if clock.monotonic() > deadline:
            raise ValueError(f"the hub has not done so within {WAIT_SECONDS:g} s: see its log")
        await asyncio.sleep(0.1)


def _common_names(pem: str) -> list[str]:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    found = x509.load_pem_x509_certificates(pem.encode()) if pem else []
    return [str(c.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value) for c in found]
