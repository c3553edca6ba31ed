"""What to do with each entry of a discovery folder: a pure function of the class, the entries and the PersistentVolumes
there are.

An entry that can't be a volume is stray. That says nothing about the other entries, so unlike in the original it does
not make the node unready.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from contract.volume import AVAILABLE, BOUND, PENDING
from daemon.static.configuration import BLOCK, FILESYSTEM, ClassConfiguration
from daemon.static.diskidentity import Identity
from daemon.static.entries import Entry, Kind
from daemon.static.volume import StaticVolume, volume_name
from host.diskthreads import Hung

STRAY, DUPLICATE = "VolumeDiscoveryStray", "VolumeDuplicate"
NO_DEVICE = "VolumeFailedDelete"
"""The original's, like when it is told: of a block volume in whose place a folder stands."""
VANISHED, UNMOUNTED, UNRESPONSIVE = "VolumeVanished", "VolumeUnmounted", "VolumeUnresponsive"
"""On the PersistentVolume that an entry was, or on the Node."""


@dataclass(frozen=True)
class Create:
    """There is no PersistentVolume for the entry: make one."""

    name: str
    entry: Entry
    mode: str


@dataclass(frozen=True)
class Skip:
    """Nothing to do, and why."""

    entry: Entry
    reason: str


@dataclass(frozen=True)
class Stray:
    """The entry can't be a volume. `volume` is the PersistentVolume that it was, and the event is told there."""

    name: str
    message: str
    volume: StaticVolume | None = None
    reason: str = STRAY


def plan(
    settings: ClassConfiguration,
    found: Iterable[Entry],
    node: str,
    volumes: Collection[StaticVolume],
    cleaning: Callable[[str], bool],
    created: Mapping[str, str],
) -> list[Create | Skip | Stray]:
    """What to do with each entry. `volumes` are all of this node, of whatever class; `created`, name by path, are
    those that we created and have not heard of yet."""
    by_name = {known.name: known for known in volumes}
    by_path = {**created, **{known.path: known.name for known in volumes}}
    return [_decide(settings, entry, node, by_name, by_path, cleaning) for entry in found]


def _decide(
    settings: ClassConfiguration,
    entry: Entry,
    node: str,
    by_name: Mapping[str, StaticVolume],
    by_path: Mapping[str, str],
    cleaning: Callable[[str], bool],
) -> Create | Skip | Stray:
    name = volume_name(entry.name, node, settings.name)
    known = by_name.get(name)
    other = by_path.get(host_path(settings, entry))
    if entry.kind is Kind.HUNG:
        return Stray(entry.name, str(Hung(entry.path)), known, UNRESPONSIVE)
    if entry.kind is Kind.OTHER:
        if known:
            return _gone(entry.name, known)
        return Stray(entry.name, f'Skipping file "{entry.path}": not a directory nor block device')
    if known:
        if known.mode == BLOCK and entry.kind is Kind.FOLDER:
            return Stray(
                entry.name,
                f'path "{entry.path}" is a folder and its PersistentVolume {name} is a block volume: '
                "bring the device back, or delete the PersistentVolume",
                known,
                NO_DEVICE,
            )
        if entry.kind is Kind.FOLDER and not entry.mounted:
            return Stray(
                entry.name,
                f'path "{entry.path}" of PersistentVolume {name} is not a valid mount point: '
                "mount its filesystem again",
                known,
                UNMOUNTED,
            )
        return Skip(entry, f"it is {name}")
    if other == name:
        return Skip(entry, f"{name} was created a moment ago")
    if other:
        return Skip(entry, f"its path is that of {other}")
    if cleaning(name):
        return Skip(entry, f"{name} is being cleaned")
    if entry.kind is Kind.BLOCK:
        return Create(name, entry, settings.volume_mode)
    if settings.volume_mode == BLOCK:
        return Stray(
            entry.name,
            f'path "{entry.path}" of filesystem mode cannot be used to create block volume: link a block device here, '
            f"or take it out of the folder of class {settings.name}",
        )
    if not entry.mounted:
        return Stray(
            entry.name,
            f'path "{entry.path}" is not a valid mount point: mount a filesystem on it, or take it out of the folder',
        )
    return Create(name, entry, FILESYSTEM)


