"""The file of device classes: what it means, and what is said of a mistake in it."""

import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from daemon.settings import read as read_settings
from daemon.storage.deviceclasses import LOOP, LVM, DeviceClass, DeviceSelector, read, reserve_of, schema
from host.disks import Disk
from service import yamldecoder
from service.environment import SettingsError
from service.yamldecoder import DecodeError

GIB = 2**30
SCHEMA = jsonschema.Draft7Validator(schema())
OWN = DeviceClass("default", LVM, group="elastic-local-vg", reserve=7)

FILE = """
classes:
  nvme: {kind: LVM, group: vg-nvme, reserve: 1Gi}
  thin: {kind: lvm, group: vg-nvme, thin: true, thinPool: pool, reserve: 2Gi}
  scratch:
    kind: LOOP
    folder: /mnt/scratch/volumes/
    capacity: 100Gi
"""


def test_a_file_adds_classes_to_the_one_of_the_settings() -> None:
    assert read(FILE, OWN) == {
        "default": OWN,
        "nvme": DeviceClass("nvme", LVM, group="vg-nvme", reserve=GIB),
        "thin": DeviceClass("thin", LVM, group="vg-nvme", thin=True, thin_pool="pool", reserve=2 * GIB),
        "scratch": DeviceClass("scratch", LOOP, folder=Path("/mnt/scratch/volumes"), capacity=100 * GIB),
    }


def test_a_class_may_select_the_disks_of_its_group() -> None:
    devices = "{paths: [/dev/nvme*, '/dev/disk/by-id/*Micron*'], minimumSize: 100Gi, maximumSize: 2Ti, rotational: no}"
    selector = read(f"classes: {{nvme: {{kind: LVM, group: a, devices: {devices}}}}}", OWN)["nvme"].devices
    assert selector
    disk = Disk("/dev/nvme0n1", 500 * GIB, model="Micron 7450")
    assert selector.selects(disk)
    assert selector.selects(replace(disk, path="/dev/sda", links=frozenset({"/dev/disk/by-id/nvme-Micron_1"})))
    for other in ({"path": "/dev/sda"}, {"size": GIB}, {"size": 3 << 40}, {"rotational": True}):
        assert not selector.selects(replace(disk, **other))
    assert DeviceSelector(models=("Micron*",)).selects(disk)
    assert not DeviceSelector(models=("Samsung*",)).selects(disk)


def test_a_file_may_say_which_one_is_the_default() -> None:
    classes = read(f"default: nvme\n{FILE}", OWN)
    assert classes["default"] == classes["nvme"]


