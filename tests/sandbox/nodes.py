"""A node of the sandbox: its folders, its kubelet and its daemon. Several share this machine."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from contract import names
from contract.volume import CSI, FLEX_VOLUME
from tests.sandbox.kubelet.layout import FOLDER_MODE, HOST_PATH_MODE, make_folders
from tests.sandbox.programs import Program, answers, says

VOLUME_SOURCE_VARIABLE = "SANDBOX_VOLUME_SOURCE"
"""Of the environment: which volumes the classes of a sandbox make that don't say so, `flexVolume` or `csi`."""

COMMAND = str(Path(sys.executable).with_name("elastic-local"))
_DRIVER_KINDS = {"loop": "LOOP", "folder": "BINDMOUNT", "lvm": "LVM"}


def default_source() -> str:
    """See VOLUME_SOURCE_VARIABLE. Unless it is set, that of the shipped classes."""
    return os.environ.get(VOLUME_SOURCE_VARIABLE, FLEX_VOLUME)


@dataclass(frozen=True)
class NodeSpec:
    name: str
    hostname: str = ""
    """Value of the hostname label. Empty: as the name, which on many clouds it is not."""
    backend: Literal["loop", "folder", "lvm"] = "loop"
    capacity: str = "1Gi"
    """What the node's volumes may take together, a Kubernetes quantity. On LVM the group says it."""
    group: str = ""
    """On LVM: the volume group. There is one LVM on a machine, so at most one node of a sandbox has any."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """More of its daemon's environment."""
    device_classes: Mapping[str, str] = field(default_factory=dict)
    """What the volumes of each of its other device classes, loop files all of them, may take. Empty: a class that the
    node is told of and lacks."""
    static: bool = False
    """Whether its daemon offers static volumes too: what stands in `disks`, as told in `static_config`."""


class Node:
    """The programs are `kubelet` and `daemon`."""

    def __init__(
        self,
        spec: NodeSpec,
        folder: Path,
        kubelet_kubeconfig: Path,
        daemon_kubeconfig: Path,
        logs: Path,
        lifeline: int,
        port: int,
        kubelet_port: int,
    ) -> None:
        """`port`: of its daemon's metrics and health. `kubelet_port`: of its kubelet's metrics."""
        self.name = spec.name
        self.hostname = spec.hostname or spec.name
        self.spec = spec
        self.folder = folder
        self.kubelet_root = folder / "kubelet"
        self.plugins = folder / "plugins"
        self.staging = folder / "staging"
        self.data = folder / "data"
        self.socket = folder / "socket"
        self.disks = folder / "disks"
        self.device_classes = folder / "device-classes.yaml"
        self.static_config = folder / "static-config"
        self.driver = self.plugins / names.DRIVER_FOLDER / names.DRIVER_NAME
        self._address = f"127.0.0.1:{port}"
        self.url = f"http://{self._address}"
        self._kubelet_port = kubelet_port
        self.kubelet_metrics = f"http://127.0.0.1:{kubelet_port}/metrics"
        self.kubelet = self._kubelet(kubelet_kubeconfig, logs, lifeline)
        self.daemon = self._daemon(daemon_kubeconfig, logs)

    def make_folders(self) -> None:
        """Those of the manifests' host paths, with the modes that `DirectoryOrCreate` gives them, so that the daemon
        finds what it finds at a user's; and the kubelet's own."""
        static = (self.disks, self.static_config) if self.spec.static else ()
        for path in (self.plugins, self.staging, self.data, self.socket.parent, *static):
            make_folders(path, HOST_PATH_MODE)
        make_folders(self.kubelet_root, FOLDER_MODE)
        classes = {}
        for name, capacity in self.spec.device_classes.items():
            classes[name] = {"kind": "LOOP", "folder": str(self.class_folder(name)), "capacity": capacity or None}
            if capacity:
                make_folders(self.class_folder(name), HOST_PATH_MODE)
        if classes:
            self.device_classes.write_text(yaml.safe_dump({"classes": classes}))

    def class_folder(self, device_class: str) -> Path:
        """Where the files of a device class are."""
        return self.folder / f"class-{device_class}"

    def volume_folder(self, pod_uid: str, name: str, source: str = "") -> Path:
        """Where the kubelet has our driver mount the volume `name` for a pod, by the source of its PersistentVolume:
        that of the sandbox's classes, unless told."""
        volumes = self.kubelet_root / "pods" / pod_uid / "volumes"
        return (
            volumes / names.CSI_FOLDER / name / names.CSI_MOUNT
            if (source or default_source()) == CSI
            else volumes / names.DRIVER_FOLDER / name
        )

    def container_log(self, pod_uid: str, container: str) -> Path:
        return self.kubelet_root / "pods" / pod_uid / "containers" / container / "log"

    def _kubelet(self, kubeconfig: Path, logs: Path, lifeline: int) -> Program:
        return Program(
            name=f"kubelet of {self.name}",
            argv=[
                *(sys.executable, "-m", "tests.sandbox.kubelet"),
                *("--node", self.name),
                *("--hostname", self.hostname),
                *("--kubeconfig", str(kubeconfig)),
                *("--root", str(self.kubelet_root)),
                *("--plugin-dir", str(self.plugins)),
                *("--metrics-port", str(self._kubelet_port)),
                *("--lifeline", str(lifeline)),
                *("--env", f"{names.SOCKET_VARIABLE}={self.socket}"),
            ],
            log=logs / f"kubelet-{self.name}.log",
            ready=says("is ready"),
            descriptors=[lifeline],
        )

    def _daemon(self, kubeconfig: Path, logs: Path) -> Program:
        static = {
            "STATIC_CONFIG_DIR": str(self.static_config),
            "CONFIG_SYNC_PERIOD": "100ms",
            # What happens in a test happens because something woke the daemon.
            "DISCOVERY_PERIOD": "1h",
        }
        return Program(
            name=f"daemon of {self.name}",
            argv=[COMMAND, "daemon"],
            log=logs / f"daemon-{self.name}.log",
            ready=answers(f"{self.url}/readyz"),
            environment={
                "NODE_NAME": self.name,
                "DRIVER_KIND": _DRIVER_KINDS[self.spec.backend],
                "CAPACITY": self.spec.capacity,
                "REFRESH_PERIOD": "1s",
                names.SOCKET_VARIABLE: str(self.socket),
                "STAGING_DIR": str(self.staging),
                "KUBELET_ROOT": str(self.kubelet_root),
                "PLUGIN_DIR": str(self.plugins),
                "DATA_DIR": str(self.data),
                "LISTEN_ADDRESS": self._address,
                "KUBECONFIG": str(kubeconfig),
                **({"LVM_VOLUME_GROUP": self.spec.group} if self.spec.group else {}),
                **({"DEVICE_CLASSES_FILE": str(self.device_classes)} if self.spec.device_classes else {}),
                **(static if self.spec.static else {}),
                **self.spec.settings,
            },
        )
