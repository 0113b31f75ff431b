"""Power fails at any moment: what was acknowledged is there, whatever of the rest the disk had kept."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from metaos import files
from metaos.store import backup, file
from metaos.store.seal import Keyring, SealedStore
from metaos.store.sqlite import SqliteStore
from tests.store.disk import Kind, Step, mark, watched
from tests.store.power import Luck, lay_out, survivors

SHARES = (0.0, 0.5, 1.0)


class Recorder:
    """The steps of a program below one directory, and what it said between them (``SAID`` steps)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.steps: list[Step] = []

    def __call__(self, step: Step) -> int:
        if step.path.startswith(str(self.root)):
            self.steps.append(step)
        return 0

    def say(self, key: str, revision: int, value: bytes | None) -> None:
        """An acknowledged write; ``None`` was a delete."""
        self.steps.append(Step(Kind.SAID, key, revision, value or b"", "" if value is None else "present"))


def is_secret(key: str) -> bool:
    return key.startswith("k/1/")


async def write(store: SealedStore, recorder: Recorder, worker: int, random: Random, count: int) -> None:
    known: dict[str, int] = {entry.key: entry.revision for entry in (await store.list(f"k/{worker}/")).entries}
    for _ in range(count):
        key, value = f"k/{worker}/{random.randrange(4)}", random.randbytes(random.randrange(1, 6000))
        if key not in known:
            known[key] = await store.create(key, value)
        elif random.random() < 0.2:
            revision = await store.delete(key, expected=known.pop(key))
            recorder.say(key, revision, None)
            continue
        else:
            known[key] = await store.update(key, value, expected=known[key])
        recorder.say(key, known[key], value)


async def load(root: Path, recorder: Recorder, random: Random, writes: int) -> None:
    """Everything that writes to a data directory: first start, load, checkpoints, compaction, restart, rotated keys."""
    root.mkdir()
    dropped: tuple[str, ...] = ()
    for _ in range(2):
        ring = Keyring.open(root / "keys.json")
        inner = await SqliteStore.open(root / "state.db")
        # Checkpoints come often, so that many crashes fall into one.
        inner._connections[-1].execute("PRAGMA wal_autocheckpoint=30")
        store = SealedStore(inner, ring, is_secret)
        for _ in range(2):
            await asyncio.gather(*(write(store, recorder, worker, random, writes) for worker in range(4)))
            await store.compact(await store.revision() - 10)
        await store.rotate()
        await store.reseal()
        await write(store, recorder, 1, random, 1)
        await store.compact(await store.revision())
        dropped += await store.drop_unused_keys()
        await store.close()
    assert dropped == ("1", "2")


async def check(root: Path, said: list[Step]) -> None:
    """Opens what a crash left and looks for every acknowledged write."""
    store = SealedStore(await SqliteStore.open(root / "state.db"), Keyring.open(root / "keys.json"), is_secret)
    try:
        last = {step.path: step for step in said}
        latest = await store.revision()
        assert latest >= max((step.offset for step in said), default=0), "revisions were lost"
        held = {entry.key: entry for entry in (await store.list("")).entries}
        for key, step in last.items():
            entry = held.get(key)
            if entry is None or entry.revision > step.offset:
                # Something later happened to it that had not been acknowledged; that is in the log too.
                assert entry is not None or not step.target or await _deleted_after(store, key, step.offset), f"{key} was lost"
            elif step.target:
                assert entry.value == step.data, f"{key} is damaged"
            else:
                raise AssertionError(f"{key} is back, though its delete was acknowledged")
    finally:
        await store.close()


async def _deleted_after(store: SealedStore, key: str, revision: int) -> bool:
    latest = await store.revision()
    events = store.watch("", after=max(revision, await _oldest(store)))
    found = False
    async for event in events:
        found = found or (event.key == key and event.type.value == "DELETE")
        if event.revision >= latest:
            break
    await events.aclose()  # type: ignore[attr-defined]
    return found


