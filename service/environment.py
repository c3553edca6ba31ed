"""Settings from the environment, read once and checked whole before anything is done.

A wrong value ends the program at its start with the variable's name: one that guesses would do the wrong thing later.
"""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from service import logs

LOG_FORMATS = (logs.TEXT, logs.JSON)
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

T = TypeVar("T")


class SettingsError(ValueError):
    """A setting that can't be used: names the variable, what it holds and what it may hold."""


class Environment:
    """The environment of a process. What is absent or empty counts as not set."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def text(self, *names: str) -> str:
        """The first of these variables that is set, else nothing."""
        return next((text for name in names if (text := self._variables.get(name, "").strip())), "")

    def value(self, name: str, parse: Callable[[str], T], otherwise: T) -> T:
        """`parse` raises ValueError with a message for what is not allowed. Raises SettingsError."""
        text = self.text(name)
        if not text:
            return otherwise
        try:
            return parse(text)
        except ValueError as error:
            raise SettingsError(f"{name} is {text!r}: {error}") from None


def one_of(allowed: tuple[str, ...]) -> Callable[[str], str]:
    """Whatever its case."""

    def parse(text: str) -> str:
        for choice in allowed:
            if text.lower() == choice.lower():
                return choice
        raise ValueError(f"allowed is {', '.join(allowed)}")

    return parse


def truth(text: str) -> bool:
    return one_of(("true", "false"))(text) == "true"


def span(text: str) -> float | None:
    """Seconds to wait; None for `never`."""
    if text.lower() == "never":
        return None
    try:
        return parse_duration(text)
    except ValueError:
        raise ValueError("allowed is a duration such as 10s, 5m0s or 1h30m, or never") from None


def period(text: str) -> float:
    """Seconds between two of what is done again and again."""
    seconds = parse_duration(text)
    if not seconds:
        raise ValueError("allowed is a duration above zero, such as 10s")
    return seconds


def address(text: str) -> tuple[str, int]:
    """Host and port to listen on; an empty host stands for all of them."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError("allowed is HOST:PORT or :PORT, such as :8080 or [::1]:8080")
    return host.removeprefix("[").removesuffix("]"), int(port)


_DURATION_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_TERM = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds of a duration as Go and Kubernetes write it: `10s`, `1h30m`, `5m0s`, `1.5h`. Source: time.ParseDuration.
    Raises ValueError; a negative duration is one, for nothing here can wait for less than no time."""
    if text in ("0", "+0"):
        return 0.0
    rest, seconds = text.removeprefix("+"), 0.0
    if not rest:
        raise ValueError(_duration_remedy(text))
    while rest:
        term = _DURATION_TERM.match(rest)
        if term is None:
            raise ValueError(_duration_remedy(text))
        seconds += float(term[1]) * _DURATION_UNITS[term[2]]
        rest = rest[term.end() :]
    return seconds


def _duration_remedy(text: str) -> str:
    return f"{text!r} is not a duration such as 10s, 5m0s or 1h30m"
