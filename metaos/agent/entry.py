"""What every agent begins with, whatever it is the agent of: its settings, its data directory and its membership.

Small, so that the agent of a Kubernetes cluster imports nothing of what runs pods.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import signal
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any

from metaos.accounting.metering import PERIOD_SECONDS
from metaos.agent.contact import Contact
from metaos.agent.join import Identity, JoinError, Membership, register
from metaos.agent.presence import Removed
from metaos.clock import Clock
from metaos.config import Address, Exposure
from metaos.http import HttpClient
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, name

log = logging.getLogger(__name__)

#: Exit codes. ``REMOVED``: the hub has removed this site; ``REFUSED``: it cannot join; ``UNUSABLE``: this machine, its data
#: directory or the site file cannot be used.
REMOVED, REFUSED, UNUSABLE = 3, 4, 5


#: Where a server of the bus at a site listens for devices.
DEVICES = Address("127.0.0.1", 1883)


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What ``nemo agent`` was asked to do."""

    hub: str
    data: Path
    site_file: Path
    token_file: Path | None = None
    heartbeat_seconds: float = 10.0
    metering_seconds: int = PERIOD_SECONDS
    #: What runs pods; empty: what the site file says.
    runtime: str = ""
    #: What a server of the bus here needs, from ``nemo bus leaf``; where devices connect to it, and its certificate and key.
    leaf: Path | None = None
    mqtt: Address = DEVICES
    mqtt_pair: Path | None = None
    #: Where it answers for Services of the world outside; ``None``: nowhere.
    expose: Exposure | None = None
    #: Other hubs of the same store: who joins goes on to the next where one does not answer.
    more_hubs: tuple[str, ...] = ()


async def enter(config: AgentConfig, site: Obj, clock: Clock, random: Random) -> Identity:
    """This site's identity, joining first where it has none; waits for a hub that is away. Raises ``JoinError``."""
    hubs = (config.hub, *config.more_hubs)
    contact = Contact(clock, random)
    registered = config.data / "registered"
    failures = 0
    while True:
        hub = hubs[failures % len(hubs)]
        membership = Membership(hub, config.data / "identity", name(site), clock, random)
        try:
            identity = await membership.join(config.token_file)
            if not registered.exists():
                client = HttpClient(hub, context=identity.context(), clock=clock, random=random)
                try:
                    await register(client, site)
                finally:
                    await client.close()
                registered.touch(mode=0o600)
                log.info("site %s is a member of %s", name(site), hub)
            return identity
        except ApiError as error:
            if error.code < 500 and error.code not in (404, 409, 429):
                raise JoinError(f"site {name(site)!r} cannot join {hub}: {error.message}") from error
            failures += 1
            contact.missed(error)
            await contact.pause(failures)


def lock(data: Path, stack: ExitStack) -> None:
    """One agent per data directory. Raises ``JoinError``."""
    file = stack.enter_context((data / "lock").open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise JoinError(f"another agent uses {data}: end it first, or choose another --data directory") from error


def leave(data: Path) -> None:
    """The membership is forgotten: whoever starts here again needs a new token."""
    for left in ("identity/identity.json", "identity/agent.pem", "identity/ca.pem", "registered"):
        (data / left).unlink(missing_ok=True)


async def until_told(agent: Coroutine[Any, Any, None], site: str, *, runs_on: str) -> int:
    """Runs an agent until it is told to end (SIGTERM, SIGINT), is refused or is removed; the exit code. ``runs_on``: what does
    so without it, in people's words."""
    running = asyncio.current_task()
    assert running is not None
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, running.cancel)
    try:
        await agent
    except JoinError as error:
        log.error("%s", error)
        return REFUSED
    except Removed:
        return REMOVED
    except asyncio.CancelledError:
        log.info("site %s: the agent ends, its %s", site, runs_on)
    finally:
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)
    return 0


async def first_failure(tasks: list[asyncio.Task[Any]]) -> None:
    """None of these returns; raise what the first one raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    raise RuntimeError("a part of the agent ended by itself")
