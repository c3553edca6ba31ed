from dataclasses import replace

from command import volumerows
from command.volumerows import Row
from contract import names
from daemon.storage.inventory import DamagedVolume, ForeignVolume, Inventory, UnavailablePool, Volume, VolumeHealth
from daemon.storage.record import VolumeState
from kube.records import Pod, PodVolume
from tests.unit.command.objects import GIB, NODE, OTHER_NODE, held, persistent_volume

_POD = Pod("default", "db-0", "pod-uid", "node-1", "Running", (PodVolume("v", "data", False, False),), deleting=False)


def rows(*volumes: Row) -> dict[str, str]:
    return {row.volume: row.state for row in volumes}


def test_a_node_reports_all_that_it_holds() -> None:
    half_erased = replace(
        held().record.of_snapshot(), pv="cow_0123456789ab", state=VolumeState.ERASING, erased=GIB // 2
    )
    snapshot = Volume(half_erased, GIB, "vg")
    inventory = Inventory(
        [replace(held(), health=VolumeHealth.RAID_DEGRADED)],
        [],
        [ForeignVolume("root", "vg", GIB)],
        [DamagedVolume("pvc-9", "vg", "it has no uid")],
        [snapshot],
    )
    joined = volumerows.of_node(inventory, "node-1", {"pvc-1": 5}, {"pvc-1": ("pod-uid",)})
    assert rows(*joined) == {"cow_0123456789ab": "snapshot", "pvc-1": "ready", "pvc-9": "damaged", "root": "foreign"}
    passing, mine = joined[:2]
    assert (passing.size, passing.remark) == (GIB, "of pvc-1 while that is copied 50% of its data is gone")
    assert (mine.used, mine.pods, mine.remark) == (5, ("pod-uid",), "raid-degraded")


def test_node_and_cluster_meet_by_uid_and_not_by_name() -> None:
    held_rows = volumerows.of_node(Inventory([held()]), "node-1", {}, {})
    [row] = volumerows.joined(held_rows, [persistent_volume()], [_POD], [NODE], {"node-1"})
    assert (row.state, row.claim, row.pods, row.policy) == ("ready", "default/data", ("default/db-0",), "Delete")

    assert row.source == "flexVolume"
    csi = {"driver": names.CSI_DRIVER, "volumeHandle": "pvc-1", "fsType": "ext4"}
    [row] = volumerows.joined(held_rows, [persistent_volume(flexVolume=None, csi=csi)], [_POD], [NODE], {"node-1"})
    assert (row.source, row.claim) == ("csi", "default/data")

    namesake = persistent_volume(uid="uid-2")
    joined = volumerows.joined(held_rows, [namesake], [_POD], [NODE], {"node-1"})
    assert sorted((row.state, row.claim) for row in joined) == [("orphan", ""), ("pending", "default/data")]


def test_the_io_limits_of_a_class_are_shown() -> None:
    options = {"size": str(GIB), "readBandwidth": "104857600", "readIOPS": "2000", "writeIOPS": "500"}
    limited = persistent_volume(flexVolume={"driver": names.DRIVER, "fsType": "ext4", "options": options})
    held_rows = volumerows.of_node(Inventory([held()]), "node-1", {}, {})
    for node_rows in (held_rows, []):
        [row] = volumerows.joined(node_rows, [limited], [], [NODE], {"node-1"})
        assert row.io_limits == "r=100Mi/s,2000/s w=500/s"
    assert volumerows.io_limits(persistent_volume()) == ""


def test_a_snapshot_is_not_its_source() -> None:
    snapshot = Volume(held().record.of_snapshot(), GIB, "vg")
    held_rows = volumerows.of_node(Inventory([held()], snapshots=[snapshot]), "node-1", {}, {})
    joined = volumerows.joined(held_rows, [persistent_volume()], [_POD], [NODE], {"node-1"})
    assert rows(*joined) == {"pvc-1": "ready", snapshot.pv: "snapshot"}


def test_states_that_only_both_together_show() -> None:
    held_rows = volumerows.of_node(Inventory([held()]), "node-1", {}, {})

    def state(pv: object, answered: set[str], *nodes: object, node_rows: object = held_rows) -> str:
        [row] = volumerows.joined(node_rows, [pv], [], nodes, answered)  # type: ignore[list-item,arg-type]
        return row.state

    pv = persistent_volume()
    assert state(replace(pv, phase="Released"), {"node-1"}, NODE) == "released"
    assert state(replace(pv, deleting=True), {"node-1"}, NODE) == "deleting"
    assert state(pv, {"node-1"}, NODE, node_rows=[]) == "pending"
    assert state(pv, set(), NODE, node_rows=[]) == "unseen"
    assert state(pv, {"node-2"}, OTHER_NODE, node_rows=[]) == "lost"
    assert state(persistent_volume(pinned=False), {"node-1"}, NODE, node_rows=[]) == "pending"


def test_what_a_node_can_not_see_is_not_said_to_be_missing() -> None:
    held_rows = volumerows.of_node(
        Inventory(unavailable=[UnavailablePool("vg", "vg is exported: import it")]), "node-1", {}, {}
    )
    assert rows(*held_rows) == {"-": "unseen"}
    joined = volumerows.joined(held_rows, [persistent_volume()], [_POD], [NODE], {"node-1"})
    assert rows(*joined) == {"-": "unseen", "pvc-1": "unseen"}
    assert {row.remark for row in joined} == {"vg is exported: import it"}


def test_a_volume_of_another_cluster_is_no_orphan() -> None:
    theirs = replace(held(), record=replace(held().record, cluster="another"))
    held_rows = volumerows.of_node(Inventory([theirs]), "node-1", {}, {})
    [row] = volumerows.joined(held_rows, [], [_POD], [NODE], {"node-1"}, "this one")
    assert row.state == "foreign"
    assert row.remark == "of another cluster (another): `elastic-local adopt pvc-1` takes it over"
    [unknown] = volumerows.joined(held_rows, [], [_POD], [NODE], {"node-1"})
    assert unknown.state == "orphan"
