"""A claim that names another VolumeAttributesClass: what its volume gets, and what everybody is told."""

from dataclasses import replace
from typing import Any

import pytest

from contract import names
from contract import volume as contract_volume
from contract.parameters import VolumeParameters
from contract.volume import PersistentVolume
from kube.errors import Conflict, Json, Unreachable
from kube.records import Claim, VolumeAttributesClass
from kube.resources import ATTRIBUTES_CLASSES, CLAIMS, CLASSES, VOLUMES
from provisioner.decision import ClassMissing
from provisioner.modification import (
    Complete,
    Modify,
    Pend,
    Plan,
    Refuse,
    RolledBack,
    Settled,
    Wait,
    plan,
    status_patch,
    target_of,
)
from tests.memorycluster import MemoryCluster
from tests.unit.provisioner.leader import PV, bind, does, leading, raises, volume
from tests.unit.provisioner.leader import claim as stored
from tests.unit.provisioner.objects import MIB, claim, claim_body, class_body, published
from tests.waiting import drained, until

GOLD = VolumeAttributesClass("gold", names.CSI_DRIVER, {"readIOPS": "2k"})
LIMITED = VolumeParameters(read_iops=500, write_iops=600)
MODIFYING, ERROR = "ModifyingVolume", "ModifyVolumeError"


def limited(**changes: Any) -> PersistentVolume:
    body = {
        "metadata": {"name": PV, "uid": "uid", "resourceVersion": "7"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            **contract_volume.source_spec("csi", PV, "ext4", {"readIOPS": "500", "writeIOPS": "600"}),
        },
    }
    made = contract_volume.read(body)
    assert made
    return replace(made, node_label="n1", **changes)


def asking(wanted: str, *, has: str = "", step: str = "", to: str = "", told: str = "") -> Claim:
    conditions = tuple((each, "m") for each in told.split())
    return replace(
        claim(volumeName=PV, volumeAttributesClassName=wanted),
        phase="Bound",
        current_attributes_class=has,
        modify_status=step,
        modify_target=to,
        modify_conditions=conditions,
    )


CHANGED = VolumeParameters(read_iops=2000, write_iops=600)
NONE = ClassMissing("there is none")


@pytest.mark.parametrize(
    ("volume", "claim", "attributes", "planned"),
    [
        pytest.param(limited(), asking(""), None, Settled(), id="names none"),
        pytest.param(limited(), asking("gold", has="gold"), GOLD, Settled(), id="has it"),
        pytest.param(limited(), asking("gold", has="gold"), NONE, Settled(), id="has it, and the class is gone"),
        pytest.param(limited(), asking("gold"), GOLD, Modify("gold", CHANGED), id="the first class"),
        pytest.param(
            limited(attributes_class="silver", io_limits="readIOPS=max writeIOPS=900"),
            asking("gold", has="silver"),
            GOLD,
            Modify("gold", VolumeParameters(read_iops=2000, write_iops=900)),
            id="another class: what it does not name stays as it was changed before",
        ),
        pytest.param(limited(), asking("gold"), NONE, Pend("gold", "there is none"), id="no such class"),
        pytest.param(limited(), asking("gold"), ClassMissing("", unread=True), Wait(), id="not known yet"),
        pytest.param(
            limited(attributes_class="gold"),
            asking("gold", step="InProgress", to="gold", told=MODIFYING),
            GOLD,
            Complete("gold"),
            id="cut off between volume and claim",
        ),
        pytest.param(
            limited(attributes_class="silver"),
            asking("silver", has="silver", step="Infeasible", to="gold", told=f"{MODIFYING} {ERROR}"),
            GOLD,
            Complete("silver"),
            id="back to what it has",
        ),
        pytest.param(
            limited(),
            asking("gold", step="InProgress", to="silver", told=MODIFYING),
            GOLD,
            Modify("gold", CHANGED),
            id="changed its mind",
        ),
        pytest.param(
            limited(),
            asking("", step="InProgress", to="gold", told=MODIFYING),
            GOLD,
            Modify("gold", CHANGED),
            id="names none any more, and one is in progress",
        ),
        pytest.param(
            limited(),
            asking("", step="Infeasible", to="gold", told=f"{MODIFYING} {ERROR}"),
            None,
            RolledBack(),
            id="gave up",
        ),
        pytest.param(
            limited(), asking("", step="Infeasible", to="gold", told=ERROR), None, Settled(), id="has given up"
        ),
    ],
)
def test_plan(
    volume: PersistentVolume, claim: Claim, attributes: VolumeAttributesClass | ClassMissing | None, planned: Plan
) -> None:
    assert plan(volume, claim, attributes, published()) == planned
    # It is a goal, and no swing: what was written is what is planned then.
    after = written(claim, planned)
    assert status_patch(after, planned, "", has=after.current_attributes_class) == {}


