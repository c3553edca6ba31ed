"""The device classes of a node: names such as `nvme`, `hdd` or `thin`, and the storage that each stands for here.

A StorageClass asks for one with the parameter `device-class`. The file that defines them is meant to be the same on
all nodes, from one ConfigMap, although nodes differ: a group or a folder that a node does not have is no mistake, the
class has no room there. A mistake in the file itself ends the daemon at its start, before anything is made in a wrong
place.

    default: nvme                  # for StorageClasses that name none; without it, what the other settings say
    classes:
      nvme: {kind: LVM, group: vg-nvme, reserve: 10Gi}
      hdd: {kind: LVM, group: vg-hdd, devices: {rotational: true, minimumSize: 1Ti}}
      thin: {kind: LVM, group: vg-nvme, thin: true, thinPool: pool}
      scratch: {kind: LOOP, folder: /mnt/scratch/volumes, capacity: 100Gi}
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from contract import parameters, quantity
from contract.parameters import DEFAULT_DEVICE_CLASS
from daemon.storage.inventory import PoolName
from host.disks import Disk
from service import yamldecoder
from service.yamldecoder import DecodeError, Fields, Key, Keys, Reader, Schema

LVM, LOOP, BINDMOUNT = "LVM", "LOOP", "BINDMOUNT"
DRIVER_KINDS = (LVM, LOOP, BINDMOUNT)
THIN_POOL = "elastic-local-thinpool"

FILE_POOLS = {LOOP: "loop", BINDMOUNT: "folder"}
"""Names of the pools of a node's default class, where it keeps volumes as files or folders."""


@dataclass(frozen=True)
class DeviceSelector:
    """Of which disks a node may make the group of a class by itself. A disk has to meet all that is said."""

    paths: tuple[str, ...] = ()
    """Patterns as a shell has them, of the names of a disk below /dev, /dev/disk/by-... included."""
    models: tuple[str, ...] = ()
    """Patterns of what its maker calls it."""
    minimum_size: int = 0
    maximum_size: int | None = None
    rotational: bool | None = None

    def selects(self, disk: Disk) -> bool:
        """Whether it may be taken, if it is empty."""
        return (
            (not self.paths or any(fnmatchcase(name, each) for name in (disk.path, *disk.links) for each in self.paths))
            and (not self.models or any(fnmatchcase(disk.model, each) for each in self.models))
            and self.minimum_size <= disk.size
            and (self.maximum_size is None or disk.size <= self.maximum_size)
            and (self.rotational is None or disk.rotational == self.rotational)
        )


@dataclass(frozen=True)
class DeviceClass:
    """One of them. Sizes in bytes."""

    name: str
    kind: str
    group: str = ""
    """LVM: the volume group."""
    thin: bool = False
    thin_pool: str = THIN_POOL
    devices: DeviceSelector | None = None
    """LVM: of which disks the node makes the group if it never had it. None: people make it."""
    folder: Path = Path()
    """LOOP and BINDMOUNT: where the files or folders are."""
    own_folder: bool = False
    """Whether the daemon makes that folder. Not those of the file: where a disk is not mounted, that would offer the
    room of another one."""
    capacity: int | None = None
    reserve: int = 0

    @property
    def pool(self) -> str:
        """The pool of its volumes. A colon is in no name of LVM, so no two kinds can mean the same."""
        if self.kind == LVM:
            return self.own_thin_pool if self.thin else self.group
        kind = FILE_POOLS[self.kind]
        return kind if self.name == DEFAULT_DEVICE_CLASS else f"{kind}:{self.name}"

    @property
    def own_thin_pool(self) -> str:
        """LVM: the pool that its thin volumes come from, unless their StorageClass names another."""
        return str(PoolName(self.group, self.thin_pool))


def reserve_of(classes: Mapping[str, DeviceClass], pool: str) -> int:
    """Bytes kept back in a pool. One that no class is made of, because a StorageClass names it itself, is kept like
    the class of its group, else like the default."""
    for device_class in classes.values():
        if device_class.pool == pool:
            return device_class.reserve
    group = PoolName.of(pool).group
    of_group = (
        device_class for device_class in classes.values() if device_class.kind == LVM and device_class.group == group
    )
    return next(of_group, classes[DEFAULT_DEVICE_CLASS]).reserve


