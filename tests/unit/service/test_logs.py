"""Each line names what it is about, in both forms."""

import asyncio
import json
import logging
from collections.abc import Iterator

import pytest
from hpack import Decoder, Encoder

from service import logs

log = logging.getLogger("daemon.mounts")


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_of_text_ends_with_its_subjects(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(logs.TEXT, "INFO")
    with logs.about(volume="pvc-1", claim=""), logs.about(pod="ns/web"):
        log.info("mounted %s", "rw")
        log.debug("not shown")
    log.info("alone")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("INFO    daemon.mounts: mounted rw volume=pvc-1 pod=ns/web")
    assert second.endswith("daemon.mounts: alone")


def test_the_bytes_of_a_call_are_no_debugging_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(logs.TEXT, "DEBUG")
    Decoder().decode(Encoder().encode([(b":method", b"POST")]))
    log.debug("shown")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("daemon.mounts: shown")


@pytest.mark.parametrize("form", [logs.TEXT, logs.JSON])
def test_what_users_write_looks_like_no_line_of_ours(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(form, "INFO")
    message = "a\n2026-01-01 00:00:00,000 ERROR   daemon: fire\r\x1b[2J"
    log.info("node %s has no room", message, extra={"pod": "b\nc"}, exc_info=ValueError(message))
    written = capsys.readouterr().err
    first, *more = written.splitlines()
    assert "INFO    daemon.mounts: node a" in first or json.loads(first)["pod"] == "b\nc"
    assert not any(line.startswith(("2026-01-01", "c")) for line in more)
    assert not {"\r", "\x1b"} & set(written)


def test_a_line_of_json_has_them_as_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(logs.JSON, "INFO")
    with logs.about(volume="pvc-1", claim="ns/data"):
        try:
            raise ValueError("inside")
        except ValueError:
            log.exception("failed", extra={"volume": "pvc-2"})
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["logger"], line["message"]) == ("error", "daemon.mounts", "failed")
    assert (line["volume"], line["claim"]) == ("pvc-2", "ns/data")
    assert "ValueError: inside" in line["exception"]


async def test_tasks_inherit_the_subject_and_keep_it_to_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(logs.JSON, "INFO")

    async def work(name: str) -> None:
        with logs.about(pod=name):
            await asyncio.sleep(0)
            log.info("working")

    with logs.about(volume="pvc-1"):
        await asyncio.gather(work("a"), work("b"))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["volume"], line["pod"]) for line in lines] == [("pvc-1", "a"), ("pvc-1", "b")]


@pytest.mark.parametrize("form", [logs.TEXT, logs.JSON])
def test_a_line_has_an_end_however_long_what_users_write_is(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(form, "INFO")
    log.info("class %s", "x" * 1_000_000, exc_info=ValueError("y" * 1_000_000 + " at last"))
    written = capsys.readouterr().err
    assert len(written) < 20_000
    assert "more characters)" in written
    assert "at last" in written
