"""What stands in the folders of classes becomes PersistentVolumes, pass after pass, under names that stay."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract import names
from daemon.static.discovery import CLASS_FAILED
from daemon.static.volume import volume_name
from kube.errors import Unreachable
from kube.resources import VOLUMES
from tests.node.staticvolumes import Discovery, class_config, configured, discovery, mount
from tests.unit.daemon.nodecluster import HOSTNAME, NODE
from tests.unit.daemon.static.gopv import go_pv
from tests.waiting import until

MIB = 1 << 20


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Discovery]:
    async with discovery(tmp_path / "api") as discovered:
        yield discovered


async def test_mounts_of_two_classes_become_volumes(node: Discovery, fast: Path, slow: Path) -> None:
    for folder in (fast / "one", fast / "two", slow / "one"):
        mount(folder)
    mount(slow / "two", size="10m")
    chosen = configured(
        class_config(fast), class_config(slow, "slow", fs_type="xfs"), set_owner=True, node_labels=("zone",)
    )
    assert await node.look(chosen) == []
    offered = await node.volumes()
    assert set(offered) == {"/host/fast/one", "/host/fast/two", "/host/slow/one", "/host/slow/two"}
    body = offered["/host/slow/one"]
    metadata = body["metadata"]
    assert metadata["name"] == volume_name("one", NODE, "slow")
    assert metadata["labels"] == {"zone": "a", names.NODE_LABEL: NODE, names.OTHER_HOSTNAME_LABEL: "host-1"}
    assert metadata["annotations"][names.PROVISIONED_BY] == f"local-volume-provisioner-{NODE}-{node.node.uid}"
    assert metadata["ownerReferences"] == [{"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": node.node.uid}]
    hostname = {"key": "kubernetes.io/hostname", "operator": "In", "values": [HOSTNAME]}
    assert body["spec"] == {
        "capacity": {"storage": "20Mi"},
        "local": {"path": "/host/slow/one", "fsType": "xfs"},
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "slow",
        "persistentVolumeReclaimPolicy": "Retain",
        "volumeMode": "Filesystem",
        "mountOptions": ["noatime"],
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [hostname]}]}},
    }
    assert offered["/host/fast/one"]["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    assert node.value("persistentvolume_discovery_total", mode="Filesystem") == 4
    assert node.value("persistentvolume_discovery_duration_seconds_count", mode="Filesystem") == 4
    assert node.value("persistentvolume_capacity_bytes", mode="Filesystem") == 70 * MIB


async def test_a_second_pass_creates_nothing_and_the_figures_stay(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    chosen = configured(class_config(fast))
    for _ in range(3):
        assert await node.look(chosen) == []
    assert node.value("apiserver_requests_total", method="create") == 1
    assert node.value("persistentvolume_capacity_bytes", mode="Filesystem") == 20 * MIB


async def test_a_lagging_informer_causes_no_second_creation(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    for _ in range(2):
        assert await node.discoverer.discovery_pass(configured(class_config(fast))) == []
    assert node.value("apiserver_requests_total", method="create") == 1


async def test_an_empty_folder_is_no_error(node: Discovery, fast: Path) -> None:
    assert await node.look(configured(class_config(fast))) == []
    assert await node.volumes() == {}


async def test_a_missing_folder_is_an_error_of_the_class(
    node: Discovery, fast: Path, slow: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mount(slow / "one")
    chosen = configured(class_config(fast / "missing"), class_config(slow, "slow"))
    message = (
        f"folder {fast}/missing can't be listed (No such file or directory): "
        "create /host/missing on the node and mount it there"
    )
    for _ in range(2):
        assert await node.look(chosen) == [f"class fast: {message}"]
    assert set(await node.volumes()) == {"/host/slow/one"}
    assert await node.recorded_events() == [(NODE, CLASS_FAILED, f"class fast: {message}")]
    assert caplog.text.count(message) == 1
    (fast / "missing").mkdir()
    assert await node.look(chosen) == []


async def test_volumes_that_come_later_are_found(node: Discovery, fast: Path) -> None:
    chosen = configured(class_config(fast))
    mount(fast / "one")
    await node.look(chosen)
    mount(fast / "two")
    await node.look(chosen)
    assert set(await node.volumes()) == {"/host/fast/one", "/host/fast/two"}


async def test_a_volume_that_was_deleted_is_offered_again(node: Discovery, fast: Path) -> None:
    chosen = configured(class_config(fast))
    mount(fast / "one")
    await node.look(chosen)
    name = volume_name("one", NODE, "fast")
    await node.cluster.patch(VOLUMES, name, {"metadata": {"finalizers": None}})
    await node.cluster.delete(VOLUMES, name)
    await until(lambda: node.cache.get(name) is None)
    await node.look(chosen)
    assert set(await node.volumes()) == {"/host/fast/one"}


async def test_a_creation_that_fails_is_tried_again(
    node: Discovery, fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(fast / "one")
    mount(fast / "two")
    create, failures = node.cluster.create, ["once"]

    async def failing(resource: Any, body: Any, *more: Any) -> Any:
        if resource is VOLUMES and failures:
            raise Unreachable(0, "", f"no answer {failures.pop()}")
        return await create(resource, body, *more)

    monkeypatch.setattr(node.cluster, "create", failing)
    chosen = configured(class_config(fast))
    (error,) = await node.look(chosen)
    assert error.endswith("no answer once")
    assert len(await node.volumes()) == 1, "one failure is no reason to leave the others out"
    assert node.value("apiserver_requests_failed_total", method="create") == 1
    assert await node.look(chosen) == []
    assert len(await node.volumes()) == 2


async def test_one_path_under_two_classes_is_one_volume(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    chosen = configured(class_config(fast), class_config(fast, "slow"))
    for _ in range(2):
        assert await node.look(chosen) == []
    assert [body["spec"]["storageClassName"] for body in await node.cluster.list(VOLUMES)] == ["fast"]


async def test_what_is_being_cleaned_is_not_offered(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    node.deleter.names.add(volume_name("one", NODE, "fast"))
    chosen = configured(class_config(fast))
    assert await node.look(chosen) == []
    assert await node.volumes() == {}
    node.deleter.names.clear()
    await node.look(chosen)
    assert set(await node.volumes()) == {"/host/fast/one"}


async def test_a_malformed_pattern_is_the_classes_error(node: Discovery, fast: Path) -> None:
    (error,) = await node.look(configured(class_config(fast, name_pattern="[")))
    assert error == "class fast: malformed name pattern '[': a character class needs a closing bracket"


async def test_a_class_that_is_missing_in_the_cluster(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    (error,) = await node.look(configured(class_config(fast, "nobody")))
    assert error == "class nobody: there is no StorageClass nobody: create it, or remove it from storageClassMap"


async def test_a_reclaim_policy_that_means_nothing(
    node: Discovery, fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage_class = node.classes.get("fast")
    assert storage_class
    monkeypatch.setattr(node.classes, "get", lambda name: replace(storage_class, reclaim_policy="Recycle"))
    (error,) = await node.look(configured(class_config(fast)))
    assert error == "class fast: reclaimPolicy of StorageClass fast is Recycle: allowed is Delete or Retain"


async def test_volumes_of_the_go_provisioner_keep_their_names(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    mount(fast / "two")
    provisioner = f"local-volume-provisioner-{NODE}-{node.node.uid}"
    for name in ("one", "two"):
        body = go_pv(volume_name(name, NODE, "fast"), provisioner, path=f"/host/fast/{name}", hostname=HOSTNAME)
        await node.cluster.create(VOLUMES, body)
    # They came after our start, out of a backup perhaps, so they are met when their names are taken.
    assert await node.look(configured(class_config(fast))) == []
    await until(lambda: len(node.cache.volumes()) == 2)
    assert await node.look(configured(class_config(fast))) == []
    assert node.value("apiserver_requests_total", method="create") == 2
    assert node.value("persistentvolume_discovery_total", mode="Filesystem") is None
    assert await node.recorded_events() == []


async def test_a_name_that_an_earlier_node_uses(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    name = volume_name("one", NODE, "fast")
    await node.cluster.create(
        VOLUMES, go_pv(name, f"local-volume-provisioner-{NODE}-olduid", path="/host/fast/one", hostname=HOSTNAME)
    )
    assert await node.look(configured(class_config(fast))) == []
    ((*_, message),) = await node.recorded_events()
    assert message == (
        f"PersistentVolume {name} of /host/fast/one exists and belongs to another Node: delete it, or set "
        "useNodeNameOnly if this Node was registered again"
    )
    assert await node.look(configured(class_config(fast), use_node_name_only=True)) == []
    await until(lambda: [known.name for known in node.cache.volumes()] == [name])
