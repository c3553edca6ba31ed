"""When what stands at an entry is the disk that its PersistentVolume was made of."""

import json

import pytest

from daemon.static import diskrecord
from daemon.static.diskrecord import DiskRecord, Match

SAME, OTHER, UNKNOWN = Match.SAME, Match.OTHER, Match.UNKNOWN
BOOT, NEXT = "6f9e8a0c-0000-4000-8000-000000000001", "6f9e8a0c-0000-4000-8000-000000000002"


def disk(size: int = 100, instance: str = f"{BOOT} 7", **values: str) -> DiskRecord:
    return DiskRecord({"size": str(size), "instance": instance, **values})


LATER = f"{NEXT} 9"
NAA, NAA_2 = "naa.5000c500a1b2c3d4", "naa.5000c500a1b2c3d5"


@pytest.mark.parametrize(
    ("recorded", "seen", "expected"),
    [
        # By the device, whatever its filesystem and its size.
        (disk(wwid=NAA), disk(wwid=NAA, instance=LATER), SAME),
        (disk(wwid=NAA), disk(wwid=NAA_2, instance=LATER), OTHER),
        (disk(wwid=NAA, serial="a"), disk(wwid=NAA, serial="b"), OTHER),
        (disk(dm="LVM-1", size=100), disk(dm="LVM-1", size=200, instance=LATER), SAME),
        (disk(dm="LVM-1"), disk(dm="LVM-2"), OTHER),
        (disk(serial="a", filesystem="1"), disk(serial="a", filesystem="2", instance=LATER), SAME),
        (disk(loop="inode 7 offset 0"), disk(loop="inode 8 offset 0", filesystem="1"), OTHER),
        # World-wide names of two kinds can't be compared, as after an update of kernel or firmware.
        (
            disk(wwid="eui.0025385b71b0c1d2", serial="a namespace 1"),
            disk(wwid="nvme.8086-1", serial="a namespace 1"),
            SAME,
        ),
        (
            disk(wwid="eui.0025385b71b0c1d2", serial="a namespace 1"),
            disk(wwid="nvme.8086-1", serial="a namespace 2"),
            OTHER,
        ),
        (disk(wwid="eui.0025385b71b0c1d2"), disk(wwid="eui.0025385b71b0c1d20025385b71b0c1d2", instance=LATER), UNKNOWN),
        (disk(wwid=NAA), disk(wwid="t10.ATA disk", instance=LATER), UNKNOWN),
        # Which part of it.
        (disk(wwid=NAA, partition="2048"), disk(wwid=NAA, partition="2048", instance=LATER), SAME),
        (disk(wwid=NAA, partition="2048"), disk(wwid=NAA, partition="4096"), OTHER),
        (disk(wwid=NAA, partition="2048"), disk(wwid=NAA), OTHER),
        (disk(wwid=NAA, folder="/a inode 12"), disk(wwid=NAA, folder="/b inode 13"), OTHER),
        (disk(wwid=NAA, folder="/a inode 12"), disk(wwid=NAA, folder="/a inode 13"), OTHER),
        # By the filesystem, where the device has nothing.
        (disk(filesystem="1"), disk(filesystem="1", instance=LATER), SAME),
        (disk(filesystem="1"), disk(filesystem="2", instance=LATER), OTHER),
        (disk(filesystem="1"), disk(filesystem="2"), SAME),  # made anew while the node ran
        (disk(wwid=NAA, filesystem="1"), disk(filesystem="1", instance=LATER), SAME),
        (DiskRecord({"source": "tmpfs tmpfs"}), DiskRecord({"source": "tmpfs tmpfs"}), SAME),
        (DiskRecord({"source": "nfs host:/a"}), DiskRecord({"source": "nfs host:/b"}), OTHER),
        (DiskRecord({"source": "tmpfs tmpfs"}), disk(filesystem="1"), UNKNOWN),
        # What was seen and can't be seen now is not the same; nor is one that has now what it had not.
        (disk(wwid=NAA), disk(instance=LATER), UNKNOWN),
        (disk(filesystem="1"), disk(instance=LATER), UNKNOWN),
        (disk(), disk(wwid=NAA, instance=LATER), UNKNOWN),
        (disk(), disk(md="1", instance=LATER), SAME),
        # By nothing: the number that the kernel gave it while the node runs, and its size.
        (disk(), disk(), SAME),
        (disk(), disk(instance=f"{BOOT} 8"), OTHER),
        (disk(), disk(instance=LATER), SAME),
        (disk(), disk(instance=LATER, size=101), OTHER),
        (disk(instance=f"{BOOT} 8:16"), disk(instance=f"{BOOT} 8:32"), OTHER),
        (disk(instance=f"{BOOT} 8:16"), disk(instance=f"{BOOT} 8:16", size=101), OTHER),
        (disk(instance=f"{BOOT} 8:16", filesystem="1"), disk(instance=f"{BOOT} 8:16", filesystem="2"), OTHER),
    ],
)
def test_is_it_that_disk(recorded: DiskRecord, seen: DiskRecord, expected: Match) -> None:
    assert recorded.is_now(seen) is expected
    assert diskrecord.match(recorded.render(), seen) is expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (disk(wwid=NAA), disk(wwid=NAA, instance=LATER), True),
        (disk(wwid=NAA), disk(wwid=NAA, partition="2048"), True),
        (disk(wwid=NAA, partition="2048"), disk(wwid=NAA, partition="4096"), False),
        (disk(wwid=NAA), disk(wwid=NAA_2), False),
        (disk(wwid=NAA, folder="/a inode 12"), disk(wwid=NAA, folder="/a/b inode 13"), True),
        (disk(wwid=NAA, folder="/a inode 12"), disk(wwid=NAA, folder="/ab inode 13"), False),
        (disk(wwid=NAA, folder="/a inode 12"), disk(wwid=NAA), True),
        (disk(), disk(), False),
        (disk(filesystem="1"), disk(filesystem="1", instance=LATER), True),
        (DiskRecord({"source": "tmpfs tmpfs"}), DiskRecord({"source": "tmpfs tmpfs"}), False),
        (disk(loop="inode 12 offset 0"), disk(loop="inode 12 offset 0", instance=LATER), False),
        (disk(loop="inode 12 offset 0"), disk(loop="inode 12 offset 0"), True),
    ],
)
def test_is_it_certainly_the_same_or_a_part(one: DiskRecord, other: DiskRecord, expected: bool) -> None:
    assert one.overlaps(other) is other.overlaps(one) is expected


