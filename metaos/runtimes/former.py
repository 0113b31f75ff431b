"""Pods that the release before this one started. It recorded a container's start in three files (``container.json``, ``pid``,
``status``), and its holders keep neither a gateway nor a bubblewrap as today's do: nothing can be started in such a pod, and
its network cannot be entered. So it is ended when it is found, and started anew; how its containers ended before, is kept.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os

from metaos import trees
from metaos.runtimes import process, records
from metaos.runtimes.pods import entries, read_json
from metaos.runtimes.process import Identity

log = logging.getLogger(__name__)


def end(directory: str, boot: str) -> None:
    """Does nothing to a pod of this release. May be interrupted at any point, and is then done again. ``boot``: the machine's
    present one."""
    etc = os.path.join(directory, "etc")  # where each pod had one
    known = read_json(os.path.join(directory, "pod.json")) if os.path.isdir(etc) else None
    if known is None:
        return
    log.warning("pod %s was started by an earlier release: it is ended, and started anew", known["uid"])
    running: list[Identity] = []
    for name in entries(os.path.join(directory, "containers")):
        for sequence in entries(os.path.join(directory, "containers", name)):
            place = os.path.join(directory, "containers", name, sequence)
            if not os.path.exists(records.path(place)):
                _record(place)
            monitor = records.read(place).get("monitor")
            if monitor and not os.path.exists(os.path.join(place, "end.json")):
                running.append(Identity(*monitor))
    if known["boot"] == boot:
        for monitor in running:
            for each in process.session_of(monitor):
                each.kill()
        if known["holder"]:
            Identity(*known["holder"]).kill()
    with contextlib.suppress(FileNotFoundError):
        os.rename(os.path.join(etc, "hosts"), os.path.join(directory, "hosts"))
    trees.remove(etc)


def _record(directory: str) -> None:
    """Puts the three files into one."""
    known = read_json(os.path.join(directory, "container.json"))
    if known is None:
        return  # never started
    own = process.parse_stat(_text(directory, "pid"))
    monitor = known.pop("monitor") or (own and [own.pid, own.start])
    status = _text(directory, "status")
    if status.strip().isdigit():  # of a plain process
        status = json.dumps({"exit-code": int(status)}) + "\n"
    path = records.path(directory)
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(json.dumps(known) + "\n" + json.dumps({"monitor": monitor}) + "\n" + status)
    if status:
        ended = os.stat(os.path.join(directory, "status")).st_mtime
        os.utime(path + ".new", (ended, ended))
    os.rename(path + ".new", path)


def _text(directory: str, name: str) -> str:
    try:
        with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
