"""People by ID tokens of OpenID providers: a plugin as any other, made of a file with an AuthenticationConfiguration.

Keys of an issuer are asked for with its first token and kept for ``KEEP_SECONDS``; a token of a key that is not known has them
asked for again, ``AGAIN_SECONDS`` after the last time at the earliest. An issuer that does not answer leaves its old keys good
for ``STALE_SECONDS``, so that its bad hour is not the hub's. Answers are bounded in size and time (``metaos.fetching``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import yaml

from metaos.plugins.points import Fetch, Person
from metaos.security.openid import Issuer, Refused, issuers, person

log = logging.getLogger(__name__)

KEEP_SECONDS, STALE_SECONDS, AGAIN_SECONDS = 3600.0, 86400.0, 10.0
MOST_KEYS = 64
MOST_FILE = 1 << 20
#: What a key of a kind signs with; "none" and shared secrets are no kinds of keys here.
ALGORITHMS = {"RS256": "RSA", "ES256": "EC"}
LEAST_RSA_BITS = 2048
#: Of a JSON web key: what a careless provider shows beside that is not looked at.
_PUBLIC = ("kty", "n", "e", "crv", "x", "y")


class OpenId:
    """``text`` is the path of the file."""

    def __init__(self, text: str, *, now: Callable[[], float], fetch: Fetch) -> None:
        file = Path(text)
        try:
            if not file.is_file():
                raise ValueError("there is no such file")
            if file.stat().st_size > MOST_FILE:
                raise ValueError(f"it has more than {MOST_FILE} bytes")
            found = issuers(yaml.safe_load(file.read_text()))
        except yaml.YAMLError as error:
            raise ValueError(f"authenticator openid={text}: it is not YAML: {' '.join(str(error).split())[:300]}") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"authenticator openid={text}: {error}") from None
        self._now = now
        self._issuers = {issuer.url: _Keys(issuer, now, fetch) for issuer in found}

    async def person(self, token: str) -> Person | None:
        import jwt

        try:
            header = jwt.get_unverified_header(token)
            claimed = jwt.decode(token, options={"verify_signature": False}).get("iss")
        except (jwt.PyJWTError, ValueError, RecursionError):
            return None
        keys = self._issuers.get(claimed) if isinstance(claimed, str) else None
        if keys is None:
            return None
        try:
            algorithm = header.get("alg")
            if algorithm not in ALGORITHMS or "crit" in header:
                raise Refused(f"alg must be one of {', '.join(ALGORITHMS)}")
            claims = await keys.verified(token, algorithm, header.get("kid"))
            return person(keys.issuer, claims, self._now())
        except Refused as refused:
            log.info("a token of %s does not count: %s", keys.issuer.url, refused)
            return None


class _Keys:
    """The keys of one issuer."""

    def __init__(self, issuer: Issuer, now: Callable[[], float], fetch: Fetch) -> None:
        self.issuer, self._now, self._fetch = issuer, now, fetch
        self._keys: list[tuple[str | None, str, Any]] = []
        self._got = self._asked = float("-inf")
        self._turn = asyncio.Lock()

    async def verified(self, token: str, algorithm: str, kid: Any) -> Mapping[str, Any]:
        """The claims. Raises :class:`Refused`."""
        import jwt

        for key in await self._fitting(algorithm, kid):
            try:
                # Times are judged by the hub's clock, audience and issuer by its settings.
                options: Any = {f"verify_{word}": False for word in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}
                found: Mapping[str, Any] = jwt.decode(token, key, algorithms=[algorithm], options=options)
                return found
            except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
                continue
        raise Refused("no key of the issuer has signed it")

    async def _fitting(self, algorithm: str, kid: Any) -> list[Any]:
        found = self._known(algorithm, kid)
        # Where a key is known but old, one caller brings the new ones, and the others do not wait for an issuer that hangs.
        if not found or (self._now() - self._got > KEEP_SECONDS and not self._turn.locked()):
            async with self._turn:
                # Whoever waited finds what the one before has brought.
                if self._now() - self._asked >= AGAIN_SECONDS:
                    self._asked = self._now()
                    await self._refresh()
            found = self._known(algorithm, kid)
        if self._now() - self._got > STALE_SECONDS:
            raise Refused("the issuer's keys are not known: it cannot be reached")
        return found

    def _known(self, algorithm: str, kid: Any) -> list[Any]:
        return [key for named, kind, key in self._keys if kind == algorithm and (kid is None or named in (None, kid))]

    async def _refresh(self) -> None:
        try:
            about = await self._json(self.issuer.discovery)
            if about.get("issuer") != self.issuer.url:
                raise Refused(f"its metadata names another issuer, {str(about.get('issuer'))[:200]!r}")
            address = about.get("jwks_uri")
            if not isinstance(address, str) or not address.startswith("https://"):
                raise Refused("its metadata names no jwks_uri with https://")
            listed = (await self._json(address)).get("keys")
            if not isinstance(listed, list) or len(listed) > MOST_KEYS:
                raise Refused(f"its keys are no list of at most {MOST_KEYS}")
            self._keys = [key for each in listed if (key := _key(each)) is not None]
            self._got = self._now()
        except Refused as refused:
            log.warning("keys of %s: %s; those that are known are used meanwhile", self.issuer.url, refused)

    async def _json(self, url: str) -> Mapping[str, Any]:
        status, body = await self._fetch(url, self.issuer.authorities)
        if status != 200:
            raise Refused(f"{url} answers {status}" if status else f"{url}: {body.decode(errors='replace')[:200]}")
        try:
            found = orjson.loads(body)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise Refused(f"{url} answers no JSON object")
        return found


def _key(stated: Any) -> tuple[str | None, str, Any] | None:
    """(Id, algorithm, key), ``None`` where it signs nothing that counts here."""
    import jwt

    if not isinstance(stated, dict) or stated.get("use", "sig") != "sig":
        return None
    for algorithm, kind in ALGORITHMS.items():
        if stated.get("kty") == kind and stated.get("alg", algorithm) == algorithm:
            try:
                key = jwt.PyJWK({k: stated[k] for k in _PUBLIC if k in stated}, algorithm=algorithm).key
            except (jwt.PyJWTError, ValueError, TypeError, KeyError):
                return None
            if key.key_size < LEAST_RSA_BITS if kind == "RSA" else key.curve.name != "secp256r1":
                return None
            kid = stated.get("kid")
            return (kid if isinstance(kid, str) else None), algorithm, key
    return None
