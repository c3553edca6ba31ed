"""What a tenant can try who may create pods and claims, and even call the driver: another's volume is never shown to
him, never taken away from its owner, and nothing of it is told."""

import contextlib
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from contract import callout, names
from contract.parameters import VOLUME_SOURCES
from contract.volume import CSI, FLEX_VOLUME
from daemon.csi.server import driver_socket
from kube.resources import CLAIMS, PODS
from tests.cluster.callouts import MountCaller, caller_of
from tests.cluster.conftest import ClassesAlike
from tests.sandbox import mountspace
from tests.sandbox.kubelet.csiclient import CsiClient, Use
from tests.sandbox.kubelet.driver import CallFailed
from tests.sandbox.nodes import Node
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Json, Namespace, claim, pod
from tests.waiting import until

_NODE = "node-a"
_SCRIPT = 'echo "the secret of $HOSTNAME" > /data/secret; exec sleep infinity'


@dataclass(frozen=True)
class Tenant:
    """Each has a claim `data` and a pod `user` with it, on one node."""

    namespace: Namespace
    node: Node
    pod: Json
    volume: str
    source: str
    """How its volume is mounted."""

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    @property
    def folder(self) -> Path:
        return self.node.volume_folder(self.uid, self.volume, self.source)

    @property
    def driver(self) -> MountCaller:
        return caller_of(self.node, self.source)

    def folder_for(self, volume: str) -> Path:
        """The folder of a volume in the tenant's pod. The kubelet makes it, or for CSI the one that it is in."""
        folder = self.node.volume_folder(self.uid, volume, self.source)
        made = folder.parent if self.source == CSI else folder
        made.mkdir(mode=0o750, parents=True, exist_ok=True)
        return folder


async def _tenant(sandbox: Sandbox, name: str, source: str, storage_class: str, stack: AsyncExitStack) -> Tenant:
    namespace = await stack.enter_async_context(Namespace(sandbox, name))
    node = sandbox.nodes[_NODE]
    await namespace.create(CLAIMS, claim("data", "16Mi", storage_class))
    selector = {names.HOSTNAME_LABEL: node.hostname}
    await namespace.create(PODS, pod("user", {"/data": "data"}, script=_SCRIPT, nodeSelector=selector))
    running = await namespace.until_running("user")
    volume = await namespace.until_bound("data")
    tenant = Tenant(namespace, node, running, volume["metadata"]["name"], source)
    await until((tenant.folder / "secret").exists, what="the tenant has written")
    return tenant


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=VOLUME_SOURCES)
async def tenants(
    request: pytest.FixtureRequest, sandbox: Sandbox, classes_alike: ClassesAlike
) -> AsyncIterator[tuple[Tenant, Tenant]]:
    source: str = request.param
    storage_class = classes_alike[source, "elastic-local"]
    async with AsyncExitStack() as stack:
        yield (
            await _tenant(sandbox, "victim", source, storage_class, stack),
            await _tenant(sandbox, "attacker", source, storage_class, stack),
        )


@pytest_asyncio.fixture(loop_scope="session")
async def victim(tenants: tuple[Tenant, Tenant]) -> AsyncIterator[Tenant]:
    """After each test its volume is mounted where it was and nowhere else, with what was in it."""
    victim, _ = tenants
    shown = sorted([victim.folder, victim.node.staging / victim.volume])
    assert _shown(victim) == shown
    yield victim
    assert _shown(victim) == shown
    assert (victim.folder / "secret").read_text() == "the secret of user\n"


@pytest.fixture
def attacker(tenants: tuple[Tenant, Tenant]) -> Tenant:
    return tenants[1]


def _shown(tenant: Tenant) -> list[Path]:
    """Where the tenant's volume is mounted on its node."""
    device = tenant.folder.stat().st_dev
    return sorted(path for path in mountspace.mounts_below(tenant.node.folder) if path.stat().st_dev == device)


