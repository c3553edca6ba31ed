"""Encrypted volumes on LVM, from the claim and the Secret of its class to the pod that writes, and back."""

import asyncio
import base64
import contextlib
import os
import secrets
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from contract.snapshot import Handle
from contract.volume import CSI
from daemon.storage.encryption import mapping_name
from host import luks
from kube.resources import (
    CAPACITIES,
    CLAIMS,
    CLASSES,
    EVENTS,
    NODES,
    PODS,
    SECRETS,
    SNAPSHOT_CONTENTS,
    SNAPSHOTS,
    VOLUMES,
)
from tests.cluster.lvmcluster import CHECK, MIB, WRITE, LvmCluster
from tests.cluster.test_growing import ask, until_grown
from tests.sandbox.snapshots import from_snapshot, snapshot
from tests.sandbox.workloads import Namespace, claim, pod, storage_class
from tests.waiting import until

pytestmark = pytest.mark.device_mapper

PASSPHRASE, WRONG = "correct horse battery staple", "Tr0ub4dor&3"
PLAIN = b"what the pod has written"
CLONE = {"dataSource": {"kind": "PersistentVolumeClaim", "name": "data"}}
_LUKS_KEYS = slice(32 << 10, 288 << 10)
"""Where a LUKS2 header has the key area of its first slot (cryptsetup luksDump)."""


async def encrypted_class(cluster: LvmCluster, secret: str, expand: str = "", **fields: Any) -> str:
    """The name of a class whose volumes the Secret `namespace/name` opens; `fields` are its other fields."""
    parameters = {"volumeSource": CSI, "encryption": "luks2"}
    for call, reference in (("stage", secret), ("expand", expand)):
        if reference:
            keys = (f"csi.storage.k8s.io/node-{call}-secret-namespace", f"csi.storage.k8s.io/node-{call}-secret-name")
            parameters |= dict(zip(keys, reference.split("/"), strict=True))
    fields = {"allowVolumeExpansion": True, **fields}
    body = storage_class(f"class-{secrets.token_hex(4)}", parameters=parameters, **fields)
    return str((await cluster.sandbox.api.create(CLASSES, body))["metadata"]["name"])


async def put_secret(namespace: Namespace, name: str, passphrase: str, key: str = "encryptionPassphrase") -> None:
    """In the place of one of that name."""
    await namespace.delete(SECRETS, name)
    data = {key: base64.b64encode(passphrase.encode()).decode()}
    await namespace.create(SECRETS, {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data})


def output(*argv: str | Path) -> bytes:
    return subprocess.run(argv, check=True, capture_output=True).stdout


def is_luks2(device: Path) -> bool:
    return subprocess.run(["cryptsetup", "isLuks", "--type", "luks2", device], check=False).returncode == 0


@dataclass
class Processes:
    """What was seen of the processes of the machine: their arguments and environments."""

    seen: set[bytes] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """One of cryptsetup takes a good part of a second here, for it derives a key."""
        looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking

    async def _look(self) -> None:
        while True:
            await asyncio.to_thread(self._look_once)
            await asyncio.sleep(0.2)

    def _look_once(self) -> None:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                arguments = (process / "cmdline").read_bytes()
                if b"cryptsetup" in arguments:
                    self.seen |= {arguments, (process / "environ").read_bytes()}


async def places_of(cluster: LvmCluster, words: set[bytes]) -> list[str]:
    """Where these words stand outside the Secrets: on the disks, in files of the node and of our programs, in objects.
    Etcd, which keeps the Secrets, is not looked at."""
    found = ["a disk"] if cluster.found_on_disks(PASSPHRASE.encode()) else []
    sandbox = cluster.sandbox
    for root in (sandbox.folder, cluster.system_dir):
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink() and "etcd" not in path.parts:
                content = path.read_bytes()
                found += [str(path) for each in words if each in content]
    for resource in (EVENTS, VOLUMES, NODES, CLASSES, CAPACITIES, SNAPSHOT_CONTENTS, CLAIMS, PODS):
        text = repr(await sandbox.api.list(resource)).encode()
        found += [str(resource) for each in words if each in text]
    found += [
        "an LVM tag" for each in (await cluster.tools.report()).volumes if any(w in repr(each).encode() for w in words)
    ]
    return found


