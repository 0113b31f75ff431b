"""One story with many seeds, over the cores: each seed is a world of its own, so shards know nothing of each other."""

from __future__ import annotations

import gc
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from metaos.twin.clock import set_aside
from metaos.twin.play import play
from metaos.twin.story import Scenario

#: Seeds that one process plays in one go.
SHARD = 20
#: Of what is handed out at a time, so that millions of seeds take no memory.
WAVE = 64


def failing(
    story: Scenario, seeds: Sequence[int], jobs: int = 1, played: Callable[[int], None] | None = None
) -> Iterator[dict[str, Any]]:
    """The reports of the seeds that did not hold, in order. ``jobs`` processes; ``played`` is told how many seeds are done."""
    shards = [seeds[at : at + SHARD] for at in range(0, len(seeds), SHARD)]
    done = 0
    if jobs == 1:
        for shard in shards:
            yield from _shard(story, shard)
            done += len(shard)
            if played is not None:
                played(done)
        return
    # Fresh processes: a fork would share what the caller has begun.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_quiet) as pool:
        for at in range(0, len(shards), WAVE):
            wave = shards[at : at + WAVE]
            for shard, found in zip(wave, pool.map(_shard, [story] * len(wave), wave), strict=True):
                yield from found
                done += len(shard)
                if played is not None:
                    played(done)


def _quiet() -> None:
    logging.basicConfig(level=logging.CRITICAL)


def _shard(story: Scenario, seeds: Sequence[int]) -> list[dict[str, Any]]:
    found = []
    with set_aside():
        for seed in seeds:
            report = play(story.with_seed(seed))
            gc.collect()  # A world is full of cycles; the next one would set its remains aside, for good.
            if not report["passed"]:
                found.append(report)
    return found
