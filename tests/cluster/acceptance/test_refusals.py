"""A claim that can't be served as it is: its owner reads why and what to do, and it is served once that was done."""

from typing import Any

import pytest

from contract import capacity, names
from contract.volume import FLEX_VOLUME
from kube.client import Cluster
from kube.resources import CAPACITIES, CLAIMS, CLASSES, PODS
from tests.cluster.acceptance.trial import Trial
from tests.cluster.conftest import MakeClass
from tests.sandbox.workloads import claim, pod, storage_class

Json = dict[str, Any]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"parameters": {"fstype": "xfs"}},
            "parameter 'fstype' is 'xfs': there is no such parameter, there are ",
        ),
        ({"parameters": {"fsType": "zfs"}}, "parameter 'fsType' is 'zfs': allowed is ext4 xfs btrfs"),
        ({"parameters": {"stripes": "many"}}, "parameter 'stripes' is 'many': allowed is a whole number from 1 to 128"),
        (
            {"parameters": {"mkfsOptions": "-E root_owner=0:0"}},
            "parameter 'mkfsOptions' is '-E root_owner=0:0': allowed for ext4 is -E discard",
        ),
        ({"mountOptions": ["noatime", "dev"]}, "parameter 'mountOptions' is 'dev': allowed for ext4 is"),
    ],
)
@pytest.mark.parametrize("binding", ["Immediate", "WaitForFirstConsumer"])
async def test_wrong_parameters_are_named_with_what_is_allowed(
    namespace: Trial, make_class: MakeClass, binding: str, fields: Json, expected: str
) -> None:
    name = await make_class(binding, **fields)
    await namespace.create(CLAIMS, claim("data", "16Mi", name))
    message = await namespace.until_event("data", "ProvisioningFailed")
    assert message.startswith(f'failed to provision volume with StorageClass "{name}": {expected}')


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            {"accessModes": ["ReadWriteMany"]},
            "access mode ReadWriteMany can't be served: the volume lives on one node, and pods of others can't reach "
            "it. Use ReadWriteOnce, with which all pods on its node can share it",
        ),
        (
            {"accessModes": ["ReadWriteOncePod"]},
            "access mode ReadWriteOncePod is not kept for FlexVolumes: use a class with volumeSource csi, or "
            "ReadWriteOnce",
        ),
        (
            {"volumeMode": "Block"},
            "volumeMode Block is not served by a FlexVolume driver: use a class with volumeSource csi, or volumeMode "
            "Filesystem",
        ),
        (
            {"dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "other"}},
            "VolumeSnapshot",  # there is none of that name, or the cluster has no snapshots
        ),
        (
            {"selector": {"matchLabels": {"disk": "fast"}}},
            "a selector picks among volumes that exist, and this class makes new ones: remove the selector",
        ),
        (
            {"resources": {"requests": {"storage": "512Ki"}}},
            "the claim asks for 512Ki, and ext4 needs at least 1Mi: ask for more",
        ),
    ],
)
async def test_a_claim_that_no_local_volume_can_serve(
    namespace: Trial, make_class: MakeClass, spec: Json, expected: str
) -> None:
    name = await make_class("Immediate", volume_source=FLEX_VOLUME if "FlexVolume" in expected else "")
    await namespace.create(CLAIMS, claim("data", "16Mi", name, **spec))
    await namespace.until_event("data", "ProvisioningFailed", expected)


async def test_a_claim_that_waits_for_its_pod_is_refused_when_that_comes(namespace: Trial) -> None:
    await namespace.create(CLAIMS, claim("data", "100Mi", "elastic-local-xfs"))
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    await namespace.until_event("data", "ProvisioningFailed", "the claim asks for 100Mi, and xfs needs at least 300Mi")


@pytest.mark.parametrize("mode", ["Immediate", "WaitForFirstConsumer"])
async def test_a_class_may_come_after_its_claim(cluster: Cluster, namespace: Trial, mode: str) -> None:
    name = f"late-{namespace.name}"
    await namespace.create(CLAIMS, claim("data", "16Mi", name))
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    await namespace.until_event("user", "FailedScheduling", "unbound immediate PersistentVolumeClaims")
    await cluster.create(CLASSES, storage_class(name, mode))
    try:
        await namespace.until_running("user")
    finally:
        await cluster.delete(CLASSES, name)


async def test_a_class_that_was_made_anew_serves_the_claims_that_it_refused(cluster: Cluster, namespace: Trial) -> None:
    """What the message of the refusal tells people to do."""
    name = f"anew-{namespace.name}"
    await cluster.create(CLASSES, storage_class(name, "Immediate", parameters={"fsType": "ext5"}))
    await namespace.create(CLAIMS, claim("data", "16Mi", name))
    try:
        await namespace.until_event("data", "ProvisioningFailed", "Parameters can't be changed: make the class anew")
    finally:
        await cluster.delete(CLASSES, name)
    await namespace.until_event("data", "ProvisioningFailed", f"there is no StorageClass '{name}': create it")
    await cluster.create(CLASSES, storage_class(name, "Immediate", parameters={"fsType": "ext4"}))
    try:
        await namespace.until_bound("data")
    finally:
        await cluster.delete(CLASSES, name)


async def test_a_claim_larger_than_any_node_waits_with_a_reason(namespace: Trial) -> None:
    """The scheduler's own, which looks at the room that nodes publish."""
    await namespace.create(CLAIMS, claim("huge", "1Pi"))
    await namespace.create(PODS, pod("user", {"/data": "huge"}))
    await namespace.until_event("user", "FailedScheduling", "did not have enough free storage")
    assert (await namespace.get(CLAIMS, "huge"))["status"]["phase"] == "Pending"


async def test_a_pod_can_not_mount_by_itself(cluster: Cluster, namespace: Trial) -> None:
    """It runs on a node that has volumes of ours, and names the driver without any claim."""
    published = [room for room in map(capacity.read, await cluster.list(CAPACITIES)) if room]
    selector = {names.HOSTNAME_LABEL: published[0].hostname}
    volume = {"name": "inline", "flexVolume": {"driver": names.DRIVER}}
    body = pod("user", nodeSelector=selector, volumes=[volume])
    body["spec"]["containers"][0]["volumeMounts"] = [{"name": "inline", "mountPath": "/data"}]
    await namespace.create(PODS, body)
    message = await namespace.until_event("user", "FailedMount", "inline flexVolume")
    assert "use a PersistentVolumeClaim" in message


async def test_claims_of_others_are_left_alone(namespace: Trial, make_class: MakeClass) -> None:
    foreign = await make_class("Immediate", provisioner="example.com/other")
    await namespace.create(CLAIMS, claim("foreign", "16Mi", foreign))
    await namespace.create(CLAIMS, claim("ours", "16Mi", await make_class("Immediate")))
    await namespace.until_bound("ours")
    assert (await namespace.get(CLAIMS, "foreign"))["status"]["phase"] == "Pending"
    assert not [event for event in await namespace.events("foreign") if "elastic" in event or "Failed" in event]
