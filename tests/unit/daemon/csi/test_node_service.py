"""Each RPC of the service Node: what it does, the errors that the CSI specification lists for it (spec.md, the tables
"... Errors" and "Error Scheme"), and that it may be called again, and often at once. Without mounts:
tests/node/test_csi.py has those."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from grpclib import Status

from contract import names
from daemon import errors
from daemon.csi import codes
from daemon.csi.proto.csi_pb2 import NodeGetCapabilitiesRequest, NodeGetInfoRequest, NodeServiceCapability
from daemon.errors import InUse, VolumeError
from daemon.kubelet import mounter
from kube.resources import VOLUMES
from tests.unit.daemon.csi.csinode import MODE, POD_UID, CsiNode, capability, csi_node, refused
from tests.unit.daemon.nodecluster import CAPACITY, HOSTNAME, MI, NODE, create_pv, read_pv

_RPC = NodeServiceCapability.RPC
Missing = Callable[[CsiNode], Any]


@pytest.fixture
async def csi(tmp_path: Path) -> AsyncIterator[CsiNode]:
    async with csi_node(tmp_path) as node:
        yield node


async def test_the_node_says_where_it_is_and_what_it_can_do(csi: CsiNode) -> None:
    info = await csi.node.NodeGetInfo(NodeGetInfoRequest())
    assert info.node_id == NODE
    assert dict(info.accessible_topology.segments) == {names.HOSTNAME_LABEL: HOSTNAME}
    assert info.max_volumes_per_node > 0
    found = await csi.node.NodeGetCapabilities(NodeGetCapabilitiesRequest())
    assert {each.rpc.type for each in found.capabilities} == {
        _RPC.STAGE_UNSTAGE_VOLUME,
        _RPC.GET_VOLUME_STATS,
        _RPC.EXPAND_VOLUME,
        _RPC.VOLUME_CONDITION,
        _RPC.SINGLE_NODE_MULTI_WRITER,
    }
    assert csi.observed == [("NodeGetInfo", "OK"), ("NodeGetCapabilities", "OK")]


async def test_a_node_that_does_not_know_itself_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounter, "_PATIENCE", 0.01)
    async with csi_node(tmp_path, knows_itself=False) as csi:
        calls = (
            csi.node.NodeGetInfo(NodeGetInfoRequest()),
            csi.node.NodeStageVolume(csi.stage()),
            csi.node.NodePublishVolume(csi.publish(POD_UID)),
            csi.node.NodeExpandVolume(csi.expand(POD_UID, size=MI)),
        )
        for call in calls:
            status, words = await refused(call)
            assert status is Status.UNAVAILABLE
            assert "has not started up yet: it waits; the kubelet tries again" in words
        # What takes something away needs no API server.
        await csi.node.NodeUnpublishVolume(csi.unpublish(POD_UID))
        await csi.node.NodeUnstageVolume(csi.unstage())


_MISSING: dict[str, Missing] = {
    "stage: volume_id": lambda csi: csi.node.NodeStageVolume(csi.stage(volume_id="")),
    "stage: staging_target_path": lambda csi: csi.node.NodeStageVolume(csi.stage(staging_target_path="")),
    "stage: volume_capability": lambda csi: csi.node.NodeStageVolume(csi.stage(volume_capability=None)),
    "stage: access_mode": lambda csi: csi.node.NodeStageVolume(csi.stage(volume_capability=capability(MODE.UNKNOWN))),
    "stage: relative path": lambda csi: csi.node.NodeStageVolume(csi.stage(staging_target_path="a/b")),
    "unstage: volume_id": lambda csi: csi.node.NodeUnstageVolume(csi.unstage(volume_id="")),
    "unstage: staging_target_path": lambda csi: csi.node.NodeUnstageVolume(csi.unstage(staging_target_path="")),
    "publish: volume_id": lambda csi: csi.node.NodePublishVolume(csi.publish(POD_UID, volume_id="")),
    "publish: volume_id, not staged": lambda csi: csi.node.NodePublishVolume(
        csi.publish(POD_UID, volume_id="", staging_target_path="")
    ),
    "publish: target_path": lambda csi: csi.node.NodePublishVolume(csi.publish(POD_UID, target_path="")),
    "publish: target_path, not staged": lambda csi: csi.node.NodePublishVolume(
        csi.publish(POD_UID, target_path="", staging_target_path="")
    ),
    "publish: volume_capability, not staged": lambda csi: csi.node.NodePublishVolume(
        csi.publish(POD_UID, volume_capability=None, staging_target_path="")
    ),
    "publish: volume_capability": lambda csi: csi.node.NodePublishVolume(csi.publish(POD_UID, volume_capability=None)),
    "publish: path elsewhere": lambda csi: csi.node.NodePublishVolume(csi.publish(POD_UID, target_path="/etc")),
    "publish: path of another volume": lambda csi: csi.node.NodePublishVolume(
        csi.publish(POD_UID, target_path=str(csi.target(POD_UID, "other")))
    ),
    "publish: inline": lambda csi: csi.node.NodePublishVolume(
        csi.publish(POD_UID, volume_context={"csi.storage.k8s.io/ephemeral": "true"})
    ),
    "publish: device in a folder": lambda csi: csi.node.NodePublishVolume(
        csi.publish(POD_UID, volume_capability=capability(block=True))
    ),
    "unpublish: volume_id": lambda csi: csi.node.NodeUnpublishVolume(csi.unpublish(POD_UID, volume_id="")),
    "unpublish: target_path": lambda csi: csi.node.NodeUnpublishVolume(csi.unpublish(POD_UID, target_path="")),
    "unpublish: path elsewhere": lambda csi: csi.node.NodeUnpublishVolume(csi.unpublish(POD_UID, target_path="/etc")),
    "stats: volume_id": lambda csi: csi.node.NodeGetVolumeStats(csi.stats(POD_UID, volume_id="")),
    "stats: volume_path": lambda csi: csi.node.NodeGetVolumeStats(csi.stats(POD_UID, volume_path="")),
    "expand: volume_id": lambda csi: csi.node.NodeExpandVolume(csi.expand(POD_UID, volume_id="")),
    "expand: volume_path": lambda csi: csi.node.NodeExpandVolume(csi.expand(POD_UID, volume_path="")),
    "expand: negative": lambda csi: csi.node.NodeExpandVolume(csi.expand(POD_UID, size=-1)),
}


@pytest.mark.parametrize("call", _MISSING.values(), ids=_MISSING)
async def test_what_is_missing_or_can_not_be_is_an_invalid_argument(csi: CsiNode, call: Missing) -> None:
    await csi.volume()
    status, words = await refused(call(csi))
    assert status is Status.INVALID_ARGUMENT
    assert words
    assert [code for _, code in csi.observed] == ["INVALID_ARGUMENT"]


async def test_publishing_without_staging_is_a_failed_precondition(csi: CsiNode) -> None:
    await csi.volume()
    request = csi.publish(await csi.pod(), staging_target_path="")
    assert (await refused(csi.node.NodePublishVolume(request)))[0] is Status.FAILED_PRECONDITION


async def test_a_volume_that_does_not_exist_is_not_found(csi: CsiNode) -> None:
    for call in (
        csi.node.NodeStageVolume(csi.stage("absent")),
        csi.node.NodeExpandVolume(csi.expand(POD_UID, "absent", size=MI)),
        csi.node.NodeExpandVolume(csi.expand(POD_UID, "absent", volume_path="some/path")),
        csi.node.NodeGetVolumeStats(csi.stats(POD_UID, "absent")),
        csi.node.NodeGetVolumeStats(csi.stats(POD_UID, "absent", volume_path="some/path")),
    ):
        assert (await refused(call))[0] is Status.NOT_FOUND
    await csi.volume()
    uid = await csi.pod()
    absent = csi.publish(uid, "absent")
    assert (await refused(csi.node.NodePublishVolume(absent)))[0] is Status.NOT_FOUND
    elsewhere = csi.stats(uid, volume_path=str(csi.target(uid)) + "/below")
    assert (await refused(csi.node.NodeGetVolumeStats(elsewhere)))[0] is Status.NOT_FOUND
    # Nothing to undo is no error.
    await csi.node.NodeUnpublishVolume(csi.unpublish(POD_UID, "absent"))
    await csi.node.NodeUnstageVolume(csi.unstage("absent"))


async def test_a_flexvolume_is_none_of_its_volumes(csi: CsiNode) -> None:
    await create_pv(csi.parts.cluster, "old")
    assert (await refused(csi.node.NodeStageVolume(csi.stage("old"))))[0] is Status.NOT_FOUND


async def test_a_volume_of_the_other_mode_is_refused(csi: CsiNode) -> None:
    await csi.volume()
    await csi.volume("device", mode="Block")
    block = capability(block=True)
    for call in (
        csi.node.NodeStageVolume(csi.stage(volume_capability=block)),
        csi.node.NodeStageVolume(csi.stage("device")),
    ):
        assert (await refused(call))[0] is Status.FAILED_PRECONDITION
    status, words = await refused(csi.node.NodeExpandVolume(csi.expand(POD_UID, volume_capability=block)))
    assert status is Status.INVALID_ARGUMENT
    assert "volumeMode" in words


async def test_who_has_no_claim_to_the_volume_gets_permission_denied(csi: CsiNode) -> None:
    await csi.volume()
    await csi.volume("other")
    theirs = await csi.pod("other")
    csi.target(theirs).parent.mkdir(parents=True)
    for request in (csi.publish(theirs), csi.publish(POD_UID)):
        status, words = await refused(csi.node.NodePublishVolume(request))
        assert status is Status.PERMISSION_DENIED
        assert words
    await csi.parts.cluster.patch(VOLUMES, "pv", {"spec": {"claimRef": None}})
    assert (await refused(csi.node.NodeStageVolume(csi.stage())))[0] is Status.PERMISSION_DENIED


async def test_staging_makes_the_volume_and_publishing_mounts_it_however_often(csi: CsiNode) -> None:
    await csi.volume()
    uid = await csi.pod()
    for _ in range(2):
        await csi.node.NodeStageVolume(csi.stage())
    assert csi.parts.volume_names() == {"pv"}
    made = await read_pv(csi.parts.cluster, "pv")
    assert made
    assert made.made
    for _ in range(2):
        await csi.node.NodePublishVolume(csi.publish(uid))
    assert csi.target(uid).is_dir(), "the driver makes it"
    for _ in range(2):
        await csi.node.NodeUnpublishVolume(csi.unpublish(uid))
    assert not csi.target(uid).exists(), "and removes it"
    for _ in range(2):
        await csi.node.NodeUnstageVolume(csi.unstage())
    assert {code for _, code in csi.observed} == {"OK"}


@pytest.mark.parametrize(
    ("secrets", "words"),
    [
        ({}, "encryptionPassphrase of Secret storage/key is empty or missing"),
        ({"encryptionPassphrase": ""}, "is empty or missing"),
        ({"passphrase": "s3cret"}, "is empty or missing"),
        ({"encryptionPassphrase": "s3cret" * 1000}, "is with 6000 bytes"),
        ({"encryptionPassphrase": "s3cret"}, "has folders only"),
    ],
)
async def test_staging_an_encrypted_volume_says_which_secret_lacks_what(
    csi: CsiNode, secrets: dict[str, str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await csi.volume(encryption="luks2", secret="storage/key")
    status, said = await refused(csi.node.NodeStageVolume(csi.stage(secrets=secrets)))
    assert status is Status.FAILED_PRECONDITION
    assert words in said
    assert "s3cret" not in said + caplog.text


async def test_many_calls_at_once_are_one(csi: CsiNode) -> None:
    await csi.volume()
    uids = [await csi.pod() for _ in range(4)]
    await asyncio.gather(*(csi.node.NodeStageVolume(csi.stage()) for _ in range(8)))
    await asyncio.gather(*(csi.node.NodePublishVolume(csi.publish(uid)) for uid in uids for _ in range(4)))
    assert all(csi.target(uid).is_dir() for uid in uids)
    await asyncio.gather(*(csi.node.NodeUnpublishVolume(csi.unpublish(uid)) for uid in uids for _ in range(4)))
    await asyncio.gather(*(csi.node.NodeUnstageVolume(csi.unstage()) for _ in range(8)))
    assert not any(csi.target(uid).exists() for uid in uids)
    assert {code for _, code in csi.observed} == {"OK"}


async def test_more_than_the_node_has_is_exhausted(csi: CsiNode) -> None:
    await csi.volume(mi=CAPACITY // MI + 1, assignment=None)
    status, words = await refused(csi.node.NodeStageVolume(csi.stage()))
    assert status is Status.RESOURCE_EXHAUSTED
    assert "101Mi" in words


async def test_a_volume_expands_to_what_was_granted_and_to_no_more(csi: CsiNode) -> None:
    await csi.volume(mi=10, size=str(10 * MI))
    uid = await csi.pod()
    await csi.node.NodeStageVolume(csi.stage())
    assert (await csi.node.NodeExpandVolume(csi.expand(uid, size=10 * MI))).capacity_bytes == 10 * MI
    status, words = await refused(csi.node.NodeExpandVolume(csi.expand(uid, size=20 * MI)))
    assert status is Status.OUT_OF_RANGE
    assert "20Mi were not granted" in words
    granted = {"metadata": {"annotations": {names.GRANTED_ANNOTATION: str(20 * MI)}}}
    await csi.parts.cluster.patch(VOLUMES, "pv", granted)
    for request in (csi.expand(uid, size=20 * MI), csi.expand(uid, size=20 * MI, limit=20 * MI), csi.expand(uid)):
        assert (await csi.node.NodeExpandVolume(request)).capacity_bytes == 20 * MI
    narrow = csi.expand(uid, size=20 * MI, limit=10 * MI)
    assert (await refused(csi.node.NodeExpandVolume(narrow)))[0] is Status.OUT_OF_RANGE


async def test_an_expansion_that_passes_by_itself_is_asked_for_again(
    csi: CsiNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After FAILED_PRECONDITION a kubelet waits until the volume is mounted anew."""
    await csi.volume(mi=10, size=str(10 * MI))

    async def expand(*_: Any) -> None:
        raise InUse("a copy of it is made")

    monkeypatch.setattr(csi.parts.volumes, "expand", expand)
    refusal = await refused(csi.node.NodeExpandVolume(csi.expand(await csi.pod(), size=10 * MI)))
    assert refusal == (Status.UNAVAILABLE, "a copy of it is made")
    assert ("NodeExpandVolume", "UNAVAILABLE") in csi.observed


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
def test_no_error_keeps_a_kubelet_from_expanding_a_volume_later(kind: type) -> None:
    if not issubclass(kind, VolumeError):
        return
    arguments = ("pv", "pool", 2, 1) if kind is errors.NoSpace else ("words",)
    code = codes.expansion_error(kind(*arguments)).status
    assert code is not Status.FAILED_PRECONDITION
    infeasible = (errors.NotGranted, errors.WrongMode, errors.NotAPodFolder)
    absent = (errors.NoSuchVolume, errors.VolumeNotFound, errors.FolderMissing)
    assert (code in (Status.OUT_OF_RANGE, Status.INVALID_ARGUMENT)) == (kind in infeasible)
    assert (code is Status.NOT_FOUND) == (kind in absent)
