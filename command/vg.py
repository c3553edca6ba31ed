"""`vg`: the volume group of a node, which is all that a node needs before it can have volumes.

Creating is safe to repeat, by a person or by a Makefile: a group that is there is left as it is. A disk that holds
anything is never taken; what speaks against it is said, with the command that would clear it. A group that has volumes
is never removed. With --dry-run nothing is changed, and what would be is shown.
"""

import asyncio
import contextlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

import lvm
from command.options import Form
from command.running import Stop, need_root, patience, run
from command.table import Column, share, show, show_data, size
from contract import parameters, quantity
from daemon.backends import lvmgroups, volumegroups
from daemon.backends.loop import volume_devices
from daemon.backends.volumegroups import metadata_size
from daemon.storage.record import DamagedRecord, from_tags
from host import disks, loopdevice, ownfolder, presence
from host.disks import Disk, NotADisk
from lvm import Lvm

_NAMED = 5
"""Volumes that a message names."""
_SMALLEST = 16 << 20
"""Bytes: below, LVM's metadata and extents leave nothing to use."""


@dataclass(frozen=True)
class Group:
    """A row of `vg list`. Sizes in bytes."""

    name: str
    size: int
    free: int
    devices: tuple[str, ...]
    volumes: int
    ours: int
    """Of the volumes, those with the mark of elastic-local."""
    problem: str


def create(
    group: str,
    devices: list[Path],
    any_disk: bool,
    loop_size: str | None,
    dry_run: bool,
    data_dir: Path,
    form: Form,
) -> None:
    if devices and (any_disk or loop_size):
        raise typer.BadParameter("name devices, or give --any-disk or --loop-size, not both")
    _check_name(group)
    wanted_size = _size(loop_size) if loop_size else None
    _show_one(run(_create(group, devices, any_disk, wanted_size, dry_run, data_dir), resumable=True), form, dry_run)


def extend(group: str, devices: list[Path], dry_run: bool, data_dir: Path, form: Form) -> None:
    _show_one(run(_extend(group, devices, dry_run, data_dir), resumable=True), form, dry_run)


def remove(group: str, dry_run: bool, data_dir: Path, form: Form) -> None:
    removed = run(_remove(group, dry_run, data_dir), resumable=True)
    if form.structured:
        show_data({"name": group, "devices": removed, "removed": not dry_run}, form)
    elif form is Form.NAME:
        typer.echo(group)
    else:
        would = "would be" if dry_run else "is"
        typer.echo(f"volume group {group} {would} removed, {' '.join(removed)} can be used for something else")
    _tell(dry_run)


def _show_one(group: Group, form: Form, dry_run: bool) -> None:
    show([group], _COLUMNS, form, nothing="", name=_name)
    _tell(dry_run)


def _tell(dry_run: bool) -> None:
    if dry_run:
        typer.echo("nothing was changed: the same command without --dry-run does it", err=True)


def list_groups(data_dir: Path, form: Form) -> None:
    show(
        run(_list(data_dir)),
        _COLUMNS,
        form,
        nothing="this node has no volume group: make one with `elastic-local vg create elastic-local-vg DEVICE...`",
        name=_name,
    )


def _name(group: Group) -> str:
    """As LVM's commands take it: kubectl knows no volume groups."""
    return group.name


_COLUMNS = (
    Column[Group]("group", lambda row: row.name),
    Column[Group]("size", lambda row: size(row.size), right=True),
    Column[Group]("free", lambda row: size(row.free), right=True),
    Column[Group]("taken", lambda row: share(row.size - row.free, row.size)),
    Column[Group]("devices", lambda row: " ".join(row.devices)),
    Column[Group]("volumes", lambda row: str(row.volumes), right=True),
    Column[Group]("ours", lambda row: str(row.ours), right=True),
    Column[Group]("problem", lambda row: row.problem),
)


