"""``nemo plan``: what it reads, what it prints and what it draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from metaos.cli.output import fit
from metaos.cli.plan import ask, draw, plot, read_objects, render, supposed
from metaos.resources import scheme
from metaos.resources.errors import ApiError, forbidden, not_found

WAYS = [
    {"cost": 0.1, "carbon": 9.0, "power": 20.0, "latency": 12.0, "workloads": [{"name": "web", "clusters": [{"name": "a"}]}]},
    {"cost": 0.3, "carbon": 2.0, "power": 20.0, "workloads": [{"name": "web", "clusters": [{"name": "b"}, {"name": "c"}]}]},
]


def status(**more: Any) -> dict[str, Any]:
    row = {
        "kind": "Deployment",
        "namespace": "shop",
        "name": "web",
        "before": {"clusters": [{"name": "a", "replicas": 1}], "cost": 0.1, "carbon": 9.0, "power": 20.0},
        "after": {"clusters": [{"name": "b", "replicas": 1}], "cost": 0.3, "carbon": 2.0, "power": 20.0},
        "reason": "had to leave a: the site is being drained",
        "rejected": [{"cluster": "a", "filter": "Leaving", "reason": "the site is being drained"}],
    }
    return {"workloads": [row], "unchanged": 3, "before": row["before"], "after": row["after"], "chosen": row["after"]} | more


def test_files_folders_and_lists_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n---\n")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}
    (tmp_path / "b.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [namespace]}))
    (tmp_path / "c.txt").write_text("not read")
    found = read_objects([tmp_path], "shop")
    assert [(o["kind"], o["metadata"]) for o in found] == [
        ("ConfigMap", {"name": "a", "namespace": "shop"}),
        ("Namespace", {"name": "n"}),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "line 1"),
        ("just a text", "every document needs apiVersion and kind"),
        ("apiVersion: v1\nkind: Thing\nmetadata: {name: a}", "is not served: see 'kubectl api-resources'"),
        ("apiVersion: v1\nkind: Pod", "a Pod without metadata.name"),
        ("\x00", "is no manifest"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: 3}", "metadata.name must be a text: 3 is not; put it in quotes"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: [b]}", "metadata.namespace must be a text"),
    ],
)
def test_a_mistake_in_a_file_names_it(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        read_objects([file], "default")
    assert str(file) in str(caught.value)


def test_what_is_supposed_is_checked() -> None:
    assert supposed(("a",), (), ("b=0.5",), ("DE=100",)) == {
        "drain": ["a"],
        "prices": {"b": 0.5},
        "carbonIntensities": {"DE": 100.0},
    }
    for wrong in ("b", "=1", "b=", "b=x", "b=-1", "b=nan", "b=inf"):
        with pytest.raises(click.BadParameter, match="must be NAME=AMOUNT"):
            supposed((), (), (wrong,), ())


def test_people_are_told_where_why_and_what_it_costs() -> None:
    text = "\n".join(render(status(alternatives=WAYS), 100))
    assert "a (1) -> b (1)" in text and "cost 0.1 -> 0.3 EUR/h, carbon 9 -> 2 gCO2eq/h, power 20 W" in text
    assert "not on    a: the site is being drained" in text and "3 workloads would stay as they are" in text
    assert "web on b+c" in text and "EUR/h" in text


def test_one_other_way_is_told_unless_it_is_the_plans_own() -> None:
    ours = {**WAYS[0], "cost": 0.3, "carbon": 2.0, "latency": None}
    assert any("other ways" in line for line in render(status(alternatives=WAYS[:1]), 0))
    assert not any("other ways" in line for line in render(status(alternatives=[ours]), 0))


def test_people_are_told_what_holds_those_that_stay() -> None:
    held = {"kind": "Deployment", "namespace": "shop", "name": "api", "reason": "stays: b would be better, but (cool-down)"}
    text = "\n".join(render(status() | {"held": [held | {"until": "2026-01-01T00:05:00Z"}]}, 100))
    assert "Deployment shop/api stays: b would be better, but (cool-down); at the earliest from 2026-01-01T00:05:00Z" in text


def test_what_cannot_be_met_is_told_in_the_users_words() -> None:
    found = status()
    found["workloads"][0]["conflict"] = {"requirements": [{"text": "2 CPU", "source": "the pods' requests"}], "relaxations": []}
    text = "\n".join(render(found, 100))
    assert "problem   no site meets this:" in text and "- 2 CPU  (the pods' requests)" in text and "not on" not in text


def test_all_at_once_is_told_with_its_proof() -> None:
    move = {"kind": "Deployment", "namespace": "shop", "name": "web", "from": ["a"], "to": "b", "gain": 7.25}
    found = {"considered": 2, "before": 50.0, "after": 53.5, "gap": 0.004, "moves": [move], "movesLeftOut": 0}
    text = "\n".join(render({"reoptimised": found}, 100))
    assert "50.0 -> 53.5 points of 100 on average; of what is missing, at most 0.40% could be had besides" in text
    assert "Deployment shop/web: a -> b, +7.2 points" in text
    assert "none of them would gain" in "\n".join(render({"reoptimised": found | {"moves": []}}, 100))


def test_nothing_to_tell_is_told() -> None:
    assert render({"workloads": [], "alternatives": []}, 80) == ["nothing would change"]
    assert render({"workloads": [], "unchanged": 1, "before": {"power": 0}, "after": {"power": 0}}, 80) == [
        "1 workload would stay as it is",
        "all together  power 0 W",
    ]


def test_sites_without_room_are_told_where_no_requirement_is_in_conflict() -> None:
    found = status()
    found["workloads"][0]["conflict"] = {"requirements": [], "relaxations": []}
    assert "not on    a: the site is being drained" in "\n".join(render(found, 100))


def test_the_plot_has_a_mark_for_each_way_and_keeps_its_width() -> None:
    lines = plot(WAYS, {"cost": 0.2, "carbon": 5.0}, 40)
    assert {"1", "2", "*"} <= set("".join(lines)) and max(map(len, lines)) <= 40 + 13
    assert plot([], {}, 40) == [] and plot(WAYS[:1], {}, 40) == []


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_picture_is_drawn(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"plan.{suffix}"
    draw(status(alternatives=WAYS), file)
    assert file.read_bytes()[:5] in (b"<?xml", b"\x89PNG\r")


def test_a_picture_of_nothing_or_of_no_known_form_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw({}, tmp_path / "a.svg")
    with pytest.raises(ValueError, match="cannot be written"):
        draw(status(alternatives=WAYS), tmp_path / "a.nothing")


def test_long_lines_are_broken_for_a_screen_and_keep_their_words() -> None:
    text = "  because   " + "no site can take it: it is " * 8
    lines = fit(["short", text], 80)
    assert lines[0] == "short" and max(map(len, lines)) <= 80 and len(lines) > 3
    assert " ".join(" ".join(lines[1:]).split()) == " ".join(text.split())


def test_a_narrow_screen_keeps_what_is_where_in_its_column() -> None:
    parts = [{"name": f"part-{n}", "clusters": [{"name": "edge-paris"}, {"name": "cloud-frankfurt"}]} for n in range(4)]
    found = render(status(alternatives=[WAYS[0], {**WAYS[1], "workloads": parts}]), 80)
    assert max(map(len, found)) <= 80
    start = next(line for line in found if "web on a" in line).index("web on a")
    beside = " ".join(line[start:] for line in found if len(line) > start)
    assert all(f"part-{n} on edge-paris+cloud-frankfurt" in beside for n in range(4)), "\n".join(found)


class Hub:
    """Answers dry runs and reviews as it is told."""

    def __init__(self, review: ApiError | None = None, applied: ApiError | None = None) -> None:
        self.review, self.applied = review, applied
        self.asked: dict[str, Any] = {}

    async def patch(self, kind: Any, name: str, where: str, obj: Any, **how: Any) -> Any:
        assert how["dry_run"]
        if self.applied is not None:
            raise self.applied
        return {**obj, "defaulted": True}

    async def create(self, obj: Any) -> Any:
        if self.review is not None:
            raise self.review
        self.asked = obj["spec"]
        return obj


def objects() -> list[Any]:
    return [
        {**scheme.NAMESPACE.empty("fresh"), "spec": {}},
        scheme.CLUSTER.empty("edge"),
        scheme.DEPLOYMENT.empty("web", "fresh"),
        scheme.CONFIG_MAP.empty("settings", "fresh"),
    ]


async def test_workloads_are_applied_without_effect_and_sites_are_said_to_be_passed_over() -> None:
    hub: Any = Hub()
    _, told = await ask(hub, objects(), {"drain": ["a"]})
    assert [o["kind"] for o in hub.asked["objects"]] == ["Deployment"] and hub.asked["objects"][0]["defaulted"]
    assert hub.asked["drain"] == ["a"] and "of edge is passed over" in told[0]


async def test_what_comes_with_its_namespace_is_planned_all_the_same() -> None:
    hub: Any = Hub(applied=not_found("", "namespaces", "fresh"))
    _, told = await ask(hub, objects(), {})
    assert len(hub.asked["objects"]) == 1 and "namespace 'fresh' is not there yet" in told[0]
    with pytest.raises(ApiError, match="not found"):
        await ask(hub, objects()[2:], {})


async def test_who_may_not_plan_is_told_what_is_missing() -> None:
    hub: Any = Hub(review=forbidden("meta-os.eu", "placementreviews", "", 'User "ann" cannot create resource'))
    with pytest.raises(ApiError) as caught:
        await ask(hub, [], {})
    assert "bind the role 'system:site-viewer'" in caught.value.message
