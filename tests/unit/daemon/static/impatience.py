"""Looks at disks of which a test knows which ones hang."""

from collections.abc import Callable
from pathlib import Path

from daemon.static.looks import Looks, Seen

_SOON, _NEVER = 0.1, 60.0


class Impatient(Looks):
    """Gives up soon on the places that hang. On a machine that is busy one that is well may take as long, and is waited
    for."""

    def __init__(self, hangs: Callable[[Path], bool]) -> None:
        super().__init__()
        self._hangs = hangs

    async def at(self, place: Path, look: Callable[[], Seen]) -> Seen:
        # No other look comes between this and the wait that reads it.
        self._deadline = _SOON if self._hangs(place) else _NEVER
        return await super().at(place, look)
