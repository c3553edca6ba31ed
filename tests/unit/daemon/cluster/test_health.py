"""What ails volumes: who is found unwell, and that each change is told once."""

from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from contract.volume import DELETE, ObjectReference, PersistentVolume
from daemon.cluster.events import NodeEvents
from daemon.cluster.health import _REMEDIES, VolumeHealthMonitor, changes, diagnose
from daemon.storage.inventory import Inventory, Pool, UnavailablePool, Volume, VolumeHealth
from daemon.storage.record import Record, VolumeState
from daemon.storage.volumes import Volumes
from kube.events import Recorder
from tests.unit.daemon.cluster.pv import pv

PV = replace(pv("a", 100), pool="vg")
POOL = Pool("vg", 1000, 900, 100, 1)
WELL = Volume(Record("a", PV.uid, DELETE, "ext4", VolumeState.READY), 100, "vg")
NODE = ObjectReference("Node", "v1", "", "n1", "uid-n1")


def of(health: VolumeHealth) -> Volume:
    return replace(WELL, health=health)


@pytest.mark.parametrize(
    ("inventory", "persistent_volumes", "read_only", "diagnosis"),
    [
        (Inventory([WELL], [POOL]), [PV], [], {}),
        (Inventory([of(VolumeHealth.RAID_DEGRADED)], [POOL]), [PV], [], {"a": VolumeHealth.RAID_DEGRADED}),
        (Inventory([WELL], [POOL]), [PV], ["a"], {"a": VolumeHealth.READ_ONLY}),
        # The cause, and not what follows from it.
        (Inventory([of(VolumeHealth.MISSING_DEVICE)], [POOL]), [PV], ["a"], {"a": VolumeHealth.MISSING_DEVICE}),
        (Inventory(), [PV], [], {"a": VolumeHealth.MISSING_DEVICE}),
        (Inventory(), [PV], ["a"], {"a": VolumeHealth.MISSING_DEVICE}),
        # Not made yet.
        (Inventory([], [POOL]), [PV], [], {}),
        (Inventory(), [replace(PV, pool="")], [], {}),
        # An orphan.
        (Inventory([of(VolumeHealth.THIN_POOL_FAILED)], [POOL]), [], [], {"a": VolumeHealth.THIN_POOL_FAILED}),
    ],
)
def test_who_is_unwell(
    inventory: Inventory,
    persistent_volumes: list[PersistentVolume],
    read_only: list[str],
    diagnosis: dict[str, VolumeHealth],
) -> None:
    assert diagnose(inventory, persistent_volumes, read_only) == diagnosis


def test_who_gives_no_answer_is_unwell_whatever_else_he_is() -> None:
    silent = Inventory([WELL], [POOL], unavailable=[UnavailablePool("vg", "it hangs", unresponsive=True)])
    assert diagnose(silent, [PV], []) == {"a": VolumeHealth.UNRESPONSIVE}
    assert diagnose(Inventory([WELL], [POOL], unavailable=[UnavailablePool("vg", "exported")]), [PV], []) == {}
    assert diagnose(Inventory([], [POOL]), [PV], [], ["a", "gone"]) == {"a": VolumeHealth.UNRESPONSIVE}
    assert diagnose(Inventory([WELL], [POOL]), [PV], ["a"], ["a"]) == {"a": VolumeHealth.UNRESPONSIVE}


def test_only_what_changed_is_a_change() -> None:
    before = {"same": VolumeHealth.READ_ONLY, "worse": VolumeHealth.RAID_DEGRADED, "well": VolumeHealth.THIN_POOL_FULL}
    now = {"same": VolumeHealth.READ_ONLY, "worse": VolumeHealth.MISSING_DEVICE, "new": VolumeHealth.UNKNOWN}
    assert dict(changes(before, now)) == {
        "worse": VolumeHealth.MISSING_DEVICE,
        "well": VolumeHealth.OK,
        "new": VolumeHealth.UNKNOWN,
    }


def test_each_state_says_what_to_do() -> None:
    assert set(_REMEDIES) == set(VolumeHealth) - {VolumeHealth.OK}


@dataclass
class Node:
    """Volumes that are as the test says."""

    inventory: Inventory = field(default_factory=lambda: Inventory([WELL], [POOL]))
    unwritable: frozenset[str] = frozenset()

    hung: dict[str, str] = field(default_factory=dict)

    async def read_only(self) -> frozenset[str]:
        return self.unwritable

    def unresponsive(self) -> dict[str, str]:
        return self.hung


@dataclass
class RecordedEvents:
    words: list[tuple[str, str, str]] = field(default_factory=list)

    def normal(self, reference: ObjectReference, reason: str, message: str) -> None:
        self.words.append((reference.kind, reason, message))

    warning = normal


def monitor_of(node: Node, recorded: RecordedEvents, persistent_volumes: list[PersistentVolume]) -> VolumeHealthMonitor:
    recorder = cast(Recorder, recorded)
    node_events = NodeEvents(recorder)
    node_events.set_node(NODE)
    return VolumeHealthMonitor(cast(Volumes, node), lambda: persistent_volumes, recorder, node_events)


async def test_a_change_is_reported_once_on_the_volume_and_on_the_node() -> None:
    node, recorded = Node(), RecordedEvents()
    monitor = monitor_of(node, recorded, [PV])
    await monitor.check()
    assert recorded.words == []

    node.unwritable = frozenset({"a"})
    for _ in range(2):
        await monitor.check()
    assert [(kind, reason) for kind, reason, _ in recorded.words] == [
        ("Node", "VolumeUnhealthy"),
        ("PersistentVolume", "VolumeUnhealthy"),
    ]
    assert "volume a is read-only: it can only be read" in recorded.words[0][2]
    assert monitor.unhealthy == {"a": VolumeHealth.READ_ONLY}

    node.unwritable = frozenset()
    recorded.words.clear()
    for _ in range(2):
        await monitor.check()
    assert [(kind, reason) for kind, reason, _ in recorded.words] == [
        ("Node", "VolumeHealthy"),
        ("PersistentVolume", "VolumeHealthy"),
    ]
    assert monitor.unhealthy == {}


async def test_nobody_calls_a_volume_well_that_was_removed() -> None:
    node, recorded = Node(Inventory([of(VolumeHealth.RAID_DEGRADED)], [POOL])), RecordedEvents()
    monitor = monitor_of(node, recorded, [])
    await monitor.check()
    recorded.words.clear()
    node.inventory = Inventory([], [POOL])
    await monitor.check()
    assert recorded.words == []
