"""One line a figure: name, median, spread, and the ratio to the yardstick measured in turn with it. `write` keeps the
medians for tests/bench/figures.py."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

_printed: dict[str, float] = {}
"""Milliseconds."""


def line(name: str, seconds: Sequence[float], yardstick: Sequence[float] | None = None) -> None:
    """Print a series of durations in milliseconds; `yardstick` has as many, taken in turn with them."""
    _printed[name] = median(seconds) * 1000
    spread = f"{min(seconds) * 1000:.1f} to {max(seconds) * 1000:.1f}"
    ratio = ""
    if yardstick is not None:
        pairs = [ours / theirs for ours, theirs in zip(seconds, yardstick, strict=True)]
        ratio = f"  ratio {median(pairs):.2f}"
    print(f"{name:<58} {median(seconds) * 1000:8.1f} ms  ({spread}, n={len(seconds)}){ratio}", flush=True)


def memory(name: str, sizes: Sequence[int]) -> None:
    """Print a series of sizes in bytes."""
    print(f"{name:<58} {median(sizes) / 2**20:8.1f} MiB (n={len(sizes)})", flush=True)


def write(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(_printed, indent=1))
