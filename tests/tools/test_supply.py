"""The bill of materials is whole, and advisories are applied to what is pinned."""

import json
import re
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from metaos import __version__
from tools.supply import LOCKS, ROOT, Pin, advisories, all_pins, audit, findings, here, main, pins, sbom

PRODUCT = pins(LOCKS["product"].read_text())


@pytest.mark.parametrize("lock", LOCKS.values(), ids=lambda p: p.name)
def test_everything_is_pinned_with_hashes(lock: Path) -> None:
    found = pins(lock.read_text())
    assert len(found) > 10 and all(pin.hashes for pin in found)
    assert "--require-hashes -r requirements-dev.txt" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("text", ["requests>=2\n", "requests\n", "requests==2.0\n"])
def test_what_is_not_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="make lock"):
        pins(text)


def test_the_bill_names_every_dependency_and_what_needs_it() -> None:
    document = sbom(PRODUCT, __version__)
    names = {component["name"] for component in document["components"]}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    direct = {canonicalize_name(Requirement(text).name) for text in wanted}
    assert direct <= names
    purl = re.compile(r"pkg:pypi/[a-z0-9-]+@[0-9][A-Za-z0-9.+!-]*")
    for component in document["components"]:
        assert purl.fullmatch(component["purl"]) and component["bom-ref"] == component["purl"]
        assert component["externalReferences"][0]["hashes"][0]["alg"] == "SHA-256"
    missing = [c["name"] for c in document["components"] if not c.get("licenses")]
    assert all(not here(pin) for pin in PRODUCT if pin.name in missing), f"no licence known of {missing}"
    refs = {"nemo-metaos", *(c["bom-ref"] for c in document["components"])}
    depends = {entry["ref"]: entry["dependsOn"] for entry in document["dependencies"]}
    assert depends.keys() == refs and all(set(on) <= refs for on in depends.values())
    assert direct <= {ref.partition("/")[2].partition("@")[0] for ref in depends["nemo-metaos"]}
    reached, waiting = {"nemo-metaos"}, ["nemo-metaos"]
    while waiting:
        news = set(depends[waiting.pop()]) - reached
        reached |= news
        waiting += news
    assert reached == refs, "nothing is there that nothing needs"
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", document["serialNumber"])
    assert sbom(PRODUCT, __version__) == document, "equal pins give an equal document"


def test_it_is_written_where_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sbom", "--output", str(tmp_path / "deep/sbom.json")]) == 0
    document = json.loads((tmp_path / "deep/sbom.json").read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert f"{len(PRODUCT)} components" in capsys.readouterr().out


# -- advisories --------------------------------------------------------------------------------------------

PIN = Pin("some-package", "2.5.1", "", ("0" * 64,), ())


def advisory(*events: dict[str, str], name: str = "Some_Package", **more: Any) -> dict[str, Any]:
    ranges = [{"type": "ECOSYSTEM", "events": list(events)}]
    return {
        "id": "X-1",
        "summary": "bad",
        "affected": [{"package": {"ecosystem": "PyPI", "name": name}, "ranges": ranges}],
    } | more


@pytest.mark.parametrize(
    ("events", "applies"),
    [
        ([{"introduced": "0"}], True),
        ([{"introduced": "0"}, {"fixed": "2.5.1"}], False),
        ([{"introduced": "0"}, {"fixed": "2.5.2"}], True),
        ([{"introduced": "2.5.1"}], True),
        ([{"introduced": "2.6"}], False),
        ([{"introduced": "0"}, {"last_affected": "2.5.1"}], True),
        ([{"introduced": "0"}, {"last_affected": "2.5"}], False),
        ([{"introduced": "0"}, {"fixed": "1.0"}, {"introduced": "2.0"}, {"fixed": "3.0"}], True),
        ([{"introduced": "2.0"}, {"fixed": "3.0"}, {"introduced": "0"}, {"fixed": "1.0"}], True),
        ([{"introduced": "10.0"}], False),
    ],
)
def test_ranges(events: list[dict[str, str]], applies: bool) -> None:
    assert bool(findings([PIN], [advisory(*events)])) == applies


def test_versions_withdrawals_and_others() -> None:
    listed = {"id": "X-2", "affected": [{"package": {"ecosystem": "PyPI", "name": "some.package"}, "versions": ["2.5.1"]}]}
    assert [f.id for f in findings([PIN], [listed])] == ["X-2"]
    assert not findings([PIN], [listed | {"withdrawn": "2020-01-01T00:00:00Z"}])
    assert not findings([PIN], [advisory({"introduced": "0"}, name="other")])
    other = advisory({"introduced": "0"})
    other["affected"][0]["package"]["ecosystem"] = "npm"
    assert not findings([PIN], [other])


def test_a_name_that_is_pinned_for_two_pythons_is_looked_at_twice() -> None:
    newer = Pin(PIN.name, "3.0", "python_full_version >= '3.12'", PIN.hashes, ())
    assert [f.pin for f in findings([PIN, newer], [advisory({"introduced": "0"})])] == [PIN, newer]
    assert [f.pin for f in findings([PIN, newer], [advisory({"introduced": "0"}, {"fixed": "2.6"})])] == [PIN]
    assert [c["version"] for c in sbom([PIN, newer], __version__)["components"]] == ["2.5.1", "3.0"]


def test_a_database_is_a_file_a_folder_or_a_zip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = all_pins()[0]
    bad = advisory({"introduced": "0"}, {"fixed": "9999"}, name=about.name)
    (tmp_path / "one.json").write_text(json.dumps(bad))
    (tmp_path / "many.json").write_text(json.dumps([advisory({"introduced": "0"}, name="unrelated")]))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("X-1.json", json.dumps(bad))
    assert len(list(advisories(tmp_path))) == 2
    for database, code in ((tmp_path, 1), (tmp_path / "one.json", 1), (tmp_path / "all.zip", 1), (tmp_path / "many.json", 0)):
        assert audit(all_pins(), database) == code
    said = capsys.readouterr().out
    assert f"{about.name} {about.version}: X-1 bad (fixed in 9999: raise it in pyproject.toml and run 'make lock')" in said


def test_without_advisories_it_says_so_and_does_not_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("tools.supply.urlopen", nobody)
    assert audit(all_pins(), None) == 0
    assert "NOT AUDITED" in capsys.readouterr().err
    assert audit(all_pins(), Path("/nowhere")) == 2, "a database that was named must be there"
