"""Backs one volume up or brings it back, in a process of its own that ends afterwards: ``python -m metaos.volumes.backing``.

Its standard input says what is wanted (:func:`main`), its output what came of it. So the agent never holds a volume's content, an
HTTP library or a key schedule in its memory, and a store that hangs has an end.

*Consistency.* Files are read where they lie, while the workload writes. After the first look only what has changed is read again,
round after round, until nothing changes between the begin of one look and the end of the next: then the copy is the state of one
moment (``Quiet``). A volume that is never quiet for so long is backed up as it is: each file as it was at some moment of the
last look (``PerFile``), which databases with a write-ahead log need not survive. The workload's own hook makes it whole: what
is changed between the two is sent before, so that it holds the workload up for the last look only (``Hook``).
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from metaos import trees
from metaos.data.backups import chosen, kept
from metaos.files import exchange, make_private, sync_directory, write_private
from metaos.volumes.chunks import KEY_BYTES, DamagedChunk, MissingChunk, fetcher
from metaos.volumes.manifest import HostileManifest, Manifest
from metaos.volumes.restoring import SPARE_BYTES, restore
from metaos.volumes.s3 import DAMAGED, Bucket, Credentials, StoreError
from metaos.volumes.scanning import Snapshot, Unsupported, save
from metaos.volumes.vault import LOCK_SECONDS, Kept, Vault, is_backup_name

#: All of one backup or restore. It ends by itself, before its lock does.
MOST_SECONDS = int(LOCK_SECONDS * 0.75)
#: Of this process: manifests and blocks.
MEMORY_BYTES = 2 << 30
#: Looks at a volume that does not come to rest.
ROUNDS = 8
QUIET, PER_FILE, HOOK = "Quiet", "PerFile", "Hook"
NO_KEY, NOTHING, UNSUPPORTED, NO_ROOM = "KeyMissing", "NoBackup", "Unsupported", "SiteFull"
#: Of backups that are listed for people.
MOST_LISTED = 100
_REMEDY = "put 32 random bytes there in base64: openssl rand -base64 32"


def secret_key(text: str) -> bytes:
    """``encryptionKey`` of the store's Secret, decoded. Raises :class:`StoreError`."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise StoreError(NO_KEY, f"encryptionKey of the store's Secret is missing or no key: {_REMEDY}. Keep a copy elsewhere")
    return key


def vault(asked: Mapping[str, Any], now: Callable[[], float]) -> tuple[Bucket, Vault]:
    """What ``asked`` is about. Raises :class:`StoreError`."""
    store, secret = asked["store"], asked["credentials"]
    key = secret_key(str(secret.get("encryptionKey") or ""))
    known = Credentials(
        str(secret.get("accessKeyId") or ""), str(secret.get("secretAccessKey") or ""), str(store.get("region") or "us-east-1")
    )
    bucket = Bucket(str(store["endpoint"]), str(store["bucket"]), known, now=now, authorities=str(store.get("caBundle") or ""))
    parts = (str(store.get("prefix") or "").strip("/"), str(asked["namespace"]), str(asked["claim"]))
    return bucket, Vault(bucket, "/".join(part for part in parts if part), key)


# -- backing up ---------------------------------------------------------------------------------------------


def back_up(asked: Mapping[str, Any], now: Callable[[], float]) -> dict[str, Any]:
    """``ahead``: only what can be sent before a hook holds the workload up. See :func:`main`. Raises :class:`StoreError`,
    ``Unsupported``, ``OSError``."""
    bucket, found = vault(asked, now)
    directory, state = Path(asked["directory"]), Path(asked["state"])
    store_time = bucket.check()
    begun = now()
    # Backups of several sites are told apart by one clock, the store's: whoever's was ahead would outlive all that came after.
    ahead = begun - store_time
    with found.locked(str(asked["site"]), store_time):
        before = _known(state, found)
        snapshot, quiet = _rested(directory, now, found, before, bool(asked.get("hooked")))
        _remember(state, found, snapshot)
        if asked.get("ahead"):
            return {"seconds": round(now() - begun, 3)}
        consistency = HOOK if asked.get("hooked") else QUIET if quiet else PER_FILE
        point = snapshot.time - ahead
        moment = datetime.fromtimestamp(point, UTC).strftime("%Y%m%dT%H%M%SZ")
        made = Kept(f"{moment}-{asked['site']}", point, consistency, snapshot.manifest)
        if lost := found.lacking(made.manifest):
            raise StoreError(DAMAGED, f"{bucket.name} has lost {lost} chunks that it had taken: it is tried again")
        found.write(made)
        names = found.backups()
        keep = asked.get("keep") or {}
        stays = kept({name: _time_of(name) for name in names}, keep.get("count"), keep.get("seconds"), point)
        for name in sorted(set(names) - stays):
            found.remove(name)
        swept = found.sweep(sorted(stays))
        return {
            "backup": made.name,
            "time": made.time,
            "consistency": consistency,
            "changing": list(snapshot.unsettled[:5]),
            "bytes": made.manifest.size,
            "sentBytes": found.chunks.sent_bytes,
            "sentChunks": found.chunks.sent_chunks,
            "sweptChunks": swept,
            "seconds": round(now() - begun, 3),
            "backups": sorted(stays)[-MOST_LISTED:],
            "otherKeys": found.other_keys()[:10],
            "key": found.key_id,
        }


def _rested(
    directory: Path, now: Callable[[], float], found: Vault, before: Snapshot | None, hooked: bool
) -> tuple[Snapshot, bool]:
    """The volume at a moment at which it was quiet, or at its last look; a hook's word that it is quiet counts."""
    snapshot = save(directory, now(), found.chunks, found.form, before=before, live=True)
    for _ in range(0 if hooked else ROUNDS):
        after = save(directory, now(), found.chunks, found.form, before=snapshot, live=True)
        if after.marks == snapshot.marks and after.manifest == snapshot.manifest and not after.unsettled:
            return snapshot, True
        snapshot = after
    return snapshot, hooked and not snapshot.unsettled


