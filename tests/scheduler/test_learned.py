"""A learned policy as a score: an ONNX model's points count beside the other scores, and a model that will not do is refused."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper

from metaos.resources.snapshot import ClusterInfo, WorkloadInfo
from metaos.scheduler.features import FEATURES, MOST, UNKNOWN, observe
from metaos.scheduler.framework import decide
from metaos.scheduler.learned import learned
from metaos.scheduler.scores import SCORES
from metaos.scheduler.world import World
from tests.scheduler import worlds

NUMBER = {name: number for number, (name, *_) in enumerate(FEATURES)}


def model(width: int = len(FEATURES), node: str = "MatMul", feature: str = "availability") -> bytes:
    """Points: a hundred times one feature; or what stands for a mistake."""
    weights = np.zeros((width, 1), np.float32)
    weights[min(NUMBER[feature], width - 1)] = 100.0
    nodes = [helper.make_node("MatMul", ["sites", "weights"], ["x"])]
    nodes.append(
        helper.make_node("Softmax", ["x"], ["points"], axis=0)
        if node == "Softmax"
        else helper.make_node("Identity", ["x"], ["points"])
    )
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("sites", TensorProto.FLOAT, ["sites", width])],
        [helper.make_tensor_value_info("points", TensorProto.FLOAT, ["sites", 1])],
        [helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights)],
    )
    found: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    return found


SMALL = worlds.world(worlds.site("a", availability=0.9), worlds.site("b", availability=0.95), worlds.site("c", availability=0.5))
SCORE = learned("policy", model(), 1000.0)


@settings(max_examples=40)
@given(sites=worlds.clusters(), workload=worlds.workloads())
def test_one_site_and_all_sites_say_the_same(sites: tuple[ClusterInfo, ...], workload: WorkloadInfo) -> None:
    snapshot = worlds.world(*sites)
    world = World.of(snapshot.clusters)
    rows = observe(workload, world)
    assert rows.shape == (len(world), len(FEATURES))
    assert np.all((rows >= UNKNOWN) & (rows <= MOST))
    column = SCORE.measure.column(workload, world)  # type: ignore[attr-defined]
    for number, cluster in enumerate(world):
        assert SCORE.measure(workload, cluster) == pytest.approx(column[number])


def test_it_counts() -> None:
    snapshot, workload = SMALL, worlds.workload()
    plan = decide(snapshot, workload, scores=[*SCORES, SCORE])
    best = max(snapshot.clusters, key=lambda c: c.availability)
    assert dict(plan.clusters).keys() == {best.name}
    term = next(t for t in plan.scored[0].terms if t.name == "policy")
    assert (term.unit, term.weight, term.points) == ("points", 1000.0, pytest.approx(100 * best.availability))


def test_it_goes_to_another_process() -> None:
    snapshot, workload = SMALL, worlds.workload()
    again = pickle.loads(pickle.dumps(SCORE))
    assert again.measure(workload, snapshot.clusters[0]) == SCORE.measure(workload, snapshot.clusters[0])


@pytest.mark.parametrize(
    ("name", "content", "weight", "said"),
    [
        ("Green", model(), 1.0, "'Green': a name has up to 31"),
        ("green", model(), 0.0, "weight 0 must be above 0"),
        ("green", b"no model", 1.0, "score green: is no ONNX model"),
        ("green", model(width=3), 1.0, f"reads 3 features; there are {len(FEATURES)}: train it anew"),
        ("green", model(node="Softmax"), 1.0, "judges a site by the others beside it"),
    ],
)
def test_what_will_not_do_is_refused(name: str, content: bytes, weight: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        learned(name, content, weight)
