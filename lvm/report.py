"""Reading what LVM prints: its JSON reports into records, its command log into messages.

Fields are asked for by name, so that a newer LVM with more of them changes nothing.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from host.command import Completed
from lvm.records import HealthStatus, LogicalVolume, PhysicalVolume, Report, VolumeGroup

Row = dict[str, str]

_GROUP_FIELDS = (
    "vg_name",
    "vg_uuid",
    "vg_size",
    "vg_free",
    "vg_extent_size",
    "vg_tags",
    "vg_missing_pv_count",
    "vg_exported",
    "vg_permissions",
    "vg_systemid",
    "vg_lock_type",
    "vg_allocation_policy",
    "vg_mda_size",
    "vg_mda_free",
    "max_lv",
    "lv_count",
    "vg_seqno",
)
_DEVICE_FIELDS = ("pv_name", "pv_uuid", "pv_size", "pv_free", "pv_missing", "pv_tags", "pv_allocatable")
_AREA_FIELDS = ("pv_uuid", "pvseg_start", "pvseg_size", "lv_name")
_VOLUME_FIELDS = (
    "lv_name",
    "lv_uuid",
    "lv_size",
    "lv_tags",
    "lv_path",
    "lv_layout",
    "lv_attr",
    "pool_lv",
    "origin",
    "lv_active",
    "lv_suspended",
    "lv_device_open",
    "lv_health_status",
    "data_percent",
    "metadata_percent",
    "lv_metadata_size",
    "lv_snapshot_invalid",
)

FULL_REPORT = (
    "fullreport",
    # Groups that are another host's, or shared by several: they are reported, and not taken for missing.
    "--foreign",
    "--shared",
    "--configreport=vg",
    f"--options={','.join(_GROUP_FIELDS)}",
    "--configreport=pv",
    f"--options={','.join(_DEVICE_FIELDS)}",
    "--configreport=lv",
    f"--options={','.join(_VOLUME_FIELDS)}",
    # Segments can't be left out of a full report, only kept short.
    "--configreport=seg",
    "--options=seg_type",
    "--configreport=pvseg",
    f"--options={','.join(_AREA_FIELDS)}",
)
"""The command that reads the state of the whole node."""

_ZEROING = 7
"""Place of the letter in lv_attr, lvs(8). The field `zero` is one of segments, which a full report can't be given."""

_OVERFLOWED = "snapshot invalid"
"""What lv_snapshot_invalid says of one. Of what is no snapshot it says "unknown"."""
_SUSPENDED = "suspended"
"""What lv_suspended says of one. Of what is not active it says "unknown"."""

_DUPLICATE = re.compile(r"Not using device (\S+) for PV ([A-Za-z0-9-]+)")
_MISSING = re.compile(r"is missing PV ([A-Za-z0-9-]+) \(last written to (\S+)\)")
"""LVM reports a device that it finds twice, and where a missing one was, in warnings only."""

_OBJECT = re.compile(r"^\s*\{\s*$", re.MULTILINE)


def state(completed: Completed) -> Report:
    """The state of the node from the output of FULL_REPORT. Each element of the report is a group with all that is in
    it; devices in no group are in an element without one. Raises ValueError for what is no report: that is not a node
    without volumes."""
    groups: list[VolumeGroup] = []
    volumes: list[LogicalVolume] = []
    devices: list[PhysicalVolume] = []
    document = _document(completed)
    if "report" not in document:
        raise ValueError(f"it is no JSON with a report: {completed.stdout[:200]!r}")
    warnings = [row["log_message"] for row in document.get("log", [])]
    duplicates = _duplicates(warnings)
    last_paths = {match[1]: match[2] for match in map(_MISSING.search, warnings) if match}
    for part in document["report"]:
        rows = part.get("vg", [])
        name = rows[0]["vg_name"] if rows else ""
        groups.extend(_group(row) for row in rows if row["vg_name"])
        volumes.extend(_volume(name, row) for row in part.get("lv", []))
        areas = _free_areas(part.get("pvseg", []))
        devices.extend(
            replace(
                _device(name, row),
                areas=areas.get(row["pv_uuid"], ()),
                duplicates=duplicates.get(row["pv_uuid"], ()),
                last_path=last_paths.get(row["pv_uuid"], "") if row["pv_missing"] else "",
            )
            for row in part.get("pv", [])
        )
    return Report(tuple(groups), tuple(volumes), tuple(devices))


