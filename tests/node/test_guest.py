"""The harness itself: a test that runs in a guest must not be able to pass without having passed."""

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.uml import guest, reports
from tests.uml.guest import Guest
from tests.uml.reports import GuestFailure, Tests
from tests.waiting import eventually

pytestmark = pytest.mark.xdist_group("uml-own")

Boot = Callable[..., Tests]


@pytest.fixture(autouse=True)
def _installed() -> None:
    assert not guest.missing()


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Boot]:
    """boot(source, *names) runs these tests of a file with that source."""
    booted: list[Tests] = []

    def run(source: str, *names: str) -> Tests:
        (tmp_path / "test_it.py").write_text(textwrap.dedent(source))
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        shared = tmp_path / "shared"
        shared.mkdir()
        booted.append(Tests(shared, tmp_path, [f"test_it.py::{name}" for name in names]))
        return booted[-1]

    yield run
    for tests in booted:
        tests.close()


def reports_of(tests: Tests, config: pytest.Config, name: str) -> list[pytest.TestReport]:
    return list(tests.reports(config, f"test_it.py::{name}"))


def test_reports_come_back_and_a_hang_ends(
    boot: Boot, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = boot(
        """
        import os, time
        def test_good():
            assert os.path.exists("/dev/mapper/control")
        def test_bad():
            assert "device" == "mapper"
        def test_that_hangs():
            time.sleep(600)
        """,
        "test_good",
        "test_bad",
        "test_that_hangs",
    )
    assert [(each.when, each.outcome) for each in reports_of(tests, pytestconfig, "test_good")] == [
        ("setup", "passed"),
        ("call", "passed"),
        ("teardown", "passed"),
    ]
    (failed,) = [each for each in reports_of(tests, pytestconfig, "test_bad") if each.outcome != "passed"]
    assert (failed.when, failed.outcome) == ("call", "failed")
    assert 'assert "device" == "mapper"' in failed.longreprtext
    monkeypatch.setattr(reports, "SILENCE_SECONDS", 1)
    with pytest.raises(GuestFailure, match="said nothing for 1 s"):
        reports_of(tests, pytestconfig, "test_that_hangs")


def test_a_panic_fails_the_test_and_those_after_it(boot: Boot, pytestconfig: pytest.Config) -> None:
    tests = boot(
        """
        def test_that_panics():
            open("/proc/sysrq-trigger", "w").write("c")
        def test_after():
            pass
        """,
        "test_that_panics",
        "test_after",
    )
    for name in ("test_that_panics", "test_after"):
        with pytest.raises(GuestFailure, match=r"(?s)without running this test to its end.*Kernel panic"):
            reports_of(tests, pytestconfig, name)


def test_a_disk_outlives_a_power_cut(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(16 << 20)

    def run(name: str, script: str) -> Guest:
        folder = tmp_path / name
        folder.mkdir()
        return Guest(folder, ["sh", "-c", script], cwd=folder, disks=[disk])

    first = run("first", "echo precious | dd of=/dev/ubda conv=fsync; touch written; sleep 600")
    try:
        eventually(lambda: (tmp_path / "first" / "written").exists())
    finally:
        first.kill()
    assert first.exit_code is None
    second = run("second", "dd if=/dev/ubda of=read bs=512 count=1")
    try:
        assert second.wait(60) == 0
    finally:
        second.kill()
    assert (tmp_path / "second" / "read").read_bytes().startswith(b"precious\n")


def test_what_is_missing_is_said_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "_PROGRAMS", ("sh", "no-such-program"))
    assert guest.missing().startswith("no-such-program not found: apt-get install user-mode-linux ")
