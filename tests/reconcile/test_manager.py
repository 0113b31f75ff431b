"""The loop as a whole: what changes is looked at, what fails comes again, and stopping leaves nothing behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from random import Random

import pytest

from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Reconciler, Result, TerminalError
from metaos.resources import errors, meta
from metaos.resources.meta import Obj, ObjectRef, ref
from metaos.resources.scheme import CONFIG_MAP, DEPLOYMENT
from tests.clock import FakeClock
from tests.fake_client import FakeClient


def own(obj: Obj) -> Iterable[ObjectRef]:
    return [ref(obj)]


class Recorder:
    """Notes what it is asked to look at; ``answers`` are given in turn, then ``DONE``."""

    def __init__(self, name: str = "recorder", answers: Iterable[Result | Exception] = ()) -> None:
        self.name = name
        self.seen: list[str] = []
        self.running = 0
        self.most = 0
        self.gate: asyncio.Event | None = None
        self._answers = list(answers)

    async def reconcile(self, ref: ObjectRef) -> Result:
        self.seen.append(ref.name)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.gate is not None:
                await self.gate.wait()
            answer = self._answers.pop(0) if self._answers else DONE
            if isinstance(answer, Exception):
                raise answer
            return answer
        finally:
            self.running -= 1


@pytest.fixture
async def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def client(clock: FakeClock) -> FakeClient:
    return FakeClient(clock)


@pytest.fixture
async def manager(client: FakeClient, clock: FakeClock) -> AsyncIterator[Manager]:
    made = Manager(client, clock, Random(1))
    before = len(asyncio.all_tasks())
    yield made
    await made.stop()
    assert len(asyncio.all_tasks()) == before and client.watchers == 0


async def test_existing_and_changing_objects_are_looked_at(manager: Manager, client: FakeClient, clock: FakeClock) -> None:
    recorder: Recorder = Recorder()
    proof: Reconciler = recorder
    client.seed(DEPLOYMENT.empty("a", "shop"), DEPLOYMENT.empty("b", "shop"))
    manager.add(proof, [(DEPLOYMENT, own)])
    await manager.start()
    assert len(manager.informer(DEPLOYMENT).list()) == 2
    await clock.settle()
    assert recorder.seen == ["a", "b"]
    await client.patch(DEPLOYMENT, "b", "shop", {"spec": {"replicas": 3}})
    await clock.settle()
    await client.delete(DEPLOYMENT, "a", "shop")
    await clock.settle()
    assert recorder.seen == ["a", "b", "b", "a"]
    assert manager.metrics == {"recorder": {"reconciles": 4, "errors": 0, "depth": 0}}


async def test_mappers_see_old_and_new(manager: Manager, client: FakeClient, clock: FakeClock) -> None:
    recorder = Recorder()

    def target(obj: Obj) -> Iterable[ObjectRef]:
        return [ObjectRef("apps", "Deployment", "shop", meta.labels(obj)["for"])]

    manager.add(recorder, [(CONFIG_MAP, target), (DEPLOYMENT, own)])
    await manager.start()
    client.seed({**CONFIG_MAP.empty("c", "shop"), "metadata": {"name": "c", "namespace": "shop", "labels": {"for": "a"}}})
    await clock.settle()
    await client.patch(CONFIG_MAP, "c", "shop", {"metadata": {"labels": {"for": "b"}}})
    await clock.settle()
    assert recorder.seen == ["a", "a", "b"]


async def test_informers_are_shared(manager: Manager) -> None:
    assert manager.informer(DEPLOYMENT) is manager.informer(DEPLOYMENT)
    assert manager.informer(DEPLOYMENT) is not manager.informer(DEPLOYMENT, labels="a=b")


async def test_requeue_and_enqueue(manager: Manager, clock: FakeClock) -> None:
    recorder = Recorder(answers=[Result(requeue_after=30)])
    manager.add(recorder, [])
    await manager.start()
    manager.enqueue("recorder", ObjectRef("", "ConfigMap", "shop", "now"))
    manager.enqueue("recorder", ObjectRef("", "ConfigMap", "shop", "later"), after=10)
    await clock.settle()
    assert recorder.seen == ["now"]
    await clock.advance(10)
    assert recorder.seen == ["now", "later"]
    await clock.advance(20)
    assert recorder.seen == ["now", "later", "now"]


async def test_failures_are_logged_with_their_key_and_retried(
    manager: Manager, client: FakeClient, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(answers=[RuntimeError("broken"), errors.conflict("apps", "deployments", "a"), errors.internal("no")])
    client.seed(DEPLOYMENT.empty("a", "shop"))
    manager.add(recorder, [(DEPLOYMENT, own)])
    with caplog.at_level(logging.INFO, "metaos"):
        await manager.start()
        await clock.advance(1)
    assert recorder.seen == ["a"] * 4
    assert manager.metrics["recorder"] == {"reconciles": 4, "errors": 2, "depth": 0}
    assert [r.levelname for r in caplog.records] == ["ERROR", "ERROR"]
    assert "recorder: Deployment shop/a: failed" in caplog.text and "broken" in caplog.text


async def test_a_terminal_error_waits_for_the_next_change(
    manager: Manager, client: FakeClient, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(answers=[TerminalError("nonsense")])
    client.seed(DEPLOYMENT.empty("a", "shop"))
    manager.add(recorder, [(DEPLOYMENT, own)])
    await manager.start()
    await clock.advance(600)
    assert recorder.seen == ["a"] and "giving up until it changes: nonsense" in caplog.text
    await client.patch(DEPLOYMENT, "a", "shop", {"spec": {"replicas": 3}})
    await clock.settle()
    assert recorder.seen == ["a", "a"]


async def test_workers_share_a_queue_and_never_an_object(manager: Manager, client: FakeClient, clock: FakeClock) -> None:
    recorder = Recorder()
    recorder.gate = asyncio.Event()
    client.seed(*(DEPLOYMENT.empty(n, "shop") for n in "abcd"))
    manager.add(recorder, [(DEPLOYMENT, own)], workers=3)
    await manager.start()
    await clock.settle()
    assert recorder.seen == ["a", "b", "c"] and manager.metrics["recorder"]["depth"] == 1
    await client.patch(DEPLOYMENT, "a", "shop", {"spec": {"replicas": 3}})
    await clock.settle()
    recorder.gate.set()
    await clock.settle()
    assert recorder.seen == ["a", "b", "c", "d", "a"] and recorder.most == 3


async def test_start_waits_for_an_unreachable_server(manager: Manager, client: FakeClient, clock: FakeClock) -> None:
    recorder = Recorder()
    client.fail("list", ConnectionRefusedError("refused"), times=3)
    client.seed(DEPLOYMENT.empty("a", "shop"))
    manager.add(recorder, [(DEPLOYMENT, own)])
    starting = asyncio.ensure_future(manager.start())
    await clock.settle()
    assert not starting.done() and recorder.seen == []
    await clock.advance(5)
    await starting
    await clock.settle()
    assert recorder.seen == ["a"]


async def test_names_are_unique_and_stopping_cuts_off(manager: Manager, client: FakeClient, clock: FakeClock) -> None:
    recorder = Recorder()
    recorder.gate = asyncio.Event()
    client.seed(DEPLOYMENT.empty("a", "shop"))
    manager.add(recorder, [(DEPLOYMENT, own)])
    with pytest.raises(ValueError, match="already"):
        manager.add(Recorder(), [])
    await manager.start()
    late = Recorder("late")
    manager.add(late, [(CONFIG_MAP, own)])
    client.seed(CONFIG_MAP.empty("c", "shop"))
    await clock.settle()
    assert recorder.running == 1 and late.seen == ["c"]
    await manager.stop()
    assert recorder.running == 0
