"""Which driver a node gets, and how it comes into the kubelet's plugin directory: whole or not at all."""

import fcntl
import os
import platform
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from contract.names import DRIVER_FOLDER, DRIVER_NAME
from flexdriver import bundle

PLUGIN_DIRECTORY = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec"
"""The kubelet's default volumePluginDir."""


@dataclass(frozen=True)
class Driver:
    description: str
    """What it is, for people."""
    executable: bytes


def native(machine: str) -> Driver | None:
    """The program for a machine as `uname -m` names it; None when it was not built for that one (`make callout`)."""
    program = resources.files("flexdriver") / "native" / "build" / f"callout.{machine}"
    return Driver(f"native, for {machine}", program.read_bytes()) if program.is_file() else None


def choose(machine: str = "", interpreter: str = bundle.INTERPRETER) -> Driver:
    """The native driver; where it was not built for the machine (default: this one), the Python one, run by the node's
    `interpreter`."""
    machine = machine or platform.machine()
    return native(machine) or Driver(
        f"for {interpreter}, because there is no native one for {machine}", bundle.build(interpreter)
    )


def installed(driver: Driver, plugin_directory: Path) -> bool:
    """Whether this very driver stands there. Raises OSError."""
    target = place(plugin_directory)
    return target.is_file() and target.read_bytes() == driver.executable and os.access(target, os.X_OK)


def install(driver: Driver, plugin_directory: Path) -> Path:
    """Put the driver where the kubelet looks for it, and have the kubelet look. Raises OSError.

    The kubelet watches the folder and runs what it finds at once, but ignores names that start with a dot: so the file
    is written whole under such a name, made durable, and renamed. A lock keeps two that install at once from writing
    the one draft: an old daemon and its successor, or a daemon and a person.
    """
    target = place(plugin_directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        draft = target.with_name(f".{DRIVER_NAME}")
        with draft.open("wb") as file:
            file.write(driver.executable)
            file.flush()
            os.fchmod(file.fileno(), 0o755)
            os.fsync(file.fileno())
        draft.rename(target)
        os.fsync(folder)
    finally:
        os.close(folder)
    return target


def place(plugin_directory: Path) -> Path:
    """Where the kubelet looks for the driver."""
    return plugin_directory / DRIVER_FOLDER / DRIVER_NAME
