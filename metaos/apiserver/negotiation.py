"""In which form a caller wants an answer, and how one is encoded. Pure.

Source: Kubernetes API concepts, "Resource representations"; RFC 9110, section 12.5.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

import orjson
import yaml

from metaos.resources.errors import ApiError

JSON = "application/json"
YAML = "application/yaml"
_META_GROUP = "meta.k8s.io"


class Form(Enum):
    """What an object is shown as."""

    OBJECT = ""
    TABLE = "Table"
    METADATA = "PartialObjectMetadata"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The media type and form of an answer. ``version``: of ``meta.k8s.io``, where the form is not the object itself."""

    media: str = JSON
    form: Form = Form.OBJECT
    version: str = "v1"

    @property
    def content_type(self) -> str:
        if self.form is Form.OBJECT:
            return self.media
        return f"{self.media};as={self.form.value};v={self.version};g={_META_GROUP}"


@dataclass(frozen=True, slots=True)
class Range:
    """One media range of an ``Accept`` header, parameters in lower case."""

    media: str
    parameters: dict[str, str]


def ranges(accept: str) -> list[Range]:
    """Best first; ranges of equal quality in the caller's order."""
    found: list[tuple[float, int, Range]] = []
    for position, part in enumerate(accept.split(",")):
        media, *pairs = part.strip().split(";")
        parameters = {k.strip().lower(): v.strip().strip('"') for k, _, v in (pair.partition("=") for pair in pairs)}
        try:
            quality = float(parameters.pop("q", "1"))
        except ValueError:
            quality = 0.0
        if media and quality > 0:
            found.append((-quality, position, Range(media.strip().lower(), parameters)))
    return [each for _, _, each in sorted(found, key=lambda f: f[:2])]


_MEDIA = {JSON: JSON, YAML: YAML, "application/*": JSON, "*/*": JSON}


@lru_cache(maxsize=256)
def accepted(accept: str) -> Accepted:
    """The first form that can be given. Raises ``ApiError`` 406."""
    if not accept:
        return Accepted()
    for each in ranges(accept):
        media = _MEDIA.get(each.media)
        if media is None:
            continue
        wanted = each.parameters.get("as", "")
        if not wanted:
            return Accepted(media)
        if each.parameters.get("g") == _META_GROUP and each.parameters.get("v") in ("v1", "v1beta1"):
            name = wanted.removesuffix("List")
            if name in (Form.TABLE.value, Form.METADATA.value):
                return Accepted(media, Form(name), each.parameters["v"])
    raise not_acceptable()


def not_acceptable() -> ApiError:
    return ApiError(406, "NotAcceptable", f"only the following media types are accepted: {JSON}, {YAML}")


def encoded(value: Any, media: str = JSON, *, pretty: bool = False) -> bytes:
    """An answer's body."""
    if media == YAML:
        text: str = yaml.dump(value, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)
        return text.encode()
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE if pretty else 0)
