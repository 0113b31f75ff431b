"""What NEMO is made of, and whether any of it is known to be vulnerable: ``python -m tools.supply sbom | audit``.

``sbom`` writes the bill of materials (CycloneDX 1.6) of what is installed with NEMO, from the pinned and hashed requirements.
``audit`` compares the pins, those of development too, with advisories in the form of OSV (https://ossf.github.io/osv-schema):
from a file or folder (``--database``, or ``NEMO_ADVISORIES``: an export of OSV's, for instance), otherwise from the service
api.osv.dev. Where neither can be had it says so, loudly, and does not fail.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from packaging.markers import Marker
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {"product": ROOT / "requirements.txt", "development": ROOT / "requirements-dev.txt"}
SERVICE = "https://api.osv.dev/v1/querybatch"
SERVICE_SECONDS = 10.0
_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?:\s*;\s*(?P<marker>[^\\]+))?")


@dataclass(frozen=True, slots=True)
class Pin:
    """One requirement: exactly this version, and only files with one of these SHA-256 sums."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]
    #: What asked for it.
    via: tuple[str, ...]

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version}"


def pins(text: str) -> list[Pin]:
    """The requirements in a lock file. Raises ``ValueError`` where one is not pinned or has no hash."""
    found: list[Pin] = []
    for block in re.split(r"\n(?=[^\s#])", "\n" + text):
        lines = [line.strip() for line in block.strip().splitlines()]
        if not lines or lines[0].startswith("#"):
            continue
        match = _PIN.match(lines[0])
        if match is None:
            raise ValueError(f"requirement {lines[0]!r} is not pinned to one version: run 'make lock'")
        hashes = tuple(sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", block)))
        if not hashes:
            raise ValueError(f"requirement {match['name']} has no hash: run 'make lock'")
        via = re.findall(r"#\s+(?:via\s+)?([A-Za-z0-9._-]+)(?:\s|$)", block)
        marker = (match["marker"] or "").strip()
        found.append(Pin(canonicalize_name(match["name"]), match["version"], marker, hashes, tuple(v for v in via if v != "via")))
    return found


# -- bill of materials -------------------------------------------------------------------------------------


def sbom(found: Iterable[Pin], version: str) -> dict[str, Any]:
    """CycloneDX 1.6. Equal pins give an equal document: no time, and a serial number that follows from the content."""
    found = list(found)
    # One name may be pinned twice, for different Pythons.
    known: dict[str, list[Pin]] = {}
    for pin in found:
        known.setdefault(pin.name, []).append(pin)
    root = {"type": "application", "bom-ref": "nemo-metaos", "name": "nemo-metaos", "version": version}
    root |= {"purl": f"pkg:pypi/nemo-metaos@{version}", "licenses": [{"license": {"id": "Apache-2.0"}}]}
    depends: dict[str, set[str]] = {"nemo-metaos": set(), **{pin.purl: set() for pin in found}}
    for pin in found:
        for parent in pin.via:
            owners = [owner.purl for owner in known.get(canonicalize_name(parent), ())]
            for owner in owners or ["nemo-metaos"]:
                depends[owner].add(pin.purl)
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": [_component(pin) for pin in found],
        "dependencies": [{"ref": ref, "dependsOn": sorted(on)} for ref, on in sorted(depends.items())],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(document, sort_keys=True))
    return {**document, "serialNumber": f"urn:uuid:{serial}"}


def _component(pin: Pin) -> dict[str, Any]:
    files = [{"alg": "SHA-256", "content": content} for content in pin.hashes]
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": pin.purl,
        "name": pin.name,
        "version": pin.version,
        "purl": pin.purl,
        # Any of these files is accepted when it is installed: one for each platform.
        "externalReferences": [{"type": "distribution", "url": pin.purl, "hashes": files}],
    }
    if licence := _licence(pin.name):
        component["licenses"] = [{"license": {"name": licence}}]
    if pin.marker:
        component["properties"] = [{"name": "nemo:marker", "value": pin.marker}]
    return component


def _licence(name: str) -> str:
    """As the installed package says it."""
    try:
        said = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return ""
    classifiers = [c.rpartition(":: ")[2] for c in said.get_all("Classifier") or () if c.startswith("License ::")]
    text = said.get("License-Expression") or ", ".join(classifiers) or said.get("License") or ""
    return text.splitlines()[0][:80] if text else ""


# -- advisories --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """A pin that an advisory is about."""

    pin: Pin
    id: str
    summary: str
    fixed: tuple[str, ...]

    def __str__(self) -> str:
        remedy = (
            f"fixed in {', '.join(self.fixed)}: raise it in pyproject.toml and run 'make lock'"
            if self.fixed
            else "no fix is known"
        )
        return f"{self.pin.name} {self.pin.version}: {self.id} {self.summary} ({remedy})"


