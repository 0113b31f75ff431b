"""An agent that a hub runs ends where that hub stands still, and not before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

import pytest

from metaos.members.lifeline import watch
from metaos.security.identity import JoinToken


def test_silence_and_an_end_are_noticed_and_a_beat_is_not() -> None:
    reading, writing = os.pipe()
    ended = threading.Event()

    def keep() -> None:
        watch(reading, 0.1)
        ended.set()

    threading.Thread(target=keep, daemon=True).start()
    for _ in range(4):
        os.write(writing, b".")
        assert not ended.wait(0.05)
    assert ended.wait(5), "nothing came any more"
    os.close(writing)
    watch(reading, 60.0)
    os.close(reading)


HUB = """
import subprocess, sys, time
agent = subprocess.Popen([sys.executable, "-m", "metaos.members.lifeline", "1.0", *sys.argv[1:]], stdin=subprocess.PIPE)
print(agent.pid, flush=True)
while True:
    agent.stdin.write(b".")
    agent.stdin.flush()
    time.sleep(0.1)
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return gone(pid)


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_it_ends_with_a_hub_that_is_stopped_or_killed(tmp_path: Path, how: signal.Signals) -> None:
    config, site, token = tmp_path / "config", tmp_path / "site.yaml", tmp_path / "token"
    named = {"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}
    contexts = [{"name": "c", "context": {"cluster": "c"}}]
    made = {"apiVersion": "v1", "kind": "Config", "clusters": [named], "contexts": contexts, "current-context": "c"}
    config.write_text(json.dumps(made))
    site.write_text("{apiVersion: meta-os.eu/v1alpha1, kind: Cluster, metadata: {name: kube}, spec: {}}")
    token.write_text(str(JoinToken.create(Random(1), "ab" * 32)))
    arguments = ["--runtime", "kubernetes", "--kubeconfig", str(config), "--hub", "https://127.0.0.1:9", "--site", str(site)]
    arguments += ["--token-file", str(token), "--data", str(tmp_path / "agent")]
    with (tmp_path / "log").open("w") as log:
        hub = subprocess.Popen([sys.executable, "-c", HUB, *arguments], stdout=subprocess.PIPE, stderr=log, text=True)
    assert hub.stdout is not None
    pid = int(hub.stdout.readline())
    try:
        assert not wait(pid, 3.0), (tmp_path / "log").read_text()
        os.kill(hub.pid, how)
        assert wait(pid, 10.0)
    finally:
        os.kill(hub.pid, signal.SIGKILL)
        hub.wait()
        hub.stdout.close()