def test_each_class_keeps_its_own_reserve_back() -> None:
    classes = read(FILE, OWN)
    pools = ["vg-nvme", "vg-nvme/pool", "vg-nvme/other", "elastic-local-vg", "elsewhere", "loop:scratch"]
    assert [reserve_of(classes, pool) for pool in pools] == [GIB, 2 * GIB, GIB, 7, 7, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nvme", "the file is 'nvme': allowed is a map"),
        ("classes: {", "not a YAML value: "),
        (
            f"{FILE}  nvme: {{kind: LVM, group: vg-sata}}",
            "key nvme in line 9 is there already, in line 3: keep one of them",
        ),
        ("classes: {}\nclasses: {}", "key classes in line 2 is there already, in line 1: keep one of them"),
        (
            "classes:\n  nvme:\n    kind: LVM\n    group: a\n    group: b",
            "key group in line 5 is there already, in line 4: keep one of them",
        ),
        ("classes: {}", "classes is empty: name at least one, such as `nvme: {kind: LVM, group: vg-nvme}`"),
        ("classes: [nvme]", "classes is ['nvme']: allowed is a map"),
        ("klasses: {}", "klasses: there is no such key, there are classes, default"),
        ("classes: {nvme: }", "classes.nvme is None: allowed is a map"),
        ("classes: {nvme: {group: a}}", "classes.nvme.kind is missing: allowed is LVM LOOP BINDMOUNT"),
        ("classes: {nvme: {kind: ZFS}}", "classes.nvme.kind is 'ZFS': allowed is LVM LOOP BINDMOUNT"),
        (
            "classes: {nvme: {kind: LVM, group: a, devices: {}}}",
            "classes.nvme.devices selects every empty disk: say which, or `paths: ['*']` if all are meant",
        ),
        (
            "classes: {nvme: {kind: LVM, group: a, devices: {paths: [sdb]}}}",
            "classes.nvme.devices.paths[0] is 'sdb': allowed is a pattern of a name below /dev, such as /dev/nvme*",
        ),
        (
            "classes: {nvme: {kind: LVM, group: a, devices: {size: 1Gi}}}",
            "classes.nvme.devices.size: there is no such key, "
            "there are maximumSize, minimumSize, models, paths, rotational",
        ),
        ("classes: {nvme: {kind: LVM}}", "classes.nvme.group is missing: allowed is the name of an LVM volume group"),
        ("classes: {nvme: {kind: LVM, group: -x}}", "classes.nvme.group is '-x': allowed is a name as LVM has them"),
        (
            "classes: {nvme: {kind: LVM, group: a, thin: maybe}}",
            "classes.nvme.thin is 'maybe': allowed is true or false",
        ),
        (
            "classes: {nvme: {kind: LVM, group: a, folder: /x}}",
            "classes.nvme.folder: there is no such key of kind LVM, there are devices, group, reserve, thin, thinPool",
        ),
        (
            "classes: {tmp: {kind: LOOP, folder: tmp}}",
            "classes.tmp.folder is 'tmp': allowed is an absolute path without `..`",
        ),
        ("classes: {tmp: {kind: LOOP}}", "classes.tmp.folder is missing: allowed is an absolute path on its disk"),
        (
            "classes: {tmp: {kind: LOOP, folder: /x, reserve: -1}}",
            "classes.tmp.reserve is '-1': allowed is a quantity such as 10Gi, 500M or 1073741824",
        ),
        (
            "classes: {NVMe: {kind: LVM, group: a}}",
            "classes.NVMe: allowed as a name are up to 63 small letters, digits and -, but not `default`: "
            "say `default: CLASS` at the top instead",
        ),
        (
            "classes: {default: {kind: LVM, group: a}}",
            "classes.default: allowed as a name are up to 63 small letters, digits and -, but not `default`: "
            "say `default: CLASS` at the top instead",
        ),
        (
            "{default: hdd, classes: {nvme: {kind: LVM, group: a}}}",
            "default is 'hdd': allowed is one of the classes, nvme",
        ),
        (
            "classes: {a: {kind: LVM, group: vg}, b: {kind: LVM, group: vg}}",
            "classes a and b are both in vg: keep one of them",
        ),
        (
            "classes: {a: {kind: LOOP, folder: /x}, b: {kind: BINDMOUNT, folder: //x/}}",
            "classes a and b are both in /x: keep one of them",
        ),
        (
            "classes: {a: {kind: LVM, group: elastic-local-vg}}",
            "classes a and default are both in elastic-local-vg: keep one of them, or say `default: a`",
        ),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(DecodeError) as refused:
        read(text, OWN)
    assert str(refused.value).startswith(message)
    if not re.search("not a YAML value|there already|allowed is one of the classes|are both in", message):
        # All that a schema can say: what is the same twice, or not YAML, it can't.
        assert not SCHEMA.is_valid(yamldecoder.load(text))


@pytest.mark.parametrize(
    "text",
    [
        FILE.replace("lvm", "LVM"),
        "{default: , classes: {a: {kind: LVM, group: 7, reserve: 1.5, thinPool: , devices: {paths: ['*']}}}}",
        "classes: {a: {kind: BINDMOUNT, folder: /a..b/c, capacity: 1e3, reserve: +.5Gi}}",
    ],
)
def test_the_schema_takes_what_is_taken(text: str) -> None:
    read(text, OWN)
    SCHEMA.validate(yamldecoder.load(text))


def test_a_class_may_override_what_it_merges() -> None:
    classes = read("classes: {a: &a {kind: LVM, group: vg-a, reserve: 1Gi}, b: {<<: *a, group: vg-b}}", OWN)
    assert classes["b"] == DeviceClass("b", LVM, group="vg-b", reserve=GIB)


def test_an_error_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "classes.yaml"
    environment = {"NODE_NAME": "n", "DEVICE_CLASSES_FILE": str(file)}
    with pytest.raises(SettingsError, match=r"DEVICE_CLASSES_FILE is '.*classes\.yaml': it can't be read"):
        read_settings(environment)
    file.write_text("classes: {x: 5}")
    with pytest.raises(SettingsError, match=r"DEVICE_CLASSES_FILE .*classes\.yaml: classes\.x is 5: allowed is a map"):
        read_settings(environment)
    file.write_text(FILE)
    assert set(read_settings(environment).classes) == {"default", "nvme", "thin", "scratch"}
