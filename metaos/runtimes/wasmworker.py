"""Runs one WebAssembly module or component to its end: what a guest's own process does once its sandbox is there.

Not a part of the agent: it is a module of ``wasmzygote.py``, which forks guests, and of ``wasmcompile.py``. The guest has what
WASI is given here and nothing else: arguments, environment, the directories of its volumes, standard streams; no sockets.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

#: Exit codes, as shells count signals: SIGABRT, SIGALRM, SIGXCPU.
TRAPPED, LATE, OUT_OF_FUEL = 134, 142, 152
#: Where ``wasmzygote.py`` shows what was compiled, and the directories by their numbers.
MODULE, VOLUMES = "/module", "/volumes"
#: Of calls inside the guest.
_STACK_BYTES = 1 << 20
_FOREVER = 1 << 62


def load() -> None:
    """Everything that a guest's process needs, which finds no file any more."""
    import wasmtime.component  # noqa: F401


def main(asked: dict[str, Any]) -> int:
    """``asked``: see ``wasm.py``. Its exit code."""
    import wasmtime

    engine = wasmtime.Engine(settings(wasmtime, bool(asked["fuel"])))
    store = wasmtime.Store(engine)
    store.set_wasi(granted(wasmtime, asked))
    if asked["memory"]:
        store.set_limits(memory_size=asked["memory"])
    if asked["fuel"]:
        store.set_fuel(asked["fuel"])
    store.set_epoch_deadline(1 if asked["seconds"] else _FOREVER)
    if asked["seconds"]:
        alarm = threading.Timer(asked["seconds"], engine.increment_epoch)
        alarm.daemon = True
        alarm.start()
    try:
        return (component if asked["component"] else module)(engine, store)
    except wasmtime.ExitTrap as error:
        return int(error.code)
    except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
        return _failed(str(error), asked)


def _failed(text: str, asked: dict[str, Any]) -> int:
    """By what wasmtime says: of components, traps come as errors without a code."""
    if "wasm trap: all fuel consumed" in text:
        return _ended(OUT_OF_FUEL, f"it has used its fuel of {asked['fuel']}")
    if "wasm trap: interrupt" in text:
        return _ended(LATE, f"it has run for {asked['seconds']:g} s, which is its limit")
    _, trapped, why = text.partition("wasm trap: ")
    return _ended(TRAPPED, f"trap: {why}") if trapped else _ended(127, text)


def settings(wasmtime: Any, fuel: bool) -> Any:
    """The same for compiling and for running, or what was compiled is not taken."""
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.consume_fuel = fuel
    config.max_wasm_stack = _STACK_BYTES
    config.parallel_compilation = False
    return config


def granted(wasmtime: Any, asked: dict[str, Any]) -> Any:
    wasi = wasmtime.WasiConfig()
    wasi.argv = asked["argv"]
    wasi.env = asked["env"]
    for at, (path, writable) in enumerate(asked["directories"]):
        wasi.preopen_dir(f"{VOLUMES}/{at}", path, writable)
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    return wasi


def module(engine: Any, store: Any) -> int:
    import wasmtime

    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    instance = linker.instantiate(store, wasmtime.Module.deserialize_file(engine, MODULE))
    start = instance.exports(store).get("_start")
    if not isinstance(start, wasmtime.Func):
        return _ended(127, "the module has no function _start: it must be a WASI command")
    start(store)
    return 0


def component(engine: Any, store: Any) -> int:
    from wasmtime import component as model

    linker = model.Linker(engine)
    linker.add_wasip2()
    found = model.Component.deserialize_file(engine, MODULE)
    instance = linker.instantiate(store, found)
    name = next((each for each in found.type.exports(engine) if each.startswith("wasi:cli/run@0.2")), None)
    outer = name and instance.get_export_index(store, name)
    inner = outer and instance.get_export_index(store, "run", outer)
    run = inner and instance.get_func(store, inner)
    if not run:
        return _ended(127, "the component does not export wasi:cli/run@0.2: it must be a WASI command")
    result = run(store)
    return 1 if isinstance(result, model.Variant) and result.tag == "err" else 0


def _ended(code: int, why: str) -> int:
    sys.stdout.flush()
    os.write(2, f"nemo: wasm: {' '.join(why.split())[:500]}\n".encode())
    return code
