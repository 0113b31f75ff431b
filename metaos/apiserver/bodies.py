"""What callers send: bodies and query parameters, decoded and checked. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import yaml

from metaos.apiserver import protobuf
from metaos.apiserver.deletion import DeleteOptions
from metaos.apiserver.schema import forbidden, invalid, required, unsupported
from metaos.apiserver.shaping import FIELD_VALIDATION
from metaos.client import PatchType
from metaos.resources import errors
from metaos.resources.errors import Cause

#: The longest body of an API request (Kubernetes' own bound).
MAX_BODY = 3 * 1024 * 1024
#: How deep a body may be nested: orjson's own bound for writing.
DEPTH = 254
_JSON = ("", "application/json", "*/*", "application/octet-stream")
_YAML = ("application/yaml", "text/yaml", "application/x-yaml")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """As Kubernetes reads YAML: what looks like a time stays text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def _finite(loader: Any, node: Any) -> float:
    found: float = loader.construct_yaml_float(node)
    if not math.isfinite(found):
        raise ValueError(f"line {node.start_mark.line + 1}: {node.value} is no number that JSON knows")
    return found


_Loader.add_constructor("tag:yaml.org,2002:float", _finite)


def decoded(body: bytes, content_type: str) -> Any:
    """A JSON, YAML or protobuf body. Raises ``ApiError`` 400 or 415."""
    media = content_type.partition(";")[0].strip().lower()
    if media in _JSON:
        return _json(body)
    if media in _YAML:
        return _yaml(body)
    if media == protobuf.MEDIA:
        return protobuf.decoded(body)
    raise errors.unsupported_media_type(
        f"the body of the request was in an unknown format - accepted media types include: application/json, "
        f"application/yaml, {protobuf.MEDIA} (it was {media!r})"
    )


def patch(body: bytes, content_type: str) -> tuple[PatchType, Any]:
    """A patch and its kind. Raises ``ApiError`` 400 or 415."""
    media = content_type.partition(";")[0].strip().lower()
    try:
        kind = PatchType(media)
    except ValueError:
        raise errors.unsupported_media_type(
            f"the body of the request was in an unknown format - accepted media types include: {', '.join(PatchType)}"
        ) from None
    if kind is not PatchType.APPLY:
        return kind, _json(body)
    return kind, _json(body) if body[:1] == b"{" else _yaml(body)


def _json(body: bytes) -> Any:
    try:
        value = orjson.loads(body)
        if body.count(b"{") + body.count(b"[") > DEPTH:
            orjson.dumps(value)  # It reads deeper than it writes, and than is good for those who walk through an object.
        return value
    except orjson.JSONDecodeError as wrong:
        raise errors.bad_request(f"the body of the request is not JSON: {wrong}") from None
    except orjson.JSONEncodeError:
        raise errors.bad_request(f"the body of the request is nested too deeply: at most {DEPTH} levels") from None


def doubled(body: bytes, value: Any) -> list[str]:
    """What a body has more than once, as texts; ``value`` is what it was decoded to. Empty for protobuf."""
    if body[:1] in (b"{", b"["):
        return [f'duplicate field "{path}"' for path in duplicates(body, value)]
    return [] if body.startswith(protobuf.MAGIC) else _yaml_doubles(body)


