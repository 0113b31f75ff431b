"""The documentation is true: generated pages are current, examples are valid, commands and links exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from docs import facts
from docs.generate import PAGES, commands
from docs.pictures import PICTURES, ROLES
from metaos.apiserver.metadata import prepare_create
from metaos.apiserver.shaping import shape, validate
from metaos.cli.main import nemo
from metaos.resources import scheme

ROOT = Path(__file__).parents[2]
PAGES_BY_HAND = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("name", sorted(PAGES))
def test_generated_pages_are_current(name: str) -> None:
    assert (ROOT / "docs/reference" / name).read_text() == PAGES[name](), "run 'make docs'"


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_pictures_are_current(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == PICTURES[name](), "run 'make docs'"


def test_pictures_show_what_the_code_says() -> None:
    """What the drawing does not take from the code itself is held here."""
    assert {c.name for c in facts.controllers() if facts.hands_over(c.name)} == set(facts.HANDED), (
        "who writes what: docs/facts.py"
    )
    order = [name for layer in facts.layers() for name in layer]
    assert all(order.index(a) < order.index(b) for a, b in facts.imports() if a in order and b in order)
    leaves = {path.removeprefix("nemo ") for path, c in commands(nemo, "nemo") if not isinstance(c, click.Group)}
    assert sorted(word for used in ROLES.values() for word in used) == sorted(leaves), "a role for each command: docs/pictures.py"


def test_the_architecture_shows_every_picture_and_names_what_exists() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs/architecture").glob("*.md"))
    for name in PICTURES:
        assert f"]({name.rpartition('/')[2]})" in pages or f"](../{name})" in pages, name
    for path in re.findall(r"`(metaos/[\w/.]+)`", pages):
        assert (ROOT / path).exists(), path


def manifests() -> Iterator[tuple[str, dict[str, object]]]:
    for page in PAGES_BY_HAND:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S):
            if block.startswith("title: "):
                continue  # a scenario of the twin
            for document in yaml.safe_load_all(block):
                yield page.name, document
    for file in sorted((ROOT / "examples").rglob("*.yaml")):
        if file.parent.name == "scenarios":
            continue  # they are played, in tests/twin
        for document in yaml.safe_load_all(file.read_text()):
            yield file.name, document


@pytest.mark.parametrize(("where", "manifest"), list(manifests()))
def test_every_example_is_valid(where: str, manifest: dict[str, object]) -> None:
    kind = scheme.kind_of(manifest)
    found = shape(kind, manifest, None, "Strict", [])
    prepare_create(kind, found, "00000000-0000-4000-8000-000000000000", "2026-01-01T00:00:00Z")
    validate(kind, found, None)


def test_every_command_that_is_mentioned_exists() -> None:
    known = {path for path, _ in commands(nemo, "nemo")}
    for page in PAGES_BY_HAND:
        for words in re.findall(
            r"\bnemo ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)?)", " ".join(re.findall(r"`+[^`]+`+", page.read_text()))
        ):
            first, _, second = words.partition(" ")
            assert f"nemo {first}" in known, f"{page.name}: nemo {words}"
            group = nemo.commands[first]
            if isinstance(group, click.Group) and second:
                assert f"nemo {words}" in known, f"{page.name}: nemo {words}"


@pytest.mark.parametrize("page", PAGES_BY_HAND, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


THREATS = (ROOT / "docs/threat-model.md").read_text()


def test_every_threat_has_tests_that_exist() -> None:
    sections = re.split(r"\n## ", THREATS)
    boundaries = [section for section in sections if "| threat |" in section]
    assert len(boundaries) == 9, "users, joining, agent, container, neighbours, devices, bus, disk, supply chain"
    letters: set[str] = set()
    for section in boundaries:
        rows = [row for row in section.splitlines() if re.match(r"\| [A-Z] \|", row)]
        assert rows, section
        for row in rows:
            letter, threat, held, tests = (cell.strip() for cell in row.strip("|").split(" | "))
            assert letter.strip("| ") in "STRIDE" and threat and held
            letters.add(letter.strip("| "))
            found = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
            assert found and len(found) == tests.count("::"), f"{threat}: no test"
            for file, name in found:
                source = (ROOT / file).read_text() if (ROOT / file).exists() else ""
                assert re.search(rf"^(async )?def {name}\(", source, re.M), f"{threat}: {file}::{name} does not exist"
    assert letters == set("STRIDE")
