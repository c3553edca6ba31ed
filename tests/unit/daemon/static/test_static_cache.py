"""Which PersistentVolumes are ours, and how those of the Go provisioner come to be."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from contract import names
from daemon.static import volume
from daemon.static.cache import Cache, ProvisionerIdentity
from daemon.static.configuration import Configuration
from kube.client import Cluster
from kube.records import Node, read_node
from kube.resources import NODES, VOLUMES
from tests.unit.daemon.nodecluster import HOSTNAME, NODE, api
from tests.unit.daemon.static.gopv import go_pv
from tests.waiting import until

NAME_ONLY = f"local-volume-provisioner-{NODE}"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with api(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def node(cluster: Cluster) -> Node:
    return read_node(await cluster.get(NODES, NODE))


@pytest.fixture
def with_uid(node: Node) -> str:
    return f"{NAME_ONLY}-{node.uid}"


@contextlib.asynccontextmanager
async def running(cluster: Cluster, node: Node, configuration: Configuration) -> AsyncIterator[Cache]:
    cache = Cache(cluster, node)
    await cache.set_identity(ProvisionerIdentity.of(node, configuration))
    task = asyncio.create_task(cache.informer.run())
    try:
        await cache.informer.wait_synced()
        yield cache
    finally:
        task.cancel()
        await asyncio.wait([task])


def known(cache: Cache) -> set[str]:
    return {each.name for each in cache.volumes()}


BY_UID, BY_NAME = Configuration(), Configuration(use_node_name_only=True)


async def test_volumes_of_the_go_provisioner_are_adopted(cluster: Cluster, node: Node, with_uid: str) -> None:
    created = await cluster.create(VOLUMES, go_pv("local-pv-1", with_uid, labels={"zone": "a"}))
    async with running(cluster, node, BY_UID) as cache:
        assert known(cache) == {"local-pv-1"}
    now = await cluster.get(VOLUMES, "local-pv-1")
    assert now["metadata"]["labels"] == {"zone": "a", names.NODE_LABEL: NODE}
    assert now["metadata"]["annotations"] == created["metadata"]["annotations"]
    assert now["spec"] == created["spec"]


async def test_those_of_others_are_not_changed(cluster: Cluster, node: Node, with_uid: str) -> None:
    others = [
        go_pv("of-another-node", "local-volume-provisioner-node-2-uid", hostname="host-2"),
        go_pv("of-a-node-of-yesterday", f"{NAME_ONLY}-olduid"),
        go_pv("made-by-hand", ""),
    ]
    for body in others:
        await cluster.create(VOLUMES, body)
    before = await cluster.list(VOLUMES)
    async with running(cluster, node, BY_UID) as cache:
        assert known(cache) == set()
    assert await cluster.list(VOLUMES) == before


async def test_with_the_name_only_those_of_an_earlier_node_too(cluster: Cluster, node: Node) -> None:
    await cluster.create(VOLUMES, go_pv("local-pv-1", f"{NAME_ONLY}-olduid"))
    await cluster.create(VOLUMES, go_pv("local-pv-2", NAME_ONLY))
    # The name of this node is how the other one's begins.
    await cluster.create(VOLUMES, go_pv("of-node-1-b", f"{NAME_ONLY}-b-uid", hostname="host-b"))
    async with running(cluster, node, BY_NAME) as cache:
        assert known(cache) == {"local-pv-1", "local-pv-2"}


def test_hostname_of_the_alpha_annotation() -> None:
    body = go_pv("pv", f"{NAME_ONLY}-olduid", alpha=True)
    body["metadata"] |= {"uid": "1", "resourceVersion": "1"}
    read = volume.read(body)
    assert read is not None
    assert read.hostnames == (HOSTNAME,)
    assert ProvisionerIdentity(NAME_ONLY, HOSTNAME, node_name_only=True).owns(read)


def test_the_hostname_label_is_enough_to_know_the_node_by() -> None:
    body = go_pv("pv", f"{NAME_ONLY}-olduid", labels={names.HOSTNAME_LABEL: HOSTNAME})
    body["metadata"] |= {"uid": "1", "resourceVersion": "1"}
    del body["spec"]["nodeAffinity"]
    read = volume.read(body)
    assert read is not None
    identity = ProvisionerIdentity(NAME_ONLY, HOSTNAME, node_name_only=True)
    assert identity.owns(read)
    assert not identity.owns(replace(read, hostnames=("host-2",)))
    assert not replace(identity, node_name_only=False).owns(read)


async def test_a_changed_identity_needs_no_restart(cluster: Cluster, node: Node, with_uid: str) -> None:
    await cluster.create(VOLUMES, go_pv("local-pv-1", with_uid))
    await cluster.create(VOLUMES, go_pv("local-pv-2", NAME_ONLY))
    async with running(cluster, node, BY_UID) as cache:
        assert known(cache) == {"local-pv-1"}
        await cache.set_identity(ProvisionerIdentity.of(node, BY_NAME))
        await until(lambda: known(cache) == {"local-pv-1", "local-pv-2"})


async def test_only_volumes_with_our_label_are_cached(cluster: Cluster, node: Node, with_uid: str) -> None:
    for number in range(20):
        await cluster.create(VOLUMES, go_pv(f"foreign-{number}", "local-volume-provisioner-other", hostname="x"))
    async with running(cluster, node, BY_UID) as cache:
        ours = go_pv("local-pv-1", with_uid, labels={names.NODE_LABEL: NODE})
        await cluster.create(VOLUMES, ours)
        await until(lambda: known(cache) == {"local-pv-1"})
        assert [each.name for each in cache.informer.values()] == ["local-pv-1"]


async def test_a_deletion_during_an_outage_leaves_the_cache(cluster: Cluster, node: Node, with_uid: str) -> None:
    await cluster.create(VOLUMES, go_pv("local-pv-1", with_uid))
    await cluster.create(VOLUMES, go_pv("local-pv-2", with_uid))
    async with running(cluster, node, BY_UID) as cache:
        assert known(cache) == {"local-pv-1", "local-pv-2"}
    await cluster.patch(VOLUMES, "local-pv-1", {"metadata": {"finalizers": None}})
    await cluster.delete(VOLUMES, "local-pv-1")
    cache.informer._version = None  # as after a 410: the server forgot what happened meanwhile
    task = asyncio.create_task(cache.informer.run())
    try:
        await until(lambda: known(cache) == {"local-pv-2"})
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_one_that_appears_later_is_adopted_by_its_name(cluster: Cluster, node: Node, with_uid: str) -> None:
    async with running(cluster, node, BY_UID) as cache:
        await cluster.create(VOLUMES, go_pv("out-of-a-backup", with_uid))
        assert await cache.adopt("out-of-a-backup")
        await until(lambda: known(cache) == {"out-of-a-backup"})
        await cluster.create(VOLUMES, go_pv("foreign", "somebody"))
        assert not await cache.adopt("foreign")
        assert not await cache.adopt("not-there")
        assert (await cluster.get(VOLUMES, "foreign"))["metadata"].get("labels") is None
