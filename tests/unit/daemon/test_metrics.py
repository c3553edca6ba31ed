"""What Prometheus reads, as it reads it."""

from prometheus_client.exposition import generate_latest

from contract.volume import DELETE
from daemon.metrics import Metrics, Sources, command_name
from daemon.storage.deviceclasses import LVM, DeviceClass
from daemon.storage.inventory import DamagedVolume, ForeignVolume, Inventory, Pool, ThinPoolUsage, Volume, VolumeHealth
from daemon.storage.record import Record, VolumeState
from host.command import Completed


def volume(name: str, state: VolumeState = VolumeState.READY, health: VolumeHealth = VolumeHealth.OK) -> Volume:
    return Volume(Record(name, f"uid-{name}", DELETE, "ext4", state), 10, "vg", health)


INVENTORY = Inventory(
    volumes=[
        volume("a"),
        volume("b", health=VolumeHealth.RAID_DEGRADED),
        volume("c", VolumeState.FORMATTING),
        volume("kept"),
    ],
    pools=[Pool("vg", 1000, 600, 400, 4), Pool("vg/thin", 500, -100, 600, 4, ThinPoolUsage(25.5, 3.0))],
    foreign=[ForeignVolume("root", "vg", 7)],
    damaged=[DamagedVolume("d", "vg", "why")],
    snapshots=[Volume(volume("a").record.of_snapshot(), 4, "vg")],
)

CLASSES = {"default": DeviceClass("default", LVM, group="vg"), "fast": DeviceClass("fast", LVM, group="vg-fast")}


def scraped(metrics: Metrics) -> dict[str, float]:
    lines = generate_latest(metrics.registry).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_figures_of_the_node_are_those_of_the_moment() -> None:
    inventories = [Inventory(), INVENTORY]
    metrics = Metrics(
        Sources(
            inventory=lambda: inventories[-1],
            persistent_volumes=lambda: {"uid-a", "uid-b", "uid-c"},
            unhealthy=lambda: {"b": VolumeHealth.RAID_DEGRADED},
            classes=CLASSES,
        )
    )
    samples = scraped(metrics)
    assert samples['elastic_local_pool_size_bytes{pool="vg"}'] == 1000
    assert samples['elastic_local_pool_free_bytes{pool="vg/thin"}'] == -100
    assert samples['elastic_local_thin_pool_data_percent{pool="vg/thin"}'] == 25.5
    assert samples['elastic_local_thin_pool_metadata_percent{pool="vg/thin"}'] == 3
    assert 'elastic_local_thin_pool_data_percent{pool="vg"}' not in samples
    states = {"ready": 2, "formatting": 1, "orphan": 1, "foreign": 1, "damaged": 1, "copying": 0, "snapshot": 1}
    assert {state: samples[f'elastic_local_volumes{{state="{state}"}}'] for state in states} == states
    assert samples['elastic_local_unhealthy_volumes{state="raid-degraded"}'] == 1
    assert samples['elastic_local_unhealthy_volumes{state="missing-device"}'] == 0
    assert samples['elastic_local_device_class_missing{device_class="default",pool="vg"}'] == 0
    assert samples['elastic_local_device_class_missing{device_class="fast",pool="vg-fast"}'] == 1
    inventories.pop()
    assert 'elastic_local_pool_size_bytes{pool="vg"}' not in scraped(metrics)


def test_nothing_is_an_orphan_while_the_persistent_volumes_are_unknown() -> None:
    samples = scraped(Metrics(Sources(lambda: INVENTORY)))
    assert samples['elastic_local_volumes{state="orphan"}'] == 0
    assert samples['elastic_local_volumes{state="ready"}'] == 3


def test_operations_callouts_and_commands_are_timed_by_outcome() -> None:
    metrics = Metrics()
    metrics.operation("prepare", "NoSpace", 0.5)
    metrics.callout("mount", "success", 0.25)
    metrics.command(Completed(("lvm", "lvcreate", "--size=1b"), 5, "", "", 2.0))
    samples = scraped(metrics)
    assert samples['elastic_local_operation_duration_seconds_sum{operation="prepare",outcome="NoSpace"}'] == 0.5
    assert samples['elastic_local_callout_duration_seconds_sum{outcome="success",verb="mount"}'] == 0.25
    assert samples['elastic_local_command_duration_seconds_sum{command="lvcreate",outcome="failure"}'] == 2


def test_every_metric_has_help_and_the_prefix() -> None:
    for metric in Metrics(Sources(lambda: INVENTORY)).registry.collect():
        assert metric.documentation
        assert metric.name.startswith(("elastic_local_", "process_"))


def test_a_command_is_called_by_its_own_name() -> None:
    assert command_name(("/usr/sbin/mkfs.ext4", "-q")) == "mkfs.ext4"
    assert command_name(("/sbin/lvm", "fullreport")) == "fullreport"
