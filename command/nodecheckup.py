"""The check-up of a node: what the daemon and the kubelet need to be there. Each check asks the thing itself (a device
is opened, the driver is run), because what is configured is not what is."""

import asyncio
import os
import re
import shutil
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from pathlib import Path

import aiohttp
from grpclib.client import Channel

from command import thisnode
from command.checkup import Finding, counted, ok, unknown, wrong
from contract.filesystems import FILESYSTEMS
from contract.names import CSI_DRIVER, DRIVER_FOLDER, DRIVER_NAME, NAMESPACE
from contract.parameters import ENCRYPTION
from daemon.backends import volumegroups
from daemon.backends.lvmgroups import unlike_sectors
from daemon.cluster.storagemonitor import lacking, noticed
from daemon.csi import server
from daemon.csi.client import apart
from daemon.csi.proto.csi_grpc import IdentityStub
from daemon.csi.proto.csi_pb2 import GetPluginInfoRequest, GetPluginInfoResponse
from daemon.csi.registration import SHORTER_ROOT
from daemon.errors import VolumeError
from daemon.settings import Settings
from daemon.storage.deviceclasses import BINDMOUNT, LOOP, LVM, DeviceSelector
from host import cgroup, filesystem, mounttable, presence
from host.command import CommandError, MissingTool, run
from host.mounttable import Mount
from service.rootsocket import LONGEST_PATH, SocketPathTooLong

_LVM_TOOLS = ("lvm", "thin_check", "thin_ls")
_FILESYSTEM_TOOLS = (
    "blkid",
    "mount",
    "umount",
    *(each for facts in filesystem.FACTS.values() for each in facts.programs),
)
_DEADLINE = 10.0


async def findings(here: Settings) -> AsyncGenerator[Finding, None]:
    """Each as soon as it is known, in their order. What may take long is asked at the same time."""
    may_look = rights(os.geteuid())
    yield may_look
    kinds = {each.kind for each in here.classes.values()}
    for finding in _of_kernel(kinds):
        yield finding
    yield tools(kinds, shutil.which)
    if may_look.remedy:
        return  # what follows would only repeat that we are not root
    asked = [
        storage(here),
        _one(asyncio.to_thread(lambda: propagation(mounttable.read(), here.kubelet_root))),
        _one(asyncio.to_thread(listening, here.socket, here.namespace)),
        *(_one(driver(each)) for each in here.plugin_dirs if here.flex_volume),
        *([_one(csi_driver(here.kubelet_root, here.namespace))] if here.csi else []),
        daemon(here),
    ]
    answers = [asyncio.create_task(each) for each in asked]
    try:
        for answer in answers:
            for finding in await answer:
                yield finding
    finally:
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*answers, return_exceptions=True)


async def _one(finding: Awaitable[Finding]) -> list[Finding]:
    return [await finding]


def _of_kernel(kinds: set[str]) -> Iterable[Finding]:
    if LVM in kinds:
        yield device_mapper()
        yield from lvm_modules(_loaded("/proc/modules"), _built_in())
    if LOOP in kinds:
        yield loop_devices()
    if kinds != {BINDMOUNT}:
        yield filesystems(_registered(), _built_in())
        yield io_limits(cgroup.ROOT)
        yield encryption(_loaded("/proc/modules") | _built_in(), shutil.which)


def rights(uid: int) -> Finding:
    if uid:
        remedy = "sudo elastic-local doctor; or for the cluster: elastic-local doctor --cluster"
        return wrong("rights", "not root, so most of this node can't be seen", remedy)
    return ok("rights", "root")


def device_mapper() -> Finding:
    return _control("device-mapper", "/dev/mapper/control", "dm_mod")


def _control(what: str, device: str, module: str) -> Finding:
    """Whether the kernel has it, which its control device shows."""
    try:
        os.close(os.open(device, os.O_RDWR))
    except OSError as error:
        return wrong(f"kernel: {what}", f"{device}: {error.strerror}", f"modprobe {module}")
    return ok(f"kernel: {what}", "there")


def lvm_modules(loaded: set[str], available: set[str]) -> Iterable[Finding]:
    for module, purpose in (
        ("dm_thin_pool", "thin volumes"),
        ("dm_raid", "raid1"),
        ("dm_snapshot", "copies of volumes in use"),
        ("dm_mirror", "pvmove"),
    ):
        check = f"kernel: {purpose}"
        if module in loaded | available:
            yield ok(check, f"{module} is there")
        else:
            yield unknown(check, f"{module} is neither loaded nor to be found", f"for {purpose}: modprobe {module}")


def loop_devices() -> Finding:
    return _control("loop devices", "/dev/loop-control", "loop")


