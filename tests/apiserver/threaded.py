"""A hub in a thread of its own, for clients that are not asynchronous, and what it logs as an error."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import requests

from metaos.clock import SystemClock
from tests.apiserver.objects import config_map, pod
from tests.apiserver.serving import ServedHub, served


@dataclass(repr=False)
class Running:
    """A hub in a thread of its own, and what is needed to reach it."""

    hub: ServedHub
    session: requests.Session
    errors: list[str]

    def __repr__(self) -> str:
        return "the hub"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("hub")
    started, stop, loop, found = threading.Event(), asyncio.Event(), asyncio.new_event_loop(), list[ServedHub]()

    async def serve() -> None:
        async with served(folder, SystemClock()) as hub:
            await hub.make(config_map("a"), pod("p", nodeName="edge"))
            found.append(hub)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(30)
    pair = found[0].pair("admin", "system:masters")
    (folder / "client.pem").write_bytes(pair.certificate + pair.key)
    (folder / "ca.pem").write_bytes(found[0].authority.pair.certificate)
    session = requests.Session()
    session.trust_env = False
    session.cert, session.verify = str(folder / "client.pem"), str(folder / "ca.pem")
    errors: list[str] = []

    class Noted(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(logging.Formatter().format(record))

    handler = Noted(logging.ERROR)
    logging.getLogger().addHandler(handler)
    yield Running(found[0], session, errors)
    logging.getLogger().removeHandler(handler)
    session.close()
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()
