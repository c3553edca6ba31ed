"""What stays with a container when the kubelet dies: sets it up, waits for it, writes down how it ended.

Started as `python -I -S shim.py FOLDER LIFELINE_FD` with the container's specification in FOLDER/spec.json. Standard
library only and nothing of ours imported, because one is started for each container.

The container is a process in a mount namespace of its own. Its root is an overlay: the host's root below, a tmpfs
above, so it runs the host's programs and can't change the host. The old root is let go with pivot_root, for a mount
that lingered in this namespace would keep a volume busy after the kubelet had unmounted it.

The lifeline is a pipe whose other end only the sandbox holds: when the sandbox ends, however it ends, the container is
killed. FOLDER/pid appears when the container runs (the shim's pid), FOLDER/exit when it has ended.
"""

# Importing pathlib takes as long as all the rest.
# ruff: noqa: PTH102, PTH103, PTH104, PTH116, PTH118, PTH120, PTH123, PTH211

import contextlib
import ctypes
import json
import os
import select
import signal
import stat
import sys
from typing import Any

CLONE_NEWNS = 0x20000
MS_NOSUID = 0x2
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 0x1, 0x20, 0x1000, 0x4000, 0x80000
MNT_DETACH = 2
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
# What a shell says of a program that it can't start; containerd's 128 means the same.
CANNOT_START = 128

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None)
    checked(libc.mount(*arguments), f"mount {source} on {target}")


def make_devices(root: str, devices: list[dict[str, Any]]) -> None:
    """Device nodes like those of the host. A container that has any has a /dev of its own, in which the host's usual
    ones are bound, as a runtime makes it."""
    dev = root + "/dev"
    mount("tmpfs", dev, "tmpfs", MS_NOSUID, "mode=755")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        with open(f"{dev}/{name}", "w"):
            pass
        mount(f"/dev/{name}", f"{dev}/{name}", flags=MS_BIND)
    os.symlink("/proc/self/fd", dev + "/fd")
    for device in devices:
        target = os.path.join(root, device["target"].lstrip("/"))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.mknod(target, stat.S_IFBLK | 0o660, os.stat(device["source"]).st_rdev)


def enter_root(folder: str, binds: list[dict[str, Any]], devices: list[dict[str, Any]]) -> None:
    """Give this process a mount namespace with a root of its own, the volumes bound into it."""
    checked(libc.unshare(CLONE_NEWNS), "unshare")
    # Slave: what the host unmounts meanwhile must not live on here.
    mount("none", "/", flags=MS_REC | MS_SLAVE)
    stage = os.path.join(folder, "root")
    os.makedirs(stage, exist_ok=True)
    mount("tmpfs", stage, "tmpfs")
    upper, work, root = (os.path.join(stage, name) for name in ("upper", "work", "merged"))
    for path in (upper, work, root):
        os.mkdir(path)
    mount("overlay", root, "overlay", data=f"lowerdir=/,upperdir={upper},workdir={work}")
    for system in ("/proc", "/sys", *(() if devices else ("/dev",))):
        mount(system, root + system, flags=MS_BIND | MS_REC)
    if devices:
        make_devices(root, devices)
    for bind in binds:
        target = os.path.join(root, bind["target"].lstrip("/"))
        os.makedirs(target, exist_ok=True)
        mount(bind["source"], target, flags=MS_BIND)
        # As containerd has runc do it: by what the pod says alone. Flags that the volume has on the node (ro, nosuid,
        # nodev, noexec) do not hold in the container. Those about access times do, for the kernel keeps them.
        mount("none", target, flags=MS_BIND | MS_REMOUNT | (MS_RDONLY if bind["read_only"] else 0))
    os.chdir(root)
    checked(libc.syscall(SYS_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    checked(libc.umount2(b".", MNT_DETACH), "unmount of the old root")
    os.chdir("/")


def become(spec: dict[str, Any], output: int) -> None:
    """Turn into the container's program, which writes to that descriptor."""
    enter_root(spec["folder"], spec["binds"], spec["devices"])
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.umask(0o022)
    os.chdir(spec["workdir"])
    os.setgroups(spec["groups"])
    if spec["group"] is not None:
        os.setgid(spec["group"])
    if spec["user"] is not None:
        os.setuid(spec["user"])
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execvpe(spec["argv"][0], spec["argv"], spec["environment"])


def write_atomically(path: str, text: str) -> None:
    with open(path + ".new", "w") as file:
        file.write(text)
    os.rename(path + ".new", path)


def main(folder: str, lifeline: int) -> None:
    with open(os.path.join(folder, "spec.json")) as file:
        spec = json.load(file)
    # The kubelet's words to the container, which the shim hands on: SIGTERM as it is, SIGINT for SIGKILL.
    words = {signal.SIGTERM: signal.SIGTERM, signal.SIGINT: signal.SIGKILL}
    signal.pthread_sigmask(signal.SIG_BLOCK, words)
    # Before the container is said to run: whoever then reads its log finds one.
    output = os.open(os.path.join(spec["folder"], "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(lifeline)
        try:
            become(spec, output)
        except OSError as error:
            os.write(2, f"cannot start container: {error}\n".encode())
            with open(os.path.join(folder, "start-error"), "w") as file:
                file.write(str(error))
        os._exit(CANNOT_START)
    os.close(output)
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(child, child)  # whoever of the two comes first
    for word, meaning in words.items():
        signal.signal(word, lambda *_, meaning=meaning: os.killpg(child, meaning))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, words)
    write_atomically(os.path.join(folder, "pid"), str(os.getpid()))
    process = os.pidfd_open(child)
    ready, _, _ = select.select([process, lifeline], [], [])
    if lifeline in ready:
        os.killpg(child, signal.SIGKILL)
    # Look before reaping: until then the number is the group's, afterwards it may be anybody's.
    select.select([process], [], [])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    write_atomically(os.path.join(folder, "exit"), str(os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
