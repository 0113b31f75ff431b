"""What a Job's annotations say of when it may run."""

import math
from typing import Any

import pytest

from metaos.apiserver.admission import UnsupportedFields
from metaos.resources.meta import Obj, format_time
from metaos.scheduler.slack import (
    DEADLINE,
    DURATION,
    LEAST,
    SLACK,
    SUSPENDABLE,
    WAITS_FOR,
    asked,
    causes,
    intent_causes,
    lengths,
    seconds,
    waits_until,
)

NOW = 1_700_000_000.0


def job(name: str = "j", took: float | None = None, *, command: str = "run", **said: str) -> dict[str, Any]:
    keys = {"slack": SLACK, "deadline": DEADLINE, "duration": DURATION}
    found: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": name,
            "creationTimestamp": format_time(NOW),
            "annotations": {keys[k]: v for k, v in said.items()},
        },
        "spec": {"template": {"spec": {"containers": [{"image": "python:3", "command": [command]}]}}},
    }
    if took is not None:
        times = {"startTime": format_time(NOW - took), "completionTime": format_time(NOW)}
        found["status"] = {**times, "conditions": [{"type": "Complete", "status": "True"}]}
    return found


def latest_of(found: Obj, took: tuple[float, ...]) -> tuple[float, str]:
    said = asked(found)
    assert said is not None
    return waits_until(found, said, took)


def lengths_of(found: Obj, others: list[Obj]) -> tuple[float, ...]:
    said = asked({**found, "metadata": found["metadata"] | {"annotations": {SLACK: "1h"} | found["metadata"]["annotations"]}})
    assert said is not None
    return lengths(found, said, others)


@pytest.mark.parametrize(("text", "value"), [("6h", 21600), ("1h30m", 5400), ("90s", 90), ("1.5h", 5400), ("2d", 172800)])
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "6", "-6h", "6 h", "6x", "nan", "1e9h", "h"])
def test_what_is_no_duration_is_refused_with_the_field_and_a_remedy(text: str) -> None:
    found = list(causes(job(slack=text)))
    assert [c.field for c in found] == [f"metadata.annotations[{SLACK}]"]
    assert repr(text) in found[0].message and "for example 6h" in found[0].message


def test_other_annotations_that_make_no_sense() -> None:
    assert "at most 7d" in next(causes(job(slack="8d"))).message
    assert "2030-01-31T06:00:00Z" in next(causes(job(deadline="tomorrow"))).message
    assert "either this or" in next(causes(job(deadline=format_time(NOW), slack="1h"))).message
    assert "must be more than nothing" in next(causes(job(slack="6h", duration="0s"))).message
    assert not list(causes(job(slack="6h", duration="1h")))
    assert not list(causes(job(slack="0s")))
    assert asked(job(slack="6h")) and asked(job()) is None and asked(job(slack="soon")) is None


def test_a_deadline_keeps_clear_of_how_long_it_takes() -> None:
    due = format_time(NOW + 10 * 3600)
    latest, why = latest_of(job(deadline=due), (3600.0, 7200.0))
    assert latest == NOW + 10 * 3600 - 7200 * 1.1 - 60 and due in why
    bounded = job(deadline=due)
    bounded["spec"]["activeDeadlineSeconds"] = 600
    assert latest_of(bounded, ())[0] == NOW + 10 * 3600 - 600
    latest, why = latest_of(job(deadline=due), ())
    assert latest == NOW and "how long it runs is not known: state" in why
    assert latest_of(job(slack="6h"), ())[0] == NOW + 6 * 3600


def test_lengths_are_stated_or_those_of_earlier_jobs_that_run_the_same() -> None:
    others = [job("a", 100.0), job("b", 300.0), job("c", 50.0, command="other"), job("d"), job("e", 20.0) | {"status": {}}]
    assert sorted(lengths_of(job(), others)) == [100.0, 300.0]
    assert lengths_of(job(duration="2h"), others) == (7200.0,)
    assert lengths_of(job(), []) == ()
    assert not math.isinf(latest_of(job(slack="1s"), ())[0])


