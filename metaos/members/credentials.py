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
from collections.abc import Awaitable, Callable, Mapping
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
#: After a failure, or where what was got is refused, others are got so much later: every watch asks for them, and who gives
#: them (a program, a provider) is not to be worn out by that.
AGAIN_SECONDS = 10.0
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


class _Turns:
    """When something that gives credentials is asked again, by one caller at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self.one = clock, asyncio.Lock()
        self._asked, self._doubted = float("-inf"), False
        self._failure: ApiError | None = None

    def refused(self) -> None:
        self._doubted = True

    def due(self, ended: bool) -> bool:
        """``ended``: what there is counts no more. Raises ``ApiError`` where it failed a short time ago."""
        if not ended and not self._doubted:
            return False
        waits = self._clock.monotonic() - self._asked < AGAIN_SECONDS
        if waits and self._failure is not None:
            raise ApiError(self._failure.code, self._failure.reason, self._failure.message)
        return not waits

    async def ask(self, get: Callable[[], Awaitable[str]]) -> str:
        """What ``get`` gives. Raises ``ApiError``."""
        self._asked = self._clock.monotonic()
        try:
            found = await get()
        except ApiError as error:
            self._failure = error
            raise
        self._failure, self._doubted = None, False
        return found


class ExecPlugin:
    """``certified`` is told the certificate and key where the plugin answers with them."""

    def __init__(self, stated: Mapping[str, Any], clock: Clock, certified: Callable[[str, str], None]) -> None:
        self._stated, self._clock, self._certified = stated, clock, certified
        self._token, self._until = "", float("-inf")
        self._turns = _Turns(clock)

    async def token(self) -> str:
        async with self._turns.one:
            if self._turns.due(self._clock.now() >= self._until):
                self._token = await self._turns.ask(self._run)
            return self._token

    def refused(self) -> None:
        self._turns.refused()

    async def _run(self) -> str:
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
            raise refused_because(f"exec plugin {command} cannot be run: {error.strerror}. {hint}".rstrip()) from error
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
        self._until = until
        return str(status.get("token") or "")


class Oidc:
    """An ID token, renewed with its refresh token. What was renewed is kept in ``kept``, private to the agent: giver and agent
    should not share one refresh token, as providers let each be used once."""

    def __init__(self, stated: Mapping[str, str], kept: Path, clock: Clock, random: Random) -> None:
        self._stated, self._kept, self._clock, self._random = stated, kept, clock, random
        self._turns = _Turns(clock)

    def _tokens(self) -> tuple[str, str]:
        stated = self._stated.get("id-token", ""), self._stated.get("refresh-token", "")
        try:
            found = json.loads(self._kept.read_text())
        except (OSError, ValueError):
            return stated
        # A kubeconfig that was given anew counts more than what the old one came to.
        return stated if found.get("given") != stated[1] else (str(found["id"]), str(found["refresh"]))

    async def token(self) -> str:
        async with self._turns.one:
            token, refresh = self._tokens()
            if not self._turns.due(token_end(token) - EARLY_SECONDS <= self._clock.now()):
                return token
            return await self._turns.ask(lambda: self._renew(refresh))

    def refused(self) -> None:
        self._turns.refused()

    async def _renew(self, refresh: str) -> str:
        if not refresh:
            raise refused_because("the OIDC ID token has expired and the kubeconfig has no refresh-token: log in again")
        try:
            return await self._renewed(refresh)
        except (OSError, ValueError) as error:  # of the provider's address, its authority, or the disk
            raise refused_because(f"the OIDC ID token cannot be renewed: {error}") from error

    async def _renewed(self, refresh: str) -> str:
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
