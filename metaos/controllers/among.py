"""Many at the same time, or one alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Among:
    """Who is to be alone waits for those who are there, and whoever comes later waits for that one: nobody starves. Bound: who
    waits is held by its own caller."""

    def __init__(self) -> None:
        self._there = 0
        self._door, self._left = asyncio.Lock(), asyncio.Event()

    @asynccontextmanager
    async def others(self) -> AsyncIterator[None]:
        """Beside any number of others; entered at once unless somebody is alone, or is to be."""
        async with self._door:
            self._there += 1
        try:
            yield
        finally:
            self._there -= 1
            self._left.set()

    @asynccontextmanager
    async def nobody(self) -> AsyncIterator[None]:
        """Alone."""
        async with self._door:
            while self._there:
                self._left.clear()
                await self._left.wait()
            yield
