"""Commands about clusters that the hub reaches by itself."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from metaos.cli.connection import with_client
from metaos.http import HttpClient
from metaos.members.callers import Identities
from metaos.members.hosted import PREFIX, secret
from metaos.members.kubeconfig import MAX_BYTES, Access, KubeconfigError, read
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj


def portable(access: Access, cluster: str) -> dict[str, Any]:
    """A kubeconfig that needs no file beside it. Raises ``ValueError`` where the hub would have to run or read something."""
    file = access.token_file or access.oidc.get("idp-certificate-authority")
    for there, what in ((access.exec, "run a program"), (file, "read a file of yours")):
        if there:
            raise ValueError(
                f"the kubeconfig has the hub {what} to say who it is: use a token or a certificate, or run the agent where that "
                "works ('nemo agent --runtime kubernetes')"
            )

    def coded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    server: dict[str, Any] = {"server": access.server}
    if access.insecure:
        server["insecure-skip-tls-verify"] = True
    if access.ca:
        server["certificate-authority-data"] = coded(access.ca)
    if access.server_name:
        server["tls-server-name"] = access.server_name
    user: dict[str, Any] = {}
    if access.certificate:
        user |= {"client-certificate-data": coded(access.certificate), "client-key-data": coded(access.key)}
    if access.token:
        user["token"] = access.token
    if access.oidc:
        user["auth-provider"] = {"name": "oidc", "config": access.oidc}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": server}],
        "users": [{"name": cluster, "user": user}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": cluster}}],
        "current-context": cluster,
    }


def add(
    site: str, given: Path, context: str, manifest: Path | None, identities: Identities, kubeconfig: Path | None, data: Path
) -> None:
    """Hands a cluster to the hub. Raises ``ValueError``, ``ApiError``."""
    import yaml

    with given.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{given} has more than {MAX_BYTES} bytes: is it a kubeconfig?")
    try:
        access = read(yaml.safe_load(content), context, given.resolve().parent)
    except yaml.YAMLError as error:
        raise ValueError(f"kubeconfig {given}: it is not YAML: {' '.join(str(error).split())[:300]}") from None
    except KubeconfigError as error:
        raise ValueError(f"kubeconfig {given}: {error}") from None
    text = yaml.safe_dump(portable(access, site))
    wanted = secret(site, text, yaml.safe_dump(_site(site, manifest)), identities)

    async def give(client: HttpClient) -> None:
        try:
            await client.get(scheme.CLUSTER, site)
        except ApiError as error:
            if error.code != 404:
                raise
        else:
            raise ValueError(f"there is a site {site!r} already: choose another name, or remove it first")
        try:
            await client.create(wanted)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            raise ValueError(
                f"the hub has a kubeconfig of cluster {site!r} already, which is joining or being removed: wait, or have it "
                f"forgotten with 'nemo cluster remove {site}'"
            ) from None

    with_client(kubeconfig, data, give)


def _site(site: str, manifest: Path | None) -> Obj:
    import yaml

    if manifest is None:
        return {**scheme.CLUSTER.empty(site), "spec": {"tier": "cloud"}}
    try:
        found = yaml.safe_load(manifest.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"site file {manifest} cannot be read: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(found, dict) or found.get("kind") != "Cluster" or not isinstance(found.get("metadata"), dict):
        raise ValueError(f"site file {manifest} must be a Cluster manifest")
    if found["metadata"].get("name", site) != site:
        raise ValueError(f"site file {manifest} is of site {found['metadata'].get('name')!r}, not {site!r}: use one name")
    return found | {"metadata": found["metadata"] | {"name": site}}


def remove(site: str, kubeconfig: Path | None, data: Path) -> str:
    """Has a cluster removed that the hub hosts; what happens now. Raises ``ApiError``."""

    async def go(client: HttpClient) -> str:
        try:
            await client.get(scheme.SECRET, PREFIX + site, SYSTEM_NAMESPACE)
        except ApiError as error:
            if error.code != 404:
                raise
            text = f"the hub hosts no cluster {site!r}: if its agent runs elsewhere, 'kubectl delete cluster {site}' removes it"
            raise ApiError(404, "NotFound", text) from None
        try:
            await client.delete(scheme.CLUSTER, site)
        except ApiError as error:
            if error.code != 404:
                raise
            await client.delete(scheme.SECRET, PREFIX + site, SYSTEM_NAMESPACE)
            return f"cluster {site} is no site: its kubeconfig is forgotten; what was applied there, if anything, stays"
        return (
            f"cluster {site} hands over its work, and is forgotten when what was applied there is gone; where it cannot be "
            "reached any more, the same command once again forgets it at once"
        )

    return with_client(kubeconfig, data, go)
