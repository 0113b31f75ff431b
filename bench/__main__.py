"""``python -m bench [WORD]``: runs the benchmarks whose name contains the word, or all. ``make bench ONLY=word``."""

from __future__ import annotations

import subprocess
import sys
import time

BENCHMARKS = (
    "store",
    "hubs",
    "start",
    "api",
    "continuum",
    "agent",
    "pods",
    "images",
    "engine",
    "deferral",
    "quantile",
    "edge",
    "gpu",
    "twin",
    "scale",
    "chaos",
    "calibration",
    "members",
    "devices",
    "volumes",
)


def main() -> int:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [b for b in BENCHMARKS if word in b]
    if not chosen:
        print(f"no benchmark has {word!r} in its name: there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    code = 0
    for name in chosen:
        print(f"==> {name}", flush=True)
        started = time.monotonic()
        # A process each: one benchmark's memory and threads are not another's.
        code = subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode or code
        print(f"    {time.monotonic() - started:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
