"""The main job, end to end: a claim becomes a mounted volume of exactly its size; deleting it gives the space back."""

import os

from contract import quantity
from kube.resources import CLAIMS, PODS, VOLUMES
from tests.cluster.published import has_room, is_all_free
from tests.sandbox import mountspace
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

_SIZE = 64 * 1024**2


async def test_a_claim_becomes_a_volume_of_its_size_and_gives_the_space_back(namespace: Namespace) -> None:
    sandbox = namespace.sandbox
    await until(lambda: is_all_free(sandbox), what="nothing is left of what was before")
    await namespace.create(CLAIMS, claim("data", "64Mi"))
    await namespace.create(PODS, pod("writer", {"/data": "data"}, script="echo kept > /data/file; exec sleep infinity"))

    running = await namespace.until_running("writer")
    volume = await namespace.until_bound("data")
    node = sandbox.node_of(running)
    name = volume["metadata"]["name"]
    folder = node.volume_folder(running["metadata"]["uid"], name)

    assert volume["spec"]["capacity"]["storage"] == "64Mi"
    file = folder / "file"
    await until(lambda: file.is_file() and file.read_text() == "kept\n", what="the pod's file is in the volume")
    device = next(iter(mountspace.loop_devices(node.data)))
    with device.open("rb") as opened:
        assert opened.seek(0, os.SEEK_END) == _SIZE
    await until(
        lambda: has_room(sandbox, node.hostname, quantity.parse(node.spec.capacity) - _SIZE), what="the room is less"
    )

    await namespace.delete(PODS, "writer")
    await namespace.until_gone(PODS, "writer")
    mounts = [*mountspace.mounts_below(node.kubelet_root), *mountspace.mounts_below(node.staging)]
    assert not [path for path in mounts if name in str(path)]

    await namespace.delete(CLAIMS, "data")
    await namespace.until_gone(VOLUMES, name)
    assert not list(mountspace.loop_devices(node.data))
    assert not [path for path in node.data.rglob("*") if name in path.name]
    await until(lambda: is_all_free(sandbox), what="the room is back")
