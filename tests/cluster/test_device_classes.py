"""Nodes with several kinds of disks, which differ: a class has room where its device class is."""

from contract import quantity
from kube.resources import CLAIMS, CLASSES, EVENTS, PODS
from tests.cluster import onnode
from tests.cluster.conftest import MakeSandbox
from tests.cluster.published import room
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.workloads import Namespace, claim, pod, storage_class
from tests.waiting import until

MIB = 2**20


async def test_nodes_that_differ(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(
        NodeSpec("plain", capacity="512Mi", device_classes={"fast": ""}),
        NodeSpec("rich", capacity="128Mi", device_classes={"fast": "256Mi"}),
    )
    plain, rich = sandbox.nodes["plain"], sandbox.nodes["rich"]
    for name, device_class in (("fast", "fast"), ("unheard-of", "tape")):
        await sandbox.api.create(CLASSES, storage_class(name, parameters={"device-class": device_class}))

    async def rooms(name: str) -> dict[str, str]:
        return {node: quantity.render(size) for node, size in (await room(sandbox, name)).items()}

    async def published() -> bool:
        return await rooms("fast") == {"plain": "0", "rich": "256Mi"} and len(await rooms("unheard-of")) == 2

    await until(published, what="the room of the class on both nodes")
    assert await rooms("unheard-of") == {"plain": "0", "rich": "0"}
    assert await rooms("elastic-local") == {"plain": "512Mi", "rich": "128Mi"}

    async def reported() -> bool:
        return any(
            event["reason"] == "StorageMissing"
            and event["involvedObject"]["name"] == "plain"
            and event["message"].startswith("no room for device class fast: ")
            for event in await sandbox.api.list(EVENTS)
        )

    await until(reported, what="an event on the node that lacks the class")

    async with Namespace(sandbox, "work") as namespace:
        for name in ("fast", "elastic-local"):
            await namespace.create(CLAIMS, claim(name, "100Mi", name))
            await namespace.create(PODS, pod(name, {"/data": name}))
        await namespace.until_running("elastic-local")
        assert sandbox.node_of(await namespace.until_running("fast")) is rich
        volume = (await namespace.until_bound("fast"))["metadata"]["name"]
        assert (rich.class_folder("fast") / f"{volume}.img").stat().st_size == 100 * MIB
        mount = onnode.staged(rich, volume)
        assert mount is not None

        async def taken_once() -> bool:
            return await rooms("fast") == {"plain": "0", "rich": "156Mi"}

        await until(taken_once, what="the room of the class that is left")

        # The other volume is of the other class, wherever it is.
        async def taken_of_the_other_class() -> bool:
            return sum((await room(sandbox)).values()) == (512 + 128 - 100) * MIB

        await until(taken_of_the_other_class, what="the room of the other class that is left")
        assert not plain.class_folder("fast").exists()

        # What the two classes have together would do, and neither has it.
        await namespace.create(CLAIMS, claim("more", "200Mi", "fast"))
        await namespace.create(PODS, pod("more", {"/data": "more"}))
        message = await namespace.until_event("more", "FailedScheduling")
        assert message.startswith("0/2 nodes are available: 2 node(s) did not have enough free storage. ")
        await namespace.delete(PODS, "fast")
        await namespace.delete(CLAIMS, "fast")
        await namespace.until_running("more")
