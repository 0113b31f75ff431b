"""Containers of the runtime class wasm: what the sandbox starts instead of a program of the image.

The sandbox is as any container's (namespaces, cgroups, seccomp, no capability), with nothing to see in it but the compiled
module and its volumes; ``wasmzygote.py`` makes it. The agent itself never loads wasmtime.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from metaos.plugins.points import ContainerConfig
from metaos.runtimes import process, records, wasmworker
from metaos.runtimes.forks import Forks, Undone
from metaos.runtimes.images import Image
from metaos.runtimes.isolation import Mount
from metaos.runtimes.process import Identity
from metaos.runtimes.spares import Spares, Tenant

CLASS = "wasm"
#: What ended containers show, by exit code, where the worker says so.
REASONS = {wasmworker.TRAPPED: "Trapped", wasmworker.LATE: "DeadlineExceeded", wasmworker.OUT_OF_FUEL: "FuelExhausted"}
SAID = "nemo: wasm: "
#: So many compiled files are kept, those that were started last.
MAX_COMPILED = 64
_ZYGOTE = os.path.join(os.path.dirname(os.path.realpath(__file__)), "wasmzygote.py")
_HEADER = 8


def problem() -> str:
    """Why there is none here, with the remedy; empty where there is."""
    if _library() is None:
        return "wasmtime is not installed: 'pip install nemo-metaos[wasm]'"
    return ""


@cache
def _library() -> str | None:
    found = importlib.util.find_spec("wasmtime")
    place = next(iter(found.submodule_search_locations or ()), None) if found else None
    return None if place is None else os.path.realpath(place)


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest of this pod, ready to start. ``module``: an open descriptor of what was compiled, and ``volumes`` of its
    directories; they are passed on, and stay the caller's."""

    tenant: Tenant
    spares: Spares
    asked: dict[str, Any]
    module: int
    volumes: tuple[int, ...]
    #: The user and the group that it has.
    ids: tuple[int, int]

    async def start(
        self,
        directory: str,
        *,
        cgroups: Sequence[str] = (),
        stdin: int | None = None,
        output: int,
        terminal: bool = False,
    ) -> Identity:
        """In a sandbox that waits for it, or is made now. See :class:`~metaos.runtimes.isolation.Startable`."""
        given = "" if stdin is None else "t" if terminal else "1"
        words = [records.path(directory), given, *map(str, self.ids), ":".join(cgroups)]
        asked = process.in_memory(json.dumps(self.asked).encode())
        try:
            fds = [*(() if stdin is None else (stdin,)), output, asked, self.module, *self.volumes]
            spare = await self.spares.take(self.tenant)
            try:
                return await spare.begin(words, fds)
            except Undone:
                spare = await self.spares.take(self.tenant)
                return await spare.begin(words, fds)
        finally:
            os.close(asked)

    def close(self) -> None:
        """Nothing is its own."""


