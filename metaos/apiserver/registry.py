"""The rules of the API, without HTTP: every verb on every kind, over the store.

Reads and watches come from the watch cache; a read sees every write acknowledged before it. ``Reading`` and ``Writing`` are
its other parts; here objects are evicted, bound and deleted, and the whole is started and stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools

from metaos.apiserver import deletion, reviews, subresources
from metaos.apiserver.addressing import encode, gone, kept, key_of, sealed, stored_kind
from metaos.apiserver.cache import EncodedEvent, Version
from metaos.apiserver.eviction import permitted
from metaos.apiserver.local import RegistryClient
from metaos.apiserver.reading import Authorizer, decoded
from metaos.apiserver.share import Share
from metaos.apiserver.writing import ATTEMPTS, SELF, TOO_MANY, Mutation, Write, Writing
from metaos.client import Client
from metaos.devices.credentials import claim_user
from metaos.resources import errors, scheme
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, deleting, format_time, name, namespace, uid
from metaos.resources.scheme import Kind
from metaos.security.authz import Attributes, UserInfo, cluster_of, token_problem
from metaos.store.log import Conflict

__all__ = ["Authorizer", "EncodedEvent", "Registry", "sealed"]

BOOKMARK_SECONDS = 60.0


class Registry(Writing):
    """Every verb on every kind, for whoever asks; ``client`` makes it one user's."""

    _bookmarks: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the cache and makes what must exist: the first namespaces and the bootstrap roles. A role that an earlier release
        made gets the rules that it lacks, as Kubernetes does it (unless annotated otherwise); what was added stays.
        Services without an address get one."""
        await self.cache.start()
        for text in reviews.bootstrap():
            kind = scheme.kind_of(text)
            found = self.cache.get(key_of(kind, namespace(text), name(text)))
            with contextlib.suppress(errors.ApiError):
                if found is None:
                    await self.create(SELF, text)
                elif kind is scheme.CLUSTER_ROLE and (missing := reviews.missing_rules(found.object(), text)):
                    rules = [*(found.object().get("rules") or ()), *missing]
                    await self.patch(SELF, kind, name(text), "", {"rules": rules})
        await self.allotment.complete(self._store)
        self._bookmarks = asyncio.create_task(self._tick(), name="watch-bookmarks")

    async def stop(self) -> None:
        """Ends all watches. The store stays open: who opened it closes it."""
        if self._bookmarks is not None:
            self._bookmarks.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._bookmarks
        await self.cache.close()
        if self._judges is not None:
            await self._judges.close()

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(BOOKMARK_SECONDS)
            self.cache.tick()

    def client(self, user: UserInfo) -> Client:
        """This registry for one user, in process, with the same rules as over HTTPS."""
        return RegistryClient(self, user)

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
        """POST of ``eviction`` or ``binding`` on a Pod (answers the Status to send), of ``token`` on a ServiceAccount, and what
        the desk of devices answers."""
        await self.check_now(user, Attributes("create", kind.group, kind.plural, subresource, namespace, name))
        if kind in (scheme.DEVICE, scheme.DEVICE_CLAIM):
            return await self._ask_desk(user, kind, name, namespace, subresource, obj, dry_run)
        if kind is scheme.SERVICE_ACCOUNT:
            account = self.current(kind, name, namespace)
            if account is None:
                raise errors.not_found("", kind.plural, name)
            self._check_token(user, name, namespace, obj.get("spec") or {})
            return await self.account_tokens.request(account, obj, dry_run=dry_run)
        now = format_time(self._clock.now())
        pod = await self.get(SELF, kind, name, namespace) if subresource == "eviction" else None
        # Asked once: a cordon that comes or goes meanwhile leaves no eviction that neither moves nor deletes.
        moving = functools.partial(subresources.moves, drained=pod is not None and self._is_drained(pod))
        mutate = subresources.posted(kind, subresource, obj, now, moving=moving)
        internal = Write(SELF, user.name, dry_run, "Ignore", warnings if warnings is not None else [])
        if pod is not None:
            mutate(pod)  # What speaks against it is found before any budget is touched.
            budgets = [version.object() for version in self.cache.range(scheme.POD_DISRUPTION_BUDGET.resource, namespace)]
            await permitted(pod, budgets, now, functools.partial(self._note_disruption, internal))
        evicted = await self._modify(internal, kind, name, namespace, mutate)
        if pod is not None and not moving(evicted):
            grace = (obj.get("deleteOptions") or {}).get("gracePeriodSeconds")
            await self.delete(SELF, kind, name, namespace, uid=uid(evicted), grace_period_seconds=grace, dry_run=dry_run)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}

    def _check_token(self, user: UserInfo, account: str, where: str, spec: Obj) -> None:
        """An agent gets tokens for the pods of its site alone."""
        member = cluster_of(user)
        if member is None:
            return
        from metaos.apiserver.accounttokens import ISSUER

        pod = self.current(scheme.POD, str((spec.get("boundObjectRef") or {}).get("name") or ""), where)
        problem = token_problem(member, account, (ISSUER,), spec, pod, Share(self.cache, member))
        if problem:
            raise errors.forbidden("", "serviceaccounts/token", account, problem)

    async def _ask_desk(
        self, user: UserInfo, kind: Kind, name: str, namespace: str, subresource: str, obj: Obj, dry_run: bool
    ) -> Obj:
        if dry_run:
            raise errors.bad_request(
                f"dryRun: {kind.plural}/{subresource} cannot be tried, as it is never stored: leave dryRun out"
            )
        if kind is scheme.DEVICE_CLAIM:
            if user.name != claim_user(namespace, name):
                why = "only who holds the claim's token or certificate enrols by it; others make Devices, or a DeviceBatch"
                raise errors.forbidden(kind.group, kind.plural, name, why)
            return await self.desk.answer("enrol", namespace, name, obj)
        if self.current(kind, name, namespace) is None:
            raise errors.not_found(kind.group, kind.plural, name)
        if subresource == "credential":
            return await self.desk.answer("credential", namespace, name)
        return await self.desk.answer("command", namespace, name, obj)

    async def get(self, user: UserInfo, kind: Kind, name: str, namespace: str = "", *, subresource: str = "") -> Obj:
        found = await super().get(user, kind, name, namespace, subresource=subresource)
        return await self.desk.answer("live", namespace, name) if subresource == "live" else found

    def _is_drained(self, pod: Obj) -> bool:
        """Whether a pod's site takes no pods any more: it is cordoned, or being removed."""
        site = self.cache.get(key_of(scheme.CLUSTER, "", str((pod.get("spec") or {}).get("nodeName") or "")))
        found = None if site is None else site.object()
        return found is not None and (bool((found.get("spec") or {}).get("unschedulable")) or deleting(found))

    async def _note_disruption(self, write: Write, budget: Obj, mutate: Mutation) -> None:
        await self._modify(write, scheme.POD_DISRUPTION_BUDGET, name(budget), namespace(budget), mutate, "status")

    # -- deleting ------------------------------------------------------------------------------------------

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
        author: UserInfo | None = None,
    ) -> Obj:
        """The object where it remains for now (finalizers, grace period), and of some kinds where it is gone (``deletion.last``);
        otherwise a Status of success. ``author``: who wants
        it, where the right to it was asked for already."""
        await self.check_now(user, Attributes("delete", kind.group, kind.plural, "", namespace, name))
        stored = stored_kind(kind)
        options = deletion.DeleteOptions(uid, resource_version, propagation, grace_period_seconds)
        if stored is scheme.NAMESPACE and name in ("default", SYSTEM_NAMESPACE):
            raise errors.forbidden("", "namespaces", name, "this namespace may not be deleted")
        key = key_of(stored, namespace, name)
        version = self.cache.get(key)
        write = Write(author or user, dry_run=dry_run, warnings=warnings if warnings is not None else [])
        for _ in range(ATTEMPTS):
            if version is None:
                raise errors.not_found(kind.group, kind.plural, name)
            current = decoded(kind, version)
            self._check_author(user, stored, None, current)
            await self._admit(write, kind, "DELETE", current, current)
            await self._approve(write, kind, "DELETE", None, current)
            left = deletion.delete(stored, current, options, self._clock.now())
            finished = deletion.finished(stored, left)
            if left == current and not finished:
                return self._show(kind, current, "")
            shown = deletion.last(stored, current, left) if finished else left
            try:
                if not dry_run and finished:
                    revision = await self._store.delete(key, expected=version.revision)
                    self.cache.written(revision)
                    if shown is not None:
                        shown["metadata"]["resourceVersion"] = str(revision)
                elif not dry_run:
                    shown = self._answer(left, await self._store.update(key, encode(kept(kind, left)), expected=version.revision))
            except Conflict as met:
                if resource_version and met.current is not None:
                    raise errors.conflict(kind.group, kind.plural, name) from None
                version = Version(key, met.current.value, met.current.revision) if met.current else None
                continue
            return self._show(kind, shown, "") if shown is not None else gone(kind, current)
        raise errors.conflict(kind.group, kind.plural, name, TOO_MANY)

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
    ) -> list[Obj]:
        """The objects as they were."""
        await self.check_now(user, Attributes("deletecollection", kind.group, kind.plural, "", namespace, fields=fields))
        found: list[Obj] = []
        for version in await self._selected(kind, namespace, labels, fields):
            obj = version.object()
            found.append(obj)
            self._check_author(user, kind, None, obj)
            try:
                await self.delete(
                    SELF,
                    kind,
                    version.name,
                    version.namespace,
                    propagation=propagation,
                    grace_period_seconds=grace_period_seconds,
                    dry_run=dry_run,
                    author=user,
                )
            except errors.ApiError as refused:
                if refused.code != 404:  # Gone meanwhile: as wanted.
                    raise
        return [self._show(kind, obj, "") for obj in found]
