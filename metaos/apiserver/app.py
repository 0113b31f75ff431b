"""The HTTP form of the API: routing, content negotiation, watches, and what every request has to pass.

Rules about objects are the registry's; this module knows HTTP. A request is authenticated here, authorised by the
registry, answered as JSON (or as a Table for kubectl), counted, and, if it changes something, audited.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from random import Random  # noqa: TID251 - the type of the source that is handed in
from typing import Any

import orjson
import yaml
from aiohttp import web

from metaos.apiserver import discovery, openapi, streams
from metaos.apiserver.audit import AuditLog, NoAuditLog
from metaos.apiserver.authn import ANONYMOUS, Authenticator
from metaos.apiserver.metrics import Metrics
from metaos.apiserver.proxy import ServiceProxy, service_parts
from metaos.apiserver.registry import Registry
from metaos.apiserver.request import Target, page_not_found, parse
from metaos.apiserver.table import table
from metaos.apiserver.tunnels import Tunnels
from metaos.client import PatchType
from metaos.clock import Clock
from metaos.resources import scheme
from metaos.resources.errors import (
    ApiError,
    bad_request,
    internal,
    method_not_allowed,
    too_large,
    unauthorized,
    unsupported_media_type,
)
from metaos.resources.meta import Obj
from metaos.security.audit import MUTATING, audit_event
from metaos.security.authz import Attributes, UserInfo
from metaos.store.log import StoreFailed, StoreFull

log = logging.getLogger(__name__)

SELF = UserInfo("system:apiserver", ("system:masters",))
MAX_BODY = 3 * 1024 * 1024
#: A watch without timeoutSeconds ends after this long, plus up to as much again by chance, so that clients spread.
WATCH_SECONDS = 1800
JSON = "application/json"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PUBLIC = {"/livez", "/readyz", "/healthz", "/version", "/cacerts"}
_METHOD_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_STREAMING = {"log", "exec", "attach", "portforward", "proxy", "tunnel"}


class Api:
    """All handlers. One instance serves one hub."""

    def __init__(
        self,
        registry: Registry,
        *,
        authenticator: Authenticator,
        tunnels: Tunnels,
        proxy: ServiceProxy,
        clock: Clock,
        random: Random,
        audit: AuditLog | None = None,
        metrics: Metrics | None = None,
        authority: bytes = b"",
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._registry, self._authenticator = registry, authenticator
        self._tunnels, self._proxy = tunnels, proxy
        self._clock, self._random = clock, random
        self._audit, self._metrics = audit or NoAuditLog(), metrics or Metrics()
        self._authority, self._ready = authority, ready

    # -- every request --------------------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any request. Whatever goes wrong is answered as a ``Status``, never as a traceback."""
        received, started = self._clock.now(), self._clock.monotonic()
        user, verb, target = ANONYMOUS, "", None
        code = 500
        try:
            user = self._user(request)
            path = request.rel_url.raw_path
            if path.startswith(("/api/", "/apis/")) and len(path.split("/")) > (3 if path.startswith("/api/") else 4):
                target = parse(path.rstrip("/") if "/proxy" not in path else path)
                verb = self._verb(request, target)
                response = await self._resource(request, user, verb, target)
            else:
                response = await self._other(request, user, path)
            code = response.status
            return response
        except ApiError as error:
            code = error.code
            return self._error(error)
        except web.HTTPRequestEntityTooLarge:
            code = 413
            return self._error(too_large(f"the request's body is larger than {MAX_BODY} bytes"))
        except StoreFull:
            code = 507
            return self._error(
                ApiError(507, "InsufficientStorage", "the hub's disk is full: nothing was written; make room and try again")
            )
        except StoreFailed as error:
            code = 503
            return self._error(ApiError(503, "ServiceUnavailable", f"the hub's store does not work: {error}"))
        except ConnectionError:
            code = 499
            raise
        except asyncio.CancelledError:
            code = 499
            raise
        except Exception:
            log.exception("%s %s", request.method, request.rel_url.raw_path)
            return self._error(internal("the hub made a mistake; its log says more"))
        finally:
            seconds = self._clock.monotonic() - started
            resource = target.kind.resource if target else ""
            self._metrics.observe(verb or "other", resource, code, seconds)
            if target is not None and (verb in MUTATING or target.subresource in ("exec", "attach", "portforward")):
                self._write_audit(request, user, verb, target, code, received, seconds)

    def _write_audit(
        self, request: web.Request, user: UserInfo, verb: str, target: Target, code: int, received: float, seconds: float
    ) -> None:
        event = audit_event(
            request_id=f"{self._random.getrandbits(64):016x}",
            user=user,
            verb=verb,
            resource=target.kind.resource,
            subresource=target.subresource,
            namespace=target.namespace,
            name=target.name,
            code=code,
            received=received,
            seconds=seconds,
            address=request.remote or "",
        )
        try:
            self._audit.write(event)
        except OSError as error:
            log.error("the audit log cannot be written: %s", error)

    def _user(self, request: web.Request) -> UserInfo:
        secured = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
        peer = secured.getpeercert() if secured is not None else None
        return self._authenticator.authenticate(peer, request.headers.get("Authorization", ""))

    @staticmethod
    def _error(error: ApiError) -> web.Response:
        headers = {}
        if error.code in (429, 503) and "retryAfterSeconds" in error.details:
            headers["Retry-After"] = str(error.details["retryAfterSeconds"])
        return web.Response(status=error.code, body=orjson.dumps(error.status()), content_type=JSON, headers=headers)

    @staticmethod
    def _verb(request: web.Request, target: Target) -> str:
        verb = _METHOD_VERBS.get(request.method)
        if verb is None:
            raise method_not_allowed(f"method {request.method} is not allowed")
        if target.subresource in ("exec", "attach", "portforward"):
            return "create"
        if verb == "get" and not target.name:
            return "watch" if request.query.get("watch") in ("true", "1") else "list"
        if verb == "delete" and not target.name:
            return "deletecollection"
        return verb

    # -- what is no object ----------------------------------------------------------------------------------

    async def _other(self, request: web.Request, user: UserInfo, path: str) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            raise method_not_allowed(f"method {request.method} is not allowed on {path}")
        if path not in _PUBLIC:
            if user is ANONYMOUS:
                raise unauthorized()
            self._registry.check(user, Attributes("get", path=path))
        if path in ("/livez", "/healthz") or path.startswith(("/livez/", "/readyz/")):
            return web.Response(text="ok")
        if path == "/readyz":
            return web.Response(text="ok") if self._ready() else web.Response(status=503, text="not ready")
        if path == "/cacerts":
            return web.Response(body=self._authority, content_type="application/x-pem-file")
        if path == "/version":
            return _json(discovery.version())
        if path == "/metrics":
            return web.Response(text=self._metrics.text(), content_type="text/plain")
        return _discovery(request, path)

    # -- objects --------------------------------------------------------------------------------------------

    async def _resource(self, request: web.Request, user: UserInfo, verb: str, target: Target) -> web.StreamResponse:
        if user is ANONYMOUS:
            raise unauthorized()
        if target.subresource in _STREAMING:
            return await self._stream(request, user, verb, target)
        warnings: list[str] = []
        handlers: dict[str, Callable[..., Awaitable[web.StreamResponse]]] = {
            "get": self._get,
            "list": self._list,
            "watch": self._watch,
            "create": self._create,
            "update": self._update,
            "patch": self._patch,
            "delete": self._delete,
            "deletecollection": self._delete_collection,
        }
        if not target.subresource and verb not in target.kind.verbs:
            raise method_not_allowed("the server does not allow this method on the requested resource")
        response = await handlers[verb](request, user, target, warnings)
        if not response.prepared:
            for text in dict.fromkeys(warnings):
                quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
                response.headers.add("Warning", f'299 - "{quoted}"')
        return response

    async def _get(self, request: web.Request, user: UserInfo, target: Target, warnings: list[str]) -> web.StreamResponse:
        kind = target.kind
        form = _form(request)
        if form == "JSON" and not target.subresource:
            return _raw(await self._registry.get_encoded(user, kind, target.name, target.namespace))
        obj = await self._registry.get(user, kind, target.name, target.namespace, subresource=target.subresource)
        if form == "Table" and not target.subresource:
            version = str(obj["metadata"].get("resourceVersion", ""))
            return _json(
                table(kind, [obj], version, self._clock.now(), include_object=request.query.get("includeObject", "Metadata"))
            )
        return _json(_partial(obj) if form == "Partial" else obj)

    async def _list(self, request: web.Request, user: UserInfo, target: Target, warnings: list[str]) -> web.StreamResponse:
        query, kind, form = request.query, target.kind, _form(request)
        wanted: dict[str, Any] = {
            "labels": query.get("labelSelector", ""),
            "fields": query.get("fieldSelector", ""),
            "limit": _whole(query, "limit"),
            "continue_token": query.get("continue", ""),
            "resource_version": query.get("resourceVersion", ""),
            "resource_version_match": query.get("resourceVersionMatch", ""),
        }
        if form == "JSON":
            return _raw(await self._registry.list_encoded(user, kind, target.namespace, **wanted))
        found = await self._registry.list(user, kind, target.namespace, **wanted)
        if form == "Table":
            body = table(
                kind,
                found.items,
                found.resource_version,
                self._clock.now(),
                continue_token=found.continue_token,
                include_object=query.get("includeObject", "Metadata"),
            )
            return _json(body)
        metadata = {"resourceVersion": found.resource_version, "continue": found.continue_token}
        items = [_partial(o) for o in found.items]
        return _json({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items})

    async def _watch(self, request: web.Request, user: UserInfo, target: Target, warnings: list[str]) -> web.StreamResponse:
        query, kind, form = request.query, target.kind, _form(request)
        seconds = _whole(query, "timeoutSeconds") or WATCH_SECONDS * (1 + self._random.random())
        fields = query.get("fieldSelector", "")
        if target.name:
            fields = ",".join(filter(None, (fields, f"metadata.name={target.name}")))
        events = self._registry.watch(
            user,
            kind,
            target.namespace,
            resource_version=query.get("resourceVersion", ""),
            labels=query.get("labelSelector", ""),
            fields=fields,
            bookmarks=query.get("allowWatchBookmarks") in ("true", "1"),
            initial_events=query.get("sendInitialEvents") in ("true", "1"),
        )
        response = web.StreamResponse(headers={"Content-Type": JSON, "Cache-Control": "no-cache, private"})
        response.enable_chunked_encoding()
        include = query.get("includeObject", "Metadata")
        async with aclosing(events):
            try:
                async with asyncio.timeout(seconds):
                    # The first step says whether this may be watched at all, before the answer begins; but it must not
                    # wait for a first event.
                    first = asyncio.ensure_future(anext(events, None))
                    done, _ = await asyncio.wait({first}, timeout=0.01)
                    if done:
                        first.result()
                    await response.prepare(request)
                    event = await first
                    while event is not None:
                        await response.write(self._line(kind, event, form, include))
                        event = await anext(events, None)
            except TimeoutError:
                pass
            except ApiError as error:
                if not response.prepared:
                    raise
                await response.write(orjson.dumps({"type": "ERROR", "object": error.status()}) + b"\n")
            except ConnectionError:
                return response
        if not response.prepared:
            await response.prepare(request)
        with suppress(ConnectionError):
            await response.write_eof()
        return response

    def _line(self, kind: scheme.Kind, event: Any, form: str, include: str) -> bytes:
        if form == "JSON":
            return bytes(event.line)
        obj: Obj = event.object
        if form == "Partial":
            return orjson.dumps({"type": event.type, "object": _partial(obj)}) + b"\n"
        if event.type == "BOOKMARK":
            body = table(kind, [], str(obj["metadata"]["resourceVersion"]), self._clock.now())
        else:
            version = str(obj["metadata"].get("resourceVersion", ""))
            body = table(kind, [obj], version, self._clock.now(), include_object=include)
        return orjson.dumps({"type": event.type, "object": body}) + b"\n"

    async def _create(self, request: web.Request, user: UserInfo, target: Target, warnings: list[str]) -> web.StreamResponse:
        obj = await _body(request)
        if target.subresource:
            found = await self._registry.create_subresource(
                user,
                target.kind,
                target.name,
                target.namespace,
                target.subresource,
                obj,
                dry_run=_dry_run(request),
                warnings=warnings,
            )
            return _json(found, 201)
        if target.name:
            raise method_not_allowed("the server does not allow this method on the requested resource")
        found = await self._registry.create(
            user,
            obj,
            kind=target.kind,
            namespace=target.namespace,
            warnings=warnings,
            **_options(request),
        )
        return self._shown(request, target, found, 201)

    async def _update(self, request: web.Request, user: UserInfo, target: Target, warnings: list[str]) -> web.StreamResponse:
        found = await self._registry.update(
            user,
            await _body(request),
            kind=target.kind,
            name=target.name,
            namespace=target.namespace,
            subresource=target.subresource,
            warnings=warnings,
            **_options(request),
        )
        return self._shown(request, target, found, 200)

    async def _patch(self, request: web.Request, user: UserInfo, target: Target, warnings: list[str]) -> web.StreamResponse:
        try:
            kind = PatchType(request.content_type)
        except ValueError:
            known = ", ".join(PatchType)
            raise unsupported_media_type(f"patch type {request.content_type!r} is not supported: use one of {known}") from None
        created = False
        if kind is PatchType.APPLY and not target.subresource:
            try:
                await self._registry.get(user, target.kind, target.name, target.namespace)
            except ApiError as error:
                created = error.code == 404
        found = await self._registry.patch(
            user,
            target.kind,
            target.name,
            target.namespace,
            await _body(request, mapping=kind is not PatchType.JSON),
            type=kind,
            subresource=target.subresource,
            force=request.query.get("force") in ("true", "1"),
            warnings=warnings,
            **_options(request),
        )
        return self._shown(request, target, found, 201 if created else 200)

    async def _delete(self, request: web.Request, user: UserInfo, target: Target, warnings: list[str]) -> web.StreamResponse:
        options = await _delete_options(request)
        preconditions = options.get("preconditions") or {}
        found = await self._registry.delete(
            user,
            target.kind,
            target.name,
            target.namespace,
            uid=str(preconditions.get("uid") or ""),
            resource_version=str(preconditions.get("resourceVersion") or ""),
            propagation=_propagation(options),
            grace_period_seconds=options.get("gracePeriodSeconds"),
            dry_run=bool(options.get("dryRun")),
            warnings=warnings,
        )
        return _json(found)

    async def _delete_collection(
        self, request: web.Request, user: UserInfo, target: Target, warnings: list[str]
    ) -> web.StreamResponse:
        options = await _delete_options(request)
        await self._registry.delete_collection(
            user,
            target.kind,
            target.namespace,
            labels=request.query.get("labelSelector", ""),
            fields=request.query.get("fieldSelector", ""),
            propagation=_propagation(options),
            grace_period_seconds=options.get("gracePeriodSeconds"),
            dry_run=bool(options.get("dryRun")),
        )
        return _json({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})

    def _shown(self, request: web.Request, target: Target, obj: Obj, code: int) -> web.StreamResponse:
        if _form(request) == "Table" and not target.subresource:
            return _json(table(target.kind, [obj], str(obj["metadata"].get("resourceVersion", "")), self._clock.now()), code)
        return _json(obj, code)

    # -- streams --------------------------------------------------------------------------------------------

    async def _stream(self, request: web.Request, user: UserInfo, verb: str, target: Target) -> web.StreamResponse:
        kind = target.kind
        name = service_parts(target.name)[1] if kind is scheme.SERVICE else target.name.split(":")[0]
        attributes = Attributes(verb, kind.group, kind.plural, target.subresource, target.namespace, name)
        self._registry.check(user, attributes)
        if target.subresource == "tunnel":
            return await self._tunnels.serve(target.name, request)
        # What a caller may stream from is decided above; to look the object up is the hub's own business.
        obj = await self._registry.get(SELF, kind, name, target.namespace)
        if kind is scheme.POD and target.subresource == "log":
            return await streams.log(request, self._tunnels, obj)
        if kind is scheme.POD and target.subresource in ("exec", "attach"):
            return await streams.execute(request, self._tunnels, obj, target.subresource)
        if kind is scheme.POD and target.subresource == "portforward":
            return await streams.port_forward(request, self._tunnels, obj)
        path = (target.rest or "/") + (f"?{request.rel_url.raw_query_string}" if request.rel_url.raw_query_string else "")
        if kind is scheme.SERVICE:
            return await self._proxy.serve(request, obj, service_parts(target.name)[2], path)
        if kind is scheme.POD:
            port = target.name.partition(":")[2].rpartition(":")[2]
            if not port:
                containers = (obj.get("spec") or {}).get("containers") or ()
                port = str(next((p["containerPort"] for c in containers for p in c.get("ports") or ()), 80))
            if not port.isdigit():
                raise bad_request(f"port {port!r} must be a number")
            return await self._proxy.serve_pod(request, obj, int(port), path)
        raise page_not_found()


