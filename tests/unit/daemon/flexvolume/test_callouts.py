"""Callouts with all of the daemon behind them but the mounts themselves: who may, where the volume comes to live, and
what needs no API server."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from contract import callout, names
from daemon.cluster.nodevolumes import NodeAssigner, is_assigned
from daemon.errors import NoSpace, NotAPodFolder, NotGranted, PoolMissing, Refused, Undecided
from daemon.flexvolume.callouts import NodeCallouts
from daemon.flexvolume.calls import Expand, Mount, Unmount
from daemon.kubelet import iolimits, mounter
from daemon.kubelet.authorization import Authorizer
from daemon.kubelet.iolimits import IoLimitController, PodIoLimits
from daemon.kubelet.mounter import Mounter, NodeContext
from kube.backoff import Backoff
from kube.client import Cluster
from kube.informer import Informer
from kube.records import Pod, read_pod
from kube.resources import CLAIMS, EVENTS, PODS, VOLUMES
from tests.unit.daemon.nodecluster import (
    ASSIGNMENT,
    CLASS,
    MI,
    NODE,
    NodeParts,
    Unmounted,
    create_pv,
    kind,
    node_parts,
    read_pv,
)
from tests.waiting import until

KUBELET = Path("/var/lib/kubelet")


class Serving:
    def __init__(self, parts: NodeParts, pods: Informer[Pod], cgroups: Path) -> None:
        self.parts = parts
        self.cluster: Cluster = parts.cluster
        self.volumes = Unmounted(parts.volumes)
        self.enqueued: list[str] = []
        self.mounter = Mounter(self.volumes, KUBELET, lambda: "it waits")  # type: ignore[arg-type]
        self.io_limits = IoLimitController(
            parts.node_volumes,
            pods,
            self.volumes,  # type: ignore[arg-type]
            parts.events,
            PodIoLimits(cgroups),
        )
        self.callouts = NodeCallouts(self.mounter)
        self.authorizer = Authorizer(parts.cluster, pods, parts.node, parts.node_volumes)
        self.context = self.with_pool(ASSIGNMENT.pool)
        self.pods = pods

    def with_pool(self, pool: str) -> NodeContext:
        """Where new volumes take their space from that pool."""
        assigner = NodeAssigner(
            self.cluster,
            self.parts.node,
            self.parts.node_volumes,
            lambda: self.parts.volumes.inventory,
            lambda _: pool,
        )
        return NodeContext(
            self.cluster,
            self.parts.node,
            self.authorizer,
            assigner,
            self.enqueued.append,
            self.parts.events,
            self.io_limits,
        )

    @asynccontextmanager
    async def limiting(self) -> AsyncIterator[None]:
        """As long as the limits of pods that run are looked after."""
        parts = [asyncio.create_task(part.run()) for part in (self.pods, self.io_limits)]
        try:
            yield
        finally:
            for part in parts:
                part.cancel()
            await asyncio.wait(parts)

    async def pod_with(self, *volumes: str, node: str = NODE) -> dict[str, Mount]:
        """A pod with a claim bound to each volume: the callouts that the kubelet makes for it."""
        for volume in volumes:
            claim = await self.cluster.create(
                CLAIMS,
                {
                    **kind("PersistentVolumeClaim"),
                    "metadata": {"name": f"claim-{volume}", "namespace": "default"},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "storageClassName": CLASS,
                        "volumeName": volume,
                        "resources": {"requests": {"storage": "1Mi"}},
                    },
                },
            )
            reference = {"namespace": "default", "name": f"claim-{volume}", "uid": claim["metadata"]["uid"]}
            await self.cluster.patch(VOLUMES, volume, {"spec": {"claimRef": {**kind(claim["kind"]), **reference}}})
        pod = await self.cluster.create(
            PODS,
            {
                **kind("Pod"),
                "metadata": {"name": f"pod-{volumes[0]}", "namespace": "default"},
                "spec": {
                    "nodeName": node,
                    "containers": [{"name": "main", "image": "none"}],
                    "volumes": [
                        {"name": volume, "persistentVolumeClaim": {"claimName": f"claim-{volume}"}}
                        for volume in volumes
                    ],
                },
            },
        )
        metadata = pod["metadata"]
        options = {
            callout.READ_WRITE_OPTION: "rw",
            callout.POD_NAME_OPTION: metadata["name"],
            callout.POD_NAMESPACE_OPTION: "default",
        }
        return {volume: Mount(folder_of(metadata["uid"], volume), options) for volume in volumes}


def folder_of(pod: str, volume: str) -> str:
    return f"{KUBELET}/pods/{pod}/volumes/{names.DRIVER_FOLDER}/{volume}"


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Serving]:
    async with node_parts(folder) as parts:
        pods = Informer[Pod](parts.cluster, PODS, read_pod, field_selector=f"spec.nodeName={NODE}")
        yield Serving(parts, pods, folder / "cgroup")


@pytest.fixture
async def unsettled(tmp_path: Path) -> AsyncIterator[Serving]:
    async with running(tmp_path) as it:
        yield it


@pytest.fixture
async def serving(unsettled: Serving) -> Serving:
    unsettled.mounter.set_context(unsettled.context)
    return unsettled


async def test_a_mount_by_the_hint_alone_ties_the_volume_to_this_node(serving: Serving) -> None:
    """The pod informer does not run here: the pod is found by the name in the callout, and proven by its UID."""
    await create_pv(serving.cluster, "pv", assignment=None)
    mounts = await serving.pod_with("pv")
    assert await serving.callouts.mount(mounts["pv"])
    volume = await read_pv(serving.cluster, "pv")
    assert volume
    assert is_assigned(volume, serving.parts.node)
    assert serving.volumes.mounts == [("pv", False)]


async def test_a_hint_at_another_pod_proves_nothing(serving: Serving) -> None:
    await create_pv(serving.cluster, "pv")
    theirs = (await serving.pod_with("pv"))["pv"]
    forged = Mount(folder_of("11111111-2222-3333-4444-555555555555", "pv"), theirs.options)
    with pytest.raises(Refused, match="no pod with uid"):
        await serving.callouts.mount(forged)
    with pytest.raises(Refused, match="no pod with uid"):
        await serving.callouts.mount(Mount(theirs.dir, {**theirs.options, callout.POD_NAME_OPTION: "../../nodes"}))


async def test_a_pod_that_the_informer_knows_needs_no_hint(serving: Serving) -> None:
    await create_pv(serving.cluster, "pv")
    mounts = await serving.pod_with("pv")
    following = asyncio.create_task(serving.pods.run())
    try:
        await until(lambda: serving.pods.values())
        await serving.callouts.mount(Mount(mounts["pv"].dir, {}))
        await serving.callouts.expand(Expand(mounts["pv"].dir, {}, new_size=2, old_size=1))
    finally:
        following.cancel()
        await asyncio.wait([following])
    assert serving.volumes.mounts == [("pv", True)]


async def test_a_volume_mounted_smaller_than_it_should_be_is_reported(serving: Serving) -> None:
    await create_pv(serving.cluster, "pv")
    mounts = await serving.pod_with("pv")
    serving.volumes.shortfall = NoSpace("pv", "folder", 30, 20)
    assert await serving.callouts.mount(mounts["pv"])
    warnings = await serving.parts.warnings()
    assert {(name, reason) for name, reason, _ in warnings} == {
        ("pv", "VolumeResizeFailed"),
        ("claim-pv", "VolumeResizeFailed"),
    }
    assert "mounted with the size it has: volume pv needs 30 bytes" in warnings[0][2]


async def test_the_limits_of_a_volume_are_set_for_its_pod(serving: Serving, tmp_path: Path) -> None:
    serving.volumes.device = os.makedev(254, 3)
    await create_pv(serving.cluster, "pv", writeBandwidth="1048576", readIOPS="500")
    mounts = await serving.pod_with("pv")
    group = tmp_path / "cgroup" / "kubepods" / "burstable" / f"pod{Path(mounts['pv'].dir).parts[5]}"
    group.mkdir(parents=True)
    (group / "io.max").touch()
    (tmp_path / "cgroup" / "cgroup.controllers").write_text("cpu io memory")
    assert await serving.callouts.mount(mounts["pv"])
    assert (group / "io.max").read_text() == "254:3 rbps=max wbps=1048576 riops=500 wiops=max\n"
    assert not await serving.parts.warnings()


async def test_limits_that_change_are_set_for_the_pods_that_run(serving: Serving, tmp_path: Path) -> None:
    """Also where this daemon saw neither their mount nor the change."""
    serving.volumes.device = os.makedev(254, 3)
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup" / "cgroup.controllers").write_text("cpu io memory")
    await create_pv(serving.cluster, "pv", writeBandwidth="1048576")
    await create_pv(serving.cluster, "unlimited")
    groups = {}
    for volume in ("pv", "unlimited"):
        uid = Path((await serving.pod_with(volume))[volume].dir).parts[5]
        groups[volume] = tmp_path / "cgroup" / "kubepods" / f"pod{uid}" / "io.max"
        groups[volume].parent.mkdir(parents=True)
        groups[volume].touch()
        await serving.cluster.patch(PODS, f"pod-{volume}", {"status": {"phase": "Running"}}, "default", "status")
    async with serving.limiting():
        await until(lambda: groups["pv"].read_text() == "254:3 rbps=max wbps=1048576 riops=max wiops=max\n")
        for text, limits in (
            ("readBandwidth=max writeBandwidth=max readIOPS=500000 writeIOPS=max", "wbps=max riops=500000"),
            ("readIOPS=max", "wbps=1048576 riops=max"),
        ):
            annotations = {names.IO_LIMITS_ANNOTATION: text}
            await serving.cluster.patch(VOLUMES, "pv", {"metadata": {"annotations": annotations}})
            await until(partial(seen, serving, text))
            serving.io_limits.enqueue("pv")
            serving.io_limits.enqueue("unlimited")
            await until(partial(is_limited, groups["pv"], f"254:3 rbps=max {limits}"))
        assert not groups["unlimited"].read_text()
        groups["pv"].unlink()
        serving.io_limits.enqueue("pv")

        async def told() -> bool:
            return any("io is off" in message for _, _, message in await serving.parts.warnings())

        await until(told)


def is_limited(limits: Path, beginning: str) -> bool:
    """A regular file keeps what is behind the last line, if that was longer."""
    return limits.read_text().startswith(beginning)


def seen(serving: Serving, text: str) -> bool:
    """Whether the volumes of this node are known to have these limits."""
    volume = serving.parts.node_volumes.get("pv")
    return volume is not None and volume.io_limits == text


async def test_a_pod_starts_without_limits_where_they_can_not_be_set(serving: Serving) -> None:
    await create_pv(serving.cluster, "pv", writeBandwidth="1048576")
    mounts = await serving.pod_with("pv")
    assert await serving.callouts.mount(mounts["pv"])
    ((name, reason, message),) = await serving.parts.warnings()
    assert (name, reason) == ("pod-pv", "VolumeIOLimitsNotSet")
    assert "boot the node with systemd.unified_cgroup_hierarchy=1" in message


@pytest.mark.parametrize("late", ["group", "controller"])
async def test_a_group_that_comes_late_gets_the_limits_then(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """The mount does not wait for it that long. It is over with the volume's time in the pod."""
    monkeypatch.setattr(iolimits, "_PATIENCE", 0.2)
    monkeypatch.setattr(iolimits, "_LATER", Backoff(first=0.05, limit=0.05))
    serving.volumes.device = os.makedev(254, 3)
    await create_pv(serving.cluster, "pv", writeBandwidth="1048576")
    mounts = await serving.pod_with("pv")
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup" / "cgroup.controllers").write_text("cpu io memory")
    group = tmp_path / "cgroup" / "kubepods" / "burstable" / f"pod{Path(mounts['pv'].dir).parts[5]}"
    if late == "controller":
        group.mkdir(parents=True)
    async with serving.limiting():
        await until(lambda: serving.pods.values())
        assert await serving.callouts.mount(mounts["pv"])
        ((_, reason, message),) = await serving.parts.warnings()
        assert (reason, message.endswith("; it is tried again while the pod runs")) == ("VolumeIOLimitsNotSet", True)
        group.mkdir(parents=True, exist_ok=True)
        (group / "io.max").touch()
        await until(lambda: (group / "io.max").read_text() == "254:3 rbps=max wbps=1048576 riops=max wiops=max\n")
        await until(lambda: not serving.io_limits._unset)
        await serving.parts.events.flush()
        assert "VolumeIOLimitsSet" in {event["reason"] for event in await serving.cluster.list(EVENTS)}

        (group / "io.max").unlink()
        assert await serving.callouts.mount(mounts["pv"])
        assert serving.io_limits._unset
        await serving.callouts.unmount(Unmount(mounts["pv"].dir))
        assert not serving.io_limits._unset


