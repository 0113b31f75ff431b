"""A pod's network card and its gateway, for real: who reaches whom, and what is left where there can be none."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import AsyncIterator

import pytest

from metaos.clock import SystemClock
from metaos.runtimes.forks import Forks, Held
from metaos.runtimes.sandbox import SandboxRuntime
from tests.runtimes.conformance import DEADLINE, ask, container, execute, log, pod, run, until_logged

pytestmark = pytest.mark.system

ADDRESS, SERVICE = "100.64.7.7", "100.99.1.2"
#: Listens at an address of its choice, and says who calls.
LISTEN = """
import socket, sys
s = socket.socket(); s.bind((sys.argv[1], 8080)); s.listen(); print("up", flush=True)
while True:
    c, who = s.accept(); c.recv(100); c.sendall(who[0].encode()); c.close()
"""
TRY = """
import errno, socket, sys
for address in sys.argv[1:]:
    try:
        with socket.create_connection((address, 8080), 5) as s: print(s.recv(99).decode())
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


@pytest.fixture
async def place() -> AsyncIterator[str]:
    found = tempfile.mkdtemp(prefix="nemo-gateway-")
    yield found
    shutil.rmtree(found)


@pytest.fixture
async def runtime(place: str) -> AsyncIterator[SandboxRuntime]:
    made = SandboxRuntime(os.path.join(place, "state"), clock=SystemClock())
    await made.check()
    if not made.network().separate:
        pytest.skip(f"no network cards here: {made.conditions()}")
    await made.start_pod(pod(address=ADDRESS))
    yield made
    for uid in list(await made.pods()):
        await made.stop_pod(uid)
    await made.close()


async def listening(runtime: SandboxRuntime, address: str) -> None:
    await runtime.start_container(pod().uid, container("python3", "-c", LISTEN, address))
    await until_logged(runtime, pod().uid, b"up")


@contextlib.asynccontextmanager
async def service(runtime: SandboxRuntime, answer: bytes) -> AsyncIterator[list[str]]:
    """What listens at the pod's gateway; the addresses that were called."""
    called: list[str] = []
    loop = asyncio.get_running_loop()

    async def serve() -> None:
        while True:
            accepted, _ = await loop.sock_accept(listener)
            with accepted:
                called.append(accepted.getsockname()[0])
                await loop.sock_sendall(accepted, answer)

    with await runtime.listen(pod().uid, "0.0.0.0", 8080) as listener:
        task = asyncio.create_task(serve())
        yield called
        task.cancel()


async def test_a_pod_listens_on_a_port_and_reaches_services_of_the_same_port(runtime: SandboxRuntime) -> None:
    await listening(runtime, "0.0.0.0")
    async with service(runtime, b"the service") as called:
        code, out, errors = await execute(runtime, pod().uid, ("python3", "-c", TRY, SERVICE, "100.64.0.9"))
        assert (code, out.split(b"\n")) == (0, [b"the service", b"the service", b""]), errors
        assert called == [SERVICE, "100.64.0.9"], "one socket listens for every address"
    assert await ask(await runtime.connect(pod().uid, 8080), b"x") == b"169.254.1.1", "a caller does not look like the pod itself"


@pytest.mark.parametrize("address", [ADDRESS, "127.0.0.1", "", "web-0"])
async def test_whatever_address_a_pod_listens_on_it_is_reached(runtime: SandboxRuntime, address: str) -> None:
    async with service(runtime, b"x"):
        await listening(runtime, address)
        assert await ask(await runtime.connect(pod().uid, 8080), b"x")
        with pytest.raises(ConnectionRefusedError):
            await runtime.connect(pod().uid, 8081)


async def test_a_pod_has_its_card_and_no_way_out(runtime: SandboxRuntime) -> None:
    await runtime.start_pod(pod("other", address="100.64.7.8"))
    await runtime.start_container("other", container("python3", "-c", LISTEN, "0.0.0.0"))
    await until_logged(runtime, "other", b"up")
    script = "import socket; print([name for _, name in socket.if_nameindex()], socket.gethostbyname(socket.gethostname()))"
    _, said = await run(runtime, pod().uid, container("python3", "-c", script))
    assert said == f"['lo', 'eth0'] {ADDRESS}\n"
    tried = ("100.64.7.8", SERVICE, "169.254.1.1", ADDRESS, "8.8.8.8", "10.0.0.1")
    _, said = await run(runtime, pod().uid, container("python3", "-c", TRY, *tried, attempt=1))
    assert said.split() == ["ECONNREFUSED"] * 4 + ["ENETUNREACH"] * 2, "another pod is reached through Services only"
    assert b"ping" not in await log(runtime, "other")


async def test_a_new_agent_finds_the_networks_of_its_pods(runtime: SandboxRuntime, place: str) -> None:
    await listening(runtime, "0.0.0.0")
    before = runtime.network(pod().uid)
    await runtime.close()
    again = SandboxRuntime(os.path.join(place, "state"), clock=SystemClock())
    try:
        assert again.network(pod().uid) == before
        assert await ask(await again.connect(pod().uid, 8080), b"x") == b"169.254.1.1"
        async with service(again, b"still there"):
            _, out, _ = await execute(again, pod().uid, ("python3", "-c", TRY, SERVICE))
            assert out == b"still there\n"
    finally:
        await again.close()


async def test_a_network_that_was_made_anew_is_another_one(runtime: SandboxRuntime) -> None:
    before = runtime.network(pod().uid)
    holder = runtime._pod(pod().uid).holder
    assert holder is not None
    holder.kill()
    async with asyncio.timeout(DEADLINE):
        await runtime.wait()
    await listening(runtime, "0.0.0.0")
    after = runtime.network(pod().uid)
    assert after.separate and after.id != before.id
    assert await ask(await runtime.connect(pod().uid, 8080), b"x") == b"169.254.1.1"


async def test_the_program_may_end_at_any_time(runtime: SandboxRuntime) -> None:
    for _ in range(3):
        runtime._isolation.forks.close()
        for port in range(9000, 9020):  # more than are in store
            (await runtime.listen(pod().uid, "0.0.0.0", port)).close()


async def test_where_there_can_be_no_card_pods_have_their_loopback_and_it_is_said(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Forks.hold

    async def refuse(self: Forks, hostname: str, address: str, program: str, directory: str, counts: tuple[int, int]) -> Held:
        if address:
            raise OSError(errno.EOPNOTSUPP, "making a veth pair: Operation not supported")
        return await hold(self, hostname, address, program, directory, counts)

    monkeypatch.setattr(Forks, "hold", refuse)
    made = SandboxRuntime(os.path.join(place, "state"), clock=SystemClock())
    await made.check()
    said = {each["type"]: each["message"] for each in made.conditions()}
    assert "making a veth pair" in said["PodNetwork"] and "modprobe veth" in said["PodNetwork"]
    assert not made.network().separate
    await made.start_pod(pod(address=ADDRESS))
    assert not made.network(pod().uid).separate
    with await made.listen(pod().uid, "127.64.0.1", 80):
        script = "import socket; socket.create_connection(('127.64.0.1', 80)); print(socket.if_nameindex())"
        ended, out = await run(made, pod().uid, container("python3", "-c", script))
        assert (ended.exit_code, out) == (0, "[(1, 'lo')]\n")
    await made.stop_pod(pod().uid)
    await made.close()