def make_app(api: Api) -> web.Application:
    """The aiohttp application."""
    app = web.Application(client_max_size=MAX_BODY)
    app.router.add_route("*", "/{path:.*}", api.handle)
    return app


def _json(body: Any, code: int = 200) -> web.Response:
    return web.Response(status=code, body=orjson.dumps(body), content_type=JSON)


def _raw(body: bytes) -> web.Response:
    return web.Response(body=body, content_type=JSON)


def _form(request: web.Request) -> str:
    """``JSON``, ``Table`` or ``Partial``: the first form that the client accepts and this server has. Raises 406."""
    accept = request.headers.get("Accept", "") or "*/*"
    for part in accept.split(","):
        kind, *parameters = (p.strip() for p in part.split(";"))
        given = dict(p.split("=", 1) for p in parameters if "=" in p)
        if kind in (JSON, "application/*", "*/*"):
            if given.get("as") == "Table" and given.get("v", "v1") == "v1":
                return "Table"
            if given.get("as", "").startswith("PartialObjectMetadata"):
                return "Partial"
            if "as" not in given:
                return "JSON"
    raise ApiError(406, "NotAcceptable", "only the following media types are accepted: application/json")


def _partial(obj: Obj) -> Obj:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj.get("metadata") or {}}


async def _body(request: web.Request, *, mapping: bool = True) -> Any:
    """The request's body: JSON, or YAML where it says so. Raises 400 or 415."""
    raw = await request.read()
    kind = request.content_type
    try:
        if "protobuf" in kind or kind == "application/cbor":
            raise unsupported_media_type(f"the body of the request was in an unknown format - {kind}: use application/json")
        found = yaml.load(raw, Loader=_LOADER) if "yaml" in kind else orjson.loads(raw)  # noqa: S506 - a safe loader
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise bad_request(f"the body could not be read as {'YAML' if 'yaml' in kind else 'JSON'}: {error}") from None
    if mapping and not isinstance(found, dict):
        raise bad_request(f"the body must be an object, and is {type(found).__name__}")
    return found


