"""The plan of a discovery pass: a pure function of the class, the entries of its folder and the PersistentVolumes.

An entry that can't be a volume is invalid. That says nothing about the other entries, so unlike in the local static
provisioner it does not make the node unready.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from contract.volume import AVAILABLE, BOUND, PENDING
from daemon.static import diskrecord
from daemon.static.configuration import BLOCK, FILESYSTEM, ClassConfiguration
from daemon.static.diskidentity import DiskIdentity
from daemon.static.diskrecord import DiskRecord, Match
from daemon.static.entries import Entry, EntryKind
from daemon.static.volume import StaticVolume, volume_name
from host.diskthreads import Hung

INVALID_ENTRY, DUPLICATE = "VolumeDiscoveryStray", "VolumeDuplicate"
NOT_A_DEVICE = "VolumeFailedDelete"
"""That of the local static provisioner: the path of a block volume is a folder."""
VANISHED, UNMOUNTED, UNRESPONSIVE = "VolumeVanished", "VolumeUnmounted", "VolumeUnresponsive"
"""On the PersistentVolume of the entry, or on the Node."""
DISK_CHANGED = "VolumeDiskChanged"
"""On the PersistentVolume: its entry leads to another disk."""


@dataclass(frozen=True)
class Create:
    """The entry has no PersistentVolume: create it."""

    name: str
    entry: Entry
    mode: str


@dataclass(frozen=True)
class RecordDisk:
    """The PersistentVolume does not say which disk it is: note that."""

    volume: StaticVolume
    record: DiskRecord


@dataclass(frozen=True)
class Withdraw:
    """The PersistentVolume was never used, and its entry leads to another disk: delete it, and offer that one instead.
    Only the object is deleted."""

    volume: StaticVolume
    message: str


@dataclass(frozen=True)
class Skip:
    """Nothing to do, and why."""

    entry: Entry
    reason: str


@dataclass(frozen=True)
class InvalidEntry:
    """The entry can't be a volume. `volume`: its PersistentVolume if it had one, which then gets the event."""

    name: str
    message: str
    volume: StaticVolume | None = None
    reason: str = INVALID_ENTRY


Step = Create | RecordDisk | Withdraw | Skip | InvalidEntry


def plan(
    class_config: ClassConfiguration,
    entries: Iterable[Entry],
    node: str,
    volumes: Collection[StaticVolume],
    is_cleaning: Callable[[str], bool],
    created: Mapping[str, str],
) -> list[Step]:
    """What to do with each entry. `volumes`: of this node, of all classes. `created`: names by path of
    PersistentVolumes that were created and are not in the cache yet."""
    by_name = {volume.name: volume for volume in volumes}
    by_path = {**created, **{volume.path: volume.name for volume in volumes}}
    return [_decide(class_config, entry, node, by_name, by_path, is_cleaning) for entry in entries]


