"""What a node says that has no storage, or not yet."""

from pathlib import Path

from daemon.backends.classes import of_classes
from daemon.backends.folder import FolderBackend
from daemon.cluster.refresh import Refresher, missing
from daemon.errors import BackendFailed
from daemon.storage.deviceclasses import BINDMOUNT, LVM, DeviceClass
from daemon.storage.record import Inventory, Pool
from daemon.storage.volumes import Volumes
from kube.events import ObjectReference

THICK = DeviceClass("default", LVM, group="vg")
THIN = DeviceClass("thin", LVM, group="vg", thin=True, thin_pool="pool")
HERE = DeviceClass("default", BINDMOUNT)


def test_what_is_missing_is_said_with_the_command_that_makes_it() -> None:
    group = Pool("vg", 10, 10, 0, 1)
    assert "elastic-local vg create vg" in missing(Inventory(), THICK)
    assert "elastic-local vg create vg" in missing(Inventory(), THIN)
    assert "no thin pool pool in volume group vg" in missing(Inventory(pools=[group]), THIN)
    assert missing(Inventory(pools=[group]), THICK) == ""


class Bare(FolderBackend):
    """A node whose storage fails until somebody repairs it."""

    failure = True

    async def inspect(self) -> Inventory:
        if self.failure:
            raise BackendFailed("the disk is out")
        return await super().inspect()


async def test_storage_that_fails_is_a_problem_until_it_is_there(tmp_path: Path) -> None:
    backend = Bare(tmp_path / "data", 100)
    volumes = Volumes(backend, tmp_path / "staging")
    changes: list[bool] = []
    refresher = Refresher(volumes, {"default": HERE}, changes.append)
    await refresher.look()
    await refresher.wait_looked()
    assert refresher.problem == "the disk is out"
    backend.failure = False
    await refresher.look()
    assert refresher.problem == ""
    assert volumes.inventory.pools
    assert changes == [False, True]
    await refresher.look()
    assert changes == [False, True]


class Told:
    """Events as they were told: type, reason, message."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []

    def normal(self, reference: ObjectReference, reason: str, message: str) -> None:
        self.events.append(("Normal", reason, message))

    def warning(self, reference: ObjectReference, reason: str, message: str) -> None:
        self.events.append(("Warning", reason, message))


async def test_a_node_that_lacks_some_of_its_classes_is_ready_and_says_which(tmp_path: Path) -> None:
    fast, slow = (DeviceClass(name, BINDMOUNT, folder=tmp_path / name, capacity=100) for name in ("fast", "slow"))
    classes = {"default": slow, "fast": fast, "slow": slow}
    backend = of_classes(classes, tmp_path)
    changes: list[bool] = []
    refresher = Refresher(Volumes(backend, tmp_path / "staging"), classes, changes.append)
    told, node = Told(), ObjectReference("Node", "v1", "", "n", "uid")
    await refresher.look()
    refresher.tell(told, node)  # type: ignore[arg-type]
    assert [kind for kind, *_ in told.events] == ["Warning"]
    assert f"no folder {slow.folder}" in refresher.problem
    assert f"no folder {fast.folder}" in refresher.problem

    slow.folder.mkdir()
    await refresher.look()
    assert refresher.problem == ""
    assert told.events[1:] == [
        ("Normal", "StorageFound", "this node has folder:slow for volumes now"),
        (
            "Normal",
            "StorageMissing",
            f"no room for device class fast: this node has no folder {fast.folder} for volumes: mount the disk that it "
            "is on, or make it",
        ),
    ]
    fast.folder.mkdir()
    await refresher.look()
    assert told.events[3:] == [("Normal", "StorageFound", "this node has device class fast now")]

    fast.folder.rmdir()
    await refresher.look()
    assert refresher.problem == ""
    (lost,) = told.events[4:]
    assert lost[:2] == ("Warning", "StorageMissing")  # it was there: that is not how nodes differ
    assert changes == [False, True, True, False]