def errors(completed: Completed) -> list[str]:
    """The error messages of a failed command. A command line that LVM does not understand leaves no log: then it is
    all that stands on stderr."""
    try:
        rows = _document(completed).get("log", [])
    except ValueError:
        rows = []  # it was killed while it wrote them
    logged = [row["log_message"] for row in rows if row["log_type"] == "error"]
    return logged or [line.strip() for line in completed.stderr.splitlines() if line.strip()]


def _document(completed: Completed) -> dict[str, Any]:
    """The JSON object in the output. Some commands print a remark before it, or what they have done behind it."""
    start = _OBJECT.search(completed.stdout)
    if start is None:
        return {}
    document: dict[str, Any]
    document, _ = json.JSONDecoder().raw_decode(completed.stdout[start.start() :].lstrip())
    return document


def _duplicates(warnings: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Paths that LVM leaves aside, by uuid of the device."""
    paths_by_uuid: dict[str, tuple[str, ...]] = {}
    for warning in warnings:
        if match := _DUPLICATE.search(warning):
            path, uuid = match.groups()
            paths_by_uuid[uuid] = tuple(dict.fromkeys((*paths_by_uuid.get(uuid, ()), path)))
    return paths_by_uuid


def _free_areas(rows: list[Row]) -> dict[str, tuple[int, ...]]:
    """Extents of each free area, by uuid of the device. What holds no volume is free."""
    sizes: dict[str, list[int]] = {}
    for row in rows:
        if not row["lv_name"]:
            sizes.setdefault(row["pv_uuid"], []).append(int(row["pvseg_size"]))
    return {uuid: tuple(areas) for uuid, areas in sizes.items()}


def _group(row: Row) -> VolumeGroup:
    return VolumeGroup(
        name=row["vg_name"],
        uuid=row["vg_uuid"],
        size=int(row["vg_size"]),
        free=int(row["vg_free"]),
        extent_size=int(row["vg_extent_size"]),
        tags=_words(row["vg_tags"]),
        missing_devices=int(row["vg_missing_pv_count"]),
        exported=bool(row["vg_exported"]),
        writable=row["vg_permissions"] == "writeable",
        system_id=row["vg_systemid"],
        lock_type=row["vg_lock_type"],
        allocation=row["vg_allocation_policy"],
        metadata_size=int(row["vg_mda_size"] or 0),
        metadata_free=int(row["vg_mda_free"] or 0),
        most_volumes=int(row["max_lv"] or 0),
        volume_count=int(row["lv_count"] or 0),
        seqno=int(row["vg_seqno"] or 0),
    )


def _device(group: str, row: Row) -> PhysicalVolume:
    return PhysicalVolume(
        path=row["pv_name"],
        uuid=row["pv_uuid"],
        group=group,
        size=int(row["pv_size"]),
        free=int(row["pv_free"]),
        missing=bool(row["pv_missing"]),
        tags=_words(row["pv_tags"]),
        allocatable=bool(row["pv_allocatable"]),
    )


def _volume(group: str, row: Row) -> LogicalVolume:
    return LogicalVolume(
        name=row["lv_name"],
        group=group,
        uuid=row["lv_uuid"],
        size=int(row["lv_size"]),
        tags=_words(row["lv_tags"]),
        path=row["lv_path"],
        layout=_words(row["lv_layout"]),
        pool=row["pool_lv"],
        origin=row["origin"],
        zeroes_new_blocks=row["lv_attr"][_ZEROING : _ZEROING + 1] == "z",
        active=row["lv_active"].startswith("active"),
        suspended=row["lv_suspended"] == _SUSPENDED,
        open=row["lv_device_open"] == "open",
        health=_health(row["lv_health_status"]),
        data_percent=_percent(row["data_percent"]),
        metadata_percent=_percent(row["metadata_percent"]),
        metadata_size=int(row["lv_metadata_size"] or 0),
        overflowed=row["lv_snapshot_invalid"] == _OVERFLOWED,
    )


def _health(text: str) -> HealthStatus:
    try:
        return HealthStatus(text)
    except ValueError:
        return HealthStatus.UNKNOWN


def _percent(text: str) -> float | None:
    return float(text) if text else None


def _words(text: str) -> frozenset[str]:
    return frozenset(word for word in text.split(",") if word)
