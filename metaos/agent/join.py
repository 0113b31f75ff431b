"""Becoming a member and staying one: the join token, the certificate by signing request, and its renewal.

What a site knows of itself lies in ``DATA/identity``: ``ca.pem`` (the hub's authorities), ``agent.pem`` (certificate and
key in one file, so that both change at once) and ``identity.json`` (the name and the validity). A request that is under
way lies in ``request.key`` and ``request.json``, so that a crash in between does not waste the token.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import hashlib
import json
import logging
import ssl
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)

from metaos.client import Client, PatchType
from metaos.clock import Clock
from metaos.files import write_private
from metaos.http import HttpClient, error_of, tls_context, unverified_context
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, labels, name
from metaos.resources.scheme import CERTIFICATE_SIGNING_REQUEST, CLUSTER
from metaos.security.authz import AGENT_MANAGER, SETTLED, settled_label

log = logging.getLogger(__name__)

SIGNER = "meta-os.eu/agent"
TOKEN_PREFIX = "nemo1"  # noqa: S105  (the first word of the form, not a secret)
#: The certificate is renewed after this part of its lifetime.
RENEW_AFTER = 2 / 3
#: How long a request may wait for approval before the agent says that it still waits.
PATIENCE_SECONDS = 30.0
FIRST_POLL_SECONDS = 0.2
LAST_POLL_SECONDS = 5.0
#: What a token may take; it has 120 characters.
MAX_TOKEN = 4096
#: The reason of a cause of 409: another manager owns a field.
CONFLICT = "FieldManagerConflict"
#: What a hub's authorities may take: two or three have 2 KiB.
MAX_AUTHORITIES = 64 * 1024


class JoinError(Exception):
    """This machine cannot become, or is no longer, a member. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this site is: PEM texts, the certificate's validity in seconds since the epoch, and which authority made it."""

    name: str
    not_before: float
    not_after: float
    ca: str
    certificate: str
    key: str
    issuer: str = ""

    @property
    def renew_time(self) -> float:
        return self.not_before + (self.not_after - self.not_before) * RENEW_AFTER

    def context(self) -> ssl.SSLContext:
        return tls_context(self.ca, self.certificate, self.key)

    @classmethod
    def load(cls, folder: Path) -> Identity | None:
        """What an earlier start has stored, ``None`` where this site has not joined."""
        try:
            known = json.loads((folder / "identity.json").read_text())
            certificate, _, key = (folder / "agent.pem").read_text().partition("-----BEGIN PRIVATE KEY-----")
            ca = (folder / "ca.pem").read_text()
        except FileNotFoundError:
            return None
        key = "-----BEGIN PRIVATE KEY-----" + key
        validity = float(known["notBefore"]), float(known["notAfter"])
        return cls(str(known["name"]), *validity, ca, certificate, key, str(known.get("issuer") or ""))

    def store(self, folder: Path) -> None:
        """``identity.json`` last: it is what says that the rest is complete."""
        write_private(folder / "ca.pem", self.ca)
        write_private(folder / "agent.pem", self.certificate.rstrip() + "\n" + self.key)
        known = {"name": self.name, "notBefore": self.not_before, "notAfter": self.not_after, "issuer": self.issuer}
        write_private(folder / "identity.json", json.dumps(known))


@dataclass(frozen=True, slots=True)
class Token:
    """``nemo1.ID.SECRET.PIN``; PIN is the SHA-256 of the authority's certificate (DER), in hex."""

    bearer: str
    pin: str

    @classmethod
    def read(cls, path: Path) -> Token:
        """Raises ``JoinError`` without repeating what the file holds."""
        try:
            with path.open("rb") as file:
                parts = file.read(MAX_TOKEN).decode("ascii", "replace").strip().split(".")
        except OSError as error:
            raise JoinError(f"the join token cannot be read: {error}; make one with 'nemo join-token NAME'") from error
        if len(parts) != 4 or parts[0] != TOKEN_PREFIX or not all(parts):
            raise JoinError(
                f"{path} holds no join token (its form is {TOKEN_PREFIX}.ID.SECRET.PIN): make one with 'nemo join-token NAME'"
            )
        return cls(".".join(parts[:3]), parts[3].lower())


