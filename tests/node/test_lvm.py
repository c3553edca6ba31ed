"""The library against real LVM."""

import fcntl
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from host import blockdevice, command
from host.command import Completed
from lvm import (
    AlreadyExists,
    BadName,
    BeingChecked,
    HealthStatus,
    InUse,
    LogicalVolume,
    Lvm,
    LvmError,
    LvmNotFound,
    NoSpace,
    TagsDiffer,
    TimedOut,
    names,
)
from lvm.errors import ThinDeviceLeft
from tests.node.conftest import ByHand, MakeDisks
from tests.waiting import until

pytestmark = pytest.mark.device_mapper

MIB, GIB = 2**20, 2**30
EXTENT = 4 * MIB


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[Completed]:
    """Every LVM command from here on."""
    seen: list[Completed] = []
    monkeypatch.setattr(command, "observers", [seen.append])
    return seen


async def volume(lvm: Lvm, group: str, name: str) -> LogicalVolume:
    volume = (await lvm.report()).volume(group, name)
    assert volume is not None
    return volume


async def free(lvm: Lvm, group: str) -> int:
    volume_group = (await lvm.report()).group(group)
    assert volume_group is not None
    return volume_group.free


def put(path: str, content: bytes) -> None:
    with Path(path).open("r+b") as device:
        device.write(content)
        device.flush()
        os.fsync(device.fileno())