async def _oldest(store: SealedStore) -> int:
    return int(await store._inner._read(lambda db: db.execute("SELECT oldest FROM compaction").fetchone()[0]))  # type: ignore[attr-defined]


def recorded(root: Path, seed: int, writes: int) -> Recorder:
    recorder = Recorder(root)
    with watched(recorder):
        asyncio.run(load(root, recorder, Random(seed), writes))
    return recorder


def crashes(recorder: Recorder, scratch: Path, points: int, random: Random) -> int:
    """Tries crashes after ``points`` of the steps, each with different luck; how many lost something."""
    steps = recorder.steps
    chosen = range(1, len(steps) + 1) if len(steps) <= points else sorted(random.sample(range(1, len(steps) + 1), points))
    lost = 0
    for point in chosen:
        for share in SHARES:
            files = survivors([s for s in steps[:point] if s.kind is not Kind.SAID], Luck(share, Random(f"{point}/{share}")))
            lay_out(files, recorder.root, scratch)
            said = [s for s in steps[:point] if s.kind is Kind.SAID]
            try:
                asyncio.run(check(scratch, said))
            except Exception as failure:
                lost += 1
                first = first_of(failure)
                print(f"after step {point} of {len(steps)} with luck {share}: {first}")
            shutil.rmtree(scratch, ignore_errors=True)
    return lost


def first_of(failure: Exception) -> str:
    return str(failure).splitlines()[0] if str(failure) else repr(failure)


def test_power_loss_at_any_step_loses_nothing(tmp_path: Path) -> None:
    recorder = recorded(tmp_path / "data", 1, 3)
    assert sum(step.kind is Kind.SAID for step in recorder.steps) == 50
    assert crashes(recorder, tmp_path / "after", 60, Random(1)) == 0


@pytest.mark.slow
def test_power_loss_at_hundreds_of_steps(tmp_path: Path) -> None:
    recorder = recorded(tmp_path / "data", 2, 8)
    assert crashes(recorder, tmp_path / "after", 400, Random(2)) == 0


@pytest.mark.parametrize(
    "weakened",
    [
        lambda patch: patch.setattr(file, "SYNCHRONOUS", "NORMAL"),
        pytest.param(lambda patch: patch.setattr(files, "sync_directory", lambda directory: None), marks=pytest.mark.slow),
    ],
    ids=["commits-not-synced", "keys-not-synced"],
)
def test_the_simulation_finds_a_store_that_does_not_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weakened: Callable[[pytest.MonkeyPatch], None]
) -> None:
    weakened(monkeypatch)
    assert crashes(recorded(tmp_path / "data", 1, 3), tmp_path / "after", 60, Random(1)) > 0


def test_a_restored_hub_survives_a_power_loss_at_once(tmp_path: Path) -> None:
    """Whole, once the restore has returned; before that whole or not there at all."""
    source, target, copy = tmp_path / "source", tmp_path / "place" / "hub", tmp_path / "backup"
    recorder = recorded(source, 1, 2)
    backup.snapshot(source / "state.db", copy)
    backup.describe(copy, {}, {}, None)
    target.parent.mkdir()
    steps = Recorder(target.parent)
    with watched(steps):
        backup.restore(copy, target, {"keys.json": (source / "keys.json").read_bytes()}, 0.0, mark)
    last = {step.path: step for step in recorder.steps if step.kind is Kind.SAID}
    said = [step for step in last.values()]
    for point in range(1, len(steps.steps) + 1):
        for share in SHARES:
            scratch = tmp_path / "after"
            lay_out(survivors(steps.steps[:point], Luck(share, Random(f"{point}/{share}"))), target.parent, scratch)
            if point == len(steps.steps):
                assert (scratch / "hub" / "state.db").exists()
            if (scratch / "hub").exists():
                asyncio.run(check(scratch / "hub", said))
            shutil.rmtree(scratch, ignore_errors=True)
