"""Volumes that come to this site or leave it, as its Works say: what becomes of their directories, and when a pod may run.

What came from another site lies aside (``arriving/WORK/CLAIM``), and a small file says of which attempt it is whole. It becomes
the claim's directory by a rename, once the hub has said that it be adopted, and before a pod of it starts. What is sent is sent
as the last state only while nothing of the work runs here, and that process is killed before something of it starts again.

That it was stopped for a move is written down (``left``) before the last state is given, and outlives the Work: a hub that was
restored from an older backup may tell this site to run it, with data that has been written elsewhere since. It does not, and
says why.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from metaos import trees
from metaos.agent.movers import Mover
from metaos.agent.relay import Dial
from metaos.clock import Clock
from metaos.files import make_private, sync_directory, write_private
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, controller_of, name, namespace, uid
from metaos.resources.workload import pod_spec
from metaos.tunnel import Stream

log = logging.getLogger(__name__)

#: After a transfer that broke, the next begins so much later.
AGAIN_SECONDS = 2.0
#: How often is looked at what no news tells of.
LOOK_SECONDS = 5.0
#: Progress is reported so often at most.
REPORT_SECONDS = 1.0
#: Workloads that left this site and are remembered; of more, those that left first are forgotten.
MOST_LEFT = 10_000


def told(work: Obj) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What a Work says of volumes: (receive, send)."""
    volumes = (work.get("spec") or {}).get("volumes") or {}
    return volumes.get("receive") or {}, volumes.get("send") or {}


def halted(work: Obj) -> bool:
    """Whether the hub has told this site to run none of it so that the rest of its volumes can be sent."""
    return bool(((work.get("spec") or {}).get("volumes") or {}).get("stop"))


def patterns(manifest: Obj) -> list[str]:
    """Names of a workload's claims; ``*`` at the end stands for the numbers of a StatefulSet's pods, also of those it had."""
    volumes = pod_spec(manifest).get("volumes") or ()
    named = [str((volume.get("persistentVolumeClaim") or {}).get("claimName") or "") for volume in volumes]
    templates = (manifest.get("spec") or {}).get("volumeClaimTemplates") or ()
    return [word for word in named if word] + [f"{each['metadata']['name']}-{name(manifest)}-*" for each in templates]


