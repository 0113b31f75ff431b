"""From what a caller sent to what is kept: decode by schema, default, validate."""

from __future__ import annotations

import base64
from typing import Any

from metaos.apiserver import validation
from metaos.apiserver.customkind import CustomKind
from metaos.apiserver.defaults import apply_defaults
from metaos.apiserver.metadata import metadata_causes, name_causes
from metaos.apiserver.rules import services
from metaos.apiserver.schema import Findings, conform
from metaos.resources import errors, scheme
from metaos.resources.meta import Obj, name
from metaos.resources.scheme import Kind

#: Where most of an object is. Most writes change one of them.
_PARTS = ("spec", "status", "data")
FIELD_VALIDATION = ("Strict", "Warn", "Ignore")


def shape(kind: Kind, obj: Obj, old: Obj | None, field_validation: str, warnings: list[str], *, defaults: bool = True) -> Obj:
    """A copy of ``obj`` in the shape of its schema, defaulted. Raises ``ApiError`` 400 where it cannot be decoded, and for
    unknown fields with ``Strict``; 422 where required fields are missing. ``Warn`` appends to ``warnings``. Whole parts
    (``spec``, ``status``) that are as in ``old``, which is stored, have their shape already: the result has those of ``old``."""
    if field_validation and field_validation not in FIELD_VALIDATION:
        raise errors.bad_request(f"fieldValidation {field_validation!r} must be one of Strict, Warn, Ignore")
    if isinstance(kind, CustomKind):
        from metaos.apiserver.custom import objects

        shaped, findings = objects.shape(kind, obj, defaults=defaults)
        _report(kind, obj, findings, field_validation, warnings)
        return shaped
    if kind is scheme.SECRET and obj.get("stringData") and isinstance(obj.get("data") or {}, dict):
        obj = _folded(obj)
    settled = {key: old[key] for key, value in obj.items() if key in _PARTS and value == old.get(key)} if old else {}
    shaped, findings = conform(kind, obj, omit_empty=defaults, settled=settled)
    _report(kind, obj, findings, field_validation, warnings)
    shaped.setdefault("metadata", {})
    if old is None:
        # Values of the caller's own object may be shared where the schema does not look inside.
        shaped = _copied(shaped) if kind.group == "meta-os.eu" else shaped
    if defaults:
        apply_defaults(kind, shaped)
        if findings.causes:
            found = validation.causes(kind, shaped, old)
            said = {cause.field for cause in found}
            missing = [cause for cause in findings.causes if cause.field not in said]
            raise errors.invalid(kind.group, kind.kind, name(obj), [*missing, *found])
    return shaped


def _copied(value: Any) -> Any:
    """Of JSON; ``copy.deepcopy`` takes five times as long."""
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _report(kind: Kind, obj: Obj, findings: Findings, field_validation: str, warnings: list[str]) -> None:
    if findings.malformed:
        raise errors.bad_request(
            f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: ' + ", ".join(findings.malformed)
        )
    if not findings.unknown:
        return
    texts = [f'unknown field "{path}"' for path in findings.unknown]
    if field_validation == "Strict":
        raise errors.bad_request(
            f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
            f"strict decoding error: {', '.join(texts)}"
        )
    if field_validation in ("", "Warn"):
        warnings.extend(text for text in texts if text not in warnings)


def _folded(secret: Obj) -> Obj:
    """``stringData`` is write-only: it goes into ``data``, base64-encoded."""
    folded = {k: v for k, v in secret.items() if k != "stringData"}
    text = secret["stringData"]
    if not isinstance(text, dict) or not all(isinstance(v, str) for v in text.values()):
        raise errors.bad_request("Secret: stringData must be a map of strings")
    encoded = {k: base64.b64encode(v.encode()).decode() for k, v in text.items()}
    folded["data"] = {**(secret.get("data") or {}), **encoded}
    return folded


def validate(kind: Kind, obj: Obj, old: Obj | None) -> None:
    """Raises ``ApiError`` 422 with every cause that is found."""
    if isinstance(kind, CustomKind):
        from metaos.apiserver.custom import objects

        return objects.validate(kind, obj, old)
    metadata = obj["metadata"]
    causes = name_causes(kind, metadata.get("name") or "") if old is None else []
    if old is None or any(
        metadata.get(k) != old["metadata"].get(k) for k in ("labels", "annotations", "finalizers", "ownerReferences")
    ):
        causes += metadata_causes(metadata)
    if old is None or any(obj.get(k) != old.get(k) for k in obj.keys() | old.keys() if k not in ("metadata", "status")):
        causes += validation.causes(kind, obj, old)
    elif kind is scheme.SERVICE:
        causes += services.status_causes(obj, old)
    if causes:
        raise errors.invalid(kind.group, kind.kind, name(obj), causes)
    return None
