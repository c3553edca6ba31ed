"""A filesystem that is a copy of another one, block by block, and so has the same UUID.

xfs does not let two of one UUID be mounted together, and tools that look for a UUID find either. So a copy gets one of
its own before anybody uses it. xfs wants its log replayed before that, which only a mount does. btrfs is missing here:
the kernel takes two devices with one UUID for one filesystem as soon as it sees them.

Sources: e2fsck(8), tune2fs(8), xfs_admin(8), xfs(5).
"""

import asyncio
from pathlib import Path

from host import filesystem, mounting
from host.command import run

KINDS = frozenset({"ext4", "xfs"})
"""Of which there may be copies."""

_REPAIRED = frozenset({0, 1, 2})


async def renew(kind: str, device: Path, folder: Path, *, deadline: float = 3600) -> None:
    """Gives the filesystem on `device`, not mounted, a UUID of its own. `folder` is empty and there to mount it for a
    moment. A process that is killed meanwhile may leave it mounted there, or of no use. Raises
    host.filesystem.Unsound, CommandError, OSError, and ValueError for a kind of which there can't be copies."""
    if kind == "ext4":
        # tune2fs wants all of it checked, because it writes each checksum anew.
        checked = await run("e2fsck", "-f", "-p", str(device), deadline=deadline, check=False)
        if checked.exit_code not in _REPAIRED:
            raise filesystem.Unsound(kind, device, f"{checked.command_line}: {checked.words}")
        await run("tune2fs", "-U", "random", str(device), deadline=deadline)
    elif kind == "xfs":
        await filesystem.mount(kind, device, folder, ["nouuid"], deadline=deadline)
        await asyncio.to_thread(mounting.unmount, folder)
        await run("xfs_admin", "-U", "generate", str(device), deadline=deadline)
    else:
        raise ValueError(f"two copies of one {kind} can't be used on one node")