def read(text: str, own: DeviceClass) -> Mapping[str, DeviceClass]:
    """The classes of a file, and the one that stands for StorageClasses that name none: `own`, which the other settings
    describe, or the one that the file says. Raises DecodeError."""
    fields = Fields.of("", yamldecoder.load_strict(text), _FILE_KEYS)
    classes = {name: _class(name, where, body) for name, where, body in fields.take("classes", ())}
    default = fields.take("default", "")
    for key in fields.unknown():
        raise DecodeError(f"{key}: there is no such key, there are {_spelled(_FILE_KEYS)}")
    if not classes:
        raise DecodeError("classes is empty: name at least one, such as `nvme: {kind: LVM, group: vg-nvme}`")
    if default and default not in classes:
        raise DecodeError(f"default is {default!r}: allowed is one of the classes, {' '.join(sorted(classes))}")
    _check_apart([*classes.values(), *(() if default else (own,))])
    return {DEFAULT_DEVICE_CLASS: classes[default] if default else own, **classes}


def schema() -> Schema:
    """JSON Schema of the file, for editors: daemon/schemas."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Device classes of elastic-local (DEVICE_CLASSES_FILE)",
        **yamldecoder.map_schema(_FILE_KEYS),
    }


def _named(where: str, value: object) -> list[tuple[str, str, Any]]:
    sections = [(name, f"{where}.{name}", body) for name, body in yamldecoder.mapping(where, value).items()]
    for name, place, _ in sections:
        if not parameters.DEVICE_CLASS_NAME.fullmatch(name) or name == DEFAULT_DEVICE_CLASS:
            raise DecodeError(
                f"{place}: allowed as a name are up to 63 small letters, digits and -, but not "
                f"`{DEFAULT_DEVICE_CLASS}`: say `default: CLASS` at the top instead"
            )
    return sections


def _class(name: str, where: str, body: object) -> DeviceClass:
    kind = Fields.of(where, body, _OF_EACH_KIND).take("kind", "") or _required(where, "kind", " ".join(DRIVER_KINDS))
    keys = _KEYS[kind]
    fields = Fields.of(where, body, keys)
    reserve = fields.take("reserve", 0)
    if kind == LVM:
        device_class = DeviceClass(
            name,
            kind,
            group=fields.take("group", "") or _required(where, "group", "the name of an LVM volume group"),
            thin=fields.take("thin", False),
            thin_pool=fields.take("thinPool", THIN_POOL),
            devices=fields.take("devices", None),
            reserve=reserve,
        )
    else:
        device_class = DeviceClass(
            name,
            kind,
            folder=fields.take("folder", None) or _required(where, "folder", "an absolute path on its disk"),
            capacity=fields.take("capacity", None),
            reserve=reserve,
        )
    for key in fields.unknown():
        allowed = _spelled(keys.keys() - {"kind"})
        raise DecodeError(f"{key}: there is no such key of kind {kind}, there are {allowed}")
    return device_class


def _selector(where: str, body: object) -> DeviceSelector:
    fields = Fields.of(where, body, _SELECTOR_KEYS)
    selector = DeviceSelector(
        paths=fields.take("paths", ()),
        models=fields.take("models", ()),
        minimum_size=fields.take("minimumSize", 0),
        maximum_size=fields.take("maximumSize", None),
        rotational=fields.take("rotational", None),
    )
    for key in fields.unknown():
        raise DecodeError(f"{key}: there is no such key, there are {_spelled(_SELECTOR_KEYS)}")
    if selector == DeviceSelector():
        raise DecodeError(f"{where} selects every empty disk: say which, or `paths: ['*']` if all are meant")
    return selector


def _spelled(keys: Iterable[str]) -> str:
    return ", ".join(sorted(keys))


def _check_apart(classes: list[DeviceClass]) -> None:
    """Two classes of one pool would each keep back a reserve of their own from it, and files in one folder would be
    taken for each other's."""
    seen: dict[str, DeviceClass] = {}
    for device_class in classes:
        place = device_class.pool if device_class.kind == LVM else str(device_class.folder)
        if place in seen:
            other = seen[place].name
            way_out = f", or say `default: {other}`" if device_class.name == DEFAULT_DEVICE_CLASS else ""
            raise DecodeError(f"classes {other} and {device_class.name} are both in {place}: keep one of them{way_out}")
        seen[place] = device_class


def _required(where: str, key: str, allowed: str) -> Any:
    raise DecodeError(f"{where}.{key} is missing: allowed is {allowed}")


def _device_pattern(text: str) -> str:
    if text != "*" and not text.startswith("/dev/"):
        raise ValueError
    return text


def _path(text: str) -> Path:
    if not text.startswith("/") or ".." in text.split("/"):
        raise ValueError
    return Path(os.path.normpath("/" + text.lstrip("/")))  # POSIX keeps two slashes at the start


