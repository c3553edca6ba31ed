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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from contract import parameters, quantity
from contract.parameters import DEFAULT_DEVICE_CLASS
from daemon.storage.inventory import PoolName
from host.disks import Disk
from service import yamldecoder
from service.yamldecoder import DecodeError, Fields

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
    fields = Fields.of("the file", yamldecoder.load_strict(text))
    fields = Fields("", fields.values, fields.spelling)
    classes = {name: _class(name, where, body) for name, where, body in fields.take("classes", _named, ())}
    default = fields.take("default", yamldecoder.string, "")
    for key in fields.unknown():
        raise DecodeError(f"{key}: there is no such key, there are classes, default")
    if not classes:
        raise DecodeError("classes is empty: name at least one, such as `nvme: {kind: LVM, group: vg-nvme}`")
    if default and default not in classes:
        raise DecodeError(f"default is {default!r}: allowed is one of the classes, {' '.join(sorted(classes))}")
    _check_apart([*classes.values(), *(() if default else (own,))])
    return {DEFAULT_DEVICE_CLASS: classes[default] if default else own, **classes}


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
    fields = Fields.of(where, body)
    kind = fields.take("kind", _kind, "") or _required(where, "kind", " ".join(DRIVER_KINDS))
    reserve = fields.take("reserve", _size, 0)
    if kind == LVM:
        device_class = DeviceClass(
            name,
            kind,
            group=fields.take("group", _lvm_name, "") or _required(where, "group", "the name of an LVM volume group"),
            thin=fields.take("thin", yamldecoder.boolean, False),
            thin_pool=fields.take("thinPool", _lvm_name, THIN_POOL),
            devices=fields.take("devices", _selector, None),
            reserve=reserve,
        )
    else:
        device_class = DeviceClass(
            name,
            kind,
            folder=fields.take("folder", _folder, None) or _required(where, "folder", "an absolute path on its disk"),
            capacity=fields.take("capacity", _size, None),
            reserve=reserve,
        )
    for key in fields.unknown():
        allowed = (
            ("devices", "group", "reserve", "thin", "thinPool") if kind == LVM else ("capacity", "folder", "reserve")
        )
        raise DecodeError(f"{key}: there is no such key of kind {kind}, there are {', '.join(allowed)}")
    return device_class


def _selector(where: str, body: object) -> DeviceSelector:
    fields = Fields.of(where, body)
    selector = DeviceSelector(
        paths=fields.take("paths", yamldecoder.strings, ()),
        models=fields.take("models", yamldecoder.strings, ()),
        minimum_size=fields.take("minimumSize", _size, 0),
        maximum_size=fields.take("maximumSize", _size, None),
        rotational=fields.take("rotational", yamldecoder.boolean, None),
    )
    for key in fields.unknown():
        allowed = ("maximumSize", "minimumSize", "models", "paths", "rotational")
        raise DecodeError(f"{key}: there is no such key, there are {', '.join(allowed)}")
    if selector == DeviceSelector():
        raise DecodeError(f"{where} selects every empty disk: say which, or `paths: ['*']` if all are meant")
    if wrong := next((each for each in selector.paths if each != "*" and not each.startswith("/dev/")), None):
        raise DecodeError(f"{where}.paths has {wrong!r}: allowed is a pattern of a name below /dev, such as /dev/nvme*")
    return selector


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


def _checked(read: Callable[[str], Any], allowed: str) -> Callable[[str, object], Any]:
    def checked(where: str, value: object) -> Any:
        text = yamldecoder.string(where, value)
        try:
            return read(text)
        except (ValueError, KeyError):
            raise DecodeError(f"{where} is {text!r}: allowed is {allowed}") from None

    return checked


def _path(text: str) -> Path:
    if not text.startswith("/") or ".." in text.split("/"):
        raise ValueError
    return Path(os.path.normpath("/" + text.lstrip("/")))  # POSIX keeps two slashes at the start


def _bytes(text: str) -> int:
    if (size := quantity.parse(text)) < 0:
        raise ValueError
    return size


_kind = _checked(lambda text: {kind: kind for kind in DRIVER_KINDS}[text.upper()], " ".join(DRIVER_KINDS))
_lvm_name = _checked(parameters.lvm_name, "a name as LVM has them")
_folder = _checked(_path, "an absolute path without `..`")
_size = _checked(_bytes, "a quantity such as 10Gi, 500M or 1073741824")