@pytest.mark.parametrize("garbage", ["{", "[]", '{"wwid": 7}', "null", "x" * 10_000])
def test_an_annotation_that_somebody_spoiled_is_no_match(garbage: str) -> None:
    assert diskrecord.match(garbage, disk(wwid=NAA)) is UNKNOWN
    assert not diskrecord.overlaps(garbage, disk(wwid=NAA))
    message = diskrecord.difference("pv", garbage, disk(wwid=NAA))
    assert "which can't be read" in message
    assert len(message) < 1024, "an event's message"


def test_what_is_not_recorded_is_not_compared() -> None:
    assert diskrecord.match("", None) is SAME
    assert diskrecord.match(disk(wwid=NAA).render(), None) is UNKNOWN


def test_the_message_names_both_and_what_to_do() -> None:
    message = diskrecord.difference("pv", disk(wwid=NAA, serial="a").render(), disk(wwid=NAA_2, serial="b"))
    assert message.startswith(
        f"leads to another disk than PersistentVolume pv was made of: that was [wwid {NAA}, serial a,"
    )
    assert f"and there is [wwid {NAA_2}, serial b," in message
    assert "kubectl annotate pv pv elastic-local.volumes.k8s.elastic.co/disk-" in message


def test_the_annotation_is_a_map_in_a_stable_order() -> None:
    assert json.loads(disk(wwid=NAA).render()) == {"wwid": NAA, "size": "100", "instance": f"{BOOT} 7"}
    assert DiskRecord({"size": "1", "wwid": NAA}).render() == DiskRecord({"wwid": NAA, "size": "1"}).render()
