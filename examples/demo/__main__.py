"""``python -m examples.demo [--stay] [--record FILE.svg]``: see the README."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from examples.demo.continuum import Continuum
from examples.demo.story import logs, tell
from metaos.cli.doctor import isolation
from metaos.twin.processes import ProcessesFailed


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo", description="NEMO's main job on one machine, with real processes."
    )
    parser.add_argument("--stay", action="store_true", help="start the continuum and the application, then stay until Ctrl-C")
    parser.add_argument("--record", type=Path, help="write what is shown to this SVG file")
    parser.add_argument("--keep-logs", type=Path, help="copy the logs to this directory at the end")
    arguments = parser.parse_args()
    console = Console(record=arguments.record is not None, width=150 if arguments.record else None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = isolation()
    isolated = found.level == "ok"
    note = (
        "[yellow]This machine does not let NEMO isolate containers: the demonstration runs its own example without isolation.\n"
        f"{escape(found.message)}[/]"
    )
    if not isolated:
        console.print(note)
    continuum = Continuum(Path(tempfile.mkdtemp(prefix="nemo-demo-")), isolated=isolated)
    code = 0
    try:
        tell(continuum, console, only_gather=arguments.stay)
        if arguments.stay:
            console.print(f"\nexport KUBECONFIG={continuum.kubeconfig} PATH={Path(sys.executable).parent}:$PATH", soft_wrap=True)
            console.print("then, for instance: kubectl get pods -A -o wide; nemo status; nemo why deployment/web -n shop")
            console.print("Ctrl-C ends it and removes everything.")
            signal.pause()
    except ProcessesFailed as error:
        code = 1
        console.print(f"\n[bold red]FAILED[/] {error}", highlight=False)
        for log in logs(continuum):
            console.print(f"\n--- {log.name}\n{continuum.tail(log)}", highlight=False, markup=False)
    except KeyboardInterrupt:
        pass
    finally:
        if arguments.keep_logs:
            arguments.keep_logs.mkdir(parents=True, exist_ok=True)
            for log in logs(continuum):
                (arguments.keep_logs / log.name).write_bytes(log.read_bytes())
        continuum.stop()
    if not isolated:
        console.print(note)
    if arguments.record and code == 0:
        console.save_svg(str(arguments.record), title="make demo")
    return code


if __name__ == "__main__":
    sys.exit(main())
