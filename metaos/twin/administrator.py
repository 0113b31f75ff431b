"""What an administrator asks of a hub, again and again until it answers: of one in the twin, and of a real one."""

from __future__ import annotations

from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, name
from metaos.resources.scheme import Kind


class Administrator:
    """``admin`` is the way to the hub."""

    admin: Client
    clock: Clock

    async def apply(self, *objects: Obj) -> None:
        """What is there already is merged into."""
        for obj in objects:
            where = str(obj["metadata"].get("namespace") or "")
            try:
                await self._insist("create", obj)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
                await self._insist("patch", scheme.kind_of(obj), name(obj), where, obj)

    async def change(self, kind: Kind, what: str, where: str, patch: Obj) -> None:
        """What is gone by then stays gone."""
        await self._insist("patch", kind, what, where, patch, missing=True)

    async def scale(self, kind: Kind, what: str, where: str, replicas: int) -> None:
        await self.change(kind, what, where, {"spec": {"replicas": replicas}})

    async def remove(self, kind: Kind, what: str, where: str) -> None:
        await self._insist("delete", kind, what, where, missing=True)

    async def _insist(self, verb: str, *arguments: Any, missing: bool = False) -> None:
        while True:
            try:
                await getattr(self.admin, verb)(*arguments)
                return
            except ApiError as error:
                if error.code == 404 and missing:
                    return
                if error.code != 503:
                    raise
            await self.clock.sleep(1.0)
