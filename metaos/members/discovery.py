"""Which kinds a member's server has, asked group by group and only when one is needed.

Source: Kubernetes API, ``APIResourceList``, as all servers have served it. Bound: as many kinds as the server has.
"""

from __future__ import annotations

from typing import Any

from metaos.http import HttpClient, json_of
from metaos.members.manifests import OLDER
from metaos.resources.scheme import Kind


class Discovery:
    """What was found is remembered; what was not is asked for again."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._known: dict[str, dict[str, Kind]] = {}

    async def find(self, api_version: str, kind: str) -> Kind | None:
        """The kind as this server serves it, under an older version where it has no other. Raises ``ApiError``."""
        for version in (api_version, *OLDER.get((api_version, kind), ())):
            found = self._known.get(version, {}).get(kind)
            if found is None:
                found = (await self._fetch(version)).get(kind)
            if found is not None:
                return found
        return None

    def forget(self, group: str = "") -> None:
        """Kinds of a group, or all, may have come or gone."""
        self._known = {v: k for v, k in self._known.items() if group and v.rpartition("/")[0] != group}

    async def everything(self) -> list[Kind]:
        """All kinds whose objects can be listed and deleted, in the version that the server prefers. Raises ``ApiError``."""
        groups = (await self._get("/apis") or {}).get("groups") or ()
        versions = ["v1", *(str((g.get("preferredVersion") or {}).get("groupVersion") or "") for g in groups)]
        return [
            kind for version in versions if version for kind in (await self._fetch(version)).values() if "delete" in kind.verbs
        ]

    async def _fetch(self, version: str) -> dict[str, Kind]:
        found = await self._get(f"/apis/{version}" if "/" in version else f"/api/{version}")
        group, _, short = version.rpartition("/")
        kinds = {}
        for each in (found or {}).get("resources") or ():
            if "/" not in each["name"] and {"get", "list", "patch"} <= set(each.get("verbs") or ()):
                kinds[str(each["kind"])] = Kind(
                    group, short, str(each["kind"]), str(each["name"]), bool(each.get("namespaced")), verbs=tuple(each["verbs"])
                )
        self._known[version] = kinds
        return kinds

    async def _get(self, path: str) -> Any:
        answer = await self._client.request("GET", path)
        if answer.status == 404:
            return None
        if answer.status == 503 and path.count("/") >= 2:
            return None  # An aggregated server that is away takes nothing but its own group with it.
        return json_of(answer, f"GET {path}")
