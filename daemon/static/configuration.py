"""The configuration of static volumes: the daemon's environment says where its folder is, and the folder says which
classes there are, where their volumes are and how they are cleaned.

The folder is a mounted ConfigMap: one file for each key, its content a YAML value. Keys, defaults and messages are
those of the local static provisioner, so its ConfigMap can be mounted here unchanged; keys that only we have are
marked. An unknown key is no error, as there, but it is reported: a misspelt key looks the same.
"""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from daemon.static.cleaners import QUICK_RESET
from host import presence
from service import yamldecoder
from service.environment import Environment, parse_duration, period
from service.yamldecoder import DecodeError, Fields, Key, Keys, Reader, Schema

Json = dict[str, Any]

CONFIG_DIR = "STATIC_CONFIG_DIR"


@dataclass(frozen=True)
class StaticSettings:
    """From the environment. Variables of the local static provisioner are read too, so that its DaemonSet can be
    adapted."""

    config_dir: Path
    """The mounted ConfigMap."""
    namespace: str
    """Of cleanup Jobs."""
    job_image: str = ""
    """Of cleanup Jobs. Empty: none is configured, and useJobForCleaning can't work."""
    discovery_period: float = 10.0
    """Seconds between two passes if nothing triggers one."""
    config_sync_period: float = 5.0
    """Seconds between two reads of the configuration folder."""


def read_settings(environment: Environment, namespace: str) -> StaticSettings | None:
    """None if no configuration folder is set: the node offers no static volumes then. `namespace`: of the daemon.
    Raises SettingsError."""
    config_dir = environment.value(CONFIG_DIR, _config_dir, None)
    if config_dir is None:
        return None
    default = StaticSettings(config_dir, namespace)
    return StaticSettings(
        config_dir,
        environment.text("MY_NAMESPACE") or namespace,
        environment.text("JOB_CONTAINER_IMAGE"),
        environment.value("DISCOVERY_PERIOD", period, default.discovery_period),
        environment.value("CONFIG_SYNC_PERIOD", period, default.config_sync_period),
    )


def _config_dir(text: str) -> Path:
    if not text.startswith("/"):
        raise ValueError("allowed is an absolute path, that of the mounted ConfigMap")
    return Path(text)


FILESYSTEM, BLOCK = "Filesystem", "Block"
ACCESS_MODES = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")

_SELECTOR_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")
_TOLERATION_OPERATORS = ("Exists", "Equal")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


class ConfigurationError(ValueError):
    """An invalid folder: names the file, the key and what is allowed there."""


@dataclass(frozen=True)
class ClassConfiguration:
    """A StorageClass that has static volumes on this node."""

    name: str
    host_dir: str
    """The discovery folder on the node: PersistentVolumes have its path."""
    mount_dir: Path
    """The same folder in this container."""
    block_cleaner: tuple[str, ...] = QUICK_RESET
    """Command that cleans a block device, named in LOCAL_PV_BLKDEVICE."""
    filesystem_cleaner: tuple[str, ...] = ()
    """Command that cleans a folder (our own key). Empty: the bundled cleaner."""
    volume_mode: str = FILESYSTEM
    access_mode: str = ACCESS_MODES[0]
    fs_type: str = ""
    name_pattern: str = "*"
    selector: tuple[Json, ...] = ()
    """NodeSelectorTerms, alternatives to the term with this node."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """On the PersistentVolumes of this class (our own key labelsForPV in the class). They override the others."""
    refusal: str = ""
    """Why nothing of this class is offered or cleaned. Empty: it is served."""


@dataclass(frozen=True)
class Configuration:
    classes: Mapping[str, ClassConfiguration] = field(default_factory=dict)
    node_labels: tuple[str, ...] = ()
    """Keys of the Node's labels that are copied to PersistentVolumes."""
    labels: Mapping[str, str] = field(default_factory=dict)
    use_alpha_api: bool = False
    use_job_for_cleaning: bool = False
    job_tolerations: tuple[Json, ...] = ()
    min_resync_period: float = 300.0
    """Seconds. Accepted for compatibility, without effect: every pass examines every volume."""
    use_node_name_only: bool = False
    set_owner: bool = False
    remove_taint: bool = False
    taint_key: str = ""
    parallel_cleanings: int = 4
    """Concurrent cleanups (our own key maxParallelCleanings)."""
    cleaning_timeout: float = 86400.0
    """Seconds before a cleanup is killed and counts as failed (our own key cleaningTimeout). Long, because overwriting
    a large disk takes most of a day."""
    unknown_keys: tuple[str, ...] = ()


