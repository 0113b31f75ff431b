"""Where processor time goes: the stack, looked at every few milliseconds of it. A few per cent dearer than without."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SECONDS = 0.005
_PACKAGE = "/metaos/"


@contextmanager
def sampled(found: Counter[str]) -> Iterator[None]:
    """Counts for whom a program with a twin works, while this lasts. Of the main thread; nothing else may use ``SIGPROF``."""
    words: dict[str, str] = {}

    def look(number: int, frame: FrameType | None) -> None:
        found[_whose(frame, words)] += 1

    before = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def _whose(frame: FrameType | None, words: dict[str, str]) -> str:
    """By the task's outermost function, and for controllers by the first of their modules."""
    root = last = controller = ""
    while frame is not None:
        file = frame.f_code.co_filename
        word = words.get(file)
        if word is None:
            word = words[file] = file.rpartition(_PACKAGE)[2].removesuffix(".py") if _PACKAGE in file else ""
        # What plays the world from outside is not part of it.
        if word and word not in ("twin/play", "twin/clock", "twin/world"):
            root, last = word, frame.f_code.co_name
            if word.startswith("controllers/"):
                controller = word
        frame = frame.f_back
    if root == "reconcile/manager":
        return f"controllers: {controller.removeprefix('controllers/') or 'waiting for work'}"
    if root.startswith("controllers/"):
        return f"controllers: {root.removeprefix('controllers/')}"
    if root == "reconcile/informer":
        return "hub: what its controllers' informers are told"
    if root == "apiserver/cache":
        return "hub: its watch cache"
    if root.startswith("apiserver/"):
        return "hub: watches of sites" if last in ("watch", "changes", "_watch") else "hub: requests of sites and users"
    if root.startswith(("reconcile/", "store/", "plugins/")):
        return "hub: queues and store"
    if root.startswith(("agent/", "twin/")):
        return "the simulated sites and their lines"
    return "the event loop"
