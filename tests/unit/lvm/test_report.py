"""Output as lvm2 2.03.16 printed it, shortened to the fields that are read."""

from typing import Any

import pytest

from host.command import Completed
from lvm import HealthStatus, report
from lvm.allocation import FreeExtents
from lvm.records import Report

STATE = """\
  WARNING: VG vg was previously updated while a PV was missing.
  {
      "report": [
          {
              "vg": [
                  {"vg_name":"vg", "vg_uuid":"zn5XAH", "vg_size":"9651093504", "vg_free":"4194304", "vg_extent_size":"4194304", "vg_tags":"rack=7,ssd", "vg_missing_pv_count":"1", "vg_exported":"", "vg_permissions":"writeable", "vg_systemid":"", "vg_lock_type":"", "vg_allocation_policy":"normal", "vg_mda_size":"1044480", "vg_mda_free":"519680", "max_lv":"0", "lv_count":"4", "vg_seqno":"17"}
              ]
              ,
              "pv": [
                  {"pv_name":"/dev/loop0", "pv_uuid":"MvOjnu", "pv_size":"3217031168", "pv_free":"0", "pv_missing":"", "pv_tags":"", "pv_allocatable":"allocatable"},
                  {"pv_name":"[unknown]", "pv_uuid":"zkqNqi", "pv_size":"3217031168", "pv_free":"4194304", "pv_missing":"missing", "pv_tags":"slow", "pv_allocatable":""}
              ]
              ,
              "lv": [
                  {"lv_name":"one", "lv_uuid":"wJc4DD", "lv_size":"1073741824", "lv_tags":"elastic-local/pv=one,x", "lv_path":"/dev/vg/one", "lv_layout":"linear", "lv_attr":"-wi-a-----", "pool_lv":"", "origin":"", "lv_active":"active", "lv_suspended":"", "lv_device_open":"open", "lv_health_status":"", "data_percent":"", "metadata_percent":"", "lv_metadata_size":"", "lv_snapshot_invalid":"unknown"},
                  {"lv_name":"pool", "lv_uuid":"vKt0el", "lv_size":"8191475712", "lv_tags":"", "lv_path":"", "lv_layout":"thin,pool", "lv_attr":"twi-aotzD-", "pool_lv":"", "origin":"", "lv_active":"active", "lv_suspended":"", "lv_device_open":"", "lv_health_status":"out_of_data", "data_percent":"100.00", "metadata_percent":"10.74", "lv_metadata_size":"8388608", "lv_snapshot_invalid":"unknown"},
                  {"lv_name":"thin", "lv_uuid":"s7PLAE", "lv_size":"109051904", "lv_tags":"", "lv_path":"/dev/vg/thin", "lv_layout":"thin,sparse", "lv_attr":"Vwi-s-tz--", "pool_lv":"pool", "origin":"", "lv_active":"", "lv_suspended":"suspended", "lv_device_open":"unknown", "lv_health_status":"", "data_percent":"", "metadata_percent":"", "lv_metadata_size":"", "lv_snapshot_invalid":"unknown"},
                  {"lv_name":"mirror", "lv_uuid":"KbBvLS", "lv_size":"4194304", "lv_tags":"", "lv_path":"/dev/vg/mirror", "lv_layout":"raid,raid1", "lv_attr":"rwi-a-r-p-", "pool_lv":"", "origin":"", "lv_active":"active", "lv_suspended":"", "lv_device_open":"", "lv_health_status":"partial", "data_percent":"", "metadata_percent":"", "lv_metadata_size":"", "lv_snapshot_invalid":"unknown"}
              ]
              ,
              "pvseg": [
                  {"pv_uuid":"MvOjnu", "pvseg_start":"0", "pvseg_size":"766", "lv_name":"one"},
                  {"pv_uuid":"zkqNqi", "pvseg_start":"0", "pvseg_size":"100", "lv_name":""},
                  {"pv_uuid":"zkqNqi", "pvseg_start":"100", "pvseg_size":"600", "lv_name":"[mirror_rimage_0]"},
                  {"pv_uuid":"zkqNqi", "pvseg_start":"700", "pvseg_size":"66", "lv_name":""}
              ]
              ,
              "seg": [ {"seg_type":"linear"} ]
          }
          ,
          {
              "pv": [
                  {"pv_name":"/dev/loop4", "pv_uuid":"tTGelc", "pv_size":"67108864", "pv_free":"67108864", "pv_missing":"", "pv_tags":"", "pv_allocatable":""}
              ]
          }
      ]
      ,
      "log": [
          {"log_seq_num":"1", "log_type":"warn", "log_message":"WARNING: Not using device /dev/loop7 for PV MvOjnu."},
          {"log_seq_num":"2", "log_type":"warn", "log_message":"WARNING: PV MvOjnu prefers device /dev/loop0 because device name matches previous."},
          {"log_seq_num":"3", "log_type":"warn", "log_message":"WARNING: VG vg is missing PV zkqNqi (last written to /dev/sdq)."},
          {"log_seq_num":"4", "log_type":"status", "log_message":"success"}
      ]
  }
"""  # noqa: E501  the rows are LVM's


def printed(stdout: str = "", stderr: str = "", exit_code: int = 0) -> Completed:
    return Completed(("lvm", "fullreport"), exit_code, stdout, stderr, 0.1)


