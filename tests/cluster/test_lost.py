"""A volume that was made and is not there, as after a disk was replaced: no empty one takes its place unasked."""

from contract import names
from kube.resources import CLAIMS, PODS, VOLUMES
from tests.cluster import onnode
from tests.cluster.conftest import MakeSandbox
from tests.cluster.test_reclaiming import written
from tests.sandbox.nodes import Node, NodeSpec
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until


async def lose(node: Node, volume: str) -> None:
    """The volume, record and all."""
    await until(lambda: not (node.staging / volume).exists(), what="nobody uses it")
    paths = list(node.data.rglob(f"{volume}*"))
    assert paths
    for path in paths:
        path.unlink()
    assert volume not in onnode.sizes(node)


async def test_what_a_person_can_do_about_a_lost_volume(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("only"))
    node = sandbox.nodes["only"]
    async with Namespace(sandbox, "work") as namespace:
        for name in ("data", "other"):
            await namespace.create(CLAIMS, claim(name, "16Mi"))
        (_, volume), (_, other) = await written(namespace, "data"), await written(namespace, "other")
        for name in (volume, other):
            await lose(node, name)
        script = "test ! -e /data/file && exec sleep infinity"
        await namespace.create(PODS, pod("user", {"/data": "data"}, script=script))
        await namespace.until_event("user", "FailedMount", "was made on this node and is not there any more")

        await sandbox.kubectl("annotate", "pv", volume, f"{names.MADE_ANNOTATION}-")
        await namespace.until_running("user")

        await namespace.delete(CLAIMS, "other")
        await namespace.until_gone(VOLUMES, other)