def read(folder: Path) -> Configuration:
    """Reads the folder. Raises ConfigurationError."""
    values: Json = {}
    try:
        for file in sorted(folder.iterdir()):
            # A mounted ConfigMap consists of links into a folder that is replaced as a whole: `..data` and its target.
            if file.name.startswith("..") or presence.is_folder(file):
                continue
            values[file.name] = yamldecoder.load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or folder}: {error.strerror}: make it the mounted ConfigMap with a file for each key"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: not UTF-8 text: {error}") from None
    except DecodeError as error:
        raise ConfigurationError(f"{file}: {error}") from None
    try:
        return parse(values)
    except DecodeError as error:
        raise ConfigurationError(f"{folder}/{error}") from None


def parse(values: Json) -> Configuration:
    """The configuration of decoded keys. Raises DecodeError, whose message begins with the key."""
    default = Configuration()
    keys = Fields.of("", values, _KEYS)
    unknown: list[str] = []
    classes = keys.take("storageClassMap", {})
    configuration = Configuration(
        classes={
            name: _class(f"storageClassMap.{name}", name, {} if value is None else value, unknown)
            for name, value in classes.items()
        },
        node_labels=keys.take("nodeLabelsForPV", ()),
        labels=keys.take("labelsForPV", {}),
        use_alpha_api=keys.take("useAlphaAPI", False),
        use_job_for_cleaning=keys.take("useJobForCleaning", False),
        job_tolerations=keys.take("jobTolerations", ()),
        min_resync_period=keys.take("minResyncPeriod", default.min_resync_period),
        use_node_name_only=keys.take("useNodeNameOnly", False),
        set_owner=keys.take("setPVOwnerRef", False),
        remove_taint=keys.take("removeNodeNotReadyTaint", False),
        taint_key=keys.take("provisionerNotReadyNodeTaintKey", ""),
        parallel_cleanings=keys.take("maxParallelCleanings", default.parallel_cleanings),
        cleaning_timeout=keys.take("cleaningTimeout", default.cleaning_timeout),
        unknown_keys=(*keys.unknown(), *unknown),
    )
    if configuration.remove_taint and not configuration.taint_key:
        raise DecodeError(
            "provisionerNotReadyNodeTaintKey is empty: allowed with removeNodeNotReadyTaint is the key of the taint"
        )
    return configuration


