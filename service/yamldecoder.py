"""Settings from YAML documents, decoded as Go programs of Kubernetes decode them (sigs.k8s.io/yaml), field by field.

They decode YAML 1.1 into structs by way of JSON. Files written for the local static provisioner of SIG Storage depend
on three properties of that: `y` and `on` are booleans, field names match in any case, and a number or a boolean where
a string belongs becomes a string. A value of the wrong type is an error with its path.

Files that are only ours are decoded strictly: a duplicate key is an error.

Each reader of a value has the JSON Schema of it beside it, so what editors are told is what is checked here, and a
program needs no library for it. A schema can't say everything: keys are to be spelled as they are documented, and what
is compared with something else (two classes in one folder) is found here only.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import yaml

T = TypeVar("T")
D = TypeVar("D")

Schema = dict[str, Any]


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


@dataclass(frozen=True)
class Reader(Generic[T]):
    """How a value is read, by its path and what YAML made of it, and the schema of what is taken."""

    read: Callable[[str, Any], T]
    """Raises DecodeError."""
    schema: Schema

    def __call__(self, where: str, value: Any) -> T:
        return self.read(where, value)


@dataclass(frozen=True)
class Key:
    """One of the keys that a map may have."""

    reader: Reader[Any]
    meaning: str
    """As an editor shows it."""
    required: bool = False


Keys = Mapping[str, Key]


def map_schema(keys: Keys, **more: Any) -> Schema:
    """Of a map with these keys and no others."""
    required = [name for name, key in keys.items() if key.required]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: {"description": key.meaning, **(key.reader.schema if key.required else _or_null(key.reader.schema))}
            for name, key in keys.items()
        },
        **({"required": required} if required else {}),
        **more,
    }


def list_schema(item: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": item, **more}


def _or_null(schema: Schema) -> Schema:
    """A key with nothing behind it is as absent."""
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    kinds = schema["type"]
    return {**schema, "type": [*([kinds] if isinstance(kinds, str) else kinds), "null"]}


@dataclass
class Fields:
    """The fields of a map, taken by the names of its keys."""

    where: str
    values: dict[str, Any]
    """By name in lower case."""
    keys: Keys
    spelling: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, where: str, value: object, keys: Keys) -> "Fields":
        values: dict[str, Any] = {}
        spelling: dict[str, str] = {}
        for name, item in mapping(where or "the file", value).items():
            lower = name.lower()
            if lower in values:
                place = f"{where}: " if where else ""
                raise DecodeError(f"{place}{spelling[lower]} and {name} are the same key: keep one of them")
            values[lower], spelling[lower] = item, name
        return cls(where, values, keys, spelling)

    def take(self, name: str, otherwise: Any) -> Any:
        """The field as its key reads it, or `otherwise` when it is absent or null. Raises DecodeError."""
        value = self.values.get(name.lower())
        return otherwise if value is None else self.keys[name].reader(self._path(name), value)

    def unknown(self) -> Iterator[str]:
        """The paths of fields that no key is for."""
        known = {name.lower() for name in self.keys}
        for lower, name in self.spelling.items():
            if lower not in known:
                yield self._path(name)

    def _path(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name


def _string(where: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise DecodeError(f"{where} is {value!r}: allowed is text")


string = Reader(_string, {"type": ["string", "number", "boolean"]})
"""A string; other scalars are rendered: `true`, `2`, `1.5`."""


def text(read: Callable[[str], T], allowed: str, **schema: Any) -> Reader[T]:
    """A string that `read` reads. It raises ValueError or KeyError for what is not `allowed`."""

    def checked(where: str, value: object) -> T:
        content = _string(where, value)
        try:
            return read(content)
        except (ValueError, KeyError):
            raise DecodeError(f"{where} is {content!r}: allowed is {allowed}") from None

    return Reader(checked, {"type": "string", **schema})


def _boolean(where: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise DecodeError(f"{where} is {value!r}: allowed is true or false")


boolean = Reader(_boolean, {"type": "boolean"})


def _integer(where: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise DecodeError(f"{where} is {value!r}: allowed is a whole number")


integer = Reader(_integer, {"type": "integer"})


def list_of(reader: Reader[T], **schema: Any) -> Reader[tuple[T, ...]]:
    def read(where: str, value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise DecodeError(f"{where} is {value!r}: allowed is a list")
        return tuple(reader(f"{where}[{position}]", item) for position, item in enumerate(value))

    return Reader(read, list_schema(reader.schema, **schema))


strings = list_of(string)


def mapping(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DecodeError(f"{where} is {value!r}: allowed is a map")
    return {_string(f"a key of {where}", name): item for name, item in value.items()}


def _string_map(where: str, value: object) -> dict[str, str]:
    return {name: _string(f"{where}.{name}", item) for name, item in mapping(where, value).items() if item is not None}


string_map = Reader(_string_map, {"type": "object", "additionalProperties": _or_null(string.schema)})
