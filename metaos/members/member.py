"""The member's API: one client that follows its kubeconfig, and what is known of the server.

A kubeconfig that was given anew is taken up without a restart: it is read again while the server cannot be reached or refuses
us. The server's address alone stays what it was at the start.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from pathlib import Path
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)

from metaos.agent.contact import Contact
from metaos.agent.join import JoinError, module_process
from metaos.clock import Clock, sleep_or
from metaos.http import HttpClient, json_of
from metaos.members.credentials import Credentials, context_of, make
from metaos.members.kubeconfig import Access, KubeconfigError
from metaos.resources.errors import ApiError
from metaos.resources.meta import format_time

log = logging.getLogger(__name__)

#: The server is asked for its version so often, and so it is known that it answers.
LOOK_SECONDS = 10.0
#: Without an answer for so long it counts as unreachable.
PATIENCE_SECONDS = 30.0
#: Changes of objects that are under way at the same time.
WORKERS = 8
#: Kinds that are followed at the same time, and namespaces whose pods and events are; each takes a connection.
MAX_KINDS, MAX_NAMESPACES = 256, 200
#: Logs that are read at the same time, each on a connection too.
MAX_LOGS = 64


async def read_access(kubeconfig: Path | None, context: str) -> Access:
    """``None``: the pod's own service account. Raises ``KubeconfigError``."""
    arguments = [] if kubeconfig is None else [str(kubeconfig), context]
    try:
        return Access(**json.loads(await module_process("metaos.members.kubeconfig", *arguments)))
    except JoinError as error:
        raise KubeconfigError(str(error)) from None


class Member:
    """``problem`` says why the server cannot be used; empty where it answers and accepts us."""

    def __init__(self, access: Access, kubeconfig: Path | None, context: str, data: Path, clock: Clock, random: Random) -> None:
        self._kubeconfig, self._context, self._kept = kubeconfig, context, data / "oidc.json"
        self._clock, self._random = clock, random
        self.server = access.server
        self.version = ""
        self.problem = "the cluster has not been reached yet"
        self._answered = float("-inf")
        self._doubted = asyncio.Event()
        self.contact = Contact(clock, random, peer="the cluster's API server")
        self.client = HttpClient(
            access.server,
            context=context_of(access),
            peer="the cluster's API server",
            server_name=access.server_name,
            bearer=self._token,
            watches=MAX_KINDS + 2 * MAX_NAMESPACES + MAX_LOGS + 4,  # and the nodes, all pods, quotas, ranges
            idle=WORKERS,
            clock=clock,
            random=random,
        )
        self.client.on_answer = self.contact.reached
        self.client.on_refused = self._refused
        self.contact.on_return(lambda: self.client.drop_older(self.contact.lost))
        self._take(access)

    @property
    def able(self) -> bool:
        """Whether the server answered, and accepted us, a short time ago."""
        return self._clock.monotonic() - self._answered <= PATIENCE_SECONDS

    @property
    def minor(self) -> int:
        """Of Kubernetes 1; 0 while it is not known."""
        parts = self.version.split(".")
        return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self.look()
            if self.problem:
                await self._read_again()
                self._doubted.clear()
                await self._clock.sleep(LOOK_SECONDS)
            else:
                await sleep_or(self._clock, LOOK_SECONDS, self._doubted)

    async def look(self) -> None:
        """Ask the server who it is, with our credentials."""
        try:
            answer = await self.client.request("GET", "/version", timeout_seconds=LOOK_SECONDS)
            if answer.status == 200:
                said = json_of(answer, f"GET {self.server}/version")
                self.version = str(said.get("gitVersion") or "") if isinstance(said, dict) else ""
            # That address is open to all: what asks for credentials says whether ours count.
            answer = await self.client.request("GET", "/api/v1", timeout_seconds=LOOK_SECONDS)
            if answer.status == 401:
                raise ApiError(401, "Unauthorized", "it answers Unauthorized")
        except ApiError as error:
            self.contact.missed(error)
            self._failed(error)
            return
        if self.problem and self._answered > float("-inf"):
            log.info("the cluster at %s can be used again", self.server)
        self.problem, self._answered = "", self._clock.monotonic()

    def _failed(self, error: ApiError) -> None:
        text, ends = error.message, self._access.not_after
        if error.code == 401:
            text = f"the cluster at {self.server} does not accept the kubeconfig's credentials: {text}"
        if ends is not None and ends < self._clock.now():
            text += f"; the kubeconfig's client certificate ended at {format_time(ends)}: put a new kubeconfig in its place"
        elif error.code == 401:
            text += "; where they were withdrawn, put a new kubeconfig in its place, it is read again by itself"
        if text != self.problem:
            log.warning("%s", text)
        self.problem = text

    def _take(self, access: Access) -> None:
        self._access = access
        self._credentials: Credentials = make(access, self._kept, self._clock, self._random, self._certified)

    def _certified(self, certificate: str, key: str) -> None:
        try:
            self.client.use(context_of(self._access, certificate, key))
        except (ssl.SSLError, ValueError) as error:
            raise ApiError(401, "Unauthorized", f"the exec plugin's certificate and key do not fit: {error}") from error

    async def _token(self) -> str:
        return await self._credentials.token()

    def _refused(self) -> None:
        self._credentials.refused()
        self._doubted.set()

    async def _read_again(self) -> None:
        try:
            access = await read_access(self._kubeconfig, self._context)
            if access == self._access:
                return
            if access.server != self.server:
                log.error("the kubeconfig names another server, %s: restart the agent to use it", access.server)
                return
            self.client.use(context_of(access))
            self._take(access)
        except (KubeconfigError, OSError, ValueError) as error:  # SSLError is an OSError
            log.warning("%s", error)
