"""Kubernetes quantities: ``500m``, ``1.5Gi``, ``2e3``.

Source: ``k8s.io/apimachinery/pkg/api/resource``. Values are exact :class:`~fractions.Fraction` in base units
(cores, bytes, counts).
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

_SUFFIX: dict[str, Fraction] = {
    "": Fraction(1),
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
    "Ti": Fraction(2**40),
    "Pi": Fraction(2**50),
    "Ei": Fraction(2**60),
}
_FORM = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?\d{1,3}))?\Z")


#: Kubernetes' own bound: "no quantity may represent a number greater than 2^63-1 in magnitude; numbers larger will be capped".
MOST = Fraction(2**63 - 1)
#: The same few texts come again with every look at a pod or a site. Bound: so many of them are remembered.
REMEMBERED = 4096


def parse(text: str | int | float) -> Fraction:
    """The value in base units. Raises ``ValueError`` naming the text where it is no quantity."""
    found = _parse(str(text))
    if found is None:
        raise ValueError(
            f"quantity {text!r} must be a number with an optional suffix (m, k, M, G, Ki, Mi, Gi, …), for example 500m or 1.5Gi"
        )
    return found


@lru_cache(REMEMBERED)
def _parse(text: str) -> Fraction | None:
    match = _FORM.match(text)
    if match is None:
        return None
    number, suffix, exponent = match.groups()
    value = Fraction(number) * _SUFFIX[suffix or ""]
    value = value * Fraction(10) ** int(exponent) if exponent else value
    return max(-MOST, min(MOST, value))


def milli(text: str | int | float) -> int:
    """The value in thousandths, rounded up, as Kubernetes does for CPU."""
    value = parse(text) * 1000
    return -int(-value.numerator // value.denominator)


def whole(text: str | int | float) -> int:
    """The value in whole base units, rounded up (bytes, counts)."""
    value = parse(text)
    return -int(-value.numerator // value.denominator)


def format_milli(value: int) -> str:
    """CPU thousandths as people write them: ``2``, ``250m``."""
    return str(value // 1000) if value % 1000 == 0 else f"{value}m"


def format_bytes(value: int) -> str:
    """Bytes with the largest binary suffix that keeps the value exact."""
    for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        unit = int(_SUFFIX[suffix])
        if value and value % unit == 0:
            return f"{value // unit}{suffix}"
    return str(value)
