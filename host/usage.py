"""Who uses a filesystem or a block device: mounts in every mount namespace and open files of every process, like
fuser(1).

A container that the kubelet has lost sight of still has its volume mounted, in a namespace of its own. A mount is known
by what it shows, device and root (proc_pid_mountinfo(5)), and not by its path, which each namespace has its own of. The
same goes for where it is mounted: each namespace that was made as a copy has the very mount that is looked at, at the
same place of the same parent filesystem, and that is no use of it.

Sources: proc(5), mount_namespaces(7). Sees what /proc shows: all of the node only from its own PID namespace and with
CAP_SYS_PTRACE. What is not shown is logged, once.
"""

import contextlib
import errno
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from host import loopdevice, mounttable
from host.mounttable import Mount

log = logging.getLogger(__name__)

_PROC = Path("/proc")
_MNT_ID = re.compile(rb"^mnt_id:\s*(\d+)$", re.MULTILINE)
_FLAGS = re.compile(rb"^flags:\s*(\d+)$", re.MULTILINE)
_REMOTE = frozenset({"9p", "ceph", "cifs", "fuse", "glusterfs", "nfs", "nfs4", "smb3"})
"""Filesystems that ask somebody for each file, who may not answer. They show no devices of the node."""
_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")

_unseen: set[int] = set()
"""Processes that were logged."""


@dataclass(frozen=True)
class Namespace:
    """A mount namespace, as one of its processes shows it."""

    process: int
    mounts: Mapping[int, Mount] = field(default_factory=dict)
    """By their number."""

    def resolve(self, path: str) -> tuple[str, str] | None:
        """Device and path in its filesystem, of a path in this namespace."""
        below = [mount for mount in self.mounts.values() if is_within(path, mount.path)]
        return self.place(max(below, key=lambda mount: (len(mount.path), mount.id)), path) if below else None

    @staticmethod
    def place(mount: Mount, path: str) -> tuple[str, str]:
        rest = path[len(mount.path.rstrip("/")) :].lstrip("/")
        return mount.device, f"{mount.root.rstrip('/')}/{rest}".rstrip("/") or "/"

    def mount_point(self, mount: Mount) -> tuple[str, str] | None:
        """Where it is mounted: device and path in the filesystem below. One that lies on others is where they are.
        None: below is what this namespace does not show."""
        parent = self.mounts.get(mount.parent)
        while parent and parent.path == mount.path and parent.parent in self.mounts and parent.parent != parent.id:
            parent = self.mounts[parent.parent]
        return self.place(parent, mount.path) if parent else None


def is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def folder_users(volume: Mount) -> Iterator[str]:
    """Who else has what this mount of our namespace shows, or a part of it, mounted or open, as text. Raises
    OSError."""
    number = Path(volume.path).stat().st_dev
    processes, namespaces = _look()
    ours = Namespace(0, {mount.id: mount for mount in mounttable.read()})
    point = ours.mount_point(volume)
    everywhere = {id_: mount for namespace in namespaces.values() for id_, mount in namespace.mounts.items()}

    def shown(place: tuple[str, str] | None) -> bool:
        return place is not None and place[0] == volume.device and is_within(place[1], volume.root)

    for namespace in namespaces.values():
        for mount in namespace.mounts.values():
            if shown((mount.device, mount.root)) and (point is None or namespace.mount_point(mount) != point):
                yield f"{_name(namespace.process)} has it mounted at {mount.path}"
    yield from _loops(lambda path: shown(ours.resolve(path)))
    within: dict[tuple[str, str], bool] = {}
    for process, id_ in processes.items():
        for descriptor, link in _open_files(process):
            with _gone_meanwhile(process):
                seen_through = everywhere.get(_mount_id(process, descriptor))
                if seen_through:
                    used = shown(Namespace.place(seen_through, link))
                else:
                    # A mount that was taken away (umount --lazy) does not show which part of its filesystem it was.
                    used = volume.root == "/" and _status(process, descriptor).st_dev == number
                if used:
                    yield f"{_name(process)} has {link} open"
        for path in _paths(process, volume.device):
            # Most processes have mapped the same few libraries.
            if (id_, path) not in within:
                within[id_, path] = shown(namespaces[id_].resolve(path))
            if within[id_, path]:
                yield f"{_name(process)} works in {path}"


def device_loops(device: int) -> Iterator[str]:
    """Loop devices that are attached to a block device or a partition of it, as text: the kubelet makes one for each
    pod of a block volume. `device`: st_rdev. Raises OSError."""
    numbers = _with_partitions(device)
    for loop in Path("/sys/block").glob("loop*/loop"):
        with contextlib.suppress(FileNotFoundError):  # it was detached a moment ago
            backing = loopdevice.backing(Path("/dev", loop.parent.name))
            if backing and backing.block_device in numbers:
                yield f"device {loop.parent.name} is attached to it"