async def test_an_encrypted_claim_from_its_secret_to_its_end(lvm_cluster: LvmCluster, on_lvm: Namespace) -> None:
    """It is retained once, and goes to another claim."""
    api, node, processes = lvm_cluster.sandbox.api, lvm_cluster.node, Processes()
    encrypted = await encrypted_class(lvm_cluster, f"{on_lvm.name}/key", f"{on_lvm.name}/grow", reclaimPolicy="Retain")
    await on_lvm.create(CLAIMS, claim("data", "64Mi", encrypted))
    script = f'yes "{PLAIN.decode()}" | head -c 1M > /data/plain; {WRITE.format(size="4M")}'
    async with processes.watched():
        await on_lvm.create(PODS, pod("writer", {"/data": "data"}, script=script))
        missing = f'fetching NodeStageSecretRef {on_lvm.name}/key failed: secrets "key" not found'
        await on_lvm.until_event("writer", "FailedMount", missing)
        await put_secret(on_lvm, "key", PASSPHRASE, key="passphrase")
        words = f"encryptionPassphrase of Secret {on_lvm.name}/key is empty or missing: put 1 to 4096 bytes there"
        await on_lvm.until_event("writer", "FailedMount", words)
        await put_secret(on_lvm, "key", PASSPHRASE)
        await on_lvm.until_running("writer")
    name = (await on_lvm.until_bound("data"))["metadata"]["name"]
    device, mapping, staged = Path("/dev", lvm_cluster.group, name), mapping_name(name), node.staging / name
    await until((staged / "done").exists, what="the pod has written")
    assert is_luks2(device)
    assert output("findmnt", "--noheadings", "--output=SOURCE", staged).decode().strip() == f"/dev/mapper/{mapping}"
    assert lvm_cluster.found_on_disks(PLAIN) == 0

    await node.daemon.kill()
    await node.daemon.start()
    before = os.statvfs(staged)
    await ask(on_lvm, "96Mi")
    words = f'failed to get NodeExpandSecretRef {on_lvm.name}/grow: secrets "grow" not found'
    await on_lvm.until_event("writer", "VolumeResizeFailed", words)
    await put_secret(on_lvm, "grow", "anything")
    await until_grown(on_lvm, "96Mi")
    after = os.statvfs(staged)
    assert (after.f_blocks - before.f_blocks) * after.f_frsize > 28 * MIB

    await on_lvm.delete(PODS, "writer")
    await on_lvm.until_gone(PODS, "writer")
    await on_lvm.delete(CLAIMS, "data")
    await on_lvm.until(VOLUMES, name, lambda body: body["status"]["phase"] == "Released", what="is retained")
    await until(lambda: not luks.exists(mapping), what="it is closed when its last pod has gone")
    assert is_luks2(device)
    await api.patch(VOLUMES, name, {"spec": {"claimRef": None, "persistentVolumeReclaimPolicy": "Delete"}})
    await on_lvm.create(CLAIMS, claim("again", "96Mi", encrypted, volumeName=name))
    await put_secret(on_lvm, "key", WRONG)
    async with processes.watched():
        await on_lvm.create(PODS, pod("next", {"/data": "again"}, script=CHECK))
        words = f"volume {name} is not opened by encryptionPassphrase of Secret {on_lvm.name}/key: put back"
        await on_lvm.until_event("next", "FailedMount", words)
        assert not luks.exists(mapping)
        await put_secret(on_lvm, "key", PASSPHRASE)
        await on_lvm.until_running("next")

    backup = lvm_cluster.images[0].with_name("header")
    output("cryptsetup", "luksHeaderBackup", device, "--header-backup-file", backup)
    keys = backup.read_bytes()[_LUKS_KEYS]
    backup.unlink()
    assert len(set(keys)) > 200
    assert lvm_cluster.found_on_disks(keys[:4096]) == 1
    await on_lvm.delete(PODS, "next")
    await on_lvm.delete(CLAIMS, "again")
    await on_lvm.until_gone(VOLUMES, name)
    assert lvm_cluster.found_on_disks(keys[:4096]) == 0, "the header is forgotten"

    assert any(b"luksFormat" in each for each in processes.seen)
    secret = {form for each in (PASSPHRASE, WRONG) for form in (each.encode(), base64.b64encode(each.encode()))}
    assert not [each for each in processes.seen if any(words in each for words in secret)]
    assert await places_of(lvm_cluster, secret) == []


