"""Kinds: what the rest of the code may rely on."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from metaos.resources import scheme


@pytest.mark.parametrize("kind", [scheme.JOB, scheme.INTENT, scheme.POD])
def test_a_served_kind_is_itself_in_another_process(kind: scheme.Kind) -> None:
    assert pickle.loads(pickle.dumps(kind)) is kind
    other = dataclasses.replace(kind, kind="Other")
    assert pickle.loads(pickle.dumps(other)) == other