def test_what_does_not_wait_says_so() -> None:
    template = {"metadata": {"annotations": {SLACK: "6h"}}, "spec": job()["spec"]}
    metadata = {"name": "c", "namespace": "shop", "annotations": {DEADLINE: "soon"}}
    cron = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata, "spec": {"jobTemplate": template}}
    _, warnings = UnsupportedFields().admit("CREATE", cron, None)
    assert [w.partition(":")[0] for w in warnings] == [f"metadata.annotations[{DEADLINE}]"]
    assert "say it in spec.jobTemplate.metadata" in warnings[0]
    said = asked(cron)
    assert said is not None and said.slack == 21600 and not said.suspendable
    template["metadata"]["annotations"] = {DEADLINE: format_time(NOW)}
    assert "have no deadline in common" in next(causes(cron)).message and asked(cron) is None
    assert not UnsupportedFields().admit("CREATE", job(slack="6h"), None)[1]


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("meta-os.eu/slak", f"it is not known and means nothing; {SLACK} is"),
        ("meta-os.eu/dead-line", f"it is not known and means nothing; {DEADLINE} is"),
        ("meta-os.eu/tea", "of waiting there are meta-os.eu/slack"),
        (SLACK, ""),
        ("example.org/slak", ""),
        ("meta-os.eu/cronjob-uid", ""),
    ],
)
def test_an_annotation_that_means_nothing_is_warned_of_once(key: str, told: str) -> None:
    found = job()
    found["metadata"]["annotations"] = {key: "1h"}
    _, said = UnsupportedFields().admit("CREATE", found, None)
    assert len(said) == bool(told) and all(f"metadata.annotations[{key}]: " in s and told in s for s in said)
    assert not UnsupportedFields().admit("UPDATE", found, found)[1]
    assert UnsupportedFields().admit("UPDATE", found, job())[1] == said


def test_a_deadline_in_the_past_is_warned_of() -> None:
    for due, told in ((NOW - 60, True), (NOW + 60, False)):
        _, said = UnsupportedFields().admit("CREATE", job(deadline=format_time(due)), None)
        assert [f"is before the Job is made, {format_time(NOW)}: it starts at once" in s for s in said] == [True] * told


def intent(value: Any, *targets: str) -> Obj:
    said = [{"name": name, "condition": "Minimize"} for name in targets]
    expectation = {"targets": said, "contexts": [{"name": "deferrable", "value": value}]}
    return {"metadata": {"name": "i", "namespace": "shop"}, "spec": {"expectations": [expectation]}}


@pytest.mark.parametrize(
    ("value", "field", "remedy"),
    [
        ("soon", "", "for example 6h"),
        ({"slack": "soon"}, ".slack", "for example 6h"),
        ({"slak": "6h"}, "", "supported values: slack, deadline"),
        ({"suspendable": True}, "", "say slack or deadline"),
        ({"slack": "6h", "suspendable": "perhaps"}, ".suspendable", 'must be "true"'),
        ({"slack": "6h", "minParallelism": 2}, ".minParallelism", "pods are stopped when the width changes"),
        ({"slack": "6h", "minParallelism": 0, "suspendable": True}, ".minParallelism", "at least 1"),
    ],
)
def test_what_an_intent_says_wrong_of_waiting_is_refused(value: Any, field: str, remedy: str) -> None:
    found = list(intent_causes(intent(value, "cost")))
    assert [c.field for c in found] == [f"spec.expectations[0].contexts[0].value{field}"] and remedy in found[0].message
    assert asked({"kind": "Job", **job()}, [intent(value, "cost")]) is None


def test_an_intent_says_what_is_waited_for() -> None:
    found = asked(job(), [intent({"slack": "6h", "suspendable": True, "expectedDuration": "1h"}, "latency", "cost")])
    assert found is not None and (found.slack, found.duration, found.aims, found.intent) == (21600, 3600, ("cost",), "i")
    assert found.suspendable and not list(intent_causes(intent("6h", "carbonIntensity")))
    assert "one waits for carbonIntensity or cost" in next(intent_causes(intent("6h", "latency"))).message


def test_a_width_within_what_the_job_asks_for() -> None:
    wide = job(slack="6h")
    wide["metadata"]["annotations"] |= {LEAST: "3", SUSPENDABLE: "true"}
    assert "at most spec.parallelism and completions (1)" in next(causes(wide)).message
    wide["spec"]["parallelism"] = 4
    assert not list(causes(wide))
    found = asked(wide)
    assert found is not None and found.least == 3


def test_what_is_waited_for_is_named() -> None:
    found = job(slack="6h")
    found["metadata"]["annotations"][WAITS_FOR] = "gold"
    assert "must be carbonIntensity, cost, or both" in next(causes(found)).message
