"""Limits of WebAssembly, as a pod's annotations say them: a number, or words that say which annotation and what it may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.agent.containers import ConfigError, wasm_limits

FUEL, SECONDS = "wasm.meta-os.eu/fuel", "wasm.meta-os.eu/seconds"


@given(st.integers(0, 10**18 - 1), st.integers(0, 10**18 - 1))
def test_what_is_said_is_what_holds(fuel: int, seconds: int) -> None:
    assert wasm_limits({"metadata": {"annotations": {FUEL: str(fuel), SECONDS: str(seconds)}}}) == (fuel, seconds)
    assert wasm_limits({"metadata": {"annotations": {SECONDS: str(seconds)}}}) == (0, seconds)
    assert wasm_limits({"metadata": {}}) == (0, 0)


@given(st.text(max_size=30).filter(lambda text: not (text.isascii() and text.isdigit() and len(text) <= 18)))
def test_anything_else_is_told_with_its_annotation(text: str) -> None:
    with pytest.raises(ConfigError, match=r"annotation wasm\.meta-os\.eu/seconds: .* must be a whole number below 10\^18"):
        wasm_limits({"metadata": {"annotations": {FUEL: "7", SECONDS: text}}})
