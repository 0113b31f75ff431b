"""The twin as an environment for learning: by the contracts of gymnasium and pettingzoo, and by what really happened."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from pettingzoo.test import parallel_api_test

from metaos.scheduler.features import UNKNOWN
from metaos.scheduler.learned import learned
from metaos.twin.bill import Prices
from metaos.twin.decisions import as_it_is
from metaos.twin.environment import PlacementEnv
from metaos.twin.market import SiteMarket
from metaos.twin.scaling import ScalingEnv
from metaos.twin.scenario import scenario
from metaos.twin.story import Scenario
from metaos.twin.text import read

ROOT = Path(__file__).parents[2]
TEXT = """
title: Two sites and a foreign one.
duration: 20m
timing: {heartbeat: 100s, lease: 400s, fencing: 500s}
agents: light
sites:
- name: a
  spec: &site
    jurisdictions: [EU]
    capacity: {cpu: "2"}
    electricity: {carbonIntensity: 50}
    price: {cpuHour: 0.06}
    power: {maxWatts: 50}
- {name: b, spec: {<<: *site, capacity: {cpu: "8"}, electricity: {carbonIntensity: 500}, price: {cpuHour: 0.01}}}
- {name: c, spec: {<<: *site, capacity: {cpu: "8"}, jurisdictions: [US], price: {cpuHour: 0.01}}}
workloads:
- {name: web, replicas: 2, cpu: 500m, at: 1m, residency: [EU]}
- {name: big, kind: StatefulSet, replicas: 1, cpu: "2", at: 5m}
- {name: job, kind: Job, run: 5m, cpu: "1", at: 10m}
"""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    file = tmp_path_factory.mktemp("twin") / "story.yaml"
    file.write_text(TEXT)
    return scenario(read(file), file.parent)


@pytest.fixture
def env(story: Scenario) -> Iterator[PlacementEnv]:
    found = PlacementEnv(story, vary=as_it_is, render_mode="ansi")
    yield found
    found.close()


def played(env: PlacementEnv, actions: list[int], seed: int = 1) -> tuple[float, list[dict[str, Any]]]:
    _, info = env.reset(seed=seed)
    total, infos = 0.0, [info]
    for action in actions:
        _, reward, over, _, info = env.step(action)
        total += reward
        infos.append(info)
    assert over
    return total, infos


@pytest.mark.slow
def test_contracts(env: PlacementEnv, story: Scenario) -> None:
    scaling, market = ScalingEnv(story, "web"), SiteMarket(story)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # They were not registered under a name.
        check_env(env, skip_render_check=True)
        check_env(scaling, skip_render_check=True)
    parallel_api_test(market, num_cycles=4)
    scaling.close()
    market.close()


@pytest.mark.slow
def test_the_page_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/how-to/learn-a-policy.md").read_text()
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.endswith("True\n")


@pytest.mark.slow
def test_the_example_learns_and_a_hub_would_take_it(tmp_path: Path) -> None:
    file = tmp_path / "policy.onnx"
    done = subprocess.run(
        [sys.executable, "-m", "examples.learning", str(file), "--rounds", "1", "--unseen", "1"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "with the learned policy: " in done.stdout
    assert learned("policy", file.read_bytes(), 5.0).name == "policy"


def test_work_goes_where_it_was_wished(env: PlacementEnv) -> None:
    _, infos = played(env, [1, 2, 0])
    assert infos[-1]["report"]["placements"] == {
        "default/deployment-web": {"b": 2},
        "default/statefulset-big": {"c": 1},
        "default/job-job": {"a": 1},
    }
    assert infos[-1]["report"]["passed"]


def test_what_may_not_be_is_masked_and_not_followed(env: PlacementEnv) -> None:
    _, infos = played(env, [2, 3, 3])
    assert list(infos[0]["action_mask"]) == [1, 1, 0, 1]
    assert "c" not in infos[-1]["report"]["placements"]["default/deployment-web"]


def test_room_that_is_taken_is_masked(env: PlacementEnv) -> None:
    _, infos = played(env, [0, 3, 3])
    assert list(infos[1]["action_mask"]) == [0, 1, 1, 1], "the big one needs two cores, and one is taken"


def test_rewards_are_what_was_paid(env: PlacementEnv) -> None:
    total, infos = played(env, [0, 1, 2])
    bill = infos[-1]["bill"]
    assert total == pytest.approx(-(bill["money"] + 1e-4 * (bill["grams"] + bill["waiting"] + bill["unmet"])))
    # web: two halves of a core for 19 minutes at 0.06; big: two cores for 15 at 0.01; the job: one core for 5 at 0.01. Starting
    # and stopping take seconds.
    assert bill["money"] == pytest.approx(0.06 * 19 / 60 + 0.02 * 15 / 60 + 0.01 * 5 / 60, rel=0.02)
    assert bill["grams"] > 0
    assert bill["unmet"] == 0


def test_same_seed_same_story(env: PlacementEnv) -> None:
    first, infos = played(env, [0, 1, 2], seed=7)
    again, others = played(env, [0, 1, 2], seed=7)
    assert first == again
    assert infos[-1]["report"]["log"] == others[-1]["report"]["log"]


def test_orders_differ_between_episodes(story: Scenario) -> None:
    env = PlacementEnv(story, prices=Prices(money=2.0))
    firsts = set()
    for seed in range(4):
        _, info = env.reset(seed=seed)
        firsts.add(info["workload"])
    env.close()
    assert len(firsts) > 1


def test_mistakes(env: PlacementEnv, story: Scenario) -> None:
    with pytest.raises(RuntimeError, match="reset"):
        env.step(0)
    env.reset(seed=1)
    with pytest.raises(ValueError, match="action 9: must be from 0 to 3"):
        env.step(9)
    assert "web may go to a, b" in env.render()
    env.close()
    with pytest.raises(ValueError, match="workload 'webb' is no Deployment of the scenario: there are web"):
        ScalingEnv(story, "webb")


def test_inside_a_notebook(env: PlacementEnv) -> None:
    """There a loop runs already."""
    import asyncio

    async def cell() -> None:
        seen, _ = env.reset(seed=1)
        assert seen.shape == (3, len(seen[0]))
        assert seen.min() >= UNKNOWN
        env.close()

    asyncio.run(cell())


def test_scaling(story: Scenario) -> None:
    env = ScalingEnv(story, "web", demand=lambda steps, chance: np.full(steps, 100.0), per_replica=25.0, every=300.0, most=4)
    _, info = env.reset(seed=1)
    assert list(info["action_mask"]) == [0, 1, 1, 1, 1]
    lost, rewards, over = [], [], False
    while not over:
        _, reward, over, _, info = env.step(3 if info["replicas"] < 4 else 2)
        lost.append(info["lost"])
        rewards.append(reward)
    # The first step is scaled before web is there; from the third on there are four.
    assert lost[0] > 0 == lost[-1]
    assert rewards[-1] > rewards[0]
    assert info["replicas"] == 4
    env.close()


def test_market(story: Scenario) -> None:
    env = SiteMarket(story, vary=as_it_is)
    seen, _ = env.reset(seed=1)
    assert [int(seen[site]["action_mask"].sum()) for site in "abc"] == [11, 11, 1]
    earned = dict.fromkeys("abc", 0.0)
    while env.agents:
        _, rewards, *_ = env.step({"a": 1, "b": 5, "c": 10})
        for site, reward in rewards.items():
            earned[site] += reward
    assert earned["a"] <= 0 < earned["b"], "the best bid that may have it gets it"
    assert earned["c"] > 0
    env.close()
