"""A person at work with kubectl: the samples that we ship, and what each command shows of them."""

import json

from contract import names
from contract.volume import CSI
from tests.sandbox import mountspace
from tests.sandbox.nodes import default_source
from tests.sandbox.sandbox import SAMPLES
from tests.sandbox.workloads import Namespace


async def test_a_person_runs_the_sample(namespace: Namespace) -> None:
    async def kubectl(*words: str) -> str:
        return await namespace.sandbox.kubectl("--namespace", namespace.name, *words)

    files = ["-f", str(SAMPLES / "claim.yaml"), "-f", str(SAMPLES / "pod.yaml")]
    assert (await kubectl("apply", *files)).splitlines() == [
        "persistentvolumeclaim/sample created",
        "pod/sample created",
    ]
    await kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/sample", "--timeout=30s")
    await kubectl("wait", "--for=condition=Ready", "pod/sample", "--timeout=30s")
    assert "unchanged" in (await kubectl("apply", *files)).splitlines()[0]

    header, row = (await kubectl("get", "pvc", "sample")).splitlines()
    shown = dict(zip(header.replace("ACCESS MODES", "MODES").split(), row.split(), strict=False))
    assert (shown["STATUS"], shown["CAPACITY"], shown["STORAGECLASS"]) == ("Bound", "64Mi", "elastic-local")
    volume = shown["VOLUME"]
    pod = json.loads(await kubectl("get", "pod", "sample", "-o", "json"))
    node = namespace.sandbox.node_of(pod)

    described = await kubectl("describe", "pv", volume)
    driver = names.CSI_DRIVER if default_source() == CSI else names.DRIVER
    for words in (driver, f"in [{node.hostname}]", f"{namespace.name}/sample", "64Mi"):
        assert words in described
    described = await kubectl("describe", "pvc", "sample")
    assert "ProvisioningSucceeded" in described
    assert f"Successfully provisioned volume {volume}" in described
    reasons = await kubectl("get", "events", "--sort-by=.lastTimestamp", "-o", "jsonpath={.items[*].reason}")
    assert {"ProvisioningSucceeded", "Scheduled"} <= set(reasons.split())
    assert node.hostname in await kubectl("get", "csistoragecapacities", "--all-namespaces", "-o", "yaml")

    assert 'pod "sample" deleted' in await kubectl("delete", "pod", "sample", "--timeout=30s")
    assert mountspace.mounts_below(node.kubelet_root) == []
    await kubectl("delete", "pvc", "sample", "--timeout=30s")
    await kubectl("wait", "--for=delete", f"pv/{volume}", "--timeout=30s")
    assert volume not in await kubectl("get", "pv", "-o", "name")
    assert not list(node.data.rglob(f"{volume}*"))