async def test_a_wish_is_no_success_whatever_the_kubelet_asks_for(serving: Serving) -> None:
    """It would write the size that it asked for into the claim's status."""
    await create_pv(serving.cluster, "pv", mi=10, size=str(10 * MI))
    mounts = await serving.pod_with("pv")
    await serving.callouts.mount(mounts["pv"])
    await serving.cluster.patch(VOLUMES, "pv", {"spec": {"capacity": {"storage": "20Mi"}}})
    wish = Expand(mounts["pv"].dir, mounts["pv"].options, new_size=20 * MI, old_size=10 * MI)
    with pytest.raises(NotGranted, match="has 10Mi, and 20Mi were not granted to it"):
        await serving.callouts.expand(wish)
    await serving.cluster.patch(VOLUMES, "pv", {"metadata": {"annotations": {names.GRANTED_ANNOTATION: str(20 * MI)}}})
    await serving.callouts.expand(wish)
    assert serving.parts.volumes.inventory.volume("pv").size == 20 * MI  # type: ignore[union-attr]
    with pytest.raises(NotGranted, match="21Mi were not granted"):
        await serving.callouts.expand(replace(wish, new_size=21 * MI))


async def test_two_mounts_at_once_are_not_promised_the_same_room(serving: Serving) -> None:
    for name in ("one", "two"):
        await create_pv(serving.cluster, name, mi=60, assignment=None)
    mounts = await serving.pod_with("one", "two")
    outcomes = await asyncio.gather(
        *(serving.callouts.mount(mount) for mount in mounts.values()), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoSpace", "bool"]
    homes = [volume.hostnames for volume in [await read_pv(serving.cluster, name) for name in mounts] if volume]
    assert sorted(map(len, homes)) == [0, 1]


async def test_a_volume_that_does_not_fit_stays_free_to_go_elsewhere(serving: Serving) -> None:
    await create_pv(serving.cluster, "pv", mi=101, assignment=None)
    mounts = await serving.pod_with("pv")
    with pytest.raises(NoSpace, match="101Mi"):
        await serving.callouts.mount(mounts["pv"])
    volume = await read_pv(serving.cluster, "pv")
    assert volume
    assert not volume.pinned


async def test_a_node_without_the_pool_says_so_before_it_takes_the_volume(serving: Serving) -> None:
    await create_pv(serving.cluster, "pv", assignment=None)
    mounts = await serving.pod_with("pv")
    bare = Mounter(serving.volumes, KUBELET, lambda: "")  # type: ignore[arg-type]
    bare.set_context(serving.with_pool("absent"))
    with pytest.raises(PoolMissing, match="has no absent"):
        await NodeCallouts(bare).mount(mounts["pv"])


async def test_unmounting_needs_neither_api_nor_node(unsettled: Serving) -> None:
    folder = folder_of("11111111-2222-3333-4444-555555555555", "pv")
    await unsettled.callouts.unmount(Unmount(folder))
    assert [str(unmounted.path) for unmounted in unsettled.volumes.unmounts] == [folder]
    unsettled.mounter.set_context(unsettled.context)
    await unsettled.callouts.unmount(Unmount(folder))
    assert unsettled.enqueued == ["pv"]


async def test_a_mount_before_the_node_is_known_says_what_it_waits_for(
    unsettled: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounter, "_PATIENCE", 0.01)
    with pytest.raises(Undecided, match="has not started up yet: it waits"):
        await unsettled.callouts.mount(Mount(folder_of("11111111-2222-3333-4444-555555555555", "pv"), {}))


async def test_a_folder_that_the_kubelet_does_not_make_is_refused(serving: Serving) -> None:
    for verb in (serving.callouts.mount(Mount("/etc", {})), serving.callouts.unmount(Unmount("/etc"))):
        with pytest.raises(NotAPodFolder):
            await verb
