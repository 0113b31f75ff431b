"""A kind that a CustomResourceDefinition made: it carries its schema with it, so nobody has to look it up.

What is expensive is made when somebody needs it. One definition changed is other kinds: these are compared by identity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import orjson

from metaos.resources.definitions import walk
from metaos.resources.scheme import Kind

if TYPE_CHECKING:
    from metaos.apiserver.custom.validators import Validator
    from metaos.apiserver.schema import Node
    from metaos.apiserver.table import Column


@dataclass(frozen=True, eq=False)
class CustomKind(Kind):
    """One served version of a definition. ``entry`` is its part of ``spec.versions``; ``storage`` the version in which objects
    are kept; ``since``: what the store has from a later revision was written through this schema."""

    entry: Mapping[str, Any] = field(default_factory=dict)
    singular_name: str = ""
    list_kind_name: str = ""
    storage: str = ""
    since: int = 0
    #: Whether the definition is being deleted, so that nothing new may be made.
    terminating: bool = False

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def same(self, other: CustomKind) -> bool:
        """Whether nothing has changed, so that what was made for it holds."""
        return all(getattr(self, each.name) == getattr(other, each.name) for each in fields(self))

    @property
    def singular(self) -> str:
        return self.singular_name

    @property
    def list_kind(self) -> str:
        return self.list_kind_name

    @property
    def schema(self) -> Mapping[str, Any]:
        """Its structural schema."""
        found: Mapping[str, Any] = (self.entry.get("schema") or {}).get("openAPIV3Schema") or {}
        return found

    @property
    def stored_version(self) -> str:
        """``apiVersion`` in the store."""
        return f"{self.group}/{self.storage}"

    @property
    def selectable(self) -> tuple[str, ...]:
        """Paths for field selectors, as selectors write them."""
        return tuple(each["jsonPath"].removeprefix(".") for each in self.entry.get("selectableFields") or ())

    @property
    def scale_paths(self) -> Mapping[str, str]:
        found: Mapping[str, str] = (self.entry.get("subresources") or {}).get("scale") or {}
        return found

    @property
    def warning(self) -> str:
        """What its users are told where the version is deprecated."""
        if not self.entry.get("deprecated"):
            return ""
        return str(self.entry.get("deprecationWarning") or f"{self.api_version} {self.kind} is deprecated")

    @cached_property
    def node(self) -> Node:
        """What patches and server-side apply go by."""
        from metaos.apiserver.custom.structural import node

        return node(self.schema)

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        from metaos.apiserver.custom.columns import columns

        return columns(self.entry)

    @cached_property
    def rules_key(self) -> str:
        """What names its schema where rules are evaluated; empty where it has none."""
        if not any(each.get("x-kubernetes-validations") for each in walk(self.schema)):
            return ""
        return hashlib.sha256(orjson.dumps(self.schema)).hexdigest()

    @cached_property
    def validator(self) -> Validator:
        from metaos.apiserver.custom.validators import Validator

        return Validator(self.schema)
