"""Mutating and validating webhooks: who is asked about a write, and what their answers do.

A webhook is called by its ``url``, over HTTPS, with its ``caBundle`` (or what this machine trusts). A reference to a Service is
refused when it is written: services run on sites, which the hub reaches only for its users.
Bounds: an answer has ``MOST_BYTES``; all webhooks of one write have the time of its request.
Source: ``k8s.io/apiserver/pkg/admission/plugin/webhook``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import copy
import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from random import Random  # noqa: TID251 - the type of the source that is handed in
from typing import Any
from urllib.parse import urlsplit

import orjson

from metaos.apiserver.cache import WatchCache
from metaos.apiserver.custom.judge import Judge, Unjudged
from metaos.apiserver.custom.matching import Asked, concerns
from metaos.apiserver.patch import apply_patch
from metaos.apiserver.schema import ANY, forbidden, invalid, required, unsupported
from metaos.client import PatchType
from metaos.resources import errors, scheme
from metaos.resources.errors import ApiError, Cause
from metaos.resources.meta import Obj, name

MUTATING, VALIDATING = scheme.MUTATING_WEBHOOK_CONFIGURATION, scheme.VALIDATING_WEBHOOK_CONFIGURATION
VERSION = "admission.k8s.io/v1"
MOST_BYTES = 8 << 20
VARIABLES = ["object", "oldObject", "request"]


class _Unanswered(Exception):
    """A webhook that could not be asked, or whose answer is none."""


class Webhooks:
    """The configurations that are stored; read anew when one has changed."""

    def __init__(self, cache: WatchCache, judge: Callable[[], Judge], random: Random) -> None:
        self._cache, self._judge, self._random = cache, judge, random
        self._seen = -1
        self._hooks: dict[str, list[tuple[Obj, Obj]]] = {MUTATING.kind: [], VALIDATING.kind: []}

    def _of(self, kind: scheme.Kind) -> list[tuple[Obj, Obj]]:
        """(Configuration, webhook), by the names of the configurations."""
        latest = max(self._cache.resource(each.resource).revision for each in (MUTATING, VALIDATING))
        if latest != self._seen:
            for each in (MUTATING, VALIDATING):
                found = (version.object() for version in self._cache.range(each.resource))
                self._hooks[each.kind] = [(held, hook) for held in found for hook in held.get("webhooks") or ()]
            self._seen = latest
        return self._hooks[kind.kind]

    async def mutate(self, asked: Asked, reshape: Callable[[Obj], Obj], warnings: list[str]) -> Obj | None:
        """The object after all have changed it. Those that want it are asked once more where a later one changed something."""
        called: set[tuple[str, str]] = set()
        changed_after: set[tuple[str, str]] = set()
        for again in (False, True):
            for held, hook in self._of(MUTATING):
                key = name(held), hook["name"]
                if again and not (key in called and key in changed_after and hook.get("reinvocationPolicy") == "IfNeeded"):
                    continue
                seen = await self._wants(hook, asked)
                if seen is None:
                    continue
                patched = await self._called(held, hook, seen, warnings)
                called.add(key)
                if patched is not None and asked.obj is not None:
                    obj = reshape({**patched, "apiVersion": asked.kind.api_version})
                    if obj != asked.obj:
                        changed_after |= called - {key}
                        asked = replace(asked, obj=obj)
        return asked.obj

    async def validate(self, asked: Asked, warnings: list[str]) -> None:
        """Asks all at once. Raises ``ApiError`` where one refuses."""
        asking = [
            (held, hook, seen) for held, hook in self._of(VALIDATING) if (seen := await self._wants(hook, asked)) is not None
        ]
        if asking:
            answers = await asyncio.gather(*(self._called(*each, warnings) for each in asking), return_exceptions=True)
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer

    async def _wants(self, hook: Obj, asked: Asked) -> Asked | None:
        rules = {"matchPolicy": "Equivalent", **hook}
        seen = concerns(rules, asked, "rules")
        conditions = hook.get("matchConditions") or ()
        if seen is None or not conditions:
            return seen
        data = {"object": seen.shown(seen.obj), "oldObject": seen.shown(seen.old), "request": seen.request("")}
        asks = [[str(i), each["expression"]] for i, each in enumerate(conditions)]
        try:
            said = (await self._judge().ask({"evaluate": asks, "data": data}))["found"]
            problem = next((each["error"] for each in said.values() if "error" in each), "")
        except Unjudged as failed:
            said, problem = {}, str(failed)
        if problem and hook.get("failurePolicy") == "Ignore":
            return None
        if any(each.get("value") is False for each in said.values()):
            return None
        if problem:
            kind = asked.kind
            raise errors.forbidden(kind.group, kind.plural, asked.name, f"match conditions of webhook {hook['name']}: {problem}")
        return seen

    async def _called(self, held: Obj, hook: Obj, asked: Asked, warnings: list[str]) -> Obj | None:
        """The object after a webhook's patch, ``None`` where it has none. Raises ``ApiError`` where it refuses."""
        if asked.dry_run and hook.get("sideEffects") not in ("None", "NoneOnDryRun"):
            text = f"admission webhook {hook['name']!r} does not support dry run"
            raise errors.bad_request(text)
        uid = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        request = {**asked.request(uid), "object": asked.shown(asked.obj), "oldObject": asked.shown(asked.old), "options": None}
        review = {"kind": "AdmissionReview", "apiVersion": VERSION, "request": request}
        try:
            response = await _posted(hook, orjson.dumps(review))
            if response.get("uid") != uid:
                raise _Unanswered(f"expected response.uid={uid!r}, got {response.get('uid')!r}")
            warnings.extend(str(each) for each in response.get("warnings") or ())
            if response.get("allowed") is not True:
                raise _refusal(hook, response, asked)
            return _patched(response, asked)
        except (_Unanswered, AttributeError, TypeError) as failed:  # The latter: parts of its answer are of another type.
            text = f'failed calling webhook "{hook["name"]}": {failed}'
            if hook.get("failurePolicy", "Fail") == "Fail":
                raise ApiError(500, "InternalError", f"Internal error occurred: {text}") from None
            warnings.append(f"{text}; its configuration {name(held)} says to go on")
            return None


