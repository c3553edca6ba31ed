"""What must be there, whatever was killed: the volumes of one node, as who was told that a thing is done sees them.

Pure. An operation that was begun may have had its effect or not; one that was acknowledged has. `complaints` holds what
was seen against that.
"""

import random
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from daemon.storage.inventory import Inventory
from daemon.storage.record import VolumeState
from tests.node.volume_node import MIB

_SIZE = 16 * MIB
_STEP = 8 * MIB
_LARGEST = 48 * MIB
_MOST_VOLUMES = 5
_MOST_FILES = 6
_MOST_CHAINS = 3
_LARGEST_FILE = 64 * 1024

SETTLED_POD = str(uuid.UUID(int=0))
"""Sees all that there is at the end."""


@dataclass(frozen=True)
class Operation:
    """One call of daemon.storage.volumes.Volumes, or what a pod writes."""

    kind: str
    """prepare, mount, write, unmount, expand, reclaim."""
    pv: str
    size: int = 0
    """Of the volume: the wish."""
    pod: str = ""
    original: str = ""
    """What it begins as a copy of."""
    made: bool = False
    file: str = ""
    """Its content follows from its name."""

    def to_fields(self) -> dict[str, Any]:
        return dict(vars(self))


def content(file: str) -> bytes:
    chance = random.Random(file)
    return chance.randbytes(chance.randrange(1, _LARGEST_FILE))


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


@dataclass(frozen=True)
class Model:
    volumes: Mapping[str, Expected] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    """Acknowledged as removed."""
    number: int = 0
    """Of names given out."""
    clones: bool = True
    """Whether the backend copies volumes."""
    grows_mounted: bool = True
    """Whether a volume grows while it is mounted: the kernel does not let everybody."""

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
        return self._with(after)

    def _new(self, operation: Operation) -> Expected:
        source = self.volumes.get(operation.original)
        return Expected(
            operation.pv,
            operation.size,
            operation.original,
            files=source.files if source else frozenset(),
            begun=source.begun if source else frozenset(),
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
        return self._with(after)

    def fail(self, operation: Operation, *, disturbed: bool) -> "Model":
        before = self.volumes[operation.pv]
        return self._with(replace(before, failures=0 if disturbed else before.failures + 1))

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
            complaints += [f"{volume.pv}: {words}" for words in _complaints(volume, seen)]
        complaints += _sums(inventory)
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
    if shown and (there is None or there.record.state is not VolumeState.READY):
        yield f"it is mounted and {there.record.state.value if there else 'not there'}: half made given out"
    if missing := volume.pods - shown:
        yield f"mounts were acknowledged and are gone: {sorted(missing)}"
    if extra := shown - volume.pods - volume.perhaps:
        yield f"it is mounted in folders that it was unmounted from: {sorted(extra)}"
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
        taken = sum(each.size for each in (*inventory.volumes, *inventory.snapshots) if each.pool == pool.name)
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
        free = [each for each in model.volumes.values() if each.made and not each.removing and each.pv not in busy]
        source = chance.choice(free) if model.clones and free and chance.random() < 0.4 else None
        if source:
            busy.add(source.pv)
        chains.append(_birth(f"pvc-{number}", source, chance))
    # A source that is being copied has its turn; what else it does would wait for it, or be refused.
    copied = {chain[0].original for chain in chains} - {""}
    return [chain for chain in chains if chain[0].pv not in copied], replace(model, number=number)


def _birth(pv: str, source: Expected | None, chance: random.Random) -> Chain:
    size = source.wish if source else _SIZE
    original = source.pv if source else ""
    first = Operation("prepare", pv, size, original=original)
    mount = replace(first, kind="mount", pod=_pod(chance))
    write = Operation("write", pv, pod=mount.pod, file=f"{pv}-0")
    return chance.choice([(first,), (first, replace(mount, made=True), write), (mount, write), (mount,)])


def _next(volume: Expected, chance: random.Random, model: Model, *, is_source: bool) -> Chain:
    pv, pending = volume.pv, volume.pending
    reclaim = Operation("reclaim", pv)
    shown = [Operation("unmount", pv, pod=pod) for pod in sorted(volume.pods | volume.perhaps)]
    if volume.removing:
        return (reclaim,)
    if pending is not None:
        again: Chain = (replace(pending, made=volume.made),)
        if pending.kind == "expand" and not model.grows_mounted:
            again = (*shown, *again)
        return again if volume.made or chance.random() < 0.7 else (*shown, reclaim)
    if shown and not volume.pods:
        return (*shown,)
    mount = Operation("mount", pv, volume.wish, _pod(chance), original=volume.original, made=volume.made)
    expand = replace(mount, kind="expand", size=min(volume.wish + _STEP, _LARGEST), pod="")
    choices: list[Chain] = [(expand,) if model.grows_mounted else (*shown, expand)]
    if not is_source:
        choices += [(*shown, reclaim)]
    if volume.pods:
        pod = min(volume.pods)
        if len(volume.begun) < _MOST_FILES:
            choices += [(Operation("write", pv, pod=pod, file=f"{pv}-{len(volume.begun)}"),)] * 2
        choices += [(shown[0],), (mount,), (*shown, mount)]
    else:
        choices += [(mount,), (mount, Operation("write", pv, pod=mount.pod, file=f"{pv}-{len(volume.begun)}"))]
    return chance.choice(choices)


def settlement(model: Model) -> list[Chain]:
    """Ends what is under way, and shows each volume to a pod, so that its data can be read."""
    chains: list[Chain] = []
    for volume in model.volumes.values():
        if volume.removing:
            chains.append((Operation("reclaim", volume.pv),))
            continue
        again = (replace(volume.pending, made=volume.made),) if volume.pending else ()
        grows = volume.pending is not None and volume.pending.kind == "expand" and not model.grows_mounted
        unsure = volume.perhaps | volume.pods if grows else volume.perhaps
        perhaps = tuple(Operation("unmount", volume.pv, pod=pod) for pod in sorted(unsure))
        show = Operation("mount", volume.pv, volume.wish, SETTLED_POD, original=volume.original, made=volume.made)
        chains.append((*perhaps, *again, show))
    return chains