@pytest.mark.parametrize(
    ("volume", "change", "words"),
    [
        (limited(), {"parameters": {"iops": "5"}}, ["readBandwidth writeBandwidth readIOPS writeIOPS", "make another"]),
        (limited(), {"parameters": {"readIOPS": "x" * 253}}, ["from 10 to 100M"]),
        (limited(), {"driver": "ebs.csi.aws.com"}, ["ebs.csi.aws.com", names.CSI_DRIVER]),
        (limited(source="flexVolume"), {}, ["FlexVolume", "migrate"]),
    ],
)
def test_what_its_volume_can_not_have_is_infeasible(
    volume: PersistentVolume, change: dict[str, Any], words: list[str]
) -> None:
    planned = plan(volume, asking("gold"), replace(GOLD, **change), published())
    assert isinstance(planned, Refuse)
    assert all(word in planned.why for word in words), planned.why
    assert status_patch(written(asking("gold"), planned), planned, "", has="") == {}


def test_a_folder_has_no_limits_and_nobody_knows_of_a_node_that_says_nothing() -> None:
    folders = replace(published(), block=False)
    refused = plan(limited(), asking("gold"), GOLD, folders)
    assert isinstance(refused, Refuse)
    assert "BINDMOUNT" in refused.why
    none = replace(GOLD, parameters={"readIOPS": "max", "writeIOPS": "max"})
    assert plan(limited(), asking("gold"), none, folders) == Modify("gold", VolumeParameters())
    assert isinstance(plan(limited(), asking("gold"), GOLD, None), Modify)


def written(claim: Claim, planned: Plan) -> Claim:
    """The claim with its status as the patch has it, where that was right about what the volume has."""
    body = status_patch(claim, planned, "now", has=claim.current_attributes_class)
    if not body:
        return claim
    assert body["metadata"] == {"uid": claim.uid, "resourceVersion": claim.resource_version}
    status = body["status"]
    conditions = dict(claim.modify_conditions)
    for each in status.get("conditions", []):
        if each.get("$patch") == "delete":
            del conditions[each["type"]]
        else:
            conditions[each["type"]] = each["message"]
    step = status.get(
        "modifyVolumeStatus", {"status": claim.modify_status, "targetVolumeAttributesClassName": claim.modify_target}
    )
    return replace(
        claim,
        current_attributes_class=status.get("currentVolumeAttributesClassName", claim.current_attributes_class),
        modify_status=step["status"] if step else "",
        modify_target=step["targetVolumeAttributesClassName"] if step else "",
        modify_conditions=tuple(conditions.items()),
    )


def test_the_status_says_why_in_the_words_of_the_external_resizer() -> None:
    status = status_patch(asking("gold"), Refuse("gold", "because"), "now", has="")["status"]
    assert status["modifyVolumeStatus"] == {"status": "Infeasible", "targetVolumeAttributesClassName": "gold"}
    assert [(each["type"], each.get("reason"), each["message"]) for each in status["conditions"]] == [
        (MODIFYING, None, 'Modifying volume to "gold" failed. Waiting for retry.'),
        (ERROR, "InvalidArgument", "because"),
    ]
    assert "conditions" not in status_patch(asking("gold"), Pend("gold", "because"), "now", has="")["status"]


def test_no_class_is_the_target_of_a_claim_that_names_none() -> None:
    assert target_of(asking("gold", step="InProgress", to="silver")) == "gold"
    assert target_of(asking("", step="InProgress", to="silver")) == "silver"
    assert not target_of(asking("", step="Infeasible", to="silver"))


def attributes_class(name: str, **parameters: str) -> Json:
    return {"metadata": {"name": name}, "driverName": names.CSI_DRIVER, "parameters": parameters}


def asked(cluster: MemoryCluster, wanted: str = "") -> None:
    """A claim with its volume, which names a class from the beginning, or none."""
    cluster.put(CLASSES, class_body(parameters={"volumeSource": "csi", "writeIOPS": "600"}))
    named = {"volumeAttributesClassName": wanted} if wanted else {}
    cluster.put(CLAIMS, claim_body(**named))


def becomes_bound(cluster: MemoryCluster) -> None:
    body = volume(cluster)
    assert body
    cluster.put(VOLUMES, {**body, "status": {"phase": "Bound"}})
    bind(cluster)
    has = body["spec"].get("volumeAttributesClassName")
    status = {
        "phase": "Bound",
        "capacity": {"storage": "1Gi"},
        **({"currentVolumeAttributesClassName": has} if has else {}),
    }
    cluster.put(CLAIMS, {**stored(cluster), "status": status})


def asks(cluster: MemoryCluster, wanted: str) -> None:
    body = stored(cluster)
    cluster.put(CLAIMS, {**body, "spec": {**body["spec"], "volumeAttributesClassName": wanted}})


def limits(cluster: MemoryCluster) -> VolumeParameters:
    body = volume(cluster)
    assert body
    record = contract_volume.read(body)
    assert record
    return record.parameters()


def current(cluster: MemoryCluster) -> str:
    return str(stored(cluster)["status"].get("currentVolumeAttributesClassName", ""))


def told(cluster: MemoryCluster, reason: str) -> bool:
    return bool(cluster.messages(f"VolumeModify{reason}"))


