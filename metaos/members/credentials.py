"""Who the agent is at a member: tokens that change, files that are rewritten, exec plugins, and OIDC with its refresh.

Sources: client-go ``plugin/pkg/client/auth/exec`` and ``auth/oidc``; Kubernetes, "Authenticating", "client-go credential
plugins"; OpenID Connect Core 1.0, section 12 (refresh).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any, Protocol
from urllib.parse import urlencode

from metaos.clock import Clock
from metaos.files import write_private
from metaos.http import HttpClient, tls_context
from metaos.members.kubeconfig import Access
from metaos.resources.errors import ApiError
from metaos.resources.meta import parse_time

#: A token file is read again after so long (client-go does it after a minute).
FILE_SECONDS = 60.0
EXEC_SECONDS = 60.0
#: A token is renewed so long before it ends.
EARLY_SECONDS = 20.0
_EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")


class Credentials(Protocol):
    """``token`` is empty where a certificate, or nothing, says who we are. Raises ``ApiError`` 401 saying what failed."""

    async def token(self) -> str: ...

    def refused(self) -> None:
        """The server did not accept them: get others, where there are others to be had."""
        ...


def refused_because(why: str) -> ApiError:
    return ApiError(401, "Unauthorized", why)


class Fixed:
    def __init__(self, token: str = "") -> None:
        self._token = token

    async def token(self) -> str:
        return self._token

    def refused(self) -> None:
        """There is no other."""


class TokenFile:
    """What is in a file now: a pod's service account token is replaced there before it ends."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path, self._clock = path, clock
        self._token, self._read = "", float("-inf")

    async def token(self) -> str:
        now = self._clock.monotonic()
        if now - self._read >= FILE_SECONDS:
            try:
                self._token, self._read = self._path.read_text().strip(), now
            except OSError as error:
                raise refused_because(f"the token file cannot be read: {error}") from error
        return self._token

    def refused(self) -> None:
        self._read = float("-inf")


