"""Class parameters: what is allowed passes unchanged to the node, what is not is refused with the key's name."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import filesystems, parameters
from contract.parameters import ParameterError, VolumeParameters


def test_a_class_without_parameters_is_the_default() -> None:
    assert parameters.parse({}) == VolumeParameters()
    assert parameters.to_options(VolumeParameters(), 5) == {"size": "5"}


@pytest.mark.parametrize(
    ("given_parameters", "mount_options"),
    [
        ({"fsType": "xfs", "mkfsOptions": "-d su=64k,sw=2 -K"}, ["noatime", "logbufs=8"]),
        ({"mkfsOptions": "-m 0 -O ^has_journal,extent -E lazy_itable_init=0"}, ["noatime,data=writeback"]),
        ({"fsType": "btrfs", "mkfsOptions": "--csum xxhash"}, ["compress=zstd:3", "discard=async", "discard"]),
        ({"thin": "true", "thinPool": "fast", "overprovisionRatio": "2.5", "thinPoolAutoextend": "20%"}, []),
        ({"thin": "false", "volumeGroup": "nvme", "stripes": "3"}, []),
        ({"raid": "raid1", "erase": "discard"}, []),
        ({"erase": "none"}, []),
        ({"device-class": "nvme-2", "thin": "true"}, []),
    ],
)
def test_what_is_allowed_comes_back_the_same_from_the_options(
    given_parameters: dict[str, str], mount_options: list[str]
) -> None:
    wanted = parameters.parse(given_parameters, mount_options)
    options = parameters.to_options(wanted, 1 << 30)
    assert all(isinstance(value, str) for value in options.values())
    assert parameters.from_options(options, wanted.filesystem) == wanted


@pytest.mark.parametrize(
    ("given_parameters", "mount_options", "key"),
    [
        ({"fstype": "ext4"}, [], "fstype"),
        ({"fsType": "zfs"}, [], "fsType"),
        ({"mkfsOptions": "-d /etc"}, [], "mkfsOptions"),
        ({"mkfsOptions": "-J device=/dev/sda"}, [], "mkfsOptions"),
        ({"mkfsOptions": "-O journal_dev"}, [], "mkfsOptions"),
        ({"mkfsOptions": "-F"}, [], "mkfsOptions"),
        ({"mkfsOptions": "-m"}, [], "mkfsOptions"),
        ({"mkfsOptions": "-m 0;reboot"}, [], "mkfsOptions"),
        ({"mkfsOptions": "'"}, [], "mkfsOptions"),
        ({"mkfsOptions": "/dev/sda"}, [], "mkfsOptions"),
        ({"fsType": "xfs", "mkfsOptions": "-d name=/dev/sda"}, [], "mkfsOptions"),
        ({"fsType": "xfs", "mkfsOptions": "-l logdev=/dev/sda"}, [], "mkfsOptions"),
        ({"fsType": "btrfs", "mkfsOptions": "-r /etc"}, [], "mkfsOptions"),
        ({"thin": "yes"}, [], "thin"),
        ({"erase": "shred"}, [], "erase"),
        ({"stripes": "0"}, [], "stripes"),
        ({"stripes": "1.5"}, [], "stripes"),
        ({"stripes": "2", "thin": "true"}, [], "stripes"),
        ({"stripes": "2", "raid": "raid1"}, [], "stripes"),
        ({"raid": "raid5"}, [], "raid"),
        ({"raid": "raid1", "thinPool": "p"}, [], "thinPool"),
        ({"overprovisionRatio": "0.5"}, [], "overprovisionRatio"),
        ({"overprovisionRatio": "nan"}, [], "overprovisionRatio"),
        ({"thinPoolAutoextend": "a fifth"}, [], "thinPoolAutoextend"),
        ({"thinPoolAutoextend": "101%"}, [], "thinPoolAutoextend"),
        ({"thin": "false", "thinPoolAutoextend": "20%"}, [], "thinPoolAutoextend"),
        ({"device-class": "NVMe"}, [], "device-class"),
        ({"deviceClass": "nvme"}, [], "deviceClass"),
        ({"device-class": "nvme", "volumeGroup": "vg"}, [], "volumeGroup"),
        ({"volumeGroup": "-vg"}, [], "volumeGroup"),
        ({"volumeGroup": "../sda"}, [], "volumeGroup"),
        ({"volumeGroup": ".."}, [], "volumeGroup"),
        ({"volumeGroup": "a b"}, [], "volumeGroup"),
        ({}, ["errors=panic"], "mountOptions"),
        ({}, ["bind"], "mountOptions"),
        ({}, ["noatime,suid"], "mountOptions"),
        ({}, ["commit"], "mountOptions"),
        ({}, ["noatime="], "mountOptions"),
        ({}, ["logbufs=8"], "mountOptions"),
        ({}, [""], "mountOptions"),
    ],
)
def test_what_is_not_allowed_is_refused_by_its_key(
    given_parameters: dict[str, str], mount_options: list[str], key: str
) -> None:
    with pytest.raises(ParameterError) as refused:
        parameters.parse(given_parameters, mount_options)
    assert refused.value.key == key
    assert repr(key) in str(refused.value)


@given(filesystem=st.sampled_from(sorted(filesystems.FILESYSTEMS)), text=st.text())
def test_no_word_reaches_mkfs_that_could_name_a_file(filesystem: str, text: str) -> None:
    try:
        words = filesystems.mkfs_options(filesystem, text)
    except filesystems.OptionRefused:
        return
    assert all("/" not in word and not word.isspace() for word in words)


@given(st.dictionaries(st.text(), st.text(), max_size=4), st.lists(st.text(), max_size=3))
def test_any_input_is_parsed_or_refused(given_parameters: dict[str, str], mount_options: list[str]) -> None:
    with contextlib.suppress(ParameterError):
        assert isinstance(parameters.parse(given_parameters, mount_options), VolumeParameters)
