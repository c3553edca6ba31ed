from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from contract.volume import ObjectReference
from daemon.static.configwatcher import INVALID, RELOADED, ConfigWatcher
from daemon.static.metrics import StaticMetrics
from kube.client import Cluster
from kube.events import Recorder
from kube.resources import EVENTS
from tests.unit.daemon.nodecluster import NODE, api

FAILED = "local_volume_provisioner_configuration_reload_failed_total"


class Reloading:
    """A reloader with its surroundings."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.registry = CollectorRegistry()
        self.events = Recorder(cluster, "test")
        self.triggers = 0
        metrics = StaticMetrics(self.registry)
        node = ObjectReference("Node", "v1", "", NODE, "uid")
        self.watcher = ConfigWatcher(folder, node, self.events, metrics, self._trigger)

    def _trigger(self) -> None:
        self.triggers += 1

    async def look(self, **files: str) -> None:
        for name, content in files.items():
            (self.folder / name).write_text(content)
        await self.watcher.reload()

    async def recorded_events(self, reason: str) -> list[str]:
        await self.events.flush()
        return [event["message"] for event in await self.cluster.list(EVENTS) if event["reason"] == reason]

    @property
    def failed(self) -> float | None:
        return self.registry.get_sample_value(FAILED)


@pytest.fixture
async def reloading(tmp_path: Path) -> AsyncIterator[Reloading]:
    folder = tmp_path / "config"
    folder.mkdir()
    async with api(tmp_path) as cluster:
        yield Reloading(cluster, folder)


async def test_a_changed_folder_replaces_the_whole_configuration(reloading: Reloading) -> None:
    await reloading.look(storageClassMap="a: {hostDir: /a, mountDir: /a}", labelsForPV="team: db", useAlphaAPI="true")
    first = reloading.watcher.current
    assert first
    assert (set(first.classes), first.labels, first.use_alpha_api) == ({"a"}, {"team": "db"}, True)
    (reloading.folder / "labelsForPV").unlink()
    (reloading.folder / "useAlphaAPI").unlink()
    await reloading.look(storageClassMap="b: {hostDir: /b, mountDir: /b}")
    second = reloading.watcher.current
    assert second
    assert (set(second.classes), second.labels, second.use_alpha_api) == ({"b"}, {}, False)
    assert reloading.triggers == 2
    assert len(await reloading.recorded_events(RELOADED)) == 1


async def test_an_unchanged_folder_is_not_reported(reloading: Reloading) -> None:
    await reloading.look(useAlphaAPI="true")
    await reloading.look(useAlphaAPI="yes")
    assert reloading.triggers == 1
    assert await reloading.recorded_events(RELOADED) == []


async def test_an_invalid_folder_keeps_the_last_valid_configuration(
    reloading: Reloading, caplog: pytest.LogCaptureFixture
) -> None:
    await reloading.look(useAlphaAPI="true")
    good = reloading.watcher.current
    for _ in range(3):
        await reloading.look(useAlphaAPI="maybe")
    assert reloading.watcher.current is good
    message = f"{reloading.folder}/useAlphaAPI is 'maybe': allowed is true or false"
    assert reloading.watcher.problem == message
    assert await reloading.recorded_events(INVALID) == [f"{message} (the last valid configuration stays)"]
    assert caplog.text.count(message) == 1
    assert reloading.failed == 1
    assert reloading.triggers == 1
    await reloading.look(useAlphaAPI="true")
    assert reloading.watcher.problem == ""


async def test_an_invalid_folder_at_start_names_file_key_and_rule(reloading: Reloading) -> None:
    await reloading.look(storageClassMap="a: {hostDir: /a, mountDir: /a, volumeMode: disk}")
    assert reloading.watcher.current is None
    assert reloading.watcher.problem == (
        f"{reloading.folder}/storageClassMap.a.volumeMode: unsupported volume mode disk: allowed is Filesystem or Block"
    )
    await reloading.look(storageClassMap="a: {hostDir: /a, mountDir: /a}")
    assert reloading.watcher.current
    assert reloading.triggers == 1


async def test_unknown_keys_are_reported_once(reloading: Reloading, caplog: pytest.LogCaptureFixture) -> None:
    await reloading.look(useAlfaAPI="true")
    await reloading.look()
    assert caplog.text.count("useAlfaAPI is not a known key") == 1
