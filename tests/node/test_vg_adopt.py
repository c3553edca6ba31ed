"""`elastic-local adopt` on volumes that elastic/local-volume left: real logical volumes, an API server in memory."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from command import adopt
from command.main import app
from contract import names
from kube.resources import NODES, VOLUMES
from lvm import Lvm
from tests.memorycluster import MemoryCluster

pytestmark = pytest.mark.device_mapper

Json = dict[str, Any]


def old(name: str, filesystem: str = "ext4") -> Json:
    """A PersistentVolume as elastic/local-volume made them."""
    expression = {"key": names.HOSTNAME_LABEL, "operator": "In", "values": ["host-1"]}
    return {
        "metadata": {"name": name, "uid": f"uid-of-{name}"},
        "spec": {
            "capacity": {"storage": "32Mi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"namespace": "default", "name": f"claim-of-{name}", "uid": "claim"},
            "flexVolume": {"driver": names.DRIVER, "fsType": filesystem},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}},
        },
        "status": {"phase": "Bound"},
    }


async def test_old_volumes_get_tags_and_keep_their_data(
    lvm: Lvm, volume_group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pvc-good", "pvc-unformatted", "root", "pvc-strange"):
        await lvm.create_volume(volume_group, name, 32 << 20)
    good = f"/dev/{volume_group}/pvc-good"
    subprocess.run(["mkfs.ext4", "-q", "-L", "precious", good], check=True)
    subprocess.run(["mkswap", f"/dev/{volume_group}/pvc-strange"], check=True, capture_output=True)
    cluster = MemoryCluster()
    cluster.put(NODES, {"metadata": {"name": "node-1", "labels": {names.HOSTNAME_LABEL: "host-1"}}})
    for name in ("pvc-good", "pvc-unformatted", "pvc-strange"):
        cluster.put(VOLUMES, old(name))

    @contextlib.asynccontextmanager
    async def connected(_: str | None) -> AsyncIterator[MemoryCluster]:
        yield cluster

    monkeypatch.setattr(adopt, "cluster", connected)
    environment = {"NODE_NAME": "node-1", "LVM_VOLUME_GROUP": volume_group, "DATA_DIR": str(tmp_path)}

    def run(*arguments: str) -> dict[str, str]:
        done = CliRunner().invoke(app, ["adopt", *arguments, "--output", "json"], env=environment)
        assert done.exit_code == 0, done.output
        return {plan["volume"]: plan["action"] for plan in json.loads(done.stdout)}

    async def tags() -> dict[str, frozenset[str]]:
        return {volume.name: volume.tags for volume in (await lvm.report()).volumes}

    expected = {"pvc-good": "adopt", "pvc-unformatted": "leave", "pvc-strange": "leave"}
    assert await asyncio.to_thread(run) == expected
    assert not any((await tags()).values()), "a dry run changed something"

    assert await asyncio.to_thread(run, "--yes") == expected
    tags_of = await tags()
    assert "elastic-local/uid=uid-of-pvc-good" in tags_of.pop("pvc-good")
    assert not any(tags_of.values())
    adopted = cluster.stored(VOLUMES, "pvc-good")
    assert adopted
    metadata = adopted["metadata"]
    assert metadata["finalizers"] == [names.FINALIZER]
    assert metadata["annotations"] == {names.POOL_ANNOTATION: volume_group}
    label = subprocess.run(["e2label", good], check=True, capture_output=True, text=True).stdout
    assert label == "precious\n"
    assert "pvc-good" not in await asyncio.to_thread(run)
