"""Code of devices' applications from OCI artifacts: fetched by the hub, by digest, within bounds, and tried again.

What is fetched is one layer of an artifact. A registry may take its time, so nobody waits for it: who asks for code that is not
here yet is told so, and hears when it has come. Each namespace has one turn at a time, so that none holds up the others.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metaos.client import Client
from metaos.clock import Clock
from metaos.plugins.points import ImageError
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.runtimes.credentials import of_secret

log = logging.getLogger("nemo.fleet")

#: So many are fetched at once; of each, all of it, and what waits to be taken; in seconds: the first and the longest wait after
#: a failure.
AT_ONCE, FETCH_SECONDS, MOST_HELD = 4, 60.0, 64
AGAIN_SECONDS = (10.0, 300.0)
#: Secrets of one application.
MOST_SECRETS = 8

#: (image, name of the file in it, (server, user, password) that may be tried) to code. Raises ``ImageError``.
Fetch = Callable[[str, str, Sequence[tuple[str, str, str]]], Awaitable[bytes]]


class Place(NamedTuple):
    namespace: str
    image: str
    name: str
    secrets: tuple[str, ...]


class Images:
    """``fetch``: ``None`` where the hub's operator wants none fetched. Whoever uses it sets ``used`` (whether a namespace's
    devices want an image still) and ``came`` (there is news of one)."""

    def __init__(self, client: Client, clock: Clock, fetch: Fetch | None) -> None:
        self._client, self._clock, self._fetch = client, clock, fetch
        self.used: Callable[[str, str], bool] = lambda *_: True
        self.came: Callable[[str, str], Awaitable[None]] | None = None
        self._held: OrderedDict[Place, bytes] = OrderedDict()
        self._tasks: dict[Place, asyncio.Task[None]] = {}
        self._problems: dict[Place, str] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._own: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def take(self, place: Place) -> bytes:
        """Its code, once. Raises ``ValueError`` saying why it is not here; then it is on its way."""
        if self._fetch is None:
            raise ValueError(
                f"image {place.image} is not fetched: start the hub with --device-images FILE, or put the code into a ConfigMap"
            )
        if place in self._held:
            return self._held.pop(place)
        if place not in self._tasks:
            self._tasks[place] = asyncio.create_task(self._keep_trying(place, self._fetch), name=f"image {place.image}")
        raise ValueError(self._problems.get(place) or f"image {place.image} is being fetched")

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        self._problems.clear()
        self._held.clear()

    async def _keep_trying(self, place: Place, fetch: Fetch) -> None:
        wait, most = AGAIN_SECONDS
        try:
            while self.used(place.namespace, place.image):
                said = await self._try(place, fetch)
                news, self._problems[place] = said != self._problems.get(place), said
                if news:
                    await self._tell(place)
                if not said:
                    return
                await self._clock.sleep(wait)
                wait = min(2 * wait, most)
        finally:
            self._tasks.pop(place, None)
            self._problems.pop(place, None)

    async def _try(self, place: Place, fetch: Fetch) -> str:
        """What went wrong; empty: it is here."""
        try:
            async with self._own[place.namespace], self._turns, asyncio.timeout(FETCH_SECONDS):
                code = await fetch(place.image, place.name, await self._credentials(place))
        except (ImageError, ApiError) as error:
            return error.message
        except TimeoutError:
            return f"image {place.image} did not come within {FETCH_SECONDS:g} s"
        except (OSError, ValueError) as error:
            return f"image {place.image}: {error}"
        self._held[place] = code
        if len(self._held) > MOST_HELD:
            self._held.popitem(last=False)
        return ""

    async def _tell(self, place: Place) -> None:
        if self.came is not None:
            await self.came(place.namespace, place.image)

    async def _credentials(self, place: Place) -> list[tuple[str, str, str]]:
        """Raises ``ApiError``, ``ValueError``."""
        found: list[tuple[str, str, str]] = []
        for named in place.secrets:
            secret = await self._client.get(scheme.SECRET, named, place.namespace)
            entries: Mapping[str, Any] = secret.get("data") or {}
            found += of_secret(named, {key: base64.b64decode(value) for key, value in entries.items()})
        return found


def fetching_by(file: Path, most: int) -> Fetch:
    """As a file says which registries there are and which images are taken: ``registries`` and ``imagePolicy`` of a site file;
    no other registry is asked. ``most``: bytes of code. Raises ``ValueError`` naming file, field and remedy."""
    import yaml

    from metaos.runtimes.pulls import Pulls, registry_of
    from metaos.runtimes.signatures import rules

    try:
        said = yaml.safe_load(file.read_text()) or {}
    except OSError as error:
        raise ValueError(f"--device-images {file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--device-images {file} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(said, dict) or set(said) - {"registries", "imagePolicy"}:
        raise ValueError(f"--device-images {file}: must be a mapping with registries, imagePolicy or both, as in a site file")
    registries, policy = (said.get(key) or [] for key in ("registries", "imagePolicy"))
    for field, entries, needed in (("registries", registries, "host"), ("imagePolicy", policy, "images")):
        if not isinstance(entries, list) or not all(isinstance(e, dict) and isinstance(e.get(needed), str) for e in entries):
            raise ValueError(f"--device-images {file}: {field}: must be a list of mappings that have {needed} each")
    try:
        rules(policy)
    except ValueError as error:
        raise ValueError(f"--device-images {file}: {str(error).removeprefix('spec.')}") from None
    pulls, hosts = Pulls("", registries, policy), sorted({each["host"] for each in registries})

    async def fetch(image: str, name: str, known: Sequence[tuple[str, str, str]]) -> bytes:
        # Whoever may write a Device would have the hub ask any host, and read in part what answers.
        if (host := registry_of(image)) not in hosts:
            taken = f"this hub takes devices' images from {', '.join(hosts) or 'nowhere'}: its operator adds to registries"
            raise ImageError("RegistryNotAllowed", f"image {image}: its registry is {host}; {taken} in --device-images")
        return await pulls.file(image, name, most, known)

    return fetch
