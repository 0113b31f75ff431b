"""Requests made by schemathesis from our own OpenAPI: no internal error, no traceback, answers as they are described."""

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaos.clock import SystemClock
from metaos.resources import scheme
from tests.apiserver.objects import config_map
from tests.apiserver.serving import ServedHub, served

schemathesis = pytest.importorskip("schemathesis", reason="NOT TESTED BY SCHEMATHESIS: it is not installed; run 'make check'")

pytestmark = [
    pytest.mark.slow,
    # Of schemathesis and what it uses.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::hypothesis.errors.NonInteractiveExampleWarning"),
]
GROUPS = sorted({kind.api_version for kind in scheme.KINDS})
PER_OPERATION = 6


@dataclass
class Running:
    """A hub in a thread of its own, and what is needed to reach it."""

    hub: ServedHub
    session: requests.Session
    errors: list[str]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("hub")
    started, stop, loop, found = threading.Event(), asyncio.Event(), asyncio.new_event_loop(), list[ServedHub]()

    async def serve() -> None:
        async with served(folder, SystemClock()) as hub:
            await hub.make(config_map("a"))
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


@pytest.mark.parametrize("group", GROUPS)
def test_whatever_the_schema_allows_is_answered_as_the_schema_says(running: Running, group: str) -> None:
    url = running.hub.url
    path = f"/openapi/v3/apis/{group}" if "/" in group else f"/openapi/v3/api/{group}"
    document = json.loads(running.session.get(url + path).text)
    schema = schemathesis.openapi.from_dict(document)
    checks = [
        schemathesis.checks.CHECKS.get_one(name)
        for name in ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
    ]
    made = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=PER_OPERATION, deadline=None, derandomize=True, database=None,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(case=operation.as_strategy(), data=st.data())
        def call(case: Any, data: Any) -> None:
            nonlocal made
            if case.query:
                case.query = {k: v for k, v in case.query.items() if k != "watch"}  # It would last.
            if "namespace" in (case.path_parameters or {}):
                case.path_parameters["namespace"] = data.draw(st.sampled_from(["default", case.path_parameters["namespace"]]))
            response = case.call(base_url=url, session=running.session, timeout=10, verify=running.session.verify)
            made += 1
            case.validate_response(response, checks=checks)

        call()
    assert made >= len(document["paths"])
    assert not running.errors, running.errors
