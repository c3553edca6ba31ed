"""Static volumes of a node of the sandbox: what its administrator does there, and what the cluster then has."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from daemon.static.volume import volume_name
from host import loopdevice
from kube.errors import NotFound
from kube.resources import EVENTS, VOLUMES
from tests.sandbox.apiserver.guard import Request
from tests.sandbox.nodes import Node
from tests.sandbox.sandbox import DAEMON_ACCOUNT, Sandbox
from tests.unit.deploy.rendered import DEPLOY
from tests.waiting import until

Json = dict[str, Any]

STATIC = DEPLOY / "overlays" / "static"
CLASS = "local-disks"
"""The StorageClass of that overlay."""
MIB = 1 << 20


def configure(node: Node, key: str, value: object) -> None:
    """One key of its configuration, from now on."""
    draft = node.folder / "draft"
    draft.write_text(yaml.safe_dump(value))
    draft.rename(node.static_config / key)


def folder(node: Node, name: str) -> Path:
    made = node.disks / name
    made.mkdir(exist_ok=True)
    return made


def served(place: Path, **more: Any) -> Json:
    """The configuration of a class whose volumes stand in this folder."""
    return {"hostDir": str(place), "mountDir": str(place), **more}


def mount(place: Path, source: Path | None = None, size: int = 16 * MIB) -> Path:
    """A device on a folder that is made for it, or so much memory."""
    place.mkdir(exist_ok=True)
    what = [source] if source else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
    subprocess.run(["mount", *what, place], check=True)
    return place


def unmount(place: Path) -> None:
    subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def disk(image: Path, size: int, *, filesystem: str = "") -> Iterator[Path]:
    """A block device of that size. This process does not have it open: the daemon would see that it is in use."""
    with image.open("wb") as file:
        file.truncate(size)
    device = loopdevice.attach(image)
    try:
        if filesystem:
            subprocess.run([f"mkfs.{filesystem}", "-q", device], check=True)
        yield device
    finally:
        loopdevice.detach(device)


class Offered:
    """The PersistentVolume of an entry, whichever it is by now."""

    def __init__(self, sandbox: Sandbox, node: Node, entry: str, storage_class: str = CLASS) -> None:
        self._sandbox = sandbox
        self.name = volume_name(entry, node.name, storage_class)

    async def body(self) -> Json | None:
        try:
            return await self._sandbox.api.get(VOLUMES, self.name)
        except NotFound:
            return None

    async def until(self, phase: str, *, not_uid: str = "") -> Json:
        """As it is in that phase, and made anew if the UID of an earlier one is given."""

        async def so() -> Json | None:
            body = await self.body()
            if body and body["status"]["phase"] == phase and body["metadata"]["uid"] != not_uid:
                return body
            return None

        body: Json = await until(so, what=f"{self.name} is {phase}")
        return body

    async def until_event(self, reason: str, text: str = "") -> str:
        return await until_event(self._sandbox, self.name, reason, text)


async def until_event(sandbox: Sandbox, name: str, reason: str, text: str = "") -> str:
    """The message of an event on an object that is in no namespace."""

    async def reported() -> str | None:
        events = await sandbox.api.list(EVENTS, "default", field_selector=f"involvedObject.name={name}")
        return next((each["message"] for each in events if each["reason"] == reason and text in each["message"]), None)

    message: str = await until(reported, what=f"an event {reason} on {name} with {text!r}")
    return message


def asked_of_volumes(sandbox: Sandbox, *verbs: str) -> list[Request]:
    """What daemons asked for about PersistentVolumes."""
    return [
        request
        for request in sandbox.requests()
        if request.user.endswith(f":{DAEMON_ACCOUNT}")
        and request.asked.resource == "persistentvolumes"
        and request.asked.verb in verbs
    ]