class Wasm:
    """``compiled``: a directory that no container can write to, for machine code by the digest of what it was made of."""

    def __init__(self, compiled: str) -> None:
        self._compiled = compiled
        self._compiling: dict[str, asyncio.Lock] = {}
        #: Of files by what tells that they are the same still: of at most as many as are kept compiled.
        self._digests: dict[tuple[int, ...], str] = {}
        library = _library()
        self._forks = Forks(_ZYGOTE, *(() if library is None else (os.path.dirname(library),)))
        #: Of guests to come.
        self.spares = Spares(self._forks)

    async def close(self) -> None:
        """Guests run on."""
        await self.spares.close()
        self._forks.close()

    async def prepare(
        self,
        tenant: Tenant,
        image: Image,
        container: ContainerConfig,
        env: Sequence[tuple[str, str]],
        mounts: Sequence[Mount],
        opened: contextlib.ExitStack,
        ids: tuple[int, int],
    ) -> Guest:
        """``tenant``: its pod; ``ids``: user and group. Raises ``ValueError`` (it can never start)."""
        if why := problem():
            raise ValueError(f"runtimeClassName wasm: {why}")
        argv = image.argv(container.command, container.args)
        source = _inside(image, argv)
        module = os.open(await self._machine_code(source, metered=bool(container.fuel)), os.O_PATH | os.O_CLOEXEC)
        opened.callback(os.close, module)
        volumes = [mount for mount in mounts if os.path.isdir(f"/proc/self/fd/{mount.fd}")]
        asked = {
            "component": _is_component(source),
            "argv": argv,
            "env": [list(each) for each in env],
            "directories": [[mount.target, not mount.read_only] for mount in volumes],
            "fuel": container.fuel,
            "seconds": container.seconds,
            "memory": container.memory_limit,
        }
        return Guest(tenant, self.spares, asked, module, tuple(mount.fd for mount in volumes), ids)

    async def _machine_code(self, source: str, *, metered: bool) -> str:
        """Compiled once for a file's content, this version of wasmtime and this machine."""
        digest = await self._digest(source)
        kind = "metered" if metered else "plain"
        target = os.path.join(self._compiled, f"{digest}-{_version()}-{kind}.cwasm")
        turn = self._compiling.setdefault(target, asyncio.Lock())
        try:
            return await self._compile(source, target, kind, turn)
        finally:
            if not turn.locked():
                self._compiling.pop(target, None)

    async def _compile(self, source: str, target: str, kind: str, turn: asyncio.Lock) -> str:
        async with turn:
            if os.path.exists(target):
                os.utime(target)
                return target
            os.makedirs(self._compiled, mode=0o755, exist_ok=True)
            self._forget()
            code, said = await _run([sys.executable, "-I", "-m", "metaos.runtimes.wasmcompile", source, target, kind])
            if code != 0:
                raise ValueError(
                    f"the WebAssembly file {os.path.basename(source)} cannot be compiled: {said or f'exit code {code}'}"
                )
        return target

    async def _digest(self, source: str) -> str:
        """Images are written once: what is the same file still, is read once."""
        stat = os.stat(source)
        same = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        found = self._digests.pop(same, "") or await asyncio.to_thread(_digest, source)
        self._digests[same] = found
        if len(self._digests) > MAX_COMPILED:
            del self._digests[next(iter(self._digests))]
        return found

    def _forget(self) -> None:
        """Of what was compiled, the latest are kept."""
        files = [os.path.join(self._compiled, name) for name in os.listdir(self._compiled)]
        for old in sorted(files, key=lambda each: os.stat(each).st_mtime)[:-MAX_COMPILED]:
            os.unlink(old)  # who runs it has it mapped


def _inside(image: Image, argv: Sequence[str]) -> str:
    """The file that the first word names inside the image. Links lead nowhere else."""
    if image.rootfs is None or not argv:
        raise ValueError(
            f"image {image.names[0]} has no WebAssembly module to start: runtimeClassName wasm takes OCI artifacts of type "
            "application/wasm, and images whose entrypoint is a .wasm file"
        )
    name = os.path.normpath(os.path.join("/", image.working_dir, argv[0]))
    path = os.path.realpath(image.rootfs + name)
    if not path.startswith(os.path.realpath(image.rootfs) + os.sep) or not os.path.isfile(path):
        raise ValueError(f"image {image.names[0]} has no file {argv[0]!r}: say in command which WebAssembly file of it to start")
    return path


def _is_component(path: str) -> bool:
    """By the layer that its first bytes name."""
    with open(path, "rb") as file:
        return file.read(_HEADER)[4:6] == b"\x0d\0"


def _digest(path: str) -> str:
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # 1.5 MB, and few sites run such containers

    try:
        return version("wasmtime")
    except PackageNotFoundError:
        return "0"


async def _run(argv: list[str]) -> tuple[int | None, str]:
    """(exit code, what it said last)."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(ours, False)
    try:
        try:
            who = process.spawn(argv, env={"PATH": os.environ.get("PATH", "")}, stderr=theirs)
        finally:
            os.close(theirs)
        ended = asyncio.ensure_future(process.ended(who))
        try:
            said = await process.read_all(ours)
            return await ended, said.decode(errors="replace").strip().rpartition("\n")[2]
        except BaseException:
            who.kill()
            await ended
            raise
    finally:
        os.close(ours)
