"""Migration between the drivers: what is left alone, and that the data is safe wherever it is cut off."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from command import migrate, migration
from command.main import app
from command.migrate import Migrator
from command.migration import CONTINUE, LEAVE, MIGRATE, UNKNOWN, Plan, Step
from command.running import Stop
from command.volumerows import Row
from contract import names, snapshot
from contract import volume as contract_volume
from contract.parameters import SecretReference
from contract.volume import NodeAssignment, PersistentVolume
from host.command import CommandError
from kube.errors import Json
from kube.records import Claim, Pod, PodVolume, read_claim
from kube.resources import CLAIMS, CONFIG_MAPS, CSI_NODES, NODES, PODS, VOLUMES
from tests.memorycluster import MemoryCluster

PV, CLAIM = "pvc-1", "default/data"
CLAIM_UID = "11111111-2222-3333-4444-555555555555"
OPTIONS = {"size": str(1 << 30), "stripes": "2", "mountOptions": "noatime,discard"}


def volume_body(source: str = "flexVolume", **spec: Any) -> Json:
    assigned = contract_volume.node_assignment_patch(NodeAssignment("n1", "host-1", "vg"))
    return {
        "metadata": {
            "name": PV,
            **assigned["metadata"],
            "annotations": {
                **assigned["metadata"]["annotations"],
                names.PROVISIONED_BY: names.PROVISIONER,
                names.MADE_ANNOTATION: "true",
                names.GRANTED_ANNOTATION: str(1 << 30),
            },
            "finalizers": [names.FINALIZER, contract_volume.PV_PROTECTION],
        },
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": "elastic-local",
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": "default",
                "name": "data",
                "uid": CLAIM_UID,
                "resourceVersion": "5",
            },
            **contract_volume.source_spec(source, PV, "xfs", OPTIONS),
            **assigned["spec"],
            **spec,
        },
        "status": {"phase": "Bound"},
    }


def claim_body() -> Json:
    return {
        "metadata": {"name": "data", "namespace": "default", "uid": CLAIM_UID},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "elastic-local",
            "volumeName": PV,
        },
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]},
    }


class Cut(BaseException):
    """The command is killed."""


class Scene(MemoryCluster):
    """A cluster with one bound claim, and the others played: the daemon of node n1, which holds its volume, and the
    controller of volumes. The command is killed at its write number `cut`, before or `after` it is carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = 0
        self.after_write = False
        self.writes = 0
        self.policy, self.uid = "Delete", ""
        self.pods: tuple[str, ...] = ()
        self.put(NODES, {"metadata": {"name": "n1", "labels": {names.HOSTNAME_LABEL: "host-1"}}})
        drivers = [{"name": names.CSI_DRIVER, "nodeID": "n1"}]
        self.put(CSI_NODES, {"metadata": {"name": "n1"}, "spec": {"drivers": drivers}})
        self.put(CLAIMS, claim_body())
        self.uid = str(self.put(VOLUMES, volume_body())["metadata"]["uid"])

    def migrator(self) -> Migrator:
        return Migrator(self, names.NAMESPACE, self, period=0.0)

    @property
    def volume(self) -> Json | None:
        return self.stored(VOLUMES, PV)

    @property
    def pv(self) -> PersistentVolume:
        assert self.volume
        read = contract_volume.read(self.volume)
        assert read
        return read

    @property
    def claim(self) -> Json:
        body = self.stored(CLAIMS, "data", "default")
        assert body
        return body

    def play(self) -> None:
        """What the daemon and the controller of volumes do in time. The daemon would remove a volume whose record says
        Delete when its PersistentVolume is gone."""
        body = self.volume
        claim = self.claim
        if body is None or body["metadata"]["uid"] != self.uid:
            assert self.policy == "Retain", "nothing holds the data"
        elif body["spec"]["persistentVolumeReclaimPolicy"] != self.policy:
            self.policy = body["spec"]["persistentVolumeReclaimPolicy"]
        phase = "Lost" if body is None else "Bound"
        if body is not None and (body.get("status") or {}).get("phase") != "Bound":
            self.put(VOLUMES, {**body, "status": {"phase": "Bound"}})
        if claim["status"]["phase"] != phase:
            self.put(CLAIMS, {**claim, "status": {"phase": phase, "capacity": {"storage": "1Gi"}}})

    async def rows(self, node: str) -> list[Row]:
        assert node == "n1"
        self.play()
        return [Row(PV, self.uid, "n1", "ready", 1 << 30, policy=self.policy, pods=self.pods)]

    async def adopt(self, node: str, volume: str) -> None:
        with_cut = self._counts()
        if with_cut and not self.after_write:
            raise Cut
        assert (node, volume) == ("n1", PV)
        assert self.volume
        self.uid, self.policy = self.pv.uid, self.pv.reclaim_policy
        if with_cut:
            raise Cut

    def _counts(self) -> bool:
        self.writes += 1
        return self.writes == self.cut

    async def _request(self, method: str, path: str, body: Json | None = None, **more: Any) -> Json:
        if method == "GET":
            return await super()._request(method, path, body, **more)
        cut = self._counts()
        if cut and not self.after_write:
            raise Cut
        answer = await super()._request(method, path, body, **more)
        if cut:
            raise Cut
        return answer


