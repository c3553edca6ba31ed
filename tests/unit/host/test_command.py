import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from host import command
from host.command import CommandFailed, CommandHung, CommandTimedOut, Completed, LongWork, MissingTool, run
from tests.waiting import until

FAMILY = 'sleep 60 & echo $$ $! >"$0"; echo so far so good; wait'
"""A shell that starts a child and writes both process numbers to the file it is given."""


def alive(pid: int) -> bool:
    """A process that is neither gone nor a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


async def family(file: Path) -> list[int]:
    await until(lambda: file.exists() and file.read_text().endswith("\n"))
    return [int(pid) for pid in file.read_text().split()]


async def test_output_input_environment_and_locale() -> None:
    done = await run(
        "sh",
        "-c",
        "cat; echo $COLOUR $LC_ALL >&2",
        deadline=10,
        env={"COLOUR": "blue", "LC_ALL": "de_DE"},
        input=b"text",
    )
    assert (done.stdout, done.stderr, done.exit_code) == ("text", "blue C\n", 0)


async def test_output_and_input_without_memory_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has none, on which a person's command asks kubectl."""
    monkeypatch.delattr(os, "memfd_create")
    done = await run("sh", "-c", "cat; echo error >&2", deadline=10, input=b"text")
    assert (done.stdout, done.stderr) == ("text", "error\n")


async def test_output_that_is_no_utf8_is_kept_readable() -> None:
    assert (await run("printf", r"\377", deadline=10)).stdout == r"\xff"


async def test_failure_carries_command_exit_code_and_words() -> None:
    with pytest.raises(
        CommandFailed, match=r"sh -c 'echo broken >&2; exit 3' failed with exit code 3: broken"
    ) as raised:
        await run("sh", "-c", "echo broken >&2; exit 3", deadline=10)
    assert raised.value.completed.exit_code == 3
    assert (await run("false", deadline=10, check=False)).exit_code == 1


