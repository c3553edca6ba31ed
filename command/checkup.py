"""A check-up: questions in the order in which things depend on each other, each with the command that corrects it."""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_NAMED = 5
"""Objects that a message names at most."""


class Verdict(enum.StrEnum):
    OK = "ok"
    WRONG = "wrong"
    UNKNOWN = "unknown"
    """It could not be found out from here, which is no fault by itself."""


@dataclass(frozen=True)
class Finding:
    """What a check found. A wrong one has a remedy: a command, or what to change."""

    check: str
    verdict: Verdict
    message: str
    remedy: str = ""


def ok(check: str, message: str) -> Finding:
    return Finding(check, Verdict.OK, message)


def wrong(check: str, message: str, remedy: str) -> Finding:
    return Finding(check, Verdict.WRONG, message, remedy)


def unknown(check: str, message: str, remedy: str = "") -> Finding:
    return Finding(check, Verdict.UNKNOWN, message, remedy)


def healthy(findings: Sequence[Finding]) -> bool:
    return all(finding.verdict is not Verdict.WRONG for finding in findings)


def counted(number: int, what: str, several: str = "") -> str:
    return f"{number} {what if number == 1 else several or f'{what}s'}"


def first(found: Iterable[str]) -> str:
    """The first of them, by name, for a message."""
    names = sorted(found)
    return f"{', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"


def summary(findings: Sequence[Finding]) -> str:
    """The last line of a check-up."""
    counts = {verdict: sum(finding.verdict is verdict for finding in findings) for verdict in Verdict}
    unclear = f", {counts[Verdict.UNKNOWN]} could not be found out" if counts[Verdict.UNKNOWN] else ""
    return f"{counted(len(findings), 'check')}: {counts[Verdict.OK]} ok, {counts[Verdict.WRONG]} wrong{unclear}"