def _refusal(hook: Obj, response: Obj, asked: Asked) -> ApiError:
    status = response.get("status") or {}
    code = status.get("code")
    code = code if isinstance(code, int) else 403
    reason = str(status.get("reason") or ("Forbidden" if code == 403 else ""))
    said = status.get("message") or status.get("reason")
    text = f'admission webhook "{hook["name"]}" denied the request' + (f": {said}" if said else " without explanation")
    return ApiError(code if 400 <= code < 600 else 403, reason, text, details={"kind": asked.kind.plural, "name": asked.name})


def _patched(response: Obj, asked: Asked) -> Obj | None:
    encoded = response.get("patch")
    if not encoded or asked.obj is None:
        return None
    if response.get("patchType") != "JSONPatch":
        raise _Unanswered(f"patchType {response.get('patchType')!r} must be JSONPatch")
    try:
        patch = orjson.loads(base64.b64decode(encoded, validate=True))
        found: Obj = apply_patch(PatchType.JSON, copy.deepcopy(asked.obj), patch, ANY)
    except (ValueError, binascii.Error, ApiError) as wrong:
        raise _Unanswered(f"its patch cannot be applied: {wrong}") from None
    # Where an object is kept, and whose it is, has been settled by then.
    before, after = asked.obj["metadata"], found.get("metadata") or {}
    if moved := next((key for key in ("name", "namespace", "uid") if after.get(key) != before.get(key)), ""):
        raise _Unanswered(f"its patch changes metadata.{moved}")
    return found


