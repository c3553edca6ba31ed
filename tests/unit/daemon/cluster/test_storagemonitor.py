"""What a node says that has no storage, or not yet."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from contract.volume import ObjectReference
from daemon.backends.deviceclassbackend import backend_of_classes
from daemon.backends.folder import FolderBackend
from daemon.cluster.events import NodeEvents
from daemon.cluster.storagemonitor import StorageMonitor, missing, noticed
from daemon.errors import BackendFailed
from daemon.storage.deviceclasses import BINDMOUNT, LVM, DeviceClass
from daemon.storage.inventory import Inventory, Pool, UnavailablePool, Volume
from daemon.storage.record import Record, VolumeState
from daemon.storage.volumes import Volumes
from kube.events import Recorder
from tests.agreeing import Agreeing

THICK = DeviceClass("default", LVM, group="vg")
THIN = DeviceClass("thin", LVM, group="vg", thin=True, thin_pool="pool")
HERE = DeviceClass("default", BINDMOUNT)


def test_what_is_missing_is_said_with_the_command_that_makes_it() -> None:
    group = Pool("vg", 10, 10, 0, 1)
    assert "elastic-local vg create vg" in missing(Inventory(), THICK)
    assert "elastic-local vg create vg" in missing(Inventory(), THIN)
    assert "no thin pool pool in volume group vg" in missing(Inventory(pools=[group]), THIN)
    assert missing(Inventory(pools=[group]), THICK) == ""


def test_storage_that_is_there_and_blocked_says_why() -> None:
    blocked = Pool("vg", 10, 10, 0, 1, blocked="a disk is missing: `vgreduce`")
    assert missing(Inventory(pools=[blocked]), THICK) == "a disk is missing: `vgreduce`"
    away = Inventory(unavailable=[UnavailablePool("vg", "volume group vg is exported: `vgimport vg`")])
    assert missing(away, THICK) == missing(away, THIN) == "volume group vg is exported: `vgimport vg`"


def test_only_what_is_ours_is_reported() -> None:
    pools = [
        Pool("vg", 10, 10, 0, 1, notices=("one disk",)),
        Pool("debian", 10, 10, 0, 1, notices=("their disk",), blocked="their fault"),
        Pool("named", 10, 10, 0, 1, blocked="a fault"),
    ]
    ours = Volume(Record("a", "uid", "Delete", "ext4", VolumeState.READY), 1, "named/pool")
    assert noticed(Inventory([ours], pools), {"default": THICK}) == ("one disk", "a fault")


class RecordedEvents:
    """Events as they were reported: type, reason, message."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []

    def normal(self, reference: ObjectReference, reason: str, message: str) -> None:
        self.events.append(("Normal", reason, message))

    def warning(self, reference: ObjectReference, reason: str, message: str) -> None:
        self.events.append(("Warning", reason, message))


NODE = ObjectReference("Node", "v1", "", "n", "uid")


class Bare(FolderBackend):
    """A node whose storage fails until somebody repairs it."""

    failure = True

    async def inspect(self) -> Inventory:
        if self.failure:
            raise BackendFailed("the disk is out")
        return await super().inspect()


async def test_storage_that_fails_is_a_problem_until_it_is_there(tmp_path: Path) -> None:
    backend = Bare(tmp_path / "data", 100)
    volumes = Volumes(backend, tmp_path / "staging", Agreeing())
    changes: list[bool] = []
    monitor = StorageMonitor(volumes, {"default": HERE}, NodeEvents(cast(Recorder, RecordedEvents())), changes.append)
    await monitor.check()
    await monitor.wait_checked()
    assert monitor.problem == "the disk is out"
    backend.failure = False
    await monitor.check()
    assert monitor.problem == ""
    assert volumes.inventory.pools
    assert changes == [False, True]
    await monitor.check()
    assert changes == [False, True]


