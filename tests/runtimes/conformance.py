"""What every ``Runtime`` must do: one suite for all of them. A runtime's tests subclass it and give the fixture ``make``."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from metaos.plugins.points import ContainerConfig, ContainerState, Exec, ImageError, PodConfig, Pull, Runtime

#: Also on a machine with other things to do.
DEADLINE = 60.0
IMAGE = "python:3"

SERVER = """
import socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", int(sys.argv[1]))); s.listen(); print("listening", flush=True)
while True:
    c, _ = s.accept(); c.sendall(b"hello " + c.recv(100)); c.close()
"""


def pod(uid: str = "11111111-aaaa", **more: Any) -> PodConfig:
    return PodConfig(uid=uid, namespace="shop", name="web-0", hostname="web-0", **more)


def container(*command: str, name: str = "main", env: dict[str, str] | None = None, **more: Any) -> ContainerConfig:
    fields: dict[str, Any] = {"args": (), "working_dir": "", "mounts": ()} | more
    return ContainerConfig(name=name, image=IMAGE, command=command, env=tuple((env or {}).items()), **fields)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def state(runtime: Runtime, uid: str, name: str = "main") -> ContainerState | None:
    return next((each for each in (await runtime.pods()).get(uid, ()) if each.name == name), None)


async def until_ended(runtime: Runtime, uid: str, name: str = "main") -> ContainerState:
    """Woken by the runtime itself."""
    async with asyncio.timeout(DEADLINE):
        while True:
            found = await state(runtime, uid, name)
            if found is not None and not found.running:
                return found
            await runtime.wait()


async def until_logged(runtime: Runtime, uid: str, text: bytes, name: str = "main") -> bytes:
    async with asyncio.timeout(DEADLINE):
        seen = b""
        async with contextlib.aclosing(runtime.logs(uid, name, follow=True)) as blocks:  # type: ignore[type-var]
            async for block in blocks:
                seen += block
                if text in seen:
                    break
        assert text in seen, seen
        return seen


async def log(runtime: Runtime, uid: str, name: str = "main", **more: Any) -> bytes:
    return b"".join([block async for block in runtime.logs(uid, name, **more)])


async def run(runtime: Runtime, uid: str, config: ContainerConfig) -> tuple[ContainerState, str]:
    await runtime.start_container(uid, config)
    ended = await until_ended(runtime, uid, config.name)
    return ended, (await log(runtime, uid, config.name)).decode()


async def execute(runtime: Runtime, uid: str, command: Sequence[str], stdin: bytes | None = None) -> tuple[int, bytes, bytes]:
    process: Exec = await runtime.exec(uid, "main", command, stdin=stdin is not None)
    out = {1: b"", 2: b""}
    async with asyncio.timeout(DEADLINE):
        async with asyncio.TaskGroup() as tasks:
            if stdin is not None:
                tasks.create_task(_feed(process, stdin))
            async for channel, data in process.output():
                out[channel] += data
        return await process.wait(), out[1], out[2]


async def _feed(process: Exec, data: bytes) -> None:
    await process.write(data)
    await process.write(b"")


async def ask(connected: socket.socket, data: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DEADLINE):
        with connected:
            await loop.sock_sendall(connected, data)
            answer = b""
            while piece := await loop.sock_recv(connected, 1000):
                answer += piece
            return answer


#: Seconds since boot, as ``Runtime.fence`` counts them, for as long as it runs.
UPTIME = "while :; do cut -d ' ' -f 1 /proc/uptime; sleep 0.02; done"


def uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def until_uptime(runtime: Runtime, uid: str, seconds: float) -> None:
    async with asyncio.timeout(DEADLINE):
        async with contextlib.aclosing(runtime.logs(uid, "main", follow=True)) as blocks:  # type: ignore[type-var]
            async for block in blocks:
                if float(block.split()[-1]) > seconds:
                    return
    raise AssertionError("it has ended before")


class RuntimeConformance:
    #: Whether the two outputs of a container come in one order; whether input without ``stdin_once`` outlasts who typed it.
    one_order = True
    lasting_input = True

    @pytest.fixture
    async def runtime(self, make: Callable[[], Runtime]) -> AsyncIterator[Runtime]:
        made = make()
        await made.check()
        yield made
        for uid in list(await made.pods()):
            await made.stop_pod(uid)
        await made.close()

    async def test_a_container_runs_and_its_end_is_reported(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        assert (await runtime.pods())[pod().uid] == []
        started = await runtime.start_container(pod().uid, container("sh", "-c", "echo out; echo err >&2; echo out2; exit 7"))
        assert started.running and started.exit_code is None
        ended = await until_ended(runtime, pod().uid)
        assert (ended.exit_code, ended.reason, ended.id) == (7, "Error", started.id)
        assert ended.finish_time is not None and ended.finish_time >= ended.start_time - 0.1
        said = await log(runtime, pod().uid)
        assert said == b"out\nerr\nout2\n" or (not self.one_order and sorted(said.split()) == [b"err", b"out", b"out2"])
        assert await log(runtime, pod().uid, tail=1) == said.splitlines(keepends=True)[-1]

    async def test_success_is_completed(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        ended, _ = await run(runtime, pod().uid, container("true"))
        assert (ended.exit_code, ended.reason) == (0, "Completed")

    async def test_calls_may_be_repeated(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        await runtime.start_pod(pod())
        first = await runtime.start_container(pod().uid, container("sleep", "100"))
        assert await runtime.start_container(pod().uid, container("sleep", "100")) == first
        await runtime.stop_container(pod().uid, "main", 0)
        await runtime.stop_container(pod().uid, "main", 0)
        await runtime.stop_pod(pod().uid)
        await runtime.stop_pod(pod().uid)
        assert await runtime.pods() == {}

    async def test_what_has_ended_for_good_gives_its_namespaces_back(self, runtime: Runtime, make: Callable[[], Runtime]) -> None:
        first = make()
        await first.start_pod(pod("three"))
        ended, said = await run(first, "three", container("sh", "-c", "echo bye; exit 5"))
        await first.release_pod("three")
        await first.release_pod("three")
        assert await state(first, "three") == ended
        assert (await log(first, "three", "main")).decode() == said == "bye\n"
        await first.close()
        second = make()
        try:
            assert await state(second, "three") == ended
            assert await log(second, "three", "main") == b"bye\n"
            await second.start_container("three", container("sh", "-c", "echo ready; sleep 100", attempt=1))
            await until_logged(second, "three", b"ready")
            assert (await execute(second, "three", ("true",)))[0] == 0, "it may be started again all the same"
        finally:
            await second.stop_pod("three")
            assert "three" not in await second.pods()
            await second.close()

    async def test_a_running_container_is_not_started_twice(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        await runtime.start_container(pod().uid, container("sleep", "100"))
        with pytest.raises(ValueError, match="still runs"):
            await runtime.start_container(pod().uid, container("sleep", "100", attempt=1))

    async def test_environment_arguments_and_directory(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        script = "import os,sys; print(repr((os.environ['ODD'], sys.argv[1:])))"
        odd = "x y\"$HOME'\n=ü"
        _, said = await run(runtime, pod().uid, container("python3", "-c", script, args=("a b", "$X"), env={"ODD": odd}))
        assert said == repr((odd, ["a b", "$X"])) + "\n"

    async def test_a_missing_program_cannot_run(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        ended, _ = await run(runtime, pod().uid, container("no-such-program"))
        assert (ended.exit_code, ended.reason) == (127, "ContainerCannotRun")
        assert "no-such-program" in ended.message

    async def test_a_missing_image_says_what_to_do(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        config = ContainerConfig("main", "example.org/team/app:1", (), (), (), "", ())
        with pytest.raises(ImageError) as caught:
            await runtime.start_container(pod().uid, config)
        assert caught.value.reason == "ErrImagePull" and "nemo image import" in caught.value.message
        assert not await runtime.image_ready("example.org/team/app:1", Pull())
        assert await runtime.image_ready(IMAGE, Pull("Always"))
        with pytest.raises(ImageError) as caught:
            await runtime.image_ready("example.org/team/app:1", Pull("Never"))
        assert caught.value.reason == "ErrImageNeverPull"
        assert any("docker.io/library/python:3" in each["names"] for each in await runtime.images())

    async def test_what_is_typed_reaches_the_command_and_ends_with_who_leaves(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        await runtime.start_container(pod().uid, container("cat", stdin=True, stdin_once=True))
        data = b"typed\n" * 20_000
        talk = await runtime.attach(pod().uid, "main")
        for start in range(0, len(data), 50_000):
            await talk.write(data[start : start + 50_000])
        await until_logged(runtime, pod().uid, b"typed")
        await talk.kill()
        ended = await until_ended(runtime, pod().uid)
        said = await log(runtime, pod().uid)
        assert ended.exit_code == 0 and (len(said), said[:9], said[-9:]) == (len(data), data[:9], data[-9:])
        with pytest.raises(LookupError):
            await runtime.attach(pod().uid, "main")

    async def test_input_stays_open_while_people_come_and_go(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        await runtime.start_container(pod().uid, container("cat", stdin=True))
        for word in (b"one\n", b"two\n"):
            talk = await runtime.attach(pod().uid, "main")
            await talk.write(word)
            async with asyncio.timeout(DEADLINE):
                assert await anext(talk.output()) == (1, word)
            await talk.kill()
            if not self.lasting_input:
                assert (await until_ended(runtime, pod().uid)).exit_code == 0
                return
        talk = await runtime.attach(pod().uid, "main")
        await talk.write(b"")
        assert (await until_ended(runtime, pod().uid)).exit_code == 0
        await talk.kill()

    async def test_a_terminal(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        await runtime.start_container(pod().uid, container("sh", stdin=True, tty=True))

        async def say(talk: Exec, word: str, expected: bytes) -> None:
            await talk.write(word.encode())
            seen = b""
            async with asyncio.timeout(DEADLINE):
                async for _, data in talk.output():
                    seen += data
                    if expected in seen:
                        return
            raise AssertionError(seen)

        first = await runtime.attach(pod().uid, "main")
        await first.resize(101, 33)
        await say(first, "PS1='ready> '; X=5; stty size; echo $TERM$((1+1))\n", b"xterm2")
        await say(first, "sh -c 'echo go$((1+1)); exec sleep 1000'\n", b"go2")  # by the command itself: it is there
        # The signal goes to the command in the foreground, not to the shell.
        await say(first, "\x03", b"ready> ")
        await first.kill()
        second = await runtime.attach(pod().uid, "main")
        await say(second, "echo still $X\n", b"still 5")
        await second.write(b"exit 7\n")
        assert (await until_ended(runtime, pod().uid)).exit_code == 7
        assert b"33 101" in await log(runtime, pod().uid)
        await second.kill()

    async def test_term_reaches_the_command(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        await runtime.start_container(
            pod().uid, container("sh", "-c", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done")
        )
        await until_logged(runtime, pod().uid, b"ready")
        await runtime.stop_container(pod().uid, "main", DEADLINE)
        ended = await state(runtime, pod().uid)
        assert ended is not None and ended.exit_code == 5
        assert b"bye" in await log(runtime, pod().uid)

    async def test_kill_after_grace(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        await runtime.start_container(pod().uid, container("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"))
        await until_logged(runtime, pod().uid, b"ready")
        await runtime.stop_container(pod().uid, "main", 0.2)
        ended = await state(runtime, pod().uid)
        assert ended is not None and (ended.running, ended.exit_code, ended.message) == (False, 137, "ended by SIGKILL")

    async def test_restart_keeps_the_previous_log(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        for attempt in range(3):
            _, said = await run(runtime, pod().uid, container("sh", "-c", f"echo run {attempt}", attempt=attempt))
            assert said == f"run {attempt}\n"
        assert await log(runtime, pod().uid, previous=True) == b"run 1\n"
        assert len((await runtime.pods())[pod().uid]) == 1

    async def test_log_following_ends_with_the_container(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        await runtime.start_container(pod().uid, container("sh", "-c", "for i in 1 2 3 4 5; do echo line $i; sleep 0.02; done"))
        async with asyncio.timeout(DEADLINE):
            assert await log(runtime, pod().uid, follow=True) == b"line 1\nline 2\nline 3\nline 4\nline 5\n"
            assert await log(runtime, pod().uid, follow=True, tail=2) == b"line 4\nline 5\n"

    async def test_exec(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        await runtime.start_container(pod().uid, container("sleep", "100", env={"COLOUR": "blue"}, working_dir="/tmp"))
        code, out, err = -1, b"", b""
        async with asyncio.timeout(DEADLINE):  # until the command itself is there
            while True:
                with contextlib.suppress(LookupError):
                    command = ("sh", "-c", "echo $COLOUR; echo oops >&2; cat; exit 3")
                    code, out, err = await execute(runtime, pod().uid, command, b"x" * 200_000)
                    break
        assert (code, out, err) == (3, b"blue\n" + b"x" * 200_000, b"oops\n")
        code, _, err = await execute(runtime, pod().uid, ("no-such-program",))
        assert code == 127 and b"no-such-program" in err

    async def test_exec_with_a_terminal(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        await runtime.start_container(pod().uid, container("sh", "-c", "echo ready; exec sleep 100"))
        await until_logged(runtime, pod().uid, b"ready")
        process = await runtime.exec(pod().uid, "main", ("sh",), stdin=True, tty=True)
        await process.resize(101, 33)
        await process.write(b"stty size; echo $TERM; exit 6\n")
        seen = b""
        async with asyncio.timeout(DEADLINE):
            async for channel, data in process.output():
                assert channel == 1
                seen += data
            assert await process.wait() == 6
        assert b"33 101" in seen and b"xterm" in seen

    async def test_exec_can_be_killed(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        await runtime.start_container(pod().uid, container("sh", "-c", "echo ready; exec sleep 100"))
        await until_logged(runtime, pod().uid, b"ready")
        process = await runtime.exec(pod().uid, "main", ("sh", "-c", "echo $$; sleep 1000; echo over"))
        async with asyncio.timeout(DEADLINE):
            async for _ in process.output():
                await process.kill()
            assert await process.wait() == 137
        assert (await state(runtime, pod().uid)).running  # type: ignore[union-attr]

    async def test_sockets(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        port, other = free_port(), free_port()
        await runtime.start_container(pod().uid, container("python3", "-c", SERVER, str(port)))
        await until_logged(runtime, pod().uid, b"listening")
        answers = await asyncio.gather(*[_greet(runtime, pod().uid, port, n) for n in range(20)])
        assert answers == [b"hello %d" % n for n in range(20)]
        with pytest.raises(ConnectionRefusedError):
            await runtime.connect(pod().uid, other)
        with await runtime.listen(pod().uid, "127.31.0.9", other) as listener:
            client = f"import socket; s = socket.create_connection(('127.31.0.9', {other})); print(s.recv(9).decode())"
            process = await runtime.exec(pod().uid, "main", ("python3", "-c", client))
            async with asyncio.timeout(DEADLINE):
                accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
                with accepted:
                    accepted.sendall(b"from out")
                assert [data async for _, data in process.output()] == [b"from out\n"]
                assert await process.wait() == 0
        with pytest.raises(OSError, match=r"127\.0\.0\.1"):
            await runtime.listen(pod().uid, "127.0.0.1", port)

    async def test_pods_outlive_the_agent(self, runtime: Runtime, make: Callable[[], Runtime]) -> None:
        first = make()
        await first.start_pod(pod("one"))
        await first.start_container("one", container("sh", "-c", "echo ready; exec sleep 100", name="lives", env={"KEPT": "yes"}))
        await first.start_container("one", container("sh", "-c", "read x; exit 9", name="ended"))
        before = await until_ended(first, "one", "ended")
        await first.start_container(
            "one", container("sh", "-c", "while ! [ -e /tmp/go ]; do sleep 0.02; done; exit 4", name="main")
        )
        await until_logged(first, "one", b"ready", "lives")
        await first.close()
        second = make()
        try:
            found = {each.name: each for each in (await second.pods())["one"]}
            assert found["ended"] == before
            assert found["lives"].running and found["main"].running
            process = await second.exec("one", "lives", ("sh", "-c", "echo $KEPT"))
            assert [data async for _, data in process.output()] == [b"yes\n"]
            assert await process.wait() == 0
            assert b"ready" in await log(second, "one", "lives")
            await second.stop_container("one", "lives", DEADLINE)
            ended = await state(second, "one", "lives")
            assert ended is not None and ended.exit_code == 143
        finally:
            await second.stop_pod("one")
            await second.close()

    async def test_an_end_while_nobody_looks_is_found(self, runtime: Runtime, make: Callable[[], Runtime]) -> None:
        first = make()
        await first.start_pod(pod("two"))
        await first.start_container("two", container("sh", "-c", "sleep 0.2; exit 42"))
        await first.close()
        second = make()
        try:
            assert (await until_ended(second, "two")).exit_code == 42
        finally:
            await second.stop_pod("two")
            await second.close()

    async def test_nothing_survives_its_pod(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        await runtime.start_container(pod().uid, container("sh", "-c", "setsid sleep 1000 & sleep 1000 & echo ready; sleep 1000"))
        await until_logged(runtime, pod().uid, b"ready")
        process = await runtime.exec(pod().uid, "main", ("sleep", "1000"))
        await runtime.stop_pod(pod().uid)
        async with asyncio.timeout(DEADLINE):
            assert await process.wait() != 0
        with pytest.raises(LookupError):
            await runtime.connect(pod().uid, 80)

    async def test_what_the_command_left_running_ends_with_it(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        ended, _ = await run(runtime, pod().uid, container("sh", "-c", "setsid sleep 1000 & exit 0"))
        assert ended.exit_code == 0

    async def test_what_must_not_run_twice_ends_in_time_without_the_agent(
        self, runtime: Runtime, make: Callable[[], Runtime]
    ) -> None:
        assert runtime.renewed() == float("-inf")
        first = make()
        for each in ("once", "also", "free"):
            await first.start_pod(pod(each))
            await first.start_container(each, container("sh", "-c", UPTIME))
            await until_logged(first, each, b"\n")
        told = uptime()
        await first.fence(told, {"once": 0.3, "also": 60.0})
        for _ in range(3):  # confirmed again in time
            await until_uptime(first, "once", told + 0.2)
            told = uptime()
            await first.fence(told, {"once": 0.3, "also": 60.0})
        await first.close()
        second = make()
        try:
            assert second.renewed() == pytest.approx(told, abs=0.01)
            ended = await until_ended(second, "once")
            assert (ended.exit_code, ended.reason) == (137, "Fenced") and "must not run twice" in ended.message
            last = [float(word) for word in (await log(second, "once")).split() if word[:1].isdigit()][-1]
            assert told + 0.2 < last < told + 1.3
            with pytest.raises(ValueError, match="not started again"):
                await second.start_container("once", container("sleep", "100", attempt=1))
            for other in ("also", "free"):
                assert (found := await state(second, other)) is not None and found.running
            await second.fence(uptime(), {"once": 60.0, "also": 0.0})
            await second.start_container("once", container("sleep", "100", attempt=1))
            assert (await until_ended(second, "also")).reason == "Fenced"
            assert (found := await state(second, "once")) is not None and found.running
        finally:
            await second.fence(uptime(), {})
            for each in ("once", "also", "free"):
                await second.stop_pod(each)
            await second.close()

    async def test_usage_is_measured(self, runtime: Runtime) -> None:
        await runtime.start_pod(pod())
        script = "x = bytearray(40 << 20); sum(range(10**6)); print('full', flush=True); import time; time.sleep(100)"
        config = container("python3", "-c", script)
        await runtime.start_container(pod().uid, config)
        await until_logged(runtime, pod().uid, b"full")
        (usage,) = (await runtime.usage())[pod().uid]
        (state,) = (await runtime.pods())[pod().uid]
        assert usage.memory > 40 << 20 and usage.cpu_seconds > 0 and (usage.name, usage.id) == (config.name, state.id)

    async def test_what_was_used_is_known_after_the_end(self, runtime: Runtime) -> None:
        """Of a container that ended, of the start before, and once more of a pod that went."""
        await runtime.start_pod(pod())
        busy = "import time\nwhile time.process_time() < 0.3: pass"
        await run(runtime, pod().uid, container("python3", "-c", busy))
        (first,) = (await runtime.usage())[pod().uid]
        assert not first.running and not first.memory and 0.25 < first.cpu_seconds < 3
        await run(runtime, pod().uid, container("true", attempt=1))
        before, second = (await runtime.usage())[pod().uid]
        assert before == first and second.id != first.id and second.cpu_seconds < first.cpu_seconds
        await runtime.stop_pod(pod().uid)
        assert pod().uid in await runtime.usage() and pod().uid not in await runtime.usage()

    async def test_conditions_are_complete_sentences(self, runtime: Runtime) -> None:
        await runtime.pods()
        for condition in runtime.conditions():
            assert condition["type"] and condition["status"] == "False" and len(condition["message"]) > 20


async def _greet(runtime: Runtime, uid: str, port: int, number: int) -> bytes:
    return await ask(await runtime.connect(uid, port), b"%d" % number)