def device_users(device: int) -> Iterator[str]:
    """Processes that have a block device or a partition of it open, as text: to write, or in a pod. Who has it for
    himself (O_EXCL) is blockdevice.is_claimed's part; a program that writes to a raw disk need not. `device`: st_rdev.
    Raises OSError."""
    numbers = _with_partitions(device)
    processes, namespaces = _look()
    asked = {
        id_
        for namespace in namespaces.values()
        for id_, mount in namespace.mounts.items()
        if mount.filesystem.partition(".")[0] in _REMOTE
    }
    ours = _pod(os.getpid())
    for process in processes.keys() - {os.getpid()}:
        for descriptor, _ in _open_files(process):
            with _gone_meanwhile(process):
                if _mount_id(process, descriptor) in asked:
                    continue
                status = _status(process, descriptor)
                if stat.S_ISBLK(status.st_mode) and status.st_rdev in numbers:
                    writes = _flags(process, descriptor) & os.O_ACCMODE != os.O_RDONLY
                    # Who watches the disks of a node may have them open for long, and LVM, which we run, reads all.
                    if writes or _pod(process) not in ("", ours):
                        yield f"{_name(process)} has it open"


def _with_partitions(device: int) -> set[int]:
    folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    numbers = {device}
    for partition in folder.glob("*/partition"):
        major, _, minor = (partition.parent / "dev").read_text().strip().partition(":")
        numbers.add(os.makedev(int(major), int(minor)))
    return numbers


def _look() -> tuple[dict[int, str], dict[str, Namespace]]:
    """Each process' mount namespace, and these."""
    processes: dict[int, str] = {}
    namespaces: dict[str, Namespace] = {}
    whole = set()
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        process = int(entry.name)
        with _gone_meanwhile(process):
            id_ = str((entry / "ns/mnt").readlink())
            # One that lives in a folder of its own (chroot) sees a part of the mounts.
            root = (entry / "root").readlink() == Path("/")
            if id_ not in namespaces or (root and id_ not in whole):
                text = (entry / "mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
                namespaces[id_] = Namespace(process, {mount.id: mount for mount in mounttable.parse(text)})
                if root:
                    whole.add(id_)
            processes[process] = id_
    return processes, namespaces


@contextlib.contextmanager
def _gone_meanwhile(process: int) -> Iterator[None]:
    """A process, or what it had open, that ended while we looked, and a zombie, use nothing."""
    try:
        yield
    except PermissionError as error:
        if process not in _unseen:
            _unseen.add(process)
            log.warning("what %s uses can't be seen (%s): run privileged", _name(process), error.strerror)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EINVAL):
            raise


def _open_files(process: int) -> list[tuple[str, str]]:
    """Descriptors and what they are called. Sockets, pipes and the like are on no disk."""
    files = []
    with _gone_meanwhile(process):
        for descriptor in (_PROC / str(process) / "fd").iterdir():
            with _gone_meanwhile(process):
                link = str(descriptor.readlink())
                if link.startswith("/"):
                    files.append((descriptor.name, link))
    return files


def _mount_id(process: int, descriptor: str) -> int:
    match = _MNT_ID.search((_PROC / str(process) / "fdinfo" / descriptor).read_bytes())
    return int(match[1]) if match else -1


def _flags(process: int, descriptor: str) -> int:
    match = _FLAGS.search((_PROC / str(process) / "fdinfo" / descriptor).read_bytes())
    return int(match[1], 8) if match else os.O_RDWR


def _status(process: int, descriptor: str) -> os.stat_result:
    return (_PROC / str(process) / "fd" / descriptor).stat()


def _paths(process: int, device: str) -> set[str]:
    """Where it works, and the files of that device that it has mapped into its memory."""
    paths = set()
    with _gone_meanwhile(process):
        paths |= {str((_PROC / str(process) / name).readlink()) for name in ("cwd", "root")}
    major, _, minor = device.partition(":")
    number = f" {int(major):02x}:{int(minor):02x} "
    with _gone_meanwhile(process):
        text = (_PROC / str(process) / "maps").read_text(encoding="utf-8", errors="surrogateescape")
        if number in text:
            paths |= {line.split(None, 5)[5] for line in text.splitlines() if number in line and " /" in line}
    return paths


def _loops(shown: Callable[[str], bool]) -> Iterator[str]:
    """Loop devices keep their files open without a process."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it was detached a moment ago
            file = backing.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n")
            if shown(file):
                yield f"device {backing.parent.parent.name} is attached to {file}"


def _name(process: int) -> str:
    name = ""
    with contextlib.suppress(OSError):
        name = (_PROC / str(process) / "comm").read_text(errors="replace").strip()
    pod = _pod(process)
    return f"process {process} ({name})" + (f" of pod {pod}" if pod else "")


def _pod(process: int) -> str:
    """Its uid. Empty: it is in none."""
    with contextlib.suppress(OSError):
        if match := _POD.search((_PROC / str(process) / "cgroup").read_text()):
            return match[1].replace("_", "-")
    return ""