async def test_deadline_kills_the_whole_group_and_keeps_what_was_said(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    with pytest.raises(CommandTimedOut, match=r"killed at its deadline of 2 s: so far so good") as raised:
        await run("sh", "-c", FAMILY, str(file), deadline=2)
    assert raised.value.completed.exit_code < 0
    shell, child = await family(file)
    assert not alive(shell)
    await until(lambda: not alive(child))


async def test_cancellation_kills_the_whole_group(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    task = asyncio.create_task(run("sh", "-c", FAMILY, str(file), deadline=60))
    shell, child = await family(file)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(shell)
    await until(lambda: not alive(child))


async def test_cancellation_kills_the_whole_group_of_what_is_being_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, create = tmp_path / "pids", asyncio.create_subprocess_exec

    async def slow(*arguments: Any, **keywords: Any) -> asyncio.subprocess.Process:
        process = await create(*arguments, **keywords)
        await family(file)
        running.set()
        await asyncio.sleep(0.1)
        return process

    running = asyncio.Event()
    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    task = asyncio.create_task(run("sh", "-c", FAMILY, str(file), deadline=60))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in await family(file):
        await until(lambda pid=pid: not alive(pid))  # type: ignore[misc]


async def test_a_daemon_that_is_left_behind_keeps_nobody_waiting(tmp_path: Path) -> None:
    done = await run("sh", "-c", "setsid sleep 60 & echo $!", deadline=30)
    try:
        assert done.seconds < 20
    finally:
        os.kill(int(done.stdout), 9)


async def test_missing_program_names_the_package() -> None:
    with pytest.raises(MissingTool, match=r"lvm is not on this node: apt-get install lvm2"):
        await run("lvm", deadline=10, env={"PATH": "/nowhere"})
    with pytest.raises(MissingTool, match=r"no-such-program is not on this node"):
        await run("no-such-program", deadline=10)


async def test_recorder_and_observers_see_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Completed] = []
    monkeypatch.setattr(command, "observers", [seen.append])
    monkeypatch.setattr(command, "recorder", command.FlightRecorder(length=2))
    for text in ("one", "two", "x" * 10_000):
        await run("echo", text, deadline=10)
    assert [done.stdout.strip()[:3] for done in seen] == ["one", "two", "xxx"]
    kept = [flight.completed for flight in command.recorder]
    assert [done.argv[1][:3] for done in kept] == ["two", "xxx"]
    assert len(kept[1].stdout) < 5000 < len(seen[2].stdout)


async def test_a_failure_is_logged_with_what_led_to_it_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(command, "recorder", command.FlightRecorder())
    caplog.set_level(logging.INFO, "host.command")
    await run("echo", "prelude", deadline=10)
    assert not caplog.records
    for _ in range(2):
        with pytest.raises(CommandFailed):
            await run("sh", "-c", "echo finale; false", deadline=10)
    levels = [(record.levelname, "prelude" in record.getMessage()) for record in caplog.records]
    assert levels == [("INFO", True), ("WARNING", False), ("WARNING", False)]
    assert "finale" in caplog.text


async def test_a_program_holds_open_what_it_is_passed_and_nothing_else(tmp_path: Path) -> None:
    passed, kept = (tmp_path / name for name in ("passed", "kept"))
    with passed.open("w") as ours, kept.open("w"):
        completed = await run("sh", "-c", "readlink /proc/self/fd/*", deadline=5, check=False, pass_fds=[ours.fileno()])
    assert str(passed) in completed.stdout
    assert str(kept) not in completed.stdout


async def test_what_can_not_be_killed_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill that does nothing stands for a process in an uninterruptible system call."""
    file, kill, create = tmp_path / "pids", os.killpg, asyncio.create_subprocess_exec
    processes: list[asyncio.subprocess.Process] = []

    async def kept(*arguments: Any, **keywords: Any) -> asyncio.subprocess.Process:
        processes.append(await create(*arguments, **keywords))
        return processes[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", kept)
    monkeypatch.setattr(command, "_REAP_SECONDS", 0.1)
    with monkeypatch.context() as deaf:
        deaf.setattr(os, "killpg", lambda group, number: None)
        with pytest.raises(CommandTimedOut):
            await run("sh", "-c", FAMILY, str(file), deadline=1, kind="of that disk")
    shell, child = await family(file)
    with pytest.raises(CommandHung, match=rf"process {shell}\) was killed 0 s ago .* restart the node"):
        await run("true", deadline=10, kind="of that disk")
    assert (await run("true", deadline=10)).exit_code == 0, "others go on"
    os.kill(shell, signal.SIGKILL)  # its child still waits
    await until(lambda: not alive(shell))
    with pytest.raises(CommandHung):
        await run("true", deadline=10, kind="of that disk")
    kill(shell, signal.SIGKILL)
    await until(lambda: not alive(child))
    assert (await run("true", deadline=10, kind="of that disk")).exit_code == 0
    await processes[0].wait()  # else a loop that ends before it heard of that leaves a transport to another test


async def test_a_long_command_line_does_not_fill_the_message_about_it() -> None:
    """As one that is about many volumes."""
    with pytest.raises(
        CommandFailed, match=r"^sh -c .* sh x{900,}\.\.\. \(50\d\d characters\) failed .*: why$"
    ) as failed:
        await run("sh", "-c", "echo why >&2; exit 3", "sh", "x" * 5000, deadline=10)
    assert len(str(failed.value)) < 1200


BUSY = "end=$(($(date +%s) + 3)); while [ $(date +%s) -lt $end ]; do :; done; echo done"


def checker(folder: Path, work: str) -> str:
    """A program of the name that long work has."""
    file = folder / "check"
    file.write_text(f"#!/bin/sh\n{work}\n")
    file.chmod(0o755)
    return f"{file}; exit $?"


async def test_long_work_that_gets_on_has_more_time(tmp_path: Path) -> None:
    begun: list[str] = []
    work = LongWork("check", 60, lambda: begun.append("begun"))
    done = await run("sh", "-c", checker(tmp_path, BUSY), deadline=1, long_work=work)
    assert done.stdout == "done\n"
    assert begun == ["begun"], "and is heard of once"


@pytest.mark.parametrize(
    ("work", "name", "seconds"),
    [
        (BUSY, "another", 60),
        (BUSY, "check", 1),
        ("mkfifo $0.fifo; read line <$0.fifo", "check", 60),
    ],
    ids=["another program", "longer than that", "it waits"],
)
async def test_what_is_no_long_work_or_gets_no_further_ends_at_the_deadline(
    tmp_path: Path, work: str, name: str, seconds: float
) -> None:
    with pytest.raises(CommandTimedOut):
        await run("sh", "-c", checker(tmp_path, work), deadline=1, long_work=LongWork(name, seconds))
