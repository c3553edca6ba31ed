"""User-mode Linux: a whole kernel in one process, with the device-mapper that the host's kernel lacks.

Its root is the host's own tree through hostfs, so the project, its virtual environment and every tool are there, and no
image has to be built. /run, /tmp and /mnt are the guest's own, in its memory: nothing that a test writes there reaches
the host. What the host and the guest say to each other are files in one shared folder.

Needs linux.uml and its modules (Debian: user-mode-linux) and a C compiler, no KVM. It is for x86-64 only.

linux.uml 6.1 panics at its first process where the processor has more extended state than AVX-512 and PKRU (AMX has):
"ptrace set fp regs failed, errno = 14". xstate.c, which is compiled here and preloaded into every guest, completes what
it hands to the kernel; where nothing is missing it changes nothing. prefault.c is preloaded into all programs inside:
nearly all the time that one takes there is page faults, and most of them can be spared.

    guest = Guest(folder, ["python", "-m", "pytest", "..."], cwd=root)
    ...
    guest.kill()

A guest that is killed with a host file as its disk has had a power cut; another that is booted on the same file sees
what was written by then. So does one that is shown a copy of the file which was made while the guest was paused.
"""

import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

INSTALL = (
    "apt-get install user-mode-linux lvm2 thin-provisioning-tools kmod iproute2 util-linux e2fsprogs xfsprogs "
    "btrfs-progs cryptsetup-bin gcc libc6-dev"
)
_PROGRAMS = (
    "linux.uml",
    "gcc",
    "lvm",
    "thin_check",
    "modprobe",
    "ip",
    "taskset",
    "setpriv",
    "unshare",
    "cryptsetup",
    "mkfs.ext4",
    "mkfs.xfs",
    "mkfs.btrfs",
)

_MODULES = Path("/usr/lib/uml/modules")
_WANTED_MODULES = (
    *("dm-thin-pool", "dm-snapshot", "dm-flakey", "dm-delay", "dm-dust", "raid1", "dm-raid"),
    *("cbc", "hmac", "xts", "dm-crypt"),
    *("loop", "overlay", "xfs", "btrfs"),
)
"""raid1 by name, and what dm-crypt needs: the kernel asks for it through /lib/modules, where the modules of User-mode
Linux are not."""

PROJECT = Path(__file__).parents[2]

_XSTATE, _PREFAULT, _PREFAULT_LIBRARIES = (
    Path(__file__).with_name(name) for name in ("xstate.c", "prefault.c", "prefault_libraries.c")
)
_COMPILER = ("gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")

