"""The hubs of one store, as an agent knows them: those that it was started with, and those that a hub names over the tunnel.

One is in use; where it cannot be reached the next one is. They are kept in ``DATA/hubs.json``, so that an agent whose first hub
is gone for good finds the others after a restart too. Bound: ``MOST`` URLs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from metaos.files import write_private

log = logging.getLogger(__name__)

MOST, LONGEST = 16, 200


class Hubs:
    """``first`` and ``more``: the URLs that the agent was started with; they always stay among them. ``file``: where the others
    are kept."""

    def __init__(self, first: str, file: Path | None = None, more: Iterable[str] = ()) -> None:
        self._given, self._file = [url.rstrip("/") for url in (first, *more)], file
        self._others: list[str] = []
        self.url = self._given[0]
        self._listeners: list[Callable[[], None]] = []
        if file is not None and file.exists():
            try:
                self._others = self._usable(json.loads(file.read_text()))
            except ValueError:
                log.warning("%s is damaged: the other hubs are learned anew", file)

    @property
    def urls(self) -> list[str]:
        return list(dict.fromkeys([*self._given, *self._others]))

    def on_move(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when another hub is in use."""
        self._listeners.append(listener)

    def learn(self, urls: object) -> None:
        """What a hub says which hubs there are."""
        found = self._usable(urls)
        if found and found != self._others:
            self._others = found
            if self._file is not None:
                write_private(self._file, json.dumps(found))

    def failed(self, url: str) -> None:
        """One could not be reached: the next one is in use, unless that has happened already."""
        known = self.urls
        if url != self.url or len(known) < 2:
            return
        place = known.index(url) if url in known else -1
        self.url = known[(place + 1) % len(known)]
        log.info("the hub %s cannot be reached: %s is asked", url, self.url)
        for listener in self._listeners:
            listener()

    @staticmethod
    def _usable(urls: object) -> list[str]:
        given: Iterable[object] = urls if isinstance(urls, list) else ()
        texts = [url.rstrip("/") for url in given if isinstance(url, str) and len(url) <= LONGEST]
        return [url for url in texts if urlsplit(url).scheme == "https" and urlsplit(url).hostname][:MOST]