class ExecPlugin:
    """``certified`` is told the certificate and key where the plugin answers with them."""

    def __init__(self, stated: Mapping[str, Any], clock: Clock, certified: Callable[[str, str], None]) -> None:
        self._stated, self._clock, self._certified = stated, clock, certified
        self._token, self._until = "", float("-inf")
        self._turn = asyncio.Lock()

    async def token(self) -> str:
        async with self._turn:
            if self._clock.now() >= self._until:
                await self._run()
            return self._token

    def refused(self) -> None:
        self._until = float("-inf")

    async def _run(self) -> None:
        command = str(self._stated["command"])
        version = str(self._stated.get("apiVersion") or _EXEC_VERSIONS[0])
        if version not in _EXEC_VERSIONS:
            raise refused_because(f"exec plugin {command}: apiVersion {version!r} must be one of {', '.join(_EXEC_VERSIONS)}")
        info = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False}}
        extra = {str(e["name"]): str(e.get("value") or "") for e in self._stated.get("env") or ()}
        environment = os.environ | extra | {"KUBERNETES_EXEC_INFO": json.dumps(info)}
        try:
            process = await asyncio.create_subprocess_exec(
                command,
                *map(str, self._stated.get("args") or ()),
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            hint = str(self._stated.get("installHint") or "").strip()
            raise refused_because(f"exec plugin {command} cannot be run: {error}. {hint}".rstrip()) from error
        try:
            async with asyncio.timeout(EXEC_SECONDS):
                out, err = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise refused_because(f"exec plugin {command} has not answered within {EXEC_SECONDS:g} s") from None
        if process.returncode:
            said = " ".join(err.decode(errors="replace").split())[-300:]
            raise refused_because(f"exec plugin {command} ended with {process.returncode}: {said}")
        try:
            status = json.loads(out)["status"]
            ends = status.get("expirationTimestamp")
            until = parse_time(ends) - EARLY_SECONDS if ends else float("inf")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise refused_because(f"exec plugin {command} has not answered with an ExecCredential and its status") from None
        if status.get("clientCertificateData"):
            self._certified(str(status["clientCertificateData"]), str(status.get("clientKeyData") or ""))
        self._token, self._until = str(status.get("token") or ""), until


class Oidc:
    """An ID token, renewed with its refresh token. What was renewed is kept in ``kept``, private to the agent: giver and agent
    should not share one refresh token, as providers let each be used once."""

    def __init__(self, stated: Mapping[str, str], kept: Path, clock: Clock, random: Random) -> None:
        self._stated, self._kept, self._clock, self._random = stated, kept, clock, random
        self._turn = asyncio.Lock()
        self._doubted = False

    def _tokens(self) -> tuple[str, str]:
        stated = self._stated.get("id-token", ""), self._stated.get("refresh-token", "")
        try:
            found = json.loads(self._kept.read_text())
        except (OSError, ValueError):
            return stated
        # A kubeconfig that was given anew counts more than what the old one came to.
        return stated if found.get("given") != stated[1] else (str(found["id"]), str(found["refresh"]))

    async def token(self) -> str:
        async with self._turn:
            token, refresh = self._tokens()
            if not self._doubted and token_end(token) - EARLY_SECONDS > self._clock.now():
                return token
            if not refresh:
                raise refused_because("the OIDC ID token has expired and the kubeconfig has no refresh-token: log in again")
            try:
                return await self._renew(refresh)
            except (OSError, ValueError) as error:  # of the provider's address, its authority, or the disk
                raise refused_because(f"the OIDC ID token cannot be renewed: {error}") from error

    def refused(self) -> None:
        self._doubted = True

    async def _renew(self, refresh: str) -> str:
        issuer = self._stated.get("idp-issuer-url", "").rstrip("/")
        if not issuer:
            raise refused_because("users[].user.auth-provider.config.idp-issuer-url is missing: OIDC tokens cannot be renewed")
        if not issuer.startswith("https://"):
            raise refused_because(f"the OIDC issuer {issuer} must be an https URL: it is told a refresh token")
        data, file = self._stated.get("idp-certificate-authority-data", ""), self._stated.get("idp-certificate-authority", "")
        ca = base64.b64decode(data, validate=True).decode() if data else Path(file).read_text() if file else ""
        if (data or file) and not ca.strip():  # without an authority all those of the machine would be trusted
            raise refused_because("users[].user.auth-provider.config.idp-certificate-authority is empty: it must hold PEM")
        found = await self._ask(issuer, ca, "GET", "/.well-known/openid-configuration", b"")
        endpoint = str(found.get("token_endpoint") or "")
        if not endpoint.startswith("https://"):
            raise refused_because(f"the OIDC provider {issuer} names no https token_endpoint")
        form = {"grant_type": "refresh_token", "refresh_token": refresh, "client_id": self._stated.get("client-id", "")}
        if self._stated.get("client-secret"):
            form["client_secret"] = self._stated["client-secret"]
        given = await self._ask(endpoint, ca, "POST", "", urlencode(form).encode())
        token = str(given.get("id_token") or "")
        if not token:
            raise refused_because(f"the OIDC provider {issuer} gave no id_token for the refresh token")
        kept = {"given": self._stated.get("refresh-token", ""), "id": token, "refresh": given.get("refresh_token") or refresh}
        write_private(self._kept, json.dumps(kept))
        self._doubted = False
        return token

    async def _ask(self, url: str, ca: str, method: str, path: str, body: bytes) -> dict[str, Any]:
        client = HttpClient(url, ca=ca, peer="the OIDC provider", clock=self._clock, random=self._random)
        try:
            answer = await client.request(method, path, body, content_type="application/x-www-form-urlencoded")
        finally:
            await client.close()
        if answer.status != 200:
            said = answer.body[:200].decode(errors="replace")
            raise refused_because(f"the OIDC provider {url} answered {answer.status}: {said}")
        try:
            found: dict[str, Any] = answer.json()
        except ValueError:
            raise refused_because(f"the OIDC provider {url} answered with something that is not JSON") from None
        return found


def token_end(token: str) -> float:
    """When a JWT ends, seconds since the epoch; the past where that cannot be read."""
    try:
        part = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))["exp"])
    except (IndexError, ValueError, KeyError, TypeError):
        return float("-inf")


def make(access: Access, kept: Path, clock: Clock, random: Random, certified: Callable[[str, str], None]) -> Credentials:
    """By what a kubeconfig says; ``certified`` is told the certificate and key of an exec plugin."""
    if access.exec:
        return ExecPlugin(access.exec, clock, certified)
    if access.oidc:
        return Oidc(access.oidc, kept, clock, random)
    if access.token_file:
        return TokenFile(Path(access.token_file), clock)
    return Fixed(access.token)


def context_of(access: Access, certificate: str = "", key: str = "") -> ssl.SSLContext:
    """How to trust the server, and which certificate to show. Raises ``ssl.SSLError``."""
    context = tls_context(access.ca, certificate or access.certificate, key or access.key)
    if access.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
