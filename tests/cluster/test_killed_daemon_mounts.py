"""The daemon ends, by SIGKILL and by SIGTERM, while pods have their volumes: they keep them, and the next daemon knows
of them as much as the one before."""

from pathlib import Path

import pytest

from contract.volume import CSI, FLEX_VOLUME
from kube.resources import CLAIMS, PODS, VOLUMES
from tests.cluster.conftest import ClassLike
from tests.sandbox import mountspace
from tests.sandbox.nodes import Node
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

_WRITER = (
    "i=0; while :; do i=$((i + 1)); echo $i > /data/count; sync /data/count; read -t 0.02 _ < /data/pipe || :; done"
)
_SCRIPT = f"mkfifo /data/pipe; exec 3<> /data/pipe; exec bash -c '{_WRITER}'"


@pytest.mark.parametrize(
    ("ending", "volume_source"), [("kill", FLEX_VOLUME), ("kill", CSI), ("stop", CSI)], indirect=["volume_source"]
)
async def test_mounts_survive_the_daemon_and_pods_write_on(
    shaken: Namespace, ending: str, volume_source: str, shaken_class_like: ClassLike
) -> None:
    await shaken.create(CLAIMS, claim("data", "16Mi", shaken_class_like()))
    created = await shaken.create(PODS, pod("writer", {"/data": "data"}, script=_SCRIPT))
    running = await shaken.until_running("writer")
    node = shaken.sandbox.node_of(running)
    volume = (await shaken.until_bound("data"))["metadata"]["name"]
    folder = node.volume_folder(created["metadata"]["uid"], volume, volume_source)
    count = folder / "count"
    await until(lambda: count.exists() and count.read_text(), what="the pod writes")

    await (node.daemon.kill() if ending == "kill" else node.daemon.stop())
    assert node.daemon.exit_code == (-9 if ending == "kill" else 0)
    await _writes_on(node, volume, folder)
    await node.daemon.start()
    await _writes_on(node, volume, folder)

    after = await shaken.until_running("writer")
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
    await shaken.delete(PODS, "writer")
    await shaken.until_gone(PODS, "writer")
    assert mountspace.mounts_below(node.kubelet_root) == []
    await until(lambda: mountspace.mounts_below(node.staging) == [], what="the volume is mounted nowhere")
    await shaken.delete(CLAIMS, "data")
    await shaken.until_gone(VOLUMES, volume)
    assert list((node.data / "loop").iterdir()) == []


async def _writes_on(node: Node, volume: str, folder: Path) -> None:
    before = folder.joinpath("count").read_text()
    assert sorted(mountspace.mounts_below(node.folder)) == sorted([folder, node.staging / volume])
    count = folder / "count"
    await until(lambda: count.read_text() not in ("", before), what="the pod writes on")
