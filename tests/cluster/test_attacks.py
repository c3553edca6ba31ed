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
from kube.resources import CLAIMS, PODS
from tests.cluster.callouts import driver_of, options_for
from tests.sandbox import mountspace
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

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    @property
    def folder(self) -> Path:
        return self.node.volume_folder(self.uid, self.volume)

    def folder_for(self, volume: str) -> Path:
        """The folder of a volume in the tenant's pod, made as the kubelet makes it."""
        folder = self.node.volume_folder(self.uid, volume)
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        return folder


async def _tenant(sandbox: Sandbox, name: str, stack: AsyncExitStack) -> Tenant:
    namespace = await stack.enter_async_context(Namespace(sandbox, name))
    node = sandbox.nodes[_NODE]
    await namespace.create(CLAIMS, claim("data", "16Mi"))
    selector = {names.HOSTNAME_LABEL: node.hostname}
    await namespace.create(PODS, pod("user", {"/data": "data"}, script=_SCRIPT, nodeSelector=selector))
    running = await namespace.until_running("user")
    volume = await namespace.until_bound("data")
    tenant = Tenant(namespace, node, running, volume["metadata"]["name"])
    await until((tenant.folder / "secret").exists, what="the tenant has written")
    return tenant


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tenants(sandbox: Sandbox) -> AsyncIterator[tuple[Tenant, Tenant]]:
    async with AsyncExitStack() as stack:
        yield await _tenant(sandbox, "victim", stack), await _tenant(sandbox, "attacker", stack)


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
    lies = {callout.POD_NAMESPACE_OPTION: victim.namespace.name, "kubernetes.io/pod.uid": victim.uid}
    for options in (options_for(attacker.pod), options_for(attacker.pod, **lies)):
        await _refused(attacker, victim.volume, options, "has no claim that is bound to a volume")


async def test_a_claim_that_names_the_volume_of_another_does_not_get_it(victim: Tenant, attacker: Tenant) -> None:
    await attacker.namespace.create(CLAIMS, claim("theft", "16Mi", volumeName=victim.volume))
    body = pod("thief", {"/data": "theft"}, nodeName=victim.node.name)
    thief = await attacker.namespace.create(PODS, body)
    refused = Tenant(attacker.namespace, victim.node, thief, victim.volume)
    await _refused(refused, victim.volume, options_for(thief), "has no claim that is bound to a volume")
    await attacker.namespace.delete(PODS, "thief")
    await attacker.namespace.delete(CLAIMS, "theft")
    await attacker.namespace.until_gone(CLAIMS, "theft")


async def test_a_pod_of_another_node_is_not_mounted_for(victim: Tenant) -> None:
    other = victim.namespace.sandbox.nodes["node-b"]
    away = Tenant(victim.namespace, other, victim.pod, victim.volume)
    await _refused(away, victim.volume, options_for(victim.pod), "runs on another node")
    await _refused(away, victim.volume, "{}", "no pod with uid")


async def test_a_volume_is_not_mounted_away_from_its_node(victim: Tenant) -> None:
    other = victim.namespace.sandbox.nodes["node-b"]
    moved = await victim.namespace.create(PODS, pod("moved", {"/data": "data"}, nodeName=other.name))
    away = Tenant(victim.namespace, other, moved, victim.volume)
    await _refused(away, victim.volume, options_for(moved), f"lives on node {victim.node.hostname}")
    await victim.namespace.delete(PODS, "moved")
    await victim.namespace.until_gone(PODS, "moved")


async def test_a_pod_that_does_not_exist_gets_nothing(victim: Tenant) -> None:
    ghost = Tenant(victim.namespace, victim.node, {"metadata": {"uid": str(uuid.uuid4())}}, victim.volume)
    await _refused(ghost, victim.volume, options_for(victim.pod), "no pod with uid")


async def test_a_path_that_climbs_leads_nowhere(victim: Tenant, attacker: Tenant) -> None:
    climbing = [
        attacker.folder / "../../../.." / victim.uid / "volumes" / names.DRIVER_FOLDER / victim.volume,
        victim.node.kubelet_root / "../kubelet" / victim.folder.relative_to(victim.node.kubelet_root),
        victim.node.staging / victim.volume,
        victim.folder / "lost+found",
    ]
    driver = driver_of(victim.node)
    for path in climbing:
        with pytest.raises(CallFailed, match="is not a folder that the kubelet makes"):
            await driver.mount(path, options_for(attacker.pod))
        with pytest.raises(CallFailed, match="is not a folder that the kubelet makes"):
            await driver.unmount(path)


async def test_links_are_not_followed(victim: Tenant, attacker: Tenant) -> None:
    driver = driver_of(victim.node)
    # In the place of the driver's folder of a pod, as a pod could swap it.
    stranger = victim.node.volume_folder(str(uuid.uuid4()), victim.volume)
    stranger.parents[1].mkdir(parents=True)
    stranger.parent.symlink_to(victim.folder.parent)
    with pytest.raises(CallFailed, match="links are not followed"):
        await driver.unmount(stranger)
    stranger.parent.unlink()
    stranger.parents[1].rmdir()
    stranger.parents[2].rmdir()

    # In the place of the folder itself, of a pod with every right to its volume.
    await driver.unmount(attacker.folder)
    attacker.folder.rmdir()
    attacker.folder.symlink_to(victim.folder)
    with pytest.raises(CallFailed, match="links are not followed"):
        await driver.mount(attacker.folder, options_for(attacker.pod))
    await driver.unmount(attacker.folder)
    attacker.folder.unlink()
    attacker.folder.mkdir(mode=0o750)
    await driver.mount(attacker.folder, options_for(attacker.pod))
    assert (attacker.folder / "secret").exists()


async def _refused(tenant: Tenant, volume: str, options: str, words: str) -> None:
    """The driver, called for a volume in the tenant's pod, says these words and mounts nothing."""
    folder = tenant.folder_for(volume)
    with pytest.raises(CallFailed, match=words):
        await driver_of(tenant.node).mount(folder, options)
    assert folder not in mountspace.mounts_below(tenant.node.folder)
    folder.rmdir()
    for empty in folder.parents[:3]:
        # Of a pod that the node's kubelet knows, what else is there is the kubelet's.
        with contextlib.suppress(OSError):
            empty.rmdir()
