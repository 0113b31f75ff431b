"""ServiceAccounts of a site's pods: as whom a pod calls the hub's API, with which token, and where it finds that.

As Kubernetes has it: a pod that has a token finds it, renewed in time, with the authorities that vouch for the hub and its
namespace's name in a directory; the API is at ``kubernetes.default.svc``. The hub gives a token for a Pod that it knows to be at
this site, and takes it for as long as that Pod is there. Tokens are in memory and in the pod's volume, and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from metaos.clock import Clock
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, name, namespace, parse_time, uid
from metaos.resources.services import API_NAMES, API_PORT

log = logging.getLogger(__name__)

#: Where the clients look for it. Source: ``plugin/pkg/admission/serviceaccount`` of Kubernetes.
DIRECTORY = "/var/run/secrets/kubernetes.io/serviceaccount"
#: The ConfigMap by whose name a projected volume asks for the authorities that vouch for the API server.
ROOT_CA = "kube-root-ca.crt"
DEFAULT = "default"
SECONDS = 3607
#: A token is renewed when so much of its time has passed, or so many seconds.
RENEW_AFTER, RENEW_SECONDS = 0.8, 86400.0
#: Between two looks at what is due; and after a failure, doubling up to the last.
LOOK_SECONDS, FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 10.0, 1.0, 60.0
#: Requests at the same time.
AT_ONCE = 4

#: What a hub answers that knows nothing of tokens for pods, as it is older than the agent.
_GIVES_NONE = ("may touch only what belongs to its own site", "could not find the requested resource")
OLDER_HUB = (
    "is the hub of an older release, which gives pods no tokens? Bring it up to date, or let the pod do without one "
    "(automountServiceAccountToken: false)"
)

API_ENV = {
    "KUBERNETES_SERVICE_HOST": API_NAMES[0],
    "KUBERNETES_SERVICE_PORT": str(API_PORT),
    "KUBERNETES_SERVICE_PORT_HTTPS": str(API_PORT),
}

Find = Callable[[ObjectRef], Obj | None]


class Hub(Protocol):
    """What is asked of the hub."""

    async def token(self, namespace: str, account: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """The status of a TokenRequest with this spec. Raises ``ApiError``."""
        ...

    def authorities(self) -> str:
        """Those that vouch for the hub, as PEM text."""
        ...


def token_sources(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The ``serviceAccountToken`` of a pod's projected volumes."""
    for volume in spec.get("volumes") or ():
        for source in (volume.get("projected") or {}).get("sources") or ():
            if source.get("serviceAccountToken"):
                yield source["serviceAccountToken"]


def calls_api(pod: Obj) -> bool:
    """Whether a pod has a token, and so finds the API."""
    return any(True for _ in token_sources(pod.get("spec") or {}))


def account_of(spec: Mapping[str, Any]) -> str:
    return str(spec.get("serviceAccountName") or DEFAULT)


