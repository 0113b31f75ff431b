"""Images of the podman runtime: podman keeps them, we fetch them (``pulling.py``), so that digests, bounds, credentials and the
owner's rules are the same whatever runs at a site. Host images are read-only views of the machine, as in the sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

from metaos.clock import Clock
from metaos.plugins.points import ImageError, Pull
from metaos.runtimes import signatures
from metaos.runtimes.images import DEFAULT_IMAGE, Image, host_image, normalise, split
from metaos.runtimes.libpod import Libpod, PodmanError
from metaos.runtimes.pods import read_json, write_json
from metaos.runtimes.pulls import Pulls

_CHUNK = 1 << 18
#: An image that came or was started so recently is not collected.
IMAGE_SECONDS = 120.0


class PodmanImages:
    def __init__(
        self,
        podman: Libpod,
        directory: str,
        host_images: Sequence[Mapping[str, Any]],
        registries: Sequence[Mapping[str, Any]],
        policy: Sequence[Mapping[str, Any]],
        clock: Clock,
    ) -> None:
        self._podman, self._clock = podman, clock
        entries = list(host_images) or [{"name": DEFAULT_IMAGE, "command": ["python3"]}]
        self._host = {image.names[0]: image for image in map(host_image, entries)}
        self._policy = signatures.rules(policy)
        self._pulls = Pulls(os.path.join(directory, "images"), registries, policy)
        #: Full name → ``{"id", "digest", "keys"}`` of what we have fetched.
        self._path = os.path.join(directory, "fetched.json")
        self._used: dict[str, float] = {}

    def host_default(self) -> Image:
        """What a pod's holder runs from: the machine's own system, whatever else there is."""
        return host_image({"name": DEFAULT_IMAGE, "command": ["sleep"]})

    def _fetched(self) -> dict[str, Any]:
        return dict(read_json(self._path) or {})

    async def _id(self, full: str) -> str | None:
        try:
            return str((await self._podman.call("GET", f"/images/{full}/json"))["Id"])
        except PodmanError as error:
            if error.status == 404:
                return None
            raise ImageError("ErrImagePull", f"podman cannot look at image {full}: {error.message}") from error

    async def find(self, name: str) -> Image | str:
        """A host image, or the id of one that podman has. Raises ``ImageError``."""
        full = normalise(name)
        if full in self._host:
            return self._host[full]
        found = await self._id(full)
        if found is None:
            raise ImageError(
                "ErrImagePull",
                f"image {full} is not on this site, and was not fetched. Bring it with 'podman load', or list it under "
                "hostImages in the site file; at sites of the sandbox runtime 'nemo image import FILE' does that",
            )
        self._permit(full, found)
        self._used[found] = self._clock.monotonic()
        return found

    def _permit(self, full: str, found: str) -> None:
        """Raises ``ImageError`` where the policy forbids what podman has under this name."""
        registry, repository, _ = split(full)
        rule = signatures.rule_for(f"{registry}/{repository}", self._policy)
        if rule is None or rule.action != "Signed":
            return
        known = self._fetched().get(full) or {}
        if known.get("id") != found or not {signatures.key_id(key) for key in rule.keys} & set(known.get("keys") or ()):
            raise ImageError(
                signatures.REFUSED,
                f"image {full} must be signed at this site by its imagePolicy, and what podman has under that name was not "
                "fetched with such a signature: remove it, so that it is fetched, or add a rule with action Accept for it",
            )

    async def ready(self, name: str, policy: str) -> bool:
        full = normalise(name)
        if full in self._host:
            return True
        found = await self._id(full)
        if found is None:
            if policy == "Never":
                raise ImageError("ErrImageNeverPull", f'Container image "{name}" is not present with pull policy of Never')
            return False
        try:
            self._permit(full, found)
        except ImageError:
            if policy == "Never":
                raise
            return False
        # What somebody has loaded by hand is the site's own, and not asked for.
        return policy != "Always" or full not in self._fetched()

    async def fetch(self, name: str, pull: Pull) -> None:
        """Raises ``ImageError``, ``PodmanError``."""
        full = normalise(name)
        known = self._fetched().get(full) or {}
        if known and await self._id(full) == known.get("id") and await self._pulls.resolve(full, pull) == known.get("digest"):
            with contextlib.suppress(ImageError):
                self._permit(full, known["id"])
                return
        said = await self._pulls.archive(full, pull)
        path = str(said["archive"])
        try:
            loaded = await self._podman.call("POST", "/images/load", upload=_pieces(path))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        (one, *_) = loaded["Names"]
        found = str((await self._podman.call("GET", f"/images/{one}/json"))["Id"])
        registry, repository, reference = split(full)
        if not reference.startswith("sha256:"):
            await self._podman.call("POST", f"/images/{found}/tag", repo=f"{registry}/{repository}", tag=reference)
        elif await self._id(full) is None:
            raise ImageError("ErrImagePull", f"podman has loaded {full} under another digest")
        # What had the name before is without one now; it is ours to remove still.
        old = {known["id"]: {"id": known["id"]}} if known and known["id"] != found else {}
        write_json(self._path, self._fetched() | old | {full: {"id": found, "digest": said["digest"], "keys": said["keys"]}})
        self._used[found] = self._clock.monotonic()

    async def user(self, image: Image | str) -> bool:
        """Whether the image itself names a user other than root."""
        if isinstance(image, Image):
            return bool(image.user)
        found = str((await self._podman.call("GET", f"/images/{image}/json")).get("User") or "")
        return found.partition(":")[0] not in ("", "0", "root")

    async def all(self) -> list[dict[str, Any]]:
        host = [{"names": list(each.names), "sizeBytes": 0, "host": True} for each in self._host.values()]
        rows = await self._podman.call("GET", "/images/json")
        found = [
            {"names": list(row.get("Names") or ()), "sizeBytes": int(row.get("Size") or 0), "host": False} for row in rows or ()
        ]
        return [*host, *(row for row in found if row["names"])]

    async def collect(self, keep: Collection[str], wanted: int) -> list[str]:
        """Of what we have fetched alone: what others brought to this podman, or gave a name of their own, is theirs."""
        fetched = self._fetched()
        ids = {str(row["id"]) for row in fetched.values()}
        kept = set()
        for name in keep:
            with contextlib.suppress(ImageError):
                kept.add(normalise(name))
        removed: list[str] = []
        rows = await self._podman.call("GET", "/images/json") or ()
        for row in sorted(rows, key=lambda each: (self._used.get(each["Id"], float("-inf")), each.get("Created") or 0)):
            names = list(row.get("Names") or ())
            recent = self._clock.monotonic() - self._used.get(row["Id"], float("-inf")) < IMAGE_SECONDS
            if wanted <= 0:
                break
            if recent or row.get("Containers") or kept & set(names) or row["Id"] not in ids or not fetched.keys() >= set(names):
                continue
            with contextlib.suppress(PodmanError):  # somebody else's container uses it
                await self._podman.call("DELETE", f"/images/{row['Id']}")
                wanted -= int(row.get("Size") or 0)
                removed += names
                fetched = {name: value for name, value in fetched.items() if value["id"] != row["Id"]}
                write_json(self._path, fetched)
        return removed


async def _pieces(path: str) -> AsyncIterator[bytes]:
    with open(path, "rb") as file:  # noqa: ASYNC230  (read in a thread)
        while piece := await asyncio.to_thread(file.read, _CHUNK):
            yield piece
