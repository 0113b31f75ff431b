"""Processes that do one thing for the agent and end, so that what it takes is not in the agent's memory. They read JSON and
answer with JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Any

from metaos.runtimes import process

MAX_ANSWER = 1 << 16
#: Of the environment: the way out, and whom to trust.
_KEPT = (
    "PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)


@dataclass(frozen=True, slots=True)
class Ended:
    """It ended without an answer. ``code``: as a shell has it, 128 and the signal; ``None``: not known."""

    code: int | None


async def ask(module: str, request: bytes, most: int = MAX_ANSWER) -> dict[str, Any] | Ended:
    """Runs ``python -m module``. Secrets go through anonymous memory: they stand in no argument, and in no file. Who is cancelled
    ends the process first. Raises ``OSError``."""
    given = process.in_memory(request)
    theirs: int | None = None
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        os.set_blocking(ours, False)
        env = {key: os.environ[key] for key in _KEPT if key in os.environ}
        who = process.spawn([sys.executable, "-I", "-m", module], env=env, stdin=given, stdout=theirs)
        os.close(theirs)
        theirs = None
        ended = asyncio.ensure_future(process.ended(who))
        try:
            answer = await process.read_all(ours, most)
            code = await ended
        except BaseException:
            who.kill()
            await ended
            raise
    finally:
        os.close(given)
        os.close(ours)
        if theirs is not None:
            os.close(theirs)
    try:
        found = json.loads(answer)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else Ended(code)
