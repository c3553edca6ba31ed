import string
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.filesystems import FILESYSTEMS
from contract.parameters import DISCARD, ERASE, NO_ERASE, ZERO, VolumeParameters
from contract.volume import DELETE, RETAIN
from daemon.storage.inventory import Pool, ThinPoolUsage
from daemon.storage.record import DamagedRecord, Record, VolumeSpec, VolumeState, from_fields, from_tags
from lvm import names

RECORD = Record("pvc-1", "3f7a9c1e-0001", DELETE, "ext4", VolumeState.READY)

RECORDS = (
    st.builds(
        Record,
        pv=st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?", fullmatch=True),
        uid=st.uuids().map(str),
        policy=st.sampled_from([DELETE, RETAIN]),
        filesystem=st.sampled_from(sorted(FILESYSTEMS)),
        state=st.sampled_from([VolumeState.FORMATTING, VolumeState.READY]),
        erase=st.sampled_from(ERASE),
        thin_pool_autoextend=st.integers(0, 100),
        cluster=st.just("") | st.uuids().map(str),
        growing=st.booleans(),
        encryption=st.sampled_from(["", "luks2"]),
        uuid_inherited=st.booleans(),
    )
    | st.builds(
        Record,
        pv=st.from_regex(r"cow_[0-9a-f]{12}", fullmatch=True),
        uid=st.uuids().map(str),
        policy=st.just(DELETE),
        filesystem=st.just("ext4"),
        state=st.just(VolumeState.COPYING),
        erase=st.sampled_from(ERASE),
        snapshot_of=st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?", fullmatch=True),
    )
    | st.builds(
        Record,
        pv=st.just("pvc-1"),
        uid=st.uuids().map(str),
        policy=st.just(DELETE),
        filesystem=st.just("ext4"),
        state=st.just(VolumeState.ERASING),
        erase=st.sampled_from(ERASE),
        erased=st.integers(0, 1 << 58),
    )
)
FOREIGN_TAGS = st.text(string.ascii_letters + string.digits + "_+.-/=!:&#", min_size=1).filter(
    lambda tag: not tag.startswith("elastic-local/")
)


@given(record=RECORDS, foreign=st.sets(FOREIGN_TAGS))
def test_tags_are_read_back_whatever_else_is_there(record: Record, foreign: set[str]) -> None:
    assert from_tags(record.to_tags() | foreign) == record
    assert from_fields(record.to_fields()) == record
    assert from_tags(foreign) is None


@given(record=RECORDS)
def test_lvm_takes_the_tags(record: Record) -> None:
    for tag in record.to_tags():
        names.tag(tag)


@given(record=RECORDS, data=st.data())
def test_a_record_with_a_part_missing_or_twice_is_damaged_or_foreign(record: Record, data: st.DataObject) -> None:
    lost = data.draw(st.sampled_from(sorted(record.to_tags())))
    rest = record.to_tags() - {lost}
    if lost.startswith("elastic-local/record="):
        assert from_tags(rest) is None
    elif lost.startswith("elastic-local/erase"):
        # Written by a daemon that knew nothing of erasing: all of it goes.
        read = from_tags(rest)
        assert read in (replace(record, erase=ZERO), replace(record, erased=0))
    elif lost.startswith("elastic-local/thin-pool-autoextend="):
        assert from_tags(rest) == replace(record, thin_pool_autoextend=0)
    elif lost.startswith("elastic-local/cluster="):
        assert from_tags(rest) == replace(record, cluster="")
    elif lost.startswith("elastic-local/growing="):
        assert from_tags(rest) == replace(record, growing=False)
    elif lost.startswith("elastic-local/encryption="):
        # Its PersistentVolume says otherwise, so neither is touched (daemon.storage.creation).
        assert from_tags(rest) == replace(record, encryption="")
    elif lost.startswith("elastic-local/uuid-inherited="):
        assert from_tags(rest) == replace(record, uuid_inherited=False)
    elif lost.startswith("elastic-local/snapshot-of="):
        with pytest.raises(DamagedRecord, match="pv is 'cow_"):
            from_tags(rest)
    else:
        with pytest.raises(DamagedRecord, match="has no"):
            from_tags(rest)
    with pytest.raises(DamagedRecord, match="more than one value"):
        from_tags(record.to_tags() | {lost.partition("=")[0] + "=another"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("record", "2"),
        ("pv", "../etc"),
        ("pv", "-pvc"),
        ("pv", ""),
        ("uid", "a b"),
        ("policy", "Recycle"),
        ("filesystem", "vfat"),
        ("state", "removed"),
        ("state", 1),
        ("erase", "shred"),
        ("erase", None),
        ("cluster", "a b"),
        ("cluster", None),
        ("thin-pool-autoextend", "101"),
        ("thin-pool-autoextend", "20%"),
        ("thin-pool-autoextend", 20),
    ],
)
def test_what_we_never_write_is_damage(field: str, value: object) -> None:
    with pytest.raises(DamagedRecord):
        from_fields({**RECORD.to_fields(), field: value})


