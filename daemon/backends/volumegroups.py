"""The volume groups that the daemon attaches or creates: those on files, and those of device classes with `devices`.

    <data folder>/groups/<volume group>.img     the disk of a group on a file
    <data folder>/groups/<volume group>.seen    the node has, or had, this group; or, where it names disks, one is
                                                being made of these

On a file, for nodes that have no disk to spare: minikube, laptops. LVM sees a disk like any other, so volumes, thin
pools and tags are the real thing. A loop device does not outlive a restart of the node, and nothing on the node would
know that there should be one. So the file's place is the memory: the daemon attaches what it finds there when it
starts, before it looks for its group, and again while one is missing.

Of disks that nobody uses, so that a new node of an autoscaled group is ready without a hand: only for device classes
that select disks (`devices` in the file of device classes). A disk is taken only if it is whole, empty in every way
(host.disks) and meets all that the class asks for. A group is made once: what this node has had is never made anew,
because disks that are away come back, and two groups of one name can't be used. So a file remembers each group that was
made or seen here, and nothing is made where the file can't be written. Nothing is ever added to a group that is there.
It says of which disks one is being made, until that is done: a daemon that was killed meanwhile, or its vgcreate, has
made none if all these disks are there and in no group, and then it begins anew.
"""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import lvm
from daemon.backends.lvmgroups import unlike_sectors
from daemon.storage.deviceclasses import DeviceClass, DeviceSelector
from daemon.storage.disks import CALL_SECONDS
from host import disks, loopdevice, ownfolder, presence
from host.command import CommandError
from host.disks import Disk, NotADisk
from host.diskthreads import Hung, threads
from lvm import Lvm, LvmError, label

log = logging.getLogger(__name__)

T = TypeVar("T")

_SUFFIX = ".img"
_UNFINISHED = ".new"
_LABEL = "LVM2_member"
"""What wipefs calls a disk that LVM has."""
_METADATA_MOST = 64 << 20
_METADATA_SHARE = 512
"""One part in so many: 8 KiB for each extent of 4 MiB."""
_METADATA_OF_SMALLEST = 8
"""Each disk has the whole text: of a small one beside large ones, no more than that part goes."""


def _folder(data_dir: Path) -> Path:
    return data_dir / "groups"


def disk_file(data_dir: Path, group: str) -> Path:
    """Where the file of a group is, or would be."""
    return _folder(data_dir) / f"{group}{_SUFFIX}"


def make_disk_file(file: Path, size: int) -> None:
    """A new file of `size` bytes that has them all: a sparse one would fail its volumes when the disk under it is
    full. It is there whole or not at all. Raises OSError."""
    ownfolder.establish(file.parent)
    unfinished = file.with_suffix(_UNFINISHED)
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        os.fsync(descriptor)
    except OSError:
        unfinished.unlink()
        raise
    finally:
        os.close(descriptor)
    unfinished.rename(file)


async def attach_files(data_dir: Path) -> list[Path]:
    """The devices of all files there are. One that can't be attached, or whose disk hangs, is logged: the node may
    have other groups, and whoever needs this one says that it is missing."""
    folder = _folder(data_dir)
    try:
        files = await threads.at(folder, partial(_disk_files, folder))
    except (OSError, Hung) as error:
        log.warning("volume groups on files get no loop devices: %s", error)
        return []
    answers = await asyncio.gather(*(_attach(file) for file in files))
    return [device for device in answers if device]


def _disk_files(folder: Path) -> list[Path]:
    if not presence.is_folder(folder):
        return []
    return sorted(file for file in folder.iterdir() if file.name.endswith(_SUFFIX))


async def _attach(file: Path) -> Path | None:
    try:
        return await threads.at(file, partial(loopdevice.attach, file), disk=file.parent)
    except (OSError, Hung) as error:
        log.warning("%s, which has a volume group, gets no loop device: %s", file, error)
        return None


