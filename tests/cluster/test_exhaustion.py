"""What anybody in the pod network can do to the ports of the programs: pods get their volumes all the same."""

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from contract import names
from kube.resources import CLAIMS, EVENTS, PODS
from service.lifecycle import raise_open_files
from tests.sandbox.programs import Program
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

_NODE = "node-a"
_SILENT = 1400
_LARGE = 140
"""Claims of 900 kB. Who keeps them has them beside the 75 MB of a program that has begun."""
_MEMORY = 170 << 20
"""Bytes."""


def urls(sandbox: Sandbox) -> dict[str, tuple[Program, str]]:
    provisioner = sandbox.provisioners[0]
    return {
        "daemon": (sandbox.nodes[_NODE].daemon, sandbox.nodes[_NODE].url),
        "provisioner": (provisioner, f"http://{provisioner.environment['LISTEN_ADDRESS']}"),
    }


@contextlib.contextmanager
def idle_connections(url: str, number: int) -> Iterator[None]:
    """Opened without waiting for the server to take them."""
    address = urlsplit(url)
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            connection = stack.enter_context(socket.socket())
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                connection.connect((address.hostname, address.port))
        yield


def few_are_open(pid: int) -> bool:
    return len(os.listdir(f"/proc/{pid}/fd")) < 256  # noqa: PTH208 - of a process


async def test_idle_connections_stop_no_mount_and_end_no_program(shaken_sandbox: Sandbox, shaken: Namespace) -> None:
    raise_open_files()
    programs = urls(shaken_sandbox)
    for program, _ in programs.values():
        # As few as a program has that was not allowed more.
        resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (1024, 4096))
    with contextlib.ExitStack() as stack:
        for _, url in programs.values():
            stack.enter_context(idle_connections(url, _SILENT))
        await shaken.create(CLAIMS, claim("data", "16Mi"))
        selector = {names.HOSTNAME_LABEL: shaken_sandbox.nodes[_NODE].hostname}
        await shaken.create(PODS, pod("user", {"/data": "data"}, nodeSelector=selector))
        await shaken.until_running("user")
        for program, url in programs.values():
            async with aiohttp.ClientSession() as session, session.get(f"{url}/healthz") as answer:
                assert answer.status == 200
            assert program.running
            assert "Too many open files" not in program.output
            await until(partial(few_are_open, program.pid), what="most connections were closed")


async def test_junk_fills_no_log(shaken_sandbox: Sandbox) -> None:
    junk = b"GET /\x9d" + b"A" * 8000 + b" HTTP/1.1\r\n\r\n"
    for program, url in urls(shaken_sandbox).values():
        address = urlsplit(url)
        before = program.log.stat().st_size
        for _ in range(200):
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(junk)
            assert b" 400 " in await reader.read()
            writer.close()
        said = program.log.read_bytes()[before:]
        assert b"no HTTP" in program.log.read_bytes()
        assert b"Traceback" not in said
        assert len(said) < 2000


async def test_large_claims_take_no_memory(shaken_sandbox: Sandbox, shaken: Namespace) -> None:
    """Followed as they come, and listed all at once by a provisioner that starts."""
    provisioner = shaken_sandbox.provisioners[0]
    turns = asyncio.Semaphore(8)

    async def create(number: int) -> None:
        body = claim(f"large-{number}", "1Mi")
        body["spec"]["dataSourceRef"] = {"kind": f"{number}{'K' * 900_000}", "apiGroup": "x.io", "name": "n"}
        body["metadata"]["annotations"] = {
            "volume.kubernetes.io/storage-provisioner": names.PROVISIONER,
            "volume.kubernetes.io/selected-node": _NODE,
        }
        async with turns:
            await shaken.create(CLAIMS, body)

    await asyncio.gather(*(create(number) for number in range(_LARGE)))
    await until(partial(refused, shaken, _LARGE), what="the last one was refused", seconds=60)
    assert largest_memory(provisioner.pid) < _MEMORY
    await provisioner.restart()
    await until(lambda: "the state of the cluster is known" in provisioner.output, what="it leads", seconds=120)
    assert largest_memory(provisioner.pid) < _MEMORY


async def refused(namespace: Namespace, number: int) -> bool:
    named = {
        event["involvedObject"]["name"]
        for event in await namespace.sandbox.api.list(EVENTS, namespace.name)
        if event["reason"] == "ProvisioningFailed"
    }
    return len(named) >= number


def largest_memory(pid: int) -> int:
    """Bytes, since the program started."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10
