"""The callout in Python, for nodes whose machine the native program (native/callout.c) was not built for.

One call of the kubelet: its arguments to the daemon, the answer back. The kubelet reads stdout and stderr together
as one JSON object, sets no time limit, and shows nothing but `message` to the pod's owner. So whatever happens, exactly
one object is printed, in time, and its message says what to do.
"""

import json
import os
import socket
import time

from contract import callout
from contract.callout import FAILURE, NOT_SUPPORTED, SUCCESS
from contract.names import SOCKET, SOCKET_VARIABLE


def answer(arguments: list[str]) -> str:
    """The answer for the kubelet. Arguments and messages are ASCII, other bytes surrogates (contract.callout.request).

    Never raises for what a daemon or a socket does.
    """
    if not arguments:
        return callout.answer(FAILURE, callout.NO_VERB)
    verb = arguments[0]
    if verb not in callout.DEADLINES:
        return callout.answer(NOT_SUPPORTED, callout.NOT_IMPLEMENTED % verb)
    given = _ask(verb, arguments)
    return callout.INIT_ANSWER if verb == callout.INIT else given


def _ask(verb: str, arguments: list[str]) -> str:
    path = os.environ.get(SOCKET_VARIABLE) or SOCKET
    deadline = callout.DEADLINES[verb]
    try:
        reply = _exchange(path, callout.request(arguments), deadline)
    except (FileNotFoundError, ConnectionRefusedError):
        return callout.answer(FAILURE, callout.AWAY % (_ascii(path), verb))
    except TimeoutError:
        return callout.answer(FAILURE, callout.BUSY % (verb, deadline))
    except OSError as error:
        return callout.answer(FAILURE, callout.BROKEN_OFF % (verb, error.strerror or error))
    head, _, body = reply.decode("ascii", "surrogateescape").partition("\r\n\r\n")
    if not _sensible(body):
        return callout.answer(FAILURE, callout.NO_SENSE % (_ascii(path), head.partition("\r\n")[0]))
    return body


def _exchange(path: str, body: bytes, deadline: float) -> bytes:
    """The daemon's whole reply, head and body.

    Raises OSError; TimeoutError when the whole exchange takes over `deadline` seconds.
    """
    ends = time.monotonic() + deadline
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.settimeout(deadline)
        daemon.connect(path)
        daemon.sendall(callout.REQUEST_HEAD.encode() % len(body) + body)
        reply = bytearray()
        while len(reply) < callout.ANSWER_LIMIT:
            left = ends - time.monotonic()
            if left <= 0:
                raise TimeoutError
            daemon.settimeout(left)
            piece = daemon.recv(callout.ANSWER_LIMIT - len(reply))
            if not piece:
                break
            reply += piece
    return bytes(reply)


def _sensible(body: str) -> bool:
    """Whether the body is an answer of contract.callout.answer, whole and to its end."""
    try:
        said = json.loads(body)
        return said["status"] in (SUCCESS, FAILURE) and body == json.dumps(
            {"status": said["status"], "message": str(said["message"])}
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _ascii(text: str) -> str:
    return os.fsencode(text).decode("ascii", "surrogateescape")


def main(arguments: list[str]) -> None:
    """Print the answer. stderr is closed first: one byte on it would spoil the JSON that the kubelet reads."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    try:
        text = answer([_ascii(argument) for argument in arguments])
    except BaseException as error:  # the kubelet must get its object whatever happens
        text = callout.answer(FAILURE, f"elastic-local: the callout failed ({error!r})")
    os.write(1, text.encode() + b"\n")
