"""Tying a PersistentVolume to this node and letting go of it, against an API with the real one's rules."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from contract import names
from contract.volume import PV_PROTECTION, NodeAssignment
from daemon.cluster.nodevolumes import assign, is_assigned, remove_finalizer
from daemon.errors import Refused
from kube.client import Cluster
from kube.errors import Conflict
from kube.records import Node
from kube.resources import VOLUMES
from tests.unit.daemon.nodecluster import ASSIGNMENT, HOSTNAME, NODE, api, create_pv, read_pv

HERE = Node(NODE, "uid-1", HOSTNAME, {}, deleting=False)
THERE = Node("node-2", "uid-2", "host-2", {}, deleting=False)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with api(tmp_path) as it:
        yield it


async def test_pinning_ties_in_every_way_and_keeps_other_finalizers(cluster: Cluster) -> None:
    volume = await create_pv(cluster, "pv", assignment=None)
    await cluster.patch(VOLUMES, "pv", {"metadata": {"finalizers": [*volume.finalizers, "example.com/other"]}})
    assigned = await assign(cluster, volume, HERE, "pool")
    assert assigned == await read_pv(cluster, "pv")
    assert is_assigned(assigned, HERE)
    assert assigned.pool == "pool"
    assert set(assigned.finalizers) == {PV_PROTECTION, "example.com/other", names.FINALIZER}


async def test_of_two_nodes_one_wins_and_the_other_says_where_the_volume_lives(cluster: Cluster) -> None:
    volume = await create_pv(cluster, "pv", assignment=None)
    outcomes = await asyncio.gather(
        assign(cluster, volume, HERE, "pool"), assign(cluster, volume, THERE, "pool"), return_exceptions=True
    )
    (lost,) = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert isinstance(lost, Refused)
    won = await read_pv(cluster, "pv")
    assert won
    winner, loser = (HERE, THERE) if is_assigned(won, HERE) else (THERE, HERE)
    assert is_assigned(won, winner)
    assert str(lost) == f"volume pv lives on node {winner.hostname} and can't be mounted on {loser.name}"


async def test_pinning_again_changes_nothing(cluster: Cluster) -> None:
    volume = await create_pv(cluster, "pv", assignment=ASSIGNMENT)
    assert await assign(cluster, volume, HERE, "pool") == volume


async def test_a_volume_that_is_being_deleted_is_not_pinned(cluster: Cluster) -> None:
    volume = await create_pv(cluster, "pv", assignment=None)
    await cluster.delete(VOLUMES, "pv")
    with pytest.raises(Refused, match="being deleted"):
        await assign(cluster, volume, HERE, "pool")
    await create_pv(cluster, "other", assignment=None)
    with pytest.raises(Refused, match="being deleted"):
        await assign(cluster, replace(volume, name="other", resource_version="1"), HERE, "pool")


async def test_an_affinity_to_something_else_is_not_overwritten(cluster: Cluster) -> None:
    zone = {"key": "zone", "operator": "In", "values": ["a"]}
    volume = await create_pv(cluster, "pv", assignment=None)
    affinity = {"required": {"nodeSelectorTerms": [{"matchExpressions": [zone]}]}}
    await cluster.patch(VOLUMES, "pv", {"spec": {"nodeAffinity": affinity}})
    with pytest.raises(Refused, match="node affinity is set already"):
        await assign(cluster, volume, HERE, "pool")


async def test_release_takes_our_finalizer_and_no_other(cluster: Cluster) -> None:
    volume = await create_pv(cluster, "pv", assignment=ASSIGNMENT)
    await remove_finalizer(cluster, volume)
    after = await read_pv(cluster, "pv")
    assert after
    assert after.finalizers == tuple(f for f in volume.finalizers if f != names.FINALIZER)


async def test_release_decides_anew_when_the_volume_changed(cluster: Cluster) -> None:
    volume = await create_pv(cluster, "pv", assignment=NodeAssignment(NODE, HOSTNAME, "pool"))
    await cluster.patch(VOLUMES, "pv", {"spec": {"persistentVolumeReclaimPolicy": "Retain"}})
    with pytest.raises(Conflict):
        await remove_finalizer(cluster, volume)
    with pytest.raises(Conflict):
        await remove_finalizer(cluster, replace(volume, uid="another"))
    await remove_finalizer(cluster, replace(volume, name="gone"))
