"""Where an object is kept, and whether a body agrees with the URL that it came by. Pure."""

from __future__ import annotations

import copy

import orjson

from metaos.apiserver import views
from metaos.apiserver.cache import Version
from metaos.apiserver.customkind import CustomKind
from metaos.resources import errors
from metaos.resources.meta import Obj, name
from metaos.resources.scheme import Kind


def stored_kind(kind: Kind) -> Kind:
    """The kind that is kept for a served one, which may be a view of it."""
    view = views.of(kind)
    return view.stored if view is not None else kind


def key_of(kind: Kind, namespace: str, name: str) -> str:
    """The store key, ``RESOURCE/NAMESPACE/NAME``."""
    return f"{kind.resource}/{namespace if kind.namespaced else ''}/{name}"


def sealed(key: str) -> bool:
    """Whether the store must encrypt this value: Secrets, and Works that carry one (their name begins so)."""
    resource, _, name = key.split("/", 2)
    return resource == "secrets" or (resource == "works.meta-os.eu" and name.startswith("secret."))


_ELSEWHERE = "the namespace of the provided object does not match the namespace sent on the request"
#: The longest object that is kept, however many patches made it.
MAX_OBJECT = 3 * 1024 * 1024


def encode(obj: Obj) -> bytes:
    """The stored form: type and metadata first, and no resourceVersion, which is the store's revision. Raises ``ApiError``
    413."""
    metadata = {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}
    ordered = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": metadata}
    encoded = orjson.dumps({**ordered, **{k: v for k, v in obj.items() if k not in ordered}})
    if len(encoded) > MAX_OBJECT:
        raise errors.too_large(f"an object may have {MAX_OBJECT} bytes, this one has {len(encoded)}")
    return encoded


def kept(kind: Kind, obj: Obj) -> Obj:
    """An object in the version in which it is stored. Native kinds have one each; views carry theirs back themselves."""
    return {**obj, "apiVersion": kind.stored_version} if isinstance(kind, CustomKind) else obj


def as_kept(kind: Kind, version: Version) -> bool:
    """Whether the store has an object as it would be written now, apart from its content."""
    if not isinstance(kind, CustomKind):
        return True
    return version.encoded.startswith(b'{"apiVersion":"%b",' % kind.stored_version.encode())


def addressed(obj: Obj, kind: Kind, name: str, namespace: str) -> tuple[Kind, Obj]:
    """The kind, and a copy of the body that carries type, namespace and (where given) name. Raises ``ApiError`` 400 where
    body and URL disagree."""
    if not isinstance(obj, dict):
        raise errors.bad_request("the body must be an object")
    for key, wanted in (("apiVersion", kind.api_version), ("kind", kind.kind)):
        if obj.get(key) not in (None, "", wanted):
            raise errors.bad_request(
                f'{obj.get("kind")} in version "{obj.get("apiVersion")}" cannot be handled as a {kind.kind} in {kind.api_version}'
            )
    metadata = obj.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise errors.bad_request("metadata must be an object")
    found = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {}} | copy.copy(obj)
    found["apiVersion"], found["kind"] = kind.api_version, kind.kind
    metadata = found["metadata"] = dict(metadata or {})
    if kind.namespaced:
        said = metadata.get("namespace")
        if said and namespace and said != namespace:
            raise errors.bad_request(_ELSEWHERE)
        metadata["namespace"] = said or namespace
        if not metadata["namespace"]:
            raise errors.bad_request(
                "an empty namespace may not be set when a resource name may be provided; set metadata.namespace"
            )
    else:
        metadata.pop("namespace", None)
    if name:
        if metadata.get("name") not in (None, "", name):
            raise errors.bad_request(f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})")
        metadata["name"] = name
    return kind, found


def same_identity(kind: Kind, wanted: Obj, current: Obj) -> None:
    """Puts type, name and namespace right where they were left out. Raises ``ApiError`` where they were changed."""
    metadata = wanted["metadata"]
    for key, holder, held in (
        ("apiVersion", wanted, current),
        ("kind", wanted, current),
        ("name", metadata, current["metadata"]),
        ("namespace", metadata, current["metadata"]),
    ):
        before = held.get(key)
        if before is None:
            holder.pop(key, None)
        elif holder.get(key) not in (None, "", before):
            if holder is metadata:
                if key == "namespace":
                    raise errors.bad_request(_ELSEWHERE)
                raise errors.bad_request(f"the name of the object ({holder[key]}) does not match the name on the URL ({before})")
            raise errors.bad_request(
                f"{kind.kind} {name(current)!r}: {key} may not be changed from {before!r} to {holder[key]!r}"
            )
        else:
            holder[key] = before


def gone(kind: Kind, obj: Obj) -> Obj:
    """The ``Status`` that answers a delete which took effect at once."""
    details = {"name": name(obj), "group": kind.group, "kind": kind.plural, "uid": obj["metadata"].get("uid")}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {k: v for k, v in details.items() if v},
    }