@pytest.fixture
async def scene() -> Scene:
    return Scene()


def pod(phase: str = "Running") -> Json:
    return {
        "metadata": {"name": "db-0", "namespace": "default"},
        "spec": {
            "containers": [{"name": "db", "image": "db"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}],
        },
        "status": {"phase": phase},
    }


def check_migrated(scene: Scene, source: str = "csi", policy: str = "Delete") -> None:
    scene.play()
    body, pv = scene.volume, scene.pv
    assert body
    assert pv.source == source
    assert pv.uid == scene.uid, "the record names it"
    assert (pv.reclaim_policy, scene.policy) == (policy, policy)
    assert body["metadata"]["finalizers"].count(names.FINALIZER) == 1
    assert pv.claim
    assert (str(pv.claim), pv.claim.uid) == (CLAIM, CLAIM_UID)
    assert scene.claim["status"]["phase"] == "Bound"
    assert scene.stored(CONFIG_MAPS, migration.note_name(PV), names.NAMESPACE) is None


async def test_a_flex_volume_becomes_a_csi_volume_on_the_same_data_and_back(scene: Scene) -> None:
    before = scene.volume
    assert before
    await scene.migrator().migrate(PV, "csi")
    check_migrated(scene)
    after = scene.volume
    assert after
    assert after["spec"]["csi"] == {
        "driver": names.CSI_DRIVER,
        "volumeHandle": PV,
        "fsType": "xfs",
        "volumeAttributes": {"size": str(1 << 30), "stripes": "2"},
    }
    assert after["spec"]["mountOptions"] == ["noatime", "discard"]
    await scene.migrator().migrate(PV, "flexVolume")
    check_migrated(scene, "flexVolume")
    back = scene.volume
    assert back
    del before["spec"]["claimRef"]["resourceVersion"]
    assert back["spec"] == before["spec"]
    for key in ("labels", "annotations", "finalizers"):
        assert back["metadata"][key] == before["metadata"][key]


async def test_a_retained_volume_stays_so(scene: Scene) -> None:
    scene.put(VOLUMES, {**(scene.volume or {}), **volume_body(persistentVolumeReclaimPolicy="Retain")})
    await scene.migrator().migrate(PV, "csi")
    check_migrated(scene, policy="Retain")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_wherever_it_is_killed_the_data_is_held_and_the_next_try_does_the_rest(after: bool) -> None:
    for cut in itertools.count(1):
        scene = Scene()
        scene.cut, scene.after_write = cut, after
        try:
            await scene.migrator().migrate(PV, "csi")
        except Cut:
            scene.play()
            for plan in await scene.migrator().plans("csi"):
                assert plan.action == (MIGRATE if cut == 1 and not after else CONTINUE), cut
                await scene.migrator().migrate(plan.volume, "csi")
            check_migrated(scene)
        else:
            assert cut > 8, "note, retain, delete, release, create, hand over, restore, forget"
            return


