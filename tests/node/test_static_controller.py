"""The loop: when it begins, what wakes it, what it says of its health. Its period is an hour, so what happens here
happened because of an event."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from contract import names
from daemon.static.configuration import StaticSettings
from daemon.static.controller import StaticVolumeController
from daemon.static.eventsources import MAX_DELAY
from daemon.static.metrics import StaticMetrics
from daemon.static.volume import volume_name
from kube.client import Cluster
from kube.errors import Unreachable
from kube.events import Recorder
from kube.records import read_node
from kube.resources import CLASSES, NODES, VOLUMES
from tests.node.staticvolumes import Idle, create_class, mount
from tests.unit.daemon.nodecluster import HOSTNAME, NODE, api
from tests.unit.daemon.static.gopv import go_pv
from tests.waiting import until

HOUR = 3600.0
KEY = "storage/not-ready"


class Running:
    """A node's static volumes, configured by `config` to offer what stands in `disks`."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.cluster = cluster
        self.disks, self.config = folder / "disks", folder / "config"
        self.disks.mkdir()
        self.config.mkdir()
        self.deleter = Idle()
        self.static: StaticVolumeController | None = None
        self.registry = CollectorRegistry()
        self.task: asyncio.Task[None] | None = None

    def configure(self, disks: Path | None = None, /, **keys: str) -> None:
        folder = disks or self.disks
        (self.config / "storageClassMap").write_text(f"fast: {{hostDir: {folder}, mountDir: {folder}}}")
        for name, value in keys.items():
            (self.config / name).write_text(value)

    async def start(self, config_sync_period: float = 0.05) -> None:
        node = read_node(await self.cluster.get(NODES, NODE))
        self.static = StaticVolumeController(
            self.cluster,
            node,
            Recorder(self.cluster, "test"),
            StaticMetrics(self.registry),
            StaticSettings(self.config, "default", "", HOUR, config_sync_period),
            lambda *_: self.deleter,
        )
        self.task = asyncio.create_task(self.static.run())

    @property
    def problem(self) -> str:
        assert self.static
        return self.static.problem

    async def ready(self) -> None:
        await until(lambda: not self.problem)

    async def paths(self) -> set[str]:
        return {Path(body["spec"]["local"]["path"]).name for body in await self.cluster.list(VOLUMES)}

    async def offered(self, *names: str) -> None:
        async def so() -> bool:
            return await self.paths() == set(names)

        await until(so)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with api(tmp_path) as cluster:
        made = Running(tmp_path, cluster)
        try:
            yield made
        finally:
            if made.task:
                made.task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await made.task


async def test_a_new_mount_or_link_triggers_a_pass(node: Running) -> None:
    node.configure()
    await node.start()
    await node.ready()
    mount(node.disks / "mounted")
    await node.offered("mounted")
    (node.disks / "made earlier").mkdir()
    await asyncio.sleep(0)
    mount(node.disks / "made earlier")
    await node.offered("mounted", "made earlier")


async def test_a_deleted_volume_triggers_a_pass(node: Running) -> None:
    mount(node.disks / "one")
    node.configure()
    await node.start()
    await node.offered("one")
    name = volume_name("one", NODE, "fast")
    uid = (await node.cluster.get(VOLUMES, name))["metadata"]["uid"]
    await node.cluster.patch(VOLUMES, name, {"metadata": {"finalizers": None}})
    await node.cluster.delete(VOLUMES, name)

    async def anew() -> bool:
        return any(body["metadata"]["uid"] != uid for body in await node.cluster.list(VOLUMES))

    await until(anew)


async def test_a_new_storage_class_triggers_a_pass(node: Running) -> None:
    await node.cluster.delete(CLASSES, "fast")
    mount(node.disks / "one")
    node.configure()
    await node.start()
    await until(lambda: node.problem.startswith("class fast: there is no StorageClass fast"))
    await create_class(node.cluster, "fast")
    await node.ready()
    assert await node.paths() == {"one"}


async def test_a_new_configuration_triggers_a_pass(node: Running, tmp_path: Path) -> None:
    other = tmp_path / "other"
    mount(other / "two")
    mount(node.disks / "one")
    node.configure()
    await node.start()
    await node.offered("one")
    node.configure(other)
    await node.offered("one", "two")


