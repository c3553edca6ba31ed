"""What lies on a node and is not ours, or is ours and damaged: told of, and never touched."""

import hashlib
from pathlib import Path

import aiohttp

from contract import names
from daemon.backends.recordfiles import RESERVE
from kube.resources import CLAIMS, PODS, VOLUMES
from tests.sandbox.nodes import Node
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

_DAMAGED = '{"record": "1", "pv": "pvc-of-old", "uid": "'


async def test_what_others_left_in_the_folder_stays_through_everything(shaken: Namespace) -> None:
    node = shaken.sandbox.nodes["node-a"]
    left = {
        "letter.img": b"to grandmother",
        "pvc-00000000-0000-0000-0000-000000000000.img": b"\0" * 8192,
        "notes.txt": b"do not delete",
        "somebody.json": b'{"record": "of somebody"}',
        "pvc-of-old.json": _DAMAGED.encode(),
        "pvc-of-old.img": b"precious",
    }
    files = [node.data / "loop" / name for name in left]
    for file, content in zip(files, left.values(), strict=True):
        file.write_bytes(content)
    try:
        before = _fingerprints(files)
        await node.daemon.restart()
        await _until_counted(node, foreign=2, damaged=2)
        volume = await _live_and_die(shaken, node)
        await node.daemon.restart()
        assert _fingerprints(files) == before
        assert {path.name for path in (node.data / "loop").iterdir() if path not in files} <= {RESERVE}
        assert volume not in node.daemon.output
    finally:
        for file in files:
            file.unlink()


async def test_a_volume_whose_record_is_damaged_is_refused_until_it_is_restored(shaken: Namespace) -> None:
    node = shaken.sandbox.nodes["node-a"]
    await shaken.create(CLAIMS, claim("data", "16Mi"))
    await _start(shaken, node, script="echo kept > /data/file; exec sleep infinity")
    uid = (await shaken.until_running("user"))["metadata"]["uid"]
    volume = (await shaken.until_bound("data"))["metadata"]["name"]
    await until((node.volume_folder(uid, volume) / "file").exists, what="the pod has written")
    await shaken.delete(PODS, "user")
    await shaken.until_gone(PODS, "user")

    image, record = (node.data / "loop" / f"{volume}.{suffix}" for suffix in ("img", "json"))
    sound, before = record.read_bytes(), _fingerprints([image])
    record.write_bytes(sound[: len(sound.rstrip()) // 2])
    damaged = _fingerprints([record])
    try:
        await node.daemon.restart()
        await _start(shaken, node, script="cat /data/file; exec sleep infinity")
        message = await shaken.until_event("user", "FailedMount", "its record can't be relied on")
        assert "administrator has to look at it" in message
        assert _fingerprints([image, record]) == before | damaged
    finally:
        record.write_bytes(sound)
    await node.daemon.restart()
    pod_uid = (await shaken.until_running("user", seconds=60))["metadata"]["uid"]
    log = node.container_log(pod_uid, "main")
    await until(lambda: log.read_text() == "kept\n", what="the pod reads what the one before it wrote")


async def _start(namespace: Namespace, node: Node, script: str = "") -> None:
    selector = {names.HOSTNAME_LABEL: node.hostname}
    await namespace.create(PODS, pod("user", {"/data": "data"}, script=script, nodeSelector=selector))


async def _live_and_die(namespace: Namespace, node: Node) -> str:
    """A volume on the node, from its claim to its end; its name."""
    await namespace.create(CLAIMS, claim("data", "16Mi"))
    await _start(namespace, node)
    await namespace.until_running("user")
    volume: str = (await namespace.until_bound("data"))["metadata"]["name"]
    for resource, name in ((PODS, "user"), (CLAIMS, "data")):
        await namespace.delete(resource, name)
        await namespace.until_gone(resource, name)
    await namespace.until_gone(VOLUMES, volume)
    return volume


def _fingerprints(files: list[Path]) -> dict[str, tuple[str, int]]:
    """Content and time of the last change."""
    return {file.name: (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns) for file in files}


async def _until_counted(node: Node, *, foreign: int, damaged: int) -> None:
    """The daemon's metrics say how many volumes it found that it will not touch."""

    async def counted() -> bool:
        async with aiohttp.ClientSession() as session, session.get(f"{node.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        wanted = {"foreign": foreign, "damaged": damaged}
        return all(f'elastic_local_volumes{{state="{state}"}} {count:.1f}' in lines for state, count in wanted.items())

    await until(counted, what=f"{foreign} foreign and {damaged} damaged volumes are counted")
