"""The in-process :class:`~metaos.client.Client`: a registry as one user sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from metaos.client import ObjList, PatchType, WatchEvent
from metaos.resources.meta import Obj
from metaos.resources.scheme import Kind
from metaos.security.authz import UserInfo

if TYPE_CHECKING:
    from metaos.apiserver.registry import Registry


class RegistryClient:
    """Every call carries ``user``; objects are copies, the caller's own."""

    def __init__(self, registry: Registry, user: UserInfo) -> None:
        self._registry = registry
        self._user = user

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Obj:
        return await self._registry.get(self._user, self._registry.kinds.own(kind), name, namespace)

    async def list(
        self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "", limit: int = 0, continue_token: str = ""
    ) -> ObjList:
        return await self._registry.list(
            self._user,
            self._registry.kinds.own(kind),
            namespace,
            labels=labels,
            fields=fields,
            limit=limit,
            continue_token=continue_token,
        )

    def watch(
        self, kind: Kind, namespace: str = "", *, resource_version: str = "", labels: str = "", fields: str = ""
    ) -> AsyncIterator[WatchEvent]:
        own = self._registry.kinds.own(kind)
        return self._registry.watch(self._user, own, namespace, resource_version=resource_version, labels=labels, fields=fields)

    async def create(self, obj: Obj, *, field_manager: str = "", dry_run: bool = False) -> Obj:
        return await self._registry.create(
            self._user, obj, field_manager=field_manager, dry_run=dry_run, field_validation="Ignore"
        )

    async def update(self, obj: Obj, *, subresource: str = "", field_manager: str = "", dry_run: bool = False) -> Obj:
        return await self._registry.update(
            self._user,
            obj,
            subresource=subresource,
            field_manager=field_manager,
            dry_run=dry_run,
            field_validation="Ignore",
        )

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
    ) -> Obj:
        return await self._registry.patch(
            self._user,
            self._registry.kinds.own(kind),
            name,
            namespace,
            patch,
            type=type,
            subresource=subresource,
            field_manager=field_manager,
            force=force,
            dry_run=dry_run,
            field_validation="Ignore",
        )

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
    ) -> Obj:
        return await self._registry.delete(
            self._user,
            self._registry.kinds.own(kind),
            name,
            namespace,
            uid=uid,
            resource_version=resource_version,
            propagation=propagation,
            grace_period_seconds=grace_period_seconds,
            dry_run=dry_run,
        )

    async def delete_collection(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> None:
        own = self._registry.kinds.own(kind)
        await self._registry.delete_collection(self._user, own, namespace, labels=labels, fields=fields)
