"""Requests to the application's stable URL, one every few milliseconds, and what became of each."""

from __future__ import annotations

import base64
import http.client
import ssl
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import yaml


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it began (monotonic seconds), how long it took, and its HTTP status (0: no answer)."""

    start: float
    seconds: float
    status: int
    body: bytes


class StableUrl:
    """The hub's service proxy, called with the administrator's certificate."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._host, _, port = cluster["server"].removeprefix("https://").rpartition(":")
        self._port = int(port)
        self._context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        with tempfile.NamedTemporaryFile() as pair:
            pair.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
            pair.flush()
            self._context.load_cert_chain(pair.name)
        self._local = threading.local()

    def call(self, path: str, *, method: str = "GET", body: bytes | None = None, timeout: float = 10.0) -> Answer:
        """One request over a kept connection (a fresh one after a failure)."""
        start = time.monotonic()
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = http.client.HTTPSConnection(self._host, self._port, context=self._context, timeout=timeout)
            self._local.connection = connection
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            content = answer.read()
            return Answer(start, time.monotonic() - start, answer.status, content)
        except (OSError, http.client.HTTPException):
            self.close()
            return Answer(start, time.monotonic() - start, 0, b"")

    def close(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None


class Load:
    """A thread that keeps calling one path while the ``with`` block runs."""

    def __init__(self, url: StableUrl, path: str, every_seconds: float = 0.05) -> None:
        self._url, self._path, self._every = url, path, every_seconds
        self.answers: list[Answer] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.answers.append(self._url.call(self._path))
            self._stop.wait(self._every)
        self._url.close()

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(15)

    @property
    def failed(self) -> list[Answer]:
        return [a for a in self.answers if not 200 <= a.status < 300]

    def good_since(self, moment: float) -> bool:
        """Whether requests that began after ``moment`` succeed: the last five did."""
        later = [a for a in self.answers if a.start >= moment][-5:]
        return len(later) == 5 and all(200 <= a.status < 300 for a in later)

    @property
    def outage_seconds(self) -> float:
        """From the first failed request to the end of the last one."""
        failed = self.failed
        return failed[-1].start + failed[-1].seconds - failed[0].start if failed else 0.0
