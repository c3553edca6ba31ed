"""User-mode Linux: a whole kernel in one process, with the device-mapper that the host's kernel lacks.

Its root is the host's own tree through hostfs, so the project, its virtual environment and every tool are there, and no
image has to be built. /run, /tmp and /mnt are the guest's own, in its memory: nothing that a test writes there reaches
the host. What the host and the guest say to each other are files in one shared folder.

Needs linux.uml and its modules (Debian: user-mode-linux), no KVM.

    guest = Guest(folder, ["python", "-m", "pytest", "..."], cwd=root)
    ...
    guest.kill()

A guest that is killed with a host file as its disk has had a power cut; another that is booted on the same file sees
what was written by then.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

INSTALL = (
    "apt-get install user-mode-linux lvm2 thin-provisioning-tools kmod iproute2 util-linux e2fsprogs xfsprogs "
    "btrfs-progs procps"
)
_PROGRAMS = (
    "linux.uml",
    "lvm",
    "thin_check",
    "modprobe",
    "ip",
    "taskset",
    "setpriv",
    "unshare",
    "mkfs.ext4",
    "mkfs.xfs",
    "mkfs.btrfs",
)

_MODULES = Path("/usr/lib/uml/modules")
_WANTED_MODULES = ("dm-thin-pool", "dm-snapshot", "dm-flakey", "raid1", "dm-raid", "loop", "overlay", "xfs", "btrfs")
"""raid1 by name: the kernel asks for it through /lib/modules, where the modules of User-mode Linux are not."""

PROJECT = Path(__file__).parents[2]

_OWN = ("/run", "/tmp", "/mnt")
_MEMORY = 2 << 30
_CONSOLE_TAIL = 60

_TIED_TO_US = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
    *(() if os.geteuid() == 0 else ("--map-root-user",)),
    *("sh", "-c", '"$@"; exit', "guest"),
)
"""The guest is several processes, and none may outlive us, even when we are killed: they are a process namespace of
their own, whose first process is killed when we go, and the kernel takes the others with it. That first one is a shell,
because the first process of a namespace can't abort, which is what User-mode Linux does in a panic."""

_INIT = """\
#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null # it is there already if the kernel mounts it by itself
for folder in {own}; do mount -t tmpfs -o size=80% tmpfs $folder; done
for folder in {kept}; do mkdir -p "$folder"; mount -t hostfs -o "$folder" host "$folder"; done
ip link set lo up
mkdir -p /run/kernel/lib /run/lock
ln -s {modules} /run/kernel/lib/modules
for module in {wanted}; do modprobe --dirname /run/kernel $module; done
cd {cwd} && {environment} {command}
echo $? >{folder}/exit-code
sync
halt --force --poweroff
"""


def missing() -> str:
    """What has to be installed before a guest can be booted, as an order to the reader; empty = nothing."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    absent = [program for program in _PROGRAMS if shutil.which(program, path=path) is None]
    if not absent and not _MODULES.is_dir():
        absent = [str(_MODULES)]
    return f"{', '.join(absent)} not found: {INSTALL}" if absent else ""


class Guest:
    """One boot. `folder` is shared with it under the same path; it gets the console and the command's exit code."""

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        disks: Sequence[Path] = (),
    ) -> None:
        self.folder = folder
        self._console = folder / "console"
        init = folder / "init"
        init.write_text(_init(folder, command, cwd, environment or {}))
        init.chmod(0o755)
        kernel = [
            "linux.uml",
            f"mem={_MEMORY >> 20}M",
            "rootfstype=hostfs",
            "rootflags=/",
            "rw",
            f"init={init}",
            "con0=fd:0,fd:1",
            "con=null",
            "quiet",
            f"uml_dir={folder}/",
            *(f"ubd{number}={disk}" for number, disk in enumerate(disks)),
        ]
        # Unpinned, the guest's one processor wanders: 2.5 times slower, and erratic. Guests of several workers spread.
        processors = sorted(os.sched_getaffinity(0))
        worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw") or os.getpid()
        processor = processors[int(worker) % len(processors)]
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                [*_TIED_TO_US, "taskset", "--cpu-list", str(processor), *kernel],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(_memory_folder(folder))},
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Of the command; None while it runs, and for ever when the kernel panicked or was killed."""
        file = self.folder / "exit-code"
        return int(file.read_text()) if file.exists() and file.read_text().strip() else None

    def console(self) -> str:
        """The last lines that kernel and command printed."""
        return "\n".join(self._console.read_text(errors="replace").splitlines()[-_CONSOLE_TAIL:])

    def wait(self, seconds: float) -> int | None:
        """Wait for the guest's end. Raises subprocess.TimeoutExpired."""
        self._process.wait(seconds)
        return self.exit_code

    def kill(self) -> None:
        """Pull the plug."""
        if self.running:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _init(folder: Path, command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> str:
    """The first process of the guest. What is needed of the host's /tmp and the like is mounted again over the guest's
    own: a fresh clone may well be there."""
    needed = (str(PROJECT), str(cwd), sys.prefix, sys.base_prefix, str(folder))
    kept = [path for path in needed if path.startswith(tuple(f"{hidden}/" for hidden in _OWN))]
    return _INIT.format(
        own=" ".join(_OWN),
        kept=" ".join(shlex.quote(path) for path in dict.fromkeys(kept)),
        modules=_MODULES,
        wanted=" ".join(_WANTED_MODULES),
        cwd=shlex.quote(str(cwd)),
        environment=" ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items()),
        command=shlex.join(command),
        folder=shlex.quote(str(folder)),
    )


def _memory_folder(folder: Path) -> Path:
    """Where the file goes that is the guest's memory: shared memory if it is large enough, which it often is not in a
    container."""
    shared = Path("/dev/shm")
    if shared.is_dir():
        room = os.statvfs(shared)
        if room.f_bavail * room.f_frsize > _MEMORY:
            return shared
    return folder
