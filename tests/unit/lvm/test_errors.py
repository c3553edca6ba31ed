import pytest

from lvm import (
    AlreadyExists,
    BadName,
    GroupNotFound,
    InUse,
    LvmError,
    LvmNotFound,
    NoSpace,
    PartsActive,
    Unsupported,
    errors,
)
from lvm.errors import ThinDeviceLeft

COMMAND = "lvm lvcreate --name=one vg"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ('Volume group "vg" has insufficient free space (1966 extents): 23842 required.', NoSpace),
        ("Insufficient free space: 3140 extents needed, but only 1966 available", NoSpace),
        ("Insufficient suitable allocatable extents for logical volume rb: 104 more required", NoSpace),
        ("Number of stripes (4) must not exceed number of physical volumes (3)", NoSpace),
        ("Cannot create new thin volume, free space in thin pool vg/pool reached threshold.", NoSpace),
        ('Volume group "novg" not found', GroupNotFound),
        ('Failed to find logical volume "vg/nope"', LvmNotFound),
        ("Logical volume nope not found in volume group vg.", LvmNotFound),
        ("Pool nopool not found in Volume group vg.", LvmNotFound),
        ("No device found for /dev/nodisk.", LvmNotFound),
        ('Logical Volume "one" already exists in volume group "vg"', AlreadyExists),
        ("Logical volume pool already exists in Volume group vg.", AlreadyExists),
        ("/dev/vg: already exists in filesystem", AlreadyExists),
        ("Logical volume vg/one contains a filesystem in use.", InUse),
        ("Logical volume vg/one in use.", InUse),
        ("Logical volume vg/one is used by another device.", InUse),
        ("Physical volume '/dev/loop0' is already in volume group 'vg'", InUse),
        ("Can't open /dev/loop3 exclusively. Mounted filesystem?", InUse),
        ("Aborted wiping of ext4.", InUse),
        ('Names starting "snapshot" are reserved. Please choose a different LV name.', BadName),
        ('Logical volume name "a b" is invalid.', BadName),
        (
            "Activation of logical volume vg/pool is prohibited while logical volume vg/pool_tmeta is active.",
            PartsActive,
        ),
        (
            "Activation of logical volume vg/one is prohibited while logical volume vg/pool_tdata is active.",
            PartsActive,
        ),
        (
            "Activation of logical volume vg/one is prohibited while logical volume vg/one_rimage_0 is active.",
            PartsActive,
        ),
        ("Cannot resize logical volume vg/one with active component LV(s).", PartsActive),
        ("Cannot use logical volume vg/one with active component LVs for snapshot origin.", PartsActive),
        ("Thin pool vg-pool-tpool (254:2) already contain thin device with device_id 2.", ThinDeviceLeft),
        ("snapshot: Required device-mapper target(s) not detected in your kernel.", Unsupported),
        ("device-mapper: reload ioctl on  (254:5) failed: Invalid argument", LvmError),
        ("Logical volume vg/already-exists is not a thin pool.", LvmError),
        ("thin_check: execvp failed: not found", LvmError),
    ],
)
def test_what_lvm_says_becomes_a_type(message: str, kind: type[LvmError]) -> None:
    error = errors.explain(COMMAND, 5, [message])
    assert type(error) is kind
    assert (error.command, error.exit_code, error.message) == (COMMAND, 5, message)
    assert str(error) == f"{message} ({COMMAND}: exit code 5)"


def test_the_first_known_message_decides_and_all_are_in_the_error() -> None:
    messages = ['Volume group "vg" not found', "Cannot process volume group vg", "Cannot process volume group vg"]
    error = errors.explain(COMMAND, 5, messages)
    assert type(error) is GroupNotFound
    assert error.message == 'Volume group "vg" not found; Cannot process volume group vg'


@pytest.mark.parametrize(
    ("message", "part", "volume"),
    [
        (
            "Activation of logical volume vg/a-pool is prohibited while logical volume vg/a-pool_tmeta is active.",
            "vg/a-pool_tmeta",
            "",
        ),
        ("Cannot resize logical volume vg/one with active component LV(s).", "", "vg/one"),
        ("Cannot use logical volume vg/one with active component LVs for snapshot origin.", "", "vg/one"),
    ],
)
def test_the_part_that_is_active_is_named_or_else_its_volume(message: str, part: str, volume: str) -> None:
    error = errors.explain(COMMAND, 5, ["Something else", message])
    assert isinstance(error, PartsActive)
    assert (error.part, error.volume) == (part, volume)


def test_the_thin_device_that_is_left_is_named() -> None:
    message = "Thin pool a--b-pool-tpool (254:2) already contain thin device with device_id 17."
    error = errors.explain(COMMAND, 5, ["Failed to process message.", message])
    assert isinstance(error, ThinDeviceLeft)
    assert (error.pool, error.device) == ("a--b-pool-tpool", "17")


def test_silence_is_said() -> None:
    assert errors.explain(COMMAND, 5, []).message == "LVM gave no reason"