async def _delete_options(request: web.Request) -> dict[str, Any]:
    """``DeleteOptions`` from the body, with what the query says instead."""
    options: dict[str, Any] = dict(await _body(request)) if request.can_read_body and await request.read() else {}
    query = request.query
    if "gracePeriodSeconds" in query:
        options["gracePeriodSeconds"] = _whole(query, "gracePeriodSeconds")
    if "propagationPolicy" in query:
        options["propagationPolicy"] = query["propagationPolicy"]
    if "orphanDependents" in query:
        options["orphanDependents"] = query["orphanDependents"] == "true"
    if _dry_run(request):
        options["dryRun"] = ["All"]
    return options


def _propagation(options: dict[str, Any]) -> str:
    if options.get("orphanDependents") is not None:
        return "Orphan" if options["orphanDependents"] else "Background"
    found = str(options.get("propagationPolicy") or "")
    if found not in ("", "Background", "Foreground", "Orphan"):
        raise bad_request(f"propagationPolicy {found!r} must be one of Background, Foreground, Orphan")
    return found


def _dry_run(request: web.Request) -> bool:
    values = [v for v in request.query.getall("dryRun", []) if v]
    if any(v != "All" for v in values):
        raise bad_request(f"dryRun {values[0]!r} must be All")
    return bool(values)


