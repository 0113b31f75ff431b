"""What callers make up: patches, selectors, tokens, protobuf, frames. Refusals, never internal errors, in bounded time."""

import base64
import copy
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from metaos import spdy
from metaos.apiserver import bodies, protobuf, reading
from metaos.apiserver.apply import Manager, applied, created_fields
from metaos.apiserver.patch import MAX_COPIED, apply_patch
from metaos.apiserver.schema import node_of
from metaos.apiserver.shaping import shape, validate
from metaos.client import PatchType
from metaos.resources import quantity, scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import MAX_REQUIREMENTS, Obj, parse_selector
from metaos.security.authz import BOOTSTRAP_USER_PREFIX
from metaos.security.identity import JoinToken
from tests.apiserver.objects import deployment, pod
from tests.apiserver.test_protobuf import envelope

#: More of them by FUZZ=20000.
MANY = settings(max_examples=int(os.environ.get("FUZZ", "60")), deadline=None, suppress_health_check=[HealthCheck.too_slow])
WORDS = st.sampled_from(
    ["metadata", "spec", "status", "name", "labels", "annotations", "template", "containers", "web", "ports", "containerPort",
     "replicas", "selector", "matchLabels", "app", "$patch", "replace", "delete", "merge", "$retainKeys", "finalizers", "volumes",
     "$setElementOrder/containers", "$deleteFromPrimitiveList/finalizers", "managedFields", "ownerReferences", "uid", "0", "-",
     "", "resourceVersion", "strategy", "type", "rollingUpdate", "apiVersion", "kind", "namespace", "~1", "~0", "a/b", "~"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8),
    WORDS, st.just("x" * 5000),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=5)), max_leaves=20
)
OBJECTS = st.dictionaries(WORDS, VALUES, max_size=6)
POINTERS = st.one_of(
    st.lists(st.one_of(WORDS, st.integers(-2, 3).map(str)), max_size=7).map(lambda parts: "".join("/" + part for part in parts)),
    SCALARS,
)
OPERATIONS = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test", "none", 7])},
            optional={"path": POINTERS, "from": POINTERS, "value": VALUES},
        ),
        VALUES,
    ),
    max_size=6,
)


@contextmanager
def refused_or_done(seconds: float = 1.0) -> Iterator[None]:
    started = time.thread_time()
    try:
        yield
    except ApiError as refused:
        assert 400 <= refused.code < 500
        assert len(refused.message) < 100_000
    assert time.thread_time() - started < seconds


def sendable(value: Any) -> Any:
    """As a caller would send it."""
    return bodies.decoded(orjson.dumps(value), "application/json")


def patched(type: PatchType, obj: Obj, patch: Any) -> None:
    kind = scheme.kind_of(obj)
    if type is PatchType.APPLY:
        shaped = shape(kind, {"apiVersion": kind.api_version, "kind": kind.kind, **patch}, None, "Warn", [], defaults=False)
        manager = Manager("fuzz", "Apply", "", kind.api_version)
        result = applied(node_of(kind), obj, shaped, manager, "2026-01-01T00:00:00Z", True)
    else:
        result = apply_patch(type, obj, patch, node_of(kind))
    if not isinstance(result.get("metadata", {}), dict):
        raise ApiError(400, "BadRequest", "as the registry says")
    shaped = shape(kind, result, obj, "Warn", [])
    validate(kind, shaped, obj)


STORED = [
    shape(scheme.DEPLOYMENT, deployment(), None, "Strict", []),
    shape(scheme.POD, pod("a", nodeName="x"), None, "Strict", []),
]
for each in STORED:
    each["metadata"] |= {"uid": "u", "resourceVersion": "1", "finalizers": ["a/b"], "labels": {"app": "web"}}
    fields = created_fields(
        node_of(scheme.kind_of(each)), each, Manager("m", "Update", "", each["apiVersion"]), "2026-01-01T00:00:00Z"
    )
    each["metadata"]["managedFields"] = fields


@MANY
@given(obj=st.sampled_from(STORED), patch=OPERATIONS)
def test_json_patches(obj: Obj, patch: Any) -> None:
    with refused_or_done():
        patched(PatchType.JSON, copy.deepcopy(obj), _sent(patch))


@MANY
@given(obj=st.sampled_from(STORED), patch=OBJECTS, type=st.sampled_from([PatchType.MERGE, PatchType.STRATEGIC, PatchType.APPLY]))
def test_other_patches(obj: Obj, patch: Any, type: PatchType) -> None:
    with refused_or_done():
        patched(type, copy.deepcopy(obj), _sent(patch))


def _sent(value: Any) -> Any:
    try:
        return sendable(value)
    except TypeError:  # A number that no caller of ours could send either.
        return {}


def test_copies_that_double_an_object_are_bounded() -> None:
    obj = copy.deepcopy(STORED[0])
    obj["metadata"]["annotations"] = {"a": "x" * 100_000}
    bomb = [{"op": "copy", "from": "/metadata", "path": "/metadata/annotations/x"}] * 60
    with pytest.raises(ApiError) as refused:
        apply_patch(PatchType.JSON, obj, bomb, node_of(scheme.DEPLOYMENT))
    assert refused.value.code == 413 and str(MAX_COPIED) in refused.value.message


