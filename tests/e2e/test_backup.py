"""A hub is backed up while it works, and restored elsewhere, by the real commands."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from random import Random

import pytest

from bench.wire import Connection, Endpoint
from examples.demo.continuum import Continuum
from metaos.store.backup import read_manifest
from metaos.twin.processes import free_port, wait_for
from tests.crashing import Hub
from tests.e2e.clients import PATH, Client, Record, Watching
from tests.linearizability import Verb

SECRETS = "/api/v1/namespaces/default/secrets"


async def nemo(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "metaos", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, output.decode()


async def call(endpoint: Endpoint, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, object]]:
    connection = Connection(endpoint)
    status, answer = await connection.call(method, path, body)
    connection.close()
    return status, json.loads(answer)


@pytest.mark.slow
async def test_a_backup_under_load_is_restored_elsewhere(tmp_path: Path) -> None:
    hub, record, stop = Hub(tmp_path, free_port()), Record(), asyncio.Event()
    phrase, backup, data = tmp_path / "phrase", tmp_path / "backup", tmp_path / "restored" / "hub"
    phrase.write_text("correct horse battery staple\n")
    assert await hub.start()
    endpoint = Endpoint.of(hub.kubeconfig)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"word": "opensesame"}}
    assert (await call(endpoint, "POST", SECRETS, json.dumps(secret).encode()))[0] == 201
    watching = Watching(int((await call(endpoint, "GET", PATH))[1]["metadata"]["resourceVersion"]))  # type: ignore[index]
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                client = Client(endpoint, str(number), record, Random(number))
                group.create_task(client.run([f"object-{i}" for i in range(20)], stop))
            while record.count < 50:
                await asyncio.sleep(0.01)
            code, text = await nemo("keys", "rotate", "--kubeconfig", str(hub.kubeconfig))
            assert code == 0 and "key 2 seals new values" in text, text
            options = ("--kubeconfig", str(hub.kubeconfig), "--passphrase-file", str(phrase))
            code, text = await nemo("backup", str(backup), *options)
            assert code == 0 and "sealed by the passphrase" in text, text
            before = record.count
            while record.count < before + 50:
                await asyncio.sleep(0.01)
            stop.set()
        await watching.run(endpoint, until=max(record.written))
    finally:
        hub.stop()
    assert backup.stat().st_mode & 0o777 == 0o600 and b"opensesame" not in backup.read_bytes()

    code, text = await nemo("restore", str(backup), "--data", str(data))
    assert code == 1 and "--passphrase-file" in text
    data.parent.mkdir()
    code, text = await nemo("restore", str(backup), "--data", str(data), "--passphrase-file", str(phrase))
    assert code == 0, text
    revision = int(text.partition("revisions begin at ")[2].partition(",")[0])

    # The old hub's clients reach the new one with what they have.
    again = Hub(data.parent, hub.port)
    assert await again.start()
    try:
        _, listed = await call(endpoint, "GET", PATH)
        at = read_manifest(backup)["revision"]
        assert at < max(record.written) < revision
        states: dict[str, str] = {}
        for event in watching.events:
            if event.revision <= at:
                states.pop(event.name, None)
                if event.type != "DELETED":
                    states[event.name] = event.value
        items = listed["items"]
        assert isinstance(items, list)
        found = {item["metadata"]["name"]: item["data"]["value"] for item in items if "value" in item.get("data", {})}
        assert found == states and len(found) > 3
        shown = (await call(endpoint, "GET", f"{SECRETS}/s"))[1]
        assert shown["data"] == {"word": "b3BlbnNlc2FtZQ=="}
        # Who saw more than the backup holds, and who saw less, lists again; nobody is told of another history.
        for version in (at - 1, at, watching.version):
            connection = Connection(endpoint)
            lines = [json.loads(line) async for line in connection.lines(f"{PATH}?watch=1&resourceVersion={version}")]
            assert [(line["type"], line["object"].get("code")) for line in lines] == [("ERROR", 410)]
        client = Client(endpoint, "after", record, Random(9))
        await client.one("new", Verb.CREATE)
        client.close()
        assert max(record.written) > revision
    finally:
        again.stop()


@pytest.mark.slow
def test_sites_go_on_with_a_restored_hub(tmp_path: Path) -> None:
    """An agent whose hub was restored keeps its pods running, reports them, and takes new orders."""
    continuum = Continuum(tmp_path / "continuum", isolated=True)
    continuum.directory.mkdir()
    phrase, backup = tmp_path / "phrase", tmp_path / "backup"
    phrase.write_text("correct horse battery staple\n")
    try:
        continuum.start_hub()
        continuum.add_sites("edge-paris")
        continuum.kubectl("create", "deployment", "stay", "--image=python:3", "--", "sleep", "3600")
        continuum.kubectl("wait", "--for=condition=Available", "deployment/stay", "--timeout=30s")
        (before,) = continuum.get("pods")["items"]
        continuum.nemo("backup", str(backup), "--passphrase-file", str(phrase))
        # What is done afterwards is lost with the hub.
        continuum.kubectl("create", "configmap", "after")
        assert continuum.hub is not None
        continuum.hub.kill()
        continuum.hub.wait()
        continuum.data.rename(tmp_path / "lost")
        options = ("--data", str(continuum.data), "--passphrase-file", str(phrase))
        code, text = asyncio.run(nemo("restore", str(backup), *options))
        assert code == 0, text
        continuum.start_hub()
        continuum.kubectl("wait", "--for=condition=Ready", "clusters", "--all", "--timeout=30s")
        assert continuum.get("configmap", "after") is None
        continuum.kubectl("scale", "deployment/stay", "--replicas=2")
        wait_for("two pods", lambda: (continuum.get("deployment", "stay")["status"].get("availableReplicas") or 0) == 2, 30)
        pods = {pod["metadata"]["name"]: pod for pod in continuum.get("pods")["items"]}
        same = pods[before["metadata"]["name"]]
        assert same["metadata"]["uid"] == before["metadata"]["uid"], "the pod was started again"
        assert same["status"]["containerStatuses"][0]["restartCount"] == 0
    finally:
        continuum.stop()