@contextmanager
def held(path: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield
    finally:
        os.close(descriptor)


async def test_a_volume_with_its_tags_is_one_command(lvm: Lvm, volume_group: str, commands: list[Completed]) -> None:
    tags = {"elastic-local/pv=pvc-1", "elastic-local/state=formatting", "A+z_0.:&#!"}
    await lvm.create_volume(volume_group, "pvc-1", GIB, tags)
    assert len(commands) == 1
    made = await volume(lvm, volume_group, "pvc-1")
    assert made.tags == tags
    assert made.active
    assert not made.open
    assert made.health is HealthStatus.OK
    assert made.layout == {"linear"}
    assert made.path == f"/dev/{volume_group}/pvc-1"
    assert Path(made.path).is_block_device()


async def test_sizes_are_rounded_up_to_the_extent_and_never_one_more(lvm: Lvm, volume_group: str) -> None:
    before = await free(lvm, volume_group)
    sizes = {1: EXTENT, GIB - 1: GIB, GIB: GIB, GIB + 1: GIB + EXTENT, GIB + EXTENT: GIB + EXTENT}
    for asked in sizes:
        await lvm.create_volume(volume_group, f"data-{asked}", asked)
    state = await lvm.report()
    assert {int(each.name.removeprefix("data-")): each.size for each in state.volumes_of(volume_group)} == sizes
    assert await free(lvm, volume_group) == before - sum(sizes.values())
    for asked, made in sizes.items():
        argv = ["blockdev", "--getsize64", f"/dev/{volume_group}/data-{asked}"]
        assert int(subprocess.run(argv, check=True, capture_output=True).stdout) == made


async def test_the_whole_node_is_one_command(
    lvm: Lvm, volume_group: str, make_disks: MakeDisks, commands: list[Completed], by_hand: ByHand
) -> None:
    (spare,) = make_disks(1, 64 * MIB)
    by_hand("pvcreate", spare)
    by_hand("lvcreate", "--name=by-hand", "--extents=5", volume_group)
    await lvm.create_pool(volume_group, "pool", 512 * MIB)
    await lvm.create_thin_volume(volume_group, "pool", "thin", GIB)
    commands.clear()
    state = await lvm.report()
    assert len(commands) == 1

    group = state.group(volume_group)
    assert group is not None
    assert (group.size, group.extent_size, group.missing_devices) == (3 * 767 * EXTENT, EXTENT, 0)
    assert {each.name for each in state.volumes_of(volume_group)} == {"by-hand", "pool", "thin"}
    assert [each.name for each in state.thin_volumes(volume_group, "pool")] == ["thin"]
    foreign = state.volume(volume_group, "by-hand")
    assert foreign is not None
    assert (foreign.size, foreign.tags) == (5 * EXTENT, frozenset[str]())
    of_group = [device for device in state.devices if device.group == volume_group]
    assert len(of_group) == 3
    assert sum(device.free for device in of_group) == group.free
    assert [device.path for device in state.devices if not device.group and device.path == spare] == [spare]
    assert state.group("no-such-group") is None


async def test_stripes(lvm: Lvm, volume_group: str) -> None:
    await lvm.create_volume(volume_group, "data", 100 * MIB, stripes=3)
    made = await volume(lvm, volume_group, "data")
    assert made.layout == {"striped"}
    assert made.size == 27 * EXTENT  # 25 extents are not whole on three stripes
    state = await lvm.report()
    assert {device.size - device.free for device in state.devices if device.group == volume_group} == {9 * EXTENT}
    await lvm.extend(volume_group, "data", 27 * EXTENT + 1)
    assert (await volume(lvm, volume_group, "data")).size == 30 * EXTENT


async def test_raid1(lvm: Lvm, volume_group: str) -> None:
    before = await free(lvm, volume_group)
    await lvm.create_volume(volume_group, "data", 64 * MIB, {"owner=me"}, raid="raid1")
    made = await volume(lvm, volume_group, "data")
    assert made.layout == {"raid", "raid1"}
    assert (made.size, made.tags) == (64 * MIB, frozenset({"owner=me"}))
    assert before - await free(lvm, volume_group) == 2 * (64 * MIB + EXTENT)
    assert [each.name for each in (await lvm.report()).volumes_of(volume_group)] == ["data"]
    await lvm.extend(volume_group, "data", 65 * MIB)
    assert (await volume(lvm, volume_group, "data")).size == 68 * MIB
    await lvm.remove(volume_group, "data")
    assert await free(lvm, volume_group) == before


async def test_thin_volumes_promise_more_than_the_pool_has(lvm: Lvm, volume_group: str) -> None:
    await lvm.create_pool(volume_group, "pool", 256 * MIB, {"owner=me"})
    for name in ("one", "two"):
        await lvm.create_thin_volume(volume_group, "pool", name, GIB + 1, {f"pv={name}"})
    pool = await volume(lvm, volume_group, "pool")
    assert pool.is_thin_pool
    assert not pool.is_thin
    assert (pool.size, pool.data_percent, pool.path, pool.tags) == (256 * MIB, 0.0, "", frozenset({"owner=me"}))
    assert pool.metadata_percent is not None
    assert pool.metadata_size > 0
    one = await volume(lvm, volume_group, "one")
    assert one.is_thin
    assert (one.size, one.pool, one.tags, one.data_percent) == (GIB + EXTENT, "pool", frozenset({"pv=one"}), 0.0)
    await lvm.extend(volume_group, "one", 2 * GIB)
    assert (await volume(lvm, volume_group, "one")).size == 2 * GIB


async def test_a_new_thin_volume_shows_nothing_of_an_earlier_one(lvm: Lvm, volume_group: str) -> None:
    await lvm.create_pool(volume_group, "pool", 64 * MIB)
    await lvm.create_thin_volume(volume_group, "pool", "first", 32 * MIB)
    secret = b"secret".ljust(4096, b".")
    with Path(f"/dev/{volume_group}/first").open("r+b") as device:
        for _ in range(512):
            device.write(secret)
        device.flush()
        os.fsync(device.fileno())
    await lvm.remove(volume_group, "first")
    await lvm.create_thin_volume(volume_group, "pool", "second", 32 * MIB)
    with Path(f"/dev/{volume_group}/second").open("r+b") as device:
        device.write(b"x")  # provisions a block
        device.flush()
        os.fsync(device.fileno())
        device.seek(0)
        assert device.read(16 * MIB).strip(b"x\0") == b""


async def test_a_pool_of_all_that_is_left(lvm: Lvm, volume_group: str) -> None:
    await lvm.create_pool(volume_group, "pool", None)
    pool = await volume(lvm, volume_group, "pool")
    assert await free(lvm, volume_group) == 0
    assert pool.size > 3 * 767 * EXTENT * 0.98


async def test_extending_to_what_is_there_is_success(lvm: Lvm, volume_group: str) -> None:
    await lvm.create_volume(volume_group, "data", 64 * MIB)
    for size in (64 * MIB, 61 * MIB, 8 * MIB):
        await lvm.extend(volume_group, "data", size)
        assert (await volume(lvm, volume_group, "data")).size == 64 * MIB
    await lvm.extend(volume_group, "data", 64 * MIB + 1)
    assert (await volume(lvm, volume_group, "data")).size == 68 * MIB


async def test_a_device_that_is_smaller_than_its_volume_has_not_been_extended(lvm: Lvm, volume_group: str) -> None:
    """As after an lvextend that failed when the metadata were written already."""
    await lvm.create_volume(volume_group, "data", 64 * MIB)
    device = f"/dev/mapper/{volume_group.replace('-', '--')}-data"
    whole = subprocess.run(["dmsetup", "table", device], check=True, capture_output=True, text=True).stdout.split()
    half = " ".join((whole[0], str(int(whole[1]) // 2), *whole[2:]))
    for step in (["load", device, "--table", half], ["resume", device]):
        subprocess.run(["dmsetup", "--noudevsync", *step], check=True)
    with pytest.raises(LvmError, match="size"):
        await lvm.extend(volume_group, "data", 64 * MIB)
    await lvm.refresh(volume_group, "data")
    await lvm.extend(volume_group, "data", 64 * MIB)


async def test_retag_is_one_command_and_repeatable(lvm: Lvm, volume_group: str, commands: list[Completed]) -> None:
    await lvm.create_volume(volume_group, "data", EXTENT, {"owner=me", "state=formatting"})
    for _ in range(2):
        commands.clear()
        await lvm.retag(volume_group, {"data": ()}, add={"state=ready", "fs=xfs"}, remove={"state=formatting"})
        assert len(commands) == 1
    assert (await volume(lvm, volume_group, "data")).tags == {"owner=me", "state=ready", "fs=xfs"}


async def test_activate(lvm: Lvm, volume_group: str, by_hand: ByHand) -> None:
    await lvm.create_volume(volume_group, "data", EXTENT)
    by_hand("lvchange", "-an", f"{volume_group}/data")
    inactive = await volume(lvm, volume_group, "data")
    assert not inactive.active
    for _ in range(2):
        await lvm.activate(volume_group, "data")
    active = await volume(lvm, volume_group, "data")
    assert active.active
    assert Path(active.path).is_block_device()


async def test_signatures_of_the_last_tenant_are_gone(lvm: Lvm, volume_group: str) -> None:
    await lvm.create_volume(volume_group, "data", 16 * MIB)
    path = f"/dev/{volume_group}/data"
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    await lvm.remove(volume_group, "data")
    await lvm.create_volume(volume_group, "data", 16 * MIB)
    probe = subprocess.run(["blkid", "--probe", path], capture_output=True, check=False)
    assert (probe.returncode, probe.stdout) == (2, b"")


async def test_no_space(lvm: Lvm, volume_group: str) -> None:
    room = await free(lvm, volume_group)
    await lvm.create_pool(volume_group, "pool", 16 * MIB)
    await lvm.create_volume(volume_group, "data", EXTENT)
    for attempt in (
        lvm.create_volume(volume_group, "more", room),
        lvm.create_volume(volume_group, "more", EXTENT, stripes=4),
        lvm.create_volume(volume_group, "more", room // 3 * 2, raid="raid1"),
        lvm.create_pool(volume_group, "more", room),
        lvm.extend(volume_group, "data", room),
    ):
        with pytest.raises(NoSpace) as raised:
            await attempt
        assert raised.value.exit_code == 5
        assert raised.value.command.startswith("lvm lv")
        assert "more" in str(raised.value) or "lvextend" in str(raised.value)
    await lvm.create_volume(volume_group, "rest", await free(lvm, volume_group))
    assert await free(lvm, volume_group) == 0


async def test_not_found(lvm: Lvm, volume_group: str) -> None:
    for attempt in (
        lvm.create_volume("no-such-group", "data", EXTENT),
        lvm.create_thin_volume(volume_group, "no-such-pool", "data", EXTENT),
        lvm.extend(volume_group, "data", EXTENT),
        lvm.retag(volume_group, {"data": ()}, add={"a"}),
        lvm.activate(volume_group, "data"),
        lvm.remove(volume_group, "data"),
        lvm.remove("no-such-group", "data"),
        lvm.create_group("another", ["/dev/no-such-disk"]),
    ):
        with pytest.raises(LvmNotFound, match=r"not found|[Ff]ailed to find|No device found"):
            await attempt


async def test_already_exists(lvm: Lvm, volume_group: str, make_disks: MakeDisks) -> None:
    await lvm.create_volume(volume_group, "data", EXTENT)
    await lvm.create_pool(volume_group, "pool", 16 * MIB)
    for attempt in (
        lvm.create_volume(volume_group, "data", EXTENT),
        lvm.create_pool(volume_group, "data", 16 * MIB),
        lvm.create_thin_volume(volume_group, "pool", "data", EXTENT),
        lvm.create_group(volume_group, make_disks(1, 64 * MIB)),
    ):
        with pytest.raises(AlreadyExists, match="already exists"):
            await attempt


async def test_an_open_or_mounted_volume_is_not_removed(lvm: Lvm, volume_group: str, tmp_path: Path) -> None:
    await lvm.create_volume(volume_group, "data", 64 * MIB)
    path = f"/dev/{volume_group}/data"
    with held(path):
        assert (await volume(lvm, volume_group, "data")).open
        with pytest.raises(InUse, match="in use"):
            await lvm.remove(volume_group, "data")
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    subprocess.run(["mount", path, tmp_path], check=True)
    try:
        with pytest.raises(InUse, match="filesystem in use"):
            await lvm.remove(volume_group, "data")
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    await lvm.remove(volume_group, "data")
    assert (await lvm.report()).volume(volume_group, "data") is None


async def test_a_group_is_not_made_of_a_device_that_holds_something(
    lvm: Lvm, volume_group: str, make_disks: MakeDisks
) -> None:
    (formatted,) = make_disks(1, 64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", formatted], check=True)
    taken = next(device.path for device in (await lvm.report()).devices if device.group == volume_group)
    for device in (formatted, taken):
        with pytest.raises(InUse):
            await lvm.create_group("another", [device])
    assert b'TYPE="ext4"' in subprocess.run(["blkid", "--probe", formatted], check=True, capture_output=True).stdout


async def test_names_that_lvm_refuses_are_refused_before_it(
    lvm: Lvm, volume_group: str, commands: list[Completed], by_hand: ByHand
) -> None:
    """That the rules are LVM's own is shown by asking it."""
    for name in ("snapshot1", "pvmove7", "a_tdata", "a_rimage_0", "a_pmspare", "--force", "a b"):
        with pytest.raises(BadName):
            await lvm.create_volume(volume_group, name, EXTENT)
        with pytest.raises(subprocess.CalledProcessError) as refused:
            by_hand("lvcreate", f"--name={name}", "--extents=1", volume_group)
        assert refused.value.returncode == 3
    assert commands == []


async def test_the_longest_name_serves_every_layout(lvm: Lvm, volume_group: str) -> None:
    name = "n" * (106 - len(volume_group.replace("-", "--")) - 1)
    for layout in ("none", "raid1"):
        await lvm.create_volume(volume_group, name, EXTENT, raid=layout)
        await lvm.remove(volume_group, name)
    await lvm.create_pool(volume_group, name, 16 * MIB)
    with pytest.raises(BadName, match="too long"):
        await lvm.create_volume(volume_group, name + "n", EXTENT)


async def test_an_error_of_no_known_kind_carries_the_words_of_lvm(lvm: Lvm, volume_group: str) -> None:
    await lvm.create_volume(volume_group, "data", EXTENT)
    with pytest.raises(LvmError, match=r"is not a thin pool\..*lvm lvcreate .*exit code 5") as raised:
        await lvm.create_thin_volume(volume_group, "data", "thin", EXTENT)
    assert type(raised.value) is LvmError


@contextmanager
def locked(group: str) -> Iterator[None]:
    """Somebody has LVM's lock of the group, as while LVM waits for an answer."""
    descriptor = os.open(f"/run/lock/lvm/V_{group}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


async def test_a_command_that_waits_for_a_lock_is_killed_at_its_deadline(
    volume_group: str, lvm: Lvm, tmp_path: Path
) -> None:
    impatient = Lvm(tmp_path / "impatient", deadline=2)
    with (
        locked(volume_group),
        pytest.raises(TimedOut, match=rf"did not answer within 2 s.*`fuser -v /run/lock/lvm/V_{volume_group}`"),
    ):
        await impatient.create_volume(volume_group, "data", EXTENT)
    assert (await lvm.report()).volume(volume_group, "data") is None
    await impatient.create_volume(volume_group, "data", EXTENT)


async def test_who_has_the_lock_of_a_group_for_long_holds_up_no_other(
    volume_group: str, lvm: Lvm, tmp_path: Path, make_disks: MakeDisks, commands: list[Completed]
) -> None:
    other = f"{volume_group}-other"
    await lvm.create_group(other, make_disks(1, 64 * MIB))
    impatient = Lvm(tmp_path / "impatient", deadline=2)
    with locked(volume_group):
        with pytest.raises(TimedOut):
            await impatient.report()
        assert (await impatient.report(even_unlocked=True)).group(volume_group)
        await impatient.create_volume(other, "data", EXTENT)
        late = sum(done.exit_code < 0 for done in commands)
        assert (await impatient.report(even_unlocked=True)).volume(other, "data")
        assert late == sum(done.exit_code < 0 for done in commands), "it waits once"
    await impatient.report(even_unlocked=True)
    assert "--nolocking" not in commands[-1].argv
    await lvm.remove(other, "data")
    await lvm.remove_group(other)


async def test_a_lost_device_shows(lvm: Lvm, make_disks: MakeDisks, by_hand: ByHand) -> None:
    group = f"test-{uuid.uuid4().hex[:8]}"
    first, second = make_disks(2, 64 * MIB)
    disk = f"{group}-disk"

    def plug_in() -> None:  # shifted, so that its label is not seen on the device below it
        subprocess.run(["dmsetup", "create", disk, "--table", f"0 {63 * MIB // 512} linear {first} 2048"], check=True)
        subprocess.run(["dmsetup", "mknodes"], check=True)  # udev's part, where none runs

    plug_in()
    try:
        await lvm.create_group(group, [f"/dev/mapper/{disk}", second])
        await lvm.create_volume(group, "mirror", EXTENT, raid="raid1")
        by_hand("lvchange", "-an", f"{group}/mirror")
        subprocess.run(["dmsetup", "remove", disk], check=True)
        state = await lvm.report()
        lossy, mirror = state.group(group), state.volume(group, "mirror")
        assert lossy is not None
        assert mirror is not None
        assert lossy.missing_devices == 1
        assert mirror.health is HealthStatus.PARTIAL
        assert [device.missing for device in state.devices if device.group == group].count(True) == 1
        plug_in()
        assert (await volume(lvm, group, "mirror")).health is HealthStatus.OK
    finally:
        by_hand("vgremove", "--force", "--yes", group)
        subprocess.run(["dmsetup", "remove", disk], check=True)


async def test_only_a_volume_with_the_tags_that_were_named_is_changed_or_removed(lvm: Lvm, volume_group: str) -> None:
    """Others change tags too: LVM compares them under the lock of the group."""
    await lvm.create_volume(volume_group, "one", MIB, {"owner=a", "policy=Delete"})
    left = await lvm.retag(volume_group, {"one": {"owner=b"}}, add={"more=b"}, remove={"owner=a"})
    assert "left as it is: owner=b" in str(left["one"])
    with pytest.raises(TagsDiffer, match="left as it is: owner=a policy=Retain"):
        await lvm.remove(volume_group, "one", having={"owner=a", "policy=Retain"})
    kept = (await lvm.report()).volume(volume_group, "one")
    assert kept
    assert kept.tags == {"owner=a", "policy=Delete"}
    assert await lvm.retag(volume_group, {"one": {"owner=a"}}, add={"owner=b"}, remove={"owner=a"}) == {}
    await lvm.remove(volume_group, "one", having={"owner=b", "policy=Delete"})
    assert (await lvm.report()).volume(volume_group, "one") is None
    with pytest.raises(LvmNotFound):
        await lvm.remove(volume_group, "one", having={"owner=b"})


async def test_tags_of_many_volumes_are_exchanged_by_one_command(
    lvm: Lvm, volume_group: str, commands: list[Completed]
) -> None:
    """Each is compared with its own: what one has does not let another pass. As many, and with tags as long, as the
    daemon ever names together."""
    names = [f"volume-{number}" for number in range(32)]
    owners = {name: {f"owner={name}{'.' * 800}", "policy=Delete"} for name in names}
    for name in (*names, "volume"):
        await lvm.create_volume(volume_group, name, EXTENT, {*owners.get(name, ()), "state=formatting"})
    commands.clear()
    having = {**owners, "volume-1": owners["volume-2"], "volume-3": owners["volume-3"] | {"policy=Retain"}}
    left = await lvm.retag(volume_group, {**having, "volume": ()}, add={"state=ready"}, remove={"state=formatting"})
    assert len(commands) == 1
    assert set(left) == {"volume-1", "volume-3"}
    assert "policy=Retain" in str(left["volume-3"])
    state = await lvm.report()
    for name in (*names, "volume"):
        there = state.volume(volume_group, name)
        assert there
        assert there.tags == {*owners.get(name, ()), "state=formatting" if name in left else "state=ready"}


async def test_one_that_is_not_there_fails_the_command_and_the_others_may_be_changed(
    lvm: Lvm, volume_group: str
) -> None:
    for name in ("one", "three"):
        await lvm.create_volume(volume_group, name, EXTENT, {f"owner={name}"})
    volumes = {name: {f"owner={name}"} for name in ("one", "two", "three")}
    with pytest.raises(LvmNotFound, match="two"):
        await lvm.retag(volume_group, volumes, add={"state=ready"})
    assert await lvm.retag(volume_group, {"three": volumes["three"]}, add={"state=ready"}) == {}
    assert (await volume(lvm, volume_group, "three")).tags == {"owner=three", "state=ready"}
    assert (await volume(lvm, volume_group, "one")).tags >= {"owner=one"}


async def test_a_thin_pool_whose_activation_was_killed_is_activated_by_the_next_command(
    lvm: Lvm, volume_group: str, by_hand: ByHand, tmp_path: Path
) -> None:
    """Its metadata and its data stay active then, and LVM activates no pool whose parts are. That takes as long as
    thin_check does, which for a large pool is longer than the daemon waits."""
    await lvm.create_pool(volume_group, "pool", 16 * MIB)
    await lvm.create_thin_volume(volume_group, "pool", "one", MIB)
    begun, check = tmp_path / "begun", tmp_path / "thin_check"
    check.write_text(f"#!/bin/sh\ntouch {begun}\nexec sleep 600\n")
    check.chmod(0o755)

    async def killed() -> None:
        by_hand("lvchange", "--activate=n", volume_group)
        activation = subprocess.Popen(
            [
                *("lvm", "lvchange", f'--config=global/thin_check_executable="{check}"'),
                *("--activate=y", f"{volume_group}/pool"),
            ],
            env={**os.environ, "LVM_SYSTEM_DIR": str(tmp_path / "lvm"), "LVM_SUPPRESS_FD_WARNINGS": "1"},
            start_new_session=True,
        )
        await until(begun.exists)
        os.killpg(activation.pid, signal.SIGKILL)
        activation.wait()
        begun.unlink()

    await killed()
    await lvm.activate(volume_group, "one")
    assert (await volume(lvm, volume_group, "one")).active
    await killed()
    await lvm.create_thin_volume(volume_group, "pool", "two", MIB)
    await killed()
    with pytest.raises(LvmNotFound):  # it went from LVM's metadata before its pool was needed
        await lvm.remove(volume_group, "one")
    await lvm.activate(volume_group, "two")
    assert {each.name for each in (await lvm.report()).volumes if each.group == volume_group} == {"pool", "two"}


def make_in_pool(group: str, device: int, origin: str) -> None:
    """As an lvcreate has it made, which is killed before it confirms that to the pool."""
    mapped = names.mapped(group, origin)
    snapped = f"create_snap {device} 1"
    subprocess.run(["dmsetup", "suspend", mapped], check=True)
    subprocess.run(["dmsetup", "message", f"{names.mapped(group, 'pool')}-tpool", "0", snapped], check=True)
    subprocess.run(["dmsetup", "resume", mapped], check=True)


async def test_a_thin_snapshot_that_a_killed_command_made_in_its_pool_is_made_anew(lvm: Lvm, volume_group: str) -> None:
    """LVM has it made again by each next command, whatever that is for, and fails."""
    await lvm.create_pool(volume_group, "pool", 16 * MIB)
    await lvm.create_thin_volume(volume_group, "pool", "one", MIB)
    one = (await volume(lvm, volume_group, "one")).path
    put(one, b"before")
    make_in_pool(volume_group, 2, "one")
    put(one, b"later")
    await lvm.create_thin_snapshot(volume_group, "one", "two")
    assert Path((await volume(lvm, volume_group, "two")).path).read_bytes()[:5] == b"later"
    await lvm.create_thin_volume(volume_group, "pool", "three", MIB)
    await lvm.remove(volume_group, "two")


def begin_to_extend(pool: str) -> None:
    """As an lvextend leaves a pool that is killed before it has written down the new size."""
    for name in (pool, f"{pool}-tpool", f"{pool}_tmeta", f"{pool}_tdata"):
        subprocess.run(["dmsetup", "suspend", "--nolockfs", name], check=True)
    for name in (f"{pool}_tdata", f"{pool}-tpool", pool):
        table = subprocess.run(["dmsetup", "table", name], check=True, capture_output=True, text=True).stdout
        start, length, rest = table.strip().split(" ", 2)
        larger = f"{start} {int(length) + EXTENT // 512} {rest}"
        subprocess.run(["dmsetup", "reload", name, "--table", larger], check=True)
        if name.endswith("_tdata"):
            subprocess.run(["dmsetup", "resume", name], check=True)


async def test_a_pool_of_which_the_extension_was_killed_goes_on_as_large_as_before(lvm: Lvm, volume_group: str) -> None:
    await lvm.create_pool(volume_group, "pool", 16 * MIB)
    await lvm.create_thin_volume(volume_group, "pool", "one", MIB)
    begin_to_extend(names.mapped(volume_group, "pool"))
    pool = await volume(lvm, volume_group, "pool")
    assert pool.suspended
    await lvm.resume(pool)
    assert not (await volume(lvm, volume_group, "pool")).suspended
    put((await volume(lvm, volume_group, "one")).path, b"written")
    await lvm.extend(volume_group, "pool", 32 * MIB)


async def test_a_pool_whose_own_device_is_suspended_alone_goes_on(lvm: Lvm, volume_group: str) -> None:
    """As at the last step of an lvextend: nobody writes there, but who looks for filesystems waits."""
    await lvm.create_pool(volume_group, "pool", 16 * MIB)
    await lvm.create_thin_volume(volume_group, "pool", "one", MIB)
    own = names.mapped(volume_group, "pool")
    subprocess.run(["dmsetup", "suspend", own], check=True)
    pool = await volume(lvm, volume_group, "pool")
    assert pool.suspended
    await lvm.resume(pool)
    assert not blockdevice.is_suspended(Path("/dev/mapper", own))
    assert not (await volume(lvm, volume_group, "pool")).suspended


async def test_a_thin_device_that_may_be_somebodys_stays(lvm: Lvm, volume_group: str) -> None:
    """LVM knows it no more since somebody restored its metadata."""
    await lvm.create_pool(volume_group, "pool", 16 * MIB)
    await lvm.create_thin_volume(volume_group, "pool", "one", MIB)
    make_in_pool(volume_group, 3, "one")
    await lvm.create_thin_volume(volume_group, "pool", "two", MIB)  # the next transaction
    with pytest.raises(ThinDeviceLeft, match="device_id 3"):
        await lvm.create_thin_snapshot(volume_group, "one", "three")
    delete = ["dmsetup", "message", f"{names.mapped(volume_group, 'pool')}-tpool", "0", "delete 3"]
    subprocess.run(delete, check=True)  # it is there
    await lvm.remove(volume_group, "two")


async def test_parts_of_a_thin_pool_that_somebody_has_open_stay_active(
    lvm: Lvm, volume_group: str, by_hand: ByHand
) -> None:
    """As whoever looks at its metadata with thin_dump."""
    await lvm.create_pool(volume_group, "pool", 16 * MIB)
    by_hand("lvchange", "--activate=n", volume_group)
    by_hand("lvchange", "--activate=y", "--yes", f"{volume_group}/pool_tmeta")
    metadata = f"/dev/mapper/{names.mapped(volume_group, 'pool')}_tmeta"
    with held(metadata), pytest.raises(LvmError, match=r"prohibited while .*pool_tmeta is active"):
        await lvm.create_thin_volume(volume_group, "pool", "one", MIB)
    await lvm.create_thin_volume(volume_group, "pool", "one", MIB)


@pytest.mark.parametrize("parts", [["rimage_0"], ["rmeta_0", "rimage_0", "rmeta_1", "rimage_1"]], ids=["one", "all"])
async def test_a_mirror_whose_activation_was_killed_is_activated_by_the_next_command(
    lvm: Lvm, volume_group: str, by_hand: ByHand, parts: list[str]
) -> None:
    """And what its administrator has deactivated is left so, in the same group."""
    await lvm.create_volume(volume_group, "one", 16 * MIB, raid="raid1")
    await lvm.create_volume(volume_group, "other", EXTENT)
    await lvm.deactivate(volume_group, "other")

    def killed() -> None:
        by_hand("lvchange", "--activate=n", f"{volume_group}/one")
        for part in parts:
            by_hand("lvchange", "--activate=y", "--yes", f"{volume_group}/one_{part}")

    killed()
    await lvm.activate(volume_group, "one")
    assert (await volume(lvm, volume_group, "one")).active
    killed()
    await lvm.extend(volume_group, "one", 32 * MIB)
    assert (await volume(lvm, volume_group, "one")).size == 32 * MIB
    killed()
    await lvm.create_thick_snapshot(volume_group, "one", "snapped", EXTENT)
    await lvm.remove(volume_group, "snapped")
    killed()
    await lvm.create_volume(volume_group, "two", EXTENT)
    assert not (await volume(lvm, volume_group, "one")).active
    assert not (await volume(lvm, volume_group, "other")).active
    await lvm.remove(volume_group, "one")
    active = subprocess.run(["dmsetup", "ls"], check=True, capture_output=True, text=True).stdout
    assert names.mapped(volume_group, "one") not in active


class Checking:
    """What takes the place of thin_check. It ends with the test at the latest, also with one that fails: LVM would wait
    for it with the lock of the group. What takes processor time is to be nice: a guest has one processor."""

    def __init__(self, folder: Path, work: str) -> None:
        self.begun, self.end = folder / "begun", folder / "end"
        program = folder / "thin_check"
        program.write_text(f'#!/bin/sh\ntouch {self.begun}\n{work}\nexec {shutil.which("thin_check")} "$@"\n')
        program.chmod(0o755)
        with (folder / "lvm" / "lvm.conf").open("a") as file:
            file.write(f'global/thin_check_executable = "{program}"\n')
        self.lvm = Lvm(folder / "lvm", deadline=5, configured=True)

    def __enter__(self) -> "Checking":
        return self

    def __exit__(self, *_: object) -> None:
        self.end.touch()


async def test_a_pool_that_takes_long_to_be_checked_holds_nobody_else_up_and_is_activated(
    lvm: Lvm, volume_group: str, by_hand: ByHand, make_disks: MakeDisks, tmp_path: Path
) -> None:
    await lvm.create_pool(volume_group, "pool", 16 * MIB)
    await lvm.create_thin_volume(volume_group, "pool", "one", MIB)
    other = f"{volume_group}-other"
    await lvm.create_group(other, make_disks(1, 64 * MIB))
    fresh = make_disks(1, 64 * MIB)
    by_hand("lvchange", "--activate=n", volume_group)
    with Checking(tmp_path, f"renice -n 19 $$; while [ ! -e {tmp_path / 'end'} ]; do :; done") as check:
        with pytest.raises(BeingChecked, match=rf"metadata of a thin pool of group {volume_group} for \d+ s"):
            await check.lvm.activate(volume_group, "one")
        with pytest.raises(BeingChecked, match="thin_check"):
            await check.lvm.create_volume(volume_group, "thick", EXTENT)
        with pytest.raises(BeingChecked, match="thin_check"):
            await check.lvm.extend_group(volume_group, fresh)
        assert (await check.lvm.report()).volume(volume_group, "one")
        await check.lvm.extend_group(other, fresh)
        await check.lvm.create_volume(other, "thick", EXTENT)
        await check.lvm.remove(other, "thick")
        await check.lvm.remove_group(other)

    async def active() -> bool:
        return (await volume(check.lvm, volume_group, "one")).active

    await until(active)
    await check.lvm.create_volume(volume_group, "thick", EXTENT)


async def test_a_check_of_a_pool_that_gets_no_answer_ends_at_the_deadline(
    lvm: Lvm, volume_group: str, by_hand: ByHand, tmp_path: Path
) -> None:
    await lvm.create_pool(volume_group, "pool", 16 * MIB)
    by_hand("lvchange", "--activate=n", volume_group)
    check = Checking(tmp_path, f"mkfifo {tmp_path / 'fifo'}; read line <{tmp_path / 'fifo'}")
    with pytest.raises((TimedOut, BeingChecked)):  # it took some processor time before, or not
        await check.lvm.activate(volume_group, "pool")
    assert check.begun.exists()
    await lvm.activate(volume_group, "pool")  # as soon as the lock is free
