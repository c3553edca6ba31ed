"""Devices that give no answer, and how LVM does without them.

Each LVM command reads a block of each device of the node, so one that hangs stops the commands on all groups. Once a
command got no answer, the devices themselves are asked; those that give none are left out of all commands until they
answer again. Their groups are not touched meanwhile: LVM would take them for missing, and note that on the others.
"""

import asyncio
import contextlib
import logging
import mmap
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from host import presence
from host.diskthreads import DEADLINE, Hung, threads
from lvm.records import Report

log = logging.getLogger(__name__)

_DEVICES = Path("/sys/class/block")
_LVM_VOLUME = "LVM-"
"""What the identifiers of LVM's own volumes begin with: it looks for no devices of its groups in them."""
_BLOCK = 4096


class UnresponsiveDevices:
    """`found` are names of the kernel."""

    def __init__(self) -> None:
        self.silent: frozenset[str] = frozenset()
        self._members: dict[str, frozenset[str]] = {}
        """Names of the devices of each group, when it was last seen whole."""

    async def look(self) -> None:
        """Asks all devices of the node."""
        await self._ask(await asyncio.to_thread(_candidates))

    async def look_again(self) -> None:
        """Asks those that gave no answer."""
        if self.silent:
            await self._ask(self.silent)

    async def _ask(self, names: Iterable[str]) -> None:
        # At once: if all disks of a controller hang, one deadline is waited for.
        names = sorted(names)
        answers = await asyncio.gather(*map(_answers, names))
        silent = frozenset(name for name, answered in zip(names, answers, strict=True) if not answered)
        if silent != self.silent:
            log.warning("devices without an answer, which LVM does without: %s", " ".join(sorted(silent)) or "none")
        self.silent = silent

    def note(self, report: Report) -> None:
        """Which devices a group has, as LVM reports."""
        for group in report.groups:
            if not group.missing_devices:
                self._members[group.name] = frozenset(
                    name for device in report.devices_of(group.name) if (name := _name(device.path))
                )
            elif self.silent:
                self._members[group.name] = self.silent  # it may be one of these that is missing

    def members(self, group: str) -> list[Path]:
        """The devices of a group, when it was last seen whole."""
        return [_node(name) for name in sorted(self._members.get(group, ()))]

    def of_group(self, group: str) -> Hung | None:
        """The device of a group that gives no answer. Of a group that was never seen whole, any."""
        silent = sorted(self._members.get(group, self.silent) & self.silent)
        return Hung(_node(silent[0]), lambda: silent[0] in self.silent) if silent else None

    def of_groups(self, more: Iterable[str]) -> dict[str, Hung]:
        """The same of all groups that were ever seen, and of `more`."""
        groups = sorted({*self._members, *more})
        return {group: hung for group in groups if (hung := self.of_group(group))}

    def paths(self) -> list[Path]:
        """Of those that gave no answer."""
        return [_node(name) for name in sorted(self.silent)]


def _candidates() -> list[str]:
    candidates = []
    for device in _DEVICES.iterdir():
        with contextlib.suppress(OSError):  # it went away a moment ago
            identifier = device / "dm" / "uuid"
            if presence.exists(identifier) and identifier.read_text().startswith(_LVM_VOLUME):
                continue
            if int((device / "size").read_text()):
                candidates.append(device.name)
    return candidates


async def _answers(name: str) -> bool:
    """What fails has answered."""
    try:
        await threads.at(_node(name), partial(_read, _node(name)), deadline=DEADLINE)
    except Hung:
        return False
    except OSError:
        pass
    return True


def _read(device: Path) -> None:
    """Past the page cache, which answers for a disk that does not."""
    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, _BLOCK) as block:
            os.preadv(descriptor, [block], 0)
    finally:
        os.close(descriptor)


def _node(name: str) -> Path:
    return Path("/dev", name.replace("!", "/"))


def _name(path: str) -> str:
    """By its number: a device has several names. Empty: it is not there."""
    with contextlib.suppress(OSError):
        number = Path(path).stat().st_rdev
        return (Path("/sys/dev/block") / f"{os.major(number)}:{os.minor(number)}").resolve().name
    return ""
