"""A play that pauses: it runs in virtual time until it has a question, and goes on when that is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Generic, TypeVar

from metaos.twin.clock import VirtualLoop, collected_by_rounds, virtual
from metaos.twin.play import Play, scratch

Q = TypeVar("Q")
A = TypeVar("A")


class Ask(Generic[Q, A]):
    """What the play is handed, to ask with."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.question: Q | None = None
        self._answer: asyncio.Future[A] | None = None

    async def __call__(self, question: Q) -> A:
        """Time stands still until the answer."""
        assert self._answer is None, "one question at a time"
        self.question, self._answer = question, self._loop.create_future()
        self._loop.stop()
        try:
            return await self._answer
        finally:
            self.question = self._answer = None

    def answer(self, answer: A) -> None:
        assert self._answer is not None, "nothing was asked"
        self._answer.set_result(answer)


class Session(Generic[Q, A]):
    """``make(loop, folder, ask)`` gives the play. To be closed."""

    def __init__(self, make: Callable[[VirtualLoop, Path, Ask[Q, A]], Play]) -> None:
        self._stack = ExitStack()
        folder = self._stack.enter_context(scratch())
        self._loop = self._stack.enter_context(virtual())
        self._ask: Ask[Q, A] = Ask(self._loop)
        self._play = make(self._loop, folder, self._ask)
        self._task = self._loop.create_task(self._play.run())
        self._task.add_done_callback(self._ended)

    def _ended(self, _: object) -> None:
        self._loop.stop()

    def until_asked(self) -> Q | None:
        """The next question; ``None`` at the end, when there is a :meth:`report`."""
        # A notebook runs a loop of its own in this thread; ours waits for nothing, so it may run inside.
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            with collected_by_rounds():
                while self._ask.question is None and not self._task.done():
                    self._loop.run_forever()
        finally:
            asyncio._set_running_loop(outer)
        if self._task.done():
            self._task.result()
        return self._ask.question

    def answer(self, answer: A) -> None:
        self._ask.answer(answer)
        self._ask.question = None

    @property
    def report(self) -> dict[str, Any]:
        return self._task.result()

    def close(self) -> None:
        """Also before the end."""
        self._task.remove_done_callback(self._ended)
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            self._stack.close()
        finally:
            asyncio._set_running_loop(outer)