_OWN = ("/run", "/tmp", "/mnt")
_MEMORY = 2 << 30
_CONSOLE_TAIL = 60
_STOPPED = ("T", "Z", "X", "")
"""States of a process that does nothing (proc(5)), or is gone."""

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
export PATH={programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_CTYPE=C.UTF-8
export LD_PRELOAD={prefault}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null # it is there already if the kernel mounts it by itself
rm -f /dev/[pt]ty[0-9a-zS]* # 600 terminals that nobody has: each LVM command asks for the status of each
# hostfs takes a bare path, which is no option of a name: fsconfig(2), that mount uses from 2.39 on, refuses it.
LIBMOUNT_FORCE_MOUNT2=always mount --all --fstab {fstab}
ip link set lo up
mkdir -p /run/kernel/lib /run/lock
ln -s {modules} /run/kernel/lib/modules
modprobe --dirname /run/kernel --all {wanted}
cd {cwd} && {environment} {command}
echo $? >{folder}/exit-code
sync
echo o >/proc/sysrq-trigger # a minimal Debian has no halt
exec sleep infinity # the kernel would panic if its first process ended before
"""


class NoGuest(Exception):
    """No guest can be booted on this machine: says why, and what to do."""


def other_machine() -> bool:
    """Whether this is a machine that User-mode Linux was not made for."""
    return platform.machine() != "x86_64"


def missing() -> str:
    """Why no guest can be booted here, and what to do, as the end of a sentence; empty = one can."""
    if other_machine():
        return (
            f"User-mode Linux is for x86-64 only, and this is {platform.machine()}; "
            "as root, on a machine whose kernel has device-mapper: modprobe dm_mod && make test"
        )
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    absent = [program for program in _PROGRAMS if shutil.which(program, path=path) is None]
    if not absent and not _MODULES.is_dir():
        absent = [str(_MODULES)]
    return f"{', '.join(absent)} not found: {INSTALL}" if absent else ""


def compiled(source: Path, target: Path, *options: str) -> Path:
    """Compile a C program for this machine. Raises NoGuest with what the compiler says."""
    done = subprocess.run([*_COMPILER, *options, "-o", target, source], capture_output=True, text=True)
    if done.returncode:
        raise NoGuest(f"{source.name} can't be compiled ({INSTALL}):\n{done.stderr}")
    return target


def preloaded(source: Path, target: Path, *options: str) -> Path:
    """Compile a library to preload. Raises NoGuest."""
    return compiled(source, target, "-shared", "-fPIC", *options)


class Guest:
    """One boot. `folder` is shared with it under the same path; it gets the console and the command's exit code.
    Raises NoGuest."""

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        disks: Sequence[Path] = (),
        preload: Sequence[Path] = (),
        kernel_environment: Mapping[str, str] | None = None,
        processor: int = 0,
    ) -> None:
        """`preload`: libraries for the guest's kernel, which is a program of the host, and `kernel_environment` for
        them. `processor`: guests with other numbers run beside each other."""
        if absent := missing():
            raise NoGuest(absent)
        self.folder = folder
        self._console = folder / "console"
        libraries = [preloaded(_XSTATE, folder / "xstate.so"), *preload, *_preloaded_already()]
        # Each needs the one before it, so that the first is loaded behind what the libraries of a program need.
        first = preloaded(_PREFAULT_LIBRARIES, folder / "libraries.so", "-Wl,-z,now")
        between = preloaded(Path(os.devnull), folder / "between.so", "-Wl,--no-as-needed", str(first), "-x", "c")
        prefault = preloaded(_PREFAULT, folder / "prefault.so", "-Wl,--no-as-needed", str(between))
        init = folder / "init"
        init.write_text(_init(folder, command, cwd, environment or {}, prefault))
        init.chmod(0o755)
        kernel = [
            *("env", f"LD_PRELOAD={os.pathsep.join(map(str, libraries))}"),
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
        processor = processors[(int(worker) + processor) % len(processors)]
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                [*_TIED_TO_US, "taskset", "--cpu-list", str(processor), *kernel],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(kernel_environment or {}), "TMPDIR": str(_memory_folder(folder))},
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

    def pause(self) -> None:
        """The guest stands still until `resume`, and no file of the host is written through hostfs."""
        # The others of its processes wait for this one, sooner or later. A signal to them would be taken for one of its
        # programs' own.
        for kernel in self._kernel():
            os.kill(kernel, signal.SIGSTOP)
            while _status(kernel, "State")[:1] not in _STOPPED:
                time.sleep(0.001)

    def resume(self) -> None:
        for kernel in self._kernel():
            os.kill(kernel, signal.SIGCONT)

    def _kernel(self) -> list[int]:
        """Its first process; none when it is gone."""
        return [pid for pid in _below(self._process.pid) if _status(pid, "Name") == "linux.uml"][:1]

    def kill(self) -> None:
        """Pull the plug."""
        if self.running:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _below(pid: int) -> Iterator[int]:
    """All that it started, and what that started."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _read(path).split():
            yield int(child)
            yield from _below(int(child))


def _status(pid: int, name: str) -> str:
    """A line of /proc/PID/status; empty when the process is gone."""
    lines = (line.partition(":") for line in _read(Path(f"/proc/{pid}/status")).splitlines())
    return next((value.strip() for key, _, value in lines if key == name), "")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _preloaded_already() -> list[str]:
    """What this process was told to preload (LD_PRELOAD, ld.so(8): spaces or colons)."""
    return os.environ.get("LD_PRELOAD", "").replace(":", " ").split()


def _init(folder: Path, command: Sequence[str], cwd: Path, environment: Mapping[str, str], prefault: Path) -> str:
    """The first process of the guest. What is needed of the host's /tmp and the like is mounted again over the guest's
    own: a fresh clone may well be there."""
    needed = (str(PROJECT), str(cwd), sys.prefix, sys.base_prefix, str(folder))
    kept = [path for path in needed if path.startswith(tuple(f"{hidden}/" for hidden in _OWN))]
    fstab = folder / "fstab"
    fstab.write_text(
        "".join(f"tmpfs {hidden} tmpfs size=80%\n" for hidden in _OWN)
        + "".join(f"host {each} hostfs {each},X-mount.mkdir\n" for each in map(_in_fstab, dict.fromkeys(kept)))
    )
    return _INIT.format(
        programs=shlex.quote(str(Path(sys.executable).parent)),  # kubectl is installed there
        prefault=shlex.quote(str(prefault)),
        fstab=shlex.quote(str(fstab)),
        modules=_MODULES,
        wanted=" ".join(_WANTED_MODULES),
        cwd=shlex.quote(str(cwd)),
        environment=" ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items()),
        command=shlex.join(command),
        folder=shlex.quote(str(folder)),
    )


def _in_fstab(path: str) -> str:
    """As a field of fstab(5)."""
    return path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")


def _memory_folder(folder: Path) -> Path:
    """Where the file goes that is the guest's memory: shared memory if it is large enough, which it often is not in a
    container."""
    shared = Path("/dev/shm")
    if shared.is_dir():
        room = os.statvfs(shared)
        if room.f_bavail * room.f_frsize > _MEMORY:
            return shared
    return folder