def schema() -> Schema:
    """JSON Schema of the ConfigMap's data, each key decoded, for editors: daemon/schemas."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Static volumes of elastic-local (STATIC_CONFIG_DIR): the keys of the ConfigMap",
        **yamldecoder.map_schema(_KEYS),
        "if": {"required": ["removeNodeNotReadyTaint"], "properties": {"removeNodeNotReadyTaint": {"const": True}}},
        "then": {
            "required": ["provisionerNotReadyNodeTaintKey"],
            "properties": {"provisionerNotReadyNodeTaintKey": {"minLength": 1}},
        },
    }


def _class(where: str, name: str, value: object, unknown: list[str]) -> ClassConfiguration:
    """Checked in the order of the local static provisioner: cleaner, folders, mode."""
    fields = Fields.of(where, value, _CLASS_KEYS)
    cleaner = fields.take("blockCleanerCommand", QUICK_RESET)
    if not cleaner:
        raise DecodeError(
            f"{where}.blockCleanerCommand: Invalid empty block cleaner command for class {name}: "
            "give a program and its arguments, or leave the key out for the quick reset"
        )
    host_dir = fields.take("hostDir", "")
    mount_dir = fields.take("mountDir", "")
    if not host_dir or not mount_dir:
        raise DecodeError(
            f"{where}: Storage Class {name} is misconfigured, missing HostDir or MountDir parameter: give both, "
            "the folder on the node and the same folder in this container"
        )
    mode = fields.take("volumeMode", FILESYSTEM) or FILESYSTEM
    if mode not in (FILESYSTEM, BLOCK):
        raise DecodeError(f"{where}.volumeMode: unsupported volume mode {mode}: allowed is {FILESYSTEM} or {BLOCK}")
    access = fields.take("accessMode", ACCESS_MODES[0]) or ACCESS_MODES[0]
    if access not in ACCESS_MODES:
        raise DecodeError(f"{where}.accessMode is {access!r}: allowed is {', '.join(ACCESS_MODES)}")
    class_config = ClassConfiguration(
        name=name,
        host_dir=_folder(f"{where}.hostDir", host_dir),
        mount_dir=Path(_folder(f"{where}.mountDir", mount_dir)),
        block_cleaner=cleaner,
        filesystem_cleaner=fields.take("filesystemCleanerCommand", ()),
        volume_mode=mode,
        access_mode=access,
        fs_type=fields.take("fsType", ""),
        name_pattern=fields.take("namePattern", "*") or "*",
        selector=fields.take("selector", ()),
        labels=fields.take("labelsForPV", {}),
    )
    unknown.extend(fields.unknown())
    return class_config


def _folder(where: str, path: str) -> str:
    """Normalized: it is compared with paths in PersistentVolumes and in the mount table. The root is refused because
    everything would be a volume."""
    clean = posixpath.normpath(path).replace("//", "/")
    if not path.startswith("/") or ".." in path.split("/") or clean == "/":
        raise DecodeError(f"{where} is {path!r}: allowed is an absolute path without `..`, and not /")
    return clean


def _duration(where: str, value: object) -> float:
    try:
        return parse_duration(yamldecoder.string(where, value))
    except ValueError as error:
        raise DecodeError(f"{where}: {error}") from None


def _positive_duration(where: str, value: object) -> float:
    seconds = _duration(where, value)
    if not seconds:
        raise DecodeError(f"{where} is {value!r}: allowed is a duration above zero, such as 24h")
    return seconds


def _positive(where: str, value: object) -> int:
    number = yamldecoder.integer(where, value)
    if number < 1:
        raise DecodeError(f"{where} is {number}: allowed is a whole number of at least 1")
    return number


def _term(where: str, value: object) -> Json:
    fields = Fields.of(where, value, _TERM_KEYS)
    term = {kind: list(fields.take(kind, ())) for kind in _TERM_KEYS}
    _none_unknown(fields)
    return {kind: requirements for kind, requirements in term.items() if requirements}


def _requirement(where: str, value: object) -> Json:
    fields = Fields.of(where, value, _REQUIREMENT_KEYS)
    operator = fields.take("operator", "")
    if operator not in _SELECTOR_OPERATORS:
        raise DecodeError(f"{where}.operator is {operator!r}: allowed is {', '.join(_SELECTOR_OPERATORS)}")
    requirement: Json = {"key": fields.take("key", ""), "operator": operator}
    if values := fields.take("values", ()):
        requirement["values"] = list(values)
    _none_unknown(fields)
    return requirement


def _toleration(where: str, value: object) -> Json:
    fields = Fields.of(where, value, _TOLERATION_KEYS)
    toleration: Json = {name: fields.take(name, None) for name in _TOLERATION_KEYS}
    for name, allowed in (("operator", _TOLERATION_OPERATORS), ("effect", _EFFECTS)):
        if toleration[name] and toleration[name] not in allowed:
            raise DecodeError(f"{where}.{name} is {toleration[name]!r}: allowed is {', '.join(allowed)}")
    _none_unknown(fields)
    return {name: item for name, item in toleration.items() if item not in ("", None)}


def _none_unknown(fields: Fields) -> None:
    """For what is passed on to the API server: a misspelt key would make a selector or toleration wider."""
    if unknown := next(fields.unknown(), None):
        raise DecodeError(f"{unknown} is not known: allowed is {', '.join(fields.keys)}")


def _choice(allowed: Iterable[str], **more: Any) -> Reader[str]:
    """A string that is checked where its place is known. Empty is as absent."""
    return Reader(yamldecoder.string.read, {"enum": ["", *allowed], **more})


_DURATION = r"^\+?(0|(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$"
_PATH = Reader(yamldecoder.string.read, {"type": "string", "pattern": "^/+[^/]", "not": {"pattern": r"(^|/)\.\.(/|$)"}})
_REQUIREMENT_KEYS: Keys = {
    "key": Key(yamldecoder.string, "The label's key."),
    "operator": Key(Reader(yamldecoder.string.read, {"enum": list(_SELECTOR_OPERATORS)}), "How it is compared.", True),
    "values": Key(yamldecoder.strings, "With what it is compared."),
}
_REQUIREMENTS = yamldecoder.list_of(Reader(_requirement, yamldecoder.map_schema(_REQUIREMENT_KEYS)))
_TERM_KEYS: Keys = {
    "matchExpressions": Key(_REQUIREMENTS, "By labels of the node."),
    "matchFields": Key(_REQUIREMENTS, "By fields of the node."),
}
_TOLERATION_KEYS: Keys = {
    "key": Key(yamldecoder.string, "The taint's key. Empty: of each, with operator Exists."),
    "operator": Key(_choice(_TOLERATION_OPERATORS), "Default: Equal."),
    "value": Key(yamldecoder.string, "The taint's value, with operator Equal."),
    "effect": Key(_choice(_EFFECTS), "The taint's effect. Empty: each."),
    "tolerationSeconds": Key(yamldecoder.integer, "For how long NoExecute is tolerated. Default: for ever."),
}
_CLASS_KEYS: Keys = {
    "hostDir": Key(_PATH, "The folder on the node in which disks are mounted or linked.", True),
    "mountDir": Key(_PATH, "The same folder in the daemon's container.", True),
    "blockCleanerCommand": Key(
        yamldecoder.list_of(yamldecoder.string, minItems=1),
        f"Cleans a block device, which LOCAL_PV_BLKDEVICE names. Default: {' '.join(QUICK_RESET)}.",
    ),
    "filesystemCleanerCommand": Key(
        yamldecoder.strings, "Cleans a folder, which LOCAL_PV_FILESYSTEM names. Default: its contents are removed."
    ),
    "volumeMode": Key(_choice((FILESYSTEM, BLOCK)), "Of the PersistentVolumes. Default: Filesystem."),
    "accessMode": Key(_choice(ACCESS_MODES), "Of the PersistentVolumes. Default: ReadWriteOnce."),
    "fsType": Key(yamldecoder.string, "With which the kubelet formats a block device of a Filesystem class."),
    "namePattern": Key(yamldecoder.string, "Patterns of the entries that are offered, with commas between. Default: *"),
    "selector": Key(
        yamldecoder.list_of(Reader(_term, yamldecoder.map_schema(_TERM_KEYS))),
        "NodeSelectorTerms of the PersistentVolumes, alternatives to their own node.",
    ),
    "labelsForPV": Key(yamldecoder.string_map, "Labels of the PersistentVolumes of this class."),
}
_CLASSES = Reader(yamldecoder.mapping, {"type": "object", "additionalProperties": yamldecoder.map_schema(_CLASS_KEYS)})
_KEYS: Keys = {
    "storageClassMap": Key(_CLASSES, "The StorageClasses that have static volumes, by name."),
    "nodeLabelsForPV": Key(yamldecoder.strings, "Labels of the Node that its PersistentVolumes get."),
    "labelsForPV": Key(yamldecoder.string_map, "Labels of all PersistentVolumes."),
    "useAlphaAPI": Key(yamldecoder.boolean, "Node affinity as an annotation, for very old clusters."),
    "useJobForCleaning": Key(yamldecoder.boolean, "Block devices are cleaned by Jobs."),
    "jobTolerations": Key(
        yamldecoder.list_of(Reader(_toleration, yamldecoder.map_schema(_TOLERATION_KEYS))), "Of cleanup Jobs."
    ),
    "minResyncPeriod": Key(
        Reader(_duration, {"type": ["string", "integer"], "pattern": _DURATION, "minimum": 0, "maximum": 0}),
        "Has no effect: accepted for compatibility.",
    ),
    "useNodeNameOnly": Key(yamldecoder.boolean, "PersistentVolumes name their maker without the Node's uid."),
    "setPVOwnerRef": Key(yamldecoder.boolean, "PersistentVolumes are owned by their Node, and go with it."),
    "removeNodeNotReadyTaint": Key(
        yamldecoder.boolean, "Take the taint off the node once its disks are discovered: component startup-taint."
    ),
    "provisionerNotReadyNodeTaintKey": Key(yamldecoder.string, "The key of that taint."),
    "maxParallelCleanings": Key(Reader(_positive, {"type": "integer", "minimum": 1}), "Default: 4."),
    "cleaningTimeout": Key(
        Reader(_positive_duration, {"type": "string", "pattern": f"^(?=.*[1-9]){_DURATION.removeprefix('^')}"}),
        "After which a cleanup is killed and counts as failed. Default: 24h.",
    ),
}


ReservedFolders = Sequence[tuple[str, Path]]
"""The setting, such as STAGING_DIR, and its folder.

