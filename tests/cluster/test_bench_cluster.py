"""The benchmark for real clusters, against the sandbox: it measures, and leaves nothing there."""

import pytest

from kube.resources import CLASSES, VOLUMES
from tests.bench.cluster import Options, ProcessorTime, measure
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import NAMESPACES, storage_class


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


async def test_a_class_that_keeps_its_volumes_is_refused_before_anything_is_made(sandbox: Sandbox) -> None:
    await sandbox.api.create(CLASSES, storage_class("kept-by-bench", reclaimPolicy="Retain"))
    try:
        with pytest.raises(SystemExit, match="kept-by-bench keeps the volumes"):
            await measure(sandbox.api, _never, Options("kept-by-bench", "12Mi", claims=1, rounds=1))
    finally:
        await sandbox.api.delete(CLASSES, "kept-by-bench")


async def _never() -> float:
    raise AssertionError("nothing is measured")