def with_token(pod: Obj, find: Find) -> Obj:
    """A pod that is about to be made, with the volume of its token in every container that has nothing there: where the pod says
    so, or else its account, or else where it names one. (Kubernetes gives the account ``default``'s to all others, too.)"""
    spec = pod["spec"]
    account = account_of(spec)
    wanted = spec.get("automountServiceAccountToken")
    if wanted is None:
        known = find(ObjectRef("", "ServiceAccount", namespace(pod), account)) or {}
        wanted = known.get("automountServiceAccountToken")
    if not (account != DEFAULT if wanted is None else wanted):
        return pod
    volume = f"kube-api-access-{uid(pod)[:5]}"
    mount = {"name": volume, "mountPath": DIRECTORY, "readOnly": True}
    changed: dict[str, Any] = {}
    for kind in ("initContainers", "containers"):
        found = [
            each
            if any(m.get("mountPath") == DIRECTORY for m in each.get("volumeMounts") or ())
            else {**each, "volumeMounts": [*(each.get("volumeMounts") or ()), mount]}
            for each in spec.get(kind) or ()
        ]
        if found != (spec.get(kind) or []):
            changed[kind] = found
    if not changed:
        return pod
    sources: list[dict[str, Any]] = [
        {"serviceAccountToken": {"expirationSeconds": SECONDS, "path": "token"}},
        {"configMap": {"name": ROOT_CA, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]
    projected = {"name": volume, "projected": {"defaultMode": 0o644, "sources": sources}}
    return {**pod, "spec": {**spec, **changed, "volumes": [*(spec.get("volumes") or ()), projected]}}


@dataclass(slots=True)
class _Held:
    """One token of one pod."""

    pod: Obj
    audience: str
    seconds: int
    text: bytes = b""
    #: The uid that its Pod has at the hub.
    mirror: str = ""
    #: When it is asked for next (seconds since the epoch), and how often that has failed in a row.
    due: float = 0.0
    failures: int = 0
    problem: str = ""
    task: asyncio.Task[None] | None = None


#: Of a pod's uid, an audience (empty: the API server), and seconds.
_Key = tuple[str, str, int]


class PodTokens:
    """``shown(pod)`` has the hub know a local pod, and gives the uid that it has there (empty: it does not know it yet);
    ``uid_of(namespace, name)`` is that of the last news."""

    def __init__(self, hub: Hub, shown: Callable[[Obj], Awaitable[str]], uid_of: Callable[[str, str], str], clock: Clock) -> None:
        self._hub, self._shown, self._uid_of, self._clock = hub, shown, uid_of, clock
        self._held: dict[_Key, _Held] = {}
        self._listeners: list[Callable[[str], None]] = []
        self._free = asyncio.Semaphore(AT_ONCE)
        self._root: Obj = {}
        self._some = asyncio.Event()

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call ``listener`` with the uid of a pod whose volumes are to be written anew, or whose token could not be had."""
        self._listeners.append(listener)

    def token(self, pod: Obj, source: Mapping[str, Any]) -> bytes:
        """The present one for a ``serviceAccountToken``; empty while there is none. It is the same object until it is renewed."""
        held = self._of(pod, source)
        if not held.text:
            self._look_at(held)
        return held.text

    def problem(self, pod: Obj, source: Mapping[str, Any]) -> str:
        """Why there is none; empty where it has only just been asked for."""
        return self._of(pod, source).problem

    def root_ca(self) -> Obj:
        """What stands for the ConfigMap :data:`ROOT_CA`: the same object until the authorities change."""
        text = self._hub.authorities()
        if (self._root.get("data") or {}).get("ca.crt") != text:
            self._root = {"data": {"ca.crt": text}}
        return self._root

    def forget(self, pod_uid: str) -> None:
        """The pod is gone."""
        for key in [key for key in self._held if key[0] == pod_uid]:
            held = self._held.pop(key)
            if held.task is not None:
                held.task.cancel()

    def retry(self) -> None:
        """The hub answers again."""
        for held in self._held.values():
            if held.failures:
                held.due = 0.0
                self._look_at(held)

    async def run(self) -> NoReturn:
        """Renews what is due."""
        root = self.root_ca()
        while True:
            if not self._held:
                self._some.clear()
                await self._some.wait()
            await self._clock.sleep(LOOK_SECONDS)
            for held in list(self._held.values()):
                mirror = self._uid_of(namespace(held.pod), name(held.pod))
                if held.text and mirror and mirror != held.mirror:
                    held.due = min(held.due, self._clock.now())  # the one that it was bound to is gone
                self._look_at(held)
            if self._held and root is not self.root_ca():
                root = self.root_ca()
                self._tell(*sorted({key[0] for key in self._held}))

    async def close(self) -> None:
        tasks = [held.task for held in self._held.values() if held.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _of(self, pod: Obj, source: Mapping[str, Any]) -> _Held:
        audience, seconds = str(source.get("audience") or ""), int(source.get("expirationSeconds") or 3600)
        self._some.set()
        return self._held.setdefault((uid(pod), audience, seconds), _Held(pod, audience, seconds))

    def _look_at(self, held: _Held) -> None:
        if held.task is None and self._clock.now() >= held.due:
            held.task = asyncio.create_task(self._ask(held))

    def _tell(self, *pods: str) -> None:
        for pod in pods:
            for listener in self._listeners:
                listener(pod)

    async def _ask(self, held: _Held) -> None:
        pod = held.pod
        try:
            async with self._free:
                held.mirror = await self._shown(pod)
                if not held.mirror:
                    raise ApiError(503, "ServiceUnavailable", "the hub does not know the pod yet")
                reference = {"kind": "Pod", "apiVersion": "v1", "name": name(pod), "uid": held.mirror}
                spec = {"expirationSeconds": held.seconds, "boundObjectRef": reference}
                if held.audience:
                    spec["audiences"] = [held.audience]
                given = await self._hub.token(namespace(pod), account_of(pod["spec"]), spec)
            now = self._clock.now()
            left = parse_time(str(given["expirationTimestamp"])) - now
            held.text, held.problem, held.failures = str(given["token"]).encode(), "", 0
            held.due = now + max(LOOK_SECONDS, min(left * RENEW_AFTER, RENEW_SECONDS))
        except ApiError as error:
            older = error.code == 405 or (error.code in (403, 404) and any(text in error.message for text in _GIVES_NONE))
            remedy = f"; {OLDER_HUB}" if older else ""
            held.problem = f"no token of ServiceAccount {account_of(pod['spec'])}: {error.message}{remedy}"
            held.due = self._clock.now() + min(FIRST_RETRY_SECONDS * 2**held.failures, LAST_RETRY_SECONDS)
            held.failures = min(held.failures + 1, 16)
        finally:
            held.task = None
        self._tell(uid(pod))