@pytest.mark.parametrize("depth", [200, 253, 300, 1000, 5000, 100_000])
@pytest.mark.parametrize("media", ["application/json", "application/yaml"])
@pytest.mark.parametrize("brackets", [("[", "]", "1"), ('{"a":', "}", "1")])
def test_depth_is_bounded(depth: int, media: str, brackets: tuple[str, str, str]) -> None:
    opened, closed, core = brackets
    with refused_or_done(5.0):
        value = bodies.decoded((opened * depth + core + closed * depth).encode(), media)
        assert depth <= bodies.DEPTH
        orjson.dumps(value)
        obj = {**deployment(), "extra": value}
        shape(scheme.DEPLOYMENT, obj, None, "Warn", [])
        for type in (PatchType.MERGE, PatchType.STRATEGIC):
            apply_patch(type, obj, {"extra": value, "spec": {"x": value}}, node_of(scheme.DEPLOYMENT))


@MANY
@given(st.binary(max_size=200), st.sampled_from(["application/json", "application/yaml", "", protobuf.MEDIA]))
@example(b"a: .inf", "application/yaml")
@example(b"1: 2\ntrue: 3\nnull: 4\n", "application/yaml")
@example(b"\xff\xfe", "application/yaml")
def test_any_bytes_as_a_body(body: bytes, media: str) -> None:
    with refused_or_done():
        value = bodies.decoded(body, media)
        bodies.doubled(body, value)
        orjson.dumps(value)


@MANY
@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4))
def test_protobuf_with_wrong_bytes(noise: bytes, flips: list[tuple[int, int]]) -> None:
    for body in (protobuf.MAGIC + noise, _flipped(_valid_protobuf(), flips)):
        with refused_or_done():
            orjson.dumps(protobuf.decoded(body))


def _valid_protobuf() -> bytes:
    return envelope(
        "v1", "Pod", "core.v1.Pod", {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "python:3"}]}}
    )


def _flipped(data: bytes, flips: list[tuple[int, int]]) -> bytes:
    out = bytearray(data)
    for position, value in flips:
        out[position % len(out)] = value
    return bytes(out)


PIECES = ["a", "b.c/d", "=", "==", "!=", "!", ">", "<", " in ", " notin ", "(", ")", ",", " ", "1", "-", "é"]
RUNS = st.tuples(st.sampled_from([" ", "a", "(", ",", "=", "!", "a ", "a=", " in ("]), st.integers(1, 60_000))
SELECTORS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    RUNS.map(lambda run: "a" + run[0] * run[1]),
)


@MANY
@given(SELECTORS, SELECTORS)
@example("a" + " " * 60_000 + "x", "a=" + " " * 60_000 + "(")
def test_selectors(labels: str, fields: str) -> None:
    for kind in (scheme.POD, scheme.CONFIG_MAP):
        with refused_or_done():
            reading.selector(kind, labels, fields)
        with refused_or_done():
            reading.selector(kind, "", fields)


def test_selectors_are_bounded() -> None:
    assert parse_selector(",".join(f"a{i}" for i in range(MAX_REQUIREMENTS)))({}) is False
    with pytest.raises(ValueError, match="requirements"):
        parse_selector(",".join(["!a"] * (MAX_REQUIREMENTS + 1)))


@MANY
@given(st.one_of(st.text(max_size=40), VALUES.map(lambda v: base64.urlsafe_b64encode(_dumped(v)).decode())))
def test_continue_tokens(token: str) -> None:
    with refused_or_done():
        reading._position(token)


def _dumped(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        return b"[1]"


@MANY
@given(
    st.one_of(
        st.text(max_size=60), st.sampled_from(["1e999999999", "9" * 100_000, "1." + "1" * 100_000, "1" * 4000 + "Ei", "-0"])
    )
)
def test_quantities(text: str) -> None:
    started = time.thread_time()
    with suppress(ValueError):
        quantity.parse(text)
    assert time.thread_time() - started < 0.5


@MANY
@given(st.text(max_size=120))
def test_join_tokens(text: str) -> None:
    for token in (text, f"{BOOTSTRAP_USER_PREFIX}{text}", f"nemo.{text}", text.replace(" ", ".")):
        with suppress(ValueError):
            JoinToken.parse(token)


@MANY
@given(
    st.lists(
        st.one_of(st.binary(max_size=60), st.binary(max_size=40).map(lambda p: spdy.control(spdy.SYN_STREAM, 0, p))), max_size=6
    )
)
def test_spdy_frames(chunks: list[bytes]) -> None:
    buffer, headers = bytearray(), spdy.Headers()
    try:
        for chunk in chunks:
            buffer += chunk
            for kind, _, _, payload in spdy.frames(buffer):
                if kind == spdy.SYN_STREAM:
                    headers.decode(payload[10:])
            assert len(buffer) <= spdy.MAX_FRAME + 8
    except spdy.SpdyError:
        pass


def test_spdy_headers_that_unpack_to_much_are_cut_off() -> None:
    bomb = spdy.Headers()._deflate
    packed = bomb.compress(struct.pack(">I", 1) + b"\0" * (64 << 20)) + bomb.flush(2)
    started = time.thread_time()
    with suppress(spdy.SpdyError):
        assert len(spdy.Headers().decode(packed)) <= 1
    assert time.thread_time() - started < 1.0
