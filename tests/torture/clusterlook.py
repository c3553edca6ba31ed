"""What a sandbox shows: its API, and behind it the disks and mounts of its nodes."""

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contract import names, quantity
from host import mounttable
from kube.resources import CAPACITIES, CLAIMS, PODS, VOLUMES
from tests.sandbox import mountspace
from tests.sandbox.nodes import Node
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import is_ready
from tests.torture.clustermodel import Seen, SeenClaim, SeenData, SeenPod, SeenVolume

FILE = "file"
_UUID = re.compile(r"[0-9a-f-]{36}\n")
"""What a pod writes there."""
_STORED = {"loop": ("loop", ".img"), "folder": ("folders", ".folder")}
"""By backend: the folder below that of the data, and how the names in it end."""

Json = dict[str, Any]


async def look(sandbox: Sandbox, namespace: str, storage_class: str) -> Seen:
    nodes = sandbox.nodes.values()
    api = sandbox.api
    room = {
        item["nodeTopology"]["matchLabels"][names.HOSTNAME_LABEL]: quantity.parse(item["capacity"])
        for item in await api.list(CAPACITIES, names.NAMESPACE)
        if item["storageClassName"] == storage_class
    }
    volumes = {body["metadata"]["name"]: _volume(body) for body in await api.list(VOLUMES)}
    claims = {body["metadata"]["name"]: _claim(body) for body in await api.list(CLAIMS, namespace)}
    pods = {body["metadata"]["name"]: _pod(body) for body in await api.list(PODS, namespace)}
    paths = [Path(mount.path) for mount in mounttable.read()]
    return Seen(
        claims=claims,
        pods=pods,
        volumes=volumes,
        data={name: data for node in nodes for name, data in volumes_on(node)},
        mounts=frozenset(
            mounted
            for node in nodes
            for path in paths
            if path.is_relative_to(node.kubelet_root / "pods") and (mounted := _mounted(path))
        ),
        staged=frozenset(path.name for node in nodes for path in paths if path.parent == node.staging),
        staging_folders=frozenset(path.name for node in nodes for path in node.staging.iterdir()),
        loop_devices=sum(len(list(mountspace.loop_devices(node.data))) for node in nodes),
        room=room,
        capacity={node.hostname: quantity.parse(node.spec.capacity) for node in nodes},
        loop_nodes=frozenset(node.name for node in nodes if node.spec.backend == "loop"),
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
    )


def _claim(body: Json) -> SeenClaim:
    status = body.get("status") or {}
    has = (status.get("capacity") or {}).get("storage", "0")
    return SeenClaim(status.get("phase", ""), body["spec"].get("volumeName", ""), quantity.parse(has))


def _pod(body: Json) -> SeenPod:
    ready = is_ready(body) and "deletionTimestamp" not in body["metadata"]
    return SeenPod(body["metadata"]["uid"], ready, body["spec"].get("nodeName", ""))


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
    return SeenData(node.name, size, str(record.get("policy")), _file(node, data, name))


def _file(node: Node, data: Path, name: str) -> str:
    with contextlib.suppress(OSError):
        return (data / FILE).read_text()
    staged = node.staging / name
    if any(mount.path == str(staged) for mount in mounttable.read()):
        with contextlib.suppress(OSError):
            return (staged / FILE).read_text()
        return ""
    shown = subprocess.run(["debugfs", "-R", f"cat /{FILE}", data], capture_output=True, text=True, check=False)
    # Of a filesystem that is being made it says on stdout what it found.
    return shown.stdout if _UUID.fullmatch(shown.stdout) else ""