def _decide(
    class_config: ClassConfiguration,
    entry: Entry,
    node: str,
    by_name: Mapping[str, StaticVolume],
    by_path: Mapping[str, str],
    is_cleaning: Callable[[str], bool],
) -> Step:
    name = volume_name(entry.name, node, class_config.name)
    known = by_name.get(name)
    other = by_path.get(host_path(class_config, entry))
    if known and known.path != host_path(class_config, entry):
        # The name is made of the entry's and the class's: the class had another folder, or it is a collision of hashes.
        return InvalidEntry(
            entry.name,
            f'path "{host_path(class_config, entry)}" can\'t be offered: its name {name} is that of "{known.path}", so '
            "rename the entry, or delete that PersistentVolume",
        )
    if entry.kind is EntryKind.UNRESPONSIVE:
        return InvalidEntry(entry.name, str(Hung(entry.path)), known, UNRESPONSIVE)
    if entry.kind is EntryKind.OTHER:
        if known:
            return _missing(entry.name, known)
        return InvalidEntry(entry.name, f'Skipping file "{entry.path}": not a directory nor block device')
    if known:
        if known.mode == BLOCK and entry.kind is EntryKind.FOLDER:
            return InvalidEntry(
                entry.name,
                f'path "{entry.path}" is a folder and its PersistentVolume {name} is a block volume: '
                "restore the device, or delete the PersistentVolume",
                known,
                NOT_A_DEVICE,
            )
        if entry.kind is EntryKind.FOLDER and not entry.mounted:
            return InvalidEntry(
                entry.name,
                f'path "{entry.path}" of PersistentVolume {name} is not a valid mount point: '
                "mount its filesystem again",
                known,
                UNMOUNTED,
            )
        return _of_known(entry, known)
    if other == name:
        return Skip(entry, f"{name} was created a moment ago")
    if other:
        return Skip(entry, f"its path is that of {other}")
    if is_cleaning(name):
        return Skip(entry, f"{name} is being cleaned")
    if entry.kind is EntryKind.BLOCK:
        return Create(name, entry, class_config.volume_mode)
    if class_config.volume_mode == BLOCK:
        return InvalidEntry(
            entry.name,
            f'path "{entry.path}" of filesystem mode cannot be used to create block volume: link a block device here, '
            f"or remove it from the folder of class {class_config.name}",
        )
    if not entry.mounted:
        return InvalidEntry(
            entry.name,
            f'path "{entry.path}" is not a valid mount point: mount a filesystem on it, or remove it from the folder',
        )
    return Create(name, entry, FILESYSTEM)


def _of_known(entry: Entry, known: StaticVolume) -> RecordDisk | Withdraw | Skip | InvalidEntry:
    if not known.disk:
        # What an unused one was made of does not matter, it is what will be used. A bound one has been mounted by this
        # path all the time: what is there now is what its pods get. A released one is cleaned as by older versions.
        if entry.record and known.phase in (AVAILABLE, BOUND):
            return RecordDisk(known, entry.record)
        return Skip(entry, f"it is {known.name}")
    match diskrecord.match(known.disk, entry.record):
        case Match.SAME:
            return Skip(entry, f"it is {known.name}")
        case _ if is_unclaimed(known) and known.deleting:
            return Skip(entry, f"{known.name} is being deleted")
        case _ if is_unclaimed(known) and entry.record:
            was = diskrecord.describe(known.disk)
            message = (
                f'path "{entry.path}" has another disk than {known.name} was made of, which is unused: [{was}], now'
            )
            return Withdraw(known, f"{message} [{entry.record}]: it is offered anew")
    message = f'path "{entry.path}" {diskrecord.difference(known.name, known.disk, entry.record)}'
    if known.phase == BOUND:
        message += ". Until then stop its pods: those that start now get what is there"
    return InvalidEntry(entry.name, message, known, DISK_CHANGED)


def find_recorded(
    class_config: ClassConfiguration,
    entry: Entry,
    name: str,
    volumes: Iterable[StaticVolume],
    seen: Mapping[str, DiskRecord],
) -> InvalidEntry | None:
    """The invalid entry for a disk that another PersistentVolume was made of, whose own entry is not looked at, is gone
    or leads to another disk by now. One that was never used has no data there. `seen`: what is there now, by path on
    the node. Who has his disk is left out: two disks that are there at once are two, even with equal serial numbers."""
    for other in volumes:
        if other.name == name or is_unclaimed(other) or not entry.record:
            continue
        at_place = other.path in seen and diskrecord.match(other.disk, seen[other.path]) is Match.SAME
        if not at_place and diskrecord.overlaps(other.disk, entry.record):
            return InvalidEntry(
                entry.name,
                f'path "{host_path(class_config, entry)}" is the disk of PersistentVolume {other.name}, or a part of '
                f'it, which was offered as "{other.path}": give it that name again, or delete that PersistentVolume',
                reason=DUPLICATE,
            )
    return None


@dataclass(frozen=True)
class DiscoveredDisk:
    """A disk, and the path and PersistentVolume name by which it is or would be offered."""

    path: str
    """On the node."""
    name: str
    identity: DiskIdentity
    volume: StaticVolume | None = None
    """None: it is not in the cache yet, or not created."""


