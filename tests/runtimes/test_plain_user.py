"""The same as a plain user: the suites of escapes, of exhaustion and of networks again, in a process without any privilege.

Root only makes the view: a mount namespace of its own, in which this work tree and this Python are readable by everybody.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

REPOSITORY = Path(__file__).parents[2]
USER = "65534"
_ENTER = """
set -e
mount --bind "$1" /mnt && mount --bind "$2" /usr/local
site=$3; place=$4; shift 4
cd /mnt
exec setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set -all --inh-caps -all \\
    env -i PATH=/usr/bin:/bin HOME="$place" TMPDIR="$place" PYTHONPATH="/mnt:/mnt/$site" PYTHONDONTWRITEBYTECODE=1 \\
    LD_LIBRARY_PATH=/usr/local/lib \\
    /usr/local/bin/python3 -m pytest -p no:cacheprovider -n 0 -o addopts= "$@"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else (these suites then run as you anyway)")
@pytest.mark.parametrize(
    "suite",
    ["test_gateway.py", *(pytest.param(suite, marks=pytest.mark.slow) for suite in ("test_escape.py", "test_exhaustion.py"))],
)
def test_a_plain_user(suite: str) -> None:
    packages = Path(pytest.__file__).parents[1]
    if not packages.is_relative_to(REPOSITORY) or not shutil.which("setpriv"):
        pytest.skip("the packages are not below the work tree, or util-linux is not here")
    place = tempfile.mkdtemp(prefix="nemo-plain-")
    try:
        os.chown(place, int(USER), int(USER))
        base = os.path.realpath(sys.base_prefix)
        site = str(packages.relative_to(REPOSITORY))
        command = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            _ENTER,
            "nemo",
            str(REPOSITORY),
            base,
            site,
            place,
            f"tests/runtimes/{suite}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        if "unshare failed" in done.stderr or "mount failed" in done.stderr:
            pytest.skip(f"this machine gives no mount namespace: {done.stderr}")
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    finally:
        shutil.rmtree(place)
