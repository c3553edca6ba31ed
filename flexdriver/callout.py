"""One call of the kubelet: its words in, one request to the daemon, one JSON object out.

The kubelet reads stdout and stderr together as one JSON object, sets no time limit, and shows nothing but `message` to
the pod's owner. So whatever happens, exactly one object is printed, in time, and its message says what to do.
"""

import json
import os
import socket
import time

from contract.callout import (
    CAPABILITIES,
    DEADLINES,
    EXPANDFS,
    FAILURE,
    MOUNT,
    NOT_SUPPORTED,
    SUCCESS,
    UNMOUNT,
)
from contract.names import SOCKET, SOCKET_VARIABLE

Json = dict[str, object]

_ANSWER_LIMIT = 1 << 20
"""Bytes. An answer is a line of text: more than this is not our daemon."""


class Refused(Exception):
    """The call can't be answered by the daemon; the message is for the pod's owner."""


def answer(words: list[str]) -> Json:
    """The answer to a call of the kubelet. Never raises: what goes wrong is a Failure that says what to do."""
    try:
        match words:
            case ["init"]:
                # Not asked of the daemon: a kubelet whose init fails tries again dozens of times a second, and one
                # that starts before the daemon would not know the driver.
                return {"status": SUCCESS, "capabilities": CAPABILITIES}
            case ["mount", folder, options]:
                return _ask(MOUNT, {"dir": folder, "options": _object(options)})
            case ["unmount", folder]:
                return _ask(UNMOUNT, {"dir": folder})
            case ["expandfs", options, _, folder, new_size, old_size]:
                return _ask(
                    EXPANDFS,
                    {
                        "dir": folder,
                        "options": _object(options),
                        "new_size": _bytes(new_size),
                        "old_size": _bytes(old_size),
                    },
                )
            case [("init" | "mount" | "unmount" | "expandfs") as verb, *rest]:
                raise Refused(f"{verb} was called with {len(rest)} arguments, which is not how a kubelet calls it")
            case [verb, *_]:
                return {"status": NOT_SUPPORTED, "message": f"elastic-local does not implement {verb[:64]}"}
            case _:
                raise Refused("no verb given: the kubelet calls init, mount, unmount and expandfs")
    except Refused as refusal:
        return {"status": FAILURE, "message": f"elastic-local: {refusal}"}


def _object(text: str) -> Json:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise Refused(f"the options are not JSON: {error}") from None
    if not isinstance(options, dict):
        raise Refused("the options are not a JSON object")
    return options


def _bytes(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise Refused(f"{text[:64]!r} is not a size in bytes")
    return int(text)


def _ask(verb: str, body: Json) -> Json:
    path = os.environ.get(SOCKET_VARIABLE) or SOCKET
    try:
        raw = _exchange(path, verb, json.dumps(body).encode(), DEADLINES[verb])
    except (FileNotFoundError, ConnectionRefusedError):
        raise Refused(
            f"the elastic-local daemon does not run on this node (nothing listens at {path}); the {verb} is tried again"
            " until it does. Look at the daemon's pod: kubectl -n elastic-local get pods -o wide"
        ) from None
    except TimeoutError:
        raise Refused(
            f"the elastic-local daemon is still busy with the {verb} after {DEADLINES[verb]} s; it goes on, and the"
            " next try picks up its result"
        ) from None
    except OSError as error:
        raise Refused(
            f"the elastic-local daemon broke off the {verb} ({error.strerror or error}); it is tried again"
        ) from None
    head, _, text = raw.partition(b"\r\n\r\n")
    try:
        reply = json.loads(text)
        status = reply["status"]
        message = reply["message"]
    except (ValueError, TypeError, KeyError):
        first_line = head.partition(b"\r\n")[0][:80].decode(errors="replace")
        raise Refused(
            f"no sensible answer from {path} ({first_line or 'empty'}): is it the elastic-local daemon that listens"
            " there? The call is tried again"
        ) from None
    if status not in (SUCCESS, FAILURE) or not isinstance(message, str):
        raise Refused(f"the daemon answered with the status {str(status)[:64]!r}, which no kubelet knows")
    return {"status": status, "message": message}


def _exchange(path: str, verb: str, body: bytes, deadline: float) -> bytes:
    """The daemon's whole reply, head and body. HTTP/1.0, so that the end of the reply is the end of the stream.

    Raises OSError; TimeoutError when the whole exchange takes over `deadline` seconds.
    """
    ends = time.monotonic() + deadline
    head = f"POST /{verb} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.settimeout(deadline)
        daemon.connect(path)
        daemon.sendall(head.encode() + body)
        reply = bytearray()
        while len(reply) <= _ANSWER_LIMIT:
            left = ends - time.monotonic()
            if left <= 0:
                raise TimeoutError
            daemon.settimeout(left)
            piece = daemon.recv(65536)
            if not piece:
                break
            reply += piece
    return bytes(reply)


def main(words: list[str]) -> None:
    """Print the answer. stderr is closed first: one byte on it would spoil the JSON that the kubelet reads."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    try:
        text = json.dumps(answer(words))
    except BaseException as error:  # the kubelet must get its object whatever happens
        text = json.dumps({"status": FAILURE, "message": f"elastic-local: the callout failed ({error!r})"})
    os.write(1, text.encode() + b"\n")