def metadata_size(taken: Sequence[Disk]) -> int | None:
    """Bytes on each disk for LVM's metadata: enough for as many volumes as the disks have extents, 10,000 of ours in
    any case where there is room for so many. A text of up to half of that holds them; LVM's own 1 MiB (None) is full
    with 700 volumes, and can't be made larger later."""
    whole, smallest = sum(disk.size for disk in taken), min(disk.size for disk in taken)
    size = min(_METADATA_MOST, whole // _METADATA_SHARE, smallest // _METADATA_OF_SMALLEST)
    return size >> 20 << 20 if size >= 2 << 20 else None


def chosen(selector: DeviceSelector, looked_at: Iterable[Disk]) -> list[Disk]:
    """The disks of a node that its class asks for and that hold nothing, each once."""
    free: list[Disk] = []
    for disk in looked_at:
        if selector.selects(disk) and not disks.objection(disk):
            taken = [(other.path, other) for other in free]
            if not disks.named_twice([*taken, (disk.path, disk)]):
                free.append(disk)
    return free


def seen_file(data_dir: Path, group: str) -> Path:
    """By which a node remembers that it has, or had, the group."""
    return _folder(data_dir) / f"{group}.seen"


class GroupMaker:
    """Makes the groups of one node. `data_dir` is where it remembers them."""

    def __init__(self, tools: Lvm, data_dir: Path) -> None:
        self._tools = tools
        self._data_dir = data_dir

    async def attach_files(self) -> None:
        """What is on files has its loop devices, which a restart of the node took."""
        await attach_files(self._data_dir)

    async def ensure(self, classes: Iterable[DeviceClass], present: Collection[str]) -> None:
        """Groups that their classes let this node make are made, if they never were there. `present`: the names of
        those that are there now. What fails is logged, and tried again when this is called again: the node has other
        storage, and says that this group is missing."""
        for device_class in classes:
            if device_class.devices:
                try:
                    await self._ensure(device_class.group, device_class.devices, present)
                except (LvmError, CommandError, OSError, Hung, NotADisk) as error:
                    log.warning("group %s can't be made: %s", device_class.group, error)

    async def _ensure(self, group: str, selector: DeviceSelector, present: Collection[str]) -> None:
        if group in present:
            await self._at_file(group, partial(_remember, begun=()))
            return
        begun = await self._at_file(group, _remembered)
        if begun is None or (begun and await self._taken_back(group, begun)):
            await self._make(group, selector)

    async def _make(self, group: str, selector: DeviceSelector) -> None:
        taken = chosen(selector, await look_at_all())
        if not taken:
            return
        if why := unlike_sectors({disk.path: disk.sector_size for disk in taken}):
            log.warning("group %s is not made: %s; or let its `devices` select one kind", group, why)
            return
        await self._at_file(group, partial(_remember, begun=[_Begun.of(disk) for disk in taken]))
        log.warning("group %s is made of %s", group, ", ".join(disk.path for disk in taken))
        try:
            await self._tools.create_group(group, [disk.path for disk in taken], metadata_size=metadata_size(taken))
        except LvmError as error:
            killed = isinstance(error, lvm.Interrupted | lvm.Hung)  # what it did is looked at the next time
            if not killed and (await self._tools.report()).group(group) is None:
                await self._at_file(group, Path.unlink)  # it was never there
            raise
        await self._at_file(group, partial(_remember, begun=()))

    async def _taken_back(self, group: str, begun: Collection["_Begun"]) -> bool:
        """Whether these disks are empty again, of which a group was being made and is not there. One that is away may
        have it."""
        ours, why = await _begun_disks(group, begun)
        state = await self._tools.report()
        grouped = await asyncio.to_thread(_resolved, [device.path for device in state.devices if device.group])
        if why or grouped.intersection(disk.path for disk in ours):
            why = why or "LVM has some of its disks in a group by now (`pvs`)"
            log.warning("group %s is not there. %s", group, _not_begun_anew(why, self._file(group)))
            return False
        for disk in ours:
            if not await give_back(disk, group):
                return False  # somebody took it this moment: next time it is said what it holds
        await self._at_file(group, Path.unlink)
        return True

    def _file(self, group: str) -> Path:
        return seen_file(self._data_dir, group)

    async def _at_file(self, group: str, work: Callable[[Path], T]) -> T:
        """What is done to the file by which a group is remembered. Raises Hung, after long enough for a busy disk:
        when it is noted too late, the group is never made."""
        file = self._file(group)
        return await threads.at(file, partial(work, file), disk=file.parent, deadline=CALL_SECONDS)


def _resolved(paths: Iterable[str]) -> set[str]:
    return {str(Path(path).resolve()) for path in paths}


async def is_unfinished(disk: Disk, group: str) -> bool:
    """Whether the disk, which was empty and is in no group as LVM says, holds nothing but what LVM writes before it
    belongs to this one, if anything: its other disks may say already that it does. Raises NotADisk."""
    return not disks.objection(_without_label(disk)) and _is_begun(group, await disks.ends(disk))


async def give_back(disk: Disk, group: str) -> bool:
    """Such a disk is empty again. LVM itself removes no label that says it is in use, and sees no disk without one.
    False: it holds anything else by now, and is left as it is. Raises NotADisk, also where somebody uses it."""
    return await disks.make_blank(disk, only=partial(_is_begun, group))


def _is_begun(group: str, ends: disks.Ends) -> bool:
    start, end = ends
    return label.unfinished(start) in ("", group) and not any(end)


def _without_label(disk: Disk) -> Disk:
    """As it was before LVM took it, as far as can be seen."""
    return replace(disk, signatures=tuple(each for each in disk.signatures if each != _LABEL), blank=True)


@dataclass(frozen=True)
class _Begun:
    """A disk that a group is being made of. Without a name of its hardware its path and size have to do."""

    path: str
    hardware: str
    size: int

    @classmethod
    def of(cls, disk: Disk) -> "_Begun":
        return cls("" if disk.hardware else disk.path, disk.hardware, disk.size)


async def _begun_disks(group: str, begun: Collection[_Begun]) -> tuple[list[Disk], str]:
    """Those of which a group was being made, and why it can't be begun anew. Empty: it can."""
    looked_at = {_Begun.of(disk): disk for disk in await look_at_all()}
    ours, problems = [], []
    for each in begun:
        disk = looked_at.get(each)
        if disk is None:
            problems.append(f"{each.path or each.hardware} is away, which may have it")
            continue
        try:
            if await is_unfinished(disk, group):
                ours.append(disk)
            else:
                problems.append(f"{disk.path}: {disks.objection(disk)}")
        except NotADisk as why:
            problems.append(f"{disk.path}: {why}")
    return ours, "; ".join(problems)


async def cut_off(data_dir: Path, group: str) -> str:
    """Whether making the group was cut off, and what becomes of that. Empty: it was not."""
    file = seen_file(data_dir, group)
    begun = await asyncio.to_thread(_remembered, file)
    if not begun:
        return ""
    _, why = await _begun_disks(group, begun)
    return _not_begun_anew(why, file) if why else "Making it was cut off, the daemon begins anew with its next start"


def _not_begun_anew(why: str, file: Path) -> str:
    return (
        f"Making it was cut off: {why}. When its disks are there and empty, the daemon makes it with its next start; "
        f"remove {file} to let it take others"
    )


def _remembered(file: Path) -> list[_Begun] | None:
    """None: nothing. Empty: that the group is, or was, there, as for what somebody else wrote."""
    try:
        text = file.read_text()
        return [_Begun(**each) for each in json.loads(text)] if text else []
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return []


def _remember(file: Path, *, begun: Collection[_Begun]) -> None:
    """On the disk when it returns."""
    text = json.dumps([asdict(each) for each in begun]) if begun else ""
    if presence.exists(file) and file.read_text() == text:
        return
    ownfolder.establish(file.parent)
    fresh = file.with_name(f"{file.name}{_UNFINISHED}")  # not that of the group's disk file
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.rename(file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


async def look_at_all() -> list[Disk]:
    """The whole disks of this node. One that can't be looked at is left out."""
    looked_at = []
    for path in await asyncio.to_thread(disks.whole_disks):
        try:
            looked_at.append(await disks.look(path))
        except (NotADisk, CommandError, OSError) as error:
            log.info("disk %s is left out: %s", path, error)
    return looked_at
