"""Protobuf bodies against an encoder of our own, over the same field numbers, and against what kubectl sent."""

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.apiserver import protobuf
from metaos.apiserver.messages import messages as messages_of_all
from metaos.apiserver.protobuf import MAGIC, decoded
from metaos.apiserver.schema import OWN, definitions
from metaos.resources import scheme
from metaos.resources.errors import ApiError


def varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def octets(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def encode(kind: str, value: Any) -> tuple[int, bytes]:
    """Wire type and bytes of one value."""
    if kind in ("int", "bool"):
        return 0, varint(int(value))
    if kind == "string":
        data = value.encode()
    elif kind == "bytes":
        data = base64.b64decode(value)
    elif kind == "quantity":
        data = octets(1, value.encode())
    elif kind == "intOrString":
        data = b"\x08\x00\x10" + varint(value) if isinstance(value, int) else b"\x08\x01" + octets(3, value.encode())
    elif kind == "list":
        data = b"".join(octets(1, item.encode()) for item in value)
    else:
        data = message(kind, value)
    return 2, varint(len(data)) + data


def message(name: str, obj: dict[str, Any]) -> bytes:
    out = b""
    for number, (key, kind, flags) in messages_of_all()[name].items():
        if "i" in flags:
            inner = message(kind, obj)
            out += octets(number, inner) if inner else b""
        elif key in obj:
            value = obj[key]
            if "m" in flags:
                for k, v in value.items():
                    wire, data = encode(kind, v)
                    out += octets(number, octets(1, k.encode()) + varint(2 << 3 | wire) + data)
            else:
                for each in value if "r" in flags else [value]:
                    wire, data = encode(kind, each)
                    out += varint(number << 3 | wire) + data
    return out


def envelope(api_version: str, kind: str, name: str, obj: dict[str, Any]) -> bytes:
    types = octets(1, api_version.encode()) + octets(2, kind.encode())
    return MAGIC + octets(1, types) + octets(2, message(name, obj)) + octets(3, b"") + octets(4, b"")


def round_trip(obj: dict[str, Any], name: str) -> dict[str, Any]:
    return decoded(envelope(obj["apiVersion"], obj["kind"], name, obj))


DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "labels": {"a": "b", "empty": ""}},
    "spec": {
        "replicas": 0,
        "selector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "k", "operator": "In", "values": ["", "v"]}]},
        "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
        "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {
                "automountServiceAccountToken": False,
                "containers": [
                    {
                        "name": "web",
                        "image": "python:3",
                        "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}, {"name": "F"}],
                        "resources": {"limits": {"cpu": "500m"}},
                        "livenessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 5},
                    }
                ],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
        },
    },
}


def test_a_deployment_comes_through() -> None:
    assert round_trip(DEPLOYMENT, "apps.v1.Deployment") == DEPLOYMENT


def test_what_go_always_sends_is_left_out() -> None:
    obj = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "", "generation": 0}, "type": ""}
    assert round_trip(obj, "core.v1.Secret") == {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1),
    st.dictionaries(st.text(max_size=5), st.binary(max_size=8), min_size=1),
    st.one_of(st.none(), st.booleans()),
)
def test_config_maps_come_through(data: dict[str, str], binary: dict[str, bytes], immutable: bool | None) -> None:
    obj: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data}
    obj["binaryData"] = {k: base64.b64encode(v).decode() for k, v in binary.items()}
    if immutable is not None:
        obj["immutable"] = immutable
    assert round_trip(obj, "core.v1.ConfigMap") == obj


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_refusal(raw: bytes) -> None:
    for body in (raw, MAGIC + raw, MAGIC + octets(1, octets(1, b"v1") + octets(2, b"Pod")) + octets(2, raw)):
        try:
            assert isinstance(decoded(body), dict)
        except ApiError as refused:
            assert refused.code in (400, 415)


def test_delete_options_and_kinds_without_numbers() -> None:
    options = {"gracePeriodSeconds": 0, "preconditions": {"uid": "u"}, "dryRun": ["All"]}
    found = decoded(envelope("v1", "DeleteOptions", "meta.v1.DeleteOptions", options))
    assert found == {"apiVersion": "v1", "kind": "DeleteOptions", **options}
    with pytest.raises(ApiError) as refused:
        decoded(MAGIC + octets(1, octets(1, b"meta-os.eu/v1alpha1") + octets(2, b"Intent")))
    assert refused.value.code == 415


def test_numbers_and_schemas_agree() -> None:
    """The JSON names of the data are those of the schemas; only alpha fields may be missing."""
    schemas = definitions()
    messages = messages_of_all()

    def names(message: str) -> set[str]:
        found: set[str] = set()
        for key, kind, flags in messages[message].values():
            found |= names(kind) if "i" in flags else {key}
        return found

    missing = {}
    for kind in scheme.KINDS:
        if kind.group in OWN:
            continue
        assert (kind.api_version, kind.kind) in protobuf._message_names()
    for message in messages:
        full = "io.k8s.apimachinery.pkg.apis." + message if message.startswith("meta.") else "io.k8s.api." + message
        wanted = set(schemas.get(full, {}).get("properties", {})) - {"apiVersion", "kind"}
        assert full not in schemas or names(message) <= wanted | {"apiVersion", "kind"}, message
        if wanted - names(message):
            missing[message] = wanted - names(message)
    assert set(missing) == {"batch.v1.JobSchedulingConfiguration", "core.v1.NodeSystemInfo"}
