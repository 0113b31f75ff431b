"""NetworkPolicy: tells the sites of its namespace's workloads, together with the namespace's labels. NetworkPolicy → Works."""

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.concern import works_by_source
from metaos.controllers.facts import decided
from metaos.controllers.following import Following
from metaos.controllers.render import manifest, source_of, work
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, deleting, labels, name, namespace, ref

NAME = "networkpolicy"


class Policies:
    """The NetworkPolicies that there are, as Works."""

    def __init__(self, manager: Manager, client: Client) -> None:
        self._client = client
        self._policies = manager.informer(scheme.NETWORK_POLICY)
        self._namespaces = manager.informer(scheme.NAMESPACE)

    def work(self, policy: Obj, site: str) -> Obj:
        """With the namespace's labels, which selectors of policies speak of."""
        said: Obj = {**scheme.NAMESPACE.empty(namespace(policy))}
        said["metadata"]["labels"] = labels(self._namespaces.get(namespace(policy)) or {})
        return work(ref(policy), site, [manifest(policy), said])

    async def go_ahead(self, where: str, site: str) -> None:
        """To be called before a workload is sent to a site that has none of this one: its pods are never without their
        policies."""
        for policy in self._policies.list(where):
            if not deleting(policy):
                try:
                    await self._client.create(self.work(policy, site))
                except ApiError as error:
                    if error.reason != "AlreadyExists":
                        raise


class NetworkPolicyReconciler:
    """Keys are NetworkPolicies."""

    name = NAME

    def __init__(self, manager: Manager, client: Client) -> None:
        self._policies, self._placements = manager.informer(scheme.NETWORK_POLICY), manager.informer(scheme.PLACEMENT)
        self._works = Policies(manager, client)
        self._following = Following(client, works_by_source(manager))

    async def reconcile(self, about: ObjectRef) -> Result:
        policy = self._policies.get(about.name, about.namespace)
        wanted, coming = {}, set[str]()
        if policy is not None and not deleting(policy):
            for site in self._following.sites(about.namespace):
                wanted[site] = self._works.work(policy, site)
            # Where a workload is about to be sent its policies go ahead, and are not taken away in between.
            coming.update(*map(decided, self._placements.list(about.namespace)))
        await self._following.settle(about, wanted, coming)
        return DONE


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: when a policy or its namespace's labels changed, or a workload came to a site or left it."""
    policies = manager.informer(scheme.NETWORK_POLICY)
    workload_kinds = {k.kind for k in scheme.WORKLOADS}
    manager.add(
        NetworkPolicyReconciler(manager, client),
        [(scheme.NETWORK_POLICY, lambda o: [ref(o)]), (scheme.NAMESPACE, lambda o: [ref(p) for p in policies.list(name(o))])],
    )

    def on_work(old: Obj | None, new: Obj | None) -> None:
        found = new or old or {}
        about = source_of(found)
        if about.kind == "NetworkPolicy" and new is None:
            manager.enqueue(NAME, about)
        elif about.kind in workload_kinds and (old is None or new is None or deleting(old) != deleting(new)):
            for policy in policies.list(about.namespace):
                manager.enqueue(NAME, ref(policy))

    manager.informer(scheme.WORK).on_change(on_work)

    def on_placement(old: Obj | None, new: Obj | None) -> None:
        # Where they went ahead, and nothing came, they go.
        if decided(old).keys() - decided(new).keys():
            for policy in policies.list(namespace(new or old or {})):
                manager.enqueue(NAME, ref(policy))

    manager.informer(scheme.PLACEMENT).on_change(on_placement)
