"""Autoscaling: gives the target of a HorizontalPodAutoscaler the size that its pods' load asks for, over all sites.

What pods use is what their sites measure (``metrics.k8s.io``). What earlier looks recommended is remembered here, in memory
only: after a restart of the hub nothing shrinks before a stabilisation window has passed.
"""

from collections.abc import Mapping
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.recorder import Recorder
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import quantity, scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import (
    Obj,
    ObjectRef,
    condition,
    deleting,
    format_time,
    label_selector,
    labels,
    name,
    namespace,
    parse_time,
    ref,
    uid,
    with_condition,
)
from metaos.resources.workload import replicas
from metaos.scheduler.autoscaling import Decision, PodSample, Remembered, decide

NAME = "autoscaling"
SCALABLE = {k.kind: k for k in (scheme.DEPLOYMENT, scheme.STATEFUL_SET)}
#: Looks at the same time: each waits for sites to answer.
WORKERS = 4
_GONE = ("Succeeded", "Failed", "Unknown")
_CONDITIONS = ("AbleToScale", "ScalingActive", "ScalingLimited")


def samples(pods: list[Obj], metrics: list[Obj]) -> list[PodSample]:
    """The living pods, each with what its site measured. Pods of a site that was lost are not there."""
    measured = {name(m): m for m in metrics}
    return [
        _sample(pod, measured.get(name(pod)))
        for pod in sorted(pods, key=name)
        if not deleting(pod) and (pod.get("status") or {}).get("phase") not in _GONE
    ]


def _sample(pod: Obj, metric: Obj | None) -> PodSample:
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    # Sidecars are measured and have requests as the others do.
    lasting = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    requests = {c["name"]: _thousandths((c.get("resources") or {}).get("requests")) for c in (*spec["containers"], *lasting)}
    ready = condition(pod, "Ready")
    return PodSample(
        name(pod),
        requests,
        None if metric is None else {c["name"]: _thousandths(c.get("usage")) for c in metric.get("containers") or ()},
        parse_time(metric["timestamp"]) if metric else 0.0,
        float(str(metric.get("window") or "0s").removesuffix("s")) if metric else 0.0,
        pending=status.get("phase") in (None, "Pending"),
        started=parse_time(status["startTime"]) if status.get("startTime") else None,
        ready=None if ready is None else ready.get("status") == "True",
        ready_since=parse_time(ready["lastTransitionTime"]) if ready and ready.get("lastTransitionTime") else 0.0,
    )


def _thousandths(amounts: Mapping[str, Any] | None) -> dict[str, int]:
    return {resource: quantity.milli(amount) for resource, amount in (amounts or {}).items() if resource in ("cpu", "memory")}


