"""Containers of the runtime class wasm: what the sandbox starts instead of a program of the image.

The sandbox is that of any container (namespaces, cgroups, seccomp, no capability); in it runs ``wasmworker.py`` with nothing to
see but Python, wasmtime and the compiled module. The agent itself never loads wasmtime.
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

from metaos.plugins.points import ContainerConfig
from metaos.runtimes import process, wasmworker
from metaos.runtimes.images import Image, python_program, system_paths
from metaos.runtimes.isolation import Mount

CLASS = "wasm"
#: What ended containers show, by exit code, where the worker says so.
REASONS = {wasmworker.TRAPPED: "Trapped", wasmworker.LATE: "DeadlineExceeded", wasmworker.OUT_OF_FUEL: "FuelExhausted"}
SAID = "nemo: wasm: "
#: So many compiled files are kept, those that were started last.
MAX_COMPILED = 64
_WORKER = os.path.join(os.path.dirname(os.path.realpath(__file__)), "wasmworker.py")
_HEADER = 8
#: In the sandbox: what the worker is made of.
_PLACE = "/run/nemo-wasm"


def problem() -> str:
    """Why there is none here, with the remedy; empty where there is."""
    if _library() is None:
        return "wasmtime is not installed: 'pip install nemo-metaos[wasm]'"
    return ""


def _library() -> str | None:
    found = importlib.util.find_spec("wasmtime")
    place = next(iter(found.submodule_search_locations or ()), None) if found else None
    return None if place is None else os.path.realpath(place)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the sandbox shows and starts instead of the image and its command."""

    image: Image
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    mounts: tuple[Mount, ...]


class Wasm:
    """``compiled``: a directory that no container can write to, for machine code by the digest of what it was made of."""

    def __init__(self, compiled: str) -> None:
        self._compiled = compiled
        self._compiling: dict[str, asyncio.Lock] = {}

    async def prepare(
        self,
        image: Image,
        container: ContainerConfig,
        env: Sequence[tuple[str, str]],
        mounts: Sequence[Mount],
        opened: contextlib.ExitStack,
    ) -> Prepared:
        """Raises ``ValueError`` (it can never start)."""
        if why := problem():
            raise ValueError(f"runtimeClassName wasm: {why}")
        library = _library()
        assert library is not None
        argv = image.argv(container.command, container.args)
        source = _inside(image, argv)
        made = await self._machine_code(source, metered=bool(container.fuel))
        asked = {
            "library": _PLACE,
            "module": f"{_PLACE}/module",
            "component": _is_component(source),
            "argv": argv,
            "env": [list(each) for each in env],
            "directories": [[mount.target, not mount.read_only] for mount in mounts],
            "fuel": container.fuel,
            "seconds": container.seconds,
            "memory": container.memory_limit,
        }
        shown = [(library, "wasmtime"), (_WORKER, "worker.py"), (made, "module")]
        return Prepared(
            Image(names=image.names, paths=system_paths()),
            (python_program(), "-I", "-S", "-E", f"{_PLACE}/worker.py"),
            # The guest's environment is not the worker's: what the loader or Python read there would be a way out of the guest.
            (("NEMO_WASM", json.dumps(asked)),),
            (*mounts, *(_shown(opened, source, name) for source, name in shown)),
        )

    async def _machine_code(self, source: str, *, metered: bool) -> str:
        """Compiled once for a file's content, this version of wasmtime and this machine."""
        digest = await asyncio.to_thread(_digest, source)
        kind = "metered" if metered else "plain"
        target = os.path.join(self._compiled, f"{digest}-{_version()}-{kind}.cwasm")
        async with self._compiling.setdefault(target, asyncio.Lock()):
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
        self._compiling.pop(target, None)
        return target

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


def _shown(opened: contextlib.ExitStack, source: str, name: str) -> Mount:
    fd = os.open(source, os.O_PATH | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    return Mount(fd, source, f"{_PLACE}/{name}", True)


def _is_component(path: str) -> bool:
    """By the layer that its first bytes name."""
    with open(path, "rb") as file:
        return file.read(_HEADER)[4:6] == b"\x0d\0"


def _digest(path: str) -> str:
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
