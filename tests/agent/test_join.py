"""Joining with a token, coming back, and renewing, against a hub over real TLS."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.agent import join
from metaos.agent.join import Identity, JoinError, Membership, Token, differences, fetch_authority, register
from metaos.clock import SystemClock
from metaos.http import HttpClient
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.security.identity import Authority
from tests.agent.hub import Hub, until


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    found = Hub(tmp_path)
    await found.start()
    yield found
    await found.stop()


def membership(hub: Hub, folder: Path, site: str = "edge-a") -> Membership:
    return Membership(hub.url, folder / "identity", site, SystemClock(), Random(3))


def token_file(hub: Hub, folder: Path) -> Path:
    path = folder / "token"
    path.write_text(hub.token() + "\n")
    return path


@given(st.dictionaries(st.sampled_from("abc"), st.integers() | st.dictionaries(st.sampled_from("xy"), st.integers()), max_size=3))
def test_a_site_file_differs_where_it_says_something_else_and_nowhere_else(spec: dict[str, Any]) -> None:
    assert not differences({"spec": spec}, {"spec": spec | {"more": 1}})
    for key, value in spec.items():
        other = spec | {key: "otherwise"}
        (first, *more) = differences({"spec": spec}, {"spec": other})
        assert first == f'spec.{key} is {json.dumps(value)}, and the hub has "otherwise"' and not more
        assert not differences({"spec": spec}, {"spec": other}, machine=True)


def test_what_the_machine_allows_is_for_the_site_file_to_say() -> None:
    site, cluster = {"spec": {"tier": "edge", "imagePolicy": [{"images": "*"}]}}, {"spec": {"tier": "cloud"}}
    assert differences(site, cluster) == ['spec.tier is "edge", and the hub has "cloud"']
    assert differences(site, cluster, machine=True) == ['spec.imagePolicy is [{"images": "*"}], and the hub has nothing']


async def test_a_token_becomes_an_identity_that_the_hub_accepts_and_that_survives(hub: Hub, tmp_path: Path) -> None:
    member = membership(hub, tmp_path / "a")
    identity = await member.join(token_file(hub, tmp_path))
    assert identity.name == "edge-a" and identity.not_before < hub.clock.now() < identity.renew_time < identity.not_after
    assert await member.join(None) == identity, "the second start needs no token"
    client = HttpClient(hub.url, context=identity.context(), clock=hub.clock, random=Random(1))
    site: Any = scheme.CLUSTER.empty("edge-a")
    created = await register(client, site | {"spec": {"tier": "edge"}})
    assert created["spec"] == {"tier": "edge"} and (await register(client, site))["metadata"] == created["metadata"]
    files = sorted((tmp_path / "a" / "identity").iterdir())
    assert [f.name for f in files] == ["agent.pem", "ca.pem", "identity.json"]
    assert all(f.stat().st_mode & 0o077 == 0 for f in files)
    renewed = await member.renew(client, identity)
    assert renewed.key != identity.key and renewed.certificate != identity.certificate
    assert Identity.load(tmp_path / "a" / "identity") == renewed
    client.use(renewed.context())
    assert await client.get(scheme.CLUSTER, "edge-a")
    await client.close()
    with pytest.raises(JoinError, match="belongs to site 'edge-a'"):
        await membership(hub, tmp_path / "a", "edge-b").join(None)


async def test_a_used_or_unknown_token_is_refused_with_the_remedy(hub: Hub, tmp_path: Path) -> None:
    path = token_file(hub, tmp_path)
    await membership(hub, tmp_path / "a").join(path)
    with pytest.raises(JoinError, match="nemo join-token edge-b"):
        await membership(hub, tmp_path / "b", "edge-b").join(path)
    with pytest.raises(JoinError, match="has not joined yet"):
        await membership(hub, tmp_path / "c").join(None)
    path.write_text("something else")
    with pytest.raises(JoinError, match="holds no join token") as caught:
        Token.read(path)
    assert "something" not in str(caught.value)
    with pytest.raises(JoinError, match="cannot be read"):
        Token.read(tmp_path / "none")


async def test_another_hub_is_not_trusted(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(JoinError, match="is not the hub that made this token"):
        await fetch_authority(hub.url, "0" * 64, hub.clock, Random(1))


async def test_a_crash_while_waiting_for_approval_does_not_waste_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.auto_approve = False
    path = token_file(hub, tmp_path)
    member = membership(hub, tmp_path / "a")
    joining = asyncio.create_task(member.join(path))
    waiting = await until(lambda: hub.client.objects(scheme.CERTIFICATE_SIGNING_REQUEST))
    joining.cancel()
    await asyncio.gather(joining, return_exceptions=True)
    hub.sign(waiting[0]["metadata"]["name"])
    identity = await membership(hub, tmp_path / "a").join(path)
    assert identity.name == "edge-a" and len(hub.client.objects(scheme.CERTIFICATE_SIGNING_REQUEST)) == 1


async def test_a_denied_request_and_a_hub_that_is_away(hub: Hub, tmp_path: Path) -> None:
    hub.auto_approve = False
    path = token_file(hub, tmp_path)
    joining = asyncio.create_task(membership(hub, tmp_path / "a").join(path))
    waiting = await until(lambda: hub.client.objects(scheme.CERTIFICATE_SIGNING_REQUEST))
    hub.client.seed(waiting[0] | {"status": {"conditions": [{"type": "Denied", "status": "True", "message": "not this one"}]}})
    with pytest.raises(JoinError, match="not this one"):
        await joining
    await hub.stop()
    with pytest.raises(ApiError) as caught:
        await membership(hub, tmp_path / "b").join(path)
    assert caught.value.code == 503


async def test_an_expired_site_goes_on_until_it_has_a_new_token(hub: Hub, tmp_path: Path) -> None:
    hub.lifetime_seconds = -1
    path = token_file(hub, tmp_path)
    member = membership(hub, tmp_path / "a")
    expired = await member.join(path)
    assert expired.not_after < hub.clock.now()
    assert await member.join(path) == expired, "the token was used: nothing changes"
    hub.lifetime_seconds = 1000
    assert (await member.join(token_file(hub, tmp_path))).not_after > hub.clock.now()


def written(path: Path, after: Path) -> Path:
    """Lets a file be a little newer than another one, whatever the file system's clock can tell apart."""
    moment = after.stat().st_mtime + 1
    os.utime(path, (moment, moment))
    return path


