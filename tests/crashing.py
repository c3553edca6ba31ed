"""A process that dies before its n-th change of the disk, without dying.

Python tells an audit hook of each system call that changes files, before it is made. From the n-th one on none is let
through: not even the tidying up of a `finally`, which a killed process does not do either.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"})


class Crashed(BaseException):
    """No Exception: nothing in the code under test may catch it."""


class Death:
    """When it comes, and whether it came. At most one at a time in a process: a hook can't be taken away again."""

    def __init__(self) -> None:
        self.folder = ""
        self.changes_left = 0
        self.came = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder and self._changes(event, arguments):
            if self.changes_left == 0:
                self.came = True
                raise Crashed
            self.changes_left -= 1

    def _changes(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            path, _mode, flags = arguments
            return bool(flags & (os.O_WRONLY | os.O_RDWR)) and str(path).startswith(self.folder)
        return event in _CHANGES


_death: Death | None = None


@contextlib.contextmanager
def crash_before_change(number: int, folder: Path) -> Iterator[Death]:
    """Lets `number` changes below `folder` through, then raises Crashed, which is kept here. When there are no more
    than `number`, the body runs to its end."""
    global _death
    if _death is None:
        _death = Death()
        sys.addaudithook(_death.hook)
    _death.folder, _death.changes_left, _death.came = str(folder), number, False
    try:
        with contextlib.suppress(Crashed):
            yield _death
    finally:
        _death.folder = ""
