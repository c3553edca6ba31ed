"""Parts of a program that run for ever, each of which may fail without ending the others.

A disk that does not answer, a full table of open files or a fault of our own in one part must not keep pods from their
volumes: the part is begun anew, after a time that grows, and readiness says meanwhile what is wrong.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

_FIRST, _LIMIT = 1.0, 60.0
"""Seconds before the first and before each later new beginning."""
_WELL = 60.0
"""Seconds that a part has to run before its failures are forgotten."""


class Supervisor:
    """Keeps parts running. `fatal`: errors that are meant to end the program, which pass through."""

    def __init__(self, fatal: tuple[type[Exception], ...] = (), *, first: float = _FIRST) -> None:
        self._fatal = fatal
        self._first = first
        self._failed: dict[str, str] = {}

    @property
    def problem(self) -> str:
        """What failed and was not well long enough since, for readiness."""
        return "; ".join(f"{name} failed and was begun anew ({words})" for name, words in self._failed.items())

    async def keep(self, name: str, part: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Runs the part for ever. A part that returns has come to its end, and is not begun anew."""
        failures = 0
        while True:
            well = asyncio.get_running_loop().call_later(_WELL, self._failed.pop, name, None)
            try:
                await part()
                return
            except self._fatal:
                raise
            except Exception as error:
                failures = failures + 1 if name in self._failed else 1
                self._failed[name] = f"{type(error).__name__}: {error}"[:200]
                pause = min(self._first * 2 ** min(failures - 1, 16), _LIMIT)
                log.error("%s failed and begins anew in %.0f s", name, pause, exc_info=error)
            finally:
                well.cancel()
            await asyncio.sleep(pause)
