"""Commands in podman's containers, and attaching to their own: streams over hijacked connections."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence

from metaos.runtimes.libpod import Connection, Frames, Libpod, PodmanError

#: Of a command that is asked for its end: podman says how it ended when its streams have.
_KILLED = 137


class Talk:
    """Implements ``Exec``: to a running container's own streams."""

    def __init__(self, podman: Libpod, name: str, connection: Connection, tty: bool) -> None:
        self._podman, self._name, self._connection, self._tty = podman, name, connection, tty

    @classmethod
    async def open(cls, podman: Libpod, name: str, *, tty: bool, stdin: bool) -> Talk:
        """Raises ``LookupError`` where the container does not run."""
        try:
            connection = await podman.hijack(
                f"/containers/{name}/attach", stream=True, stdin=stdin, stdout=True, stderr=True, logs=False
            )
        except PodmanError as error:
            raise LookupError(f"podman cannot attach to {name}: {error.message}") from error
        return cls(podman, name, connection, tty)

    async def write(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            await self._connection.write(data)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        frames = Frames()
        with contextlib.suppress(ConnectionError):
            while data := await self._connection.read():
                for channel, piece in [(1, data)] if self._tty else frames.feed(data):
                    yield channel, piece

    async def resize(self, columns: int, rows: int) -> None:
        with contextlib.suppress(PodmanError):
            await self._podman.call("POST", f"/containers/{self._name}/resize", h=rows, w=columns)

    async def wait(self) -> int:
        """The container's exit code."""
        try:
            return int(await self._podman.call("POST", f"/containers/{self._name}/wait", condition="stopped"))
        except PodmanError:
            return _KILLED

    async def kill(self) -> None:
        """Leaves; the container goes on."""
        await self._connection.close()


class Session(Talk):
    """A further command in a running container."""

    _id = ""
    _killed = False

    @classmethod
    async def start(cls, podman: Libpod, name: str, command: Sequence[str], *, stdin: bool, tty: bool) -> Session:
        """Raises ``LookupError`` where the container does not run."""
        asked = {"AttachStdin": stdin, "AttachStdout": True, "AttachStderr": True, "Tty": tty, "Cmd": list(command)}
        asked["Env"] = ["TAR_OPTIONS=--no-same-owner", *(["TERM=xterm"] if tty else [])]
        try:
            made = (await podman.call("POST", f"/containers/{name}/exec", asked))["Id"]
            connection = await podman.hijack(f"/exec/{made}/start", {"Detach": False, "Tty": tty})
        except PodmanError as error:
            raise LookupError(f"podman cannot execute anything in {name}: {error.message}") from error
        found = cls(podman, name, connection, tty)
        found._id = made
        return found

    async def resize(self, columns: int, rows: int) -> None:
        with contextlib.suppress(PodmanError):
            await self._podman.call("POST", f"/exec/{self._id}/resize", h=rows, w=columns)

    async def wait(self) -> int:
        async for _ in self.output():
            pass
        await self._connection.close()
        if self._killed:
            return _KILLED
        try:
            found = await self._podman.call("GET", f"/exec/{self._id}/json")
        except PodmanError:
            return _KILLED  # it ended with its container
        return _KILLED if found.get("Running") else int(found.get("ExitCode") or 0)

    async def kill(self) -> None:
        self._killed = True
        with contextlib.suppress(PodmanError, ProcessLookupError, TypeError):
            found = await self._podman.call("GET", f"/exec/{self._id}/json")
            if found.get("Running") and found.get("Pid"):
                os.kill(int(found["Pid"]), signal.SIGKILL)
        await self._connection.close()
