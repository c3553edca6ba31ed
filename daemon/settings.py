"""The settings of one node's daemon: read once, checked whole, before anything is touched.

The names are those of the environment, the same ones that the command's options carry, so that a manifest, a shell and
an error message speak of one thing. A wrong value ends the program at its start with the variable's name: a daemon that
guesses would make volumes in the wrong place.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from contract import names, parameters, quantity
from contract.parameters import DEFAULT_DEVICE_CLASS
from daemon.cluster.startuptaint import taint_key
from daemon.static import configuration as static_configuration
from daemon.static.configuration import ReservedFolders, StaticSettings
from daemon.storage import deviceclasses
from daemon.storage.deviceclasses import BINDMOUNT, DRIVER_KINDS, LOOP, LVM, THIN_POOL, DeviceClass
from flexdriver import installation
from service.environment import (
    LOG_FORMATS,
    LOG_LEVELS,
    Environment,
    SettingsError,
    address,
    one_of,
    period,
    span,
    truth,
)
from service.rootsocket import LONGEST_PATH
from service.yamldecoder import DecodeError


@dataclass(frozen=True)
class Settings:
    """See the table in the README. Sizes in bytes."""

    node_name: str
    driver_kind: str = LVM
    lvm_volume_group: str = "elastic-local-vg"
    lvm_use_thin_volumes: bool = False
    lvm_thin_pool: str = THIN_POOL
    socket: Path = Path(names.SOCKET)
    staging_dir: Path = Path("/mnt/storage")
    kubelet_root: Path = Path("/var/lib/kubelet")
    plugin_dirs: tuple[Path, ...] = (Path(installation.PLUGIN_DIRECTORY),)
    """The kubelet's --volume-plugin-dir. Several, where the nodes of a cluster have different ones."""
    csi: bool = True
    """Whether the kubelet gets the CSI driver."""
    flex_volume: bool = True
    """Whether the kubelet gets the FlexVolume driver."""
    data_dir: Path = Path(names.DATA_DIR)
    capacity: int | None = None
    """What loop images and folders may take together. None: what their filesystem has."""
    reserve: int = 0
    """Kept back in every pool, for snapshots, metadata and people."""
    refresh_period: float = 30.0
    """Seconds between two looks at the node's storage. Each costs one start of LVM."""
    device_classes: Mapping[str, DeviceClass] | None = None
    """As a file has them. None: there is the one class that the settings above describe."""
    orphan_grace: float | None = 3600.0
    """Seconds that a volume is kept whose PersistentVolume is gone, if its record says Delete. None: for ever."""
    erase_rate: int = 200 * 2**20
    """Bytes a second. A hard disk manages that much at best, and there the pods come first only because the steps are
    small; of a solid-state disk it is a small part. 0: no limit."""
    listen_host: str = ""
    """Address of metrics and health. Empty: all of the host's."""
    listen_port: int = 8080
    namespace: str = names.NAMESPACE
    kubeconfig: str | None = None
    """None: KUBECONFIG's default places, or the service account of the pod."""
    log_format: str = "text"
    log_level: str = "INFO"
    startup_taint: str = ""
    """Key of the taint that the daemon takes off its Node once pods can have volumes there. Empty: none."""
    static: StaticSettings | None = None
    """None: this node offers no static volumes."""

    @property
    def classes(self) -> Mapping[str, DeviceClass]:
        """All device classes of this node, by name."""
        return self.device_classes or {DEFAULT_DEVICE_CLASS: self.own_class}

    @property
    def reserved_folders(self) -> ReservedFolders:
        """Where the daemon's own files and mounts are: nobody else may take what is there for theirs."""
        folders = (
            (f"device class {device_class.name}", device_class.folder)
            for device_class in self.classes.values()
            if device_class.kind != LVM
        )
        return (
            ("STAGING_DIR", self.staging_dir),
            ("KUBELET_ROOT", self.kubelet_root),
            *(("PLUGIN_DIR", each) for each in self.plugin_dirs),
            ("DATA_DIR", self.data_dir),
            (names.SOCKET_VARIABLE, self.socket),
            *folders,
        )

    @property
    def own_class(self) -> DeviceClass:
        """The device class that the settings describe."""
        if self.driver_kind == LVM:
            return DeviceClass(
                DEFAULT_DEVICE_CLASS,
                LVM,
                group=self.lvm_volume_group,
                thin=self.lvm_use_thin_volumes,
                thin_pool=self.lvm_thin_pool,
                reserve=self.reserve,
            )
        return DeviceClass(
            DEFAULT_DEVICE_CLASS,
            self.driver_kind,
            folder=self.data_dir / {LOOP: "loop", BINDMOUNT: "folders"}[self.driver_kind],
            own_folder=True,
            capacity=self.capacity,
            reserve=self.reserve,
        )


