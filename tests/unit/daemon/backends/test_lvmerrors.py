"""What LVM says about a volume that was there a moment ago."""

import pytest

import lvm
from contract.parameters import VolumeParameters
from daemon.backends.lvmerrors import errors_of
from daemon.errors import NotAuthorized, PoolMissing, VolumeError, VolumeNotFound
from daemon.storage.inventory import Volume
from daemon.storage.record import VolumeSpec, VolumeState

VOLUME = Volume(
    VolumeSpec("pvc-1", "uid-1", 2**30, "Delete", VolumeParameters()).record(VolumeState.READY), 2**30, "group/pool"
)


@pytest.mark.parametrize(
    ("said", "meant", "message"),
    [
        pytest.param(
            lvm.GroupNotFound("lvm lvremove", 5, 'Volume group "group" not found'),
            PoolMissing,
            "group/pool, where volume pvc-1 is, can't be seen on this node now .*: bring its disks back",
            id="its disks can't be read now, and who removes it must not take it for gone",
        ),
        pytest.param(
            lvm.LvmNotFound("lvm lvremove", 5, 'Failed to find logical volume "group/pvc-1"'),
            VolumeNotFound,
            "volume pvc-1 is not on this node",
            id="its group was seen, without it",
        ),
        pytest.param(
            lvm.TagsDiffer("lvm lvremove", 0, "left as it is: a=b"),
            NotAuthorized,
            "nothing is done to volume pvc-1: its record changed meanwhile",
            id="its tags changed",
        ),
    ],
)
def test_only_what_was_looked_for_in_its_group_is_not_found(
    said: lvm.LvmError, meant: type[VolumeError], message: str
) -> None:
    with pytest.raises(VolumeError, match=message) as raised, errors_of(VOLUME):
        raise said
    assert type(raised.value) is meant
