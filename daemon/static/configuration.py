"""What the configuration folder says: which classes there are, where their volumes stand and how they are cleaned.

The folder is a mounted ConfigMap: one file a key, its content a YAML value. Keys, defaults and messages are those of
the original, so that its ConfigMap can be mounted here as it is; keys that only we know are marked. A key that nobody
knows is no error, for the original takes it silently, but it is told: a misspelt key looks the same.
"""

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.static import document
from daemon.static.cleaners import QUICK_RESET
from daemon.static.document import DocumentError, Fields
from service import duration

Json = dict[str, Any]

FILESYSTEM, BLOCK = "Filesystem", "Block"
ACCESS_MODES = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")

_SELECTOR_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")
_TOLERATION_OPERATORS = ("Exists", "Equal")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


class ConfigurationError(ValueError):
    """A folder that can't be used: says which file, which key and what is allowed there."""


@dataclass(frozen=True)
class ClassConfiguration:
    """One StorageClass whose volumes stand ready on this node."""

    name: str
    host_dir: str
    """The folder of its volumes, as the node sees it: what PersistentVolumes point into."""
    mount_dir: Path
    """The same folder as we see it."""
    block_cleaner: tuple[str, ...] = QUICK_RESET
    """Command that cleans a block device, named in LOCAL_PV_BLKDEVICE."""
    filesystem_cleaner: tuple[str, ...] = ()
    """Command that cleans a folder (our own key). Empty: its contents are removed in this process."""
    volume_mode: str = FILESYSTEM
    access_mode: str = ACCESS_MODES[0]
    fs_type: str = ""
    name_pattern: str = "*"
    selector: tuple[Json, ...] = ()
    """NodeSelectorTerms, alternatives to the term that names this node."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """On the PersistentVolumes of this class (our own key labelsForPV in the class). They win over the others."""
    refused: str = ""
    """Why nothing of this class is offered or cleaned (ownfolders.py). Empty: it is served."""


@dataclass(frozen=True)
class Configuration:
    classes: Mapping[str, ClassConfiguration] = field(default_factory=dict)
    node_labels: tuple[str, ...] = ()
    """Keys of the Node's labels that PersistentVolumes get too."""
    labels: Mapping[str, str] = field(default_factory=dict)
    use_alpha_api: bool = False
    use_job_for_cleaning: bool = False
    job_tolerations: tuple[Json, ...] = ()
    min_resync_period: float = 300.0
    """Seconds. Read for the sake of old ConfigMaps and without effect: every pass looks at every volume."""
    use_node_name_only: bool = False
    set_owner: bool = False
    remove_taint: bool = False
    taint_key: str = ""
    parallel_cleanings: int = 4
    """How many volumes are cleaned at the same time (our own key maxParallelCleanings)."""
    cleaning_timeout: float = 86400.0
    """Seconds that a cleaning may take before it is killed and counts as failed (our own key cleaningTimeout). Long,
    because overwriting a large disk takes most of a day."""
    unknown_keys: tuple[str, ...] = ()


def read(folder: Path) -> Configuration:
    """What the folder says now. Raises ConfigurationError."""
    values: Json = {}
    try:
        for file in sorted(folder.iterdir()):
            # A mounted ConfigMap is links to files in a folder that is swapped: `..data` and what it points to.
            if file.name.startswith("..") or file.is_dir():
                continue
            values[file.name] = document.load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or folder}: {error.strerror}: make it the mounted ConfigMap with a file for each key"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: not UTF-8 text: {error}") from None
    except DocumentError as error:
        raise ConfigurationError(f"{file}: {error}") from None
    try:
        return parse(values)
    except DocumentError as error:
        raise ConfigurationError(f"{folder}/{error}") from None


def parse(values: Json) -> Configuration:
    """The configuration of decoded keys. Raises DocumentError, whose message begins with the key."""
    default = Configuration()
    keys = Fields.of("", values)
    unknown: list[str] = []
    classes = keys.take("storageClassMap", document.mapping, {})
    found = Configuration(
        classes={
            name: _class(f"storageClassMap.{name}", name, {} if value is None else value, unknown)
            for name, value in classes.items()
        },
        node_labels=keys.take("nodeLabelsForPV", document.texts, ()),
        labels=keys.take("labelsForPV", document.text_map, {}),
        use_alpha_api=keys.take("useAlphaAPI", document.truth, False),
        use_job_for_cleaning=keys.take("useJobForCleaning", document.truth, False),
        job_tolerations=keys.take("jobTolerations", _tolerations, ()),
        min_resync_period=keys.take("minResyncPeriod", _duration, default.min_resync_period),
        use_node_name_only=keys.take("useNodeNameOnly", document.truth, False),
        set_owner=keys.take("setPVOwnerRef", document.truth, False),
        remove_taint=keys.take("removeNodeNotReadyTaint", document.truth, False),
        taint_key=keys.take("provisionerNotReadyNodeTaintKey", document.text, ""),
        parallel_cleanings=keys.take("maxParallelCleanings", _positive, default.parallel_cleanings),
        cleaning_timeout=keys.take("cleaningTimeout", _some_time, default.cleaning_timeout),
        unknown_keys=(*keys.unknown(), *unknown),
    )
    if found.remove_taint and not found.taint_key:
        raise DocumentError(
            "provisionerNotReadyNodeTaintKey is empty: allowed with removeNodeNotReadyTaint is the key of the taint"
        )
    return found


