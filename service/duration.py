"""Durations as Go and Kubernetes write them: `10s`, `1h30m`, `5m0s`, `1.5h`."""

import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TERM = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)


def parse(text: str) -> float:
    """Seconds. Source: time.ParseDuration. Raises ValueError; a negative duration is one, for nothing here can wait
    for less than no time."""
    if text in ("0", "+0"):
        return 0.0
    rest, seconds = text.removeprefix("+"), 0.0
    if not rest:
        raise ValueError(_remedy(text))
    while rest:
        term = _TERM.match(rest)
        if term is None:
            raise ValueError(_remedy(text))
        seconds += float(term[1]) * _UNITS[term[2]]
        rest = rest[term.end() :]
    return seconds


def _remedy(text: str) -> str:
    return f"{text!r} is not a duration such as 10s, 5m0s or 1h30m"