def _changed(file: Path) -> float:
    """When a file was written last; minus infinity where there is none."""
    try:
        return file.stat().st_mtime
    except OSError:
        return float("-inf")


async def fetch_authority(hub: str, pin: str, clock: Clock, random: Random) -> str:
    """The hub's authority (PEM), trusted only because its fingerprint is the token's. Raises ``JoinError``."""
    client = HttpClient(hub, context=unverified_context(), clock=clock, random=random)
    try:
        response = await client.request("GET", "/cacerts", accept="*/*")
    finally:
        await client.close()
    text = response.body.decode(errors="replace")
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    for part in text.split(begin)[1:]:
        pem = begin + part.partition(end)[0] + end + "\n"
        try:
            der = ssl.PEM_cert_to_DER_cert(pem)
        except ValueError:
            continue
        if hashlib.sha256(der).hexdigest() == pin:
            return pem
    raise JoinError(
        f"{hub} is not the hub that made this token: its authority's fingerprint is another one. "
        "Check --hub, or make a new token with 'nemo join-token NAME' at that hub"
    )


class Membership:
    """Asks the hub for certificates. ``folder`` is private to this site."""

    def __init__(self, hub: str, folder: Path, site: str, clock: Clock, random: Random) -> None:
        self._hub, self._folder, self._site = hub, folder, site
        self._clock, self._random = clock, random

    async def join(self, token_file: Path | None) -> Identity:
        """The stored identity, or a new one for a token. Raises ``JoinError``, or ``ApiError`` 503 (try again)."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = Identity.load(self._folder)
        if found is not None:
            if found.name != self._site:
                raise JoinError(
                    f"{self._folder.parent} belongs to site {found.name!r}, the site file is of {self._site!r}: "
                    "give each site its own --data directory"
                )
            newer = token_file is not None and _changed(token_file) > _changed(self._folder / "identity.json")
            if token_file is None or (self._clock.now() < found.not_after and not newer):
                return found
            # It was removed, or the hub has another authority by now; or it was away for too long.
            why = "there is a newer token" if newer else "its certificate has expired"
            log.warning("site %s joins again: %s", self._site, why)
            if _changed(self._folder / "request.json") < _changed(token_file):
                self._discard()  # asked for by what this site was before
        if token_file is None:
            raise JoinError(
                "this site has not joined yet: make a token at the hub with "
                f"'nemo join-token {self._site}', and start the agent once with --token-file"
            )
        try:
            return await self._join(Token.read(token_file))
        except (JoinError, ApiError) as error:
            if found is None:
                raise
            log.error("%s; until then this site goes on with what it has", error)
            return found

    async def _join(self, token: Token) -> Identity:
        ca = await fetch_authority(self._hub, token.pin, self._clock, self._random)
        client = HttpClient(self._hub, ca=ca, token=token.bearer, clock=self._clock, random=self._random)
        try:
            return await self._certified(client, ca)
        finally:
            await client.close()

    async def renew(self, client: HttpClient, current: Identity) -> Identity:
        """A new key and certificate, asked for with the present one, and the hub's authorities as they are now.
        Raises ``JoinError`` or ``ApiError``."""
        return await self._certified(client, await self.authorities(client))

    async def authorities(self, client: HttpClient) -> str:
        """The authorities (PEM) that count now, as told by a hub that the present ones prove. Raises ``JoinError`` or
        ``ApiError``."""
        response = await client.request("GET", "/cacerts", accept="*/*")
        if response.status != 200:
            raise error_of(response)
        text = response.body[:MAX_AUTHORITIES].decode(errors="replace")
        try:
            tls_context(text)
        except (ssl.SSLError, ValueError) as error:
            raise JoinError(f"{self._hub} names authorities that cannot be read: {error}") from error
        return text

    async def _certified(self, client: Client, ca: str) -> Identity:
        request = await self._request(client)
        pem = await self._answer(client, request)
        described = json.loads(await identity_process("describe", stdin=pem))
        key = (self._folder / "request.key").read_text()
        validity = float(described["notBefore"]), float(described["notAfter"])
        identity = Identity(self._site, *validity, ca, pem.decode(), key, str(described["issuer"]))
        try:
            identity.context()
        except ssl.SSLError as error:
            raise JoinError(f"the hub's certificate does not fit this site's key: {error}") from error
        identity.store(self._folder)
        for left in ("request.json", "request.key"):
            (self._folder / left).unlink(missing_ok=True)
        return identity

    async def _request(self, client: Client) -> str:
        """The name of a request that the hub has: the one under way, or a new one."""
        pending = self._folder / "request.json"
        if pending.exists() and (self._folder / "request.key").exists():
            waiting: Obj = json.loads(pending.read_text())
        else:
            csr = await identity_process("request", str(self._folder / "request.key"), self._site)
            waiting = CERTIFICATE_SIGNING_REQUEST.empty(f"{self._site}-{self._random.randbytes(6).hex()}")
            waiting["spec"] = {"request": base64.b64encode(csr).decode(), "signerName": SIGNER, "usages": ["client auth"]}
            write_private(pending, json.dumps(waiting))
        try:
            await client.create(waiting)
        except ApiError as error:
            if error.reason == "AlreadyExists":
                found = await client.get(CERTIFICATE_SIGNING_REQUEST, name(waiting))
                if (found.get("spec") or {}).get("request") == waiting["spec"]["request"]:
                    return name(waiting)
                self._discard()  # someone else's of the same name: try another name
            if error.code in (400, 422):
                self._discard()
            if error.code in (401, 403):
                # A used token may still look at its own request.
                if await self._known(client, name(waiting)):
                    return name(waiting)
                self._discard()
                raise JoinError(
                    f"the hub at {self._hub} refuses site {self._site!r}: {error.message}. Join tokens are for one site, "
                    f"short-lived and used once; make a new one with 'nemo join-token {self._site}'"
                ) from error
            raise
        return name(waiting)

    async def _known(self, client: Client, request: str) -> bool:
        try:
            await client.get(CERTIFICATE_SIGNING_REQUEST, request)
        except ApiError as error:
            if error.code in (401, 403, 404):
                return False
            raise
        return True

    async def _answer(self, client: Client, request: str) -> bytes:
        """The PEM certificate, once the hub has signed it."""
        started, delay, said = self._clock.monotonic(), FIRST_POLL_SECONDS, False
        while True:
            found = await client.get(CERTIFICATE_SIGNING_REQUEST, request)
            status = found.get("status") or {}
            for condition in status.get("conditions") or ():
                if condition.get("type") in ("Denied", "Failed"):
                    self._discard()
                    raise JoinError(
                        f"the hub refused this site's certificate: {condition.get('message') or condition.get('reason')}"
                    )
            if status.get("certificate"):
                return base64.b64decode(status["certificate"])
            if not said and self._clock.monotonic() - started > PATIENCE_SECONDS:
                log.warning("request %s still waits for approval: 'kubectl certificate approve %s' at the hub", request, request)
                said = True
            await self._clock.sleep(delay)
            delay = min(delay * 1.5, LAST_POLL_SECONDS)

    def _discard(self) -> None:
        (self._folder / "request.json").unlink(missing_ok=True)


async def register(client: Client, site: Obj) -> Obj:
    """Makes this site's Cluster where the hub does not have it yet; returns the hub's."""
    try:
        return await client.get(CLUSTER, name(site))
    except ApiError as error:
        if error.code != 404:
            raise
    cluster: Obj = {key: value for key, value in site.items() if key != "status"}
    try:
        return await client.create(cluster, field_manager=AGENT_MANAGER)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise
        return await client.get(CLUSTER, name(site))


async def declare(client: Client, site: Obj, cluster: Obj) -> Obj:
    """The hub's Cluster after it was told what the site file says, by server-side apply: what others set there stays theirs.
    Raises ``ApiError``."""
    wanted: Obj = copy.deepcopy({key: value for key, value in site.items() if key != "status"})
    # One that has just been removed is not made again.
    wanted["metadata"]["uid"] = cluster["metadata"]["uid"]
    owned = [
        entry.get("fieldsV1") or {}
        for entry in cluster["metadata"].get("managedFields") or ()
        if entry.get("manager") == AGENT_MANAGER and not entry.get("subresource")
    ]
    mine = [each.get("f:spec") or {} for each in owned]
    wanted["spec"] = _unsettled(wanted.get("spec") or {}, cluster.get("spec") or {}, mine, SETTLED.__contains__)
    mine = [(each.get("f:metadata") or {}).get("f:labels") or {} for each in owned]
    if given := _unsettled(wanted["metadata"].pop("labels", {}), labels(cluster), mine, settled_label):
        wanted["metadata"]["labels"] = given
    while True:
        try:
            return await client.patch(CLUSTER, name(site), "", wanted, type=PatchType.APPLY, field_manager=AGENT_MANAGER)
        except ApiError as error:
            theirs = [str(c.get("field") or "") for c in error.details.get("causes") or () if c.get("reason") == CONFLICT]
            if error.code != 409 or not theirs or not all([_without(wanted, field) for field in theirs]):
                raise


def _unsettled(said: Obj, there: Obj, mine: list[Obj], settled: Callable[[str], bool]) -> Obj:
    """``said``, but what is settled as it is ``there``: who leaves out what is its own takes it away."""
    kept = {key: value for key, value in there.items() if settled(key) and any(f"f:{key}" in each for each in mine)}
    return {key: value for key, value in said.items() if not settled(key)} | kept


def _without(part: Obj, field: str) -> bool:
    """Takes out what stands at ``.metadata.labels.KEY``, whatever dots the key has, or the list that an item of it is in.
    Whether there was any."""
    for key, value in part.items():
        at, rest = f".{key}", field[len(key) + 1 :]
        if field.startswith(at) and (not rest or rest[0] in ".["):
            if rest.startswith(".") and isinstance(value, dict) and _without(value, rest):
                if not value:
                    del part[key]
                return True
            if not rest or rest.startswith("["):
                del part[key]
                return True
    return False


#: What an agent takes from its site file at each start, as it is of its machine and for its owner alone to say.
OF_THE_MACHINE = frozenset({"hostImages", "hostPaths", "imagePolicy", "isolation", "registries", "runtime"})


def differences(site: Obj, cluster: Obj, *, machine: bool = False) -> list[str]:
    """Where the site file's spec says something else than the hub's Cluster holds: ``FIELD is VALUE, and the hub has VALUE``.
    What the file does not name may be anything: operators edit the Cluster. ``machine``: of ``OF_THE_MACHINE`` only."""
    mine = {key: value for key, value in (site.get("spec") or {}).items() if (key in OF_THE_MACHINE) == machine}
    return list(_differences("spec", mine, cluster.get("spec") or {}))


def _differences(field: str, mine: object, theirs: object) -> Iterator[str]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key, value in mine.items():
            yield from _differences(f"{field}.{key}", value, theirs.get(key))
    elif mine != theirs:
        yield f"{field} is {json.dumps(mine)}, and the hub has {'nothing' if theirs is None else json.dumps(theirs)}"


async def identity_process(*arguments: str, stdin: bytes = b"") -> bytes:
    """Runs ``metaos.agent.identity``; its standard output. Raises ``JoinError``."""
    return await module_process("metaos.agent.identity", *arguments, stdin=stdin)


async def module_process(module: str, *arguments: str, stdin: bytes = b"") -> bytes:
    """Runs a module in a process of its own, so that what it loads stays out of this one; its standard output. Raises
    ``JoinError`` with the last line that it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(stdin)
    if process.returncode:
        lines = err.decode(errors="replace").strip().splitlines()
        raise JoinError(lines[-1] if lines else f"{module}: the process ended with {process.returncode}")
    return out
