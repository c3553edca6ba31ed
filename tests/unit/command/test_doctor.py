"""What `doctor` tells, and when."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from command import doctor, nodecheckup, starting
from command.checkup import Finding, Verdict, ok
from daemon.csi import server
from daemon.settings import Settings
from daemon.storage.deviceclasses import BINDMOUNT
from tests.waiting import until


async def test_what_is_found_is_told_at_once_and_what_takes_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever reads it sees how far it came."""
    monkeypatch.setattr(doctor, "_LONGEST", 0.05)
    ended = False
    found: list[Finding] = []

    async def findings() -> AsyncGenerator[Finding, None]:
        nonlocal ended
        try:
            yield ok("socket", "answers")
            assert found == [ok("socket", "answers")]
            await asyncio.Event().wait()
        finally:
            ended = True

    results = await doctor.told(findings(), "checking this node", found.append)
    assert results == found
    assert [finding.verdict for finding in results] == [Verdict.OK, Verdict.WRONG]
    assert results[1].message == ("checking this node took more than 0.05 s: what comes after socket was not found out")
    assert ended


async def test_what_does_not_answer_is_asked_at_the_same_time(tmp_path: Path, kubelet_root: Path) -> None:
    """Each has ten seconds. A daemon that is stopped answers nowhere."""
    everybody = asyncio.Barrier(2)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await everybody.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[+]node ok\n")
        writer.close()
        await writer.wait_closed()

    csi = server.driver_socket(kubelet_root)
    csi.parent.mkdir(parents=True)
    async with await asyncio.start_unix_server(answer, csi), await asyncio.start_server(answer, "127.0.0.1") as http:
        here = Settings(
            "node-1",
            driver_kind=BINDMOUNT,
            socket=tmp_path / "socket",
            kubelet_root=kubelet_root,
            data_dir=tmp_path,
            flex_volume=False,
            listen_host="127.0.0.1",
            listen_port=http.sockets[0].getsockname()[1],
        )
        found = {each.check: each async for each in nodecheckup.findings(replace(here, namespace="storage"))}
    assert "does not answer" in found["CSI driver"].message
    assert "TimeoutError" not in found["CSI driver"].message
    assert found["daemon: node"].verdict is Verdict.OK


async def test_a_command_that_takes_long_to_be_loaded_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(starting, "_PATIENCE", 3600.0)
    starting.begin()
    [timer] = starting._waiting
    starting.done()
    await until(lambda: not timer.is_alive())
    assert capfd.readouterr().err == ""

    monkeypatch.setattr(starting, "_PATIENCE", 0.0)
    starting.begin()
    [timer] = starting._waiting
    await until(lambda: not timer.is_alive())
    starting.done()
    assert "busy" in capfd.readouterr().err
