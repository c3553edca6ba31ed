"""What a sandbox shows: its API, and behind it the disks and mounts of its nodes."""

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contract import names, quantity, snapshot
from contract.volume import RETAIN
from daemon.storage.record import VolumeState
from host import mounttable
from kube.records import read_claim
from kube.resources import CAPACITIES, CLAIMS, PODS, SNAPSHOT_CONTENTS, SNAPSHOTS, VOLUMES
from tests.sandbox import mountspace
from tests.sandbox.nodes import Node
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import is_ready
from tests.torture.cluster.cgroups import ControlGroups
from tests.torture.cluster.seen import (
    Seen,
    SeenClaim,
    SeenContent,
    SeenData,
    SeenPod,
    SeenSnapshot,
    SeenVolume,
    lines_of,
)

FILE, LINES = "file", "lines"
_UUID = re.compile(r"[0-9a-f-]{36}\n")
"""What a pod writes into FILE."""
_WRITERS = re.compile(r"(w[0-9]+\n)*")
"""And what it appends to LINES: its name, again and again."""
_STORED = {"loop": ("loop", ".img"), "folder": ("folders", ".folder")}
"""By backend: the folder below that of the data, and how the names in it end."""

Json = dict[str, Any]


async def look(sandbox: Sandbox, groups: ControlGroups, namespace: str, storage_class: str) -> Seen:
    nodes = sandbox.nodes.values()
    api = sandbox.api
    room = {
        item["nodeTopology"]["matchLabels"][names.HOSTNAME_LABEL]: quantity.parse(item["capacity"])
        for item in await api.list(CAPACITIES, names.NAMESPACE)
        if item["storageClassName"] == storage_class
    }
    volumes = {body["metadata"]["name"]: _volume(body) for body in await api.list(VOLUMES)}
    claims = {body["metadata"]["name"]: _claim(body) for body in await api.list(CLAIMS, namespace)}
    pods = {body["metadata"]["name"]: _pod(body, groups) for body in await api.list(PODS, namespace)}
    groups.synchronize({pod.uid for pod in pods.values()})
    snapshots = {body["metadata"]["name"]: _snapshot(body) for body in await api.list(SNAPSHOTS, namespace)}
    contents = {
        body["metadata"]["name"]: seen for body in await api.list(SNAPSHOT_CONTENTS) if (seen := _content(body))
    }
    mounts = {Path(mount.path): mount.device for mount in mounttable.read()}
    return Seen(
        claims=claims,
        pods=pods,
        volumes=volumes,
        data={name: data for node in nodes for name, data in volumes_on(node)},
        mounts=frozenset(
            mounted
            for node in nodes
            for path in mounts
            if path.is_relative_to(node.kubelet_root / "pods") and (mounted := _mounted(path))
        ),
        staged={path.name: number for node in nodes for path, number in mounts.items() if path.parent == node.staging},
        staging_folders=frozenset(path.name for node in nodes for path in node.staging.iterdir()),
        loop_devices=sum(len(list(mountspace.loop_devices(node.data))) for node in nodes),
        room=room,
        capacity={node.hostname: quantity.parse(node.spec.capacity) for node in nodes},
        loop_nodes=frozenset(node.name for node in nodes if node.spec.backend == "loop"),
        snapshots=snapshots,
        contents=contents,
    )


def _mounted(path: Path) -> tuple[str, str] | None:
    """Uid of the pod and name of the volume that is mounted in its folder, by either driver."""
    match path.parts[-5:]:
        case (uid, "volumes", names.CSI_FOLDER, volume, names.CSI_MOUNT):
            return uid, volume
        case (_, uid, "volumes", names.DRIVER_FOLDER, volume):
            return uid, volume
        case _:
            return None


def _volume(body: Json) -> SeenVolume:
    spec, annotations = body["spec"], body["metadata"].get("annotations") or {}
    return SeenVolume(
        claim=(spec.get("claimRef") or {}).get("name", ""),
        phase="Deleted" if "deletionTimestamp" in body["metadata"] else (body.get("status") or {}).get("phase", ""),
        retain=spec["persistentVolumeReclaimPolicy"] == "Retain",
        capacity=quantity.parse(spec["capacity"]["storage"]),
        granted=max(int(annotations.get(name, "0")) for name in (names.GRANTED_ANNOTATION, names.SIZE_ANNOTATION)),
        node=(body["metadata"].get("labels") or {}).get(names.NODE_LABEL, ""),
        attributes=spec.get("volumeAttributesClassName") or "",
        limits=annotations.get(names.IO_LIMITS_ANNOTATION, ""),
    )


def _claim(body: Json) -> SeenClaim:
    status, claim = body.get("status") or {}, read_claim(body)
    step = claim.modify_status + "+" * len(claim.modify_conditions)
    has = (status.get("capacity") or {}).get("storage", "0")
    return SeenClaim(
        claim.phase, claim.volume_name, quantity.parse(has), attributes=claim.current_attributes_class, step=step
    )


def _snapshot(body: Json) -> SeenSnapshot:
    status = body.get("status") or {}
    return SeenSnapshot(status.get("readyToUse") is True, quantity.parse(str(status.get("restoreSize") or "0")))


def _content(body: Json) -> SeenContent | None:
    content = snapshot.read(body)
    if content is None:
        return None
    return SeenContent(content.snapshot_name, content.volume, content.ready, content.deletion_policy == RETAIN)


def _pod(body: Json, groups: ControlGroups) -> SeenPod:
    ready, uid = is_ready(body) and "deletionTimestamp" not in body["metadata"], body["metadata"]["uid"]
    return SeenPod(uid, ready, body["spec"].get("nodeName", ""), groups.limits_of(uid))


def volumes_on(node: Node) -> Iterator[tuple[str, SeenData]]:
    """What lies on a node, with or without a record, and what its file holds."""
    below, suffix = _STORED[node.spec.backend]
    folder = node.data / below
    volumes = {path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}")}
    volumes |= {path.stem for path in folder.glob("*.json")}
    for name in sorted(volumes):
        with contextlib.suppress(OSError, ValueError):  # it goes, or comes, at this moment
            yield name, _data(node, folder, name, suffix)


def _data(node: Node, folder: Path, name: str, suffix: str) -> SeenData:
    data = folder / f"{name}{suffix}"
    record = json.loads((folder / f"{name}.json").read_text())
    size = data.stat().st_size if node.spec.backend == "loop" and data.exists() else int(record.get("size") or 0)
    whole = record.get("state") == VolumeState.READY.value
    file, writers = _read(node, data, name, FILE, _UUID), _read(node, data, name, LINES, _WRITERS)
    return SeenData(node.name, size, str(record.get("policy")), file, lines_of(writers.split()), whole)


def _read(node: Node, data: Path, name: str, file: str, what: re.Pattern[str]) -> str:
    """What it holds that a pod wrote whole. Of a filesystem that is being made there is anything to be read."""
    found = what.match(_shown(node, data, name, file))
    return found[0] if found else ""


def _shown(node: Node, data: Path, name: str, file: str) -> str:
    with contextlib.suppress(OSError):
        return (data / file).read_text()
    staged = node.staging / name
    if any(mount.path == str(staged) for mount in mounttable.read()):
        with contextlib.suppress(OSError):
            return (staged / file).read_text()
        return ""
    done = subprocess.run(["debugfs", "-R", f"cat /{file}", data], capture_output=True, check=False)
    return done.stdout.decode(errors="replace")
