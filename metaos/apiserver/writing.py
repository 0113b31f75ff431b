"""The part of the registry that makes and changes objects.

A write is: authorise, shape (schema), default, admit, validate, compare-and-swap; it is tried again when it met another
write and its caller did not name a revision. A write that changes nothing is not written. Objects that come back are the
caller's own.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from random import Random  # noqa: TID251 - the type of the source that is handed in
from typing import TYPE_CHECKING, Any

import orjson

from metaos.apiserver import budgets, deletion, reviews, subresources, views
from metaos.apiserver.addressing import addressed, as_kept, encode, kept, key_of, same_identity, stored_kind
from metaos.apiserver.apply import Manager, applied, created_fields, first_fields, inherited, tracked
from metaos.apiserver.cache import Version, WatchCache
from metaos.apiserver.catalogue import MAX_DEFINITIONS
from metaos.apiserver.customkind import CustomKind
from metaos.apiserver.metadata import NAME_SUFFIX, changed, has_generation, name_causes, prepare_create, prepare_update
from metaos.apiserver.patch import apply_patch
from metaos.apiserver.reading import Authorizer, Reading, decoded
from metaos.apiserver.rules import services
from metaos.apiserver.schema import invalid, node_of
from metaos.apiserver.shaping import shape, validate
from metaos.apiserver.share import Share
from metaos.apiserver.supposing import supposed
from metaos.client import PatchType
from metaos.clock import Clock
from metaos.fleet.desk import Desk
from metaos.plugins.points import Admission
from metaos.resources import errors, scheme
from metaos.resources.errors import Cause
from metaos.resources.meta import RESERVED_PREFIX, Obj, format_time, name, namespace
from metaos.resources.scheme import Kind
from metaos.resources.services import lacks_address
from metaos.security.authz import (
    AUTHENTICATED,
    CONTROLLER_MANAGER,
    MASTERS,
    Attributes,
    UserInfo,
    agent_write_problem,
    apply_problem,
    cluster_of,
)
from metaos.store.log import Conflict, Overtaken, Store

if TYPE_CHECKING:
    from metaos.apiserver.accounttokens import AccountTokens
    from metaos.apiserver.allotment import Allotment
    from metaos.apiserver.authn import Identity
    from metaos.apiserver.custom.judge import Judge
    from metaos.apiserver.custom.matching import Asked
    from metaos.apiserver.custom.policies import Policies
    from metaos.apiserver.custom.webhooks import Webhooks
    from metaos.apiserver.quota import Quotas

Mutation = Callable[[Obj], Obj]

#: How often a write that named no revision is tried again when others came between.
ATTEMPTS = 20
TOO_MANY = "too many writers at the same time; please try again"
#: Who makes objects whose fields nobody else will claim, but for Clusters: whose they are is recorded from their first apply on.
UNTRACKED = ("system:controller:", "system:cluster:", "system:apiserver")
#: The API server's own identity, for what it makes at start.
SELF = UserInfo("system:apiserver", (MASTERS,))


@dataclass(slots=True)
class Write:
    """How one write is to be done, and who asks."""

    user: UserInfo
    manager: str = ""
    dry_run: bool = False
    field_validation: str = "Warn"
    warnings: list[str] = field(default_factory=list)


#: Kinds of NEMO's own that are answered and never stored.
REVIEWS = frozenset({scheme.PLACEMENT_REVIEW, scheme.BOOKING, scheme.STATEMENT, scheme.DEVICE_BATCH})

#: Reviews of others than their caller, who needs a right to ask.
OTHERS = frozenset({scheme.SUBJECT_ACCESS_REVIEW, scheme.LOCAL_SUBJECT_ACCESS_REVIEW, scheme.TOKEN_REVIEW})

SCALE_VERSION = "autoscaling/v1"
_NOT_STRATEGIC = (
    "the body of the request was in an unknown format - accepted media types include: "
    f"{PatchType.JSON}, {PatchType.MERGE}, {PatchType.APPLY}"
)


class Writing(Reading):
    """``shared``: other hubs write to the store, too.

    All mutating methods take ``warnings``: a list to which texts for ``Warning:`` headers are appended.
    ``field_validation`` is Strict, Warn or Ignore."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        random: Random,
        *,
        admission: Sequence[Admission] = (),
        authorizer: Authorizer | None = None,
        shared: bool = False,
    ) -> None:
        cache = WatchCache(store, shared=shared)
        self._roles = reviews.StoredAuthorizer(cache)
        super().__init__(cache, store, clock, authorizer or self._roles.decide)
        self._store = store
        self._random = random
        self._admission = tuple(admission)
        self._judges: Judge | None = None
        #: Who answers :data:`REVIEWS`.
        self.reviews: dict[Kind, Callable[[UserInfo, Obj], Awaitable[Obj]]] = {}
        #: Who answers what is asked about devices.
        self.desk = Desk()
        self.reviews[scheme.DEVICE_BATCH] = lambda user, obj: self.desk.answer("batch", obj)

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
        write = Write(user, field_manager, dry_run, field_validation, warnings if warnings is not None else [])
        kind, obj = addressed(obj, kind or self._kind_of(obj), "", namespace)
        if kind in REVIEWS:
            if kind not in self.reviews:
                raise errors.method_not_allowed(f"{kind.plural} are answered where the controllers run, and none do here")
            self.check(user, Attributes("create", kind.group, kind.plural, "", str(obj["metadata"].get("namespace") or "")))
            if dry_run and kind is scheme.DEVICE_BATCH:
                raise errors.bad_request("dryRun: a batch of devices cannot be tried, as it is never stored: leave dryRun out")
            shaped = shape(kind, obj, None, write.field_validation, write.warnings)
            if kind is scheme.PLACEMENT_REVIEW:
                # Beside the loop, as it may bring a thousand objects.
                shaped = await asyncio.to_thread(supposed, shaped)
            return await self.reviews[kind](user, shaped)
        if kind in OTHERS:
            self.check(user, Attributes("create", kind.group, kind.plural, "", str(obj["metadata"].get("namespace") or "")))
        if kind is scheme.TOKEN_REVIEW:
            return await self._token_review(obj)
        if "list" not in kind.verbs:
            return reviews.review(user, kind, obj, self.authorize, self._roles.rules)
        where = str(obj["metadata"].get("namespace") or "")
        named = str(obj["metadata"].get("name") or "")
        await self.check_now(user, Attributes("create", kind.group, kind.plural, "", where, named))
        view = views.of(kind)
        if view is None:
            return await self._create(write, kind, obj)
        if view.refuse_create is not None:
            raise view.refuse_create()
        shaped = shape(kind, obj, None, write.field_validation, write.warnings)
        return view.show(await self._create(write, view.stored, view.write_back(shaped, {})))

    @cached_property
    def account_tokens(self) -> AccountTokens:
        from metaos.apiserver.accounttokens import AccountTokens

        return AccountTokens(self, self._clock, self._random)

    def current(self, kind: Kind, name: str, namespace: str = "") -> Obj | None:
        """An object as the watch cache has it, for the API server itself."""
        version = self.cache.get(key_of(kind, namespace, name))
        return version.object() if version else None

    async def make(self, obj: Obj) -> Obj:
        """Creates an object of the API server's own; reads see it when this returns."""
        made = await self.create(SELF, obj)
        await self.cache.fresh()
        return made

    async def account_of(self, bearer: str) -> Identity | None:
        """Whose ServiceAccount's token this is."""
        found = self.account_tokens.identity(bearer)
        return found[0] if found else None

    async def _token_review(self, obj: Obj) -> Obj:
        from metaos.apiserver.accounttokens import ISSUER

        spec = obj.get("spec") or {}
        if not spec.get("token"):
            raise errors.invalid("authentication.k8s.io", "TokenReview", "", [invalid("spec.token", "", "must be given")])
        answer = {**obj, "metadata": {}, "spec": spec}
        found = self.account_tokens.identity(str(spec["token"]), tuple(spec.get("audiences") or (ISSUER,)))
        if found is None:
            return answer | {"status": {"authenticated": False, "user": {}, "error": "the token is not one that counts here"}}
        identity, audiences = found
        user = replace(identity.user, groups=(*identity.user.groups, AUTHENTICATED))
        return answer | {"status": {"authenticated": True, "user": user.shown(), "audiences": list(audiences)}}

    async def _create(self, write: Write, kind: Kind, obj: Obj, fields: list[dict[str, Any]] | None = None) -> Obj:
        obj = shape(kind, obj, None, write.field_validation, write.warnings)
        metadata = obj["metadata"]
        if metadata.get("resourceVersion") and not write.user.name.startswith(UNTRACKED):
            raise errors.bad_request("resourceVersion should not be set on objects to be created")
        generate = str(metadata.get("generateName") or "")
        chosen = bool(metadata.get("name"))
        for _ in range(8):
            if not chosen and generate:
                metadata["name"] = generate[:58] + "".join(self._random.choices(NAME_SUFFIX, k=5))
            causes = name_causes(kind, metadata.get("name") or "")
            if generate and not chosen:
                causes = [*name_causes(kind, generate.rstrip("-") or "-", "metadata.generateName"), *causes]
            if causes:
                raise errors.invalid(kind.group, kind.kind, metadata.get("name") or "", causes)
            key = key_of(kind, metadata.get("namespace") or "", metadata["name"])
            if self.cache.get(key) is None:
                break
            if chosen:
                raise errors.already_exists(kind.group, kind.plural, metadata["name"])
        self._check_place(write, kind, obj)
        self._check_room(kind)
        tells = write.user.name == CONTROLLER_MANAGER or cluster_of(write.user) is not None
        if "status" in kind.subresources and not tells:
            obj.pop("status", None)
        if isinstance(kind, CustomKind):
            validate(kind, obj, None)  # Who owns what can be told of objects that are as their schema wants them.
        if fields is None and (kind is scheme.CLUSTER or not write.user.name.startswith(UNTRACKED)):
            by = Manager(write.manager or write.user.name, "Update", "", kind.api_version)
            fields = created_fields(node_of(kind), obj, by, format_time(self._clock.now()))
        uid = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        now = format_time(self._clock.now())
        prepare_create(kind, obj, uid, now)
        if kind is scheme.SERVICE:
            services.carry(obj, None)
        if kind is scheme.CERTIFICATE_SIGNING_REQUEST:
            obj["spec"].update(username=write.user.name, groups=list(write.user.groups))
        obj = await self._admit(write, kind, "CREATE", obj, None)
        self._check_account(write, kind, obj)
        validate(kind, obj, None)
        await self._judge(kind, obj, None)
        await self._approve(write, kind, "CREATE", obj, None)
        self._check_place(write, kind, obj)  # Once more: a webhook may have thought while the namespace was deleted.
        self._check_default(kind, obj)
        self._check_author(write.user, kind, obj, None)
        if fields:
            obj["metadata"]["managedFields"] = fields
        if write.dry_run:
            async with self._charged(write, kind, obj, None):
                return obj
        for _ in range(ATTEMPTS):
            try:
                async with self._charged(write, kind, obj, None):
                    revision = await self._store.create(key, encode(kept(kind, obj)))
                    self.cache.written(revision)
            except Conflict:
                raise errors.already_exists(kind.group, kind.plural, metadata["name"]) from None
            except Overtaken:
                continue
            return self._answer(obj, revision)
        raise errors.conflict(kind.group, kind.plural, metadata["name"], TOO_MANY)

    def _check_room(self, kind: Kind) -> None:
        """Whether another object of this kind may be made at all."""
        if isinstance(kind, CustomKind) and kind.terminating:
            raise errors.method_not_allowed("create not allowed while custom resource definition is terminating")
        if kind is scheme.CUSTOM_RESOURCE_DEFINITION and self.cache.count(kind.resource) >= MAX_DEFINITIONS:
            why = f"a hub has at most {MAX_DEFINITIONS} definitions: delete those that nobody uses"
            raise errors.forbidden(kind.group, kind.plural, "", why)

    def _kind_of(self, obj: Any) -> Kind:
        if not isinstance(obj, dict):
            raise errors.bad_request("the body must be an object")
        return self.kinds.kind_of(obj)

    def _check_place(self, write: Write, kind: Kind, obj: Obj) -> None:
        named, where = name(obj), namespace(obj)
        if kind is scheme.NAMESPACE:
            mine = named.startswith(RESERVED_PREFIX)
            if mine and MASTERS not in write.user.groups and cluster_of(write.user) is None:
                raise errors.forbidden("", kind.plural, named, "names that begin with nemo- belong to NEMO; choose another name")
        if not kind.namespaced:
            return
        home = self.cache.get(key_of(scheme.NAMESPACE, "", where))
        if home is None:
            raise errors.not_found("", "namespaces", where)
        if (home.field_values()).get("status.phase") == "Terminating":
            refused = errors.forbidden(
                kind.group,
                kind.plural,
                named,
                f"unable to create new content in namespace {where} because it is being terminated",
            )
            refused.details["causes"] = [
                {
                    "reason": "NamespaceTerminating",
                    "message": f"namespace {where} is being terminated",
                    "field": "metadata.namespace",
                }
            ]
            raise refused

    @property
    def judge(self) -> Judge:
        """Who evaluates rules; made with the first."""
        if self._judges is None:
            from metaos.apiserver.custom.judge import Judge

            self._judges = Judge()
        return self._judges

    async def _judge(self, kind: Kind, obj: Obj, old: Obj | None) -> None:
        """What takes CEL to see. Raises ``ApiError`` 422."""
        causes: list[Cause] = []
        if isinstance(kind, CustomKind):
            causes = await self.judge.object(kind, obj, old) if kind.rules_key else []
        elif kind is scheme.CUSTOM_RESOURCE_DEFINITION:
            causes = await self.judge.definition(obj, old)
        elif kind is scheme.VALIDATING_ADMISSION_POLICY:
            from metaos.apiserver.custom import policies

            causes = await policies.compile_causes(obj["spec"], self.judge)
        elif kind in (scheme.MUTATING_WEBHOOK_CONFIGURATION, scheme.VALIDATING_WEBHOOK_CONFIGURATION):
            from metaos.apiserver.custom import policies, webhooks

            for i, hook in enumerate(obj.get("webhooks") or ()):
                causes += await policies.compile_causes(hook, self.judge, webhooks.VARIABLES, f"webhooks[{i}]")
        if causes:
            raise errors.invalid(kind.group, kind.kind, name(obj), causes)

    async def _admit(self, write: Write, kind: Kind, operation: str, obj: Obj, old: Obj | None, subresource: str = "") -> Obj:
        """The object as LimitRanges, plugins and mutating webhooks want it."""
        written = operation != "DELETE" and not subresource and (old is None or obj.get("spec") != old.get("spec"))
        if written and self.cache.count(scheme.LIMIT_RANGE.resource):
            obj = self.quotas.ranged(kind, obj)
        for rule in self._admission:
            obj, said = rule.admit(operation, obj, old)
            write.warnings.extend(text for text in said if text not in write.warnings)
        if not self.cache.count(scheme.MUTATING_WEBHOOK_CONFIGURATION.resource) or subresource == "scale":
            return obj

        def reshape(changed: Obj) -> Obj:
            return shape(kind, changed, old, "Ignore", [])

        asked = self._asked(write, kind, operation, obj, old, subresource)
        changed = await self.webhooks.mutate(asked, reshape, write.warnings)
        return obj if changed is None else changed

    async def _approve(
        self, write: Write, kind: Kind, operation: str, obj: Obj | None, old: Obj | None, subresource: str = ""
    ) -> None:
        """Asks budgets, policies and validating webhooks. Raises ``ApiError`` where one refuses."""
        if obj is not None and subresource in ("", "scale"):
            write.warnings.extend(budgets.admit(self.cache, kind, obj, old))
        if self.cache.count(scheme.VALIDATING_ADMISSION_POLICY_BINDING.resource):
            asked = self._asked(write, kind, operation, obj, old, subresource)
            await self.policies.examine(asked, write.warnings)
        if self.cache.count(scheme.VALIDATING_WEBHOOK_CONFIGURATION.resource):
            asked = self._asked(write, kind, operation, obj, old, subresource)
            await self.webhooks.validate(asked, write.warnings)

    def _asked(self, write: Write, kind: Kind, operation: str, obj: Obj | None, old: Obj | None, subresource: str) -> Asked:
        from metaos.apiserver.custom.matching import Asked

        held = obj or old or {}
        space = self.cache.get(key_of(scheme.NAMESPACE, "", namespace(held))) if kind.namespaced else None
        versions = tuple(k.version for k in self.kinds.custom if k.resource == kind.resource and k is not kind)
        shown = None if operation == "DELETE" else obj
        where = space.object() if space else None
        return Asked(kind, subresource, operation, shown, old, write.user, name(held), where, write.dry_run, versions)

    @asynccontextmanager
    async def _charged(self, write: Write, kind: Kind, obj: Obj, old: Obj | None, subresource: str = "") -> AsyncIterator[None]:
        """The time in which an object is written: not more than quotas allow, and with what is given to it. Who reports a status
        asks for nothing."""
        if kind is scheme.SERVICE and not subresource:
            async with self.allotment.given(obj, old), self._within(write, kind, obj, old, subresource):
                yield
            return
        async with self._within(write, kind, obj, old, subresource):
            yield

    @asynccontextmanager
    async def _within(self, write: Write, kind: Kind, obj: Obj, old: Obj | None, subresource: str) -> AsyncIterator[None]:
        asks = kind.namespaced and subresource in ("", "scale")
        if not asks or not self.cache.count(scheme.RESOURCE_QUOTA.resource, namespace(obj)):
            yield
            return
        async with self.quotas.charged(kind, obj, old, dry_run=write.dry_run):
            yield

    @cached_property
    def allotment(self) -> Allotment:
        from metaos.apiserver.allotment import Allotment

        return Allotment(self.cache)

    @cached_property
    def quotas(self) -> Quotas:
        from metaos.apiserver.quota import Quotas

        return Quotas(self.cache, self.kinds)

    @cached_property
    def policies(self) -> Policies:
        from metaos.apiserver.custom.policies import Policies

        return Policies(self.cache, self.kinds, self.judge)

    @cached_property
    def webhooks(self) -> Webhooks:
        from metaos.apiserver.custom.webhooks import Webhooks

        return Webhooks(self.cache, lambda: self.judge, self._random)

    def _check_account(self, write: Write, kind: Kind, obj: Obj) -> None:
        """As Kubernetes' admission rule ``ServiceAccount``, for the Pods that people make: what agents show is there already.
        Every namespace has ``default``, or soon will have."""
        if kind is not scheme.POD or cluster_of(write.user) is not None or write.user.name.startswith("system:"):
            return
        account = str((obj.get("spec") or {}).get("serviceAccountName") or "default")
        if account != "default" and self.current(scheme.SERVICE_ACCOUNT, account, namespace(obj)) is None:
            missing = f'error looking up service account {namespace(obj)}/{account}: serviceaccount "{account}" not found'
            raise errors.forbidden("", kind.plural, name(obj), missing)

    def _check_default(self, kind: Kind, obj: Obj) -> None:
        """As Kubernetes' admission rule ``Priority``."""
        if kind is not scheme.PRIORITY_CLASS or not obj.get("globalDefault"):
            return
        others = (version.object() for version in self.cache.range(kind.resource) if version.name != name(obj))
        if usual := next((name(other) for other in others if other.get("globalDefault")), ""):
            why = f"PriorityClass {usual} is already marked as default. Only one default can exist"
            raise errors.forbidden(kind.group, kind.plural, name(obj), why)

    def _check_author(self, user: UserInfo, kind: Kind, obj: Obj | None, old: Obj | None) -> None:
        """What only the object shows: is it the agent's own; does a role grant more than its author holds."""
        if MASTERS in user.groups:
            return
        held = obj or old or {}
        member = cluster_of(user)
        if member is not None:
            problem = agent_write_problem(member, kind.resource, obj, old, Share(self.cache, member))
        else:
            problem = reviews.escalation(self._roles, user, kind, obj) if obj is not None else ""
            if kind is scheme.CERTIFICATE_SIGNING_REQUEST and obj is not None:
                problem = reviews.signing(self._roles, user, obj, old)
            elif kind in (scheme.VALIDATING_ADMISSION_POLICY, scheme.VALIDATING_ADMISSION_POLICY_BINDING) and obj is not None:
                problem = self._params_problem(user, kind, obj, old)
        if problem:
            raise errors.forbidden(kind.group, kind.plural, name(held), problem)

    def _params_problem(self, user: UserInfo, kind: Kind, obj: Obj, old: Obj | None) -> str:
        from metaos.apiserver.custom import policies

        if old is not None and old.get("spec") == obj.get("spec"):
            return ""
        named = str((obj.get("spec") or {}).get("policyName") or "")
        policy = self.current(scheme.VALIDATING_ADMISSION_POLICY, named) if kind is policies.BINDING else None
        asked = policies.right(obj, policy, self.kinds)
        if asked is None or self.authorize(user, asked).allowed:
            return ""
        where = "" if not asked.namespace else f" in namespace {asked.namespace}"
        return f"it would show what its parameters hold, and user {user.name!r} may not get {asked.resource} {asked.name}{where}"

    def _answer(self, obj: Obj, revision: int) -> Obj:
        self.cache.written(revision)
        obj["metadata"]["resourceVersion"] = str(revision)
        return obj

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
        """``subresource``: status, scale (then ``kind``, ``name`` and ``namespace`` say of what), approval, finalize."""
        write = Write(user, field_manager, dry_run, field_validation, warnings if warnings is not None else [])
        if subresource == "scale":
            if kind is None:
                raise errors.bad_request("scale needs the kind that is to be scaled")
            named, where = name or str(obj["metadata"].get("name")), namespace or str(obj["metadata"].get("namespace") or "")
        else:
            kind, obj = addressed(obj, kind or self._kind_of(obj), name, namespace)
            named, where = str(obj["metadata"].get("name") or ""), str(obj["metadata"].get("namespace") or "")
            if not named:
                raise errors.bad_request("metadata.name: Required value: an update names the object")
        await self.check_now(user, Attributes("update", kind.group, kind.plural, subresource, where, named))
        return await self._modify(write, kind, named, where, lambda current: obj, subresource, pinned=_names_revision(obj))

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
        """A server-side apply creates what does not exist (the caller answers 201 where ``resourceVersion`` was unknown)."""
        write = Write(user, field_manager, dry_run, field_validation, warnings if warnings is not None else [])
        await self.check_now(user, Attributes("patch", kind.group, kind.plural, subresource, namespace, name))
        declares = kind is scheme.CLUSTER and not subresource and cluster_of(user) is not None
        if declares and (problem := apply_problem(field_manager, applies=type is PatchType.APPLY, force=force)):
            raise errors.forbidden(kind.group, kind.plural, name, problem)
        if type is PatchType.APPLY:
            return await self._apply(write, kind, name, namespace, patch, subresource, force)
        if type is PatchType.STRATEGIC and isinstance(kind, CustomKind):
            raise errors.unsupported_media_type(_NOT_STRATEGIC)
        node = subresources.SCALE_NODE() if subresource == "scale" else node_of(kind)
        return await self._modify(
            write,
            kind,
            name,
            namespace,
            lambda current: _identified(kind, apply_patch(type, current, patch, node), current),
            subresource,
            pinned=_names_revision(patch),
        )

    async def _apply(self, write: Write, kind: Kind, name: str, namespace: str, patch: Any, subresource: str, force: bool) -> Obj:
        if not write.manager:
            raise errors.bad_request(
                "PatchOptions.meta.k8s.io is invalid: fieldManager: Required value: is required for apply patch"
            )
        if not isinstance(patch, dict):
            raise errors.bad_request("an apply patch must be an object")
        if subresource == "scale":
            return await self._apply_scale(write, kind, name, namespace, patch, force)
        _, wanted = addressed(patch, kind, name, namespace)
        if wanted["metadata"].get("managedFields"):
            raise errors.bad_request("metadata.managedFields must be nil")
        view = views.of(kind)
        if view is not None and view.refuse_create is None:
            shaped = shape(kind, wanted, None, write.field_validation, write.warnings, defaults=False)
            kept = view.write_back(shaped, {})
            return view.show(await self._apply(write, view.stored, name, namespace, kept, subresource, force))
        manager = Manager(write.manager, "Apply", subresource, kind.api_version)
        named = wanted["metadata"].get("uid")
        known = self.cache.get(key_of(stored_kind(kind), namespace, name))
        if named and (known is None or known.object()["metadata"].get("uid") != named):
            raise errors.invalid(kind.group, kind.kind, name, [invalid("metadata.uid", named, "field is immutable")])
        now = format_time(self._clock.now())
        shaped = shape(kind, wanted, None, write.field_validation, write.warnings, defaults=False)
        unknown = self.cache.get(key_of(stored_kind(kind), namespace, name)) is None
        if unknown and not subresource and view is None:
            self.check(write.user, Attributes("create", kind.group, kind.plural, "", namespace, name))
            try:
                return await self._create(write, kind, wanted, first_fields(node_of(kind), shaped, manager, now))
            except errors.ApiError as refused:
                if refused.reason != "AlreadyExists":
                    raise
                await self.cache.fresh()

        declares = kind is scheme.CLUSTER and not subresource and cluster_of(write.user) is not None

        def mutate(current: Obj) -> Obj:
            # It was made as the site joined, by a create.
            mine = inherited(current, manager) if declares else current
            return applied(node_of(kind), mine, shaped, manager, now, force)

        return await self._modify(
            write, kind, name, namespace, mutate, subresource, pinned=_names_revision(wanted), manager=manager
        )

    async def _apply_scale(self, write: Write, kind: Kind, name: str, namespace: str, patch: Obj, force: bool) -> Obj:
        """Who applies a workload's Scale owns its ``spec.replicas``. Source: ``ScaleHandler`` of apimachinery's managedfields."""
        for key, only in (("apiVersion", SCALE_VERSION), ("kind", "Scale")):
            if patch.get(key) != only:
                raise errors.bad_request(f"a scale is applied as {SCALE_VERSION} Scale, and {key} is {patch.get(key)!r}")
        spec = patch.get("spec") or {}
        if not isinstance(spec, dict):
            raise errors.bad_request("spec of a Scale must be an object")
        said = addressed({"metadata": patch.get("metadata")}, kind, name, namespace)[1]["metadata"]
        manager, now = Manager(write.manager, "Apply", "scale", kind.api_version), format_time(self._clock.now())
        config: Obj = {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": {k: said[k] for k in ("resourceVersion", "uid") if k in said},
            "spec": {k: spec[k] for k in ("replicas",) if k in spec},
        }
        asked = {"metadata": config["metadata"], "spec": config["spec"]} if config["spec"] else None
        if isinstance(kind, CustomKind) and asked is not None:
            from metaos.apiserver.custom import objects

            objects.rescale(kind, config, config.pop("spec")["replicas"])

        def mutate(current: Obj) -> Obj:
            if asked is not None:
                subresources.rescaled(kind, current, asked)  # Finds what is no number of replicas.
            return applied(node_of(kind), current, config, manager, now, force, shown_as=SCALE_VERSION)

        changed = await self._modify(
            write, kind, name, namespace, mutate, pinned="resourceVersion" in config["metadata"], manager=manager
        )
        return subresources.scale(kind, changed)

    async def _modify(
        self,
        write: Write,
        kind: Kind,
        name: str,
        namespace: str,
        mutate: Mutation,
        subresource: str = "",
        *,
        pinned: bool = False,
        manager: Manager | None = None,
    ) -> Obj:
        """Read, change, compare and swap; the caller has made sure that the cache is fresh. ``mutate`` gets the current object in
        the form the caller sees and returns the wanted one; where that names a ``resourceVersion``, it must be the current one.
        ``pinned``: the caller named a revision, so a write that comes between is a conflict and not a reason to try again."""
        stored = stored_kind(kind)
        key = key_of(stored, namespace, name)
        version = self.cache.get(key)
        for _ in range(ATTEMPTS):
            if version is None:
                raise errors.not_found(kind.group, kind.plural, name)
            current = decoded(kind, version)
            said: list[str] = []
            step = Write(write.user, write.manager, write.dry_run, write.field_validation, said)
            wanted = await self._changed(step, kind, current, mutate, subresource, manager)
            write.warnings.extend(text for text in said if text not in write.warnings)
            done = deletion.finished(stored, wanted)
            lacks = stored is scheme.SERVICE and not subresource and lacks_address(wanted)
            if (write.dry_run and done) or (wanted == current and not done and not lacks and as_kept(kind, version)):
                return self._show(kind, wanted, subresource)
            if write.dry_run:
                async with self._charged(write, kind, wanted, current, subresource):
                    return self._show(kind, wanted, subresource)
            try:
                if done:
                    revision = await self._store.delete(key, expected=version.revision)
                    return self._show(kind, self._answer(wanted, revision), subresource)
                async with self._charged(write, kind, wanted, current, subresource):
                    revision = await self._store.update(key, encode(kept(kind, wanted)), expected=version.revision)
                    self.cache.written(revision)
            except Conflict as met:
                if pinned and met.current is not None:
                    raise errors.conflict(kind.group, kind.plural, name) from None
                version = Version(key, met.current.value, met.current.revision) if met.current else None
                continue
            except Overtaken:
                continue
            return self._show(kind, self._answer(wanted, revision), subresource)
        raise errors.conflict(kind.group, kind.plural, name, TOO_MANY)

    async def _changed(
        self, write: Write, kind: Kind, current: Obj, mutate: Mutation, subresource: str, manager: Manager | None
    ) -> Obj:
        """The object to store, or to remove where its last finalizer went."""
        view = views.of(kind)
        if view is not None:
            wanted = view.write_back(_with_metadata(mutate(view.show(current))), current)
            kind = view.stored
            if subresource and view.read_only:
                return current  # A Node's status is shown, not written.
        elif subresource == "scale":
            wanted = subresources.rescaled(kind, current, _with_metadata(mutate(subresources.scale(kind, current))))
        else:
            wanted = _with_metadata(mutate(current))
        if wanted is current:
            wanted = orjson.loads(orjson.dumps(current))
        metadata = wanted.setdefault("metadata", {})
        asked, held = str(metadata.get("resourceVersion") or ""), current["metadata"]["resourceVersion"]
        named = metadata.get("uid")
        if named and named != current["metadata"].get("uid"):
            raise errors.conflict(
                kind.group,
                kind.plural,
                name(current),
                f"Precondition failed: UID in precondition: {named}, UID in object meta: {current['metadata'].get('uid')}",
            )
        if asked and asked != held:
            raise errors.conflict(kind.group, kind.plural, name(current))
        same_identity(kind, wanted, current)
        if subresource not in ("", "scale"):
            wanted = subresources.narrowed(kind, subresource, wanted, current)
        wanted = shape(kind, wanted, current, write.field_validation, write.warnings)
        metadata = wanted["metadata"]
        metadata["resourceVersion"] = held
        if manager is None and cluster_of(write.user) is not None:
            # Whose fields are whose decides what an agent may change: it does not say so itself.
            metadata.pop("managedFields", None)
            metadata |= {k: v for k, v in current["metadata"].items() if k == "managedFields"}
        if kind is scheme.CERTIFICATE_SIGNING_REQUEST:
            wanted["spec"] = current["spec"]  # Who asked for what is settled when it is made, as in Kubernetes.
        if not subresource and "status" in kind.subresources:
            wanted.pop("status", None)
            if "status" in current:
                wanted["status"] = current["status"]
        if kind is scheme.SERVICE and not subresource:
            services.carry(wanted, current)
        causes = prepare_update(kind, wanted, current)
        if causes:
            raise errors.invalid(kind.group, kind.kind, name(current), causes)
        wanted = await self._admit(write, kind, "UPDATE", wanted, current, subresource)
        if has_generation(kind) and changed(kind, wanted, current):
            wanted["metadata"]["generation"] = int(current["metadata"].get("generation") or 0) + 1
        validate(kind, wanted, current)
        await self._judge(kind, wanted, current)
        await self._approve(write, kind, "UPDATE", wanted, current, subresource)
        self._check_default(kind, wanted)
        self._check_author(write.user, kind, wanted, current)
        if manager is None and current["metadata"].get("managedFields"):
            by = Manager(write.manager or write.user.name, "Update", subresource, kind.api_version)
            wanted = tracked(node_of(kind), wanted, current, by, format_time(self._clock.now()))
        return wanted

    def _show(self, kind: Kind, obj: Obj, subresource: str) -> Obj:
        view = views.of(kind)
        if view is not None:
            return view.show(obj)
        return subresources.scale(kind, obj) if subresource == "scale" else obj


def _with_metadata(obj: Obj) -> Obj:
    """What the schema will check later is needed before."""
    if not isinstance(obj.setdefault("metadata", {}), dict):
        raise errors.bad_request("metadata must be an object")
    return obj


def _identified(kind: Kind, patched: Obj, current: Obj) -> Obj:
    """A patch that takes the name away has taken too much away."""
    metadata = patched.get("metadata")
    if metadata is None or (isinstance(metadata, dict) and not metadata.get("name")):
        raise errors.bad_request(
            f"the name of the object ({name(current)} based on URL) was undeterminable: name must be provided"
        )
    wanted = metadata.get("uid") if isinstance(metadata, dict) else None
    if wanted and wanted != current["metadata"].get("uid"):
        raise errors.invalid(kind.group, kind.kind, name(current), [invalid("metadata.uid", wanted, "field is immutable")])
    return patched


def _names_revision(body: Any) -> bool:
    """Whether an object or a patch says which revision it is about."""
    if isinstance(body, list):
        return any(isinstance(step, dict) and step.get("path") == "/metadata/resourceVersion" for step in body)
    metadata = body.get("metadata") if isinstance(body, dict) else None
    return bool(metadata.get("resourceVersion")) if isinstance(metadata, dict) else False
