"""Clusters that the hub reaches by itself: what it is given of them, and the way from adding to removing one."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from examples.demo.continuum import Continuum, wait_for
from metaos.agent.entry import REFUSED, REMOVED
from metaos.cli.clusters import portable
from metaos.members import hosted
from metaos.members.callers import Identities
from metaos.members.hosted import Hosted, secret
from metaos.members.kubeconfig import Access, read
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.errors import unavailable
from metaos.resources.meta import Obj
from metaos.store.log import StoreFailed
from tests.clock import FakeClock
from tests.fake_client import FakeClient


def test_what_the_hub_keeps_of_a_kubeconfig_needs_no_file_and_says_the_same() -> None:
    access = Access("https://10.0.0.1:6443", ca="CA", certificate="CERT", key="KEY", server_name="kube")
    for each in (access, Access("https://h", insecure=True, token="t"), Access("https://h", oidc={"id-token": "x"})):
        assert read(yaml.safe_load(yaml.safe_dump(portable(each, "madrid"))), "", Path("/nowhere")) == each


@pytest.mark.parametrize(
    "access",
    [
        Access("https://h", exec={"command": "login"}),
        Access("https://h", token_file="/tmp/t"),
        Access("https://h", oidc={"idp-certificate-authority": "/tmp/ca"}),
    ],
)
def test_the_hub_runs_no_program_and_reads_no_file_for_a_kubeconfig(access: Access) -> None:
    with pytest.raises(ValueError, match="use a token or a certificate, or run the agent"):
        portable(access, "madrid")


def given(kubeconfig: Any) -> Obj:
    """The Secret of a cluster, as it is read."""
    made = secret("madrid", yaml.safe_dump(kubeconfig), "{}", Identities.PREFIXED)
    made["metadata"]["uid"] = "1"
    return made | {"data": {key: base64.b64encode(text.encode()).decode() for key, text in made["stringData"].items()}}


PLAIN = portable(Access("https://h", token="t"), "madrid")


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("user", "exec", {"command": "sh"}),
        ("user", "tokenFile", "/etc/hosts"),
        ("user", "client-key", "pki/ca-key.pem"),
        ("user", "auth-provider", {"name": "oidc", "config": {"idp-certificate-authority": "/x"}}),
        ("cluster", "certificate-authority", "/x"),
    ],
)
async def test_the_hub_itself_looks_at_what_stands_in_the_secret(tmp_path: Path, part: str, field: str, value: Any) -> None:
    """Whoever may write Secrets there need not come by ``nemo cluster add``."""
    listed = {"user": "users", "cluster": "clusters"}[part]
    bent = {**PLAIN, listed: [{"name": "madrid", part: PLAIN[listed][0][part] | {field: value}}]}
    hosted = Hosted(Manager(FakeClient(), FakeClock(), Random(1)), FakeClient(), FakeClock(), tmp_path, str, token_of([]))
    with pytest.raises(ValueError, match=rf"{listed}\[\]\.{part}\.{field}"):
        await hosted._prepare("madrid", tmp_path / "madrid", given(bent))
    assert not (tmp_path / "madrid").exists()


async def test_no_kubeconfig_stays_of_a_cluster_whose_secret_has_gone(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/kubeconfig.yaml").write_text("secret")
    hosted = Hosted(Manager(FakeClient(), FakeClock(), Random(1)), FakeClient(), FakeClock(), tmp_path, str, token_of([]))
    await hosted._settle()
    assert not list(tmp_path.iterdir())


def token_of(answers: list[Any]) -> Any:
    async def token(site: str) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    return token


async def test_a_kubeconfig_lies_there_while_an_agent_runs_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, client, runs = FakeClock(), FakeClient(), asyncio.Event()
    hosted = Hosted(Manager(client, clock, Random(1)), client, clock, tmp_path, str, token_of(["one"]))

    async def agent(arguments: list[str]) -> int:
        runs.set()
        return await asyncio.Future()

    monkeypatch.setattr(hosted, "_agent", agent)
    work = asyncio.create_task(hosted._keep("madrid", given(PLAIN)))
    await runs.wait()
    assert (tmp_path / "madrid/kubeconfig.yaml").exists()
    work.cancel()
    await asyncio.wait([work])
    assert {path.name for path in (tmp_path / "madrid").iterdir()} == {"secret", "site.yaml", "token"}


async def test_what_fails_for_now_is_tried_again_and_a_token_that_is_refused_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, client = FakeClock(), FakeClient()
    made = given(PLAIN)
    client.seed({key: value for key, value in made.items() if key != "stringData"})
    answers = [unavailable("no leader"), StoreFailed("away"), "one", "two"]
    hosted = Hosted(Manager(client, clock, Random(1)), client, clock, tmp_path, str, token_of(answers))
    codes, tokens = [1, REFUSED, REMOVED], []

    async def agent(arguments: list[str]) -> int:
        tokens.append((tmp_path / "madrid/token").read_text())
        return codes.pop(0)

    monkeypatch.setattr(hosted, "_agent", agent)
    work = asyncio.create_task(hosted._keep("madrid", made))
    while not work.done():
        await asyncio.to_thread(int)  # It reads the kubeconfig in a thread.
        await clock.advance(60)
    await work
    assert tokens == ["one", "one", "two"]
    assert not client.objects(scheme.SECRET) and not (tmp_path / "madrid").exists()


def add(above: Continuum, below: Continuum) -> str:
    """What it says, on whichever channel."""
    command = [sys.executable, "-m", "metaos", "cluster", "add", "kube", "--kubeconfig", str(below.kubeconfig)]
    command += ["--hub-kubeconfig", str(above.kubeconfig)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def ready(hub: Continuum) -> bool:
    found = hub.get("cluster", "kube") or {}
    return any(c["type"] == "Ready" and c["status"] == "True" for c in found.get("status", {}).get("conditions") or ())


async def eventually(clock: FakeClock, holds: Callable[[], bool]) -> None:
    """In virtual time, as long as threads and processes take."""
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.to_thread(int)
            await clock.advance(0.1)


async def test_a_cluster_that_is_added_again_is_another_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of a removed one, its kubeconfig and an identity that counts no more, goes with its Secret."""
    monkeypatch.setattr(hosted, "sys", SimpleNamespace(executable="/bin/false"))
    clock = FakeClock()
    client = FakeClient(clock)
    tokens: list[str] = []

    async def token(site: str) -> str:
        tokens.append(f"{site} {len(tokens)}")
        return tokens[-1]

    def kept() -> Obj:
        found = dict(hosted.secret("madrid", "k", "s", Identities.SAME))
        text = found.pop("stringData")
        return found | {"data": {key: base64.b64encode(value.encode()).decode() for key, value in text.items()}}

    def file(name: str) -> str:
        path = tmp_path / "hosted/madrid" / name
        return path.read_text() if path.exists() else ""

    (tmp_path / "hosted/paris/agent").mkdir(parents=True)
    manager = Manager(client, clock, Random(1))
    runs = hosted.Hosted(manager, client, clock, tmp_path / "hosted", lambda: "https://hub", token)
    await manager.start()
    task = asyncio.create_task(runs.run())
    try:
        await client.create(kept())
        await eventually(clock, lambda: file("token") == "madrid 0")
        assert not (tmp_path / "hosted/paris").exists(), "it was removed while this hub did not run"
        (tmp_path / "hosted/madrid/agent").mkdir()
        # Another with the same content, before anybody has seen the first one go.
        await client.delete(scheme.SECRET, "cluster.madrid", "nemo-system")
        await client.create(kept())
        await eventually(clock, lambda: file("token") == "madrid 1")
        assert not (tmp_path / "hosted/madrid/agent").exists()
        await client.delete(scheme.SECRET, "cluster.madrid", "nemo-system")
        await eventually(clock, lambda: not (tmp_path / "hosted/madrid").exists())
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await manager.stop()


