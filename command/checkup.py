"""A check-up: questions in the order in which things depend on each other, each with the command that mends it."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass


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
    words: str
    remedy: str = ""


def ok(check: str, words: str) -> Finding:
    return Finding(check, Verdict.OK, words)


def wrong(check: str, words: str, remedy: str) -> Finding:
    return Finding(check, Verdict.WRONG, words, remedy)


def unknown(check: str, words: str, remedy: str = "") -> Finding:
    return Finding(check, Verdict.UNKNOWN, words, remedy)


def healthy(findings: Sequence[Finding]) -> bool:
    return all(finding.verdict is not Verdict.WRONG for finding in findings)
