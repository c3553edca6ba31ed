"""The operations, each of them one LVM command, but for what LVM itself can't mend. How one is run: `lvm/runner.py`.

Of volumes nothing is remembered between calls: LVM's own metadata is the only state. Values go to LVM as
`--option=value` and names are checked first, so that no value can be taken for an option.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from host import blockdevice
from host.command import Completed
from lvm import errors, names
from lvm.records import LogicalVolume, PhysicalVolume, Report
from lvm.runner import Runner

LINEAR, RAID1 = "none", "raid1"

_SECTOR = 512

_WIPE = ("--wipesignatures=y", "--zero=y", "--yes")
"""The start of a new volume is zeroed and known signatures on it are wiped without a question: they are what the
volume before it left there."""

_CHUNK = 16 << 10
"""Bytes that a thick snapshot keeps when one of them is overwritten in its origin. Less takes more of the kernel's
memory, 32 bytes for each chunk (2 GiB for 1 TiB that is all overwritten); more lets the small writes of databases fill
the snapshot sooner."""
_CHUNKS_NOTED = _CHUNK // 16
"""By one chunk of the snapshot's own metadata. Source: dm-snap-persistent.c of Linux."""


def largest_snapshot(size: int) -> int:
    """Bytes that a thick snapshot of a volume of `size` bytes takes when all of that is overwritten: with these it
    can't overflow. LVM makes none larger, but for the rest of an extent."""
    chunks = -(-size // _CHUNK)
    return (1 + chunks + -(-chunks // _CHUNKS_NOTED)) * _CHUNK


async def _nothing() -> Collection[Path]:
    return ()


class Lvm:
    """LVM2 on this node.

    `folder` is LVM's system folder, and gets an lvm.conf before the first command unless it is `configured` already.
    `deadline` is in seconds and holds for each command. One that checks a thin pool goes on beyond it as long as that
    gets on, without its caller, who has BeingChecked, as has who wants anything of the group meanwhile. `foreign` are
    devices that LVM must not look into, whatever they show; it is asked before each command. `unresponsive` are those
    that LVM does without now. All methods raise LvmError or one of its kinds, and host.command.MissingTool where lvm2
    is not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        deadline: float = 60,
        configured: bool = False,
        foreign: Callable[[], Awaitable[Collection[Path]]] = _nothing,
    ) -> None:
        self._runner = Runner(folder, deadline=deadline, configured=configured, foreign=foreign)
        self.unresponsive = self._runner.unresponsive

    async def report(self, *, even_unlocked: bool = False) -> Report:
        """Groups, volumes and devices of the whole node. `even_unlocked`: also while somebody has the lock of a group
        for long, with what is being changed half done."""
        state = await self._runner.report(even_unlocked=even_unlocked)
        return replace(
            state,
            devices=tuple(map(_with_sector_size, state.devices)),
            volumes=tuple(map(_with_pool_below, state.volumes)),
        )

    async def create_group(self, name: str, devices: Sequence[str], *, metadata_size: int | None = None) -> None:
        """Make a volume group of whole devices. A device that holds anything is refused with InUse: whether that may
        go is for a person to say. Of each device `metadata_size` bytes are for LVM's metadata, None: 1 MiB. That can't
        be changed later."""
        added = [names.device(device) for device in devices]
        await self._runner.commit(
            name, "vgcreate", *_metadata_area(metadata_size), names.group(name), *added, added=added
        )

    async def extend_group(self, name: str, devices: Sequence[str], *, metadata_size: int | None = None) -> None:
        """Add whole devices to a volume group, each as `create_group` takes it."""
        added = [names.device(device) for device in devices]
        await self._runner.commit(
            name, "vgextend", *_metadata_area(metadata_size), names.group(name), *added, added=added
        )

    async def remove_group(self, name: str) -> None:
        """Remove a group that has no volumes. Its devices still belong to LVM."""
        await self._runner.commit(name, "vgremove", names.group(name))

    async def back_up(self, group: str) -> None:
        """Write the metadata of a group to the file of its name in `backup` of LVM's folder, for vgcfgrestore(8). Of
        one that lacks a device LVM makes none: what is in the file stays, and says more."""
        await self._runner.run(group, "vgcfgbackup", names.group(group))

    async def remove_device(self, path: str) -> None:
        """Let a device that is in no group be none of LVM's."""
        await self._runner.run("", "pvremove", "--yes", names.device(path))

    async def create_volume(
        self,
        group: str,
        name: str,
        size: int,
        tags: Collection[str] = (),
        *,
        stripes: int = 1,
        raid: str = LINEAR,
    ) -> None:
        """Make a thick volume of `size` bytes with its tags, active.

        The size is rounded up to whole extents, and to a whole number of them on each stripe. With raid1 all data is
        on two devices. Stripes of mirrors are not offered. Raises ValueError for a layout or a size that can't be.
        """
        names.volume(group, name)
        layout = (*_layout(stripes, raid), f"--size={_size(size)}")
        await self._runner.commit(group, "lvcreate", *_WIPE, *layout, *_new(name, tags), group)

    async def create_pool(self, group: str, name: str, size: int | None, tags: Collection[str] = ()) -> None:
        """Make a thin pool with room for `size` bytes of data; None = all that is left in the group.

        Room for metadata comes on top of `size`, twice: once for the pool, once as a spare for its repair. Blocks are
        zeroed when they are first written, so that nobody reads what an earlier volume left in the pool.
        """
        names.volume(group, name)
        room = "--extents=100%FREE" if size is None else f"--size={_size(size)}"
        await self._runner.commit(
            group, "lvcreate", "--type=thin-pool", "--zero=y", "--yes", room, *_new(name, tags), group
        )

    async def create_thin_volume(self, group: str, pool: str, name: str, size: int, tags: Collection[str] = ()) -> None:
        """Make a thin volume of `size` bytes with its tags, active. How far a pool may be promised beyond its size is
        the caller's decision: LVM sets no limit."""
        names.volume(group, name)
        names.volume(group, pool)
        await self._runner.commit(
            group,
            "lvcreate",
            "--type=thin",
            "--yes",
            f"--thinpool={pool}",
            f"--virtualsize={_size(size)}",
            *_new(name, tags),
            group,
        )

    async def create_thin_snapshot(self, group: str, origin: str, name: str, tags: Collection[str] = ()) -> None:
        """Make a thin volume that holds what `origin`, a thin volume too, holds now, with tags of its own, active. A
        filesystem that is mounted from the origin is frozen for that moment, so it is consistent on disk."""
        names.volume(group, name)
        # A snapshot is marked to be left out when its group is activated, unless one says no.
        await self._runner.commit(
            group, "lvcreate", "--snapshot", "--setactivationskip=n", *_new(name, tags), names.volume(group, origin)
        )

    async def create_thick_snapshot(
        self, group: str, origin: str, name: str, size: int, tags: Collection[str] = ()
    ) -> None:
        """Make a volume that shows what `origin` holds now, with tags of its own, active. A filesystem that is mounted
        from the origin is frozen for that moment, so it is consistent on disk.

        The snapshot has `size` bytes of the group for what is overwritten in the origin from now on. When they are full
        it can't be read any more; the origin goes on. While there is a snapshot, its origin can't grow, and who removes
        the origin removes both.
        """
        names.volume(group, name)
        await self._runner.commit(
            group,
            "lvcreate",
            "--snapshot",
            "--yes",
            f"--chunksize={_CHUNK}b",
            f"--size={_size(size)}",
            *_new(name, tags),
            names.volume(group, origin),
        )

    async def split_snapshot(self, group: str, name: str) -> None:
        """Let a thick snapshot, which nobody has open, become a volume of its own, with the same name and tags: it
        shows what the snapshot kept, as it lies on the disk. Its origin goes on."""
        await self._runner.commit(group, "lvconvert", "--splitsnapshot", "--yes", names.volume(group, name))

    async def extend(self, group: str, name: str, size: int) -> None:
        """Let a volume have at least `size` bytes. One that has them already is left as it is: LVM calls that a
        failure, in other words in each version."""
        try:
            await self._runner.commit(group, "lvextend", f"--size={_size(size)}", names.volume(group, name))
        except errors.LvmError as error:
            if error.exit_code is None or type(error) is not errors.LvmError or not await self._has(group, name, size):
                raise

    async def extend_metadata(self, group: str, pool: str, more: int) -> None:
        """Let a thin pool have `more` bytes for metadata than it has. Its spare grows with it."""
        await self._runner.commit(group, "lvextend", f"--poolmetadatasize=+{_size(more)}", names.volume(group, pool))

    async def retag(
        self,
        group: str,
        volumes: Mapping[str, Collection[str]],
        *,
        add: Collection[str] = (),
        remove: Collection[str] = (),
    ) -> Mapping[str, errors.TagsDiffer]:
        """Exchange the same tags of each of these volumes, all in one command, and of each in one step: nobody sees the
        one change without the other. Adding a tag that is there and removing one that is not are no errors.

        `volumes` are names, with the tags that each must have for it. One that has not all of them is left as it is:
        the answer says so, by name. Where the command fails, because one of them is not there or for all of them, some
        may have been changed.
        """
        changes = [
            *(f"--deltag={names.tag(tag)}" for tag in sorted(remove)),
            *(f"--addtag={names.tag(tag)}" for tag in sorted(add)),
        ]
        if not changes or not volumes:
            return {}
        paths = {name: names.volume(group, name) for name in volumes}
        done = await self._runner.commit(group, "lvchange", *changes, *_selected(volumes), *paths.values())
        changed = {word for line in done.stdout.splitlines() if "changed" in line for word in line.split()}
        left = [name for name, having in volumes.items() if having and paths[name] not in changed]
        return {name: _tags_differ(done, volumes[name]) for name in left}

    async def remove(self, group: str, name: str, *, having: Collection[str] = ()) -> None:
        """Remove a volume and what is on it. One that is open or mounted is refused with InUse. A thin pool goes
        together with its volumes. A volume that has not all of the tags in `having` stays, with TagsDiffer: LVM looks
        at them in the same step, under the lock of its group."""
        path = names.volume(group, name)
        done = await self._runner.commit(group, "lvremove", "--yes", *_selected({name: having}), path)
        if having and "successfully removed" not in done.stdout:
            raise _tags_differ(done, having)

    async def activate(self, group: str, name: str) -> None:
        """Let a volume's device appear, also one that its administrator has left out when its group is activated
        (`--setactivationskip y`): LVM would do nothing, and call that a success. An active one stays so."""
        await self._runner.run(
            group, "lvchange", "--activate=y", "--ignoreactivationskip", "--yes", names.volume(group, name)
        )

    async def deactivate(self, group: str, name: str) -> None:
        """Let a volume's device go, with whatever a killed command prepared for it. Raises InUse while it is open."""
        await self._runner.run(group, "lvchange", "--activate=n", "--yes", names.volume(group, name))

    async def refresh(self, group: str, name: str) -> None:
        """Let an active volume, or thin pool, be what the metadata say, also one that is suspended because a command
        was killed. For a volume whose pool is suspended this waits, so pools come first."""
        await self._runner.run(group, "lvchange", "--refresh", names.volume(group, name))

    async def resume(self, volume: LogicalVolume) -> None:
        """The same for one that is suspended, or what the volumes of a thin pool lie on."""
        if volume.is_thin_pool:
            # What was prepared is dropped: it may not be what the metadata say. LVM would resume a pool as large as it
            # was to become on data that are as before, which the kernel refuses, and leave it suspended.
            below = _below(volume.group, volume.name).name
            await self._runner.dmsetup("clear", below)
            await self._runner.dmsetup("clear", names.mapped(volume.group, volume.name))
            if not volume.active:
                # LVM leaves that as it is, and who activates the pool waits for it.
                await self._runner.dmsetup("resume", below)
                await self.activate(volume.group, volume.name)
        await self.refresh(volume.group, volume.name)

    async def mend_origin(self, group: str, name: str, snapshot: str) -> None:
        """Let an active volume go on of which a snapshot was being made when that command was killed. It may be
        suspended, and who writes to it waits.

        LVM resumes it as the metadata say. Where they say nothing of the snapshot, it would resume it with what it had
        prepared for one. So that is dropped first, and the snapshot, a plain volume then, is not active any more.
        """
        if not any((await self.report()).thick_snapshots(group, name)):
            device = names.mapped(group, name)
            await self._runner.dmsetup("clear", device)
            await self._runner.dmsetup("resume", device)
            await self.deactivate(group, snapshot)
            await self._runner.dmsetup("remove", f"{device}-real")
        await self.refresh(group, name)

    async def check_pool(self, group: str, pool: str, volumes: Collection[str]) -> None:
        """Let a thin pool be checked that the kernel switched off or made read-only, and be writable again if its
        metadata are sound. That is done when it is activated, so first it and all its `volumes`, which bear no mount,
        are deactivated. Raises InUse while one is open. The volumes are not active afterwards."""
        names.volume(group, pool)
        closed = [names.volume(group, name) for name in (*sorted(volumes), pool)]
        await self._runner.run(group, "lvchange", "--activate=n", "--yes", *closed)
        await self.activate(group, pool)

    async def _has(self, group: str, name: str, size: int) -> bool:
        """Whether a volume has so many bytes, and if it is active its device has them as well: a command that fails may
        have got as far as the metadata."""
        volume = (await self.report()).volume(group, name)
        if volume is None or volume.size < size:
            return False
        return not volume.active or blockdevice.capacity(Path(volume.path)) >= size


def _with_pool_below(volume: LogicalVolume) -> LogicalVolume:
    """A thin pool that was activated for its volumes only has no device of its own name, so LVM calls it inactive: what
    its volumes lie on may be suspended all the same. And of an active one LVM says that only of what they lie on."""
    if not volume.is_thin_pool:
        return volume
    own = Path("/dev/mapper", names.mapped(volume.group, volume.name))
    below = _below(volume.group, volume.name)
    return replace(volume, suspended=blockdevice.is_suspended(own) or blockdevice.is_suspended(below))


def _below(group: str, pool: str) -> Path:
    """What the volumes of a thin pool lie on."""
    return Path("/dev/mapper", f"{names.mapped(group, pool)}-tpool")


def _with_sector_size(device: PhysicalVolume) -> PhysicalVolume:
    """By what the kernel remembers, not by the disk, which may hang."""
    try:
        return replace(device, sector_size=blockdevice.sector_size(Path(device.path)))
    except (OSError, ValueError):
        return device


def _new(name: str, tags: Collection[str]) -> list[str]:
    return [f"--name={name}", *(f"--addtag={names.tag(tag)}" for tag in sorted(tags))]


def _selected(volumes: Mapping[str, Collection[str]]) -> list[str]:
    """The option that leaves out each of these volumes that has not all of its tags, lvmreport(7)."""
    if not any(volumes.values()):
        return []
    wanted = " || ".join(f"({_having(name, tags)})" for name, tags in volumes.items())
    return [f"--select={wanted}"]


def _having(name: str, tags: Collection[str]) -> str:
    named = f'lv_name="{name}"'
    all_of = " && ".join(f'"{names.tag(tag)}"' for tag in sorted(tags))
    return f"{named} && lv_tags={{{all_of}}}" if tags else named


def _tags_differ(done: Completed, having: Collection[str]) -> errors.TagsDiffer:
    """To LVM it is no error that it did not select a volume: what it does to one it says."""
    words = f"the volume has not all of these tags (any more), and was left as it is: {' '.join(sorted(having))}"
    return errors.TagsDiffer(done.command_line, done.exit_code, words)


def _size(size: int) -> str:
    """LVM takes whole sectors only, and rounds up to extents itself."""
    if size <= 0:
        raise ValueError(f"a volume of {size} bytes can't be made")
    return f"{-(-size // _SECTOR) * _SECTOR}b"


def _metadata_area(size: int | None) -> list[str]:
    return [f"--metadatasize={_size(size)}"] if size else []


def _layout(stripes: int, raid: str) -> list[str]:
    if stripes < 1:
        raise ValueError(f"a volume can't have {stripes} stripes: give 1 or more")
    if raid not in (LINEAR, RAID1):
        raise ValueError(f"raid can't be {raid!r}: give {LINEAR!r} or {RAID1!r}")
    if raid == RAID1 and stripes > 1:
        raise ValueError("a volume has stripes or is a mirror, not both")
    if raid == RAID1:
        return ["--type=raid1", "--mirrors=1"]
    return ["--type=striped", f"--stripes={stripes}"] if stripes > 1 else ["--type=linear"]
