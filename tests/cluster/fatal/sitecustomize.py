"""Kills the program that loads it, with a real SIGKILL, at the step that DEATH names.

Python tells an audit hook of each change of the disk and of each program that it starts, before it does so. DEATH is
`before EVENT PATTERN` or `after EVENT PATTERN`, where the pattern is of a path or a program. "After" is before the next
step of the same thread.
"""

import fnmatch
import os
import signal
import sys
import threading
from typing import Any

_when, _event, _pattern = os.environ["DEATH"].split(" ")
_reached: int | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    global _reached
    if _reached == threading.get_ident():
        signal.raise_signal(signal.SIGKILL)
    if event == _event and any(fnmatch.fnmatch(str(argument), _pattern) for argument in arguments[:2]):
        if _when == "before":
            signal.raise_signal(signal.SIGKILL)
        _reached = threading.get_ident()


sys.addaudithook(_hook)