async def test_copies_are_opened_by_the_secret_of_their_source(lvm_cluster: LvmCluster, on_lvm: Namespace) -> None:
    """And the source grows under its pod, though its class names no Secret for that."""
    await put_secret(on_lvm, "key", PASSPHRASE)
    encrypted = await encrypted_class(lvm_cluster, f"{on_lvm.name}/key")
    await on_lvm.create(CLAIMS, claim("data", "16Mi", encrypted))
    script = f'yes "{PLAIN.decode()}" | head -c 1M > /data/plain; {WRITE.format(size="1M")}'
    await on_lvm.create(PODS, pod("writer", {"/data": "data"}, script=script))
    await on_lvm.until_running("writer")
    source = (await on_lvm.until_bound("data"))["metadata"]["name"]
    await until((lvm_cluster.node.staging / source / "done").exists, what="the pod has written")
    await on_lvm.create(SNAPSHOTS, snapshot("before", "data"))
    ready = await on_lvm.until(
        SNAPSHOTS, "before", lambda body: (body.get("status") or {}).get("readyToUse"), what="is ready"
    )
    content = await on_lvm.api.get(SNAPSHOT_CONTENTS, ready["status"]["boundVolumeSnapshotContentName"])
    copies = {"restored": from_snapshot("before"), "clone": CLONE}
    for name, of in copies.items():
        await on_lvm.create(CLAIMS, claim(name, "24Mi", encrypted, **of))
        await on_lvm.create(PODS, pod(name, {"/data": name}, script=CHECK))
    await on_lvm.create(CLAIMS, claim("plain", "16Mi", await lvm_cluster.make_class(volumeSource=CSI), **CLONE))
    await on_lvm.create(PODS, pod("plain", {"/data": "plain"}))
    words = f"its copy has the same key: use a class with encryption luks2 and Secret {on_lvm.name}/key"
    await on_lvm.until_event("plain", "ProvisioningFailed", words)
    for name in copies:
        await on_lvm.until_running(name)
    made = [(await on_lvm.until_bound(name))["metadata"]["name"] for name in copies]
    taken = Handle.parse(content["status"]["snapshotHandle"])
    assert taken
    headers = [Path("/dev", lvm_cluster.group, each) for each in (source, taken.volume, *made)]
    assert len({output("cryptsetup", "luksUUID", each) for each in headers}) == 4
    await ask(on_lvm, "24Mi")
    await until_grown(on_lvm, "24Mi")
    await on_lvm.delete(SNAPSHOTS, "before")
    await on_lvm.until_gone(SNAPSHOTS, "before")
    assert lvm_cluster.found_on_disks(PLAIN) == 0


async def test_a_flexvolume_can_not_be_encrypted(lvm_cluster: LvmCluster, on_lvm: Namespace) -> None:
    parameters = {
        "volumeSource": "flexVolume",
        "encryption": "luks2",
        "csi.storage.k8s.io/node-stage-secret-name": "key",
        "csi.storage.k8s.io/node-stage-secret-namespace": on_lvm.name,
    }
    body = storage_class(f"class-{secrets.token_hex(4)}", "Immediate", parameters=parameters)
    await lvm_cluster.sandbox.api.create(CLASSES, body)
    await on_lvm.create(CLAIMS, claim("data", "32Mi", body["metadata"]["name"]))
    words = "parameter 'encryption' is 'luks2': allowed with volumeSource csi only"
    await on_lvm.until_event("data", "ProvisioningFailed", words)