@pytest.mark.parametrize("forged", [False, True], ids=["plain", "forged"])
@pytest.mark.parametrize("whose", ["attacker", "victim"])
async def test_an_inline_volume_with_the_name_of_a_persistent_volume_is_refused(
    victim: Tenant, attacker: Tenant, whose: str, forged: bool
) -> None:
    """Also in the victim's own namespace: who may create pods there may still not mount what no claim gives him."""
    namespace = victim.namespace if whose == "victim" else attacker.namespace
    lies = {
        "kubernetes.io/pod.name": "user",
        "kubernetes.io/pod.namespace": victim.namespace.name,
        "kubernetes.io/pod.uid": victim.uid,
        "kubernetes.io/pvOrVolumeName": victim.volume,
        "kubernetes.io/readwrite": "rw",
        "kubernetes.io/fsType": "ext4",
        "size": "4096",
    }
    source = {"driver": names.DRIVER, **({"options": lies} if forged else {})}
    name = f"inline-{'forged' if forged else 'plain'}"
    body = pod(name, nodeName=victim.node.name, volumes=[{"name": victim.volume, "flexVolume": source}])
    body["spec"]["containers"][0]["volumeMounts"] = [{"name": victim.volume, "mountPath": "/data"}]
    created = await namespace.create(PODS, body)

    message = await namespace.until_event(name, "FailedMount", "inline flexVolume")
    assert "use a PersistentVolumeClaim" in message
    assert f"{namespace.name}/{name}" in message
    assert whose == "victim" or victim.namespace.name not in message
    assert mountspace.mounts_below(victim.node.kubelet_root / "pods" / created["metadata"]["uid"]) == []
    await namespace.delete(PODS, name)
    await namespace.until_gone(PODS, name)


async def test_a_claim_of_the_same_name_elsewhere_is_another_claim(victim: Tenant, attacker: Tenant) -> None:
    forged = {callout.POD_NAMESPACE_OPTION: victim.namespace.name, "kubernetes.io/pod.uid": victim.uid}
    for lies in ({}, forged):
        await _refused(attacker, victim.volume, attacker.pod, "has no claim that is bound to a volume", **lies)


async def test_a_claim_that_names_the_volume_of_another_does_not_get_it(victim: Tenant, attacker: Tenant) -> None:
    await attacker.namespace.create(CLAIMS, claim("theft", "16Mi", volumeName=victim.volume))
    body = pod("thief", {"/data": "theft"}, nodeName=victim.node.name)
    thief = await attacker.namespace.create(PODS, body)
    refused = Tenant(attacker.namespace, victim.node, thief, victim.volume, victim.source)
    await _refused(refused, victim.volume, thief, "has no claim that is bound to a volume")
    await attacker.namespace.delete(PODS, "thief")
    await attacker.namespace.delete(CLAIMS, "theft")
    await attacker.namespace.until_gone(CLAIMS, "theft")


async def test_a_pod_of_another_node_is_not_mounted_for(victim: Tenant) -> None:
    other = victim.namespace.sandbox.nodes["node-b"]
    away = Tenant(victim.namespace, other, victim.pod, victim.volume, victim.source)
    await _refused(away, victim.volume, victim.pod, "runs on another node")
    await _refused(away, victim.volume, None, "no pod with uid")


async def test_a_volume_is_not_mounted_away_from_its_node(victim: Tenant) -> None:
    other = victim.namespace.sandbox.nodes["node-b"]
    moved = await victim.namespace.create(PODS, pod("moved", {"/data": "data"}, nodeName=other.name))
    away = Tenant(victim.namespace, other, moved, victim.volume, victim.source)
    await _refused(away, victim.volume, moved, f"lives on node {victim.node.hostname}")
    await victim.namespace.delete(PODS, "moved")
    await victim.namespace.until_gone(PODS, "moved")


async def test_a_pod_that_does_not_exist_gets_nothing(victim: Tenant) -> None:
    nobody = {"metadata": {"uid": str(uuid.uuid4())}}
    ghost = Tenant(victim.namespace, victim.node, nobody, victim.volume, victim.source)
    await _refused(ghost, victim.volume, victim.pod, "no pod with uid")


