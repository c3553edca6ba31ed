from pathlib import Path

from prometheus_client import generate_latest

from contract.volume import DELETE
from daemon.cluster.events import ERASED, ERASING, ErasureEvents
from daemon.errors import BackendFailed
from daemon.metrics import Metrics
from daemon.storage.inventory import Volume
from daemon.storage.record import Record, VolumeState
from kube.resources import EVENTS
from tests.unit.daemon.nodecluster import node_parts

SIZE = 64 * 2**20


def volume(size: int) -> Volume:
    return Volume(Record("pv", "uid", DELETE, "ext4", VolumeState.ERASING, erased=size // 4), size, "vg")


async def test_how_it_goes_is_reported_on_its_persistent_volume(tmp_path: Path) -> None:
    metrics = Metrics()
    enqueued: list[str] = []

    def shown() -> str:
        return generate_latest(metrics.registry).decode()

    async with node_parts(tmp_path) as node:
        erasures = ErasureEvents(metrics, node.events, enqueued.append)
        erasures.begun(volume(SIZE))
        assert "elastic_local_erase_running 1.0" in shown()
        erasures.progressed(5000)
        erasures.ended(volume(SIZE), BackendFailed("the disk"))
        erasures.begun(volume(SIZE))
        erasures.ended(volume(SIZE), None)
        snapshot = Volume(volume(SIZE).record.of_snapshot(), SIZE, "vg")
        erasures.begun(snapshot)
        erasures.ended(snapshot, None)
        await node.events.flush()
        events = await node.cluster.list(EVENTS)
    assert "elastic_local_erase_running 0.0" in shown()
    assert "elastic_local_erase_bytes_total 5000.0" in shown()
    assert enqueued == ["pv", "pv", snapshot.pv]
    assert sorted((event["reason"], event["involvedObject"]["uid"]) for event in events) == [
        (ERASED, "uid"),
        (ERASING, "uid"),
    ]
    (begun,) = (event["message"] for event in events if event["reason"] == ERASING)
    assert "48Mi are left to do; until then its space is not free" in begun
