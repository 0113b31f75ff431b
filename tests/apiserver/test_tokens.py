"""Credentials that are none: whatever comes as a bearer token or in a token's file is refused, and never repeated."""

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaos.agent.join import JoinError, Token
from metaos.apiserver.jointokens import JoinTokens
from metaos.apiserver.registry import Registry
from metaos.clock import SystemClock
from metaos.http import HttpClient
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.security.identity import Authority
from tests.apiserver.conftest import ADMIN
from tests.apiserver.serving import ServedHub, join_token, served
from tests.clock import FakeClock


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.builds(lambda a, b: b"nemo1." + a + b"." + b, st.binary(max_size=40), st.binary(max_size=80)))
def test_any_file_is_a_token_or_refused_without_repeating_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    try:
        found = Token.read(path)
    except JoinError as error:
        said = str(error).replace(str(path), "")
        assert "nemo join-token" in said
        text = content.decode("utf-8", "ignore").strip()
        assert len(text) < 4 or text not in said
    else:
        assert content.strip().startswith(b"nemo1.") and len(found.bearer) < 4096


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem", "/", "/nowhere/token"])
def test_a_file_without_end_or_none_at_all_is_refused(path: str) -> None:
    with pytest.raises(JoinError, match="join-token"):
        Token.read(Path(path))


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[ServedHub]:
    async with served(tmp_path, SystemClock()) as running:
        yield running


async def status(hub: ServedHub, token: str) -> ApiError:
    client = HttpClient(
        hub.url, ca=hub.authority.pair.certificate.decode(), token=token, clock=hub.clock, random=random.Random(1)
    )
    try:
        with pytest.raises(ApiError) as caught:
            await client.list(scheme.SECRET, "nemo-system")
    finally:
        await client.close()
    return caught.value


async def test_what_is_no_token_opens_nothing(hub: ServedHub) -> None:
    bearer, secret = join_token(hub.authority, hub.clock, "edge")
    await hub.make(secret)
    _, identity, rest = bearer.split(".")
    for wrong in (
        *("x", "nemo1", "nemo1..", "nemo1.a.b.c", "nemo2." + identity + "." + rest, bearer + "x", bearer[:-1], bearer.upper()),
        *(
            f"nemo1.{identity}.{'0' * 32}",
            f"nemo1.../{identity}.{rest}",
            f"nemo1.{identity}%00.{rest}",
            "a" * 5000,
            bearer + "." * 99,
        ),
        *(f"nemo1.{'a' * 33}.{rest}"),
    ):
        error = await status(hub, wrong)
        assert error.code == 401 and rest not in error.message, (wrong, error)
    assert (await status(hub, bearer)).code == 403, "a token that counts is good for one certificate request, and no more"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_any_bearer_is_somebody_only_by_its_secret(registry: Registry, clock: FakeClock, data: st.DataObject) -> None:
    tokens = JoinTokens(registry.client(ADMIN), clock)
    authority = _authority(clock)
    bearer, secret = join_token(authority, clock, "edge")
    try:
        await registry.create(ADMIN, secret)
    except ApiError as error:
        assert error.reason == "AlreadyExists"
    parts = bearer.split(".")
    tried = data.draw(st.text(max_size=60) | st.tuples(*(st.sampled_from([p, p[:-1], p + "0", ""]) for p in parts)).map(".".join))
    user = await tokens.user_of(tried)
    assert (user is not None) == (tried == bearer)


_made: list[Authority] = []


def _authority(clock: FakeClock) -> Any:
    if not _made:
        _made.append(Authority.create(random.Random(1), clock.now()))
    return _made[0]


async def test_a_token_counts_for_its_time_only(registry: Registry, clock: FakeClock) -> None:
    tokens = JoinTokens(registry.client(ADMIN), clock)
    bearer, secret = join_token(_authority(clock), clock, "edge", seed=11)
    await registry.create(ADMIN, secret)
    assert await tokens.user_of(bearer) is not None
    await clock.advance(601)
    assert await tokens.user_of(bearer) is None
