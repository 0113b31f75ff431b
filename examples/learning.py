"""Learns where work should go, on the twin, and writes the policy as an ONNX model that a hub can load.

    python -m examples.learning policy.onnx --rounds 8
    nemo up --score learned:5=policy.onnx

The policy is linear: points = 50 + features x weights. It is learned by the cross-entropy method (Rubinstein 1999): policies are
drawn around the best ones of the round before, each plays the same few episodes, and the best quarter moves the mean. What comes
out is compared with NEMO's own scores on episodes that it was not learned on. Everything here is simulated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from metaos.scheduler.features import FEATURES
from metaos.twin.bill import Prices
from metaos.twin.decisions import Arrivals, shuffled, site_names
from metaos.twin.scenario import load
from metaos.twin.story import Scenario

SCENARIO = Path(__file__).parent / "scenarios" / "learning.yaml"
Floats = NDArray[np.float64]
#: Of the policy beside NEMO's own scores.
WEIGHT = 5.0


def episode(scenario: Scenario, weights: Floats, seed: int) -> float:
    """What it cost with the policy as a score beside the others, as in a hub."""
    arrivals = Arrivals(shuffled(scenario, np.random.default_rng(seed)), WEIGHT)
    sites = site_names(scenario)
    while (arrival := arrivals.next()) is not None:
        points = np.clip(50.0 + arrival.rows @ weights, 0.0, 100.0)
        arrivals.wish(dict(zip(sites, map(float, points), strict=True)))
    cost = Prices().of(arrivals.bill)
    arrivals.close()
    return cost


def learn(scenario: Scenario, rounds: int, chance: np.random.Generator, drawn: int = 12, kept: int = 3) -> Floats:
    mean, spread = np.zeros(len(FEATURES)), np.full(len(FEATURES), 20.0)
    for number in range(rounds):
        seeds = [int(s) for s in chance.integers(2**31, size=2)]
        # The first one is the mean itself: in the first round, NEMO as it is.
        policies = mean + spread * chance.standard_normal((drawn, len(FEATURES)))
        policies[0] = mean
        costs = [float(np.mean([episode(scenario, weights, seed) for seed in seeds])) for weights in policies]
        best = policies[np.argsort(costs)[:kept]]
        text = f"round {number + 1} of {rounds}: the mean policy costs {costs[0]:.4f}, the best of {drawn} {min(costs):.4f}"
        print(text, file=sys.stderr, flush=True)
        mean, spread = best.mean(axis=0), best.std(axis=0) + 20.0 / (number + 2)
    return mean


def exported(weights: Floats) -> onnx.ModelProto:
    """points = 50 + sites x weights, kept within 0 and 100."""
    nodes = [
        helper.make_node("MatMul", ["sites", "weights"], ["product"]),
        helper.make_node("Add", ["product", "middle"], ["sum"]),
        helper.make_node("Clip", ["sum", "least", "most"], ["points"]),
    ]
    given = [
        helper.make_tensor("weights", TensorProto.FLOAT, [len(FEATURES), 1], weights.astype(np.float32)),
        *(
            helper.make_tensor(name, TensorProto.FLOAT, [], [v])
            for name, v in (("middle", 50.0), ("least", 0.0), ("most", 100.0))
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "placement",
        [helper.make_tensor_value_info("sites", TensorProto.FLOAT, ["sites", len(FEATURES)])],
        [helper.make_tensor_value_info("points", TensorProto.FLOAT, ["sites", 1])],
        given,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where the ONNX model goes")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--unseen", type=int, default=8, help="episodes to compare on")
    asked = parser.parse_args()
    scenario = load(SCENARIO)
    weights = learn(scenario, asked.rounds, np.random.default_rng(asked.seed))
    asked.file.write_bytes(exported(weights).SerializeToString())
    unseen = range(1000, 1000 + asked.unseen)
    for who, policy in (("NEMO's own scores", 0.0 * weights), ("with the learned policy", weights)):
        costs = [episode(scenario, policy, seed) for seed in unseen]
        print(
            f"{who}: {np.mean(costs):.4f} +- {np.std(costs) / len(costs) ** 0.5:.4f} "
            f"over {len(costs)} unseen episodes (simulated)"
        )
    for (name, *_), weight in zip(FEATURES, weights, strict=True):
        print(f"  {name:14} {weight:+8.2f}")


if __name__ == "__main__":
    main()