def advisories(database: Path) -> Iterator[dict[str, Any]]:
    """All in a file (JSON, or a zip of them) or a folder. Raises ``ValueError`` where it holds none."""
    count = 0
    files = sorted(database.rglob("*.json")) if database.is_dir() else [database]
    for file in files:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    if name.endswith(".json"):
                        count += 1
                        yield json.loads(archive.read(name))
        else:
            held = json.loads(file.read_text())
            for each in held if isinstance(held, list) else [held]:
                count += 1
                yield each
    if not count:
        raise ValueError(f"{database} holds no advisories: it must be JSON in OSV's form, a zip or a folder of it")


def findings(found: Iterable[Pin], known: Iterable[dict[str, Any]]) -> list[Finding]:
    """Which pins the advisories are about; withdrawn ones count for nothing."""
    by_name: dict[str, list[Pin]] = {}
    for pin in found:
        by_name.setdefault(pin.name, []).append(pin)
    result: dict[tuple[str, str, str], Finding] = {}
    for advisory in known:
        if advisory.get("withdrawn"):
            continue
        for affected in advisory.get("affected") or ():
            package = affected.get("package") or {}
            if package.get("ecosystem") != "PyPI":
                continue
            for pin in by_name.get(canonicalize_name(str(package.get("name") or "")), ()):
                if not _affects(affected, pin.version):
                    continue
                fixed = [e["fixed"] for r in affected.get("ranges") or () for e in r.get("events") or () if "fixed" in e]
                summary = str(advisory.get("summary") or advisory.get("details") or "")[:120]
                about = Finding(pin, str(advisory.get("id")), summary, tuple(fixed))
                result.setdefault((pin.name, about.id, pin.version), about)
    return [result[key] for key in sorted(result)]


def _affects(affected: dict[str, Any], version: str) -> bool:
    if version in (affected.get("versions") or ()):
        return True
    have = Version(version)
    for held in affected.get("ranges") or ():
        if held.get("type") != "ECOSYSTEM":
            continue
        inside = False
        for event in sorted(held.get("events") or (), key=_order):
            (kind, text), *_ = event.items()
            at = _version(text)
            if kind == "introduced" and have >= at:
                inside = True
            elif (kind == "fixed" and have >= at) or (kind == "last_affected" and have > at):
                inside = False
        if inside:
            return True
    return False


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")


def _order(event: dict[str, str]) -> tuple[Version, bool]:
    (kind, text), *_ = event.items()
    return _version(text), kind != "introduced"


def from_service(found: list[Pin]) -> list[dict[str, Any]]:
    """What the service knows of these pins. Raises ``OSError`` where it cannot be reached."""
    queries = [{"package": {"purl": pin.purl}} for pin in found]
    request = Request(SERVICE, json.dumps({"queries": queries}).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=SERVICE_SECONDS) as answer:  # noqa: S310
        results = json.load(answer)["results"]
    known = []
    for pin, result in zip(found, results, strict=True):
        affected = [{"package": {"ecosystem": "PyPI", "name": pin.name}, "versions": [pin.version]}]
        known += [{"id": v["id"], "affected": affected} for v in result.get("vulns") or ()]
    return known


def audit(found: list[Pin], database: Path | None) -> int:
    """Prints what is known; the exit code."""
    try:
        known = list(advisories(database)) if database else from_service(found)
    except (OSError, ValueError, KeyError) as error:
        if database:
            print(f"error: the advisories in {database} cannot be read: {error}", file=sys.stderr)
            return 2
        print(f"!!! NOT AUDITED: no advisories could be had ({error}).", file=sys.stderr)
        print(
            "!!! Name a database (--database, NEMO_ADVISORIES), or run this where api.osv.dev is reachable.",
            file=sys.stderr,
        )
        return 0
    about = findings(found, known)
    for finding in about:
        print(finding)
    print(f"{len(found)} pinned packages, {len(known)} advisories looked at, {len(about)} apply")
    return 1 if about else 0


def all_pins() -> list[Pin]:
    """Of product and development, each once."""
    found = {(pin.name, pin.version): pin for lock in LOCKS.values() for pin in pins(lock.read_text())}
    return list(found.values())


def here(pin: Pin) -> bool:
    """Whether a pin is for this machine."""
    return not pin.marker or Marker(pin.marker).evaluate()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.supply", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("command", choices=["sbom", "audit"])
    parser.add_argument("--output", type=Path, default=ROOT / "build/sbom.cdx.json")
    parser.add_argument(
        "--database", type=Path, default=Path(os.environ["NEMO_ADVISORIES"]) if "NEMO_ADVISORIES" in os.environ else None
    )
    given = parser.parse_args(arguments)
    if given.command == "audit":
        return audit(all_pins(), given.database)
    from metaos import __version__

    given.output.parent.mkdir(parents=True, exist_ok=True)
    document = sbom(pins(LOCKS["product"].read_text()), __version__)
    given.output.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {given.output}: {len(document['components'])} components")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
