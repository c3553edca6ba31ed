"""What Prometheus and a probe see of a volume's life, in the provisioner and on its node."""

import asyncio
from collections.abc import Mapping

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from contract import names
from contract.volume import CSI
from kube.resources import CLAIMS, LEASES, PODS, VOLUMES
from tests.cluster.conftest import MakeSandbox
from tests.sandbox.nodes import NodeSpec, default_source
from tests.sandbox.workloads import Namespace, claim, pod, storage_class
from tests.waiting import until

_MIB = 1024**2


class Figures:
    """One scrape."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self._samples = [sample for family in families for sample in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        """Of all samples of that name which have these labels."""
        return sum(
            sample.value for sample in self._samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    def labels(self, name: str) -> list[Mapping[str, str]]:
        return [sample.labels for sample in self._samples if sample.name == name]


async def fetch(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def scrape(url: str) -> Figures:
    status, text = await fetch(f"{url}/metrics")
    assert status == 200
    return Figures(text)


async def test_the_life_of_a_volume_in_figures(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("only", capacity="96Mi"))
    node = sandbox.nodes["only"].url
    provisioner = f"http://{sandbox.provisioners[0].environment['LISTEN_ADDRESS']}"
    await sandbox.apply(storage_class("immediate", "Immediate"))
    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("data", "32Mi"))
        await namespace.create(PODS, pod("user", {"/data": "data"}))
        await namespace.until_running("user")
        await namespace.create(CLAIMS, claim("shared", "16Mi", "immediate", accessModes=["ReadWriteMany"]))
        await namespace.until_event("shared", "ProvisioningFailed")

        metrics = await scrape(node)
        assert metrics.sum("elastic_local_volumes", state="ready") == 1
        assert metrics.sum("elastic_local_pool_size_bytes", pool="loop") == 96 * _MIB
        assert metrics.sum("elastic_local_pool_free_bytes", pool="loop") == 64 * _MIB
        assert (
            metrics.sum("elastic_local_operation_duration_seconds_count", operation="prepare", outcome="success") >= 1
        )
        assert metrics.sum("elastic_local_operation_duration_seconds_count", operation="mount", outcome="success") == 1
        if default_source() == CSI:
            rpc = {"rpc": "NodePublishVolume", "code": "OK"}
            assert metrics.sum("elastic_local_csi_duration_seconds_count", **rpc) == 1
        else:
            assert metrics.sum("elastic_local_callout_duration_seconds_count", verb="mount", outcome="success") == 1
        assert metrics.sum("elastic_local_command_duration_seconds_count", command="mkfs.ext4", outcome="success") == 1

        volume = (await namespace.until_bound("data"))["metadata"]["name"]
        await namespace.delete(PODS, "user")
        await namespace.delete(CLAIMS, "data")
        await namespace.until_gone(VOLUMES, volume)

        metrics = await scrape(node)
        assert metrics.sum("elastic_local_volumes") == 0
        assert metrics.sum("elastic_local_pool_free_bytes", pool="loop") == 96 * _MIB
        assert (
            metrics.sum("elastic_local_operation_duration_seconds_count", operation="unmount", outcome="success") == 1
        )
        assert (
            metrics.sum("elastic_local_operation_duration_seconds_count", operation="reclaim", outcome="success") >= 1
        )

        metrics = await scrape(provisioner)
        ours, claims = {"class": "elastic-local", "source": ""}, "controller_persistentvolumeclaim_provision"
        assert metrics.sum(f"{claims}_total", **ours) == 1
        assert metrics.sum(f"{claims}_duration_seconds_count", **ours) == 1
        assert metrics.sum(f"{claims}_failed_total", **{"class": "immediate"}) >= 1
        assert metrics.sum(f"{claims}_failed_total", **ours) == 0
        assert metrics.sum("controller_persistentvolume_delete_total", **ours) == 1
        assert metrics.sum("controller_persistentvolume_delete_duration_seconds_count", **ours) == 1
        assert {"0.005", "10.0", "+Inf"} <= {
            labels["le"] for labels in metrics.labels(f"{claims}_duration_seconds_bucket")
        }
        assert metrics.sum("elastic_local_provisioner_leading") == 1


async def test_a_follower_is_ready_and_says_that_it_does_not_lead(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("only"), provisioners=2)
    urls = [f"http://{program.environment['LISTEN_ADDRESS']}" for program in sandbox.provisioners]
    await until(lambda: _one_leads(urls), what="one provisioner leads, and says so")
    lease = await sandbox.api.get(LEASES, "elastic-local-provisioner", names.NAMESPACE)
    leading = [(await scrape(url)).sum("elastic_local_provisioner_leading") for url in urls]
    leader = sandbox.provisioners[leading.index(1)]
    assert lease["spec"]["holderIdentity"] == sandbox.identity_of(leader)
    for url in (*urls, sandbox.nodes["only"].url):
        assert (await fetch(f"{url}/healthz"))[0] == 200
        status, report = await fetch(f"{url}/readyz?verbose")
        assert status == 200
        assert report.rstrip().endswith("readyz check passed")


async def _one_leads(urls: list[str]) -> bool:
    metrics = await asyncio.gather(*(scrape(url) for url in urls))
    return sorted(figures.sum("elastic_local_provisioner_leading") for figures in metrics) == [0, 1]
