"""Clusters that the hub reaches by itself: it keeps an agent process for each that ``nemo cluster add`` named.

What was given is a Secret in ``nemo-system`` (encrypted at rest, as all are), so it outlives the hub's process and machine. The
agent is the same as elsewhere, with a folder of its own in the hub's data; only who starts it differs. Level-triggered: the
Secrets say which agents run. Bound: ``MAX_HOSTED`` agents, each a process of about 43 MB.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
from base64 import b64decode
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from metaos.agent.entry import REFUSED, REMOVED
from metaos.client import Client
from metaos.clock import Clock
from metaos.files import make_private, write_private
from metaos.members.callers import Identities
from metaos.members.kubeconfig import outside
from metaos.reconcile.manager import Manager
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, name
from metaos.resources.scheme import SECRET
from metaos.store.log import StoreFailed

log = logging.getLogger(__name__)

TYPE = "meta-os.eu/cluster"
LABEL = "meta-os.eu/hosted"
PREFIX = "cluster."
MAX_HOSTED = 64
#: Between two starts of an agent that ended: at least, at most, and how long one must have run to count as well.
AGAIN_SECONDS, LATEST_SECONDS, STEADY_SECONDS = 1.0, 60.0, 60.0


def secret(site: str, kubeconfig: str, manifest: str, identities: Identities) -> Obj:
    """What the hub is given of a cluster. ``kubeconfig`` and ``manifest`` (the site) are YAML."""
    found: Obj = dict(SECRET.empty(PREFIX + site, SYSTEM_NAMESPACE))
    found["metadata"]["labels"] = {LABEL: "true"}
    data = {"kubeconfig": kubeconfig, "site": manifest, "identities": identities.value}
    return found | {"type": TYPE, "stringData": data}


def _given(found: Obj) -> object:
    """What an agent was started with: when it changes, another one is."""
    return found["metadata"].get("uid"), found.get("data")


class Hosted:
    """``url``: where the hub is found from here; ``token`` makes a join token for a site; ``lifeline_seconds``: agents end where
    this process has not run for so long, as another hub may lead by then; 0: there is no other."""

    def __init__(
        self,
        manager: Manager,
        client: Client,
        clock: Clock,
        folder: Path,
        url: Callable[[], str],
        token: Callable[[str], Awaitable[str]],
        lifeline_seconds: float = 0.0,
    ) -> None:
        self._lifeline = lifeline_seconds
        self._client, self._clock, self._folder, self._url, self._token = client, clock, folder, url, token
        self._secrets = manager.informer(SECRET, SYSTEM_NAMESPACE, f"{LABEL}=true")
        self._news = asyncio.Event()
        self._secrets.on_change(lambda old, new: self._news.set())
        self._running: dict[str, tuple[object, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Never returns."""
        await self._secrets.synced()
        try:
            while True:
                self._news.clear()
                await self._settle()
                await self._news.wait()
        finally:
            await self._end(list(self._running))

    async def _settle(self) -> None:
        given = (s for s in self._secrets.list() if s.get("type") == TYPE and name(s).startswith(PREFIX))
        wanted = {name(s).removeprefix(PREFIX): s for s in given}
        known = set(wanted)
        for site in sorted(wanted)[MAX_HOSTED:]:
            log.error("cluster %s is not hosted: this hub hosts %d already; run its agent elsewhere", site, MAX_HOSTED)
            del wanted[site]
        await self._end(
            [site for site, (given, _) in self._running.items() if site not in wanted or _given(wanted[site]) != given]
        )
        await asyncio.to_thread(self._clear, known)
        for site, found in sorted(wanted.items()):
            if site not in self._running:
                self._running[site] = _given(found), asyncio.create_task(self._keep(site, found), name=f"agent of {site}")

    def _clear(self, known: set[str]) -> None:
        """Forgets what is kept of clusters whose Secret is gone: a kubeconfig, and an identity that counts no more."""
        for folder in self._folder.iterdir() if self._folder.is_dir() else ():
            if folder.name not in known:
                log.info("cluster %s is not hosted any more: what was kept of it is removed", folder.name)
                shutil.rmtree(folder, ignore_errors=True)

    async def _end(self, sites: list[str]) -> None:
        tasks = [self._running.pop(site)[1] for site in sites]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, site: str, given: Obj) -> None:
        folder = self._folder / site
        try:
            await self._repeat(site, folder, given)
        finally:
            # It lies there only as long as an agent is to read it: another hub may lead when the cluster is removed.
            (folder / "kubeconfig.yaml").unlink(missing_ok=True)

    async def _repeat(self, site: str, folder: Path, given: Obj) -> None:
        wait = AGAIN_SECONDS
        while True:
            started = self._clock.monotonic()
            try:
                code = await self._agent(await self._prepare(site, folder, given))
            except (KeyError, ValueError) as error:
                log.error("cluster %s is not hosted: its Secret %s cannot be used: %s", site, name(given), error)
                return
            except (OSError, ApiError, StoreFailed) as error:
                said = str(error)
            else:
                if code == REMOVED:
                    await self._forget(site, folder, given)
                    return
                if code == REFUSED:
                    # Its token had been used, or its time had passed, before it came to join: the next start has a new one.
                    (folder / "token").unlink(missing_ok=True)
                said = f"it ended with {code}"
            wait = AGAIN_SECONDS if self._clock.monotonic() - started > STEADY_SECONDS else min(wait * 2, LATEST_SECONDS)
            log.error("the agent of cluster %s does not run: %s; it is started again in %g s", site, said, wait)
            await self._clock.sleep(wait)

    async def _agent(self, arguments: list[str]) -> int:
        """The exit code of an agent; it ends when this is cancelled."""
        command = [sys.executable, "-m", "metaos.members.lifeline", str(self._lifeline), *arguments]
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
        beating = asyncio.create_task(self._beat(process))
        try:
            return await process.wait()
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            raise
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _beat(self, process: asyncio.subprocess.Process) -> None:
        """While this hub leads and runs, its agents hear so."""
        while self._lifeline and process.stdin is not None:
            with suppress(OSError):
                process.stdin.write(b".")
                await process.stdin.drain()
            await self._clock.sleep(self._lifeline / 4)

    async def _prepare(self, site: str, folder: Path, given: Obj) -> list[str]:
        """Raises ``KeyError`` and ``ValueError`` where the Secret is not as :func:`secret` makes it: whoever may write Secrets of
        ``nemo-system`` is not therefore to run programs at the hub, or to have it read its files."""
        data = {key: b64decode(value, validate=True).decode() for key, value in (given.get("data") or {}).items()}
        identities = Identities(data["identities"])
        if field := await asyncio.to_thread(_outside, data["kubeconfig"]):
            raise ValueError(f"{field} of its kubeconfig would have the hub run a program or read a file: add it anew")
        make_private(self._folder)
        # A cluster that was removed and added again is another site, with an identity of its own.
        mark, uid = folder / "secret", str(given["metadata"]["uid"])
        if mark.exists() and mark.read_text() != uid:
            await asyncio.to_thread(shutil.rmtree, folder)
        make_private(folder)
        write_private(mark, uid)
        for file in ("kubeconfig", "site"):
            write_private(folder / f"{file}.yaml", data[file])
        token = folder / "token"
        if not token.exists():
            write_private(token, await self._token(site))
        arguments = ["--runtime", "kubernetes", "--kubeconfig", str(folder / "kubeconfig.yaml"), "--hub", self._url()]
        arguments += ["--site", str(folder / "site.yaml"), "--token-file", str(token), "--data", str(folder / "agent")]
        return [*arguments, "--identities", identities.value]

    async def _forget(self, site: str, folder: Path, given: Obj) -> None:
        """The Cluster was removed at the hub, and the agent has taken away what it had applied."""
        log.info("cluster %s was removed: its kubeconfig is forgotten", site)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        try:
            await self._client.delete(SECRET, name(given), SYSTEM_NAMESPACE)
        except (ApiError, StoreFailed) as error:
            if not isinstance(error, ApiError) or error.code != 404:
                log.error("the Secret %s of a removed cluster is still there: delete it (%s)", name(given), error)


def _outside(kubeconfig: str) -> str:
    import yaml

    try:
        return outside(yaml.safe_load(kubeconfig))
    except yaml.YAMLError:
        raise ValueError("its kubeconfig is not YAML") from None
