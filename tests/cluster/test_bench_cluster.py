"""The benchmark for real clusters, against the sandbox: it measures, and leaves nothing there."""

import pytest

from kube.resources import VOLUMES
from tests.bench.cluster import Options, ProcessorTime, measure
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import NAMESPACES


async def test_it_measures_and_leaves_nothing(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    address = sandbox.provisioners[0].environment["LISTEN_ADDRESS"]
    processor = ProcessorTime(str(sandbox.kubeconfig), [f"http://{address}/metrics"])
    before = await processor.seconds()
    await measure(sandbox.api, processor.seconds, Options("elastic-local", "12Mi", claims=2, rounds=1))
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed] == [
        "a claim and its pod: created to PersistentVolume",
        "2 at once: created to the last PersistentVolume",
        "the provisioner's processor time to create one",
        "the provisioner's processor time to delete one",
    ]
    assert await processor.seconds() > before > 0
    assert not [each for each in await sandbox.api.list(VOLUMES) if "bench-" in str(each["spec"].get("claimRef"))]
    names = [each["metadata"]["name"] for each in await sandbox.api.list(NAMESPACES)]
    assert not [name for name in names if name.startswith("bench-")]
