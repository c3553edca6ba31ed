"""Kubernetes quantities to bytes and back. Our own thirty lines, because the only library for it drags in the whole
synchronous client (30 MB and half a second in every program)."""

import re
from decimal import ROUND_CEILING, Context, Decimal

_SUFFIXES: dict[str, Decimal] = {
    **{letter: Decimal(1000) ** power for power, letter in enumerate(("n", "u", "m", "", "k", *"MGTPE"), start=-3)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)},
}
_WHOLE: dict[str, int] = {suffix: int(scale) for suffix, scale in _SUFFIXES.items() if scale >= 1}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([numkMGTPE]?|[KMGTPE]i)|[eE]([+-]?\d{1,2}))", re.ASCII)
_EXACT = Context(prec=200, rounding=ROUND_CEILING)
"""The default of 28 digits would round down what needs more."""


def parse(text: str) -> int:
    """A quantity in whole units, a fraction rounded up as Kubernetes does.

    Source: k8s.io/apimachinery/pkg/api/resource. Raises ValueError with the text for what is no quantity, and for an
    exponent of three digits, with which a few bytes would stand for a number that fills the memory.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 10Gi, 500M or 1073741824")
    number, suffix, exponent = match.groups()
    if suffix in _WHOLE and number.isdigit():
        return int(number) * _WHOLE[suffix]  # nearly all are, and Decimal takes its time
    scale = _SUFFIXES[suffix] if exponent is None else Decimal(10) ** int(exponent)
    return int(_EXACT.multiply(Decimal(number), scale).to_integral_value(ROUND_CEILING))


def render(count: int) -> str:
    """Bytes as the canonical BinarySI quantity: the largest suffix that leaves a whole number."""
    for power, letter in reversed(list(enumerate("KMGTPE", start=1))):
        if count and count % 1024**power == 0:
            return f"{count // 1024**power}{letter}i"
    return str(count)


def humane(count: int) -> str:
    """Bytes for a person: at most one decimal, rounded down, never promising more than there is."""
    for power, letter in reversed(list(enumerate("KMGTPE", start=1))):
        if abs(count) >= 1024**power:
            tenths = count * 10 // 1024**power
            return f"{tenths // 10}.{tenths % 10}{letter}i" if tenths % 10 else f"{tenths // 10}{letter}i"
    return f"{count} bytes"