def _yaml_doubles(body: bytes) -> list[str]:
    """YAML's own check of keys, which its loader leaves out. The body has been loaded before, so it has no aliases."""
    found: list[tuple[int, str]] = []
    waiting = [yaml.compose(body, Loader=_Loader)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, child in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        found.append((key.start_mark.line + 1, key.value))
                    seen.add(key.value)
                waiting.append(child)
    return [f'line {line}: key "{key}" already set in map' for line, key in sorted(found)]


def duplicates(body: bytes, value: Any) -> list[str]:
    """Paths of fields that a JSON body has more than once; ``value`` is what it was decoded to. The body is read again only
    where it seems to hold more fields than the value."""
    if body.count(b'":') == _fields(value):
        return []
    found: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key, each in items:
            if key in result:
                result.setdefault(_DOUBLES, []).append(key)
            result[key] = each
        return result

    def walk(part: Any, path: str) -> None:
        if isinstance(part, dict):
            found.extend(f"{path}.{key}" if path else key for key in part.pop(_DOUBLES, ()))
            for key, each in part.items():
                walk(each, f"{path}.{key}" if path else key)
        elif isinstance(part, list):
            for i, each in enumerate(part):
                walk(each, f"{path}[{i}]")

    try:
        walk(json.loads(body, object_pairs_hook=pairs), "")
    except (ValueError, RecursionError):
        return []
    return list(dict.fromkeys(found))


#: No text, so no field of a body has this name.
_DOUBLES = object()


def _fields(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(_fields(each) for each in value.values() if isinstance(each, dict | list))
    return sum(_fields(each) for each in value if isinstance(each, dict | list)) if isinstance(value, list) else 0


def _yaml(body: bytes) -> Any:
    try:
        # Aliases of aliases make a small text stand for an endless object.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(body, Loader=_Loader)):
            raise errors.bad_request("the body of the request uses YAML aliases: write out what they stand for")
        value = yaml.load(body, Loader=_Loader)  # noqa: S506 - a safe loader
        # Keys become text, as in Kubernetes; numbers and times that only YAML knows end here.
        return orjson.loads(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
    except RecursionError:
        raise errors.bad_request("the body of the request is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError) as wrong:
        raise errors.bad_request(f"the body of the request is not YAML: {wrong}") from None


def readable(header: str) -> str:
    """A header's value as text that can be written again: what is no UTF-8 in it is replaced."""
    return header if header.isascii() else header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def flag(query: Mapping[str, str], name: str) -> bool:
    """A parameter as Go's ``strconv.ParseBool`` reads it, or present without a value."""
    value = query.get(name)
    return value is not None and value.lower() in ("", "1", "t", "true")


def number(query: Mapping[str, str], name: str, *, negative: bool = False) -> int | None:
    """A count. Raises ``ApiError`` 400."""
    value = query.get(name)
    if value is None or value == "":
        return None
    if negative and value[:1] == "-" and value[1:].isdecimal() and len(value) <= 15:
        return int(value)
    if not value.isdecimal() or len(value) > 15:
        raise errors.bad_request(f"query parameter {name} must be a number of at least 0, not {value!r}")
    return int(value)


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """Of create, update and patch. ``field_manager`` is what the caller named, else the first word of its user agent."""

    dry_run: bool
    field_manager: str
    force: bool
    field_validation: str

    @classmethod
    def of(cls, query: Mapping[str, str], user_agent: str, kind: str, *, apply: bool = False) -> WriteOptions:
        """``kind``: CreateOptions, UpdateOptions or PatchOptions. Raises ``ApiError`` 422."""
        manager, validation = query.get("fieldManager", ""), query.get("fieldValidation", "")
        causes = _dry_run_causes(query)
        if apply and not manager:
            causes.append(required("fieldManager", "is required for apply patch"))
        if len(manager.encode()) > 128:
            causes.append(Cause("FieldValueTooLong", "fieldManager", "Too long: may not be more than 128 bytes"))
        for position, character in enumerate(manager):
            if not character.isprintable():
                text = f"invalid character U+{ord(character):04X} (at position {position})"
                causes.append(invalid("fieldManager", manager, text))
        if "force" in query and not apply:
            causes.append(forbidden("force", "may not be specified for non-apply patch"))
        if validation and validation not in FIELD_VALIDATION:
            causes.append(unsupported("fieldValidation", validation, FIELD_VALIDATION))
        _refuse(kind, causes)
        if not manager:
            manager = user_agent.partition("/")[0].strip()[:128]
        return cls(dry_run(query), manager, flag(query, "force"), validation or "Warn")


def _refuse(kind: str, causes: list[Cause]) -> None:
    if causes:
        raise errors.invalid("meta.k8s.io", kind, "", causes)


def _dry_run_causes(query: Mapping[str, str]) -> list[Cause]:
    value = query.get("dryRun")
    return [unsupported("dryRun", value, ("All",))] if value not in (None, "", "All") else []


def dry_run(query: Mapping[str, str]) -> bool:
    return query.get("dryRun") == "All"


def check_list_options(query: Mapping[str, str], *, watch: bool) -> None:
    """What cannot be asked together. Source: ``apimachinery/pkg/apis/internalversion/validation``. Raises ``ApiError`` 422."""
    match, revision = query.get("resourceVersionMatch", ""), query.get("resourceVersion", "")
    streamed, path = "sendInitialEvents" in query, "resourceVersionMatch"
    causes: list[Cause] = []
    if watch and streamed:
        if match != "NotOlderThan":
            text = f"{path} must be set to NotOlderThan when sendInitialEvents is set"
            causes.append(forbidden(path, text) if not match else unsupported(path, match, ("NotOlderThan",)))
    elif streamed:
        causes.append(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"))
    elif query.get("continue") and revision not in ("", "0"):
        raise errors.bad_request("specifying resource version is not allowed when using continue")
    elif match and watch:
        causes.append(forbidden(path, f"{path} is forbidden for watch unless sendInitialEvents is provided"))
    elif match:
        if not revision:
            causes.append(forbidden(path, f"{path} is forbidden unless resourceVersion is provided"))
        if query.get("continue"):
            causes.append(forbidden(path, f"{path} is forbidden when continue is provided"))
        if match not in ("Exact", "NotOlderThan"):
            causes.append(unsupported(path, match, ("Exact", "NotOlderThan", "")))
        elif match == "Exact" and revision == "0":
            causes.append(forbidden(path, f'{path} "Exact" is forbidden for resourceVersion "0"'))
    _refuse("ListOptions", causes)


def delete_options(query: Mapping[str, str], body: Any) -> tuple[DeleteOptions, bool]:
    """From the body (``DeleteOptions``) and the query, and whether it is a dry run. Raises ``ApiError`` 400."""
    sent = body if body is not None else {}
    if not isinstance(sent, dict) or sent.get("kind") not in (None, "", "DeleteOptions", "DeleteCollectionOptions"):
        raise errors.bad_request("the body of a delete must be DeleteOptions")
    conditions = sent.get("preconditions") or {}
    grace = sent.get("gracePeriodSeconds")
    if grace is None:
        grace = number(query, "gracePeriodSeconds")
    if grace is not None and (not isinstance(grace, int) or isinstance(grace, bool)):
        raise errors.bad_request("gracePeriodSeconds must be a number of seconds")
    propagation = sent.get("propagationPolicy") or query.get("propagationPolicy") or ""
    orphan = sent.get("orphanDependents")
    causes = _dry_run_causes(query)
    if propagation and orphan is not None:
        causes.append(invalid("propagationPolicy", propagation, "orphanDependents and deletionPropagation cannot be both set"))
    elif propagation and propagation not in ("Orphan", "Background", "Foreground"):
        causes.append(unsupported("propagationPolicy", propagation, ("Foreground", "Background", "Orphan", "nil")))
    if not propagation and orphan is not None:
        propagation = "Orphan" if orphan else "Background"
    runs = sent.get("dryRun") or []
    if any(run != "All" for run in runs):
        causes.append(unsupported("dryRun", runs[0], ("All",)))
    _refuse("DeleteOptions", causes)
    options = DeleteOptions(
        str(conditions.get("uid") or ""), str(conditions.get("resourceVersion") or ""), str(propagation), grace
    )
    return options, bool(runs) or dry_run(query)