@pytest.mark.slow
@pytest.mark.system
def test_an_added_cluster_is_a_site_also_after_the_hub_was_killed_until_it_is_removed(tmp_path: Path) -> None:
    """The cluster is another hub: that is a Kubernetes API, too."""
    (tmp_path / "below").mkdir()
    (tmp_path / "above").mkdir()
    below, above = Continuum(tmp_path / "below", isolated=False), Continuum(tmp_path / "above", isolated=False, lease_seconds=25)
    try:
        below.start_hub()
        above.start_hub()
        assert "is being joined" in add(above, below)
        wait_for("the cluster to be ready", lambda: ready(above), 40)
        secret = above.get("secret", "cluster.kube", "-n", "nemo-system")
        assert secret["type"] == "meta-os.eu/cluster" and "kubeconfig" in secret["data"]
        assert "there is a site 'kube' already" in add(above, below)
        above.kill_hub()
        log = tmp_path / "above/hub.log"
        begun = len(log.read_text())
        above.start_hub()
        wait_for(
            "the agent to run again", lambda: "site kube is connected" in (tmp_path / "above/hub.log").read_text()[begun:], 40
        )
        assert "hands over its work" in above.nemo("cluster", "remove", "kube")
        wait_for("the cluster to be gone", lambda: above.get("cluster", "kube") is None, 60)
        wait_for("its kubeconfig to be forgotten", lambda: above.get("secret", "cluster.kube", "-n", "nemo-system") is None, 60)
        assert not (above.data / "hosted" / "kube").exists()
        assert below.get("configmap", "nemo-member", "-n", "nemo-system") is None, "another hub may have it"
    finally:
        above.stop()
        below.stop()
