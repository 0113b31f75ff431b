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


#: What guests are made with, by whether they are components, and whether their fuel counts: their functions of WASI, which hold
#: nothing of any guest.
_made: dict[tuple[bool, bool], tuple[Any, Any]] = {}
#: By whether it is a component: one that does nothing, compiled.
_nothing: dict[bool, bytes] = {}
#: How often a guest that does nothing is run at the beginning: the interpreter has specialised its code by then (PEP 659).
_ROUNDS = 16
_NOTHING = {"argv": ["nothing"], "env": [["A", "B"]], "directories": [], "seconds": 0, "memory": 1 << 20}
_EMPTY = {
    False: '(module (memory (export "memory") 1) (func (export "_start")))',
    True: """(component (core module $m (func (export "run") (result i32) i32.const 0)) (core instance $i (instantiate $m))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $command (export "run" (func $run))) (export "wasi:cli/run@0.2.0" (instance $command)))""",
}


def load() -> None:
    """Everything that a guest's process needs, which finds no file any more: loaded, made and used, so that as little as can be
    is left to do after a fork, where each page that is written to has to be copied."""
    import wasmtime
    from wasmtime import component as model

    for fuel in (False, True):
        engine = wasmtime.Engine(settings(wasmtime, fuel))
        plain = wasmtime.Linker(engine)
        plain.define_wasi()
        whole = model.Linker(engine)
        whole.add_wasip2()
        for linker, kind in ((plain, wasmtime.Module), (whole, model.Component)):
            component = kind is model.Component
            _made[component, fuel] = engine, linker
            made = bytes(kind(engine, _EMPTY[component]).serialize())
            if not fuel:
                _nothing[component] = made
            asked = {**_NOTHING, "component": component, "fuel": 1000 if fuel else 0}
            used = threading.Thread(target=_use, args=(asked, made))
            used.start()
            used.join()


def _use(asked: dict[str, Any], made: bytes) -> None:
    """In a thread of its own: wasmtime has a source of random numbers for each thread, seeded when a guest is first given one.
    The thread that is forked has none yet, or all guests would be given the same numbers as theirs alone."""
    for _ in range(_ROUNDS):
        main(asked, made)


def warm() -> None:
    """In the process of the guest to come: what a run writes to, is copied by then."""
    for component, made in _nothing.items():
        main({**_NOTHING, "component": component, "fuel": 0}, made)


def main(asked: dict[str, Any], compiled: bytes = b"") -> int:
    """``asked``: see ``wasm.py``; ``compiled``: in the place of what is shown. Its exit code."""
    import wasmtime

    engine, linker = _made[asked["component"], bool(asked["fuel"])]
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
        return (component if asked["component"] else module)(engine, linker, store, compiled)
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


def module(engine: Any, linker: Any, store: Any, compiled: bytes) -> int:
    import wasmtime

    kind = wasmtime.Module
    instance = linker.instantiate(
        store, kind.deserialize(engine, compiled) if compiled else kind.deserialize_file(engine, MODULE)
    )
    start = instance.exports(store).get("_start")
    if not isinstance(start, wasmtime.Func):
        return _ended(127, "the module has no function _start: it must be a WASI command")
    start(store)
    return 0


def component(engine: Any, linker: Any, store: Any, compiled: bytes) -> int:
    from wasmtime import component as model

    kind = model.Component
    whole = kind.deserialize(engine, compiled) if compiled else kind.deserialize_file(engine, MODULE)
    instance = linker.instantiate(store, whole)
    name = next((each for each in whole.type.exports(engine) if each.startswith("wasi:cli/run@0.2")), None)
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