async def test_a_claim_gets_another_class_and_waits_for_one_that_comes_later(cluster: MemoryCluster) -> None:
    asked(cluster)
    async with leading(cluster):
        await until(lambda: volume(cluster))
        becomes_bound(cluster)
        asks(cluster, "gold")
        await until(lambda: stored(cluster)["status"].get("modifyVolumeStatus"))
        assert stored(cluster)["status"]["modifyVolumeStatus"] == {
            "status": "Pending",
            "targetVolumeAttributesClassName": "gold",
        }
        cluster.put(ATTRIBUTES_CLASSES, attributes_class("gold", readIOPS="2k"))
        await until(lambda: current(cluster) == "gold")
        assert limits(cluster) == VolumeParameters(read_iops=2000, write_iops=600)
        assert not {"modifyVolumeStatus", "conditions"} & {k for k, v in stored(cluster)["status"].items() if v}
        body = volume(cluster)
        assert body
        assert body["spec"]["volumeAttributesClassName"] == "gold"
        cluster.put(ATTRIBUTES_CLASSES, attributes_class("silver", readBandwidth="1Mi"))
        cluster.before["patch", "persistentvolumes"] = [raises(Conflict(409, "Conflict", "changed meanwhile"))]
        asks(cluster, "silver")
        await until(lambda: current(cluster) == "silver")
        assert limits(cluster) == VolumeParameters(read_bandwidth=MIB, read_iops=2000, write_iops=600)
        await until(lambda: all(told(cluster, reason) for reason in ("", "Successful", "Failed")))


async def test_a_claim_that_goes_back_to_its_former_class_gets_its_limits_again(cluster: MemoryCluster) -> None:
    """Though the cache of volumes has not seen yet that it had another one."""
    asked(cluster)
    cluster.put(ATTRIBUTES_CLASSES, attributes_class("gold", readIOPS="2k"))
    cluster.put(ATTRIBUTES_CLASSES, attributes_class("silver", readIOPS="1k"))
    async with leading(cluster) as term:
        await until(lambda: volume(cluster))
        becomes_bound(cluster)
        asks(cluster, "gold")
        await until(lambda: (seen := term.cache.volumes.get(PV)) and seen.attributes_class == "gold")
        await until(lambda: current(cluster) == "gold")
        cluster.before["patch", "persistentvolumes"] = [does(lambda: cluster.hold(VOLUMES))]
        asks(cluster, "silver")
        await until(lambda: current(cluster) == "silver")
        asks(cluster, "gold")
        await until(lambda: (seen := term.cache.claims.get("default/data")) and seen.attributes_class == "gold")
        await drained(term._modification.queue)
        cluster.hold(VOLUMES).set()
        await until(lambda: current(cluster) == "gold")
        assert limits(cluster) == VolumeParameters(read_iops=2000, write_iops=600)


async def test_an_infeasible_class_is_told_and_left(cluster: MemoryCluster) -> None:
    asked(cluster)
    cluster.put(ATTRIBUTES_CLASSES, attributes_class("wrong", iops="5"))
    async with leading(cluster):
        await until(lambda: volume(cluster))
        becomes_bound(cluster)
        asks(cluster, "wrong")
        await until(lambda: (stored(cluster)["status"].get("modifyVolumeStatus") or {}).get("status") == "Infeasible")
        assert {each["type"] for each in stored(cluster)["status"]["conditions"]} == {MODIFYING, ERROR}
        assert limits(cluster) == VolumeParameters(write_iops=600)
        asks(cluster, "")
        await until(lambda: {each["type"] for each in stored(cluster)["status"]["conditions"]} == {ERROR})
        await until(lambda: told(cluster, "Canceled"))


async def test_the_status_names_the_class_that_the_volume_has(cluster: MemoryCluster) -> None:
    """Though the answer was lost when it got that, and the claim had named one that is not there by then."""
    asked(cluster)
    cluster.put(ATTRIBUTES_CLASSES, attributes_class("gold", readIOPS="2k"))

    async def lose_the_answer() -> None:
        asks(cluster, "missing")
        raise Unreachable(0, "ConnectionLost", "the answer is lost")

    async with leading(cluster):
        await until(lambda: volume(cluster))
        becomes_bound(cluster)
        cluster.after["patch", "persistentvolumes"] = [lose_the_answer]
        asks(cluster, "gold")
        await until(lambda: (stored(cluster)["status"].get("modifyVolumeStatus") or {}).get("status") == "Pending")
        await until(lambda: current(cluster) == "gold")
        assert limits(cluster) == VolumeParameters(read_iops=2000, write_iops=600)


async def test_a_new_volume_waits_for_its_class(cluster: MemoryCluster) -> None:
    asked(cluster, "gold")
    async with leading(cluster):
        await until(lambda: any("'gold'" in message for message in cluster.messages("ProvisioningFailed")))
        assert not volume(cluster)
        cluster.put(ATTRIBUTES_CLASSES, attributes_class("gold", readIOPS="2k"))
        await until(lambda: volume(cluster))
        assert limits(cluster) == VolumeParameters(read_iops=2000, write_iops=600)
        becomes_bound(cluster)
        asks(cluster, "silver")
        await until(lambda: told(cluster, "Failed"))
        assert not told(cluster, ""), "it had gold from the beginning"