async def test_a_thousand_events_make_few_passes(node: Running) -> None:
    node.configure()
    await node.start()
    await node.ready()
    before, begin = len(node.deleter.passes), time.monotonic()
    for number in range(500):
        entry = node.disks / f"entry-{number}"
        entry.touch()
        entry.unlink()
        if number % 10 == 0:
            await asyncio.sleep(0.005)
    mount(node.disks / "last")
    await node.offered("last")
    assert len(node.deleter.passes) - before <= 4 + (time.monotonic() - begin) / MAX_DELAY


async def test_readiness_of_passes_classes_and_entries(node: Running) -> None:
    (node.disks / "file").touch()
    node.configure(node.disks / "missing")
    await node.start()
    assert node.problem == "no pass was made yet"
    await until(lambda: "can't be listed" in node.problem)
    node.configure()
    await node.ready()


async def test_an_invalid_configuration_at_start_is_reported(node: Running) -> None:
    mount(node.disks / "one")
    node.configure(useAlphaAPI="maybe")
    await node.start()
    message = f"{node.config}/useAlphaAPI is 'maybe': allowed is true or false"
    await until(lambda: message in node.problem)
    assert await node.paths() == set()
    assert not node.deleter.passes
    node.configure(useAlphaAPI="false")
    await node.offered("one")


async def test_nothing_is_offered_before_the_cache_is_complete(node: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start-up order: the Go provisioner's volume has another name than we would give, so only a cache that holds it
    keeps its path from being offered twice."""
    mount(node.disks / "one")
    uid = (await node.cluster.get(NODES, NODE))["metadata"]["uid"]
    provisioner = f"local-volume-provisioner-{NODE}-{uid}"
    path = str(node.disks / "one")
    await node.cluster.create(
        VOLUMES, go_pv("of-another-class", provisioner, path=path, hostname=HOSTNAME, storage_class="other")
    )
    pages, refused = node.cluster.pages, asyncio.Event()

    def failing(resource: Any, *more: Any, **selectors: Any) -> Any:
        if resource is VOLUMES and not refused.is_set():
            raise Unreachable(0, "", "the API server is down")
        return pages(resource, *more, **selectors)

    monkeypatch.setattr(node.cluster, "pages", failing)
    node.configure()
    await node.start()
    await until(lambda: "the API server is down" in node.problem)
    assert not node.deleter.passes
    refused.set()
    await node.ready()
    assert [body["metadata"]["name"] for body in await node.cluster.list(VOLUMES)] == ["of-another-class"]
    assert (await node.cluster.get(VOLUMES, "of-another-class"))["metadata"]["labels"] == {names.NODE_LABEL: NODE}


async def test_the_taint_is_removed_once_when_all_is_discovered(node: Running) -> None:
    taints = [{"key": KEY, "effect": "NoSchedule"}]
    await node.cluster.patch(NODES, NODE, {"spec": {"taints": taints}})

    async def tainted() -> bool:
        return bool((await node.cluster.get(NODES, NODE))["spec"].get("taints"))

    node.configure(node.disks / "missing", removeNodeNotReadyTaint="true", provisionerNotReadyNodeTaintKey=KEY)
    await node.start()
    await until(lambda: "can't be listed" in node.problem)
    assert await tainted()
    node.configure()

    async def free() -> bool:
        return not await tainted()

    await until(free)
    await node.cluster.patch(NODES, NODE, {"spec": {"taints": taints}})
    mount(node.disks / "one")
    await node.offered("one")
    assert await tainted(), "somebody else tainted it again, and it is theirs"


async def test_a_bug_in_a_pass_is_reported_and_the_next_pass_is_made(
    node: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(node.deleter, "delete_pass", broken)
    node.configure()
    with caplog.at_level(logging.CRITICAL, "daemon.static.controller"):
        await node.start()
        await until(lambda: "RuntimeError('broken')" in node.problem)
    monkeypatch.undo()
    mount(node.disks / "one")
    await node.offered("one")
    await node.ready()


async def test_a_refused_event_source_is_reported_and_done_without(
    node: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @contextlib.contextmanager
    def refused(_: object) -> Iterator[None]:
        raise PermissionError("not for you")
        yield

    monkeypatch.setattr("daemon.static.eventsources.watch_mount_table", refused)
    node.configure()
    await node.start()
    await node.ready()
    assert "are only found once per period: not for you" in caplog.text
    mount(node.disks / "disk")
    (node.disks / "another").mkdir()  # inotify was granted all the same
    await node.offered("disk")
