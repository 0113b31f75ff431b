"""Images that the deployment's files name, made of Debian's packages and of wheels: where no registry can be reached.

``python -m tests.deploy.standins`` makes those that podman does not have (root, ``debootstrap``). They behave as the real ones as
far as the files of ``deploy`` rely on it: where programs and data are, which variables are read, who they run as."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.postgres import unpack

PYTHON, POSTGRES, NATS = (f"docker.io/library/{name}" for name in ("python:3.11-slim", "postgres:18", "nats:2.15"))
SUITE = "bookworm"
#: python:*-slim has its interpreter in /usr/local, and lets pip install beside it.
_PYTHON = """
FROM scratch
ADD root.tar /
RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED && cd /usr/local/bin \
 && ln -s /usr/bin/python3 python && ln -s /usr/bin/python3 python3 && ln -s /usr/bin/pip3 pip
ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
CMD ["python3"]
"""
_POSTGRES = f"""
FROM {PYTHON}
COPY postgresql /usr/local/
COPY entrypoint /usr/local/bin/docker-entrypoint.sh
RUN groupadd -r --gid=999 postgres \
 && useradd -r --gid=postgres --uid=999 --home-dir=/var/lib/postgresql --shell=/bin/bash postgres \
 && install -d -o postgres -g postgres /var/lib/postgresql /var/run/postgresql
ENV PGDATA=/var/lib/postgresql/18/docker
VOLUME /var/lib/postgresql
STOPSIGNAL SIGINT
EXPOSE 5432
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
"""
#: As the real one: while it initialises it listens on its socket alone.
_ENTRYPOINT = """#!/bin/bash
set -Eeuo pipefail
if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
  export POSTGRES_PASSWORD="$(< "$POSTGRES_PASSWORD_FILE")"
  unset POSTGRES_PASSWORD_FILE
fi
if [ "$(id -u)" = 0 ]; then
  install -d -o postgres -g postgres -m 0700 "$PGDATA"
  exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\\n' "$POSTGRES_PASSWORD") \\
    --auth-local=trust --auth-host=scram-sha-256 -E UTF8 --locale=C >/dev/null
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  echo "listen_addresses = '*'" >> "$PGDATA/postgresql.conf"
  pg_ctl -w start -o "-c listen_addresses=''" >/dev/null
  [ "$POSTGRES_DB" = postgres ] || createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
  pg_ctl -w -m fast stop >/dev/null
fi
unset POSTGRES_PASSWORD
exec "$@"
"""
_NATS = """
FROM scratch
COPY nats-server /nats-server
EXPOSE 4222 6222 8222
ENTRYPOINT ["/nats-server"]
CMD ["--config", "nats-server.conf"]
"""


def has(image: str) -> bool:
    return subprocess.run(["podman", "image", "exists", image], check=False).returncode == 0


def build(image: str, containerfile: str, folder: Path) -> None:
    (folder / "Containerfile").write_text(containerfile)
    subprocess.run(["podman", "build", "-q", "--pull=never", "--network=none", "-t", image, str(folder)], check=True)


def make(folder: Path) -> None:
    """Whatever is missing."""
    if not has(PYTHON):
        more = "--include=python3,python3-venv,python3-pip,ca-certificates,libxml2,libreadline8"
        made = folder / "python"
        made.mkdir()
        subprocess.run(["debootstrap", "--variant=minbase", more, SUITE, str(made / "root")], check=True)
        shutil.rmtree(made / "root/var/cache/apt/archives")
        subprocess.run(["tar", "-C", str(made / "root"), "--numeric-owner", "-cf", str(made / "root.tar"), "."], check=True)
        shutil.rmtree(made / "root")
        build(PYTHON, _PYTHON, made)
    if not has(POSTGRES):
        made = folder / "postgres"
        shutil.copytree(unpack().parent, made / "postgresql", symlinks=True)
        (made / "entrypoint").write_text(_ENTRYPOINT)
        (made / "entrypoint").chmod(0o755)
        build(POSTGRES, _POSTGRES, made)
    if not has(NATS):
        made = folder / "nats"
        made.mkdir()
        program = shutil.which("nats-server", path=str(Path(sys.executable).parent))
        assert program, "nats-server is installed beside Python with NEMO's requirements"
        shutil.copy(program, made / "nats-server")
        build(NATS, _NATS, made)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="nemo-standins-") as scratch:
        make(Path(scratch))
