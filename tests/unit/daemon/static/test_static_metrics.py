"""Names, types, labels and buckets as dashboards of the original expect them."""

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from daemon.static.metrics import (
    CREATE,
    DELETE,
    JOB,
    PROCESS,
    UNKNOWN,
    ProcessCounts,
    StaticMetrics,
    capacity_label,
)
from daemon.static.volume import StaticVolume

GIB = 1 << 30
P = "local_volume_provisioner_"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> StaticMetrics:
    return StaticMetrics(registry)


def volume(mode: str, capacity: int) -> StaticVolume:
    return StaticVolume("pv", "uid", "Bound", "/a", mode, "fast", "Delete", capacity, False, "", ())


@pytest.mark.parametrize(
    ("size", "label"),
    [(0, "0G"), (1, "500G"), (500 * GIB, "500G"), (500 * GIB + 1, "1000G"), (1000 * GIB + 1, "1500G")],
)
def test_sizes_in_steps(size: int, label: str) -> None:
    assert capacity_label(size) == label


def test_types_are_those_of_the_local_static_provisioner(registry: CollectorRegistry, metrics: StaticMetrics) -> None:
    types = {family.name: family.type for family in registry.collect() if family.name.startswith(P)}
    counters = (
        "persistentvolume_discovery",
        "persistentvolume_delete",
        "persistentvolume_delete_failed",
        "apiserver_requests",
        "apiserver_requests_failed",
        "configuration_reload_failed",
    )
    histograms = (
        "persistentvolume_discovery_duration_seconds",
        "persistentvolume_delete_duration_seconds",
        "apiserver_requests_duration_seconds",
    )
    gauges = (
        "persistentvolume_capacity_bytes",
        "proctable_running",
        "proctable_succeeded",
        "proctable_failed",
        "stray_entries",
        "changed_disks",
    )
    assert types == {
        **{P + name: "counter" for name in counters},
        **{P + name: "histogram" for name in histograms},
        **{P + name: "gauge" for name in gauges},
    }


def test_what_is_counted(registry: CollectorRegistry, metrics: StaticMetrics) -> None:
    metrics.discovered("Block", 0.3)
    metrics.deleted("Block", JOB, 2, 600 * GIB, "/scripts/shred.sh")
    metrics.delete_failed(UNKNOWN, PROCESS)
    with metrics.request(CREATE):
        pass
    with pytest.raises(RuntimeError), metrics.request(DELETE):
        raise RuntimeError
    metrics.reload_failed()

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(P + name, labels)

    assert value("persistentvolume_discovery_total", mode="Block") == 1
    assert value("persistentvolume_discovery_duration_seconds_count", mode="Block") == 1
    assert value("persistentvolume_delete_total", mode="Block", type="job") == 1
    assert value("persistentvolume_delete_failed_total", mode="unknown", type="process") == 1
    labels = {"mode": "Block", "type": "job", "capacity": "1000G", "cleanup_command": "/scripts/shred.sh"}
    assert value("persistentvolume_delete_duration_seconds_sum", **labels) == 2
    for method, failed in (("create", None), ("delete", 1)):
        assert value("apiserver_requests_total", method=method) == 1
        assert value("apiserver_requests_failed_total", method=method) == failed
        assert value("apiserver_requests_duration_seconds_count", method=method) == 1
    assert value("configuration_reload_failed_total") == 1


def test_buckets(registry: CollectorRegistry, metrics: StaticMetrics) -> None:
    metrics.discovered("Block", 0)
    metrics.deleted("Block", JOB, 0, 0, "")
    with metrics.request(CREATE):
        pass
    bounds: dict[str, list[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                bounds.setdefault(family.name, []).append(sample.labels["le"])
    expected = ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "+Inf"]
    assert len(bounds) == 3
    assert all(bound == expected for bound in bounds.values())


def test_figures_are_read_at_every_scrape(registry: CollectorRegistry, metrics: StaticMetrics) -> None:
    volumes, invalid = [volume("Block", 7)], {"fast": 1}
    counts = [ProcessCounts(5, 2, 1)]
    metrics.collect_from(lambda: volumes, lambda: counts[-1], lambda: invalid)
    volumes += [volume("Filesystem", 3), volume("Block", 4)]
    invalid["fast"] = 2
    text = generate_latest(registry).decode()
    assert f'{P}persistentvolume_capacity_bytes{{mode="Block"}} 11.0' in text
    assert f'{P}persistentvolume_capacity_bytes{{mode="Filesystem"}} 3.0' in text
    assert f'{P}stray_entries{{storage_class="fast"}} 2.0' in text
    for name, number in (("running", 5.0), ("succeeded", 2.0), ("failed", 1.0)):
        assert f"{P}proctable_{name} {number}" in text
    counts.append(ProcessCounts(0, 7, 1))
    assert f"{P}proctable_running 0.0" in generate_latest(registry).decode()
