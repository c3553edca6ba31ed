"""What a cluster shows when it is looked at: its API, and the disks, mounts and control groups of its nodes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby

Lines = tuple[tuple[str, int], ...]
"""What pods appended to a file of their volume, in order: which pod, and how many lines."""


def lines_of(writers: Iterable[str]) -> Lines:
    return tuple((writer, sum(1 for _ in each)) for writer, each in groupby(writers))


def begins_with(lines: Lines, begin: Lines) -> bool:
    if not begin:
        return True
    *whole, (writer, number) = begin
    rest = lines[len(whole) :]
    return lines[: len(whole)] == tuple(whole) and bool(rest) and rest[0][0] == writer and rest[0][1] >= number


def flushed(lines: Lines) -> Lines:
    """All but the last one, after which the pod may not have called fsync yet."""
    if not lines:
        return ()
    *others, (writer, number) = lines
    return (*others, (writer, number - 1)) if number > 1 else tuple(others)


@dataclass(frozen=True)
class SeenClaim:
    phase: str
    volume: str
    capacity: int
    attributes: str = ""
    """The VolumeAttributesClass that the status names as the volume's."""
    step: str = ""
    """How far the change to another one is: status.modifyVolumeStatus, and `+` for each condition of it."""


@dataclass(frozen=True)
class SeenPod:
    uid: str
    ready: bool
    node: str
    limits: str = ""
    """That its control group holds it to."""


@dataclass(frozen=True)
class SeenVolume:
    claim: str
    phase: str
    retain: bool
    capacity: int
    """That Kubernetes raises as soon as a claim asks for more."""
    granted: int
    """Or what its node says that it has, where that is more: so many bytes it counts with."""
    node: str
    attributes: str = ""
    """Its VolumeAttributesClass."""
    limits: str = ""
    """Of its annotation."""


@dataclass(frozen=True)
class SeenSnapshot:
    """A VolumeSnapshot."""

    ready: bool
    size: int
    """Of what is restored from it, at least. 0: it does not say."""


@dataclass(frozen=True)
class SeenContent:
    """A VolumeSnapshotContent."""

    snapshot: str
    volume: str
    """Name of the volume that is its snapshot."""
    ready: bool
    retain: bool


@dataclass(frozen=True)
class SeenData:
    """A volume on a node, a snapshot or not."""

    node: str
    size: int
    policy: str
    """Of its own record."""
    file: str = ""
    lines: Lines = ()
    whole: bool = True
    """Its record says that it is ready."""


@dataclass(frozen=True)
class Seen:
    claims: Mapping[str, SeenClaim]
    pods: Mapping[str, SeenPod]
    volumes: Mapping[str, SeenVolume]
    data: Mapping[str, SeenData]
    mounts: frozenset[tuple[str, str]]
    """UID of a pod and name of the volume that its folder shows."""
    staged: Mapping[str, str]
    """Volumes that are mounted in the staging folder, and the number of the device of each."""
    staging_folders: frozenset[str]
    loop_devices: int
    room: Mapping[str, int]
    """That each node publishes."""
    capacity: Mapping[str, int]
    loop_nodes: frozenset[str] = frozenset()
    snapshots: Mapping[str, SeenSnapshot] = field(default_factory=dict)
    contents: Mapping[str, SeenContent] = field(default_factory=dict)