async def _list(data_dir: Path) -> list[Group]:
    need_root("asking LVM")
    async with patience("asking LVM for the groups of this node"):
        state = await Lvm(data_dir / "lvm", foreign=volume_devices).report()
    return [row(state, group) for group in state.groups]


async def _create(
    name: str, devices: list[Path], any_disk: bool, loop_size: int | None, dry_run: bool, data_dir: Path
) -> Group:
    need_root("making a volume group")
    tools = Lvm(data_dir / "lvm", foreign=volume_devices)
    async with patience(f"making volume group {name}"):
        await volumegroups.attach_files(data_dir)
        state = await tools.report()
        if present := state.group(name):
            _compare(state, name, [await disks.look(device) for device in devices])
            return row(state, present)
        if dry_run:
            return await _planned(name, devices, any_disk, loop_size, data_dir)
        async with contextlib.AsyncExitStack() as undo:
            taken = await _disks(name, devices, any_disk, loop_size, data_dir, undo)
            undo.push_async_callback(_given_back, tools, name, taken)
            await tools.create_group(name, [disk.path for disk in taken], metadata_size=metadata_size(taken))
            undo.pop_all()
        state = await tools.report()
    return row(state, next(group for group in state.groups if group.name == name))


def _check_name(name: str) -> None:
    """Also of the file of a group. Raises BadParameter."""
    try:
        parameters.lvm_name(name)
    except ValueError:
        hint = f". The group comes first: `elastic-local vg create GROUP {name}`" if name.startswith("/dev/") else ""
        raise typer.BadParameter(
            f"{name!r} is not a valid name of a volume group: allowed are letters, digits and _ + . -, the first one a "
            f"letter, a digit or _{hint}",
            param_hint="GROUP",
        ) from None


async def _planned(name: str, devices: list[Path], any_disk: bool, loop_size: int | None, data_dir: Path) -> Group:
    """What `create` would make, but for what LVM keeps for itself. Raises Stop."""
    file = volumegroups.disk_file(data_dir, name)
    try:
        async with contextlib.AsyncExitStack() as undo:
            taken = await _disks(name, devices, any_disk, None, data_dir, undo)
    except Stop:
        if loop_size is None or devices:
            raise
        if presence.exists(file):
            raise Stop(f"{file} is there already: without --dry-run it would become the disk, if it is empty") from None
        _check_room(file, loop_size)
        return _of_disks(name, [Disk(str(file), loop_size)])
    return _of_disks(name, taken)


def _of_disks(name: str, taken: Sequence[Disk]) -> Group:
    """A group that is not there yet."""
    whole = sum(disk.size for disk in taken)
    return Group(name, whole, whole, tuple(sorted(disk.path for disk in taken)), 0, 0, "")


async def _extend(name: str, devices: list[Path], dry_run: bool, data_dir: Path) -> Group:
    need_root("extending a volume group")
    tools = Lvm(data_dir / "lvm", foreign=volume_devices)
    async with patience(f"extending volume group {name}"):
        state = await tools.report()
        group = _existing(state, name)
        has = _paths(state.devices_of(name))
        looked_at = [(device, await disks.look(device)) for device in devices]
        named = [(device, disk) for device, disk in looked_at if disk.path not in has]
        taken = _empty(named)
        _check_sectors(lvmgroups.sector_sizes(state, name), taken)
        if taken and not dry_run:
            async with contextlib.AsyncExitStack() as undo:
                undo.push_async_callback(_given_back, tools, name, taken)
                await tools.extend_group(name, [disk.path for disk in taken], metadata_size=metadata_size(taken))
                undo.pop_all()
            state = await tools.report()
            return row(state, _existing(state, name))
    now = row(state, group)
    more = sum(disk.size for disk in taken)
    devices_then = tuple(sorted((*now.devices, *(disk.path for disk in taken))))
    return replace(now, size=now.size + more, free=now.free + more, devices=devices_then)


