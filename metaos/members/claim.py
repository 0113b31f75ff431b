"""Whose a Kubernetes cluster is: a ConfigMap in it names the one membership that may use it, so that two hubs do not fight."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from metaos.client import Client
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, uid
from metaos.resources.scheme import CONFIG_MAP, NAMESPACE

NAME = "nemo-member"


@dataclass(frozen=True, slots=True)
class Membership:
    """``id`` is the uid of the Cluster at the hub."""

    id: str
    site: str
    hub: str


async def claim(client: Client, wanted: Membership) -> str:
    """Takes the cluster where nobody has it. Empty where it is ours, else whose it is and how it is given up. Raises
    ``ApiError``."""
    with suppress(ApiError):  # it is there, or we may not make it, which the next step shows
        await client.create({**NAMESPACE.empty(SYSTEM_NAMESPACE)})
    found: Obj = {**CONFIG_MAP.empty(NAME, SYSTEM_NAMESPACE)}
    found["data"] = {"member": wanted.id, "site": wanted.site, "hub": wanted.hub}
    try:
        await client.create(found)
        return ""
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise
    data = (await client.get(CONFIG_MAP, NAME, SYSTEM_NAMESPACE)).get("data") or {}
    if data.get("member") == wanted.id:
        return ""
    return (
        f"this cluster is a member of the hub {data.get('hub')} already, as site {data.get('site')!r}: nothing is applied to it. "
        f"Remove it there ('kubectl delete cluster {data.get('site')}'), or, where that hub is no more, give it up with 'kubectl "
        f"delete configmap {NAME} -n {SYSTEM_NAMESPACE}' at this cluster"
    )


async def release(client: Client, wanted: Membership) -> None:
    """Gives the cluster up where it is ours."""
    with suppress(ApiError):
        found = await client.get(CONFIG_MAP, NAME, SYSTEM_NAMESPACE)
        if (found.get("data") or {}).get("member") == wanted.id:
            await client.delete(CONFIG_MAP, NAME, SYSTEM_NAMESPACE, uid=uid(found))
