"""Requests made by schemathesis from our own OpenAPI: no internal error, no traceback, answers as they are described."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaos.resources import scheme
from tests.apiserver.threaded import Running, running

schemathesis = pytest.importorskip("schemathesis", reason="NOT TESTED BY SCHEMATHESIS: it is not installed; run 'make check'")

__all__ = ["running"]

pytestmark = [
    pytest.mark.slow,
    # Of schemathesis and what it uses.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::hypothesis.errors.NonInteractiveExampleWarning"),
]
GROUPS = sorted({kind.api_version for kind in scheme.KINDS})
PER_OPERATION = 6
#: What a hub without a bus, as this one is, answers by 503 alone.
FOR_DEVICES = "devicebatches"


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
        if FOR_DEVICES in operation.path:
            continue

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
