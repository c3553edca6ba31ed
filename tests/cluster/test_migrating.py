"""A volume changes its driver under an idle claim: the real daemon hands it over, and the next pod finds its data."""

from command.migrate import Migrator
from command.volumerows import Row
from contract import names
from contract.volume import FLEX_VOLUME
from kube.resources import CLAIMS, PODS, VOLUMES
from tests.cluster.conftest import MakeClass
from tests.cluster.test_command import on_node
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod


class Commands:
    """The command, run as in the daemon's pod: nothing here runs daemons in pods."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def rows(self, node: str) -> list[Row]:
        answer = await on_node(self._sandbox.nodes[node], "volumes", "--local", "--output", "json")
        return [Row(**{**row, "pods": tuple(row["pods"])}) for row in answer.json]

    async def adopt(self, node: str, volume: str) -> None:
        answer = await on_node(self._sandbox.nodes[node], "adopt", volume, "--yes", "--output", "json")
        assert answer.code == 0, answer.errors


async def test_a_volume_changes_its_driver_and_keeps_its_data(namespace: Namespace, make_class: MakeClass) -> None:
    sandbox = namespace.sandbox
    migrator = Migrator(sandbox.api, names.NAMESPACE, Commands(sandbox))
    await namespace.create(CLAIMS, claim("data", "64Mi", await make_class(volume_source=FLEX_VOLUME)))
    key = f"{namespace.name}/data"
    await namespace.create(PODS, pod("first", {"/data": "data"}, script="echo kept > /data/file; exec sleep infinity"))
    await namespace.until_running("first")
    volume = (await namespace.until_bound("data"))["metadata"]["name"]
    (plan,) = await migrator.plans("csi", [key])
    assert plan.why == "pod first uses it: stop it first"
    await namespace.delete(PODS, "first")
    await namespace.until_gone(PODS, "first")

    for to, name in (("csi", "second"), ("flexVolume", "third")):
        before = await sandbox.api.get(VOLUMES, volume)
        await migrator.migrate(volume, to)
        after = await sandbox.api.get(VOLUMES, volume)
        assert to in after["spec"]
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
        assert after["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
        script = "test $(cat /data/file) = kept && exec sleep infinity"
        await namespace.create(PODS, pod(name, {"/data": "data"}, script=script))
        running = await namespace.until_running(name)
        node = sandbox.node_of(running)
        folder = node.volume_folder(running["metadata"]["uid"], volume, to)
        assert (folder / "file").read_text() == "kept\n"
        await namespace.delete(PODS, name)
        await namespace.until_gone(PODS, name)
    await namespace.delete(CLAIMS, "data")
    await namespace.until_gone(CLAIMS, "data")
    await namespace.until_gone(VOLUMES, volume)
