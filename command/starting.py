"""A word to whoever waits while the command is still being loaded: that takes a second of a processor, and a container
on a busy node gets a small part of one."""

import sys
import threading

_PATIENCE = 2.0
"""Seconds for which a person waits without wondering."""

NOTICE = "elastic-local: being loaded, which takes long only where the processors are busy ..."
_waiting: list[threading.Timer] = []


def begin() -> None:
    timer = threading.Timer(_PATIENCE, _tell)
    timer.daemon = True
    timer.start()
    _waiting.append(timer)


def done() -> None:
    """It has begun its work, and speaks for itself."""
    while _waiting:
        _waiting.pop().cancel()


def _tell() -> None:
    print(NOTICE, file=sys.stderr)