def find_duplicate(
    disk: DiscoveredDisk, existing: Iterable[DiscoveredDisk], candidates: Iterable[DiscoveredDisk]
) -> InvalidEntry | None:
    """The invalid entry for a disk that is already offered by another path, or will be by one that sorts first. The
    choice is stable: the path that has its PersistentVolume, else the one that sorts first."""
    earlier = (each for each in candidates if each.path < disk.path)
    for other in (*existing, *earlier):
        if other.path != disk.path and other.identity.overlaps(disk.identity):
            return InvalidEntry(
                disk.path.rpartition("/")[2],
                f'path "{disk.path}" is the same disk as "{other.path}", or a part of it, which is offered as '
                f"PersistentVolume {other.name}: a disk is offered once, so remove one of the two from its folder",
                reason=DUPLICATE,
            )
    return None


@dataclass(frozen=True)
class DuplicateVolumes:
    """Two PersistentVolumes of one disk."""

    kept: StaticVolume
    other: StaticVolume

    @property
    def deletable(self) -> bool:
        """Whether the other one is to be deleted: no claim has or had it, so it has no data, and it must not be bound.
        Only the object is deleted, no disk is touched."""
        return is_unclaimed(self.other) and not self.other.deleting

    @property
    def message(self) -> str:
        problem = (
            f'path "{self.other.path}" of PersistentVolume {self.other.name} is the same disk as '
            f'"{self.kept.path}" of PersistentVolume {self.kept.name}, or a part of it'
        )
        if self.deletable:
            return f"{problem}: {self.other.name} is unused and gets deleted; remove its path from the folder"
        return (
            f"{problem}: find out which of the two has the data, delete the pods of the other, then its claim and its "
            "PersistentVolume under policy Retain"
        )


def is_unclaimed(volume: StaticVolume) -> bool:
    return volume.phase in (AVAILABLE, PENDING) and not volume.has_claim


def duplicate_volumes(existing: Iterable[DiscoveredDisk]) -> list[DuplicateVolumes]:
    """For each disk with several PersistentVolumes: the one that is kept, paired with each of the others."""
    pairs: list[DuplicateVolumes] = []
    keep: list[tuple[DiscoveredDisk, StaticVolume]] = []
    volumes = [(each, each.volume) for each in existing if each.volume]
    for disk, volume in sorted(volumes, key=lambda each: _priority(each[1])):
        kept = next((before for other, before in keep if other.identity.overlaps(disk.identity)), None)
        if kept and not (is_unclaimed(volume) and volume.deleting):
            pairs.append(DuplicateVolumes(kept, volume))
        if not kept or not is_unclaimed(volume):
            keep.append((disk, volume))
    return pairs


def _priority(volume: StaticVolume) -> tuple[int, bool, str, str]:
    """Sorts volumes in use before those that may have data, and these before unused ones."""
    rank = 0 if volume.phase == BOUND else 2 if is_unclaimed(volume) else 1
    return rank, volume.deleting, volume.path, volume.name


def missing_volumes(
    class_config: ClassConfiguration,
    matches: Callable[[str], bool],
    entries: Iterable[Entry],
    volumes: Iterable[StaticVolume],
) -> list[InvalidEntry]:
    """The PersistentVolumes of the class that have no entry in its folder."""
    present = {host_path(class_config, entry) for entry in entries}
    return [
        _missing(name, volume)
        for volume in volumes
        for folder, _, name in [volume.path.rpartition("/")]
        if folder == class_config.host_dir
        and volume.storage_class == class_config.name
        and not volume.deleting
        and matches(name)
        and volume.path not in present
    ]


def _missing(name: str, volume: StaticVolume) -> InvalidEntry:
    """A link to a disk that was unplugged is dangling: then the entry still exists."""
    remedy = "restore the disk or link, or delete the PersistentVolume if it is gone for good"
    return InvalidEntry(name, f'path "{volume.path}" is gone: {remedy}', volume, VANISHED)


def host_path(class_config: ClassConfiguration, entry: Entry) -> str:
    return f"{class_config.host_dir}/{entry.name}"