async def _remove(name: str, dry_run: bool, data_dir: Path) -> list[str]:
    """The devices that it was on. Raises Stop while it has volumes, whoever made them."""
    need_root("removing a volume group")
    tools = Lvm(data_dir / "lvm", foreign=volume_devices)
    async with patience(f"removing volume group {name}"):
        await volumegroups.attach_files(data_dir)
        state = await tools.report()
        _existing(state, name)
        devices = sorted(_paths(state.devices_of(name)))
        file = volumegroups.disk_file(data_dir, name)
        on_file = await asyncio.to_thread(_is_disk, file, devices)
        if there := sorted(volume.name for volume in state.volumes_of(name)):
            some = ", ".join(there[:_NAMED]) + (f" and {len(there) - _NAMED} more" if len(there) > _NAMED else "")
            raise Stop(
                f"volume group {name} has volumes: {some}. Delete their claims first (`elastic-local volumes` shows "
                f"which), and what is not ours with `lvremove {name}/NAME`"
            )
        if not dry_run:
            await tools.remove_group(name)
            for device in devices:
                await tools.remove_device(device)
                await disks.make_blank(await disks.look(Path(device)))  # so that `create` takes it again
            if on_file:
                await asyncio.to_thread(_forget, file)
    return devices


def _is_disk(file: Path, devices: Collection[str]) -> bool:
    """Whether the file is one of these devices. That of a group's name may be the disk of one that was renamed."""
    return presence.exists(file) and str(loopdevice.find(file)) in devices


def _existing(state: lvm.Report, name: str) -> lvm.VolumeGroup:
    """Raises Stop."""
    group = state.group(name)
    if group is None:
        there = ", ".join(each.name for each in state.groups) or "none"
        raise Stop(
            f"this node has no volume group {name} (there is: {there}): see `elastic-local vg list`, or create it with "
            f"`elastic-local vg create {name} DEVICE...`"
        )
    return group


async def _given_back(tools: Lvm, name: str, taken: Sequence[Disk]) -> None:
    """What was begun with these disks is undone: each was looked at a moment ago, held nothing and was nobody's, and is
    so again. What belongs to another group by now is not touched."""
    ours = {disk.path for disk in taken}
    state = await tools.report()
    if state.group(name) and _paths(state.devices_of(name)) <= ours and not any(state.volumes_of(name)):
        await tools.remove_group(name)
    grouped = _paths(each for each in (await tools.report()).devices if each.group)
    for disk in taken:
        if disk.path not in grouped:
            with contextlib.suppress(NotADisk):  # somebody took it meanwhile: then it is theirs
                await volumegroups.give_back(disk, name)


def _paths(devices: Iterable[lvm.PhysicalVolume]) -> set[str]:
    """As disks are named here, where LVM may name one of their links."""
    return {str(Path(device.path).resolve()) for device in devices}


async def _disks(
    name: str,
    devices: list[Path],
    any_disk: bool,
    loop_size: int | None,
    data_dir: Path,
    undo: contextlib.AsyncExitStack,
) -> list[Disk]:
    """What the new group is to lie on. Raises Stop."""
    if devices:
        taken = _empty([(device, await disks.look(device)) for device in devices])
        _check_sectors({}, taken)
        return taken
    if any_disk:
        there = [await disks.look(path) for path in disks.whole_disks()]
        if chosen := disks.choose(there):
            return [chosen]
        if loop_size is None:
            seen = _described(there) or "  there is none"
            raise Stop(f"no disk of this node is empty:\n{seen}\nAdd a disk, or give --loop-size for a file instead")
    if loop_size is None:
        raise Stop(
            f"volume group {name} does not exist: name empty disks to make it from (`lsblk` lists those of this node), "
            "or give --any-disk to take one, or --loop-size 10Gi for a file instead of a disk"
        )
    return [await _loop_disk(volumegroups.disk_file(data_dir, name), loop_size, undo)]


