"""A HorizontalPodAutoscaler on real pods of two real sites: load makes it grow, rest makes it shrink, kubectl shows both."""

import json

import pytest

from tests.kubectl.conftest import Real, deployment, until

pytestmark = pytest.mark.system

#: Busy for as long as the file is there.
BURN = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
SCRIPT = f"touch /tmp/busy; while :; do if [ -e /tmp/busy ]; then {BURN}; else sleep 0.2; fi; done"
POLICY = {
    "apiVersion": "meta-os.eu/v1alpha1",
    "kind": "PlacementPolicy",
    "metadata": {"name": "both"},
    "spec": {
        "division": {"mode": "Divided", "weights": {"edge-paris": 1, "edge-london": 1}},
        "spread": [{"by": "site", "minGroups": 2}],
    },
}
SCALER = {
    "apiVersion": "autoscaling/v2",
    "kind": "HorizontalPodAutoscaler",
    "metadata": {"name": "load"},
    "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "load"},
        "minReplicas": 2,
        "maxReplicas": 4,
        "metrics": [
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}
        ],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 2}},
    },
}


def columns(real: Real) -> list[str]:
    return real("get", "hpa", "load", "--no-headers").split()


def sites(real: Real) -> list[str]:
    return sorted(real("get", "pods", "-l", "app=load", "-o", "jsonpath={.items[*].spec.nodeName}").split())


@pytest.mark.slow
def test_load_on_two_sites_scales_it_up_and_rest_scales_it_down(real: Real) -> None:
    limited = {"requests": {"cpu": "50m"}, "limits": {"cpu": "200m"}}
    real.apply(POLICY, deployment("load", SCRIPT, 2, resources=limited))
    real.rolled_out("deploy/load")
    assert sites(real) == ["edge-london", "edge-paris"]
    real.apply(SCALER)
    until("the size to grow", lambda: len(sites(real)) == 4, 40)
    assert sites(real) == ["edge-london", "edge-london", "edge-paris", "edge-paris"]
    said = real("describe", "hpa", "load")
    assert "New size: 4; reason: cpu resource utilization (percentage of request) above target" in said
    assert "ScalingActive   True    ValidMetricFound" in said and "TooManyReplicas" in said
    name, reference, _, percent, least, most, *_ = columns(real)
    assert (name, reference, least, most) == ("load", "Deployment/load", "2", "4")
    used, _, target = percent.partition("/")
    assert int(used.rstrip("%")) > 55 and target == "50%"
    for pod in real("get", "pods", "-l", "app=load", "-o", "name").split():
        real("exec", pod, "--", "rm", "-f", "/tmp/busy")
    until("the size to shrink", lambda: columns(real)[6] == "2" and len(sites(real)) == 2, 40)
    status = json.loads(real("get", "hpa.v2.autoscaling", "load", "-o", "json"))["status"]
    assert status["desiredReplicas"] == 2 and status["currentMetrics"][0]["resource"]["current"]["averageUtilization"] < 45
    assert "All metrics below target" in real("events", "--for=hpa/load")


def test_metrics_that_no_site_measures_are_named(real: Real) -> None:
    real.apply(deployment("queue", "exec sleep 3600"))
    target = {"type": "AverageValue", "averageValue": "10"}
    metric = {"type": "Pods", "pods": {"metric": {"name": "requests-per-second"}, "target": target}}
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "queue"}
    spec = SCALER["spec"] | {"scaleTargetRef": reference, "metrics": [metric], "minReplicas": 1}  # type: ignore[operator]
    real.apply(SCALER | {"metadata": {"name": "queue"}, "spec": spec})
    real("wait", "hpa/queue", "--for=condition=ScalingActive=False", "--timeout=20s")
    said = real("describe", "hpa", "queue")
    assert "FailedGetPodsMetric" in said and "'requests-per-second' is not available: sites measure cpu and memory" in said
