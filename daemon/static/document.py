"""YAML documents read as the original reads them, and their fields by name.

The original decodes YAML 1.1 into Go structs by way of JSON. What people have written for it depends on three habits of
that way: `y` and `on` are booleans, names of fields match in any case, and a number or a boolean where text belongs
becomes text. A value that does not fit is an error that says where it stands.

A document of our own is read strictly: there a key that stands twice in one map is an error.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml

T = TypeVar("T")
D = TypeVar("D")


class DocumentError(ValueError):
    """A value that can't be used: says where it stands and what may stand there."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as Go's library has it: with `y` and `n`, without dates and numbers to the base of 60."""

    # Own tables: a subclass shares those of its parent, and all of yaml with it.
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
        """Looks at keys as they are written: what `<<` brings in later is there to be overridden."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            name = text("a key", self.construct_object(key))
            line = key.start_mark.line + 1
            if name in lines:
                raise DocumentError(
                    f"key {name} in line {line} is there already, in line {lines[name]}: keep one of them"
                )
            lines[name] = line
        return node


def load(content: str) -> Any:
    """One document. Of a key that stands twice in one map the last one counts, as in the original: it uses Unmarshal
    of sigs.k8s.io/yaml, not UnmarshalStrict, and people's files have to go on as they are. Raises DocumentError."""
    return _load(content, _Loader)


def load_strict(content: str) -> Any:
    """One document in which no key stands twice in one map: a mistake, whose first half would go unnoticed. Raises
    DocumentError."""
    return _load(content, _StrictLoader)


def _load(content: str, loader: type[_Loader]) -> Any:
    try:
        return yaml.load(content, loader)  # noqa: S506  a SafeLoader
    except DocumentError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise DocumentError(f"not a YAML value: {' '.join(str(error).split())}") from None


@dataclass
class Fields:
    """The fields of a map, each taken by name. What nobody took is unknown."""

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
                raise DocumentError(f"{where}: {spelling[lower]} and {name} are the same key: keep one of them")
            values[lower], spelling[lower] = item, name
        return cls(where, values, spelling)

    def take(self, name: str, read: Callable[[str, Any], T], otherwise: D) -> T | D:
        """The field read by `read(where, value)`, or `otherwise` when it is absent or null. Raises DocumentError."""
        self.taken.add(name.lower())
        value = self.values.get(name.lower())
        return otherwise if value is None else read(f"{self.where}.{name}" if self.where else name, value)

    def unknown(self) -> Iterator[str]:
        for lower, name in self.spelling.items():
            if lower not in self.taken:
                yield f"{self.where}.{name}" if self.where else name


def text(where: str, value: object) -> str:
    """Text, and a scalar as text: `true`, `2`, `1.5`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise DocumentError(f"{where} is {value!r}: allowed is text")


def truth(where: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise DocumentError(f"{where} is {value!r}: allowed is true or false")


def whole(where: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise DocumentError(f"{where} is {value!r}: allowed is a whole number")


def texts(where: str, value: object) -> tuple[str, ...]:
    return tuple(text(place, item) for place, item in items(where, value))


def items(where: str, value: object) -> list[tuple[str, Any]]:
    """The items of a list, each with its place."""
    if not isinstance(value, list):
        raise DocumentError(f"{where} is {value!r}: allowed is a list")
    return [(f"{where}[{position}]", item) for position, item in enumerate(value)]


def mapping(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DocumentError(f"{where} is {value!r}: allowed is a map")
    return {text(f"a key of {where}", name): item for name, item in value.items()}


def text_map(where: str, value: object) -> dict[str, str]:
    return {name: text(f"{where}.{name}", item) for name, item in mapping(where, value).items() if item is not None}
