"""Whatever stands in a site file: it is taken as the schema says, or refused with the field, the value and the remedy."""

import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaos.agent.sitefile import MAX_BYTES, read_site

HEAD = "apiVersion: meta-os.eu/v1alpha1\nkind: Cluster\nmetadata: {name: edge}\n"
EXAMPLES = sorted((Path(__file__).parents[2] / "examples/sites").glob("*.yaml"))


def read(folder: Path, text: str | bytes) -> dict[str, Any]:
    path = folder / "site.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_site(path)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.name)
def test_the_examples_are_taken(file: Path) -> None:
    assert read_site(file) == yaml.safe_load(file.read_text())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{power: {idleWatts: .nan}}", "spec.power.idleWatts: nan must be a finite number"),
        ("{power: {idleWatts: -1}}", "spec.power.idleWatts: -1 must be at least 0"),
        ("{price: {cpuHour: .inf}}", "spec.price.cpuHour: inf must be a finite number"),
        ("{location: {latitude: 1e400}}", "spec.location.latitude: '1e400' must be a number"),
        ("{location: {latitude: 91}}", "spec.location.latitude: 91 must be at most 90"),
        ("{location: {country: NO}}", "spec.location.country: False must be text; put it in quotes"),
        ("{location: {country: Spain}}", "spec.location.country: 'Spain' must be of the form"),
        ("{capacity: {cpu: -1}}", "spec.capacity.cpu: -1 must not be negative; leave it out"),
        ("{capacity: {cpu: [1]}}", "must be a quantity, for example 500m"),
        ("{capacity: {memory: much}}", "quantity 'much' must be a number with an optional suffix"),
        ("{capacity: {cpu: 1" + "0" * 200 + "}}", "must be a quantity"),
        ("{tier: egde}", "spec.tier: 'egde' must be one of cloud, edge, gateway, device"),
        ("{jurisdiction: [EU]}", "spec.jurisdiction: there is no such field; did you mean 'jurisdictions'?"),
        ("{jurisdictions: EU}", "spec.jurisdictions: 'EU' must be a list"),
        ("{taints: [{effect: NoSchedule}]}", "spec.taints[0].key: it is missing"),
        ("{unschedulable: 1}", "spec.unschedulable: 1 must be true or false"),
        ("{owner: 2020-01-01}", "must be text; put it in quotes"),
        ("{hostPaths: [/srv, 7]}", "spec.hostPaths[1]: 7 must be text"),
        (
            "{registries: [{host: 'https://registry.example/x'}]}",
            "spec.registries[0].host: 'https://registry.example/x' must be of",
        ),
        ("{imagePolicy: [{images: '', action: Accept}]}", "spec.imagePolicy[0].images: it is empty; A pattern for full names"),
        ("[]", "spec: [] must be a map of fields"),
        ("{tier: edge, tier: cloud}", "the field 'tier' is there twice: keep one of them (line 4"),
        ("{1: 2}", "the field name 1 must be text"),
        ("{? [a] : b}", "the field name ['a'] must be text"),
        ("{owner: &a x, trust: *a}", "aliases (*name) are not taken"),
        ("{owner: !!python/object/apply:os.system [true]}", "could not determine a constructor"),
        ("{owner: !!binary a===}", "is not YAML"),
        ("{owner: 2020-99-99}", "is not YAML"),
        ("{power: {idleWatts: " + "9" * 5000 + "}}", "Exceeds the limit"),
        ("[" * 500 + "]" * 500, "nested deeper than 20 levels"),
        ("{owner: \x00}", "is not YAML"),
        ("{owner: 'x", "is not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(tmp_path: Path, spec: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, f"{HEAD}spec: {spec}\n")
    assert said in str(caught.value) and len(str(caught.value)) < 2000, caught.value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold one Cluster manifest"),
        ("a: b", "must be a manifest of"),
        ("- 1", "must hold one Cluster manifest"),
        (f"{HEAD}---\n{HEAD}", "it holds 2 documents"),
        (HEAD.replace("edge", "Edge_1"), "metadata.name 'Edge_1' must be"),
        (HEAD.replace("edge", "[a]"), "metadata.name ['a'] must be"),
        (HEAD.replace("edge", "x" * 51), "must be 1 to 50"),
        (HEAD.replace("{name: edge}", "{name: edge, labels: {a: 1}}"), "metadata.labels.a: 1 must be text"),
        (b"\xff\xfe\x00\xd8\xff", "is not YAML"),
        (HEAD + "#" * MAX_BYTES, f"more than {MAX_BYTES} bytes"),
    ],
)
def test_what_is_no_site_file_is_said_to_be_none(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)


def test_a_bomb_costs_neither_memory_nor_time(tmp_path: Path) -> None:
    """Ten levels of ten aliases each: ten thousand million values, in half a kilobyte. In a process with 300 MB."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    started = time.monotonic()
    for name in ("bomb.yaml", "/dev/zero", "/proc/self/mem"):
        done = subprocess.run(
            [sys.executable, "-m", "metaos.agent.identity", "site", str(tmp_path / name)],
            capture_output=True,
            text=True,
            timeout=30,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20)),
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr and len(done.stderr) < 500, done.stderr
    assert time.monotonic() - started < 20


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
fields = ["tier", "location", "electricity", "jurisdictions", "capacity", "power", "price", "latencies", "taints", "hostImages"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*fields, "hostPaths", "x"]), values, max_size=4), values)
def test_any_value_is_taken_as_the_schema_says_or_refused(tmp_path: Path, spec: dict[str, Any], rest: Any) -> None:
    for whole in (
        {"apiVersion": "meta-os.eu/v1alpha1", "kind": "Cluster", "metadata": {"name": "edge"}, "spec": spec},
        {"apiVersion": "meta-os.eu/v1alpha1", "kind": "Cluster", "metadata": rest, "spec": rest},
        rest,
    ):
        try:
            site = read(tmp_path, yaml.safe_dump(whole))
        except ValueError as error:
            assert str(error).startswith("site file ") and len(str(error)) < 5000
            continue
        json.dumps(site, allow_nan=False)
        assert all(k in [*fields, "hostPaths"] for k in site.get("spec") or {})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_in_a_good_file_are_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    good = EXAMPLES[0].read_bytes()
    at, noise = (
        data.draw(st.integers(0, len(good))),
        data.draw(st.binary(max_size=12) | st.sampled_from([b"&a", b"*a", b"<<: ", b"? "])),
    )
    try:
        site = read(tmp_path, good[:at] + noise + good[at + data.draw(st.integers(0, 30)) :])
    except ValueError as error:
        assert len(str(error)) < 5000
    else:
        assert site["kind"] == "Cluster" and all(
            math.isfinite(v) for v in ((site.get("spec") or {}).get("power") or {}).values() if v is not None
        )