async def test_a_look_ends_with_a_backup_of_what_was_seen(tmp_path: Path) -> None:
    done = []

    class BackedUp(FolderBackend):
        async def back_up(self) -> None:
            done.append("backed up")

    volumes = Volumes(BackedUp(tmp_path / "data", 100), tmp_path / "staging", Agreeing())
    events = NodeEvents(cast(Recorder, RecordedEvents()))
    monitor = StorageMonitor(volumes, {"default": HERE}, events, lambda usable: done.append("told"))
    await monitor.check()
    assert done == ["told", "backed up"]  # nobody waits for it


async def test_a_node_that_lacks_some_of_its_classes_is_ready_and_says_which(tmp_path: Path) -> None:
    fast, slow = (DeviceClass(name, BINDMOUNT, folder=tmp_path / name, capacity=100) for name in ("fast", "slow"))
    classes = {"default": slow, "fast": fast, "slow": slow}
    backend = backend_of_classes(classes, tmp_path)
    changes: list[bool] = []
    recorded = RecordedEvents()
    events = NodeEvents(cast(Recorder, recorded))
    monitor = StorageMonitor(Volumes(backend, tmp_path / "staging", Agreeing()), classes, events, changes.append)
    await monitor.check()
    events.set_node(NODE)
    assert [kind for kind, *_ in recorded.events] == ["Warning"]
    assert f"no folder {slow.folder}" in monitor.problem
    assert f"no folder {fast.folder}" in monitor.problem

    slow.folder.mkdir()
    await monitor.check()
    assert monitor.problem == ""
    assert recorded.events[1:] == [
        ("Normal", "StorageFound", "this node has folder:slow for volumes now"),
        (
            "Normal",
            "StorageMissing",
            f"no room for device class fast: this node has no folder {fast.folder} for volumes: mount the disk that it "
            "is on, or make it",
        ),
    ]
    fast.folder.mkdir()
    await monitor.check()
    assert recorded.events[3:] == [("Normal", "StorageFound", "this node has device class fast now")]

    fast.folder.rmdir()
    await monitor.check()
    assert monitor.problem == ""
    (lost,) = recorded.events[4:]
    assert lost[:2] == ("Warning", "StorageMissing")  # it was there: that is not how nodes differ
    assert changes == [False, True, True, False]


class Group(FolderBackend):
    """A volume group, as the daemon sees it."""

    pool = Pool("vg", 10, 10, 0, 1)

    async def inspect(self) -> Inventory:
        return Inventory(pools=[self.pool])


async def test_each_condition_of_a_group_is_reported_once_and_so_is_its_end(tmp_path: Path) -> None:
    backend = Group(tmp_path / "data", 100)
    recorded = RecordedEvents()
    events = NodeEvents(cast(Recorder, recorded))
    volumes = Volumes(backend, tmp_path / "staging", Agreeing())
    monitor = StorageMonitor(volumes, {"default": THICK}, events, lambda usable: None)
    await monitor.check()
    events.set_node(NODE)
    backend.pool = replace(Group.pool, notices=("disk /dev/sdb takes no new volumes: `pvchange -xy /dev/sdb`",))
    for _ in range(2):
        await monitor.check()
    assert (monitor.problem, monitor.notices) == ("", backend.pool.notices)
    backend.pool = replace(Group.pool, blocked="a disk is missing: `vgreduce --removemissing vg`")
    for _ in range(2):
        await monitor.check()
    assert monitor.problem == backend.pool.blocked
    backend.pool = Group.pool
    await monitor.check()
    assert monitor.problem == ""
    assert recorded.events == [
        ("Warning", "StorageLessened", "disk /dev/sdb takes no new volumes: `pvchange -xy /dev/sdb`"),
        ("Warning", "StorageBlocked", "a disk is missing: `vgreduce --removemissing vg`"),
        ("Normal", "StorageWhole", "this node's storage gives all of its room again"),
        ("Normal", "StorageFound", "this node has vg for volumes now"),
    ]