async def test_a_pod_that_comes_before_the_deletion_takes_all_back(scene: Scene) -> None:
    scene.cut = 3
    with pytest.raises(Cut):
        await scene.migrator().migrate(PV, "csi")
    assert scene.pv.reclaim_policy == "Retain"
    scene.put(PODS, pod())
    with pytest.raises(Stop, match=r"pod db-0 uses it: stop it first. Nothing was changed"):
        await scene.migrator().migrate(PV, "csi")
    check_migrated(scene, "flexVolume")


async def test_a_pod_that_comes_after_the_deletion_is_waited_for(scene: Scene) -> None:
    scene.cut = 4
    with pytest.raises(Cut):
        await scene.migrator().migrate(PV, "csi")
    scene.put(PODS, pod())
    with pytest.raises(Stop, match=r"pod db-0 uses it: stop it first. Then run the same command again"):
        await scene.migrator().migrate(PV, "csi")
    assert scene.pv.deleting
    scene.put(PODS, pod("Succeeded"))
    await scene.migrator().migrate(PV, "csi")
    check_migrated(scene)


async def test_a_claim_that_goes_meanwhile_takes_no_data_along(scene: Scene) -> None:
    scene.cut = 5
    with pytest.raises(Cut):
        await scene.migrator().migrate(PV, "csi")
    assert scene.volume is None
    other = claim_body()
    other["metadata"]["uid"] = "99999999-2222-3333-4444-555555555555"
    scene.put(CLAIMS, other)
    with pytest.raises(Stop, match=r"claim default/data went meanwhile: PersistentVolume pvc-1 keeps its data"):
        await scene.migrator().migrate(PV, "csi")
    assert (scene.pv.reclaim_policy, scene.policy, scene.uid) == ("Retain", "Retain", scene.pv.uid)
    assert await scene.migrator().plans("csi") == []


async def test_one_that_was_begun_is_finished_before_it_is_taken_back(scene: Scene) -> None:
    scene.cut = 5
    with pytest.raises(Cut):
        await scene.migrator().migrate(PV, "csi")
    (plan,) = await scene.migrator().plans("flexVolume")
    assert plan.action == LEAVE
    assert "finish that first, with --to csi" in plan.why


async def test_a_note_that_was_changed_is_not_believed(scene: Scene) -> None:
    scene.cut = 5
    with pytest.raises(Cut):
        await scene.migrator().migrate(PV, "csi")
    (body,) = (each for each in scene.all(CONFIG_MAPS) if each["metadata"]["name"] == migration.note_name(PV))
    for old, new in (
        (CLAIM_UID, "99999999-2222-3333-4444-555555555555"),
        ('"volumeHandle": "pvc-1"', '"volumeHandle": "pvc-2"'),
        ('"persistentVolumeReclaimPolicy": "Retain"', '"persistentVolumeReclaimPolicy": "Delete"'),
        ("{", "["),
    ):
        text = body["data"]["note.json"]
        assert old in text
        changed = {**body, "data": {"note.json": text.replace(old, new, 1)}}
        scene.put(CONFIG_MAPS, changed)
        with pytest.raises(Stop, match="can't be read"):
            await scene.migrator().migrate(PV, "csi")
    assert scene.volume is None
    scene.put(CONFIG_MAPS, body)
    await scene.migrator().migrate(PV, "csi")
    check_migrated(scene)


