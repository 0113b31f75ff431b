"""Compiles a WebAssembly file once, in a process of its own: ``python -m metaos.runtimes.wasmcompile IN OUT METERED``.

What it writes is machine code that is run without being looked at again, so it lies where only the agent writes.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys

from metaos.runtimes.archive import MAX_WASM
from metaos.runtimes.wasmworker import settings

#: Bounds of one compilation: a hostile module can make the compiler work, and it is the only one that suffers.
SECONDS, BYTES = 120, 4 << 30
_MODULE, _COMPONENT = b"\0asm\x01\0\0\0", b"\0asm\x0d\0\x01\0"


def main(source: str, target: str, metered: str) -> int:
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    import wasmtime
    from wasmtime import component

    with open(source, "rb") as file:
        data = file.read(MAX_WASM + 1)
    if len(data) > MAX_WASM:
        print(f"it has more than {MAX_WASM >> 20} MiB", file=sys.stderr)
        return 1
    if data[:8] not in (_MODULE, _COMPONENT):
        print("it is neither a WebAssembly module nor a component", file=sys.stderr)
        return 1
    engine = wasmtime.Engine(settings(wasmtime, metered == "metered"))
    try:
        made = (wasmtime.Module if data[:8] == _MODULE else component.Component)(engine, data).serialize()
    except wasmtime.WasmtimeError as error:
        print(" ".join(str(error).split())[:500], file=sys.stderr)
        return 1
    new = f"{target}.{os.getpid()}"
    try:
        with open(new, "wb") as out:
            out.write(made)
            out.flush()
            os.fsync(out.fileno())
        os.rename(new, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
