"""Static volumes in the running daemon, a process of its own: what is mounted is offered, what is released is cleaned
and offered anew, and what a scrape and the probes of the original find."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from contract import names
from daemon.static.volume import volume_name
from kube.client import Cluster
from kube.errors import NotFound
from kube.resources import VOLUMES
from tests.node.staticvolumes import METRICS, mount
from tests.ports import reserved_port
from tests.sandbox.nodes import COMMAND
from tests.sandbox.programs import Program, answers
from tests.unit.daemon.nodecluster import NODE, Json, api
from tests.waiting import until

PV = volume_name("one", NODE, "fast")


@dataclass
class RunningDaemon:
    cluster: Cluster
    url: str
    disks: Path
    config: Path
    program: Program

    async def get(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as answer:
            return answer.status, await answer.text()

    async def scraped(self, metric: str, **labels: str) -> float | None:
        """The value in the text that Prometheus gets. None: there is no such series."""
        _, text = await self.get("/metrics")
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if (sample.name, sample.labels) == (METRICS + metric, labels):
                    return sample.value
        return None

    async def until_scraped(self, expected: float, metric: str, **labels: str) -> None:
        async def so() -> bool:
            return await self.scraped(metric, **labels) == expected

        await until(so)

    async def volume(self) -> Json | None:
        try:
            return await self.cluster.get(VOLUMES, PV)
        except NotFound:
            return None


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for the path of a socket has at most 107 bytes."""
    made = Path(tempfile.mkdtemp(prefix="elastic-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_port() as port:
        yield port


@pytest.fixture
async def daemon(folder: Path, port: int) -> AsyncIterator[RunningDaemon]:
    disks, config = folder / "disks", folder / "config"
    disks.mkdir()
    config.mkdir()
    (config / "storageClassMap").write_text(f"fast: {{hostDir: {disks}, mountDir: {disks}}}")
    address = f"127.0.0.1:{port}"
    async with api(folder) as cluster:
        program = Program(
            name="daemon",
            argv=[COMMAND, "daemon"],
            log=folder / "log",
            ready=answers(f"http://{address}/ready"),
            environment={
                "NODE_NAME": "",
                "MY_NODE_NAME": NODE,
                "DRIVER_KIND": "BINDMOUNT",
                "STATIC_CONFIG_DIR": str(config),
                "DISCOVERY_PERIOD": "1h",
                "CONFIG_SYNC_PERIOD": "50ms",
                "DATA_DIR": str(folder / "data"),
                "STAGING_DIR": str(folder / "staging"),
                "KUBELET_ROOT": str(folder / "kubelet"),
                "PLUGIN_DIR": str(folder / "plugins"),
                names.SOCKET_VARIABLE: str(folder / "socket"),
                "LISTEN_ADDRESS": address,
                "KUBECONFIG": str(folder / "kubeconfig"),
            },
        )
        try:
            await program.start()
            yield RunningDaemon(cluster, f"http://{address}", disks, config, program)
        finally:
            await program.stop()


async def test_offered_released_cleaned_and_offered_again(daemon: RunningDaemon) -> None:
    disk = mount(daemon.disks / "one")
    await until(daemon.volume)
    first = await daemon.volume()
    assert first
    assert first["spec"]["local"]["path"] == str(disk)
    (disk / "data of a claim").write_text("secret")
    gone = {"namespace": "default", "name": "data", "uid": "claim-1"}
    await daemon.cluster.patch(VOLUMES, PV, {"spec": {"claimRef": gone}})
    await daemon.cluster.patch(VOLUMES, PV, {"status": {"phase": "Released"}}, subresource="status")
    await daemon.cluster.patch(VOLUMES, PV, {"metadata": {"finalizers": None}})

    async def anew() -> bool:
        volume = await daemon.volume()
        return volume is not None and volume["metadata"]["uid"] != first["metadata"]["uid"]

    await until(anew)
    assert list(disk.iterdir()) == []
    mode, process = {"mode": "Filesystem"}, {"mode": "Filesystem", "type": "process"}
    # An answer of the API server is counted a moment after others can see what it did.
    await daemon.until_scraped(2, "persistentvolume_discovery_total", **mode)
    await daemon.until_scraped(20 << 20, "persistentvolume_capacity_bytes", **mode)
    assert await daemon.scraped("persistentvolume_discovery_duration_seconds_count", **mode) == 2
    assert await daemon.scraped("persistentvolume_delete_total", **process) == 1
    buckets = {**process, "capacity": "500G", "cleanup_command": "", "le": "0.005"}
    assert await daemon.scraped("persistentvolume_delete_duration_seconds_bucket", **buckets) is not None
    for method, count in (("create", 2), ("delete", 1)):
        assert await daemon.scraped("apiserver_requests_total", method=method) == count
        assert await daemon.scraped("apiserver_requests_duration_seconds_count", method=method) == count
        assert await daemon.scraped("apiserver_requests_failed_total", method=method) is None
    for state, count in (("running", 0), ("succeeded", 1), ("failed", 0)):
        assert await daemon.scraped(f"proctable_{state}") == count


async def test_readiness_probes(daemon: RunningDaemon) -> None:
    assert await daemon.get("/ready") == (200, "ok")
    assert "[+]static-volumes ok" in (await daemon.get("/readyz?verbose"))[1]
    (daemon.config / "storageClassMap").write_text("fast: {hostDir: /gone, mountDir: /gone}")

    async def unready() -> bool:
        return (await daemon.get("/ready"))[0] == 500

    await until(unready)
    message = "class fast: folder /gone can't be listed (No such file or directory)"
    assert message in (await daemon.get("/ready/DiscovererReadyzCheck"))[1]
    status, report = await daemon.get("/readyz")
    assert status == 503
    assert f"[-]static-volumes: {message}" in report
    assert await daemon.get("/ready?exclude=DiscovererReadyzCheck") == (200, "ok")