class Moves:
    """``directory``: the runtime's, with ``claims`` in it; ``identity``: that of the site's certificate. ``works`` gives all
    Works, ``pods`` this site's pods; ``changed`` is called when other things may run, ``look`` when a Work has other news;
    ``listed``: whether the hub has said since the start which Works there are."""

    def __init__(
        self,
        directory: Path,
        identity: Path,
        site: str,
        dial: Dial,
        clock: Clock,
        works: Callable[[], Mapping[str, Obj]],
        pods: Callable[[], list[Obj]],
        changed: Callable[[], None],
        look: Callable[[str], None],
        listed: Callable[[], bool],
    ) -> None:
        self._directory, self._identity, self._site = directory, identity, site
        self._dial, self._clock, self._works, self._pods = dial, clock, works, pods
        self._changed, self._look, self._listed = changed, look, listed
        self._wake = asyncio.Event()
        #: By Work: the attempt that is received and its task; how far it is; the process that sends, with its attempt.
        self._receiving: dict[str, tuple[int, asyncio.Task[None]]] = {}
        self._progress: dict[str, dict[str, Any]] = {}
        self._sending: dict[str, tuple[int, Mover]] = {}
        #: Senders that were told that nobody writes any more.
        self._last: set[str] = set()
        self._reported: dict[str, float] = {}
        self._marks = directory / "moves"
        make_private(self._marks)
        self._lefts = directory / "left"
        make_private(self._lefts)
        #: By Work: for which attempt this site was stopped last, with ``uid`` and ``restore`` of what it was then.
        self._left: dict[str, dict[str, Any]] = _read_left(self._lefts)
        #: Works of which something came, or may have.
        self._marked = {path.name.removesuffix(".json") for path in self._marks.iterdir()}

    # -- what the rest of the agent asks -------------------------------------------------------------------

    def wake(self) -> None:
        self._wake.set()

    def withheld(self, work: Obj) -> bool:
        """Whether nothing of a Work may run here yet. Where it may, nothing of it is sent as its last state any more."""
        receive, _ = told(work)
        if self._behind(work):
            return True
        if receive and self._adopted(work) != receive.get("attempt"):
            return True
        if not halted(work):
            self._stop_sending(name(work), last=True)
        return False

    def status(self, work: Obj) -> dict[str, Any]:
        """For the hub: how far a Work's volumes are, and whether they left this site; empty where none move."""
        left = self._left_of(work)
        more = {key: left[key] for key in ("attempt", "to", "discarded", "kept") if key in left}
        holds = self._holds(work)
        asked = ((work.get("spec") or {}).get("volumes") or {}).get("asked")
        said = self._moving(work) | ({"left": more} if more else {}) | ({"holds": holds} if holds else {})
        return said | ({"asked": asked} if asked else {})

    def _moving(self, work: Obj) -> dict[str, Any]:
        receive, send = told(work)
        key = name(work)
        if receive.get("adopt") and not send:
            if self._adopted(work) == receive.get("attempt"):
                return {**self._mark(key).get("said", {}), "phase": "Adopted", "attempt": receive["attempt"]}
            return {"phase": "Failed", "attempt": receive.get("attempt"), "message": "what it shall adopt is not here"}
        if receive and not receive.get("adopt"):
            mark = self._mark(key)
            if mark.get("attempt") == receive.get("attempt"):
                return {**mark.get("said", {}), "phase": "Complete", "attempt": mark["attempt"]}
            found = self._progress.get(key, {})
            if found.get("attempt") == receive.get("attempt"):
                return dict(found)
            return {"phase": "Receiving", "attempt": receive.get("attempt")}
        if send.get("discard"):
            left = [path for path in self._claims(work) if path.exists()]
            phase = "Sending" if left else "Discarded"
            return {"phase": phase, "attempt": receive.get("attempt") or 0}
        return {}

    async def send(self, header: dict[str, Any], stream: Stream) -> None:
        """Serves another site with the volumes of a Work. Raises ``ApiError``, ``OSError``."""
        key, attempt = str(header.get("work") or ""), header.get("attempt")
        work = self._works().get(key)
        peer = str((header.get("source") or {}).get("site") or "")
        _, send = told(work or {})
        if work is None or (send.get("to"), send.get("attempt")) != (peer, attempt) or send.get("discard"):
            why = f"site {self._site} is not told to send the volumes of {key[:200]!r} to site {peer[:200]!r} now"
            raise ApiError(409, "Conflict", why)
        self._stop_sending(key)
        claims = {path.name: str(path) for path in self._claims(work) if path.is_dir() and not path.is_symlink()}
        rate = float(send.get("bytesPerSecond") or 0)
        mover = Mover("sending", {"identity": str(self._identity), "peer": peer, "claims": claims, "rate": rate})
        self._sending[key] = (int(send["attempt"]), mover)
        self._last.discard(key)
        self._wake.set()
        await stream.accept()

        def heard(said: dict[str, Any]) -> None:
            if said.get("error"):
                log.warning("sending the volumes of %s to site %s: %s", key, peer, said["error"])

        try:
            await mover.run(stream, heard)
        finally:
            if self._sending.get(key, (0, None))[1] is mover:
                del self._sending[key]
                self._last.discard(key)

    # -- the loop ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Never returns."""
        try:
            while True:
                self._wake.clear()
                works = self._works()
                for key, work in works.items():
                    if (work.get("spec") or {}).get("volumes") or key in self._left:
                        try:
                            await self._see_to(key, work)
                        except OSError:
                            log.exception("the volumes of %s: looked at again in %g s", key, LOOK_SECONDS)
                await self._forget(works)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._wake.wait()
        finally:
            tasks = [task for _, task in self._receiving.values()]
            for task in tasks:
                task.cancel()
            for key in list(self._sending):
                self._stop_sending(key)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _see_to(self, key: str, work: Obj) -> None:
        receive, send = told(work)
        await asyncio.to_thread(self._see_to_left, key, work)
        if receive and not receive.get("adopt"):
            if self._mark(key).get("attempt") != receive.get("attempt"):
                await self._receive(key, work, str(receive.get("from") or ""), int(receive.get("attempt") or 0))
        elif receive and self._adopted(work) != receive.get("attempt"):
            await self._stop_receiving(key)
            if await asyncio.to_thread(self._adopt, key, work, int(receive["attempt"])):
                self._changed()
                self._look(key)
        if key in self._sending and self._sending[key][0] != send.get("attempt"):
            self._stop_sending(key)
        if halted(work) and not self._running(work):
            if send:
                self._note_left(key, work, send)
            if key in self._sending and key not in self._last:
                self._last.add(key)
                self._sending[key][1].say("stopped")
            # One that has adopted them since is told so by a hub whose state was put back: what it has stays.
            if send.get("discard") and self._adopted(work) <= int(send.get("attempt") or 0):
                self._stop_sending(key)
                await asyncio.to_thread(self._discard, work)
                self._look(key)

    def _running(self, work: Obj) -> bool:
        owners = {uid(manifest) for manifest in work["spec"]["manifests"]}
        return any((controller_of(pod) or {}).get("uid") in owners for pod in self._pods())

    async def _forget(self, works: Mapping[str, Obj]) -> None:
        """What came for a Work that is gone, or is not to receive any more, is nobody's."""
        if not self._listed():
            return  # A Work that could not be read after a start is not gone: the hub tells it again.
        for key in [key for key in self._receiving if key not in works]:
            await self._stop_receiving(key)
        for key in [key for key in self._sending if key not in works]:
            self._stop_sending(key)
        for key in self._progress.keys() - works.keys():
            del self._progress[key]
            self._reported.pop(key, None)
        known = {_short(key) for key in works}
        for place in (self._marks, self._directory / "arriving"):
            for path in place.iterdir() if place.is_dir() else ():
                if path.name.removesuffix(".json") not in known:
                    with suppress(OSError):
                        await asyncio.to_thread(trees.remove, str(path))

    # -- what left this site -------------------------------------------------------------------------------

    def _left_of(self, work: Obj) -> dict[str, Any]:
        """What is remembered of this very workload; empty where nothing is, or its data came from a backup since."""
        found = self._left.get(name(work)) or {}
        return found if found and (found["uid"], found["restore"]) == _which(work) else {}

    def _behind(self, work: Obj) -> bool:
        """Whether a hub that says this knows less than this site: of a later attempt, or that it was stopped in this one."""
        found = self._left_of(work)
        left = 0 if found.get("kept") else int(found.get("attempt") or 0)
        receive, send = told(work)
        sent, newer = int(send.get("attempt") or 0), max(int(receive.get("attempt") or 0), _kept(work))
        return left > newer and (left > sent or (left == sent and not halted(work)))

    def _see_to_left(self, key: str, work: Obj) -> None:
        """Forgets it where the workload is another one or its data came back. Where the old copy went on, that is remembered:
        what it gave in that attempt is not the last state any more."""
        left = self._left.get(key)
        if left is None:
            return
        number = left["attempt"]
        if not self._left_of(work) or self._adopted(work) > number:
            (self._lefts / f"{_short(key)}.json").unlink(missing_ok=True)
            del self._left[key]
        elif _kept(work) >= number or (not halted(work) and int(told(work)[1].get("attempt") or 0) > number):
            self._remember(key, left | {"kept": True})

    def _note_left(self, key: str, work: Obj, send: Mapping[str, Any]) -> None:
        """Before a last state is given. A hub that says an attempt that is over knows less than this site."""
        which, restore = _which(work)
        number, before = int(send.get("attempt") or 0), self._left_of(work)
        if before and (before["attempt"] > number or (before["attempt"] == number and before.get("kept"))):
            return
        found = {"work": key, "uid": which, "restore": restore, "attempt": number, "to": send.get("to")}
        self._remember(key, found | ({"discarded": True} if send.get("discard") else {}))

    def _remember(self, key: str, found: dict[str, Any]) -> None:
        if self._left.get(key) == found:
            return
        write_private(self._lefts / f"{_short(key)}.json", json.dumps(found))
        self._left[key] = found
        if len(self._left) > MOST_LEFT:
            oldest = min(self._left, key=lambda each: (int(self._left[each]["attempt"]), each))
            (self._lefts / f"{_short(oldest)}.json").unlink(missing_ok=True)
            del self._left[oldest]

    def _holds(self, work: Obj) -> int:
        """The attempt in which this site adopted the volumes, where it has them still and the hub, whose state was put back, says
        something else; 0: none."""
        if _short(name(work)) not in self._marked:
            return 0
        mark, receive = self._mark(name(work)), told(work)[0]
        adopted = int(mark.get("attempt") or 0) if mark.get("adopted") and mark.get("uid") == _which(work)[0] else 0
        if receive.get("adopt") and int(receive.get("attempt") or 0) >= adopted:
            return 0
        if int(self._left_of(work).get("attempt") or 0) > adopted:
            return 0
        return adopted if any(path.exists() for path in self._claims(work)) else 0

    # -- receiving -----------------------------------------------------------------------------------------

    def _arriving(self, key: str) -> Path:
        return self._directory / "arriving" / _short(key)

    def _mark_file(self, key: str) -> Path:
        return self._marks / f"{_short(key)}.json"

    def _mark(self, key: str) -> dict[str, Any]:
        """Of which attempt what lies aside, or was adopted, is whole."""
        try:
            found = json.loads(self._mark_file(key).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _adopted(self, work: Obj) -> int:
        found = self._mark(name(work))
        return int(found.get("attempt") or 0) if found.get("adopted") else 0

    async def _receive(self, key: str, work: Obj, peer: str, attempt: int) -> None:
        if key in self._receiving:
            if self._receiving[key][0] == attempt:
                return
            await self._stop_receiving(key)
        if self._holds(work):
            return  # the hub is told so
        # What was whole of another attempt is not any more, before anything is written there.
        self._mark_file(key).unlink(missing_ok=True)
        sync_directory(self._marks)
        task = asyncio.create_task(self._keep_receiving(key, work, peer, attempt), name=f"volumes of {key}")
        self._receiving[key] = (attempt, task)

    async def _stop_receiving(self, key: str) -> None:
        found = self._receiving.pop(key, None)
        if found is not None:
            found[1].cancel()
            await asyncio.gather(found[1], return_exceptions=True)

    async def _keep_receiving(self, key: str, work: Obj, peer: str, attempt: int) -> None:
        """Until all of an attempt is here: what broke is begun again, and goes on where it was."""
        while True:
            problem = ""
            try:
                problem = await self._transfer(key, work, peer, attempt)
            except (OSError, ApiError) as error:
                problem = str(error) or type(error).__name__
            if self._mark(key).get("attempt") == attempt:
                self._look(key)
                return
            self._note(key, {"phase": "Failed", "attempt": attempt, "message": (problem or "it ended before its end")[:500]})
            await self._clock.sleep(AGAIN_SECONDS)

    async def _transfer(self, key: str, work: Obj, peer: str, attempt: int) -> str:
        """Why it came to nothing, or nothing."""
        stream = await self._dial({"type": "volumes", "cluster": peer, "work": key, "attempt": attempt})
        problem = ""
        try:
            await stream.accepted()
            allowed = [word for manifest in work["spec"]["manifests"] for word in patterns(manifest)]
            request = {"identity": str(self._identity), "peer": peer, "directory": str(self._arriving(key)), "allowed": allowed}
            mover = Mover("receiving", request)
        except BaseException:
            await stream.reset("the receiver gave up")
            raise

        def heard(said: dict[str, Any]) -> None:
            nonlocal problem
            problem = str(said.get("error") or "")
            if problem:
                return
            found = {
                "phase": "Close" if said.get("close") else "Receiving",
                "attempt": attempt,
                "rounds": said.get("rounds"),
                "bytes": said.get("bytes"),
                "sentBytes": said.get("sent"),
                "restBytes": said.get("rest"),
                "sizeBytes": said.get("size"),
                "cpuSeconds": said.get("cpu"),
            }
            if said.get("complete"):
                mark = {"attempt": attempt, "claims": sorted(said.get("digests") or ()), "said": found}
                write_private(self._mark_file(key), json.dumps(mark))
                self._marked.add(_short(key))
                self._look(key)
                return
            self._note(key, found)

        await mover.run(stream, heard)
        return problem

    def _note(self, key: str, found: dict[str, Any]) -> None:
        before = self._progress.get(key, {})
        self._progress[key] = found
        now = self._clock.monotonic()
        if found["phase"] != before.get("phase") or now - self._reported.get(key, float("-inf")) >= REPORT_SECONDS:
            self._reported[key] = now
            self._look(key)

    # -- taking and giving up ------------------------------------------------------------------------------

    def _place(self, work: Obj) -> Path:
        return self._directory / "claims" / namespace(work["spec"]["manifests"][0])

    def _claims(self, work: Obj) -> Iterator[Path]:
        """Directories that there may be of a Work's claims."""
        place = self._place(work)
        for manifest in work["spec"]["manifests"]:
            for word in patterns(manifest):
                if not word.endswith("*"):
                    yield place / word
                elif place.is_dir():
                    yield from (path for path in place.iterdir() if _numbered(path.name, word[:-1]))

    def _adopt(self, key: str, work: Obj, attempt: int) -> bool:
        """Renames what came to where pods look for it. May be interrupted anywhere, and is then done again."""
        mark = self._mark(key)
        if mark.get("attempt") != attempt:
            log.error("site %s shall adopt the volumes of %s in attempt %d, which it has not got", self._site, key, attempt)
            return False
        place, arriving = self._place(work), self._arriving(key)
        make_private(place)
        for claim in mark["claims"]:
            came, old = arriving / claim, arriving / f"{claim}.old"
            if not came.is_dir():  # renamed already
                continue
            trees.remove(str(old))
            if (place / claim).exists():
                (place / claim).rename(old)
            came.rename(place / claim)
        sync_directory(place)
        write_private(self._mark_file(key), json.dumps(mark | {"adopted": True, "uid": _which(work)[0]}))
        self._marked.add(_short(key))
        trees.remove(str(arriving))
        return True

    def _discard(self, work: Obj) -> None:
        for path in list(self._claims(work)):
            trees.remove(str(path))
        if self._place(work).is_dir():
            sync_directory(self._place(work))

    def _stop_sending(self, key: str, *, last: bool = False) -> None:
        """``last``: only one that was told that nobody writes."""
        if key in self._sending and (not last or key in self._last):
            self._sending.pop(key)[1].kill()
            self._last.discard(key)


def _which(work: Obj) -> tuple[str, str]:
    """Of a Work: uid of its workload, and which restore from a backup its data began with, if any."""
    return uid(work["spec"]["manifests"][0]), str((work["spec"].get("restore") or {}).get("id") or "")


def _kept(work: Obj) -> int:
    return int(((work.get("spec") or {}).get("volumes") or {}).get("kept") or 0)


def _read_left(place: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in place.glob("*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(path.read_text())
            found[str(said["work"])] = said | {"attempt": int(said["attempt"])}
    return found


def _short(key: str) -> str:
    """A Work's name as that of a file: names may have 253 characters."""
    return key if len(key) <= 200 else key[:180] + hashlib.sha256(key.encode()).hexdigest()[:16]


def _numbered(word: str, prefix: str) -> bool:
    number = word.removeprefix(prefix)
    return number != word and number.isascii() and number.isdigit()
