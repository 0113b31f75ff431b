"""The images of one pod's containers: fetched while the pod waits for them, and tried again with back-off where that fails."""

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from metaos.agent.containers import ConfigError, Find, data_of
from metaos.agent.podrecord import PodRecord
from metaos.agent.podstatus import Live, Waiting
from metaos.plugins.points import ImageError, Pull
from metaos.resources.meta import Obj, namespace
from metaos.runtimes.credentials import of_secret

if TYPE_CHECKING:
    from metaos.agent.supervisor import Supervisor

#: Of one pod's Secrets, so many credentials count.
MAX_CREDENTIALS = 100
NEVER = float("inf")
_BACK_OFF = {"ErrImagePull": "ImagePullBackOff"}


def pull_of(pod: Obj, container: Mapping[str, Any], find: Find) -> tuple[Pull, list[str]]:
    """How a container's image is had, and what is wrong with the pod's ``imagePullSecrets``, in words: as a kubelet, we go on
    with what there is."""
    image = str(container["image"])
    latest = ":" not in image.rpartition("/")[2] or image.endswith(":latest")
    policy = str(container.get("imagePullPolicy") or ("Always" if latest else "IfNotPresent"))
    found: list[tuple[str, str, str]] = []
    problems = []
    for reference in pod["spec"].get("imagePullSecrets") or ():
        try:
            entries = data_of("Secret", {"name": reference.get("name")}, namespace(pod), find) or {}
            found += of_secret(str(reference.get("name")), entries)
        except (ConfigError, ValueError) as error:
            problems.append(str(error))
    return Pull(policy, tuple(found[:MAX_CREDENTIALS])), problems


class PodImages:
    """``delay``: the seconds to wait after so many failures; ``event(type, reason, message)``."""

    def __init__(
        self,
        supervisor: "Supervisor",
        record: PodRecord,
        wake: Callable[[], None],
        event: Callable[[str, str, str], None],
        delay: Callable[[int], float],
    ) -> None:
        self._supervisor, self._record = supervisor, record
        self._wake, self._event, self._delay = wake, event, delay
        #: Container → (image, its fetching).
        self._fetching: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._next: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._told: set[str] = set()

    async def ready(self, container: Mapping[str, Any], live: Live) -> float | None:
        """``None``: the container may start now. Otherwise seconds until the next look; the pod is woken when it is there."""
        key, image = str(container["name"]), str(container["image"])
        if (left := self._next.get(key, 0.0) - self._supervisor.clock.monotonic()) > 0:
            return left
        runtime = self._supervisor.runtime
        pull, problems = pull_of(self._record.pod, container, self._supervisor.find)
        wanted, task = self._fetching.get(key, ("", None))
        try:
            if task is not None and wanted == image:
                if not task.done():
                    return NEVER
                self._fetching.pop(key)
                task.result()
                self._event("Normal", "Pulled", f'Successfully pulled image "{image}"')
                return None
            if task is not None:
                task.cancel()
            if await runtime.image_ready(image, pull):
                return None
        except ImageError as error:
            return self.failed(container, live, error)
        for problem in problems:
            if problem not in self._told:
                self._told.add(problem)
                text = f"Unable to retrieve some image pull secrets, so the image may not be had: {problem}"
                self._event("Warning", "FailedToRetrieveImagePullSecret", text)
        self._event("Normal", "Pulling", f'Pulling image "{image}"')
        if live.waiting is None or live.waiting.reason not in ("ErrImagePull", *_BACK_OFF.values()):
            live.waiting = Waiting("ContainerCreating", "")
        task = asyncio.create_task(runtime.fetch_image(image, pull))
        task.add_done_callback(self._done)
        self._fetching[key] = image, task
        return NEVER

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # it is looked at when the container is next; where there is no next time, it is of no interest
            self._wake()

    def started(self, key: str) -> None:
        self._failures.pop(key, None)
        self._next.pop(key, None)

    def failed(self, container: Mapping[str, Any], live: Live, error: ImageError) -> float:
        """First the error itself, then its back-off form, as kubectl users know it. Seconds until the next try."""
        key, image = str(container["name"]), str(container["image"])
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        wait = self._delay(failures)
        self._next[key] = self._supervisor.clock.monotonic() + wait
        reason = error.reason if failures == 1 else _BACK_OFF.get(error.reason, error.reason)
        live.waiting = Waiting(reason, error.message if failures == 1 else f'Back-off pulling image "{image}": {error.message}')
        self._event("Warning", "Failed", f'Failed to pull image "{image}": {error.message}')
        return wait

    def cancel(self) -> None:
        """Gives up what is under way: the pod ends."""
        for _, task in self._fetching.values():
            task.cancel()
        self._fetching.clear()