def _options(request: web.Request) -> dict[str, Any]:
    agent = request.headers.get("User-Agent", "").split("/")[0]
    validation = request.query.get("fieldValidation", "")
    if validation not in ("", "Strict", "Warn", "Ignore"):
        raise bad_request(f"fieldValidation {validation!r} must be one of Strict, Warn, Ignore")
    return {
        "field_manager": request.query.get("fieldManager", "") or agent or "unknown",
        "dry_run": _dry_run(request),
        "field_validation": validation,
    }


def _whole(query: Any, word: str) -> int:
    text = query.get(word) or "0"
    if not text.isdigit():
        raise bad_request(f"query parameter {word}={text!r} must be a whole number of at least 0")
    return int(text)


def _discovery(request: web.Request, path: str) -> web.Response:
    """``/api``, ``/apis`` and below, ``/openapi``. Raises 404."""
    parts = [p for p in path.split("/") if p]
    if parts[:1] == ["openapi"]:
        return _openapi(request, parts[1:])
    if parts in (["api"], ["apis"]):
        if "as=APIGroupDiscoveryList" in request.headers.get("Accept", "") and "v=v2;" in _spaceless(request):
            body = orjson.dumps(discovery.aggregated(core=parts == ["api"]))
            kind = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
            return web.Response(body=body, headers={"Content-Type": kind})
        return _json(discovery.api_versions(request.host) if parts == ["api"] else discovery.api_groups())
    found: dict[str, Any] | None = None
    if parts[:1] == ["api"] and len(parts) == 2:
        found = discovery.api_resources("", parts[1])
    elif parts[:1] == ["apis"] and len(parts) == 2:
        found = discovery.api_group(parts[1])
    elif parts[:1] == ["apis"] and len(parts) == 3:
        found = discovery.api_resources(parts[1], parts[2])
    elif not parts:
        found = {"paths": ["/api", "/apis", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]}
    if found is None:
        raise page_not_found()
    return _json(found)


def _spaceless(request: web.Request) -> str:
    return request.headers.get("Accept", "").replace(" ", "") + ";"


def _openapi(request: web.Request, parts: list[str]) -> web.Response:
    if parts == ["v2"]:
        return _raw(openapi.document_v2())
    if parts == ["v3"]:
        return _raw(openapi.index())
    group, version = ("", parts[2]) if parts[1:2] == ["api"] and len(parts) == 3 else ("", "")
    if parts[1:2] == ["apis"] and len(parts) == 4:
        group, version = parts[2], parts[3]
    if parts[:1] != ["v3"] or (group, version) not in discovery.groups():
        raise page_not_found()
    return _raw(openapi.document(group, version))
