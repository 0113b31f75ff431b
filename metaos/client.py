"""The ``Client`` protocol: how everything but the API server reaches state.

In one process it is the API server's registry behind the same authorisation, validation and conflict rules as over
HTTPS (``Registry.client(user)``); elsewhere it is :class:`HttpClient` (``metaos/http.py``). Errors are
:class:`~metaos.resources.errors.ApiError`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from metaos.resources.meta import Obj
from metaos.resources.scheme import Kind


class PatchType(StrEnum):
    """Content types of a patch."""

    JSON = "application/json-patch+json"
    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class ObjList:
    """Objects as of one ``resource_version``; ``continue_token`` is empty on the last page."""

    items: list[Obj]
    resource_version: str
    continue_token: str = ""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """``ADDED``, ``MODIFIED``, ``DELETED`` or ``BOOKMARK``. A watch's errors are raised as ``ApiError``."""

    type: str
    object: Obj


class Client(Protocol):
    """The eight verbs. ``namespace`` is empty for cluster-wide kinds and for all namespaces."""

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Obj: ...

    async def list(
        self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "", limit: int = 0, continue_token: str = ""
    ) -> ObjList: ...

    def watch(
        self, kind: Kind, namespace: str = "", *, resource_version: str = "", labels: str = "", fields: str = ""
    ) -> AsyncIterator[WatchEvent]:
        """Events after ``resource_version``. Raises ``ApiError`` 410 when that is too old. Ends when the server ends it."""
        ...

    async def create(self, obj: Obj, *, field_manager: str = "", dry_run: bool = False) -> Obj: ...

    async def update(self, obj: Obj, *, subresource: str = "", field_manager: str = "", dry_run: bool = False) -> Obj:
        """Replace. With ``metadata.resourceVersion`` set: 409 unless it is the current one."""
        ...

    async def patch(
        self,
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
    ) -> Obj: ...

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        resource_version: str = "",
        propagation: str = "",
        grace_period_seconds: int | None = None,
        dry_run: bool = False,
    ) -> Obj: ...

    async def delete_collection(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> None: ...
