"""Looks at disks of which a test knows which ones hang."""

from collections.abc import Callable, Hashable
from pathlib import Path

from host.diskthreads import DiskThreads, Seen

_SOON, _NEVER = 0.1, 60.0


class ShortDeadline(DiskThreads):
    """Gives up soon on the places that hang. On a machine that is busy one that is well may take as long, and is waited
    for."""

    def __init__(self, hangs: Callable[[Path], bool]) -> None:
        super().__init__()
        self._hangs = hangs

    async def at(
        self,
        place: Path | str,
        look: Callable[[], Seen],
        *,
        disk: Hashable = None,
        deadline: float | None = None,
        late: Callable[[Seen], None] = lambda seen: None,
    ) -> Seen:
        hangs = isinstance(place, Path) and self._hangs(place)
        return await super().at(place, look, disk=disk, deadline=_SOON if hangs else _NEVER, late=late)