def test_versions_read_each_others_records() -> None:
    """One that did not note the cluster wrote nothing of it; what a later one adds is left unread, and no damage."""
    marked = replace(RECORD, cluster="5b1f9e6c-0000-4000-8000-000000000001")
    assert "cluster" not in RECORD.to_fields()
    assert from_fields({**marked.to_fields(), "of-a-later-version": "1"}) == marked
    known_before = {key: value for key, value in marked.to_fields().items() if key != "cluster"}
    assert from_fields(known_before) == RECORD


@pytest.mark.parametrize("value", ["-1", "1.5", "9" * 19, "", 5])
def test_progress_that_we_never_write_is_damage(value: object) -> None:
    erasing = replace(RECORD, state=VolumeState.ERASING)
    with pytest.raises(DamagedRecord, match="erased"):
        from_fields({**erasing.to_fields(), "erased": value})


def test_what_the_class_asks_for_is_remembered() -> None:
    for record in (replace(RECORD, erase=NO_ERASE), replace(RECORD, thin_pool_autoextend=20)):
        assert from_tags(record.to_tags()) == record
    asked = VolumeParameters(thin=True, erase=DISCARD, thin_pool_autoextend=20)
    record = VolumeSpec("pvc-1", "uid", 1, DELETE, asked).record(VolumeState.READY)
    assert (record.erase, record.thin_pool_autoextend) == (DISCARD, 20)


def test_a_volume_says_for_ever_that_it_is_encrypted() -> None:
    asked = VolumeSpec("pvc-1", "uid", 1, DELETE, VolumeParameters(encryption="luks2"))
    record = asked.record(VolumeState.FORMATTING)
    assert record.encryption == "luks2"
    assert from_tags(record.to_tags()) == record
    kept = replace(record, state=VolumeState.READY, uuid_inherited=True).of_snapshot()
    assert (kept.encryption, kept.uuid_inherited) == ("", False), "what a snapshot keeps has no header of its own"
    with pytest.raises(DamagedRecord, match="encryption"):
        from_fields({**record.to_fields(), "encryption": "luks7"})


def test_a_change_of_state_changes_one_tag() -> None:
    assert len(RECORD.to_tags() ^ replace(RECORD, state=VolumeState.FORMATTING).to_tags()) == 2


def test_allocatable_stays_when_a_volume_is_made() -> None:
    before = Pool("group", size=100, free=60, ours=30, granularity=1)
    after = replace(before, free=40, ours=50)
    assert before.allocatable() == after.allocatable() == 90
    assert (before.available(), after.available()) == (60, 40)
    assert before.allocatable(3.0) == 90


def test_a_thin_pool_may_be_promised_beyond_its_size() -> None:
    pool = Pool("group/pool", size=100, free=-20, ours=90, granularity=1, thin=ThinPoolUsage(12.0, 3.0))
    assert pool.allocatable(2.0) == 170  # twice its size, less the 30 that others were promised
    assert pool.available(2.0) == 80
    assert pool.available() == -20


def test_a_snapshot_has_a_name_that_no_volume_has() -> None:
    one, other = RECORD.of_snapshot(), RECORD.of_snapshot()
    assert one.pv != other.pv
    names.volume("vg", one.pv)
    assert (one.snapshot_of, one.uid, one.state, one.erase) == (
        RECORD.pv,
        RECORD.uid,
        VolumeState.COPYING,
        RECORD.erase,
    )
    for wrong in ({"pv": "pvc-1"}, {"snapshot_of": ""}, {"snapshot_of": "cow_0123456789ab"}):
        with pytest.raises(DamagedRecord):
            replace(one, **wrong)  # type: ignore[arg-type]