async def test_a_dry_run_writes_nothing_and_a_node_that_is_silent_is_left_alone(scene: Scene) -> None:
    (plan,) = await scene.migrator().plans("csi", [CLAIM])
    assert (plan.action, plan.claim, plan.volume, plan.node) == (MIGRATE, CLAIM, PV, "n1")
    assert scene.writes == 0
    assert await scene.migrator().plans("flexVolume") == []
    with pytest.raises(Stop, match="default/other has no volume"):
        await scene.migrator().plans("csi", ["default/other"])

    class Silent:
        async def rows(self, node: str) -> list[Row]:
            raise Stop(f"no daemon runs on node {node}")

        async def adopt(self, node: str, volume: str) -> None:
            raise AssertionError

    (plan,) = await Migrator(scene, names.NAMESPACE, Silent()).plans("csi")
    assert (plan.action, plan.doable) == (UNKNOWN, False)
    assert "no daemon runs" in plan.why


@pytest.mark.parametrize(
    ("claims", "yes", "actions", "code"),
    [
        ([], True, [MIGRATE, LEAVE], 0),
        ([CLAIM], True, [CONTINUE], 0),
        ([CLAIM], False, [LEAVE], 0),
        ([CLAIM], True, [LEAVE], 1),
        ([], False, [MIGRATE, UNKNOWN], 1),
    ],
)
def test_a_claim_that_was_asked_for_and_a_node_that_is_silent_fail_the_command(
    claims: list[str], yes: bool, actions: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def planned(*_: object) -> list[Plan]:
        return [Plan(CLAIM, PV, "n1", action, "") for action in actions]

    monkeypatch.setattr(migrate, "_migrate", planned)
    words = ["migrate", *claims, *(["--yes"] if yes else [])]
    assert CliRunner().invoke(app, words).exit_code == code


def record(body: Json, **changes: Any) -> PersistentVolume:
    body["metadata"] |= {"uid": "uid-1", "resourceVersion": "7"}
    read = contract_volume.read(body)
    assert read
    return replace(read, **changes)


def a_claim(**changes: Any) -> Claim:
    body = claim_body()
    body["metadata"]["resourceVersion"] = "1"
    return replace(read_claim(body), **changes)


HERE = Row(PV, "uid-1", "n1", "ready", 1 << 30, policy="Delete")
USER = Pod("default", "db-0", "u", "n1", "Running", (PodVolume("v", "data", False, False),), deleting=False)
COPY = replace(
    record(volume_body()), name="pvc-2", uid="uid-2", made=False, options={"cloneOf": PV, "cloneOfUid": "uid-1"}
)


_CONTENT = snapshot.read(
    {
        "metadata": {"name": "snapcontent-1", "uid": "uid-3", "resourceVersion": "1"},
        "spec": {"driver": names.CSI_DRIVER, "deletionPolicy": "Delete", "source": {"volumeHandle": PV}},
    }
)
assert _CONTENT
CONTENT = _CONTENT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"pv": record(volume_body(), deleting=True)}, "being deleted"),
        ({"pv": record(volume_body(), phase="Released")}, "Released"),
        ({"pv": record(volume_body(), made=False)}, "not made yet"),
        ({"pv": record(volume_body(), finalizers=("example.com/mine",))}, "finalizer example.com/mine"),
        ({"pv": record(volume_body(), options={"colour": "red"})}, "can't be served"),
        ({"claim": None}, "gone"),
        ({"claim": a_claim(uid="other")}, "gone"),
        ({"claim": a_claim(volume_name="pvc-9")}, "gone"),
        ({"claim": a_claim(requested=2 << 30)}, "asks for more than it has"),
        ({"pods": [USER]}, "pod db-0 uses it"),
        ({"pods": [replace(USER, phase="Pending", node_name="")]}, "pod db-0 uses it"),
        ({"pods": [replace(USER, phase="Failed"), replace(USER, namespace="other")]}, ""),
        ({"row": replace(HERE, pods=("uid-of-pod",))}, "still mounted"),
        ({"row": None}, "does not show it"),
        ({"row": replace(HERE, uid="uid-0")}, "of another PersistentVolume"),
        ({"row": replace(HERE, remark="raid-degraded")}, "ready (raid-degraded)"),
        ({"others": [COPY]}, "pvc-2 is to become a copy"),
        ({"others": [replace(COPY, made=True)]}, ""),
        ({"contents": [CONTENT]}, "snapcontent-1 is to become a snapshot"),
        ({"contents": [replace(CONTENT, ready=True), replace(CONTENT, source_volume="pvc-2")]}, ""),
        ({"registered": False}, "does not know the CSI driver"),
        ({"registered": False, "to": "flexVolume"}, ""),
        ({"pv": record(volume_body("csi", volumeMode="Block")), "to": "flexVolume"}, "can't be a block device"),
        (
            {"pv": record(volume_body("csi", accessModes=["ReadWriteOncePod"])), "to": "flexVolume"},
            "can't be ReadWriteOncePod",
        ),
        ({"pv": record(volume_body("csi"), secret=SecretReference("ns", "key")), "to": "flexVolume"}, "be encrypted"),
        ({"pv": record(volume_body("csi", volumeAttributesClassName="gold")), "to": "flexVolume"}, "Class gold"),
        ({"pv": record(volume_body("csi", volumeAttributesClassName="gold"))}, ""),
    ],
)
def test_what_stands_in_the_way(changes: Json, message: str) -> None:
    given: Json = {
        "pv": record(volume_body()),
        "claim": a_claim(),
        "pods": [],
        "row": HERE,
        "others": [],
        "contents": [],
        "to": "csi",
        "registered": True,
        **changes,
    }
    registered = given.pop("registered")
    found = migration.obstacle(**given, registered=registered)
    assert (message in found) if message else found == "", found


