"""Personal tokens at the hub: ``/tokens`` lists one's own, makes and revokes them; as a bearer token one is its owner, narrowed.

A token stands as a Secret of ``nemo-system`` with its owner, the owner's groups as they were when it was made, its scopes, its
end, and a salted hash. It counts until then, until it is revoked, or until its owner's certificates are withdrawn (``nemo
revoke``). Its last use is noted once in ``NOTED_SECONDS``. A token makes no tokens.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
from collections.abc import Callable, Iterable
from typing import Any

import orjson
from aiohttp import web

from metaos.apiserver.authn import Identity
from metaos.client import Client
from metaos.clock import Clock
from metaos.resources import errors, scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, format_time, parse_time
from metaos.resources.scheme import Kind
from metaos.security.authz import UserInfo
from metaos.security.identity import Random
from metaos.security.personal import SCOPES, TOKEN_ID, Token, salt, scope_problem, scoped
from metaos.store.log import StoreFailed

log = logging.getLogger(__name__)

PATH = "/tokens"
TYPE = "meta-os.eu/personal-token"
OWNER_LABEL = "meta-os.eu/token-owner"
MOST_TOKENS, MOST_NAME = 50, 100
LEAST_SECONDS, MOST_SECONDS = 60, 365 * 86400
NOTED_SECONDS = 300.0


class PersonalTokens:
    """``held`` gives the Secret of a name as it is now, at once; ``withdrawn`` says whether what a user was given at a time was
    withdrawn since; ``kinds`` gives those that are served; ``client`` may do everything in ``nemo-system``; ``random`` is
    unpredictable."""

    def __init__(
        self,
        client: Client,
        clock: Clock,
        random: Random,
        *,
        held: Callable[[str], Obj | None],
        withdrawn: Callable[[str, float], bool],
        kinds: Callable[[], Iterable[Kind]],
    ) -> None:
        self._client, self._clock, self._random = client, clock, random
        self._held, self._withdrawn, self._kinds = held, withdrawn, kinds

    async def identity(self, bearer: str) -> Identity | None:
        """``None`` where it is no personal token, or does not count (any more)."""
        token = Token.parse(bearer)
        if token is None:
            return None
        try:
            secret = await self._client.get(scheme.SECRET, _name(token.id), SYSTEM_NAMESPACE)
        except ApiError as error:
            if error.code == 404:
                return None
            raise
        about = _about(secret)
        if about is None or not token.matches(bytes.fromhex(about["salt"]), about["hash"]) or not self._counts(about):
            return None
        await self._note(secret, about)
        extra = ((SCOPES, tuple(about["scopes"])), (TOKEN_ID, (token.id,)))
        user = UserInfo(about["user"], tuple(about["groups"]), about.get("uid", ""), extra)

        def valid() -> bool:
            now = self._held(_name(token.id))
            return now is not None and now["metadata"]["uid"] == secret["metadata"]["uid"] and self._counts(about)

        return Identity(user, valid, f"personal-token {token.id}")

    def _counts(self, about: Obj) -> bool:
        made, until = parse_time(about["made"]), parse_time(about["expires"])
        return self._clock.now() < until and not self._withdrawn(about["user"], made)

    async def _note(self, secret: Obj, about: Obj) -> None:
        now = self._clock.now()
        if now - (parse_time(about["used"]) if about.get("used") else 0) < NOTED_SECONDS:
            return
        try:
            data = _data({**about, "used": format_time(now)})
            await self._client.patch(scheme.SECRET, secret["metadata"]["name"], SYSTEM_NAMESPACE, {"data": data})
        except StoreFailed as failed:
            # A full disk, or a database that is away: nobody's log-in fails.
            log.debug("the last use of a token is not noted: %s", failed)
        except ApiError as error:
            if error.code not in (404, 409):  # Revoked meanwhile, or somebody else's note.
                raise

    # -- the interface --------------------------------------------------------------------------------------------

    async def serve(self, request: web.Request, path: str, user: UserInfo, headers: dict[str, str]) -> web.Response:
        """Raises ``ApiError``."""
        if user.name.startswith("system:"):
            raise errors.forbidden("", "tokens", "", "personal tokens are for people; a program has a ServiceAccount")
        if scoped(user):
            raise errors.forbidden("", "tokens", "", "a personal token makes, shows and revokes none: log in yourself")
        named = path.removeprefix(PATH).strip("/")
        if request.method == "GET" and not named:
            found: Any = {"items": [_shown(each) for each in await self._of(user)]}
        elif request.method == "POST" and not named:
            found = await self._create(user, await request.read())
        elif request.method == "DELETE" and named:
            found = await self._revoke(user, named)
        else:
            raise errors.method_not_allowed("ask GET or POST at /tokens, or DELETE at /tokens/ID")
        kept = {**headers, "Content-Type": "application/json", "Cache-Control": "no-store"}
        return web.Response(body=orjson.dumps(found), status=201 if request.method == "POST" else 200, headers=kept)

    async def _of(self, user: UserInfo) -> list[Obj]:
        label = f"{OWNER_LABEL}={_owner(user.name)}"
        found = (await self._client.list(scheme.SECRET, SYSTEM_NAMESPACE, labels=label)).items
        return [each for each in found if (about := _about(each)) is not None and about["user"] == user.name]

    async def _create(self, user: UserInfo, body: bytes) -> Obj:
        try:
            asked = orjson.loads(body)
            named, scopes, seconds = asked["name"], asked["scopes"], asked["expirationSeconds"]
            fits = isinstance(named, str) and isinstance(seconds, int) and not isinstance(seconds, bool)
            if not fits or not all(isinstance(scope, str) for scope in scopes):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise errors.bad_request('the body must be {"name": TEXT, "scopes": [TEXT…], "expirationSeconds": NUMBER}') from None
        if not 0 < len(named) <= MOST_NAME or not named.isprintable():
            raise errors.bad_request(f"name: {named[:80]!r} must have 1 to {MOST_NAME} printable characters: say what it is for")
        if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
            raise errors.bad_request(f"expirationSeconds: {seconds} must be from {LEAST_SECONDS} to {MOST_SECONDS} (a year)")
        if problem := scope_problem(scopes, _resources(self._kinds())):
            raise errors.bad_request(problem)
        mine = await self._of(user)
        if len(mine) >= MOST_TOKENS:
            raise errors.forbidden("", "tokens", "", f"you have {MOST_TOKENS} tokens already: revoke those that you do not need")
        token, grain, now = Token.create(self._random), salt(self._random), self._clock.now()
        about: Obj = {
            "user": user.name,
            "uid": user.uid,
            "groups": [group for group in user.groups if group != "system:authenticated"],
            "name": named,
            "scopes": list(dict.fromkeys(scopes)),
            "made": format_time(now),
            "expires": format_time(now + seconds),
            "salt": grain.hex(),
            "hash": token.hashed(grain),
        }
        secret: Obj = dict(scheme.SECRET.empty(_name(token.id), SYSTEM_NAMESPACE))
        secret["metadata"]["labels"] = {OWNER_LABEL: _owner(user.name)}
        made = await self._client.create({**secret, "type": TYPE, "data": _data(about)})
        return {**_shown(made), "token": str(token)}

    async def _revoke(self, user: UserInfo, named: str) -> Obj:
        for secret in await self._of(user):
            if secret["metadata"]["name"] == _name(named):
                await self._client.delete(scheme.SECRET, _name(named), SYSTEM_NAMESPACE)
                return _shown(secret)
        raise errors.not_found("", "tokens", named[:80])


def _name(id: str) -> str:
    return f"personal-token-{id}"


def _owner(user: str) -> str:
    """A user's name as a label's value."""
    return hashlib.sha256(user.encode()).hexdigest()[:40]


def _data(about: Obj) -> dict[str, str]:
    return {"about": base64.b64encode(orjson.dumps(about)).decode()}


def _about(secret: Obj) -> Obj | None:
    """``None`` where it is no personal token, or somebody has bent it."""
    try:
        found = orjson.loads(base64.b64decode((secret.get("data") or {})["about"]))
        parse_time(found["made"]), parse_time(found["expires"]), bytes.fromhex(found["salt"])
        fits = secret.get("type") == TYPE and all(isinstance(found[key], str) for key in ("user", "hash", "name"))
        fits = fits and all(isinstance(each, str) for key in ("groups", "scopes") for each in found[key])
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None
    return found if fits else None


def _shown(secret: Obj) -> Obj:
    about = _about(secret) or {}
    found: Obj = {"id": secret["metadata"]["name"].removeprefix("personal-token-")}
    return found | {key: about.get(key) for key in ("name", "user", "scopes", "made", "expires", "used")}


def _resources(kinds: Iterable[Kind]) -> set[str]:
    """As scopes may name them: ``pods``, ``deployments.apps``, ``pods/log``."""
    found: set[str] = set()
    for kind in kinds:
        found |= {kind.plural, f"{kind.plural}.{kind.group}", *(f"{kind.plural}/{each}" for each in kind.subresources)}
    return found