async def test_a_path_that_climbs_leads_nowhere(victim: Tenant, attacker: Tenant) -> None:
    climbing = [
        attacker.node.kubelet_root
        / "pods"
        / attacker.uid
        / ".."
        / victim.folder.relative_to(victim.node.kubelet_root / "pods"),
        victim.node.kubelet_root / "../kubelet" / victim.folder.relative_to(victim.node.kubelet_root),
        victim.node.staging / victim.volume,
        victim.folder / "lost+found",
    ]
    for path in climbing:
        with pytest.raises(CallFailed, match="is not a folder that the kubelet makes"):
            await attacker.driver.mount(path, victim.volume, attacker.pod)
        with pytest.raises(CallFailed, match="is not a folder that the kubelet makes"):
            await attacker.driver.unmount(path, victim.volume)


async def test_links_are_not_followed(victim: Tenant, attacker: Tenant) -> None:
    driver = victim.driver
    # In the place of the driver's folder of a pod, as a pod could swap it.
    stranger = victim.node.volume_folder(str(uuid.uuid4()), victim.volume, victim.source)
    up = 1 if victim.source == CSI else 0
    plugin = stranger.parents[up]
    plugin.parent.mkdir(parents=True)
    plugin.symlink_to(victim.folder.parents[up])
    with pytest.raises(CallFailed, match="links are not followed"):
        await driver.unmount(stranger, victim.volume)
    plugin.unlink()
    plugin.parent.rmdir()
    plugin.parents[1].rmdir()

    # In the place of the folder itself, of a pod with every right to its volume.
    own = attacker.volume
    await driver.unmount(attacker.folder, own)
    if attacker.folder.exists():
        attacker.folder.rmdir()  # a CSI driver has done it
    attacker.folder.symlink_to(victim.folder)
    with pytest.raises(CallFailed, match="links are not followed"):
        await driver.mount(attacker.folder, own, attacker.pod)
    if attacker.source == CSI:
        with pytest.raises(CallFailed, match="can't be removed"):
            await driver.unmount(attacker.folder, own)
    else:
        await driver.unmount(attacker.folder, own)
    attacker.folder.unlink()
    attacker.folder.mkdir(mode=0o750)
    await driver.mount(attacker.folder, own, attacker.pod)
    assert (attacker.folder / "secret").exists()


async def _refused(tenant: Tenant, volume: str, pod: Json | None, expected: str, **lies: str) -> None:
    """The driver, called for a volume in the tenant's pod, says these words and mounts nothing."""
    folder = tenant.folder_for(volume)
    with pytest.raises(CallFailed, match=expected):
        await tenant.driver.mount(folder, volume, pod, **lies)
    assert folder not in mountspace.mounts_below(tenant.node.folder)
    assert tenant.source == FLEX_VOLUME or not folder.exists()
    for empty in [folder, *folder.parents[:4]]:
        # Of a pod that the node's kubelet knows, what else is there is the kubelet's.
        with contextlib.suppress(OSError):
            empty.rmdir()


async def test_a_csi_volume_written_into_a_pod_is_not_served(victim: Tenant, attacker: Tenant) -> None:
    """Neither by the kubelet, whom our CSIDriver tells so, nor by the driver if one asked."""
    source = {"driver": names.CSI_DRIVER, "volumeAttributes": {"size": "4096"}}
    body = pod("inline-csi", nodeName=victim.node.name, volumes=[{"name": "data", "csi": source}])
    body["spec"]["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    created = await attacker.namespace.create(PODS, body)
    expected = f'volume mode "Ephemeral" not supported by driver {names.CSI_DRIVER} (only supports ["Persistent"])'
    await attacker.namespace.until_event("inline-csi", "FailedMount", expected)
    client = CsiClient(driver_socket(victim.node.kubelet_root))
    uid, context = str(created["metadata"]["uid"]), {"csi.storage.k8s.io/ephemeral": "true"}
    target = victim.node.volume_folder(uid, "csi-1234", CSI)
    use = Use("ReadWriteOnce", "ext4")
    with pytest.raises(CallFailed, match="use a claim"):
        await client.publish("csi-1234", target, target, use, context, None, {}, read_only=False)
    await attacker.namespace.delete(PODS, "inline-csi")
    await attacker.namespace.until_gone(PODS, "inline-csi")
