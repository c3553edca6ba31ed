"""Class parameters: what is allowed passes unchanged to the node, what is not is refused with the key's name."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import filesystems, parameters
from contract.parameters import NodeSecrets, ParameterError, SecretReference, VolumeParameters


def test_the_volume_source_is_the_classes_and_no_option_of_a_volume() -> None:
    assert parameters.volume_source({}) == "flexVolume"
    for source in parameters.VOLUME_SOURCES:
        asked = {"volumeSource": source, "fsType": "xfs"}
        assert parameters.volume_source(asked) == source
        assert parameters.parse(asked) == VolumeParameters(filesystem="xfs")


def test_the_filesystem_may_have_the_name_that_all_csi_drivers_have_for_it() -> None:
    of_csi = parameters.CSI_FS_TYPE
    assert parameters.parse({of_csi: "xfs", "mkfsOptions": "-K"}) == parameters.parse(
        {"fsType": "xfs", "mkfsOptions": "-K"}
    )
    assert parameters.parse({of_csi: "xfs", "fsType": "xfs"}).filesystem == "xfs"
    with pytest.raises(ParameterError, match=f"'{of_csi}' is 'zfs'"):
        parameters.parse({of_csi: "zfs"})
    with pytest.raises(ParameterError, match=f"{of_csi}.*keep one of the two"):
        parameters.parse({of_csi: "xfs", "fsType": "ext4"})
    with pytest.raises(ParameterError):
        parameters.from_options({of_csi: "xfs"}, "xfs")


def test_a_raw_block_device_has_no_filesystem_options() -> None:
    asked = {"fsType": "xfs", "mkfsOptions": "-K", "stripes": "2", "erase": "discard"}
    wanted = parameters.parse(asked, ["noatime"], block=True)
    assert wanted == VolumeParameters(filesystem="raw", stripes=2, erase="discard")
    assert wanted.block
    assert wanted.minimum_size == 1
    options = parameters.to_options(wanted, 1 << 30)
    assert options == {"size": "1073741824", "stripes": "2", "erase": "discard"}
    assert parameters.from_options(options, "raw") == wanted
    assert parameters.from_options({**options, "mkfsOptions": "-K", "mountOptions": "noatime"}, "raw") == wanted
    assert not VolumeParameters().block
    with pytest.raises(ParameterError):
        parameters.parse({"mkfsOptions": "-F"}, block=True)
    with pytest.raises(ParameterError):
        parameters.parse({"fsType": "raw"}, block=True)


def test_limits_of_io_are_whole_figures_within_bounds_and_need_a_device() -> None:
    limited = parameters.parse({"readBandwidth": "100Mi", "writeIOPS": "1k"})
    assert (limited.read_bandwidth, limited.write_iops) == (100 << 20, 1000)
    assert limited.needs_device
    assert not VolumeParameters().needs_device
    assert parameters.to_options(limited, 5) == {"size": "5", "readBandwidth": "104857600", "writeIOPS": "1000"}
    for key, values in {"writeBandwidth": ("63Ki", "2Ti", "fast", "-1Gi"), "readIOPS": ("9", "1G", "0")}.items():
        for value in values:
            with pytest.raises(ParameterError, match=f"'{key}' is '{value}': allowed"):
                parameters.parse({key: value})


ENCRYPTED = {
    "volumeSource": "csi",
    "encryption": "luks2",
    "csi.storage.k8s.io/node-stage-secret-name": "volume-key",
    "csi.storage.k8s.io/node-stage-secret-namespace": "storage",
}


EXPANDED = {
    "csi.storage.k8s.io/node-expand-secret-name": "grow-key",
    "csi.storage.k8s.io/node-expand-secret-namespace": "other",
}


def test_a_class_names_the_secret_of_its_encrypted_volumes() -> None:
    wanted = parameters.parse(ENCRYPTED)
    assert wanted == VolumeParameters(encryption="luks2")
    assert wanted.header_size == 16 << 20
    assert VolumeParameters().header_size == 0
    stage = SecretReference("storage", "volume-key")
    assert parameters.node_secrets(ENCRYPTED) == NodeSecrets(stage)
    expand = SecretReference("other", "grow-key")
    assert parameters.node_secrets({**ENCRYPTED, **EXPANDED}) == NodeSecrets(stage, expand)
    assert parameters.node_secrets({}) is None
    options = parameters.to_options(wanted, 5)
    assert options == {"size": "5", "encryption": "luks2"}, "the Secret is in a field of the PersistentVolume"
    assert parameters.from_options(options, "ext4") == wanted
    assert parameters.from_options(options, "raw") == wanted.as_block_device()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"encryption": "luks1"}, "encryption"),
        ({"encryption": ""}, "encryption"),
        ({"volumeSource": "flexVolume"}, "encryption"),
        ({"csi.storage.k8s.io/node-stage-secret-name": ""}, "csi.storage.k8s.io/node-stage-secret-name"),
        ({"csi.storage.k8s.io/node-stage-secret-name": "${pvc.name}"}, "csi.storage.k8s.io/node-stage-secret-name"),
        (
            {"csi.storage.k8s.io/node-stage-secret-namespace": "${pvc.namespace}"},
            "csi.storage.k8s.io/node-stage-secret-namespace",
        ),
        ({"csi.storage.k8s.io/node-stage-secret-namespace": "a.b"}, "csi.storage.k8s.io/node-stage-secret-namespace"),
        ({"csi.storage.k8s.io/node-expand-secret-name": "a"}, "csi.storage.k8s.io/node-expand-secret-namespace"),
        ({"csi.storage.k8s.io/node-expand-secret-namespace": "a"}, "csi.storage.k8s.io/node-expand-secret-name"),
        ({"csi.storage.k8s.io/node-publish-secret-name": "a"}, "csi.storage.k8s.io/node-publish-secret-name"),
    ],
)
def test_a_secret_is_named_whole_and_by_no_template(change: dict[str, str], key: str) -> None:
    with pytest.raises(ParameterError) as refused:
        parameters.parse({**ENCRYPTED, **change})
    assert refused.value.key == key


@pytest.mark.parametrize("missing", sorted(ENCRYPTED))
def test_half_of_what_encryption_takes_is_refused(missing: str) -> None:
    with pytest.raises(ParameterError):
        parameters.parse({key: text for key, text in ENCRYPTED.items() if key != missing})


def test_a_class_without_parameters_is_the_default() -> None:
    assert parameters.parse({}) == VolumeParameters()
    assert parameters.to_options(VolumeParameters(), 5) == {"size": "5"}


@pytest.mark.parametrize(
    ("given_parameters", "mount_options"),
    [
        ({"fsType": "xfs", "mkfsOptions": "-d su=64k,sw=2 -K"}, ["noatime", "logbufs=8"]),
        ({"mkfsOptions": "-m 0 -O ^has_journal,extent -E lazy_itable_init=0"}, ["noatime,nodelalloc"]),
        ({"fsType": "btrfs", "mkfsOptions": "--csum xxhash"}, ["compress=zstd:3", "discard=async", "discard"]),
        ({"thin": "true", "thinPool": "fast", "overprovisionRatio": "2.5", "thinPoolAutoextend": "20%"}, []),
        ({"thin": "false", "volumeGroup": "nvme", "stripes": "3"}, []),
        ({"raid": "raid1", "erase": "discard"}, []),
        ({"erase": "none"}, []),
        ({"readBandwidth": "1.5Gi", "writeBandwidth": "64Ki", "readIOPS": "2k", "writeIOPS": "10"}, []),
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
        ({"volumeSource": "CSI"}, [], "volumeSource"),
        ({"volumeSource": ""}, [], "volumeSource"),
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


TOGETHER = [
    ("ext4", "", "prjquota", "mountOptions"),
    ("ext4", "-O ^has_journal", "data=journal", "mountOptions"),
    ("ext4", "-O ^has_journal", "data=ordered", "mountOptions"),
    ("ext4", "-O ^has_journal", "commit=10", "mountOptions"),
    ("ext4", "-O ^has_journal", "journal_checksum", "mountOptions"),
    ("ext4", "", "data=journal,delalloc", "mountOptions"),
    ("ext4", "", "data=journal,dioread_nolock", "mountOptions"),
    ("ext4", "", "noacl", "mountOptions"),
    ("ext4", "", "commit=2147484", "mountOptions"),
    ("ext4", "", "stripe=5000000000", "mountOptions"),
    ("xfs", "-b size=65536", "", "mkfsOptions"),
    ("xfs", "-b size=64k", "", "mkfsOptions"),
    ("xfs", "-m crc=0", "", "mkfsOptions"),
    ("xfs", "", "allocsize=3", "mountOptions"),
    ("xfs", "", "allocsize=12k", "mountOptions"),
    ("xfs", "", "allocsize=2g", "mountOptions"),
    ("xfs", "", "logbsize=1", "mountOptions"),
    ("xfs", "", "logbsize=512k", "mountOptions"),
    ("xfs", "-l su=128k", "logbsize=64k", "mountOptions"),
    ("xfs", "-d su=64k,sw=2", "logbsize=32k", "mountOptions"),
    ("xfs", "", "logbufs=1", "mountOptions"),
    ("xfs", "", "logbufs=9", "mountOptions"),
    ("xfs", "", "sunit=7,swidth=9", "mountOptions"),
    ("xfs", "", "sunit=128", "mountOptions"),
    ("xfs", "", "swidth=128", "mountOptions"),
    ("xfs", "-d sunit=128,swidth=256", "sunit=128,swidth=512", "mountOptions"),
    ("btrfs", "-s 64k", "", "mkfsOptions"),
    ("btrfs", "-O quota", "", "mkfsOptions"),
    ("btrfs", "", "compress=lzo:3", "mountOptions"),
    ("btrfs", "", "compress=zlib:12", "mountOptions"),
    ("btrfs", "", "compress-force=zstd:16", "mountOptions"),
    ("btrfs", "", "thread_pool=0", "mountOptions"),
]


@pytest.mark.parametrize(("filesystem", "mkfs", "mount", "key"), TOGETHER)
def test_options_that_exclude_each_other_are_refused_for_new_claims_only(
    filesystem: str, mkfs: str, mount: str, key: str
) -> None:
    options = {"mkfsOptions": mkfs, "mountOptions": mount}
    asked = {name: text for name, text in options.items() if text}
    with pytest.raises(ParameterError) as refused:
        parameters.parse({"fsType": filesystem, "mkfsOptions": mkfs}, [mount] if mount else [])
    assert refused.value.key == key
    assert f"allowed for {filesystem} is" in str(refused.value)
    assert parameters.from_options({"size": "5", **asked}, filesystem).filesystem == filesystem


@pytest.mark.parametrize(
    ("filesystem", "mkfs", "mount"),
    [
        ("ext4", "-O project,quota", "prjquota"),
        ("ext4", "-O ^has_journal -O has_journal", "data=journal,commit=10,journal_checksum"),
        ("ext4", "-O ^has_journal", "noatime,nodelalloc"),
        ("xfs", "-b size=4k -l su=64k", "allocsize=64k,logbsize=64k,logbufs=8"),
        ("xfs", "-d su=64k,sw=2", "sunit=128,swidth=256"),
        ("xfs", "", "prjquota,allocsize=1g"),
        ("btrfs", "-n 16k -s 4096 -O ^no-holes", "compress=zstd:15,thread_pool=4,commit=30"),
        ("btrfs", "", "compress=lzo"),
    ],
)
def test_what_can_be_mounted_together_is_not_refused(filesystem: str, mkfs: str, mount: str) -> None:
    wanted = parameters.parse({"fsType": filesystem, "mkfsOptions": mkfs}, [mount])
    assert ",".join(wanted.mount_options) == mount


def test_limits_that_were_changed_travel_as_one_text_and_leave_nothing_of_earlier() -> None:
    created = parameters.parse({"fsType": "xfs", "readIOPS": "500", "writeIOPS": "600"})
    changed = parameters.limited(created, {"readIOPS": "2k", "writeIOPS": "max", "writeBandwidth": "1Mi"})
    text = parameters.render_limits(changed)
    assert text == "readBandwidth=max writeBandwidth=1048576 readIOPS=2000 writeIOPS=max"
    assert parameters.limited(created, parameters.parse_limits(text)) == changed
    assert (changed.filesystem, changed.limits_io) == ("xfs", True)
    assert parameters.limited(created, {}) == created, "what is not named stays"


@pytest.mark.parametrize("text", ["fsType=btrfs", "readIOPS", "readIOPS=", "readIOPS=-1", "=5", "readIOPS=1e3 x"])
def test_what_nobody_of_ours_wrote_there_is_refused(text: str) -> None:
    with pytest.raises(ParameterError):
        parameters.limited(parameters.VolumeParameters(), parameters.parse_limits(text))
