"""What to do with each entry of a discovery folder: a pure function of the class, the entries and the PersistentVolumes
there are.

An entry that can't be a volume is stray. That says nothing about the other entries, so unlike in the original it does
not make the node unready.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from daemon.static.configuration import BLOCK, FILESYSTEM, ClassConfiguration
from daemon.static.entries import Entry, Kind
from daemon.static.looks import Hung
from daemon.static.naming import volume_name
from daemon.static.volume import StaticVolume

STRAY = "VolumeDiscoveryStray"
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