def _known(state: Path, found: Vault) -> Snapshot | None:
    """What the last look at this volume saw, so that only what has changed is read. Anything odd: all is read."""
    try:
        head, _, manifest = state.read_bytes().partition(b"\n")
        said = json.loads(head)
        if said["key"] != found.key_id:
            return None
        marks = {str(path): (int(m[0]), int(m[1]), int(m[2]), int(m[3])) for path, m in said["marks"].items()}
        return Snapshot(Manifest.decode(manifest), float(said["time"]), marks)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def _remember(state: Path, found: Vault, snapshot: Snapshot) -> None:
    head = json.dumps({"key": found.key_id, "time": snapshot.time, "marks": snapshot.marks}).encode()
    write_private(state, head + b"\n" + snapshot.manifest.encode())


def _time_of(name: str) -> float:
    return datetime.strptime(name[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


# -- bringing back ------------------------------------------------------------------------------------------


def bring_back(asked: Mapping[str, Any], now: Callable[[], float]) -> dict[str, Any]:
    """The volume as it was; what lay there is kept beside it as ``.CLAIM.before``, until the next time. Raises
    :class:`StoreError`, ``OSError``."""
    begun = now()
    bucket, found = vault(asked, now)
    names = {name: _time_of(name) for name in found.backups()}
    if not names:
        others = found.other_keys()
        hint = f"; some are sealed with another key ({', '.join(others[:5])}): put that key back in the Secret" if others else ""
        raise StoreError(NOTHING, f"{bucket.name} has no backup of {asked['namespace']}/{asked['claim']} with this key{hint}")
    try:
        name = chosen(names, str(asked.get("backup") or ""), asked.get("at"))
    except ValueError as error:
        raise StoreError(NOTHING, f"{asked['namespace']}/{asked['claim']}: {error}") from error
    made = found.read(name)
    directory = Path(asked["directory"])
    make_private(directory.parent)
    fresh, before = (directory.with_name(f".{directory.name}.{word}") for word in ("restoring", "before"))
    trees.remove(str(fresh))
    if before.exists() and not directory.exists():
        # A process ended between the two renames below: nothing is lost where this one comes to nothing.
        os.rename(before, directory)
    free = shutil.disk_usage(directory.parent).free
    if made.manifest.content_bytes + SPARE_BYTES > free:
        text = f"the backup {name} has {made.manifest.content_bytes >> 20} MiB, and the site has {free >> 20} MiB free"
        raise StoreError(NO_ROOM, f"{text}: make room, or restore it at another site")
    restore(made.manifest, fetcher(found.chunks, found.form), fresh)
    if directory.exists():
        trees.remove(str(before))
        # At once, as a pod that begins meanwhile, after the agent was killed, would make an empty one.
        if exchange(fresh, directory):
            os.rename(fresh, before)
        else:
            os.rename(directory, before)
            os.rename(fresh, directory)
    else:
        os.rename(fresh, directory)
    sync_directory(directory.parent)
    return {
        "backup": name,
        "time": made.time,
        "consistency": made.consistency,
        "bytes": made.manifest.size,
        "digest": made.manifest.digest,
        "seconds": round(now() - begun, 3),
    }


def listed(asked: Mapping[str, Any], now: Callable[[], float]) -> dict[str, Any]:
    """The newest backups of a volume."""
    _, found = vault(asked, now)
    return {"backups": found.backups()[-MOST_LISTED:], "otherKeys": found.other_keys()[:10], "key": found.key_id}


_DO = {"backUp": back_up, "bringBack": bring_back, "list": listed}


def run(asked: Mapping[str, Any], now: Callable[[], float]) -> dict[str, Any]:
    """What came of it, or ``{"reason", "message"}``."""
    about = f"volume {asked['namespace']}/{asked['claim']}"
    try:
        if asked.get("backup") and not is_backup_name(str(asked["backup"])):
            return {"reason": NOTHING, "message": f"{about}: {str(asked['backup'])[:80]!r} is no name of a backup"}
        if "state" not in asked:
            return _DO[str(asked["do"])](asked, now)
        state = Path(asked["state"])
        make_private(state.parent)
        # A process of an agent that was killed may still run: then this one waits for it.
        with state.with_name(state.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return _DO[str(asked["do"])](asked, now)
    except StoreError as error:
        return {"reason": error.reason, "message": f"{about}: {error.message}"}
    except (DamagedChunk, MissingChunk, HostileManifest) as error:
        return {"reason": DAMAGED, "message": f"{about}: {error}. Nothing of it is used: choose an older backup"}
    except Unsupported as error:
        return {"reason": UNSUPPORTED, "message": f"{about}: {error}"}
    except (OSError, ValueError) as error:
        return {"reason": "Failed", "message": f"{about}: {type(error).__name__}: {error}"}
    except MemoryError:
        return {"reason": "Failed", "message": f"{about}: it takes more than {MEMORY_BYTES >> 20} MiB of memory"}


def main() -> int:
    """Input: ``{"do": "backUp" | "bringBack" | "list", "store": {…}, "credentials": {…}, "namespace", "claim", "site",
    "directory", "state", "keep": {"count", "seconds"}, "hooked", "ahead", "backup", "at"}``. Output: see the functions."""
    signal.alarm(MOST_SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    os.nice(10)
    json.dump(run(json.load(sys.stdin), time.time), sys.stdout)  # noqa: TID251  (a process of its own)
    return 0


if __name__ == "__main__":
    sys.exit(main())