def filesystems(registered: str, available: set[str]) -> Finding:
    known = {line.split()[-1] for line in registered.splitlines() if line.strip()} | available
    absent = [kind for kind in FILESYSTEMS if kind not in known]
    if "ext4" in absent:
        return wrong("kernel: filesystems", "no ext4, which volumes have by default", "modprobe ext4")
    if absent:
        return unknown(
            "kernel: filesystems", f"no {', '.join(absent)}", f"for such classes: modprobe -a {' '.join(absent)}"
        )
    return ok("kernel: filesystems", ", ".join(FILESYSTEMS))


def io_limits(root: Path) -> Finding:
    try:
        cgroup.check_version(root)
    except cgroup.NoIoController as why:
        return unknown("kernel: I/O limits", str(why), "for classes with I/O limits: as it says")
    return ok("kernel: I/O limits", "control groups version 2")


def encryption(modules: set[str], which: Callable[[str], str | None]) -> Finding:
    check = "encryption"
    for_classes = f"for classes with {ENCRYPTION}"
    if which("cryptsetup") is None:
        missing = MissingTool("cryptsetup")
        return unknown(check, "cryptsetup is missing", f"{for_classes}: apt-get install {missing.package}")
    if "dm_crypt" not in modules:
        return unknown(check, "dm_crypt is neither loaded nor to be found", f"{for_classes}: modprobe dm_crypt")
    return ok(check, "cryptsetup and dm_crypt are there")


def tools(kinds: set[str], which: Callable[[str], str | None]) -> Finding:
    programs = (*(_LVM_TOOLS if LVM in kinds else ()), *(_FILESYSTEM_TOOLS if kinds != {BINDMOUNT} else ()))
    absent = [MissingTool(program) for program in programs if which(program) is None]
    if not absent:
        return ok("tools", "all there")
    packages = sorted({each.package for each in absent if each.package})
    return wrong(
        "tools", f"missing: {', '.join(each.program for each in absent)}", f"apt-get install {' '.join(packages)}"
    )


async def storage(here: Settings) -> list[Finding]:
    """One finding for each device class. That a node lacks some of several is nothing wrong."""
    try:
        inventory = await thisnode.backend(here).inspect()
    except (VolumeError, CommandError) as error:
        return [wrong("storage", str(error), "see the log of this node's daemon")]
    absent = lacking(inventory, here.classes)
    hidden = {each.pool for each in inventory.unavailable}
    judged = wrong if len(absent) == len(here.classes) else unknown
    results = []
    for name, each in here.classes.items():
        check = f"storage ({each.kind})" if len(here.classes) == 1 else f"storage ({each.kind}, device class {name})"
        if problem := absent.get(name):
            if hidden & {each.pool, each.group}:  # it exists: another in its place would stand in its way
                results.append(wrong(check, problem, "as it says, then elastic-local doctor again"))
                continue
            remedy = (
                f"elastic-local vg create {each.group} DEVICE..." if each.kind == LVM else f"mkdir -p {each.folder}"
            )
            if each.devices:
                problem = f"{problem}. {await planned_group(here.data_dir, each.group, each.devices)}"
            results.append(judged(check, problem, remedy))
        else:
            count = sum(volume.pool == each.pool for volume in inventory.volumes)
            results.append(ok(check, f"{each.pool} with {counted(count, 'volume')}"))
    results += [
        wrong(f"storage: all of {each.pool}", each.reason, "as it says, then elastic-local doctor again")
        for each in inventory.unavailable
        if each.reason not in absent.values()
    ]
    results += [wrong("storage", message, commands_in(message)) for message in noticed(inventory, here.classes)]
    if inventory.damaged:
        names = ", ".join(each.name for each in inventory.damaged)
        results.append(wrong("records", f"volumes with a damaged record: {names}", "elastic-local volumes"))
    return results


async def planned_group(data_dir: Path, group: str, selector: DeviceSelector) -> str:
    """What the daemon will make the group of, if it may."""
    if why := await volumegroups.cut_off(data_dir, group):
        return why
    file = volumegroups.seen_file(data_dir, group)
    if presence.exists(file):
        return f"This node had it, so it makes no other in its place: bring back its disks, or remove {file} to let it"
    taken = volumegroups.chosen(selector, await volumegroups.look_at_all())
    if not taken:
        return "No empty disk of this node is what its device class selects"
    if why := unlike_sectors({disk.path: disk.sector_size for disk in taken}):
        return f"The daemon does not make it: {why}; or let its `devices` select one kind"
    return f"The daemon makes it of {', '.join(disk.path for disk in taken)}"


def commands_in(message: str) -> str:
    """The commands that an explanation names."""
    return "; or ".join(re.findall(r"`([^`]+)`", message))


def propagation(mounts: list[Mount], kubelet_root: Path) -> Finding:
    """What the daemon mounts below the kubelet's folder must be seen by the kubelet and by containers."""
    above = [mount for mount in mounts if kubelet_root.is_relative_to(mount.path)]
    home = max(enumerate(above), key=lambda entry: (len(entry[1].path), entry[0]))[1]  # the last one hides the others
    if home.shared:
        return ok("mount propagation", f"{home.path} is shared")
    return wrong(
        "mount propagation",
        f"what is mounted below {kubelet_root} stays in this mount namespace, because {home.path} is not shared",
        f"mount --make-rshared {home.path}; in a pod: mountPropagation: Bidirectional for {kubelet_root}",
    )