def _empty(named: Sequence[tuple[Path, Disk]]) -> list[Disk]:
    """The disks, by how they were named, which hold nothing. Raises Stop."""
    if twice := disks.named_twice([(str(path), disk) for path, disk in named]):
        raise Stop(f"nothing was changed, because one disk is named twice: {twice}")
    found = [disk for _, disk in named]
    if any(disks.objection(disk) for disk in found):
        raise Stop(f"nothing was changed, because not every disk is empty:\n{_described(found)}")
    return found


def _check_sectors(present: Mapping[str, int], taken: Iterable[Disk]) -> None:
    """Of the devices that a group has, and those that it is to get. Raises Stop."""
    sizes = {**present, **{disk.path: disk.sector_size for disk in taken}}
    if sizes and (why := lvmgroups.unlike_sectors(sizes)):
        raise Stop(f"nothing was changed, because {why}")


def _described(looked_at: Iterable[Disk]) -> str:
    """A line for each disk that was looked at."""
    return "\n".join(
        f"  {disk.path} ({quantity.humane(disk.size)}): {disks.objection(disk) or 'empty'}" for disk in looked_at
    )


async def _loop_disk(file: Path, size: int, undo: contextlib.AsyncExitStack) -> Disk:
    if not await asyncio.to_thread(presence.exists, file):
        undo.callback(_forget, file)
    try:
        device = await asyncio.to_thread(_attached, file, size)
    except OSError as error:
        raise Stop(f"{file} can't become a disk: {error}") from error
    disk = await disks.look(device)
    if why := disks.objection(disk):
        raise Stop(f"{file} was there already and can't become a disk: {why}; or move the file away")
    return disk


def _forget(file: Path) -> None:
    """The file that was to become a disk is gone, with its loop device."""
    if presence.exists(file):
        if device := loopdevice.find(file):
            loopdevice.detach(device)
        file.unlink()


def _attached(file: Path, size: int) -> Path:
    if not presence.exists(file):
        ownfolder.establish(file.parent)
        _check_room(file, size)
        volumegroups.make_disk_file(file, size)
    return loopdevice.attach(file)


def _check_room(file: Path, size: int) -> None:
    """Its folder may not be there yet. Raises Stop."""
    filesystem = os.statvfs(next(folder for folder in file.parents if presence.is_folder(folder)))
    free = filesystem.f_bavail * filesystem.f_frsize
    if size > free:
        raise Stop(
            f"the filesystem of {file.parent} has {quantity.humane(free)} left for a file of "
            f"{quantity.humane(size)}: give a smaller --loop-size, or another --data-dir"
        )


def _size(text: str) -> int:
    try:
        count = quantity.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--loop-size") from None
    if count < _SMALLEST:
        least = quantity.render(_SMALLEST)
        raise typer.BadParameter(
            f"{text} is too small for a volume group: give {least} or more", param_hint="--loop-size"
        )
    return count


def _compare(state: lvm.Report, name: str, named: list[Disk]) -> None:
    """A group of that name is there. Raises Stop when it is not made of the named disks: extending a group is not what
    was asked for."""
    has = _paths(state.devices_of(name))
    others = [disk.path for disk in named if disk.path not in has]
    if others:
        raise Stop(
            f"volume group {name} exists already, on {' '.join(sorted(has))}. To add a disk that is empty: "
            f"`elastic-local vg extend {name} {' '.join(others)}`"
        )


def row(state: lvm.Report, group: lvm.VolumeGroup) -> Group:
    volumes = [volume for volume in state.volumes_of(group.name) if not volume.is_thin_pool]
    problem = lvmgroups.unusable(group) or lvmgroups.refusal(state, group)
    return Group(
        name=group.name,
        size=group.size,
        free=group.free,
        devices=tuple(sorted(device.path for device in state.devices if device.group == group.name)),
        volumes=len(volumes),
        ours=sum(1 for volume in volumes if _is_ours(volume)),
        problem="; ".join(filter(None, (problem, *lvmgroups.notices(state, group)))),
    )


def _is_ours(volume: lvm.LogicalVolume) -> bool:
    try:
        return from_tags(volume.tags) is not None
    except DamagedRecord:
        return True
