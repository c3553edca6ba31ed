"""What lvcreate finds room for: volumes of several legs, be they stripes or the sides of a mirror, and groups with an
allocation policy of their own. Pure.

The free extents of a group alone say little of legs, which lie on different devices: with 200 and 40 free, two legs get
40 each. LVM looks at one free area of every device at a time, takes those of as many devices as there are legs, the
largest first, gives each leg what the smallest of them has, and goes on with the devices that it began with. It never
goes back: with 60 free on each of three devices two legs of 61 are refused, although two of 90 could be laid out by
hand. So its steps are gone through here as it goes through them.

Source: _find_some_parallel_space, _find_max_parallel_space_for_one_policy and _allocate in lib/metadata/lv_manip.c of
lvm2 2.03.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

NORMAL, CLING, CONTIGUOUS = "normal", "cling", "contiguous"

_Chosen = list[tuple[int, int]]
"""For each leg: the size of a free area, and the number of its device."""


@dataclass(frozen=True)
class FreeExtents:
    """What is free in a group, on the devices that take new volumes."""

    areas: tuple[tuple[int, ...], ...]
    """The free areas of each device, in extents."""
    policy: str = NORMAL
    """LVM's vg_allocation_policy. `anywhere`, by which legs may share a device, is taken for `normal`."""

    def is_sum(self, legs: int) -> bool:
        """Whether such a volume can have all that is free, wherever that is."""
        return legs == 1 and self.policy not in (CLING, CONTIGUOUS)

    def most(self, legs: int) -> int:
        """Extents of the largest new volume of so many legs, all legs together."""
        return legs * _longest(self, legs)

    def fits(self, legs: int, extents: int) -> bool:
        """Whether a new volume gets so many legs of so many extents each."""
        return _Allocation(self.areas, legs).finds(extents, self.policy)


@lru_cache(maxsize=256)
def _longest(free: FreeExtents, legs: int) -> int:
    low, high = 0, sum(map(sum, free.areas)) // legs
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if free.fits(legs, middle) else (low, middle - 1)
    return low


class _Allocation:
    """One lvcreate."""

    def __init__(self, areas: Sequence[Sequence[int]], legs: int) -> None:
        self._left = [sorted(device) for device in areas]
        self._legs = legs
        self._devices: list[set[int]] = [set() for _ in range(legs)]
        """Those that each leg lies on so far."""

    def finds(self, needed: int, policy: str) -> bool:
        needed -= self._take(self._anywhere(needed), needed)
        if policy == CONTIGUOUS:
            return needed == 0
        while needed and (taken := self._take(self._in_place(), needed)):
            needed -= taken
        clings = policy == CLING
        while needed and not clings:
            taken = self._take(self._beside(needed), needed) or self._take(self._anywhere(needed), needed)
            if taken == 0:
                return False
            needed -= taken
        return needed == 0

    def _take(self, chosen: _Chosen, needed: int) -> int:
        """Extents that each leg got."""
        if len(chosen) < self._legs:
            return 0
        taken = min(needed, *(area for area, _ in chosen))
        for leg, (area, device) in enumerate(chosen):
            self._left[device].remove(area)
            if area > taken:
                bisect.insort(self._left[device], area - taken)
            self._devices[leg].add(device)
        return taken

    def _anywhere(self, needed: int) -> _Chosen:
        """Of each device the smallest area that has all that is needed, or else its largest."""
        areas = []
        for device, left in enumerate(self._left):
            if left:
                first = bisect.bisect_left(left, needed)
                areas.append((left[first] if first < len(left) else left[-1], device))
        return self._largest(areas, needed)

    def _in_place(self) -> _Chosen:
        """The largest areas of devices on which each leg lies already."""
        chosen: dict[int, tuple[int, int]] = {}
        for device, left in enumerate(self._left):
            leg = next((n for n, own in enumerate(self._devices) if n not in chosen and device in own), None)
            if left and leg is not None:
                chosen[leg] = (left[-1], device)
        return [chosen[leg] for leg in sorted(chosen)]

    def _beside(self, needed: int) -> _Chosen:
        """Areas of devices on which any leg lies already: of each the last that LVM looks at, its smallest."""
        used = set().union(*self._devices)
        return self._largest([(self._left[device][0], device) for device in sorted(used) if self._left[device]], needed)

    def _largest(self, areas: _Chosen, needed: int) -> _Chosen:
        """Of equals, the first."""
        return sorted(areas, key=lambda area: -min(area[0], needed))[: self._legs]