def test_nothing_is_deleted_before_the_node_has_recorded_that_it_is_to_stay() -> None:
    pv = record(volume_body())
    note = migration.note_of({**volume_body(), "metadata": {**volume_body()["metadata"]}}, pv, "csi")

    def step(pv: PersistentVolume | None, row: Row | None, *, claimed: bool = True, used: str = "") -> Step:
        return migration.next_step(note, pv, row, claimed=claimed, used=used)

    retained, kept = replace(pv, reclaim_policy="Retain"), replace(HERE, policy="Retain")
    assert step(pv, kept) is Step.RETAIN
    for row in (HERE, None, replace(kept, uid="uid-0")):
        assert step(retained, row) is Step.AWAIT_RECORD
        assert step(replace(retained, deleting=True), row) is Step.AWAIT_RECORD
    assert step(replace(pv, deleting=True), kept) is Step.RETAIN
    assert step(retained, kept) is Step.DELETE
    assert step(retained, kept, used="db-0") is Step.ABANDON
    assert step(retained, kept, claimed=False) is Step.ABANDON
    assert step(replace(retained, deleting=True), kept) is Step.RELEASE
    new = replace(retained, uid="uid-9", source="csi")
    assert step(new, kept) is Step.HAND_OVER
    assert step(new, replace(kept, uid="uid-9")) is Step.RESTORE
    assert step(replace(new, phase="Available"), replace(kept, uid="uid-9")) is Step.AWAIT_BOUND
    with pytest.raises(ValueError, match="somebody else made"):
        step(replace(new, source="flexVolume"), kept)
    with pytest.raises(ValueError, match="does not show the volume"):
        step(new, replace(kept, uid="uid-5"))


async def test_a_step_that_does_not_come_ends_with_what_to_look_at(scene: Scene) -> None:
    ticks = itertools.count(0, 50)

    class Deaf:
        async def rows(self, node: str) -> list[Row]:
            return [Row(PV, scene.uid, "n1", "ready", 1 << 30, policy="Delete")]

        async def adopt(self, node: str, volume: str) -> None:
            raise CommandError("no")

    migrator = Migrator(scene, names.NAMESPACE, Deaf(), clock=lambda: next(ticks), period=0.0)
    with pytest.raises(Stop, match="still to wait until its node has recorded Retain after 180 s"):
        await migrator.migrate(PV, "csi")