@pytest.fixture
def state() -> Report:
    return report.state(printed(STATE))


def test_groups_and_devices(state: Report) -> None:
    (group,) = state.groups
    assert (group.name, group.size, group.free, group.extent_size) == ("vg", 9651093504, 4194304, 4194304)
    assert group.tags == {"rack=7", "ssd"}
    assert (group.missing_devices, group.exported) == (1, False)
    assert (group.writable, group.system_id, group.lock_type, group.allocation) == (True, "", "", "normal")
    assert (group.metadata_size, group.metadata_free, group.most_volumes, group.volume_count) == (1044480, 519680, 0, 4)
    assert group.seqno == 17
    assert [(device.path, device.group, device.missing) for device in state.devices] == [
        ("/dev/loop0", "vg", False),
        ("[unknown]", "vg", True),
        ("/dev/loop4", "", False),
    ]


def test_where_free_space_is_and_which_devices_are_in_doubt(state: Report) -> None:
    twice, away, _ = state.devices
    assert (twice.allocatable, twice.areas, twice.duplicates, twice.last_path) == (True, (), ("/dev/loop7",), "")
    assert (away.allocatable, away.areas, away.duplicates, away.last_path) == (False, (100, 66), (), "/dev/sdq")
    (group,) = state.groups
    assert state.free_extents(group) == FreeExtents(((),))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "one",
            {
                "zeroes_new_blocks": False,
                "active": True,
                "open": True,
                "health": HealthStatus.OK,
                "is_thin": False,
                "data_percent": None,
            },
        ),
        (
            "pool",
            {
                "is_thin_pool": True,
                "zeroes_new_blocks": True,
                "is_thin": False,
                "health": HealthStatus.OUT_OF_DATA,
                "data_percent": 100.0,
                "metadata_percent": 10.74,
                "metadata_size": 8388608,
                "path": "",
            },
        ),
        ("thin", {"is_thin": True, "pool": "pool", "active": False, "suspended": True, "open": False}),
        ("mirror", {"health": HealthStatus.PARTIAL, "layout": {"raid", "raid1"}}),
    ],
)
def test_volumes(state: Report, name: str, expected: dict[str, Any]) -> None:
    volume = state.volume("vg", name)
    assert {attribute: getattr(volume, attribute) for attribute in expected} == expected


def test_of_what_is_not_active_nobody_knows_whether_it_is_suspended() -> None:
    """All volumes of a node that booted, unless it activates its groups itself."""
    volume = report.state(printed(STATE.replace('"lv_suspended":"suspended"', '"lv_suspended":"unknown"'))).volume(
        "vg", "thin"
    )
    assert volume
    assert not volume.suspended


def test_a_health_of_a_newer_lvm_is_unknown_and_no_error() -> None:
    newer = report.state(printed(STATE.replace('"partial"', '"on holiday"'))).volume("vg", "mirror")
    assert newer is not None
    assert newer.health is HealthStatus.UNKNOWN


def test_a_node_without_lvm_devices_is_empty() -> None:
    text = '  {\n      "report": [\n      ]\n      ,\n      "log": [\n      ]\n  }\n'
    assert report.state(printed(text)) == Report((), (), ())


@pytest.mark.parametrize("text", ["", "  VG #PV #LV\n  vg   1   2\n", '  {\n      "log": [\n      ]\n  }\n'])
def test_what_is_no_report_is_not_a_node_without_volumes(text: str) -> None:
    """As LVM prints without our lvm.conf: nothing, on a node that it sees no group of."""
    with pytest.raises(ValueError, match="no JSON with a report"):
        report.state(printed(text))


def test_errors_are_those_of_the_log() -> None:
    failed = """\
  Using default stripesize 65536.
  {
      "log": [
          {"log_seq_num":"1", "log_type":"warn", "log_message":"WARNING: all is not well"},
          {"log_seq_num":"2", "log_type":"error", "log_message":"Logical Volume \\"one\\" already exists in volume group \\"vg\\""},
          {"log_seq_num":"3", "log_type":"status", "log_message":"failure"}
      ]
  }
"""  # noqa: E501
    assert report.errors(printed(failed, stderr="  noise\n", exit_code=5)) == [
        'Logical Volume "one" already exists in volume group "vg"'
    ]


def test_a_command_line_that_lvm_does_not_take_has_no_log() -> None:
    said = '  Names including "_tdata" are reserved.\n  Run `lvcreate --help\' for more information.\n'
    assert report.errors(printed(stderr=said, exit_code=3))[0] == 'Names including "_tdata" are reserved.'


def test_what_a_command_had_done_before_it_failed_does_not_hide_the_error() -> None:
    """Without a log it prints that behind the empty object: an lvchange whose disk fails when it writes."""
    said = "  Error writing device /dev/sdb at 95232 length 3584.\n  Failed to write VG vg.\n"
    done = printed("  {\n  }\n  Logical volume vg/one changed.\n", stderr=said, exit_code=5)
    assert report.errors(done) == ["Error writing device /dev/sdb at 95232 length 3584.", "Failed to write VG vg."]


def test_a_log_that_was_cut_off_does_not_hide_the_error() -> None:
    done = printed('  {\n      "log": [\n          {"log_seq_num":"1", "lo', stderr="  Killed.\n", exit_code=-9)
    assert report.errors(done) == ["Killed."]
