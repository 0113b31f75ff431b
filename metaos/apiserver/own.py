"""What NEMO's own kinds must mean, beyond their schemas. Pure. Each message names the field, the value and the remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from metaos.apiserver.metadata import label_causes
from metaos.apiserver.schema import duplicate, forbidden, invalid, required
from metaos.data.backups import never_a_store
from metaos.devices.credentials import NAME as DEVICE_NAME
from metaos.devices.waves import bound
from metaos.devices.workload import PINNED, PINNED_TEXT
from metaos.network.intents import validate_intent
from metaos.network.traffic import validate_traffic
from metaos.resources import quantity
from metaos.resources.cron import due_times
from metaos.resources.devices import GPU, GPU_MILLI, MOST_DEVICES, WHOLE, extended
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj, label_selector, parse_time
from metaos.scheduler import slack

#: Of any resource at one site, in its unit: 4 EiB of memory.
MOST_CAPACITY = 2**62


def intent_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if not any(spec.get(word) for word in ("expectations", "traffic", "licences")):
        yield required(
            "spec.expectations",
            "say what is wanted, for example verb Ensure with a target latency, or who talks to whom, or which licences it needs",
        )
    yield from _selector(spec.get("workloads"), "spec.workloads.selector")
    for i, expectation in enumerate(spec.get("expectations") or ()):
        if not expectation.get("targets"):
            yield required(f"spec.expectations[{i}].targets", "an expectation needs at least one target")
    yield from validate_intent(obj)
    yield from validate_traffic(obj)
    yield from slack.intent_causes(obj)


def _selector(workloads: Obj | None, path: str) -> Iterator[Cause]:
    selector = (workloads or {}).get("selector")
    if selector is not None:
        try:
            label_selector(selector)({})
        except (ValueError, KeyError) as wrong:
            yield invalid(path, selector, str(wrong))


def policy_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    yield from _selector(spec.get("workloads"), "spec.workloads.selector")
    yield from _selector({"selector": spec.get("clusterSelector")}, "spec.clusterSelector")
    weights = (spec.get("division") or {}).get("weights") or {}
    if weights and not any(weights.values()):
        yield invalid("spec.division.weights", weights, "must give at least one site a weight above 0, or be left out")
    for key, weight in weights.items():
        if weight < 0:
            yield invalid(f"spec.division.weights.{key}", weight, "must not be negative; 0 keeps replicas away from this site")
    for i, override in enumerate(spec.get("overrides") or ()):
        touched = {"kind", "apiVersion"} & set(override.get("patch") or ())
        if touched:
            yield forbidden(f"spec.overrides[{i}].patch.{sorted(touched)[0]}", "an override may not change what an object is")


def cluster_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    for i, link in enumerate(spec.get("links") or ()):
        if link.get("cluster") == (obj.get("metadata") or {}).get("name"):
            yield invalid(
                f"spec.links[{i}].cluster", link["cluster"], "must name another site; there is no link from a site to itself"
            )
        carries = link.get("bytesPerSecond")
        if carries is not None and quantity.parse(carries) <= 0:
            yield invalid(
                f"spec.links[{i}].bytesPerSecond", carries, "must be more than 0; leave the link out where there is none"
            )
    for key, value in (spec.get("capacity") or {}).items():
        if quantity.parse(value) > MOST_CAPACITY:
            yield invalid(
                f"spec.capacity.{key}", value, f"must be at most {MOST_CAPACITY}: no site has that much; check the suffix"
            )
        if quantity.parse(value) < 0:
            yield invalid(
                f"spec.capacity.{key}", value, "must not be negative; leave it out for no limit beyond the machine's own"
            )
        elif key == GPU_MILLI:
            yield invalid(f"spec.capacity.{key}", value, f"state whole GPUs as {GPU}; each has {WHOLE} thousandths")
        elif extended(key) and (quantity.parse(value).denominator != 1 or quantity.parse(value) > MOST_DEVICES):
            yield invalid(f"spec.capacity.{key}", value, f"must be a whole number of devices, at most {MOST_DEVICES}")
    power = spec.get("power") or {}
    if power.get("maxWatts") is not None and power.get("idleWatts", 0) > power["maxWatts"]:
        yield invalid("spec.power.idleWatts", power["idleWatts"], f"must not exceed maxWatts ({power['maxWatts']}); swap them?")
    if "embodiedGramsPerHour" in power and "embodiedKilograms" in power:
        yield forbidden("spec.power.embodiedGramsPerHour", "embodiedKilograms is there too: state one of both")
    if "lifetimeYears" in power and "embodiedKilograms" not in power:
        yield required("spec.power.embodiedKilograms", "lifetimeYears spreads it; leave lifetimeYears out where it is not known")
    reserved = ((spec.get("price") or {}).get("reserved") or {}).get("cpu")
    if reserved is not None and quantity.parse(reserved) < 0:
        yield invalid("spec.price.reserved.cpu", reserved, "must not be negative; leave it out where nothing is reserved")
    for i, dataset in enumerate(spec.get("datasets") or ()):
        if dataset.get("size") is not None and quantity.parse(dataset["size"]) < 0:
            yield invalid(f"spec.datasets[{i}].size", dataset["size"], "must not be negative; leave it out where it is not known")
    for i, licence in enumerate((spec.get("price") or {}).get("licences") or ()):
        if licence.get("perReplicaMonth") is None and licence.get("perSiteMonth") is None:
            yield required(
                f"spec.price.licences[{i}].perSiteMonth", "say what it costs here, or perReplicaMonth; 0 where it is paid already"
            )
    for i, path in enumerate(spec.get("hostPaths") or ()):
        if not path.startswith("/") or ".." in path.split("/"):
            yield invalid(f"spec.hostPaths[{i}]", path, "must be an absolute path without '..', for example /srv/data")
    for i, rule in enumerate(spec.get("imagePolicy") or ()):
        if rule.get("action") == "Signed" and not rule.get("keys"):
            yield required(f"spec.imagePolicy[{i}].keys", "give the public keys (cosign.pub) of which one must have signed")
        elif rule.get("action") != "Signed" and rule.get("keys"):
            yield forbidden(f"spec.imagePolicy[{i}].keys", "only action Signed looks at keys: leave them out, or say Signed")
    seen: set[tuple[Any, Any]] = set()
    for i, taint in enumerate(spec.get("taints") or ()):
        yield from label_causes({taint.get("key") or "": taint.get("value") or ""}, f"spec.taints[{i}]")
        pair = (taint.get("key"), taint.get("effect"))
        if pair in seen:
            yield duplicate(f"spec.taints[{i}]", taint)
        seen.add(pair)


#: Of one Usage. A site sends the next ones when these are booked.
MAX_PERIODS = 12


def usage_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    """Only what would make the object useless: what a period holds is checked where it is booked, each by itself, so that one
    that makes no sense does not hold up the others."""
    periods = (obj.get("spec") or {}).get("periods") or []
    if len(periods) > MAX_PERIODS:
        yield invalid(
            "spec.periods", len(periods), f"there may be {MAX_PERIODS} at most; send the later ones when these are booked"
        )
    for i, (before, after) in enumerate(pairwise(periods), start=1):
        if after["sequence"] <= before["sequence"]:
            yield invalid(
                f"spec.periods[{i}].sequence", after["sequence"], f"must be above the one before it, {before['sequence']}"
            )


_RATES = ("cpuHour", "memoryGiBHour", "egressGiB", "energyKWh")


def tariff_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if not spec.get("provider"):
        yield required("spec.provider", "name the owner of the sites, as spec.owner of their Clusters does")
    if not any(key in spec for key in _RATES):
        yield required(
            f"spec.{_RATES[0]}", f"a tariff states one rate at least: {', '.join(_RATES)}; 0 says that it costs nothing"
        )
    yield from _selector({"selector": spec.get("clusterSelector")}, "spec.clusterSelector")
    start, end = spec.get("validFrom"), spec.get("validUntil")
    if start and end and parse_time(end) <= parse_time(start):
        yield invalid("spec.validUntil", end, f"must be after validFrom ({start})")


def backup_schedule_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if spec.get("schedule"):
        try:
            next(due_times(spec, 0.0))
        except (ValueError, StopIteration) as error:
            yield invalid("spec.schedule", spec["schedule"], f"{error}; write cron, for example 0 3 * * *, in UTC")
    for i, restore in enumerate(spec.get("restores") or ()):
        if restore.get("backup") and restore.get("time"):
            yield forbidden(f"spec.restores[{i}].time", "a backup is named already: leave one of them out")


def backup_store_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    parts = str(spec.get("prefix") or "").strip("/").split("/")
    if any(part in (".", "..") for part in parts) or ("" in parts and len(parts) > 1):
        yield invalid("spec.prefix", spec["prefix"], "must be names with one / between them, for example nemo/eu")
    endpoint = str(spec.get("endpoint") or "")
    try:
        host = urlsplit(endpoint).hostname or ""
    except ValueError:
        host = ""
        yield invalid("spec.endpoint", endpoint, "is no address: write https://HOST or https://HOST:PORT")
    if why := never_a_store(host):
        yield invalid("spec.endpoint", endpoint, f"{why}: write the address of the store")
    if "/" in str(spec.get("bucket") or ""):
        yield invalid("spec.bucket", spec["bucket"], "must be a bucket's name; what follows belongs in prefix")


def budget_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if spec.get("grams") is None and not spec.get("cost"):
        yield required("spec.grams", "a budget limits something: grams of CO2eq, cost, or both, in a month")


#: Of ``spec.desired`` as JSON: a microcontroller holds it in memory.
MOST_DESIRED = 8192


def device_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec, named = obj.get("spec") or {}, obj["metadata"].get("name") or ""
    if not DEVICE_NAME.match(named):
        text = "must be a DNS label (a-z, 0-9 and '-', at most 63 characters): it is a part of the device's topics"
        yield invalid("metadata.name", named, text)
    yield from _desired(spec.get("desired"), "spec.desired")
    yield from _app(spec.get("app"), "spec.app")
    if spec.get("quarantineReason") and not spec.get("quarantined"):
        yield forbidden("spec.quarantineReason", "it is not quarantined: set quarantined to true, or leave the reason out")


def _app(app: Any, path: str) -> Iterator[Cause]:
    if not app:
        return
    if bool(app.get("configMap")) == bool(app.get("image")):
        yield required(f"{path}.configMap", "say where the code is: in a configMap, or in an image, and not in both")
    elif app.get("image") and not PINNED.search(app["image"]):
        yield invalid(f"{path}.image", app["image"], PINNED_TEXT)
    if app.get("imagePullSecrets") and not app.get("image"):
        yield forbidden(f"{path}.imagePullSecrets", "they are for an image: leave them out")


def _desired(desired: Any, path: str) -> Iterator[Cause]:
    size = len(json.dumps(desired or {}, separators=(",", ":")))
    if size > MOST_DESIRED:
        yield Cause("FieldValueTooLong", path, f"Too long: may not be more than {MOST_DESIRED} bytes as JSON, and it has {size}")


def device_set_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj["spec"]
    yield from _selector(spec, "spec.selector")
    try:
        bound(spec.get("maxUnavailable", "10%"), 1)
    except ValueError as wrong:
        yield invalid("spec.maxUnavailable", spec["maxUnavailable"], str(wrong))
    if not spec["template"]:
        yield required("spec.template.desired", "say what the devices shall have: desired, app or firmware")
    yield from _desired(spec["template"].get("desired"), "spec.template.desired")
    yield from _app(spec["template"].get("app"), "spec.template.app")


def device_claim_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    yield from label_causes(obj["spec"].get("labels") or {}, "spec.labels")
    used = int(((old or {}).get("status") or {}).get("used") or 0)
    if obj["spec"]["count"] < used:
        yield invalid("spec.count", obj["spec"]["count"], f"{used} devices were made by it already: delete the claim to end it")
