"""Label selectors as fields of objects. Source: ``apimachinery/pkg/apis/meta/v1/validation``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from metaos.apiserver.metadata import label_causes
from metaos.apiserver.schema import forbidden, invalid, required
from metaos.resources.errors import Cause


def selector_causes(selector: Mapping[str, Any] | None, path: str) -> Iterator[Cause]:
    if selector is None:
        return
    yield from label_causes(selector.get("matchLabels"), f"{path}.matchLabels")
    for i, rule in enumerate(selector.get("matchExpressions") or ()):
        where, operator = f"{path}.matchExpressions[{i}]", rule.get("operator") or ""
        if operator in ("In", "NotIn"):
            if not rule.get("values"):
                yield required(f"{where}.values", "must be specified when `operator` is 'In' or 'NotIn'")
        elif operator in ("Exists", "DoesNotExist"):
            if rule.get("values"):
                yield forbidden(f"{where}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
        else:
            yield invalid(f"{where}.operator", operator, "not a valid selector operator")
        yield from label_causes({rule.get("key") or "": ""}, f"{where}.key")