async def test_a_site_that_its_hub_no_longer_trusts_joins_again_with_a_newer_token(hub: Hub, tmp_path: Path) -> None:
    old = token_file(hub, tmp_path)
    member, folder = membership(hub, tmp_path / "a"), tmp_path / "a/identity"
    first = await member.join(old)
    await hub.stop()
    hub.authority = Authority.create(Random(8), hub.clock.now())
    await hub.start()
    assert await member.join(old) == first, "the token of then changes nothing"
    new = token_file(hub, tmp_path)
    written(new, folder / "identity.json")
    written(folder / "request.json", folder / "identity.json") if (folder / "request.json").exists() else None
    second = await member.join(new)
    assert second.ca == hub.ca != first.ca and second.issuer == hub.authority.name
    written(folder / "identity.json", new)
    assert await member.join(new) == second, "once"


async def test_a_newer_token_that_does_not_help_leaves_what_there_is(hub: Hub, tmp_path: Path) -> None:
    member = membership(hub, tmp_path / "a")
    first = await member.join(token_file(hub, tmp_path))
    path = token_file(hub, tmp_path)
    hub.tokens.clear()
    written(path, tmp_path / "a/identity/identity.json")
    assert await member.join(path) == first
    await hub.stop()
    assert await member.join(path) == first, "also where the hub is away"


async def test_a_request_that_was_under_way_before_does_not_spoil_a_new_token(hub: Hub, tmp_path: Path) -> None:
    member, folder = membership(hub, tmp_path / "a"), tmp_path / "a/identity"
    await member.join(token_file(hub, tmp_path))
    (folder / "request.json").write_text(json.dumps({"metadata": {"name": "edge-a-old"}, "spec": {"request": "x"}}))
    (folder / "request.key").write_text("old")
    path = token_file(hub, tmp_path)
    written(path, folder / "request.json")
    assert (await member.join(path)).key != "old"


@pytest.mark.parametrize("step", range(4))
async def test_a_crash_while_an_identity_is_stored_leaves_a_whole_one(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Between any two of its files: certificate and key fit, and the hub of now and of later is trusted."""
    member, folder = membership(hub, tmp_path / "a"), tmp_path / "a/identity"
    first = await member.join(token_file(hub, tmp_path))
    later = Authority.create(Random(9), hub.clock.now())
    pair = later.issue_client("system:cluster:edge-a", ("system:clusters",), hub.clock.now())
    both = later.pair.certificate.decode() + first.ca
    second = Identity(
        "edge-a", first.not_before, first.not_after + 9, both, pair.certificate.decode(), pair.key.decode(), later.name
    )
    written_files = 0
    real = join.write_private

    def fragile(path: Path, content: bytes | str) -> None:
        nonlocal written_files
        if written_files == step:
            raise RuntimeError("killed")
        written_files += 1
        real(path, content)

    monkeypatch.setattr(join, "write_private", fragile)
    if step < 3:
        with pytest.raises(RuntimeError):
            second.store(folder)
    else:
        second.store(folder)
    found = Identity.load(folder)
    assert found is not None and found.context() and found.ca in (first.ca, both)
    assert found.key == (first.key if step < 2 else second.key)


def test_the_agent_itself_does_not_load_cryptography() -> None:
    code = "import sys, metaos.agent.join; print([m for m in ('cryptography', 'aiohttp', 'orjson') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    refused = subprocess.run([sys.executable, "-m", "metaos.agent.identity"], capture_output=True, text=True)
    assert refused.returncode == 2 and json.dumps(refused.stderr)