async def _posted(hook: Obj, body: bytes) -> Obj:
    """The ``response`` of the AdmissionReview that a webhook answers. Raises :class:`_Unanswered`."""
    import aiohttp

    config, seconds = hook["clientConfig"], float(hook.get("timeoutSeconds") or 10)
    try:
        context = ssl.create_default_context()
        if config.get("caBundle"):
            context = ssl.create_default_context(cadata=base64.b64decode(config["caBundle"]).decode())
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session,
            session.post(
                config["url"], data=body, headers={"Content-Type": "application/json"}, ssl=context, allow_redirects=False
            ) as answer,
        ):
            text = b"".join([chunk async for chunk in _bounded(answer.content.iter_any())])
            if answer.status != 200:
                raise _Unanswered(f"it answered {answer.status}: {text[:200].decode(errors='replace')}")
    except TimeoutError:
        raise _Unanswered(f"no answer within {seconds:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as wrong:
        raise _Unanswered(f"{type(wrong).__name__}: {wrong}") from None
    try:
        review = orjson.loads(text)
        if review["apiVersion"] != VERSION or review["kind"] != "AdmissionReview" or not isinstance(review["response"], dict):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise _Unanswered(f"its answer is no AdmissionReview of {VERSION}") from None
    found: Obj = review["response"]
    return found


async def _bounded(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > MOST_BYTES:
            raise _Unanswered(f"its answer has more than {MOST_BYTES} bytes")
        yield chunk


# -- what a configuration must be ----------------------------------------------------------------------------


def causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    seen: set[str] = set()
    for i, hook in enumerate(obj.get("webhooks") or ()):
        path = f"webhooks[{i}]"
        if str(hook.get("name") or "").count(".") < 2:
            yield invalid(f"{path}.name", hook.get("name"), "should be a domain with at least three segments separated by dots")
        if hook.get("name") in seen:
            yield invalid(f"{path}.name", hook["name"], "must be unique")
        seen.add(hook.get("name"))
        if VERSION.partition("/")[2] not in (hook.get("admissionReviewVersions") or ()):
            yield invalid(
                f"{path}.admissionReviewVersions", hook.get("admissionReviewVersions"), "must include at least one of v1"
            )
        if hook.get("sideEffects") not in ("None", "NoneOnDryRun"):
            yield unsupported(f"{path}.sideEffects", hook.get("sideEffects") or "", ["None", "NoneOnDryRun"])
        for field, allowed in (("failurePolicy", ["Fail", "Ignore"]), ("matchPolicy", ["Equivalent", "Exact"])):
            if hook.get(field) not in allowed:
                yield unsupported(f"{path}.{field}", hook.get(field), allowed)
        if not 1 <= (hook.get("timeoutSeconds") or 10) <= 30:
            yield invalid(f"{path}.timeoutSeconds", hook["timeoutSeconds"], "the timeout value must be between 1 and 30 seconds")
        yield from _client_causes(hook.get("clientConfig") or {}, f"{path}.clientConfig")


def _client_causes(config: Any, path: str) -> Iterator[Cause]:
    if config.get("service"):
        text = "the hub calls webhooks by url: services run on sites, which it reaches for its users only; give the webhook a url"
        yield forbidden(f"{path}.service", text)
    elif not config.get("url"):
        yield required(path, "exactly one of url or service is required")
    else:
        parts = urlsplit(config["url"])
        if parts.scheme != "https":
            yield invalid(
                f"{path}.url", config["url"], "'https' is the only allowed URL scheme; desired format: https://host[/path]"
            )
        elif not parts.hostname:
            yield invalid(f"{path}.url", config["url"], "host must be specified; desired format: https://host[/path]")
        elif parts.username or parts.fragment or parts.query:
            yield invalid(f"{path}.url", config["url"], "must have no user, no query and no fragment")
    if config.get("caBundle"):
        try:
            ssl.create_default_context(cadata=base64.b64decode(config["caBundle"]).decode())
        except (ssl.SSLError, ValueError) as wrong:
            yield invalid(f"{path}.caBundle", "<certificates>", f"unable to load root certificates: {wrong}")
