"""The arguments of a callout, parsed and checked before anything is done for them.

The callout hands them over as they are. The kubelet, being root, is believed in what it asks, but not in what a pod's
owner may have put into the options (daemon/kubelet/authorization.py).
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract import callout


class Malformed(Exception):
    """A call that no kubelet makes. The message says what is wrong with it."""


@dataclass(frozen=True)
class Init:
    """The kubelet has found the driver."""


@dataclass(frozen=True)
class Mount:
    dir: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class Unmount:
    dir: str


@dataclass(frozen=True)
class Expand:
    """Sizes in bytes."""

    dir: str
    options: Mapping[str, str]
    new_size: int
    old_size: int


Call = Init | Mount | Unmount | Expand


def named(verb: str, body: bytes) -> Call:
    """The call of a request that names its verb in the route, and its arguments in the body. Raises Malformed."""
    fields = _object(body)
    match verb:
        case callout.MOUNT:
            return Mount(_folder(fields.get("dir")), _strings(fields.get("options")))
        case callout.UNMOUNT:
            return Unmount(_folder(fields.get("dir")))
        case callout.EXPANDFS:
            return Expand(
                _folder(fields.get("dir")),
                _strings(fields.get("options")),
                _bytes(str(fields.get("new_size"))),
                _bytes(str(fields.get("old_size"))),
            )
        case _:
            raise Malformed(f"there is no call {verb[:64]!r}")


def read(body: bytes) -> Call:
    """The call in the body of a callout's request, which carries the kubelet's arguments. Raises Malformed."""
    match _arguments(body):
        case [callout.INIT, *_]:
            return Init()
        case [callout.MOUNT, folder, options]:
            return Mount(_folder(folder), _options(options))
        case [callout.UNMOUNT, folder]:
            return Unmount(_folder(folder))
        case [callout.EXPANDFS, options, _, folder, new_size, old_size]:
            return Expand(_folder(folder), _options(options), _bytes(new_size), _bytes(old_size))
        case [(callout.MOUNT | callout.UNMOUNT | callout.EXPANDFS) as verb, *rest]:
            raise Malformed(f"{verb} was called with {len(rest)} arguments, which is not how a kubelet calls it")
        case [verb, *_]:
            raise Malformed(f"there is no call {verb[:64]!r}")
        case _:
            raise Malformed("no call is named")


def _arguments(body: bytes) -> list[str]:
    argv = _object(body).get("argv")
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
        raise Malformed('the body must be an object with "argv", a list of strings')
    try:
        return [os.fsencode(word).decode() for word in argv]
    except UnicodeError as error:
        raise Malformed(f"an argument is not UTF-8: {error}") from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the body is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise Malformed("the body must be a JSON object")
    return request


def _folder(word: object) -> str:
    if not isinstance(word, str) or not word.startswith("/") or "\0" in word:
        raise Malformed("the folder to mount on must be an absolute path")
    return word


def _options(word: str) -> Mapping[str, str]:
    try:
        options = json.loads(word)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the options are not JSON: {error}") from None
    return _strings(options)


def _strings(options: object) -> Mapping[str, str]:
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise Malformed("the options must be a JSON object whose values are strings")
    return options


def _bytes(word: str) -> int:
    if not word.isascii() or not word.isdigit() or len(word) > 20:
        raise Malformed(f"{word[:64]!r} is not a size in bytes")
    return int(word)
