"""The rules of the API, without HTTP. (Signatures that others build against; the body follows.)"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from random import Random
from typing import Any

from metaos.client import Client, ObjList, PatchType, WatchEvent
from metaos.clock import Clock
from metaos.plugins.points import Admission
from metaos.resources.meta import Obj
from metaos.resources.scheme import Kind
from metaos.security.authz import Attributes, Decision, UserInfo
from metaos.store.log import Store

Authorizer = Callable[[UserInfo, Attributes], Decision]


class EncodedEvent(WatchEvent):
    """A watch event whose object is decoded only where it is asked for; ``encoded`` is the object's JSON."""

    encoded: bytes


class Registry:
    """All mutating methods take ``warnings``: a list to which texts for ``Warning:`` headers are appended.
    ``field_validation`` is Strict, Warn or Ignore. Objects that come back are the caller's own copies."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        random: Random,
        *,
        admission: Sequence[Admission] = (),
        authorizer: Authorizer | None = None,
    ) -> None: ...

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def client(self, user: UserInfo) -> Client: ...

    def authorize(self, user: UserInfo, attributes: Attributes) -> Decision:
        """For what is no object: ``path`` URLs (/metrics), log, exec, portforward, proxy, tunnel subresources."""
        ...

    def check(self, user: UserInfo, attributes: Attributes) -> None:
        """:meth:`authorize`, raising the 403."""
        ...

    async def get(self, user: UserInfo, kind: Kind, name: str, namespace: str = "", *, subresource: str = "") -> Obj:
        """``subresource``: ``status`` or ``scale`` (answers an autoscaling/v1 Scale)."""
        ...

    async def get_encoded(self, user: UserInfo, kind: Kind, name: str, namespace: str = "") -> bytes: ...

    async def list(
        self,
        user: UserInfo,
        kind: Kind,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 0,
        continue_token: str = "",
        resource_version: str = "",
        resource_version_match: str = "",
    ) -> ObjList: ...

    async def list_encoded(
        self,
        user: UserInfo,
        kind: Kind,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 0,
        continue_token: str = "",
        resource_version: str = "",
        resource_version_match: str = "",
    ) -> bytes:
        """The whole ``…List`` body as JSON."""
        ...

    def watch(
        self,
        user: UserInfo,
        kind: Kind,
        namespace: str = "",
        *,
        resource_version: str = "",
        labels: str = "",
        fields: str = "",
        bookmarks: bool = False,
        initial_events: bool = False,
    ) -> AsyncIterator[EncodedEvent]:
        """``initial_events``: ``sendInitialEvents=true`` (WatchList): current objects, then the annotated bookmark."""
        ...

    async def create(
        self,
        user: UserInfo,
        obj: Obj,
        *,
        kind: Kind | None = None,
        namespace: str = "",
        field_manager: str = "",
        dry_run: bool = False,
        field_validation: str = "Warn",
        warnings: list[str] | None = None,
    ) -> Obj:
        """Also the review kinds. ``kind`` and ``namespace`` come from the URL and are checked against the body."""
        ...

    async def create_subresource(
        self,
        user: UserInfo,
        kind: Kind,
        name: str,
        namespace: str,
        subresource: str,
        obj: Obj,
        *,
        dry_run: bool = False,
        warnings: list[str] | None = None,
    ) -> Obj:
        """POST of ``eviction`` or ``binding`` on a Pod. Answers the Status to send (201)."""
        ...

    async def update(
        self,
        user: UserInfo,
        obj: Obj,
        *,
        kind: Kind | None = None,
        name: str = "",
        namespace: str = "",
        subresource: str = "",
        field_manager: str = "",
        dry_run: bool = False,
        field_validation: str = "Warn",
        warnings: list[str] | None = None,
    ) -> Obj:
        """``subresource``: status, scale (then ``kind``/``name``/``namespace`` say of what), approval, finalize."""
        ...

    async def patch(
        self,
        user: UserInfo,
        kind: Kind,
        name: str,
        namespace: str,
        patch: Any,
        *,
        type: PatchType = PatchType.MERGE,
        subresource: str = "",
        field_manager: str = "",
        force: bool = False,
        dry_run: bool = False,
        field_validation: str = "Warn",
        warnings: list[str] | None = None,
    ) -> Obj:
        """Server-side apply creates what does not exist; the answer then has ``generation`` 1 and the caller sends 201
        where ``metadata.creationTimestamp`` is new (see :meth:`patched`)."""
        ...

    async def delete(
        self,
        user: UserInfo,
        kind: Kind,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        resource_version: str = "",
        propagation: str = "",
        grace_period_seconds: int | None = None,
        dry_run: bool = False,
        warnings: list[str] | None = None,
    ) -> Obj:
        """The object where it remains for now (finalizers, grace period), otherwise a Status of success."""
        ...

    async def delete_collection(
        self,
        user: UserInfo,
        kind: Kind,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        propagation: str = "",
        grace_period_seconds: int | None = None,
        dry_run: bool = False,
    ) -> None: ...