def _bytes(text: str) -> int:
    if (size := quantity.parse(text)) < 0:
        raise ValueError
    return size


_kind = yamldecoder.text(
    lambda text: {kind: kind for kind in DRIVER_KINDS}[text.upper()], " ".join(DRIVER_KINDS), enum=list(DRIVER_KINDS)
)
_lvm_name = yamldecoder.text(
    parameters.lvm_name,
    "a name as LVM has them",
    type=["string", "integer", "boolean"],
    minimum=0,
    pattern="^(?!\\.+$)[A-Za-z0-9_][A-Za-z0-9_+.-]{0,126}$",
)
_folder = yamldecoder.text(
    _path, "an absolute path without `..`", pattern="^/", **{"not": {"pattern": "(^|/)\\.\\.(/|$)"}}
)
_size = yamldecoder.text(
    _bytes,
    "a quantity such as 10Gi, 500M or 1073741824",
    type=["string", "number"],
    minimum=0,
    pattern="^\\+?([0-9]+\\.?[0-9]*|\\.[0-9]+)([numkMGTPE]?|[KMGTPE]i|[eE][+-]?[0-9]{1,2})$",
)
_patterns = yamldecoder.list_of(
    yamldecoder.text(_device_pattern, "a pattern of a name below /dev, such as /dev/nvme*", pattern="^(\\*$|/dev/)")
)

_SELECTOR_KEYS: Keys = {
    "paths": Key(_patterns, "Patterns, as a shell has them, of a name of the disk: /dev/nvme*, /dev/disk/by-id/*."),
    "models": Key(yamldecoder.strings, "Patterns of the disk's model, as lsblk shows it."),
    "minimumSize": Key(_size, "Disks of at least this size, such as 100Gi."),
    "maximumSize": Key(_size, "Disks of at most this size, such as 2Ti."),
    "rotational": Key(yamldecoder.boolean, "Disks that rotate, or that do not."),
}
_OF_EACH_KIND: Keys = {
    "kind": Key(_kind, "LVM: logical volumes. LOOP: sparse files. BINDMOUNT: folders, sizes not enforced.", True),
    "reserve": Key(_size, "Never allocated, such as 10Gi."),
}
_LVM_KEYS: Keys = {
    **_OF_EACH_KIND,
    "group": Key(_lvm_name, "The LVM volume group.", True),
    "thin": Key(yamldecoder.boolean, "Whether its volumes are thin, unless the StorageClass sets `thin`."),
    "thinPool": Key(_lvm_name, "The thin pool, made when it is missing."),
    "devices": Key(
        Reader(_selector, yamldecoder.map_schema(_SELECTOR_KEYS, minProperties=1)),
        "The node makes the group by itself, once, of its empty disks that are all of this.",
    ),
}
_FILE_STORAGE_KEYS: Keys = {
    **_OF_EACH_KIND,
    "folder": Key(_folder, "Where its volumes are: a folder on its disk, not the mount point.", True),
    "capacity": Key(_size, "Of all its volumes together. Default: the size of the filesystem."),
}
_KEYS: Mapping[str, Keys] = {LVM: _LVM_KEYS, LOOP: _FILE_STORAGE_KEYS, BINDMOUNT: _FILE_STORAGE_KEYS}


def _class_schema() -> Schema:
    """A map of the keys of all kinds, and by its kind without those of others."""
    together = yamldecoder.map_schema({**_FILE_STORAGE_KEYS, **_LVM_KEYS})
    by_kind = [
        {
            "if": {"required": ["kind"], "properties": {"kind": {"const": kind}}},
            "then": {
                "required": [name for name, key in keys.items() if key.required],
                "properties": {name: name in keys for name in together["properties"]},
            },
        }
        for kind, keys in _KEYS.items()
    ]
    return {**together, "required": ["kind"], "allOf": by_kind}


_FILE_KEYS: Keys = {
    "default": Key(
        yamldecoder.string,
        "The class of StorageClasses that name no device-class. Default: what LVM_VOLUME_GROUP and the like describe.",
    ),
    "classes": Key(
        Reader(
            _named,
            {
                "type": "object",
                "minProperties": 1,
                "propertyNames": {
                    "pattern": f"^{parameters.DEVICE_CLASS_NAME.pattern}$",
                    "not": {"const": DEFAULT_DEVICE_CLASS},
                },
                "additionalProperties": _class_schema(),
            },
        ),
        "Device classes by name. Where a node has no such group or folder, the class has no capacity.",
        True,
    ),
}
