"""Intents in the JSON form of 3GPP TS 28.312 (Intent NRM), both ways and without loss.

Names are those of ``TS28312_IntentNrm.yaml`` (``intentExpectations``, ``expectationTargets``, ``targetCondition``, …).
What 3GPP has no attribute for travels as a context, which is the standard's place for it: object type and context
``NEMO_WORKLOAD`` say which workloads, and contexts ``unit`` and ``hard`` qualify a target. What the compact form has no
field for is kept in an annotation and comes back on export.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

from metaos.resources.meta import API_VERSION, Obj

OBJECT_TYPE = "NEMO_WORKLOAD"
#: On an imported Intent: the attributes of the document that the compact form cannot hold, as JSON.
DOCUMENT_ANNOTATION = "meta-os.eu/3gpp-document"
_NAME, _NAMESPACE = "NEMO_NAME", "NEMO_NAMESPACE"
_LABELS, _ANNOTATIONS = "NEMO_LABELS", "NEMO_ANNOTATIONS"
_UNIT, _HARD = "NEMO_UNIT", "NEMO_HARD"
_IS = "IS_EQUAL_TO"

CONDITIONS = {
    "IsEqualTo": "IS_EQUAL_TO",
    "IsLessThan": "IS_LESS_THAN",
    "IsLessThanOrEqualTo": "IS_EQUAL_TO_OR_LESS_THAN",
    "IsGreaterThan": "IS_GREATER_THAN",
    "IsGreaterThanOrEqualTo": "IS_EQUAL_TO_OR_GREATER_THAN",
    "IsWithinRange": "IS_WITHIN_RANGE",
    "IsOutsideRange": "IS_OUTSIDE_RANGE",
    "IsOneOf": "IS_ONE_OF",
    "IsNotOneOf": "IS_NOT_ONE_OF",
    "IsEqualToOneOf": "IS_EQUAL_TO_ONE_OF",
    "IsNotEqualToOneOf": "IS_NOT_EQUAL_TO_ONE_OF",
    "IsAllOf": "IS_ALL_OF",
    "Minimize": "MINIMIZE",
    "Maximize": "MAXIMIZE",
}
_FROM = {there: here for here, there in CONDITIONS.items()}


def to_3gpp(intent: Obj) -> dict[str, Any]:
    """An Intent as a 3GPP document. Its status stays behind; metadata beyond name, namespace, labels and annotations too."""
    kept = _kept(intent)
    fresh = _export(intent, kept)
    if kept is None:
        return fresh
    original: dict[str, Any] = kept
    if _unedited(_import(original), _bare(intent)):
        return copy.deepcopy(original)
    # Edited since it was imported: the edit counts, and what it cannot express is still the document's.
    return {k: copy.deepcopy(v) for k, v in original.items() if k not in fresh} | fresh


def from_3gpp(document: Mapping[str, Any]) -> Obj:
    """The Intent that a 3GPP document stands for. Raises ``ValueError`` naming attribute, value and remedy."""
    intent = _import(document)
    if _export(intent, None) != document:
        intent["metadata"].setdefault("annotations", {})[DOCUMENT_ANNOTATION] = json.dumps(document, sort_keys=True)
    return intent


def _kept(intent: Obj) -> dict[str, Any] | None:
    text = ((intent.get("metadata") or {}).get("annotations") or {}).get(DOCUMENT_ANNOTATION)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"annotation {DOCUMENT_ANNOTATION} is not JSON ({error}): remove it") from None
    if not isinstance(found, dict):
        raise ValueError(f"annotation {DOCUMENT_ANNOTATION} must hold a JSON object: remove it")
    return found


def _unedited(imported: Obj, present: Obj) -> bool:
    """Whether an imported Intent still says the same. What the API server fills in (namespace, defaults) is no edit."""

    def shown(intent: Obj) -> tuple[Any, ...]:
        metadata, spec = intent["metadata"], intent["spec"]
        expectations = [{"verb": "Ensure"} | e for e in spec.get("expectations") or ()]
        return metadata.get("name"), metadata.get("labels") or {}, {"priority": 50} | spec | {"expectations": expectations}

    namespace = imported["metadata"].get("namespace")
    return shown(imported) == shown(present) and namespace in (None, present["metadata"].get("namespace"))


def _bare(intent: Obj) -> Obj:
    """What an import without leftovers gives: the parts that the two forms share."""
    metadata = intent.get("metadata") or {}
    shared = {k: copy.deepcopy(metadata[k]) for k in ("name", "namespace", "labels", "annotations") if k in metadata}
    annotations = {k: v for k, v in (shared.get("annotations") or {}).items() if k != DOCUMENT_ANNOTATION}
    if annotations or ("annotations" in shared and DOCUMENT_ANNOTATION not in shared["annotations"]):
        shared["annotations"] = annotations
    else:
        shared.pop("annotations", None)
    return {"apiVersion": API_VERSION, "kind": "Intent", "metadata": shared, "spec": copy.deepcopy(intent.get("spec") or {})}


# -- export --------------------------------------------------------------------------------------------------


def _context(attribute: str, value: Any, condition: str | None = _IS) -> dict[str, Any]:
    found = {"contextAttribute": attribute, "contextValueRange": copy.deepcopy(value)}
    return found if condition is None else found | {"contextCondition": condition}


def _contexts(contexts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for raw in contexts:
        entry: dict[str, Any] = {"contextAttribute": raw["name"]}
        if "condition" in raw:
            entry["contextCondition"] = CONDITIONS.get(raw["condition"], raw["condition"])
        if "value" in raw:
            entry["contextValueRange"] = copy.deepcopy(raw["value"])
        found.append(entry)
    return found


def _export(intent: Obj, kept: dict[str, Any] | None) -> dict[str, Any]:
    bare = _bare(intent)
    metadata, spec = bare["metadata"], bare["spec"]
    document: dict[str, Any] = {}
    identity = [
        _context(attribute, metadata[field])
        for attribute, field in ((_NAME, "name"), (_NAMESPACE, "namespace"), (_LABELS, "labels"), (_ANNOTATIONS, "annotations"))
        if field in metadata
    ]
    if kept is None or identity:
        document["intentContexts"] = identity
    if "priority" in spec:
        document["intentPriority"] = spec["priority"]
    document["intentExpectations"] = [
        _expectation(e, spec.get("workloads"), "workloads" in spec, index)
        for index, e in enumerate(spec.get("expectations") or ())
    ]
    return document


def _expectation(raw: Mapping[str, Any], workloads: Any, stated: bool, index: int) -> dict[str, Any]:
    subject: dict[str, Any] = {"objectType": OBJECT_TYPE}
    if stated:
        subject["objectContexts"] = [_context(OBJECT_TYPE, workloads)]
    found: dict[str, Any] = {"expectationId": str(index + 1), "expectationObject": subject}
    if "verb" in raw:
        found["expectationVerb"] = str(raw["verb"]).upper()
    found["expectationTargets"] = [_export_target(t) for t in raw.get("targets") or ()]
    if "contexts" in raw:
        found["expectationContexts"] = _contexts(raw["contexts"])
    return found


def _export_target(raw: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "targetName": raw["name"],
        "targetCondition": CONDITIONS.get(raw["condition"], raw["condition"]),
    }
    if "value" in raw:
        found["targetValueRange"] = copy.deepcopy(raw["value"])
    contexts = _contexts(raw.get("contexts") or ())
    contexts += [_context(a, raw[field]) for a, field in ((_UNIT, "unit"), (_HARD, "hard")) if field in raw]
    if contexts or "contexts" in raw:
        found["targetContexts"] = contexts
    return found


# -- import --------------------------------------------------------------------------------------------------


def _list(value: Any, attribute: str) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise ValueError(f"{attribute}: {value!r} must be a list of objects")
    return value


def _import(document: Mapping[str, Any]) -> Obj:
    if not isinstance(document, Mapping):
        raise ValueError(f"the document must be a JSON object with intentExpectations, not {type(document).__name__}")
    expectations = _list(document.get("intentExpectations"), "intentExpectations")
    metadata: dict[str, Any] = {}
    fields = {_NAME: "name", _NAMESPACE: "namespace", _LABELS: "labels", _ANNOTATIONS: "annotations"}
    for found in _list(document.get("intentContexts", []), "intentContexts"):
        field = fields.get(str(found.get("contextAttribute")))
        if field is not None:
            metadata[field] = copy.deepcopy(found.get("contextValueRange"))
    if "name" not in metadata and isinstance(document.get("userLabel"), str):
        metadata["name"] = document["userLabel"]
    spec: dict[str, Any] = {}
    if "intentPriority" in document:
        spec["priority"] = document["intentPriority"]
    workloads = [_workloads(e, f"intentExpectations[{i}]") for i, e in enumerate(expectations)]
    if any(found != workloads[0] for found in workloads):
        raise ValueError(
            "intentExpectations: expectations about different workloads must be intents of their own: split the document"
        )
    if workloads and workloads[0]:
        spec["workloads"] = copy.deepcopy(workloads[0][0])
    spec["expectations"] = [_import_expectation(e, f"intentExpectations[{i}]") for i, e in enumerate(expectations)]
    return {"apiVersion": API_VERSION, "kind": "Intent", "metadata": metadata, "spec": spec}


def _workloads(raw: Mapping[str, Any], field: str) -> list[Any]:
    """The workloads that an expectation is about (at most one value). Release 17 has a list of objects, later ones one."""
    subjects = _list(raw.get("expectationObjects", [raw.get("expectationObject", {})]), f"{field}.expectationObject")
    for subject in subjects:
        kind = subject.get("objectType", OBJECT_TYPE)
        if kind != OBJECT_TYPE:
            raise ValueError(f"{field}.expectationObject.objectType: {kind!r} is not placed by NEMO: use {OBJECT_TYPE}")
    contexts = [c for s in subjects for c in _list(s.get("objectContexts", []), f"{field}.objectContexts")]
    found = [c.get("contextValueRange") for c in contexts if c.get("contextAttribute") == OBJECT_TYPE]
    if len(found) > 1:
        raise ValueError(f"{field}.expectationObject: more than one context {OBJECT_TYPE}: state one selector")
    return found


def _import_expectation(raw: Mapping[str, Any], field: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "expectationVerb" in raw:
        found["verb"] = str(raw["expectationVerb"]).capitalize()
    targets = _list(raw.get("expectationTargets", []), f"{field}.expectationTargets")
    found["targets"] = [_import_target(t, f"{field}.expectationTargets[{i}]") for i, t in enumerate(targets)]
    if "expectationContexts" in raw:
        found["contexts"] = _import_contexts(raw["expectationContexts"], f"{field}.expectationContexts")
    return found


def _import_contexts(raw: Any, field: str) -> list[dict[str, Any]]:
    found = []
    for context in _list(raw, field):
        if "contextAttribute" not in context:
            raise ValueError(f"{field}: {context!r} lacks contextAttribute, the name of the context")
        entry: dict[str, Any] = {"name": context["contextAttribute"]}
        if "contextCondition" in context:
            entry["condition"] = _FROM.get(context["contextCondition"], context["contextCondition"])
        if "contextValueRange" in context:
            entry["value"] = copy.deepcopy(context["contextValueRange"])
        found.append(entry)
    return found


def _import_target(raw: Mapping[str, Any], field: str) -> dict[str, Any]:
    condition = raw.get("targetCondition")
    if condition not in _FROM:
        raise ValueError(f"{field}.targetCondition: {condition!r} must be one of {', '.join(_FROM)}")
    if not isinstance(raw.get("targetName"), str):
        raise ValueError(f"{field}.targetName: {raw.get('targetName')!r} must be the name of a target, for example latency")
    found: dict[str, Any] = {"name": raw["targetName"], "condition": _FROM[condition]}
    if "targetValueRange" in raw:
        found["value"] = copy.deepcopy(raw["targetValueRange"])
    if "targetContexts" in raw:
        contexts = _import_contexts(raw["targetContexts"], f"{field}.targetContexts")
        own = {_UNIT: "unit", _HARD: "hard"}
        found |= {own[c["name"]]: c.get("value") for c in contexts if c["name"] in own}
        others = [c for c in contexts if c["name"] not in own]
        if others or not contexts:
            found["contexts"] = others
    return found
