"""A volume that somebody still has mounted or open is not cleaned, and the event names who that is."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.static import cleanupprocess
from daemon.static.cleanupprocess import CleanupTarget
from daemon.static.configuration import BLOCK, FILESYSTEM
from daemon.static.metrics import ProcessCounts
from host import loopdevice, usage
from tests.node.test_static_deletion import Disks, disks, holds_data, intact, node
from tests.unit.daemon.static.deleterharness import CLASS, GONE, HOST_DIR, DeleterHarness, configured
from tests.waiting import until

__all__ = ["disks", "node"]

READY = "print('ready', flush=True); import sys; sys.stdin.read()"


@contextlib.contextmanager
def process(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """Lives until the context ends; it said that it has what it is to have."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout
            assert running.stdout.readline() == "ready\n"
            yield running
        finally:
            running.kill()


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"{script}; {READY}")


async def refused(node: DeleterHarness, disks: Disks, *words: str) -> None:
    await node.create("pv", f"{HOST_DIR}/one")
    await node.clean_all(disks.configuration)
    ((about, reason, message),) = await node.recorded_events()
    assert (about, reason) == ("pv", "VolumeFailedDelete")
    assert "is in use, " in message
    for word in words:
        assert word in message
    assert intact(disks.one)


async def cleaned(node: DeleterHarness, disks: Disks) -> None:
    await node.clean_all(disks.configuration)
    await node.pass_over(disks.configuration)
    assert await node.phase("pv") == GONE
    assert list(disks.one.iterdir()) == []


@pytest.mark.parametrize("part", ["", "part"])
async def test_mounted_in_a_pods_folder(node: DeleterHarness, disks: Disks, tmp_path: Path, part: str) -> None:
    (disks.one / "part").mkdir()
    pod = tmp_path / "kubelet"
    pod.mkdir()
    subprocess.run(["mount", "--bind", disks.one / part, pod], check=True)
    try:
        await refused(node, disks, f"has it mounted at {pod}")
    finally:
        subprocess.run(["umount", pod], check=True)
    await cleaned(node, disks)


async def test_mounted_in_a_container_that_the_kubelet_lost(node: DeleterHarness, disks: Disks, tmp_path: Path) -> None:
    """Nothing of it is in our own mount table."""
    inside = tmp_path / "container"
    inside.mkdir()
    script = f"mount --bind {disks.one} {inside}; umount {disks.one}; echo ready; exec cat"
    with process("unshare", "--mount", "--propagation", "private", "sh", "-c", script) as container:
        await refused(node, disks, f"process {container.pid} (cat)", f"has it mounted at {inside}")
    await cleaned(node, disks)


async def test_a_namespace_that_is_only_a_copy_uses_nothing(node: DeleterHarness, disks: Disks) -> None:
    """As many services of systemd have one."""
    with process("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec cat"):
        await node.create("pv", f"{HOST_DIR}/one")
        await cleaned(node, disks)


async def test_open_in_a_process(node: DeleterHarness, disks: Disks) -> None:
    with process(*python(f"kept = open({str(disks.one / 'data')!r})")) as user:
        await refused(node, disks, f"process {user.pid} (", f"has {disks.one / 'data'} open")
    await cleaned(node, disks)


async def test_open_and_removed(node: DeleterHarness, disks: Disks) -> None:
    path = str(disks.one / "gone")
    with process(*python(f"import os; kept = open({path!r}, 'w'); os.unlink({path!r})")):
        await refused(node, disks, f"has {path} (deleted) open")


async def test_a_process_works_in_it(node: DeleterHarness, disks: Disks) -> None:
    with process(*python(f"import os; os.chdir({str(disks.one)!r})")):
        await refused(node, disks, f"works in {disks.one}")


async def test_mapped_into_memory(node: DeleterHarness, disks: Disks) -> None:
    path = str(disks.one / "data")
    script = f"import mmap; file = open({path!r}, 'r+b'); kept = mmap.mmap(file.fileno(), 0); file.close()"
    with process(
        *python(
            f"{script}; import os; os.close(next(n for n in map(int, os.listdir('/proc/self/fd')) "
            f"if n > 2 and os.path.exists(f'/proc/self/fd/{{n}}') "
            f"and os.readlink(f'/proc/self/fd/{{n}}') == {path!r}))"
        )
    ):
        await refused(node, disks, f"works in {path}")


async def test_a_loop_device_over_a_file_in_it(node: DeleterHarness, disks: Disks) -> None:
    image = disks.one / "image"
    image.write_bytes(bytes(1 << 16))
    with loopdevice.attached(image) as device:
        await refused(node, disks, f"device {device.name} is attached to {image}")


async def test_files_beside_it_on_the_same_filesystem_are_not_in_it(
    node: DeleterHarness, disks: Disks, tmp_path: Path
) -> None:
    """Folders of one disk, each bound onto itself."""
    for name in ("three", "threefold"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        (tmp_path / "disk" / name / "data").write_text("data")
    (disks.folder / "three").mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "disk" / "three", disks.folder / "three"], check=True)
    beside = str(tmp_path / "disk" / "threefold" / "data")
    with process(*python(f"kept = open({beside!r})")):
        await node.create("pv", f"{HOST_DIR}/three")
        await node.clean_all(disks.configuration)
        await node.pass_over(disks.configuration)
    assert await node.phase("pv") == GONE


