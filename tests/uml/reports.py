"""Runs tests in a guest and brings their reports back, as xdist does with its workers.

On the host, `Tests` boots one guest for all tests that need device-mapper and gives out the reports of each. In the
guest this module is a pytest plugin that writes every report to a file in the shared folder, one JSON object a line.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.nodes import VOLUME_SOURCE_VARIABLE, default_source
from tests.uml.guest import PROJECT, Guest
from tests.waiting import PATIENCE_VARIABLE

_REPORTS = "REPORTS_OF_GUEST"
"""In the guest: the file for the reports."""

SILENCE_SECONDS = 180
"""So long a guest may say nothing: a test under User-mode Linux takes seconds, booting and importing up to ten."""

_POLL_SECONDS = 0.05

Line = dict[str, Any]


class GuestFailure(Exception):
    """The guest did not run a test to its end: says what happened, with the end of its console."""


class Tests:
    """The tests of one guest. They run there in the order given, whichever is asked for first."""

    __test__ = False

    def __init__(self, folder: Path, root: Path, node_ids: Sequence[str]) -> None:
        (folder / "tests").write_text("\n".join(node_ids))
        self._file = folder / "reports"
        self._file.touch()
        self._read = 0
        self._lines: dict[str, list[Line]] = {}
        self._finished: set[str] = set()
        self._guest = Guest(
            folder,
            [
                sys.executable,
                "-m",
                "pytest",
                *("-p", "no:cacheprovider", "-p", "tests.uml.reports"),
                # The disks of a test that passed go at once: the guest keeps them in its memory.
                *("-o", "tmp_path_retention_policy=failed"),
                "--quiet",
                "--tb=short",
                "--color=no",
                f"--rootdir={root}",
                f"@{folder / 'tests'}",
            ],
            cwd=root,
            environment={
                _REPORTS: str(self._file),
                PATIENCE_VARIABLE: "4",
                VOLUME_SOURCE_VARIABLE: default_source(),
                "PYTHONPATH": str(PROJECT),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        )

    def reports(self, config: pytest.Config, node_id: str) -> Iterator[pytest.TestReport]:
        """The reports of one test, when it has run. Raises GuestFailure."""
        for line in self._wait_for(node_id):
            report = config.hook.pytest_report_from_serializable(config=config, data=line)
            assert isinstance(report, pytest.TestReport)
            yield report

    def _wait_for(self, node_id: str) -> list[Line]:
        heard = time.monotonic()
        while node_id not in self._finished:
            running = self._guest.running  # asked before reading: what an ended guest wrote is all there
            if self._receive():
                heard = time.monotonic()
            elif not running:
                raise GuestFailure(f"the guest ended without running this test to its end\n{self._guest.console()}")
            elif time.monotonic() - heard > SILENCE_SECONDS:
                self._guest.kill()
                raise GuestFailure(f"the guest said nothing for {SILENCE_SECONDS} s\n{self._guest.console()}")
            else:
                time.sleep(_POLL_SECONDS)
        return self._lines[node_id]

    def _receive(self) -> bool:
        """Take in what the guest wrote; whether there was something. Its last line may be half written."""
        with self._file.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for text in whole.splitlines():
            line: Line = json.loads(text)
            if "finished" in line:
                self._finished.add(line["finished"])
            else:
                self._lines.setdefault(line["test"], []).append(line["report"])
        return bool(whole)

    def close(self) -> None:
        """End the guest. It has ended by itself when all its tests were asked for."""
        self._guest.kill()


class _Reporter:
    """The guest's side."""

    def __init__(self, config: pytest.Config, file: Path) -> None:
        self._config = config
        self._file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write({"test": report.nodeid, "report": data})

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write({"finished": nodeid})

    def _write(self, line: Line) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Reporter(config, Path(os.environ[_REPORTS])))
