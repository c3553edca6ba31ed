"""Settings from YAML documents, decoded as Go programs of Kubernetes decode them (sigs.k8s.io/yaml), field by field.

They decode YAML 1.1 into structs by way of JSON. Files written for the local static provisioner of SIG Storage depend
on three properties of that: `y` and `on` are booleans, field names match in any case, and a number or a boolean where
a string belongs becomes a string. A value of the wrong type is an error with its path.

Files that are only ours are decoded strictly: a duplicate key is an error.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml

T = TypeVar("T")
D = TypeVar("D")


class DecodeError(ValueError):
    """An invalid value: names its path and what is allowed there."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as Go's library has it: with `y` and `n`, without dates and numbers to the base of 60."""

    # Own tables: a subclass shares those of its parent, which belong to the whole program.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  PyYAML's own way
    bool_values = {**yaml.SafeLoader.bool_values, "y": True, "n": False}  # noqa: RUF012


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), list(first))


_resolve("bool", "[yYnN]|yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO")
_resolve("int", "[-+]?(?:0b[01_]+|0[0-7_]*|0x[0-9a-fA-F_]+|[1-9][0-9_]*)", "-+0123456789")
_resolve(
    "float", r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?)", "-+0123456789."
)
_resolve("merge", "<<", "<")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])


_MERGE = "tag:yaml.org,2002:merge"


class _StrictLoader(_Loader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Checks keys as they are written: keys that `<<` merges in may be overridden."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            name = string("a key", self.construct_object(key))
            line = key.start_mark.line + 1
            if name in lines:
                raise DecodeError(
                    f"key {name} in line {line} is there already, in line {lines[name]}: keep one of them"
                )
            lines[name] = line
        return node


def load(content: str) -> Any:
    """One document. Of duplicate keys the last one wins, as in the local static provisioner (Unmarshal and not
    UnmarshalStrict): existing files must keep their meaning. Raises DecodeError."""
    return _load(content, _Loader)


def load_strict(content: str) -> Any:
    """One document without duplicate keys: the first of two would be ignored in silence. Raises DecodeError."""
    return _load(content, _StrictLoader)


def _load(content: str, loader: type[_Loader]) -> Any:
    try:
        return yaml.load(content, loader)  # noqa: S506  a SafeLoader
    except DecodeError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise DecodeError(f"not a YAML value: {' '.join(str(error).split())}") from None


@dataclass
class Fields:
    """The fields of a map, taken by name. Fields that were not taken are unknown."""

    where: str
    values: dict[str, Any]
    """By name in lower case."""
    spelling: dict[str, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, where: str, value: object) -> "Fields":
        values: dict[str, Any] = {}
        spelling: dict[str, str] = {}
        for name, item in mapping(where, value).items():
            lower = name.lower()
            if lower in values:
                raise DecodeError(f"{where}: {spelling[lower]} and {name} are the same key: keep one of them")
            values[lower], spelling[lower] = item, name
        return cls(where, values, spelling)

    def take(self, name: str, read: Callable[[str, Any], T], otherwise: D) -> T | D:
        """The field read by `read(where, value)`, or `otherwise` when it is absent or null. Raises DecodeError."""
        self.taken.add(name.lower())
        value = self.values.get(name.lower())
        return otherwise if value is None else read(f"{self.where}.{name}" if self.where else name, value)

    def unknown(self) -> Iterator[str]:
        for lower, name in self.spelling.items():
            if lower not in self.taken:
                yield f"{self.where}.{name}" if self.where else name


def string(where: str, value: object) -> str:
    """A string; other scalars are rendered: `true`, `2`, `1.5`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise DecodeError(f"{where} is {value!r}: allowed is text")


def boolean(where: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise DecodeError(f"{where} is {value!r}: allowed is true or false")


def integer(where: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise DecodeError(f"{where} is {value!r}: allowed is a whole number")


def strings(where: str, value: object) -> tuple[str, ...]:
    return tuple(string(path, item) for path, item in items(where, value))


def items(where: str, value: object) -> list[tuple[str, Any]]:
    """The items of a list, each with its path."""
    if not isinstance(value, list):
        raise DecodeError(f"{where} is {value!r}: allowed is a list")
    return [(f"{where}[{position}]", item) for position, item in enumerate(value)]


def mapping(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DecodeError(f"{where} is {value!r}: allowed is a map")
    return {string(f"a key of {where}", name): item for name, item in value.items()}


def string_map(where: str, value: object) -> dict[str, str]:
    return {name: string(f"{where}.{name}", item) for name, item in mapping(where, value).items() if item is not None}
