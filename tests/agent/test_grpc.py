"""gRPC probes against a real gRPC server, and against what is none."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

import grpc
import pytest
from h2.events import ConnectionTerminated, DataReceived, StreamEnded, TrailersReceived
from hypothesis import given
from hypothesis import strategies as st

from metaos.agent.calls import Caller
from metaos.agent.grpc import _Answer, request, status
from metaos.security.identity import Authority
from tests.agent.fakes import FakeRuntime
from tests.agent.test_calls import CONTAINER, Server
from tests.clock import FakeClock

STATES = {b"": b"\x08\x01", b"\x0a\x03odd": b"\x08\x02", b"\x0a\x05empty": b"", b"\x0a\x03new": b"\x08\x09"}


class Health(grpc.GenericRpcHandler):
    """As ``grpc_health``, which needs protobuf: messages are bytes."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != "/grpc.health.v1.Health/Check":
            return None
        return grpc.unary_unary_rpc_method_handler(self.check)

    def check(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        if message not in STATES:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service: säge")
        return STATES[message]


class Pods(FakeRuntime):
    """Every port of every pod leads to one real port."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port

    async def connect(self, uid: str, port: int) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        return sock


def served(*handlers: grpc.GenericRpcHandler, tls: grpc.ServerCredentials | None = None) -> tuple[grpc.Server, Caller]:
    server = grpc.server(ThreadPoolExecutor(2), handlers=handlers)
    port = server.add_secure_port("127.0.0.1:0", tls) if tls else server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, Caller(Pods(port).as_runtime(), FakeClock(), "p", CONTAINER)


@pytest.fixture(scope="module")
def healthy() -> Iterator[Caller]:
    server, caller = served(Health())
    yield caller
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("service", "problem"),
    [
        ("", None),
        ("odd", "service unhealthy (responded with NOT_SERVING)"),
        ("empty", "service unhealthy (responded with UNKNOWN)"),
        ("new", "service unhealthy (responded with UNKNOWN)"),
        ("x" * 300, "the health check failed with gRPC status NOT_FOUND: unknown service: säge"),
    ],
)
async def test_health(healthy: Caller, service: str, problem: str | None) -> None:
    assert await healthy.call({"grpc": {"port": 80, "service": service}}, 5) == problem


async def test_over_tls_without_looking_at_the_certificate() -> None:
    pair = Authority.create(Random(1), 1_700_000_000.0).issue_server(("somewhere.else",), 1_700_000_000.0)
    server, caller = served(Health(), tls=grpc.ssl_server_credentials([(pair.key, pair.certificate)]))
    try:
        assert await caller.call({"grpc": {"port": 80, "mode": "TLS"}}, 5) is None
        assert await caller.call({"grpc": {"port": 80, "mode": "Plaintext"}}, 5) is not None
    finally:
        server.stop(None).wait()


async def test_a_server_without_the_health_service() -> None:
    server, caller = served()
    try:
        problem = await caller.call({"grpc": {"port": 80}}, 5)
        assert problem == "the server does not implement the gRPC health protocol (grpc.health.v1.Health)"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the answer is not HTTP/2"),
        (b"", "the server ended the connection without an answer"),
        (b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + bytes(8), "without an answer"),
        (b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + bytes(8), "the server broke the call off"),
    ],
)
async def test_what_is_no_grpc_server(answer: bytes, problem: str) -> None:
    server = Server()
    server.answer = answer
    await server.start()
    try:
        found = await Caller(server.as_runtime(), FakeClock(), "p", CONTAINER).call({"grpc": {"port": 80}}, 5)
        assert found is not None and problem in found
    finally:
        await server.close()


def test_a_server_may_take_its_leave_right_after_the_answer() -> None:
    event = DataReceived(data=b"\0\0\0\0\x02\x08\x01", stream_id=1)
    answer = _Answer()
    for each in (TrailersReceived(headers=[("grpc-status", "0")], stream_id=1), event, StreamEnded(stream_id=1)):
        answer.take(each)
    answer.take(ConnectionTerminated())
    assert answer.complete and answer.problem() is None


def test_what_a_server_says_is_passed_on_up_to_a_bound() -> None:
    answer = _Answer()
    answer.take(TrailersReceived(headers=[("grpc-status", "9" * 60_000), ("grpc-message", "x" * 60_000)], stream_id=1))
    problem = answer.problem()
    assert problem is not None and len(problem) < 500


async def test_nobody_and_nothing() -> None:
    runtime = FakeRuntime()
    caller = Caller(runtime.as_runtime(), FakeClock(), "p", CONTAINER)
    assert await caller.call({"grpc": {"port": 80}}, 5) == "nobody listens there"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        caller = Caller(Pods(silent.getsockname()[1]).as_runtime(), FakeClock(), "p", CONTAINER)
        assert await caller.call({"grpc": {"port": 80}}, 0.1) == "no answer within 0.1 s"


def test_it_is_loaded_with_the_first_probe_only() -> None:
    code = "import sys, metaos.agent.calls, metaos.agent.supervisor; sys.exit('h2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(st.binary(max_size=8), st.text(max_size=300))
def test_any_message(answer: bytes, service: str) -> None:
    assert status(answer) in ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
    found = request(service)
    assert int.from_bytes(found[1:5], "big") == len(found) - 5 and found.endswith(service.encode())