def _class(where: str, name: str, value: object, unknown: list[str]) -> ClassConfiguration:
    """Checked in the original's order: cleaner, folders, mode."""
    fields = Fields.of(where, value)
    cleaner = fields.take("blockCleanerCommand", document.texts, QUICK_RESET)
    if not cleaner:
        raise DocumentError(
            f"{where}.blockCleanerCommand: Invalid empty block cleaner command for class {name}: "
            "give a program and its arguments, or leave the key out for the quick reset"
        )
    host_dir = fields.take("hostDir", document.text, "")
    mount_dir = fields.take("mountDir", document.text, "")
    if not host_dir or not mount_dir:
        raise DocumentError(
            f"{where}: Storage Class {name} is misconfigured, missing HostDir or MountDir parameter: give both, "
            "the folder on the node and the same folder in this container"
        )
    mode = fields.take("volumeMode", document.text, FILESYSTEM) or FILESYSTEM
    if mode not in (FILESYSTEM, BLOCK):
        raise DocumentError(f"{where}.volumeMode: unsupported volume mode {mode}: allowed is {FILESYSTEM} or {BLOCK}")
    access = fields.take("accessMode", document.text, ACCESS_MODES[0]) or ACCESS_MODES[0]
    if access not in ACCESS_MODES:
        raise DocumentError(f"{where}.accessMode is {access!r}: allowed is {', '.join(ACCESS_MODES)}")
    found = ClassConfiguration(
        name=name,
        host_dir=_folder(f"{where}.hostDir", host_dir),
        mount_dir=Path(_folder(f"{where}.mountDir", mount_dir)),
        block_cleaner=cleaner,
        filesystem_cleaner=fields.take("filesystemCleanerCommand", document.texts, ()),
        volume_mode=mode,
        access_mode=access,
        fs_type=fields.take("fsType", document.text, ""),
        name_pattern=fields.take("namePattern", document.text, "*") or "*",
        selector=fields.take("selector", _selector, ()),
        labels=fields.take("labelsForPV", document.text_map, {}),
    )
    unknown.extend(fields.unknown())
    return found


def _folder(where: str, path: str) -> str:
    """Cleaned: it is compared with paths in PersistentVolumes and in the mount table. The root is refused because
    everything would be a volume."""
    clean = posixpath.normpath(path).replace("//", "/")
    if not path.startswith("/") or ".." in path.split("/") or clean == "/":
        raise DocumentError(f"{where} is {path!r}: allowed is an absolute path without `..`, and not /")
    return clean


def _duration(where: str, value: object) -> float:
    try:
        return duration.parse(document.text(where, value))
    except ValueError as error:
        raise DocumentError(f"{where}: {error}") from None


def _some_time(where: str, value: object) -> float:
    seconds = _duration(where, value)
    if not seconds:
        raise DocumentError(f"{where} is {value!r}: allowed is a duration above zero, such as 24h")
    return seconds


def _positive(where: str, value: object) -> int:
    number = document.whole(where, value)
    if number < 1:
        raise DocumentError(f"{where} is {number}: allowed is a whole number of at least 1")
    return number


def _selector(where: str, value: object) -> tuple[Json, ...]:
    return tuple(_term(place, item) for place, item in document.items(where, value))


def _term(where: str, value: object) -> Json:
    fields = Fields.of(where, value)
    kinds = ("matchExpressions", "matchFields")
    term = {kind: [_requirement(*item) for item in fields.take(kind, document.items, [])] for kind in kinds}
    _none_unknown(fields, kinds)
    return {kind: requirements for kind, requirements in term.items() if requirements}


def _requirement(where: str, value: object) -> Json:
    fields = Fields.of(where, value)
    operator = fields.take("operator", document.text, "")
    if operator not in _SELECTOR_OPERATORS:
        raise DocumentError(f"{where}.operator is {operator!r}: allowed is {', '.join(_SELECTOR_OPERATORS)}")
    requirement: Json = {"key": fields.take("key", document.text, ""), "operator": operator}
    if values := fields.take("values", document.texts, ()):
        requirement["values"] = list(values)
    _none_unknown(fields, ("key", "operator", "values"))
    return requirement


def _tolerations(where: str, value: object) -> tuple[Json, ...]:
    return tuple(_toleration(place, item) for place, item in document.items(where, value))


def _toleration(where: str, value: object) -> Json:
    fields = Fields.of(where, value)
    names = ("key", "operator", "value", "effect")
    toleration: Json = {name: fields.take(name, document.text, "") for name in names}
    toleration["tolerationSeconds"] = fields.take("tolerationSeconds", document.whole, None)
    for name, allowed in (("operator", _TOLERATION_OPERATORS), ("effect", _EFFECTS)):
        if toleration[name] and toleration[name] not in allowed:
            raise DocumentError(f"{where}.{name} is {toleration[name]!r}: allowed is {', '.join(allowed)}")
    _none_unknown(fields, toleration)
    return {name: item for name, item in toleration.items() if item not in ("", None)}


def _none_unknown(fields: Fields, allowed: Iterable[str]) -> None:
    """What goes to the API server as it is must be whole: a misspelt key would make a selector or toleration wider."""
    if unknown := next(fields.unknown(), None):
        raise DocumentError(f"{unknown} is not known: allowed is {', '.join(allowed)}")
