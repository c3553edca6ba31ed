"""Log lines that can be followed: each one names the volume, the claim and the pod that it is about, where known.

Who begins work on an object says so once, with `about`; every line written under it, by whatever module, carries the
names. Tasks started under it inherit them.

    with about(volume="pvc-1", claim="default/data"):
        log.info("mounted")      # ... mounted volume=pvc-1 claim=default/data

A line about something else than its surroundings says so itself: `log.info(..., extra={"volume": name})`.
"""

import contextlib
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

TEXT, JSON = "text", "json"
SUBJECTS = ("volume", "claim", "pod", "node")

_LONGEST = 4096
"""Characters of a message or a traceback. Users write names and annotations, and other programs errors, of any
length."""

_subject: ContextVar[Mapping[str, str]] = ContextVar("subject", default=MappingProxyType({}))


@contextlib.contextmanager
def about(**names: str) -> Iterator[None]:
    """Adds names to the lines written inside. Empty ones are left out."""
    token = _subject.set({**_subject.get(), **{key: name for key, name in names.items() if name}})
    try:
        yield
    finally:
        _subject.reset(token)


def configure(form: str, level: str) -> None:
    """Sends the log to stderr in the form TEXT or JSON, lines of `level` and above."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == JSON else _Text())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    # The HTTP/2 of grpclib: at DEBUG each byte of each header, forty lines for a call of the kubelet.
    logging.getLogger("hpack").setLevel(logging.INFO)


def _cut(text: str) -> str:
    rest = len(text) - _LONGEST
    return text if rest <= 0 else f"{text[:_LONGEST]}... ({rest} more characters)"


def _cut_trace(text: str) -> str:
    """The end of a traceback says what happened, its beginning where."""
    rest = len(text) - 2 * _LONGEST
    return text if rest <= 0 else f"{text[:_LONGEST]}\n... ({rest} more characters) ...\n{text[-_LONGEST:]}"


def _names(record: logging.LogRecord) -> dict[str, str]:
    own = {key: str(vars(record)[key]) for key in SUBJECTS if key in vars(record)}
    return {**_subject.get(), **own}


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's own name
        names = "".join(f" {key}={name}" for key, name in _names(record).items())
        return _CONTROL.sub(_harmless, _cut(super().formatMessage(record)) + names)

    def formatException(self, *arguments: Any) -> str:  # noqa: N802
        return _CONTROL.sub(_harmless, _cut_trace(super().formatException(*arguments)))


_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


def _harmless(control: re.Match[str]) -> str:
    """Annotations and names that users write get into messages. What follows a line end is indented, so that nobody
    can write what looks like a line of ours, and nothing gets through that a terminal would act on."""
    return "\n    " if control[0] == "\n" else repr(control[0])[1:-1]


class _Json(logging.Formatter):
    """One object a line, times in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _cut(record.getMessage()),
            **_names(record),
        }
        if record.exc_info:
            line["exception"] = _cut_trace(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)