def read(environment: Mapping[str, str]) -> Settings:
    """The settings of an environment; what is absent or empty takes its default. Raises SettingsError."""
    default = Settings(node_name="")

    set_to = Environment(environment)
    value = set_to.value
    node_name = set_to.text("NODE_NAME", "MY_NODE_NAME")
    if not node_name:
        raise SettingsError(
            "NODE_NAME is not set: give it this node's name as `kubectl get nodes` has it "
            "(in a pod: fieldRef spec.nodeName)"
        )
    host, port = value("LISTEN_ADDRESS", address, (default.listen_host, default.listen_port))
    namespace = value("NAMESPACE", str, default.namespace)
    chosen = Settings(
        node_name=node_name,
        driver_kind=value("DRIVER_KIND", one_of(DRIVER_KINDS), default.driver_kind),
        lvm_volume_group=value("LVM_VOLUME_GROUP", _lvm_name, default.lvm_volume_group),
        lvm_use_thin_volumes=value("LVM_USE_THIN_VOLUMES", truth, default.lvm_use_thin_volumes),
        lvm_thin_pool=value("LVM_THIN_POOL", _lvm_name, default.lvm_thin_pool),
        socket=value(names.SOCKET_VARIABLE, _socket, default.socket),
        staging_dir=value("STAGING_DIR", _path, default.staging_dir),
        kubelet_root=value("KUBELET_ROOT", _path, default.kubelet_root),
        plugin_dirs=value("PLUGIN_DIR", _paths, default.plugin_dirs),
        csi=value("CSI", truth, default.csi),
        flex_volume=value("FLEX_VOLUME", truth, default.flex_volume),
        data_dir=value("DATA_DIR", _path, default.data_dir),
        capacity=value("CAPACITY", _size, default.capacity),
        reserve=value("RESERVE", _size, default.reserve),
        refresh_period=value("REFRESH_PERIOD", period, default.refresh_period),
        orphan_grace=value("ORPHAN_GRACE", _grace, default.orphan_grace),
        erase_rate=value("ERASE_RATE", _size, default.erase_rate),
        listen_host=host,
        listen_port=port,
        namespace=namespace,
        kubeconfig=value("KUBECONFIG", str, default.kubeconfig),
        log_format=value("LOG_FORMAT", one_of(LOG_FORMATS), default.log_format),
        log_level=value("LOG_LEVEL", one_of(LOG_LEVELS), default.log_level),
        startup_taint=value("STARTUP_TAINT", taint_key, default.startup_taint),
        static=static_configuration.read_settings(set_to, namespace),
    )
    file = value("DEVICE_CLASSES_FILE", _path, None)
    return replace(chosen, device_classes=_device_classes(file, chosen.own_class)) if file else chosen


def _device_classes(file: Path, own: DeviceClass) -> Mapping[str, DeviceClass]:
    try:
        return deviceclasses.read(file.read_text(errors="replace"), own)
    except OSError as error:
        raise SettingsError(
            f"DEVICE_CLASSES_FILE is {str(file)!r}: it can't be read ({error.strerror}): mount the ConfigMap there"
        ) from None
    except DecodeError as error:
        raise SettingsError(f"DEVICE_CLASSES_FILE {file}: {error}") from None


def _lvm_name(text: str) -> str:
    try:
        return parameters.lvm_name(text)
    except ValueError:
        raise ValueError("allowed is a name as LVM has them: letters, digits and _ + . -") from None


def _path(text: str) -> Path:
    """Absolute and without `..` or doubled slashes: it is compared with what the kernel's mount table says."""
    if not text.startswith("/") or ".." in text.split("/"):
        raise ValueError("allowed is an absolute path without `..`")
    return Path(os.path.normpath(text))


def _socket(text: str) -> Path:
    path = _path(text)
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ValueError(f"the path of a socket may have {LONGEST_PATH} bytes")
    return path


def _paths(text: str) -> tuple[Path, ...]:
    """Separated by colons, as in PATH."""
    return tuple(dict.fromkeys(map(_path, text.split(":"))))


def _grace(text: str) -> float | None:
    """`0` is `never` too: who writes it wants nothing removed, and not everything at once."""
    return span(text) or None


def _size(text: str) -> int:
    size = quantity.parse(text)
    if size < 0:
        raise ValueError("a size can't be negative")
    return size
