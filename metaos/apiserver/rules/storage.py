"""StorageClass, PersistentVolume and PersistentVolumeClaim. Source: ``pkg/apis/{core,storage}/validation`` of Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator

from metaos.apiserver.metadata import DNS_SUBDOMAIN, SUBDOMAIN, key_problems
from metaos.apiserver.rules.selecting import selector_causes
from metaos.apiserver.schema import forbidden, invalid, required, unsupported
from metaos.resources import quantity
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj


def storage_class(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    if not obj.get("provisioner"):
        yield required("provisioner")
    elif old is None:
        yield from (invalid("provisioner", obj["provisioner"], text) for text in key_problems(obj["provisioner"].lower()))
    if old is None:
        return
    for field in ("parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"):
        if obj.get(field) != old.get(field):
            yield invalid(field, obj.get(field), "field is immutable")


#: Fields of a PersistentVolume's spec that are no volume source.
ACCESS_MODES = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")
_BESIDE = frozenset(
    (
        *("capacity", "accessModes", "claimRef", "persistentVolumeReclaimPolicy", "storageClassName", "mountOptions"),
        *("volumeMode", "nodeAffinity", "volumeAttributesClassName"),
    )
)


def _modes(spec: Obj) -> Iterator[Cause]:
    yield from (unsupported("spec.accessModes", m, ACCESS_MODES) for m in spec.get("accessModes") or () if m not in ACCESS_MODES)


def _class(spec: Obj) -> Iterator[Cause]:
    wanted = spec.get("storageClassName")
    if wanted and not SUBDOMAIN.match(wanted):
        yield invalid("spec.storageClassName", wanted, DNS_SUBDOMAIN)


def volume(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if not spec.get("accessModes"):
        yield required("spec.accessModes")
    yield from _modes(spec)
    capacity = spec.get("capacity") or {}
    if not capacity:
        yield required("spec.capacity")
    if set(capacity) != {"storage"}:
        yield unsupported("spec.capacity", capacity, ["storage"])
    for key, value in capacity.items():
        if quantity.parse(value) <= 0:
            yield invalid(f"spec.capacity[{key}]", value, "must be greater than zero")
        if quantity.parse(value) < 0:
            yield Cause(
                "FieldValueInvalid", f"spec.capacity[{key}]", f"Invalid value: {value}: must be a valid resource quantity"
            )
    yield from _class(spec)
    sources = [field for field in spec if field not in _BESIDE]
    if not sources:
        yield required("spec", "must specify a volume type")
    for extra in sources[1:]:
        yield forbidden(f"spec.{extra}", "may not specify more than 1 volume type")
    host = spec.get("hostPath") or {}
    if ".." in (host.get("path") or "").split("/"):
        yield invalid("spec.hostPath.path", host["path"], "must not contain '..'")
    if "local" in spec and not spec.get("nodeAffinity"):
        yield required("spec.nodeAffinity", "Local volume requires node affinity")
    if old is not None:
        before = old.get("spec") or {}
        if {f: spec[f] for f in sources} != {f: v for f, v in before.items() if f not in _BESIDE}:
            yield forbidden("spec.persistentvolumesource", "spec.persistentvolumesource is immutable after creation")
        if spec.get("volumeMode") != before.get("volumeMode"):
            yield invalid("spec.volumeMode", spec.get("volumeMode"), "field is immutable")


#: What of a claim's spec may change.
_CLAIM_MUTABLE = ("resources", "volumeName", "volumeAttributesClassName")


def claim(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if old is None:
        if not spec.get("accessModes"):
            yield required("spec.accessModes", "at least 1 access mode is required")
        yield from _modes(spec)
        wanted = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
        if wanted is None:
            yield required("spec.resources[storage]")
        elif quantity.parse(wanted) <= 0:
            yield invalid("spec.resources[storage]", wanted, "must be greater than zero")
        yield from _class(spec)
        yield from selector_causes(spec.get("selector"), "spec.selector")
        return
    before = old.get("spec") or {}
    if {k: v for k, v in spec.items() if k not in _CLAIM_MUTABLE} != {k: v for k, v in before.items() if k not in _CLAIM_MUTABLE}:
        yield forbidden(
            "spec", "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"
        )