def listening(path: Path, namespace: str = NAMESPACE) -> Finding:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_DEADLINE)
            probe.connect(str(path))
    except OSError as error:
        return wrong(
            "socket",
            f"nobody answers at {path} ({error.strerror or error})",
            f"kubectl -n {namespace} get pods -l app.kubernetes.io/component=daemon -o wide",
        )
    return ok("socket", f"the daemon answers at {path}")


async def driver(plugin_dir: Path) -> Finding:
    path = plugin_dir / DRIVER_FOLDER / DRIVER_NAME
    install = f"elastic-local flexdriver install --plugin-dir {plugin_dir}"
    if not os.access(path, os.X_OK):
        return wrong("driver", f"there is no executable {path}", install)
    try:
        answer = await run(str(path), "init", deadline=_DEADLINE)
    except (CommandError, OSError) as error:
        return wrong("driver", f"it does not run: {error}", install)
    if '"Success"' not in answer.stdout:
        return wrong("driver", f"it answered: {answer.stdout.strip()}", install)
    return ok("driver", f"{path} answers")


async def csi_driver(kubelet_root: Path, namespace: str = NAMESPACE) -> Finding:
    """Whether the kubelet registered it, the daemon says in its readiness."""
    path, registration = server.driver_socket(kubelet_root), server.registration_socket(kubelet_root)
    remedy = f"kubectl -n {namespace} get pods -l app.kubernetes.io/component=daemon -o wide"
    for each in (path, registration):
        if len(os.fsencode(each)) > LONGEST_PATH:
            return wrong("CSI driver", f"its socket can't be had: {SocketPathTooLong(each)}", SHORTER_ROOT)
    try:
        answer = await apart(_plugin_info(str(path)))
    except Exception as error:  # of what is cut off in its midst grpclib says so with an AssertionError, among others
        return wrong("CSI driver", f"it does not answer at {path} ({str(error) or type(error).__name__})", remedy)
    if answer.name != CSI_DRIVER:
        return wrong("CSI driver", f"another driver, {answer.name[:100]!r}, answers at {path}", f"rm {path}")
    if not presence.exists(registration):
        return wrong("CSI driver", f"{registration} is gone", "restart the daemon's pod")
    return ok("CSI driver", f"{path} answers")


async def _plugin_info(path: str) -> GetPluginInfoResponse:
    channel = Channel(path=path)
    try:
        async with asyncio.timeout(_DEADLINE):
            return await IdentityStub(channel).GetPluginInfo(GetPluginInfoRequest())
    finally:
        channel.close()


async def daemon(here: Settings) -> list[Finding]:
    """What the daemon says of itself: whether the kubelet called the driver is among it."""
    host = here.listen_host if here.listen_host not in ("", "0.0.0.0", "::") else "127.0.0.1"  # noqa: S104
    address = f"http://{f'[{host}]' if ':' in host else host}:{here.listen_port}/readyz?verbose"
    try:
        timeout = aiohttp.ClientTimeout(total=_DEADLINE)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(address) as response:
            report = await response.text(errors="replace")  # it may be another program that answers there
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        why = str(error) or type(error).__name__
        return [
            unknown(
                "daemon",
                f"{address}: {why}",
                f"kubectl -n {here.namespace} exec POD -c daemon -- elastic-local doctor",
            )
        ]
    return readiness(report)


def readiness(report: str) -> list[Finding]:
    """The lines of /readyz?verbose. Each names its own remedy."""
    results = []
    for line in report.splitlines():
        if line.startswith("[+]"):
            name, _, message = line[3:].partition(" ok")
            results.append(ok(f"daemon: {name}", f"ok{message}"))
        elif line.startswith("[-]"):
            name, _, message = line[3:].partition(": ")
            results.append(wrong(f"daemon: {name}", message, "as it says; then see the log of this node's daemon"))
    return results or [wrong("daemon", f"it answered: {report.strip()[:200]}", "is LISTEN_ADDRESS another program's?")]


def _registered() -> str:
    return Path("/proc/filesystems").read_text()


def _loaded(path: str) -> set[str]:
    try:
        return {line.split()[0] for line in Path(path).read_text().splitlines() if line.strip()}
    except OSError:
        return set()


def _built_in() -> set[str]:
    """Modules that the running kernel has built in or could load."""
    folder = Path("/lib/modules", os.uname().release)
    modules: set[str] = set()
    for name in ("modules.builtin", "modules.dep"):
        try:
            lines = (folder / name).read_text().splitlines()
        except OSError:
            continue
        modules |= {Path(line.split(":")[0]).name.split(".ko")[0].replace("-", "_") for line in lines}
    return modules
