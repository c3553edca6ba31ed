"""What must be there, whatever was killed: the volumes of one node, as who was told that a thing is done sees them.

Pure. An operation that was begun may have had its effect or not; one that was acknowledged has. `complaints` holds what
was seen against that.
"""

import random
import re
import uuid
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, BinaryIO

from contract.filesystems import EXT4, FILESYSTEMS, RAW, is_clonable
from contract.parameters import DEFAULT_DEVICE_CLASS, LUKS2, RAID1
from contract.volume import DELETE, RETAIN
from daemon.storage.encryption import mapping_name
from daemon.storage.inventory import Inventory
from daemon.storage.record import VolumeState
from tests.node.volume_node import MIB

_STEP = 8 * MIB
_STEPS = 4
"""How often a volume grows, at the most."""
_MOST_VOLUMES = 5
_MOST_FILES = 6
_MOST_CHAINS = 3
_LARGEST_FILE = 64 * 1024
_MOST_PLACES = 32
"""Of files on a block volume: a copy goes on behind those of its source."""
_SECTOR = 512
_MARK = "elastic-local torture "
_TRACE = re.compile(rf"{_MARK}<(pvc-[0-9-]+)>".encode())

THIN, XFS, BTRFS, ENCRYPTED, ENCRYPTED_THIN = "thin", "xfs", "btrfs", "encrypted", "encrypted-thin"
MIRROR, STRIPES, BLOCK, ENCRYPTED_BLOCK = "mirror", "stripes", "block", "encrypted-block"
"""Device classes."""


@dataclass(frozen=True)
class Kind:
    """What the volumes of a device class are like."""

    filesystem: str = EXT4
    encryption: str = ""
    thin: bool = False
    raid: str = "none"
    stripes: int = 1

    @property
    def size(self) -> int:
        """Of a new one."""
        return 16 * MIB if self.block else max(16 * MIB, FILESYSTEMS[self.filesystem].minimum_size)

    @property
    def block(self) -> bool:
        """Whether pods get the device."""
        return self.filesystem == RAW

    def takes_copies_of(self, other: "Kind") -> bool:
        return (self.filesystem, self.encryption) == (other.filesystem, other.encryption)


_KINDS = {
    THIN: Kind(thin=True),
    XFS: Kind("xfs"),
    BTRFS: Kind("btrfs"),
    MIRROR: Kind(raid=RAID1),
    STRIPES: Kind(stripes=2),
    BLOCK: Kind(RAW),
    ENCRYPTED_BLOCK: Kind(RAW, encryption=LUKS2),
    ENCRYPTED: Kind(encryption=LUKS2),
    ENCRYPTED_THIN: Kind(encryption=LUKS2, thin=True),
}


def kind_of(device_class: str) -> Kind:
    return _KINDS.get(device_class, Kind())


SETTLED_POD = str(uuid.UUID(int=0))
"""Sees all that there is at the end."""


@dataclass(frozen=True)
class Operation:
    """One call of daemon.storage.volumes.Volumes, or what a pod writes."""

    kind: str
    """prepare, mount, write, unmount, expand, reclaim; retain, and orphaned: somebody deletes the PersistentVolume, and
    the volume is to stay."""
    pv: str
    size: int = 0
    """Of the volume: the wish."""
    pod: str = ""
    original: str = ""
    """What it begins as a copy of."""
    made: bool = False
    file: str = ""
    """Its content follows from its name."""
    device_class: str = DEFAULT_DEVICE_CLASS
    policy: str = DELETE

    def to_fields(self) -> dict[str, Any]:
        return dict(vars(self))


