"""Images that are wanted, from their registries: each is fetched once, however many pods wait for it, by a process of its own
(``pulling.py``)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from metaos.plugins.points import ImageError, Pull
from metaos.runtimes import children, credentials
from metaos.runtimes.images import normalise, split

#: So many are fetched at once; further ones wait their turn.
AT_ONCE = 2


def registry_of(image: str) -> str:
    """The host (and port) that an image comes from. Raises ``ImageError``."""
    return split(normalise(image))[0]


class Pulls:
    """``images``: the image store's directory. ``registries`` and ``policy``: a site file's, the latter its ``imagePolicy``."""

    def __init__(self, images: str, registries: Sequence[Mapping[str, Any]], policy: Sequence[Mapping[str, Any]]) -> None:
        self._images, self._policy = images, [dict(each) for each in policy]
        self._registries = {str(each.get("host")): dict(each) for each in registries}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._running: dict[tuple[Any, ...], tuple[asyncio.Task[dict[str, Any]], list[int]]] = {}

    async def fetch(self, image: str, pull: Pull) -> None:
        """Into the image store. Raises ``ImageError``."""
        await self._shared(image, pull, os.path.join(os.path.dirname(self._images), "pulls"))

    async def archive(self, image: str, pull: Pull) -> dict[str, Any]:
        """As a file with its OCI layout, which is the caller's: ``{"archive", "digest", "keys"}``. Raises ``ImageError``."""
        return await self._shared(image, pull, os.path.join(os.path.dirname(self._images), "pulls"), "")

    async def resolve(self, image: str, pull: Pull) -> str:
        """The digest that the name has now, with the policy's signature where it asks for one. Raises ``ImageError``."""
        return str((await self._shared(image, pull, ""))["digest"])

    async def file(self, image: str, name: str, most: int, known: Sequence[tuple[str, str, str]]) -> bytes:
        """The file called ``name`` of an OCI artifact, or its only one, of at most ``most`` bytes. Raises ``ImageError``."""
        full = normalise(image)
        found = await self._run(full, credentials.for_image(full, known), "", "", {"name": name, "most": most})
        return base64.b64decode(found["data"])

    async def _shared(self, image: str, pull: Pull, pulls: str, directory: str | None = None) -> dict[str, Any]:
        full = normalise(image)
        known = credentials.for_image(full, pull.credentials)
        directory = self._images if directory is None else directory
        key = (full, pulls, directory, tuple(known))
        if key not in self._running:
            self._running[key] = asyncio.create_task(self._run(full, known, pulls, directory)), [0]
        task, waiting = self._running[key]
        waiting[0] += 1
        try:
            return await asyncio.shield(task)
        finally:
            waiting[0] -= 1
            if not waiting[0]:
                self._running.pop(key, None)
                task.cancel()  # nobody waits for it any more; one that has ended takes no notice

    async def _run(
        self,
        image: str,
        known: Sequence[tuple[str, str]],
        pulls: str,
        directory: str,
        file: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        registry = split(image)[0]
        asked = {
            "image": image,
            "credentials": [list(each) for each in known],
            "registry": self._registries.get(registry, {}),
            "policy": self._policy,
            "directory": directory,
            "pulls": pulls,
            "file": file,
        }
        most = children.MAX_ANSWER + (2 * int(file["most"]) if file else 0)
        async with self._turns:
            said = await children.ask("metaos.runtimes.pulling", json.dumps(asked).encode(), most)
        if isinstance(said, children.Ended):
            text = f"the process that fetches images ended with {said.code}, before its end: it is tried again"
            raise ImageError("ErrImagePull", text)
        if "reason" in said:
            raise ImageError(str(said["reason"]), str(said["message"]))
        return said
