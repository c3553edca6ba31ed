"""A container as a process of this machine: started, found again by a later kubelet, stopped.

What is known of one stands in its folder (shim.py writes it), so that a kubelet that starts finds what runs.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.sandbox.kubelet import shim
from tests.sandbox.kubelet.layout import FOLDER_MODE, make_folders

_SHIM = Path(shim.__file__)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Bind:
    """A volume at its place in the container."""

    source: Path
    target: str
    read_only: bool


@dataclass(frozen=True)
class Device:
    """A device of the node at its place in the container."""

    source: Path
    target: str


@dataclass(frozen=True)
class Ended:
    exit_code: int
    reason: str
    message: str = ""


def specification(
    pod: dict[str, Any], container: dict[str, Any], folder: Path, binds: list[Bind], devices: list[Device]
) -> dict[str, Any]:
    """What the shim needs to know. The image is ignored: the host's programs are what there is to run."""
    security = (pod["spec"].get("securityContext") or {}) | (container.get("securityContext") or {})
    groups = list(security.get("supplementalGroups") or [])
    if security.get("fsGroup") is not None:
        groups.append(int(security["fsGroup"]))
    variables = {item["name"]: item.get("value") or "" for item in container.get("env") or []}
    return {
        "folder": str(folder),
        "argv": [*(container.get("command") or []), *(container.get("args") or [])] or ["sleep", "infinity"],
        "environment": {"PATH": _PATH, "HOSTNAME": pod["metadata"]["name"], "HOME": "/root"} | variables,
        "workdir": container.get("workingDir") or "/",
        "binds": [{"source": str(bind.source), "target": bind.target, "read_only": bind.read_only} for bind in binds],
        "devices": [{"source": str(device.source), "target": device.target} for device in devices],
        "user": security.get("runAsUser"),
        "group": security.get("runAsGroup"),
        "groups": groups,
    }


class Container:
    """One run of one container, started by this kubelet or by one before it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def start(self, spec: dict[str, Any], lifeline: int) -> None:
        """Start it and wait until it runs or has failed to. `lifeline`: file descriptor, see shim.py."""
        make_folders(self.folder, FOLDER_MODE)
        for name in ("pid", "exit", "start-error"):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / "spec.json").write_text(json.dumps(spec))
        errors = os.open(self.folder / "shim-errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                str(_SHIM),
                str(self.folder),
                str(lifeline),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd="/",
                pass_fds=[lifeline],
                start_new_session=True,
            )
        finally:
            os.close(errors)
        while process.returncode is None and not (self.folder / "pid").exists():
            await asyncio.sleep(0.005)

    @property
    def started(self) -> bool:
        return (self.folder / "spec.json").exists()

    @property
    def ended(self) -> Ended | None:
        """How it ended, or None while it runs."""
        try:
            code = int((self.folder / "exit").read_text())
        except FileNotFoundError:
            return None if self._pidfd_exists() else Ended(137, "ContainerStatusUnknown", "the container is gone")
        with contextlib.suppress(FileNotFoundError):
            return Ended(code, "StartError", (self.folder / "start-error").read_text())
        # A signal ends a container with 128 and its number, as a shell and as containerd say it.
        return Ended(128 - code if code < 0 else code, "Completed" if code == 0 else "Error")

    async def wait(self) -> Ended:
        """Wait until it has ended. Works for a process that another kubelet started."""
        descriptor = self._pidfd()
        if descriptor is not None:
            ended = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(descriptor, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
        ended_now = self.ended
        assert ended_now is not None
        return ended_now

    async def stop(self, grace: float) -> None:
        """SIGTERM, `grace` seconds, SIGKILL."""
        if self.ended:
            return
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.wait(), grace)
        except TimeoutError:
            self._signal(signal.SIGINT)  # the shim kills, and lives on to write down how it ended
            await self.wait()

    def _pidfd(self) -> int | None:
        """A descriptor of the shim while it lives. The folder's name in its arguments tells it from a later process
        with the same number."""
        try:
            pid = int((self.folder / "pid").read_text())
            descriptor = os.pidfd_open(pid)
        except (FileNotFoundError, ProcessLookupError):
            return None
        try:
            ours = str(self.folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            ours = False
        if not ours:
            os.close(descriptor)
            return None
        return descriptor

    def _pidfd_exists(self) -> bool:
        descriptor = self._pidfd()
        if descriptor is None:
            return False
        os.close(descriptor)
        return True

    def _signal(self, number: signal.Signals) -> None:
        descriptor = self._pidfd()
        if descriptor is None:
            return
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)