The daemon mounts volumes of pods there. A class whose folder is the same, above or inside would find these mounts,
offer them as disks, and in the end clean them."""


def refuse_reserved_folders(configuration: Configuration, reserved: ReservedFolders) -> Configuration:
    """Refuses the classes that would offer a reserved folder: nothing of theirs is offered or cleaned, and the other
    classes are still served."""
    classes = {
        name: replace(each, refusal=_reserved_folder_conflict(each, reserved))
        for name, each in configuration.classes.items()
    }
    return replace(configuration, classes=classes)


def _reserved_folder_conflict(class_config: ClassConfiguration, reserved: ReservedFolders) -> str:
    """Checks the path on the node and the path in this container: each alone can lead there. Empty: no conflict."""
    for key, folder in (("hostDir", Path(class_config.host_dir)), ("mountDir", class_config.mount_dir)):
        for setting, reserved_folder in reserved:
            if relation := _relation(folder, reserved_folder):
                return (
                    f"{key} {folder} is {relation} that the daemon uses itself ({setting} is {reserved_folder}), "
                    "whose contents would be offered and cleaned as disks: give the class its own folder, such as "
                    "/mnt/disks"
                )
    return ""


def class_inside(configuration: Configuration, class_config: ClassConfiguration, entry: str) -> str:
    """Why an entry of a class's folder is no volume, though it may be a mount point: it holds the folder of a class,
    whose links would be removed when it is cleaned. Each path, on the node and here, may lead there. Empty: it may be
    one."""
    host, here = Path(class_config.host_dir, entry), class_config.mount_dir / entry
    for other in configuration.classes.values():
        if Path(other.host_dir).is_relative_to(host) or other.mount_dir.is_relative_to(here):
            return (
                f'path "{host}" holds the folder of class {other.name} ({other.host_dir}): it is no volume, give one '
                "of the two classes a folder elsewhere, or a namePattern"
            )
    return ""


def _relation(folder: Path, reserved: Path) -> str:
    if reserved.is_relative_to(folder):
        return "above the folder" if reserved != folder else "the folder"
    return "inside the folder" if folder.is_relative_to(reserved) else ""