def content(file: str) -> bytes:
    """Of which each sector says whose it is."""
    chance = random.Random(file)
    sectors = chance.randrange(1, _LARGEST_FILE // _SECTOR)
    mark = f"{_MARK}<{file}>".encode()
    return b"".join(mark + chance.randbytes(_SECTOR - len(mark)) for _ in range(sectors))


def place_of(file: str) -> int:
    """Where it is written to a block volume: no two files of one have the same number."""
    return int(file.rpartition("-")[2]) * _LARGEST_FILE


def files_on(device: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """What lies where files are written on a block volume, by the name that its first sector has."""
    for number in range(_MOST_PLACES):
        device.seek(number * _LARGEST_FILE)
        data = device.read(_LARGEST_FILE)
        if found := _TRACE.match(data):
            name = found[1].decode()
            yield name, data[: len(content(name))]


def traces(data: bytes) -> set[str]:
    """The files of which a sector, or the beginning of one, is there."""
    return {found.decode() for found in _TRACE.findall(data)}


def _pod(chance: random.Random) -> str:
    return str(uuid.UUID(int=chance.getrandbits(128)))


def uid_of(pv: str) -> str:
    return f"uid-of-{pv}"


@dataclass(frozen=True)
class Expected:
    """One volume. Sizes in bytes."""

    pv: str
    wish: int
    """The most that was asked for."""
    original: str = ""
    size: int = 0
    """The least that it has: what was acknowledged."""
    made: bool = False
    """It was acknowledged as ready."""
    removing: bool = False
    pods: frozenset[str] = frozenset()
    """Whose folder shows it, for sure."""
    perhaps: frozenset[str] = frozenset()
    """Whose folder may show it: a mount or unmount was begun."""
    files: frozenset[str] = frozenset()
    """Written, flushed and acknowledged."""
    begun: frozenset[str] = frozenset()
    """Of which anything may be there, or nothing."""
    pending: Operation | None = None
    failures: int = 0
    """In a row, of operations that nobody disturbed."""
    device_class: str = DEFAULT_DEVICE_CLASS
    policy: str = DELETE
    """The one that was asked for last."""
    retained: bool = False
    """It was acknowledged as one that stays without its PersistentVolume."""
    doubtful: bool = False
    """Its disk lied: what it said to have written, it did not write. Nothing is known of the content."""

    def operation(self, kind: str, *, size: int = 0, pod: str = "", file: str = "") -> Operation:
        """On this volume as it is now."""
        original = self.original if kind == "mount" else ""
        return Operation(kind, self.pv, size, pod, original, self.made, file, self.device_class, self.policy)


@dataclass(frozen=True)
class Seen:
    """What the node shows."""

    inventory: Inventory
    mounts: frozenset[tuple[str, str]]
    """Pod and PersistentVolume of each folder that shows a volume."""
    staged: frozenset[str]
    files: Mapping[str, Mapping[str, str]]
    """Of each mounted volume: digest by name. None for what can't be read."""
    paths: frozenset[str] = frozenset()
    """Names in the folder with the data."""
    loop_devices: int = 0
    staging_folders: frozenset[str] = frozenset()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    late: str = ""
    """What did not end in time."""
    mappings: frozenset[str] = frozenset()
    """Of encrypted volumes."""


@dataclass(frozen=True)
class Model:
    volumes: Mapping[str, Expected] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    """Acknowledged as removed."""
    thin: frozenset[str] = frozenset()
    """Files that were ever in a thin pool: what a removed volume overwrote there went to other blocks where it shared
    them, so the old ones hold it until they are given out, zeroed."""
    hidden: frozenset[str] = frozenset()
    """Files that were in encrypted volumes only."""
    number: int = 0
    """Of names given out."""
    clones: bool = True
    """Whether the backend copies volumes."""
    grows_mounted: bool = True
    """Whether a volume grows while it is mounted: the kernel does not let everybody."""
    classes: tuple[str, ...] = (DEFAULT_DEVICE_CLASS,)
    """Of new volumes."""
    retains: bool = False
    """Whether the policy of volumes is changed."""

    def begin(self, operation: Operation) -> "Model":
        """The operation may have any part of its effect from now on."""
        pv = operation.pv
        before = self.volumes.get(pv) or self._new(operation)
        after = replace(before, pending=operation)
        source = self.volumes.get(operation.original)
        if source and not before.made:
            # It is copied anew, as the source is now.
            after = replace(after, begun=after.begun | source.begun, wish=max(after.wish, source.wish))
        if operation.kind == "mount":
            after = replace(after, perhaps=after.perhaps | {operation.pod}, wish=max(after.wish, operation.size))
        elif operation.kind == "unmount":
            after = replace(
                after, pods=after.pods - {operation.pod}, perhaps=after.perhaps | ({operation.pod} & after.pods)
            )
        elif operation.kind == "expand":
            after = replace(after, wish=max(after.wish, operation.size))
        elif operation.kind == "write":
            after = replace(after, begun=after.begun | {operation.file})
        elif operation.kind == "reclaim":
            after = replace(after, removing=True)
        elif operation.kind == "retain":
            after = replace(after, policy=RETAIN)
        kind = kind_of(after.device_class)
        return replace(
            self._with(after),
            thin=self.thin | after.begun if kind.thin else self.thin,
            hidden=self.hidden | after.begun if kind.encryption else self.hidden,
        )

    def may_show(self) -> frozenset[str]:
        """The files that may be found on the disks as they are."""
        known = frozenset(name for volume in self.volumes.values() for name in volume.begun)
        return (known | self.thin) - self.hidden

    def _new(self, operation: Operation) -> Expected:
        source = self.volumes.get(operation.original)
        return Expected(
            operation.pv,
            operation.size,
            operation.original,
            files=source.files if source else frozenset(),
            begun=source.begun if source else frozenset(),
            device_class=operation.device_class,
            doubtful=source.doubtful if source else False,
        )

    def acknowledge(self, operation: Operation, size: int) -> "Model":
        """`size` is what the volume was said to have."""
        before = self.volumes[operation.pv]
        if operation.kind == "reclaim":
            left = {pv: volume for pv, volume in self.volumes.items() if pv != operation.pv}
            return replace(self, volumes=left, gone=self.gone | {operation.pv})
        after = replace(before, pending=None, failures=0, size=max(before.size, size))
        if operation.kind in ("prepare", "mount"):
            after = replace(after, made=True)
        if operation.kind == "mount":
            after = replace(after, pods=after.pods | {operation.pod})
        if operation.kind in ("mount", "unmount"):
            after = replace(after, perhaps=after.perhaps - {operation.pod})
        if operation.kind == "write":
            after = replace(after, files=after.files | {operation.file})
        if operation.kind == "retain":
            after = replace(after, retained=True)
        return self._with(after)

    def fail(self, operation: Operation, *, disturbed: bool) -> "Model":
        before = self.volumes[operation.pv]
        return self._with(replace(before, failures=0 if disturbed else before.failures + 1))

    def doubt(self, volumes: Iterable[str]) -> "Model":
        """The disk under these, as far as they are there, forgets what is written to it."""
        doubtful = {pv: replace(self.volumes[pv], doubtful=True) for pv in volumes if pv in self.volumes}
        return replace(self, volumes={**self.volumes, **doubtful})

    def powered_off(self) -> "Model":
        """Nothing is mounted after a start of the node."""
        off = {
            pv: replace(volume, pods=frozenset(), perhaps=frozenset(), pending=_after_power_off(volume))
            for pv, volume in self.volumes.items()
        }
        return replace(self, volumes=off)

    def numbered(self, number: int) -> "Model":
        """Names up to that number were given out."""
        return replace(self, number=number)

    def _with(self, volume: Expected) -> "Model":
        return replace(self, volumes={**self.volumes, volume.pv: volume})

    def complaints(self, seen: Seen, *, settled: bool = False) -> list[str]:
        """What is lost, leaked or wrong. `settled`: nothing is under way, so that nothing may be left over."""
        inventory = seen.inventory
        complaints = [*(f"{each.name} is damaged: {each.reason}" for each in inventory.damaged)]
        complaints += [f"{each.name} is foreign" for each in inventory.foreign]
        complaints += [f"{each.pv} is not known" for each in inventory.volumes if each.pv not in self.volumes]
        complaints += [f"{pod}/{pv} is mounted still" for pod, pv in seen.mounts if pv not in self.volumes]
        for volume in self.volumes.values():
            complaints += [f"{volume.pv}: {message}" for message in _complaints(volume, seen)]
        complaints += _sums(inventory)
        complaints += [seen.late] if seen.late else []
        if settled:
            complaints += self._leaks(seen)
        return complaints

    def _leaks(self, seen: Seen) -> Iterable[str]:
        if seen.inventory.snapshots:
            yield f"snapshots are left: {[each.pv for each in seen.inventory.snapshots]}"
        for name in sorted(seen.paths - {".reserve"}):  # of daemon.backends.recordfiles, kept for a full disk
            if name.rpartition(".")[0] not in self.volumes:
                yield f"the file {name} is left"
        for pv in sorted(seen.staged | seen.staging_folders):
            volume = self.volumes.get(pv)
            if volume is None or not volume.pods:
                yield f"the staging folder of {pv} is left"
        for name in sorted(seen.mappings - {mapping_name(pv) for pv in self.volumes}):
            yield f"the mapping {name} of a removed volume is left"
        if seen.loop_devices != len({pv for _, pv in seen.mounts}) and seen.loop_devices >= 0:
            yield f"{seen.loop_devices} loop devices for {len(seen.staged)} mounted volumes"


def _after_power_off(volume: Expected) -> Operation | None:
    """A pod that was to see it, or to write to it, is gone with its folder."""
    pending = volume.pending
    if pending is None or pending.kind in ("write", "unmount"):
        return None
    if pending.kind == "mount":
        return replace(pending, kind="prepare", pod="")
    return pending


def _complaints(volume: Expected, seen: Seen) -> Iterable[str]:
    there = seen.inventory.volume(volume.pv)
    shown = {pod for pod, pv in seen.mounts if pv == volume.pv}
    if volume.made and not volume.removing:
        if there is None:
            yield "it was acknowledged as ready and is LOST"
            return
        if there.record.state is not VolumeState.READY:
            yield f"it was acknowledged as ready and is {there.record.state.value}"
    if there is not None:
        if there.record.uid != uid_of(volume.pv):
            yield f"its uid is {there.record.uid}"
        if there.size < volume.size and not volume.removing:
            yield f"it has {there.size} bytes of {volume.size} acknowledged"
        if there.size > volume.wish:
            yield f"it has {there.size} bytes, and {volume.wish} were asked for"
    if volume.retained and there is not None and there.record.policy != RETAIN and not volume.removing:
        yield f"it was acknowledged as retained and its record says {there.record.policy}"
    if shown and (there is None or there.record.state is not VolumeState.READY):
        yield f"it is mounted and {there.record.state.value if there else 'not there'}: half made given out"
    if missing := volume.pods - shown:
        yield f"mounts were acknowledged and are gone: {sorted(missing)}"
    if extra := shown - volume.pods - volume.perhaps:
        yield f"it is mounted in folders that it was unmounted from: {sorted(extra)}"
    if volume.doubtful:
        return
    if why := seen.unreadable.get(volume.pv):
        yield f"it can't be read: {why}"
    elif volume.pv in seen.files:
        files = seen.files[volume.pv]
        for name in sorted(volume.files):
            if name not in files:
                yield f"file {name} was acknowledged and is LOST"
            elif files[name] != sha256(content(name)).hexdigest():
                yield f"file {name} was acknowledged and has OTHER CONTENT"
        if strange := files.keys() - volume.files - volume.begun:
            yield f"it shows files of others: {sorted(strange)}"


def _sums(inventory: Inventory) -> Iterable[str]:
    for pool in inventory.pools:
        if any(each.name.startswith(f"{pool.name}/") for each in inventory.pools):
            continue  # a thin pool has its share
        held = [each for each in (*inventory.volumes, *inventory.snapshots) if each.pool == pool.name]
        taken = sum(each.size + each.overhead for each in held)
        if (pool.ours, pool.free) != (taken, pool.size - taken):
            yield f"pool {pool.name} of {pool.size} says {pool.ours} ours, {pool.free} free; volumes take {taken}"


Chain = tuple[Operation, ...]


def plan(model: Model, chance: random.Random) -> tuple[list[Chain], Model]:
    """What is done next: chains that run side by side, each on a volume of its own. With the model, in which new names
    were given out."""
    chains: list[Chain] = []
    busy: set[str] = set()
    sources = {each.original for each in model.volumes.values() if not each.made}
    for volume in chance.sample(sorted(model.volumes.values(), key=lambda each: each.pv), len(model.volumes)):
        if len(chains) == _MOST_CHAINS or chance.random() < 0.2:
            continue
        chain = _next(volume, chance, model, is_source=volume.pv in sources)
        if volume.original and not volume.made:
            busy.add(volume.original)
        chains.append(chain)
        busy.add(volume.pv)
    number = model.number
    while len(chains) < _MOST_CHAINS and len(model.volumes) + number - model.number < _MOST_VOLUMES:
        number += 1
        free = [each for each in model.volumes.values() if _copied_now(each) and each.pv not in busy]
        source = chance.choice(free) if model.clones and free and chance.random() < 0.4 else None
        if source:
            busy.add(source.pv)
        chains.append(_birth(f"pvc-{number}", source, chance, model.classes))
    # A source that is being copied has its turn; what else it does would wait for it, or be refused.
    copied = {chain[0].original for chain in chains} - {""}
    return [chain for chain in chains if chain[0].pv not in copied], replace(model, number=number)


def _copied_now(volume: Expected) -> bool:
    clonable = is_clonable(kind_of(volume.device_class).filesystem)
    return clonable and volume.made and not volume.removing and not volume.doubtful


def _birth(pv: str, source: Expected | None, chance: random.Random, classes: tuple[str, ...]) -> Chain:
    if source:
        kind = kind_of(source.device_class)
        classes = tuple(each for each in classes if kind_of(each).takes_copies_of(kind))
    device_class = classes[0] if len(classes) == 1 else chance.choice(classes)
    size = source.wish if source else kind_of(device_class).size
    original = source.pv if source else ""
    first = Operation("prepare", pv, size, original=original, device_class=device_class)
    mount = replace(first, kind="mount", pod=_pod(chance))
    number = len(source.begun) if source else 0
    write = replace(first, kind="write", pod=mount.pod, file=f"{pv}-{number}")
    return chance.choice([(first,), (first, replace(mount, made=True), write), (mount, write), (mount,)])


def _next(volume: Expected, chance: random.Random, model: Model, *, is_source: bool) -> Chain:
    pending = volume.pending
    reclaim = volume.operation("reclaim")
    shown = [volume.operation("unmount", pod=pod) for pod in sorted(volume.pods | volume.perhaps)]
    if volume.removing:
        return (reclaim,)
    if volume.doubtful:
        return (*shown, reclaim)
    if pending is not None:
        again: Chain = (replace(pending, made=volume.made),)
        if pending.kind == "expand" and not model.grows_mounted:
            again = (*shown, *again)
        return again if volume.made or chance.random() < 0.7 else (*shown, reclaim)
    if shown and not volume.pods:
        return (*shown,)
    mount = volume.operation("mount", size=volume.wish, pod=_pod(chance))
    largest = kind_of(volume.device_class).size + _STEPS * _STEP
    expand = replace(mount, kind="expand", size=min(volume.wish + _STEP, largest), pod="")
    write = volume.operation("write", file=f"{volume.pv}-{len(volume.begun)}")
    choices: list[Chain] = [(expand,) if model.grows_mounted else (*shown, expand)]
    if not is_source:
        choices += [(*shown, reclaim)]
    if model.retains and volume.made:
        choices += [(*shown, volume.operation("orphaned"))] if volume.retained else [(volume.operation("retain"),)]
    if volume.pods:
        if len(volume.begun) < _MOST_FILES:
            choices += [(replace(write, pod=min(volume.pods)),)] * 2
        choices += [(shown[0],), (mount,), (*shown, mount)]
    else:
        choices += [(mount,), (mount, replace(write, pod=mount.pod))]
    return chance.choice(choices)


def settlement(model: Model, restarted: Container[str] = ()) -> list[Chain]:
    """Ends what is under way, and shows each volume to a pod, so that its data can be read. `restarted`: whose pods go
    before."""
    chains: list[Chain] = []
    for volume in model.volumes.values():
        everywhere = tuple(volume.operation("unmount", pod=pod) for pod in sorted(volume.perhaps | volume.pods))
        if volume.removing or volume.doubtful:
            chains.append((*(everywhere if volume.doubtful else ()), volume.operation("reclaim")))
            continue
        again = (replace(volume.pending, made=volume.made),) if volume.pending else ()
        grows = volume.pending is not None and volume.pending.kind == "expand" and not model.grows_mounted
        perhaps = tuple(volume.operation("unmount", pod=pod) for pod in sorted(volume.perhaps))
        if volume.pv in restarted and volume.pending and volume.pending.kind in ("write", "unmount"):
            again = ()  # that pod is gone
        show = volume.operation("mount", size=volume.wish, pod=SETTLED_POD)
        chains.append((*(everywhere if grows or volume.pv in restarted else perhaps), *again, show))
    return chains
