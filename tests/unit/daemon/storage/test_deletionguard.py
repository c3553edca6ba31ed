"""When data may go: the table of the decision, and that whoever can't ask destroys nothing."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from contract.parameters import VolumeParameters
from contract.volume import DELETE, RETAIN
from daemon.errors import ApiUnavailable, ClusterUnknown, Foreign, NotAuthorized
from daemon.storage.deletionguard import Owner, RemovalReason, refusal
from daemon.storage.inventory import ForeignVolume, Inventory, Volume, of_cluster
from daemon.storage.record import Record, VolumeSpec, VolumeState
from daemon.storage.volumes import Volumes
from tests.agreeing import CLUSTER
from tests.unit.daemon.storage.test_volumes import POOL, Memory

HERE, ELSEWHERE = "uid-of-this-cluster", "uid-of-another-cluster"
RECORD = Record("pv", "uid", DELETE, "ext4", VolumeState.READY, cluster=HERE)
OWNER = Owner("uid", DELETE, reclaimable=True)
UNMARKED = replace(RECORD, cluster="")


@pytest.mark.parametrize(
    ("removal", "present", "owner", "cluster", "why"),
    [
        (RemovalReason.RECLAIM, RECORD, OWNER, HERE, ""),
        (RemovalReason.RECLAIM, UNMARKED, OWNER, HERE, ""),
        (RemovalReason.RECLAIM, UNMARKED, OWNER, "", ""),
        (RemovalReason.RECLAIM, RECORD, OWNER, "", "this one is not known yet"),
        (RemovalReason.RECLAIM, RECORD, None, HERE, "no PersistentVolume of its uid uid any more"),
        (
            RemovalReason.RECLAIM,
            RECORD,
            replace(OWNER, uid="heir"),
            HERE,
            "no PersistentVolume of its uid uid any more",
        ),
        (RemovalReason.RECLAIM, RECORD, replace(OWNER, policy=RETAIN), HERE, "has the reclaim policy Retain"),
        (RemovalReason.RECLAIM, RECORD, replace(OWNER, reclaimable=False), HERE, "is not deleted"),
        (RemovalReason.ORPHANED, RECORD, None, HERE, ""),
        (RemovalReason.ORPHANED, UNMARKED, None, HERE, "of which cluster it is"),
        (RemovalReason.ORPHANED, RECORD, None, "", "this one is not known yet"),
        (RemovalReason.ORPHANED, RECORD, OWNER, HERE, "there is a PersistentVolume of its name .uid uid."),
        (RemovalReason.ORPHANED, RECORD, replace(OWNER, uid="heir"), HERE, "there is a PersistentVolume of its name"),
        *(
            (removal, replace(RECORD, **changed), owner, HERE, why)
            for removal, owner in ((RemovalReason.RECLAIM, OWNER), (RemovalReason.ORPHANED, None))
            for changed, why in (
                ({"uid": "heir"}, "changed meanwhile .uid: heir for uid"),
                ({"policy": RETAIN}, "changed meanwhile .policy: Retain for Delete"),
                ({"state": VolumeState.FORMATTING}, "changed meanwhile .state: formatting for ready"),
                ({"cluster": ELSEWHERE}, f"changed meanwhile .cluster: {ELSEWHERE} for"),
            )
        ),
    ],
)
def test_when_data_may_go(removal: RemovalReason, present: Record, owner: Owner | None, cluster: str, why: str) -> None:
    believed = RECORD if present.cluster else UNMARKED
    said = refusal(removal, believed, present, owner, cluster)
    assert bool(said) is bool(why)
    assert re.search(why, said)


@pytest.mark.parametrize("removal", list(RemovalReason))
@pytest.mark.parametrize(
    ("record", "why"),
    [
        (replace(RECORD, policy=RETAIN), "its record says Retain"),
        (replace(RECORD, cluster=ELSEWHERE), f"belongs to cluster {ELSEWHERE}"),
    ],
)
def test_what_its_record_forbids_nobody_allows(removal: RemovalReason, record: Record, why: str) -> None:
    owner = OWNER if removal is RemovalReason.RECLAIM else None
    assert why in refusal(removal, record, record, owner, HERE)


def test_volumes_of_another_cluster_are_foreign() -> None:
    mine, theirs, unmarked = (Volume(replace(RECORD, cluster=each), 5, "vg") for each in (HERE, ELSEWHERE, ""))
    theirs = replace(theirs, record=replace(theirs.record, pv="other"))
    snapshot = Volume(theirs.record.of_snapshot(), 2, "vg")
    inventory = Inventory([mine, theirs, unmarked], snapshots=[snapshot])
    seen = of_cluster(inventory, HERE)
    assert (seen.volumes, seen.snapshots) == ([mine, unmarked], [])
    assert seen.foreign == [
        ForeignVolume("other", "vg", 5, ELSEWHERE),
        ForeignVolume(snapshot.pv, "vg", 2, ELSEWHERE),
    ]
    assert of_cluster(inventory, "") == inventory  # served until it is known


class Answering:
    """An API server of which a test says what it answers."""

    def __init__(self) -> None:
        self.cluster = CLUSTER
        self.owners: dict[str, Owner] = {}
        self.away = False

    async def owner(self, pv: str, content: str = "") -> Owner | None:
        if self.away:
            raise ApiUnavailable("the API server can't be asked")
        return self.owners.get(pv)


@pytest.fixture
def server() -> Answering:
    return Answering()


@pytest.fixture
def backend() -> Memory:
    return Memory()


@pytest.fixture
async def volumes(backend: Memory, server: Answering, tmp_path: Path) -> Volumes:
    volumes = Volumes(backend, tmp_path, server)
    await volumes.start()
    return volumes


SPEC = VolumeSpec("pv", "uid", 100, DELETE, VolumeParameters())


async def test_none_is_created_before_the_cluster_is_known_and_existing_ones_serve(
    volumes: Volumes, backend: Memory, server: Answering
) -> None:
    server.owners["pv"] = OWNER
    server.cluster = ""
    with pytest.raises(ClusterUnknown, match="readyz"):
        await volumes.prepare(SPEC)
    assert not backend.volumes
    backend.volumes["pv"] = Volume(UNMARKED, 100, POOL)
    await volumes.refresh()
    assert (await volumes.prepare(SPEC)).record == UNMARKED
    server.cluster = CLUSTER
    assert (await volumes.prepare(SPEC)).record == replace(UNMARKED, cluster=CLUSTER)
    assert backend.volumes["pv"].record.cluster == CLUSTER


async def test_a_namesake_in_another_cluster_is_not_touched(
    volumes: Volumes, backend: Memory, server: Answering
) -> None:
    theirs = Volume(replace(RECORD, uid="theirs", cluster=ELSEWHERE), 100, POOL)
    backend.volumes["pv"] = theirs
    await volumes.refresh()
    server.owners["pv"] = OWNER
    with pytest.raises(Foreign, match=r"another cluster.*elastic-local adopt pv"):
        await volumes.prepare(SPEC)
    assert await volumes.reclaim("pv", "uid", POOL)  # of ours there is nothing
    await volumes.retain("pv", "uid", POOL, made=False)
    for removal in RemovalReason:
        assert await volumes.reclaim("pv", "theirs", POOL, removal)
    assert backend.volumes == {"pv": theirs}


async def test_without_an_answer_nothing_goes(volumes: Volumes, backend: Memory, server: Answering) -> None:
    server.owners["pv"] = OWNER
    await volumes.prepare(SPEC)
    server.away = True
    for removal in RemovalReason:
        with pytest.raises(ApiUnavailable):
            await volumes.reclaim("pv", "uid", POOL, removal)
    with pytest.raises(ApiUnavailable):
        await volumes.prepare(replace(SPEC, pv="new"))
    assert list(backend.volumes) == ["pv"]
    server.away = False
    assert await volumes.reclaim("pv", "uid", POOL)


async def test_what_a_cache_says_does_not_count(volumes: Volumes, backend: Memory, server: Answering) -> None:
    server.owners["pv"] = replace(OWNER, policy=RETAIN)
    await volumes.prepare(SPEC)
    for now in (server.owners["pv"], replace(OWNER, uid="heir"), replace(OWNER, reclaimable=False)):
        server.owners["pv"] = now
        with pytest.raises(NotAuthorized):
            await volumes.reclaim("pv", "uid", POOL)
    del server.owners["pv"]
    with pytest.raises(NotAuthorized):
        await volumes.reclaim("pv", "uid", POOL)
    with pytest.raises(NotAuthorized, match="is not made"):
        await volumes.prepare(replace(SPEC, pv="new"))
    assert list(backend.volumes) == ["pv"]


async def test_a_policy_that_became_delete_last_of_all_counts(
    volumes: Volumes, backend: Memory, server: Answering
) -> None:
    server.owners["pv"] = OWNER
    await volumes.prepare(replace(SPEC, policy=RETAIN))
    assert await volumes.reclaim("pv", "uid", POOL)
    assert not backend.volumes


@pytest.mark.parametrize("change", [{"uid": "heir"}, {"policy": RETAIN}, {"cluster": ELSEWHERE}])
async def test_a_record_that_somebody_else_changed_is_believed(
    volumes: Volumes, backend: Memory, server: Answering, change: dict[str, str]
) -> None:
    server.owners["pv"] = OWNER
    volume = await volumes.prepare(SPEC)
    changed = replace(volume, record=replace(volume.record, **change))  # type: ignore[arg-type]
    backend.volumes["pv"] = changed
    with pytest.raises(NotAuthorized, match="changed meanwhile"):
        await volumes.reclaim("pv", "uid", POOL)
    assert backend.volumes == {"pv": changed}
