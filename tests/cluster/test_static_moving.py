"""A cluster that moves over from the Go provisioner: its PersistentVolumes go on under their names."""

from typing import Any

from contract import names
from kube.resources import CLAIMS, CLASSES, NODES, VOLUMES
from tests.cluster.conftest import MakeSandbox
from tests.cluster.staticnode import CLASS, STATIC, Offered, asked_of_volumes, configure, folder, mount, served
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.workloads import Namespace, claim, storage_class
from tests.unit.daemon.static.gopv import go_pv
from tests.waiting import until

Json = dict[str, Any]


async def test_migration_from_the_go_provisioner(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("test-node", hostname="host-1", static=True), manifests=STATIC)
    node = sandbox.nodes["test-node"]
    await node.daemon.kill()
    fast = folder(node, "fast")
    uid = (await sandbox.api.get(NODES, node.name))["metadata"]["uid"]
    provisioner = f"local-volume-provisioner-{node.name}-{uid}"
    await sandbox.api.create(CLASSES, storage_class("sc1", provisioner="kubernetes.io/no-provisioner"))
    one, two = (Offered(sandbox, node, entry, "sc1") for entry in ("mount1", "mount2"))
    assert (one.name, two.name) == ("local-pv-aaaafef5", "local-pv-79412c38"), "as in the original's tests"
    for offered, entry in ((one, "mount1"), (two, "mount2")):
        mount(fast / entry)
        (fast / entry / "data").write_text(f"of {entry}")
        path = str(fast / entry)
        await sandbox.api.create(VOLUMES, go_pv(offered.name, provisioner, path=path, storage_class="sc1"))
    for number in range(3):
        others = f"local-volume-provisioner-other-{number}"
        await sandbox.api.create(VOLUMES, go_pv(f"local-pv-{number}", others, path=str(fast / "mount1")))
    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("in-use", "1Gi", "sc1", volumeName=one.name))
        before = (await one.until("Bound"))["metadata"]["uid"]
        configure(node, "storageClassMap", {"sc1": served(fast)})
        await node.daemon.start()

        label = {names.NODE_LABEL: names.node_label_value(node.name)}
        await until(lambda: _labelled([one, two], label), what="the two are taken over")
        later = Offered(sandbox, node, "later", "sc1")
        mount(fast / "later")
        await later.until("Available")
        bodies = await sandbox.api.list(VOLUMES)
        mine = {body["metadata"]["name"] for body in bodies if label.items() <= _labels(body).items()}
        assert mine == {one.name, two.name, later.name}, "no entry has a second one, and no other node's is touched"
        assert len(bodies) == 6

        await namespace.delete(CLAIMS, "in-use")
        again = await one.until("Available", not_uid=before)
        assert again["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"] == provisioner
    assert list((fast / "mount1").iterdir()) == []
    assert (fast / "mount2" / "data").read_text() == "of mount2"
    # The one that came later, and the one that was cleaned.
    assert len(asked_of_volumes(sandbox, "create")) == 2


async def test_a_node_registered_again_keeps_its_volumes_by_name(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("again", hostname="host-1", static=True), manifests=STATIC)
    node = sandbox.nodes["again"]
    fast, entry = folder(node, "fast"), Offered(sandbox, node, "mount1")
    path = mount(fast / "mount1")
    provisioner = "local-volume-provisioner-again-00000000-1111-2222-3333-444444444444"
    yesterday = go_pv(entry.name, provisioner, path=str(path), storage_class=CLASS)
    await sandbox.api.create(VOLUMES, yesterday)
    configure(node, "storageClassMap", {CLASS: served(fast)})

    # The original says "already exists" for ever.
    async def reported() -> bool:
        return f"PersistentVolume {entry.name} of {path} exists and belongs to another Node" in node.daemon.output

    await until(reported, what="the daemon says whose it is, and what to do")
    configure(node, "useNodeNameOnly", True)
    label = {names.NODE_LABEL: names.node_label_value(node.name)}
    await until(lambda: _labelled([entry], label), what="it is taken over")


async def _labelled(volumes: list[Offered], label: Json) -> bool:
    bodies = [await offered.body() for offered in volumes]
    return all(body and label.items() <= _labels(body).items() for body in bodies)


def _labels(body: Json) -> Json:
    labels: Json = body["metadata"].get("labels") or {}
    return labels
