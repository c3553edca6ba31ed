"""What a PersistentVolume remembers of its disk, and whether what stands at its entry now is that disk.

An entry is a name: a link to /dev/sdb, a mount point. By the time its PersistentVolume is Released the name may lead to
another disk of the same kind, because devices were numbered anew at a boot, links were swapped, or another filesystem
was mounted. So the annotation names.DISK_ANNOTATION says which disk it was, and before anything is erased, or offered
anew, what is open is compared with that. The kernel's number of a device is no part of it: that is what changes.

What identifies a disk, the most trusted first:

    wwid, serial, dm, md, loop   the device itself: its world-wide name and serial number, the UUID of device-mapper
                                 (LVM) or md, of a loop device the inode and offset of its file
    instance                     within one boot, the number that the kernel gives to each disk that appears (since
                                 Linux 5.15; before, that of the device)
    filesystem                   the UUID of what is mounted
    source                       of what has neither (NFS, tmpfs, ZFS): its type and what is mounted
    size                         in bytes, where there is nothing else

A filesystem that was made anew on the same device is the same disk, and so is one that has grown. Beside these,
`partition` (its first sector) and `folder` (of a bind mount, its path and inode) say which part of the disk it is.

What can't be seen is neither the same nor another: `Match.UNKNOWN`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from contract import names

INSTANCE, SIZE = "instance", "size"
PARTITION, FOLDER = "partition", "folder"
WWID, SERIAL, DEVICE_MAPPER, MD, LOOP = "wwid", "serial", "dm", "md", "loop"
FILESYSTEM, SOURCE = "filesystem", "source"

_DEVICE = (WWID, SERIAL, DEVICE_MAPPER, MD, LOOP)
DEVICE_KEYS = frozenset(_DEVICE)
_CONTENT = (FILESYSTEM, SOURCE)
_PART = (PARTITION, FOLDER)
_KEYS = (*_DEVICE, *_CONTENT, *_PART, SIZE, INSTANCE)
_SHOWN = 200
_WORLD_WIDE = re.compile(r"^(naa|eui|uuid|t10|name|nvme)\.")


class Match(Enum):
    SAME = "is that disk"
    OTHER = "is another disk"
    UNKNOWN = "can't be told"


@dataclass(frozen=True)
class DiskRecord:
    values: Mapping[str, str]
    """By the keys above. What a disk does not have is left out."""

    def __str__(self) -> str:
        """For messages."""
        return ", ".join(f"{key} {self.values[key]}" for key in _KEYS if key in self.values)

    def render(self) -> str:
        """The value of the annotation."""
        return json.dumps({key: self.values[key] for key in _KEYS if key in self.values}, separators=(",", ":"))

    def is_now(self, seen: "DiskRecord") -> Match:
        """Whether `seen`, at another time, is the disk of this record."""
        mine, its = self.values, seen.values
        if any(mine.get(part) != its.get(part) for part in _PART):
            return Match.OTHER
        if device := self._equal(seen, _DEVICE):
            return Match.SAME if all(device) else Match.OTHER
        boot, _, instance = mine.get(INSTANCE, "").partition(" ")
        its_boot, _, its_instance = its.get(INSTANCE, "").partition(" ")
        same_boot = bool(boot) and boot == its_boot
        # The older major:minor is given to the next disk when one goes, a sequence number never.
        if same_boot and instance == its_instance and ":" not in instance:
            return Match.SAME
        if content := self._equal(seen, _CONTENT):
            return Match.SAME if all(content) else Match.OTHER
        # Not every kernel shows that of md, which is no other disk after an update.
        if any(key in mine or (key in its and key != MD) for key in (*_DEVICE, *_CONTENT)):
            return Match.UNKNOWN
        if same_boot and instance != its_instance:
            return Match.OTHER
        return Match.SAME if mine.get(SIZE) == its.get(SIZE) else Match.OTHER

    def overlaps(self, seen: "DiskRecord") -> bool:
        """Whether `seen` is this disk, or one is a part of the other, as far as that is certain."""
        mine, its = self.values, seen.values
        equal = self._equal(seen, _DEVICE) or self._equal(seen, (FILESYSTEM,))
        if not equal or not all(equal):
            return False
        # Files in two filesystems may have the same inode.
        if LOOP in mine and SERIAL not in mine and WWID not in mine and mine.get(INSTANCE) != its.get(INSTANCE):
            return False
        if len({each[PARTITION] for each in (mine, its) if PARTITION in each}) == 2:
            return False
        first, second = (f"{each.get(FOLDER, '').partition(' inode ')[0]}/" for each in (mine, its))
        return first == "/" or second == "/" or first.startswith(second) or second.startswith(first)

    def _equal(self, seen: "DiskRecord", keys: tuple[str, ...]) -> list[bool]:
        """Of what both have, whether it is equal."""
        mine, its = self.values, seen.values
        shared = [(mine[key], its[key]) for key in keys if key in mine and key in its]
        return [one == other for one, other in shared if _comparable(one, other)]


def _comparable(one: str, other: str) -> bool:
    """A disk may have world-wide names of several kinds, and which one is shown depends on kernel and firmware."""
    kinds = [(prefix[0], len(each)) if (prefix := _WORLD_WIDE.match(each)) else None for each in (one, other)]
    return kinds[0] == kinds[1]


def parse(text: str) -> DiskRecord:
    """Of an annotation. Raises ValueError."""
    values = json.loads(text)
    if not isinstance(values, dict) or not all(isinstance(each, str) for each in values.values()):
        raise ValueError("not a map of texts")
    return DiskRecord(values)


def match(recorded: str, seen: DiskRecord | None) -> Match:
    """`recorded`: the annotation. None: it can't be read now."""
    if not recorded:
        return Match.SAME  # nobody said which disk it was
    if seen is None:
        return Match.UNKNOWN
    try:
        return parse(recorded).is_now(seen)
    except ValueError:
        return Match.UNKNOWN


def describe(recorded: str) -> str:
    try:
        return str(parse(recorded))
    except ValueError:
        return f"{recorded[:_SHOWN]!r}, which can't be read"


def overlaps(recorded: str, seen: DiskRecord) -> bool:
    try:
        return bool(recorded) and parse(recorded).overlaps(seen)
    except ValueError:
        return False  # what it says is reported on its own PersistentVolume


def difference(volume: str, recorded: str, seen: DiskRecord | None) -> str:
    """For a match that is not SAME: what it was, what is there, and what to do. Follows the name of the path."""
    certain = match(recorded, seen) is Match.OTHER
    return (
        f"{'leads' if certain else 'may lead'} to another disk than PersistentVolume {volume} was made of: that was "
        f"[{describe(recorded)}], and there is [{seen or 'what can not be identified now'}]: put the disk back, or, to "
        "have this one used, and erased, in its place, remove the annotation: "
        f"kubectl annotate pv {volume} {names.DISK_ANNOTATION}-"
    )