class AutoscalingReconciler:
    """Keys are HorizontalPodAutoscalers."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, interval_seconds: float) -> None:
        self._client, self._clock, self._interval = client, clock, interval_seconds
        self._recorder = Recorder(client, clock, "horizontal-pod-autoscaler")
        self._scalers = manager.informer(scheme.HORIZONTAL_POD_AUTOSCALER)
        self._targets = {kind: manager.informer(k) for kind, k in SCALABLE.items()}
        self._pods = manager.informer(scheme.POD)
        #: By uid: bounded by the autoscalers that there are.
        self._remembered: dict[str, Remembered] = {}

    async def reconcile(self, about: ObjectRef) -> Result:
        scaler = self._scalers.get(about.name, about.namespace)
        if scaler is None or deleting(scaler):
            self._forget()
            return DONE
        now = self._clock.now()
        target, problem = self._target(scaler)
        if target is None:
            await self._write(scaler, {"AbleToScale": ("False", *problem)}, now)
            return Result(requeue_after=self._interval)
        if rival := self._rival(scaler):
            message = f"{target['kind']} {name(target)} is scaled by {rival} too: keep one of the two"
            await self._write(scaler, {"ScalingActive": ("False", "AmbiguousSelector", message)}, now)
            return Result(requeue_after=self._interval)
        pods = [p for p in self._pods.list(about.namespace) if label_selector((target["spec"]).get("selector"))(labels(p))]
        metrics = (await self._client.list(scheme.POD_METRICS, about.namespace)).items
        current = replicas(target)
        held = self._remembered.get(uid(scaler), Remembered())
        decision = decide(scaler["spec"], current, samples(pods, metrics), held, self._clock.now())
        self._remembered[uid(scaler)] = decision.remembered
        await self._scale(scaler, target, current, decision)
        return Result(requeue_after=self._interval)

    def _target(self, scaler: Obj) -> tuple[Obj | None, tuple[str, str]]:
        """The workload, or why there is none to scale."""
        wanted = scaler["spec"]["scaleTargetRef"]
        kind = str(wanted.get("kind"))
        if kind not in SCALABLE or wanted.get("apiVersion", "apps/v1") != "apps/v1":
            known = " or ".join(SCALABLE)
            return None, ("FailedGetScale", f"the HPA controller cannot scale a {kind}: name a {known} of apps/v1")
        found = self._targets[kind].get(str(wanted.get("name")), namespace(scaler))
        if found is None or deleting(found):
            message = f'the HPA controller was unable to get the target\'s current scale: {kind} "{wanted.get("name")}" not found'
            return None, ("FailedGetScale", message)
        return found, ("", "")

    def _rival(self, scaler: Obj) -> str:
        """Another autoscaler of the same target."""

        def key(obj: Obj) -> tuple[Any, Any]:
            wanted = obj["spec"]["scaleTargetRef"]
            return wanted.get("kind"), wanted.get("name")

        others = [name(o) for o in self._scalers.list(namespace(scaler)) if name(o) != name(scaler) and key(o) == key(scaler)]
        return min(others, default="")

    def _forget(self) -> None:
        known = {uid(s) for s in self._scalers.list()}
        self._remembered = {k: v for k, v in self._remembered.items() if k in known}

    async def _scale(self, scaler: Obj, target: Obj, current: int, decision: Decision) -> None:
        now = self._clock.now()
        conditions, status = dict(decision.conditions), {"currentReplicas": current, "desiredReplicas": decision.replicas}
        extra: dict[str, Any] = {"currentMetrics": list(decision.metrics)} if decision.metrics else {}
        for reason, message in decision.failures:
            before = condition(scaler, "ScalingActive") or {}
            if before.get("reason") != reason:
                await self._recorder.event(scaler, reason, message, warning=True)
        if decision.replicas != current:
            size = {"metadata": {"uid": uid(target)}, "spec": {"replicas": decision.replicas}}
            kind = scheme.kind_of(target)
            try:
                await self._client.patch(kind, name(target), namespace(target), size, subresource="scale")
            except ApiError as error:
                message = f"the HPA controller was unable to update the target scale: {error.message}"
                conditions["AbleToScale"] = ("False", "FailedUpdateScale", message)
                await self._recorder.event(
                    scaler, "FailedRescale", f"New size: {decision.replicas}; {error.message}", warning=True
                )
                await self._write(scaler, conditions, now, **extra, currentReplicas=current, desiredReplicas=current)
                raise
            self._remembered[uid(scaler)] = decision.remembered.scaled(now, current, decision.replicas)
            message = f"the HPA controller was able to update the target scale to {decision.replicas}"
            conditions["AbleToScale"] = ("True", "SucceededRescale", message)
            why = f"New size: {decision.replicas}; reason: {decision.reason}"
            await self._recorder.event(scaler, "SuccessfulRescale", why)
            extra["lastScaleTime"] = format_time(now)
        await self._write(scaler, conditions, now, **status, **extra)

    async def _write(self, scaler: Obj, conditions: Mapping[str, tuple[str, str, str]], now: float, **fields: Any) -> None:
        old = scaler.get("status") or {}
        kept = [c for c in old.get("conditions") or () if c.get("type") in conditions]
        for kind in _CONDITIONS:
            if kind in conditions:
                kept = with_condition(kept, kind, *conditions[kind], now)
        status = {"currentReplicas": 0, "desiredReplicas": 0}
        status |= {k: old[k] for k in ("currentReplicas", "desiredReplicas", "lastScaleTime") if k in old}
        status |= fields | {"conditions": kept}
        if status != old:
            await self._client.update(scaler | {"status": status}, subresource="status")


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: when an autoscaler was changed, and every ``settings.autoscale_interval`` seconds."""
    manager.add(AutoscalingReconciler(manager, client, clock, settings.autoscale_interval), [], workers=WORKERS)

    def on_scaler(old: Obj | None, new: Obj | None) -> None:
        if old is None or new is None or old.get("spec") != new.get("spec"):
            manager.enqueue(NAME, ref(new or old or {}))

    manager.informer(scheme.HORIZONTAL_POD_AUTOSCALER).on_change(on_scaler)
