"""What discovery does with each entry: decisions alone, without a disk or an API server."""

from dataclasses import replace
from pathlib import Path

import pytest

from daemon.static.configuration import BLOCK, FILESYSTEM, ClassConfiguration
from daemon.static.entries import Entry, EntryKind
from daemon.static.plan import UNRESPONSIVE, Create, InvalidEntry, Skip, Step, missing_volumes, plan
from daemon.static.volume import StaticVolume, volume_name

NODE = "node-1"
HOST, SEEN = "/mnt/disks", Path("/container/disks")


def class_config(mode: str = FILESYSTEM, name: str = "fast") -> ClassConfiguration:
    return ClassConfiguration(name=name, host_dir=HOST, mount_dir=SEEN, volume_mode=mode)


def entry(kind: EntryKind, *, mounted: bool = False, name: str = "disk1") -> Entry:
    return Entry(name, SEEN / name, kind, mounted)


def pv(
    name: str = volume_name("disk1", NODE, "fast"), *, path: str = f"{HOST}/disk1", mode: str = FILESYSTEM
) -> StaticVolume:
    return StaticVolume(
        name=name,
        uid="uid",
        phase="Available",
        path=path,
        mode=mode,
        storage_class="fast",
        reclaim_policy="Delete",
        capacity=1,
        deleting=False,
        provisioned_by="",
        hostnames=(),
    )


def decide(
    entry: Entry, chosen: ClassConfiguration, *volumes: StaticVolume, is_cleaning: str = "", created: str = ""
) -> Step:
    (step,) = plan(
        chosen, [entry], NODE, volumes, lambda name: name == is_cleaning, {f"{HOST}/disk1": created} if created else {}
    )
    return step


NAME = volume_name("disk1", NODE, "fast")
MOUNTED = entry(EntryKind.FOLDER, mounted=True)


@pytest.mark.parametrize(
    ("scanned", "class_mode", "mode"),
    [
        (entry(EntryKind.BLOCK), BLOCK, BLOCK),
        (entry(EntryKind.BLOCK), FILESYSTEM, FILESYSTEM),
        (MOUNTED, FILESYSTEM, FILESYSTEM),
    ],
)
def test_what_becomes_a_volume_and_of_which_mode(scanned: Entry, class_mode: str, mode: str) -> None:
    assert decide(scanned, class_config(class_mode)) == Create(NAME, scanned, mode)


@pytest.mark.parametrize(
    ("scanned", "class_mode", "message"),
    [
        (
            entry(EntryKind.FOLDER),
            FILESYSTEM,
            'path "/container/disks/disk1" is not a valid mount point: mount a filesystem on it, or remove it from the '
            "folder",
        ),
        (
            MOUNTED,
            BLOCK,
            'path "/container/disks/disk1" of filesystem mode cannot be used to create block volume: link a block '
            "device here, or remove it from the folder of class fast",
        ),
        (
            entry(EntryKind.OTHER),
            FILESYSTEM,
            'Skipping file "/container/disks/disk1": not a directory nor block device',
        ),
    ],
)
def test_invalid_entries(scanned: Entry, class_mode: str, message: str) -> None:
    assert decide(scanned, class_config(class_mode)) == InvalidEntry("disk1", message)


def test_an_unresponsive_disk_is_reported_on_its_volume() -> None:
    message = (
        'path "/container/disks/disk1" gives no answer, its disk hangs: see the kernel\'s log on the node, and replace '
        "the disk or restart the node"
    )
    hung = entry(EntryKind.UNRESPONSIVE)
    assert decide(hung, class_config()) == InvalidEntry("disk1", message, None, UNRESPONSIVE)
    assert decide(hung, class_config(), pv()) == InvalidEntry("disk1", message, pv(), UNRESPONSIVE)


def test_volumes_without_an_entry() -> None:
    def gone(*volumes: StaticVolume, entries: tuple[Entry, ...] = (), wanted: str = "disk1") -> list[str]:
        return [invalid.name for invalid in missing_volumes(class_config(), wanted.__eq__, entries, volumes)]

    assert gone(pv()) == ["disk1"]
    assert gone(pv(), entries=(MOUNTED,)) == []
    assert gone(pv(), wanted="disk2") == [], "the name pattern leaves it out, so nobody looked"
    assert gone(replace(pv(), deleting=True)) == []
    assert gone(replace(pv(), storage_class="slow")) == [], "of another class in the same folder"
    assert gone(pv(path="/elsewhere/disk1")) == [], "from before the class had another folder"


def test_what_has_its_volume_is_left_alone() -> None:
    assert decide(MOUNTED, class_config(), pv()) == Skip(MOUNTED, f"it is {NAME}")


def test_a_volume_that_is_not_cached_yet_is_left_alone() -> None:
    assert isinstance(decide(MOUNTED, class_config(), created=NAME), Skip)


def test_a_folder_at_the_path_of_a_block_volume() -> None:
    known = pv(mode=BLOCK)
    decision = decide(MOUNTED, class_config(BLOCK), known)
    assert isinstance(decision, InvalidEntry)
    assert decision.volume == known
    assert "is a folder and its PersistentVolume" in decision.message


@pytest.mark.parametrize("where", ["cached", "created"])
def test_a_path_that_another_class_has_is_not_offered_twice(where: str) -> None:
    other = pv(volume_name("disk1", NODE, "slow"))
    decision = (
        decide(MOUNTED, class_config(), other)
        if where == "cached"
        else decide(MOUNTED, class_config(), created=other.name)
    )
    assert decision == Skip(MOUNTED, f"its path is that of {other.name}")


def test_what_is_being_cleaned_is_not_offered() -> None:
    assert decide(MOUNTED, class_config(), is_cleaning=NAME) == Skip(MOUNTED, f"{NAME} is being cleaned")


def test_a_volume_beside_it_is_no_conflict() -> None:
    other = pv(volume_name("disk2", NODE, "fast"), path=f"{HOST}/disk2")
    assert isinstance(decide(MOUNTED, class_config(), other, is_cleaning=other.name), Create)
