"""A static PersistentVolume that an administrator deletes with kubectl: free, in use, and to be kept."""

import asyncio
import os
import subprocess
import textwrap
from pathlib import Path

from contract import names
from kube.resources import CLAIMS, CLASSES, VOLUMES
from tests.cluster.conftest import MakeSandbox
from tests.cluster.staticnode import CLASS, STATIC, Offered, configure, folder, mount, served
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, storage_class
from tests.unit.daemon.static.gopv import go_pv
from tests.unit.deploy.rendered import DEPLOY
from tests.waiting import until


async def test_deleted_by_hand(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("one", hostname="host-1", static=True), manifests=STATIC)
    node = sandbox.nodes["one"]
    manual = storage_class("kept", provisioner="kubernetes.io/no-provisioner", reclaimPolicy="Retain")
    await sandbox.api.create(CLASSES, manual)
    fast, kept = folder(node, "fast"), folder(node, "kept")
    configure(node, "storageClassMap", {CLASS: served(fast), "kept": served(kept)})
    used, archive = Offered(sandbox, node, "used"), Offered(sandbox, node, "archive", "kept")
    mount(fast / "used")
    mount(kept / "archive")

    free = (await used.until("Available"))["metadata"]
    assert names.STATIC_FINALIZER in free["finalizers"]
    await sandbox.api.delete(VOLUMES, used.name)
    await used.until("Available", not_uid=free["uid"])

    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("used", "1Mi", CLASS, volumeName=used.name))
        await namespace.create(CLAIMS, claim("archive", "1Mi", "kept", volumeName=archive.name))
        for volume, path in ((used, fast / "used"), (archive, kept / "archive")):
            await volume.until("Bound")
            (path / "secret").write_text("of this claim")
            await sandbox.api.delete(VOLUMES, volume.name)
        before = (await used.until("Bound"))["metadata"]["uid"]
        for name in ("used", "archive"):
            await namespace.delete(CLAIMS, name)
        await used.until("Available", not_uid=before)
        assert list((fast / "used").iterdir()) == []

    await archive.until_event("VolumeDeletedWithData", "until you decide")
    await node.daemon.kill()
    await node.daemon.start()
    uid = (await archive.until("Released"))["metadata"]["uid"]
    assert (kept / "archive" / "secret").read_text() == "of this claim"
    await _the_administrators_word(sandbox, archive, kept / "archive", uid)


async def _the_administrators_word(sandbox: Sandbox, archive: Offered, path: Path, uid: str) -> None:
    await sandbox.api.patch(VOLUMES, archive.name, {"spec": {"persistentVolumeReclaimPolicy": "Delete"}})
    await archive.until("Available", not_uid=uid)
    await until(lambda: list(path.iterdir()) == [], what="it was cleaned before it was offered again")


async def test_the_documented_command_removes_the_finalizer(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("one", hostname="host-1", static=True), manifests=STATIC)
    node = sandbox.nodes["one"]
    fast = folder(node, "fast")
    configure(node, "storageClassMap", {CLASS: served(fast)})
    one, two = Offered(sandbox, node, "one"), Offered(sandbox, node, "two")
    for entry, offered in (("one", one), ("two", two)):
        mount(fast / entry)
        await offered.until("Available")
    await node.daemon.kill()
    other = "example.org/other"
    finalizers = {"metadata": {"finalizers": [other, names.STATIC_FINALIZER]}}
    await sandbox.api.patch(VOLUMES, two.name, finalizers)
    stranger = go_pv("stranger", "somebody-else")
    stranger["metadata"]["finalizers"] = [names.STATIC_FINALIZER]
    await sandbox.api.create(VOLUMES, stranger)

    environment = os.environ | {"KUBECONFIG": str(sandbox.kubeconfig), "HOME": str(sandbox.folder)}
    await asyncio.to_thread(subprocess.run, ["sh", "-c", _documented()], check=True, env=environment)

    left = {
        body["metadata"]["name"]: body["metadata"].get("finalizers", []) for body in await sandbox.api.list(VOLUMES)
    }
    assert names.STATIC_FINALIZER not in left[one.name] + left[two.name]
    assert other in left[two.name], "finalizers of others stay"
    assert names.STATIC_FINALIZER in left["stranger"], "without the label it is not a volume of ours"
    for name in left:
        await sandbox.api.patch(VOLUMES, name, {"metadata": {"finalizers": None}})


def _documented() -> str:
    """The command for uninstalling."""
    page = (DEPLOY.parent / "docs" / "static-volumes.md").read_text()
    _, _, rest = page.partition("**Uninstalling**")
    return textwrap.dedent("\n".join(line for line in rest.partition("## ")[0].splitlines() if line.startswith("    ")))