@dataclass(frozen=True)
class Shown:
    """A disk, under a path and a name that it is or would be offered by."""

    path: str
    """As the node sees it."""
    name: str
    identity: Identity
    volume: StaticVolume | None = None
    """None: it is to be created, or was a moment ago."""


def duplicate(wanted: Shown, offered: Iterable[Shown], candidates: Iterable[Shown]) -> Stray | None:
    """What to say of a disk that is offered already, or by another path that comes first. Which of two is offered does
    not depend on the moment: the one that has its PersistentVolume, else the one whose path comes first."""
    earlier = (each for each in candidates if each.path < wanted.path)
    for other in (*offered, *earlier):
        if other.path != wanted.path and other.identity.same(wanted.identity):
            return Stray(
                wanted.path.rpartition("/")[2],
                f'path "{wanted.path}" shows the same disk as "{other.path}", or a part of it, which is offered as '
                f"PersistentVolume {other.name}: a disk is offered once, so take one of the two out of its folder",
                reason=DUPLICATE,
            )
    return None


@dataclass(frozen=True)
class Rivals:
    """Two PersistentVolumes of one disk."""

    kept: StaticVolume
    other: StaticVolume

    @property
    def withdrawn(self) -> bool:
        """Whether the other is to be deleted: nobody has it or had it, so it has no data of its own, and it must not
        be given to a second user. No disk is touched for that."""
        return is_free(self.other) and not self.other.deleting

    @property
    def message(self) -> str:
        words = (
            f'path "{self.other.path}" of PersistentVolume {self.other.name} shows the same disk as '
            f'"{self.kept.path}" of PersistentVolume {self.kept.name}, or a part of it'
        )
        if self.withdrawn:
            return f"{words}: nobody uses {self.other.name}, it is withdrawn; take its path out of the folder"
        return (
            f"{words}: see which of the two has the data, end the pods of the other, and delete its claim and its "
            "PersistentVolume under policy Retain"
        )


def is_free(volume: StaticVolume) -> bool:
    return volume.phase in (AVAILABLE, PENDING) and not volume.claimed


def rivals(offered: Iterable[Shown]) -> list[Rivals]:
    """Of each disk that has several PersistentVolumes, the one that is kept with each of the others."""
    found: list[Rivals] = []
    first: list[tuple[Shown, StaticVolume]] = []
    known = [(each, each.volume) for each in offered if each.volume]
    for shown, volume in sorted(known, key=lambda each: _claim_on_disk(each[1])):
        kept = next((before for other, before in first if other.identity.same(shown.identity)), None)
        if kept and not (is_free(volume) and volume.deleting):
            found.append(Rivals(kept, volume))
        if not kept or not is_free(volume):
            first.append((shown, volume))
    return found


def _claim_on_disk(volume: StaticVolume) -> tuple[int, bool, str, str]:
    """The lower, the more it is worth: what somebody uses, what may have data of his, what is free."""
    rank = 0 if volume.phase == BOUND else 2 if is_free(volume) else 1
    return rank, volume.deleting, volume.path, volume.name


def vanished(
    settings: ClassConfiguration,
    wanted: Callable[[str], bool],
    found: Iterable[Entry],
    volumes: Iterable[StaticVolume],
) -> list[Stray]:
    """The volumes of the class that nothing in its folder is any more."""
    there = {host_path(settings, entry) for entry in found}
    return [
        _gone(name, known)
        for known in volumes
        for folder, _, name in [known.path.rpartition("/")]
        if folder == settings.host_dir
        and known.storage_class == settings.name
        and not known.deleting
        and wanted(name)
        and known.path not in there
    ]


def _gone(name: str, known: StaticVolume) -> Stray:
    """A link to a disk that was pulled out leads to nothing: then the entry is still there."""
    remedy = "bring the disk or link back, or delete the PersistentVolume if it is gone for good"
    return Stray(name, f'path "{known.path}" is gone: {remedy}', known, VANISHED)


def host_path(settings: ClassConfiguration, entry: Entry) -> str:
    return f"{settings.host_dir}/{entry.name}"