async def raw(node: DeleterHarness, disks: Disks) -> Path:
    """The device of a released block volume."""
    device = disks.device("disk")
    (disks.folder / "disk").symlink_to(device)
    await node.create("pv", f"{HOST_DIR}/disk", mode=BLOCK)
    return device


async def refused_raw(node: DeleterHarness, disks: Disks, device: Path, *words: str) -> None:
    await node.clean_all(disks.configuration)
    ((about, _, message),) = await node.recorded_events()
    assert about == "pv"
    assert f"device {device} is in use, " in message
    for word in words:
        assert word in message
    assert holds_data(device)


async def cleaned_raw(node: DeleterHarness, disks: Disks, device: Path) -> None:
    await node.clean_all(disks.configuration)
    await node.pass_over(disks.configuration)
    assert await node.phase("pv") == GONE
    assert not holds_data(device)


async def test_a_raw_device_open_in_a_process(node: DeleterHarness, disks: Disks) -> None:
    """As of a container that outlived its pod, or a cleaner that outlived its daemon: nothing has to claim a device to
    write to it."""
    device = await raw(node, disks)
    with process(*python(f"kept = open({str(device)!r}, 'r+b')")) as user:
        await refused_raw(node, disks, device, f"process {user.pid} (python")
    await cleaned_raw(node, disks, device)


async def test_a_raw_device_open_by_another_name(node: DeleterHarness, disks: Disks, tmp_path: Path) -> None:
    """A container has it where its pod says, as a node of its own."""
    device = await raw(node, disks)
    name = tmp_path / "data"
    os.mknod(name, 0o60600, device.stat().st_rdev)
    with process(*python(f"kept = open({str(name)!r}, 'r+b')")) as user:
        name.unlink()
        await refused_raw(node, disks, device, f"process {user.pid} (python")
    await cleaned_raw(node, disks, device)


async def test_a_raw_device_that_is_only_watched(node: DeleterHarness, disks: Disks) -> None:
    device = await raw(node, disks)
    with process(*python(f"kept = open({str(device)!r}, 'rb')")):
        await cleaned_raw(node, disks, device)


async def test_a_raw_device_that_the_kubelet_holds_for_a_pod(
    node: DeleterHarness, disks: Disks, tmp_path: Path
) -> None:
    device = await raw(node, disks)
    bound = tmp_path / "bound"
    bound.touch()
    subprocess.run(["mount", "--bind", device, bound], check=True)
    loop = subprocess.run(["losetup", "--find", "--show", bound], check=True, capture_output=True, text=True).stdout
    try:
        await refused_raw(node, disks, device, f"device {Path(loop.strip()).name} is attached to it")
    finally:
        subprocess.run(["losetup", "--detach", loop.strip()], check=True)
        subprocess.run(["umount", bound], check=True)
    await cleaned_raw(node, disks, device)


async def test_the_cleaner_of_a_daemon_that_was_killed(node: DeleterHarness, disks: Disks) -> None:
    """It goes on, and would end in the next user's volume."""
    device = await raw(node, disks)
    with process("sh", "-c", f"exec 7>>{device}; echo ready; read end"):
        await refused_raw(node, disks, device, "(sh) has it open")
    await cleaned_raw(node, disks, device)


@pytest.mark.parametrize("entry", ["disk", "one"])
async def test_two_daemons_do_not_clean_one_volume(
    node: DeleterHarness, disks: Disks, tmp_path: Path, entry: str
) -> None:
    """While a DaemonSet is rolled out, or because the first does not end: what the slower one does would come after the
    volume was given away."""
    trace = tmp_path / "cleanings"
    script = ("sh", "-c", f"echo cleaned >> {trace}; while [ ! -e {tmp_path}/end ]; do sleep 0.01; done")
    configuration = configured(disks.folder, cleaner=script, folder_cleaner=("/scripts/fsclean.sh",))
    if entry == "disk":
        (disks.folder / "disk").symlink_to(disks.device("disk"))
    else:
        held = cleanupprocess._run

        async def slowly(*arguments: object, **more: object) -> None:
            trace.write_text("cleaned\n")
            await until((tmp_path / "end").exists)
            await held(*arguments, **more)  # type: ignore[arg-type]

    await node.create("pv", f"{HOST_DIR}/{entry}", mode=BLOCK if entry == "disk" else FILESYSTEM)
    other = node.restarted()
    with pytest.MonkeyPatch.context() as patched:
        if entry == "one":
            patched.setattr(cleanupprocess, "_run", slowly)
        # Both have looked whether anybody uses it, and nobody did.
        patched.setattr(usage, "device_users", lambda *_: iter(()))
        patched.setattr(usage, "folder_users", lambda *_: iter(()))
        await node.pass_over(configuration)
        await until(trace.exists)
        await other.clean_all(configuration)
        assert other.deleter.counts() == ProcessCounts(running=0, succeeded=0, failed=1)
        ((_, _, message),) = await other.recorded_events()
        assert "another program has locked it" in message
        (tmp_path / "end").touch()
        await until(lambda: not node.deleter.counts().running)
    assert trace.read_text() == "cleaned\n"
    await node.pass_over(configuration)
    assert await node.phase("pv") == GONE


async def test_the_lock_of_a_cleaner_outlives_its_daemon(disks: Disks, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    device = disks.device("disk")
    target = CleanupTarget(device, device, BLOCK)
    configuration = configured(disks.folder, cleaner=("sh", "-c", "ls -l /proc/$$/fd"))
    await cleanupprocess.clean("pv", target, configuration.classes[CLASS], 60)
    assert f"-> {device}" in caplog.text
