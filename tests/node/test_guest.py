"""The harness itself: a test that runs in a guest must not be able to pass without having passed."""

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.uml import guest, reports
from tests.uml.guest import Guest, NoGuest
from tests.uml.reports import GuestFailure, Tests
from tests.waiting import eventually

pytestmark = [pytest.mark.xdist_group("uml-own"), pytest.mark.usefixtures("user_mode_linux")]

Boot = Callable[..., Tests]
UML = Path(guest.__file__).parent


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
        import mmap, os, resource, time
        def test_good():
            assert os.path.exists("/dev/mapper/control")
        def test_that_needs_memory():
            size = 4 << 20
            with mmap.mmap(-1, size) as mapped:
                block = bytearray(size)
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                for memory in (mapped, block):
                    for page in range(0, size, mmap.PAGESIZE):
                        memory[page] = 1
                faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
            assert faults < 100
        def test_bad():
            assert "device" == "mapper"
        def test_that_hangs():
            time.sleep(600)
        """,
        "test_good",
        "test_that_needs_memory",
        "test_bad",
        "test_that_hangs",
    )
    for good in ("test_good", "test_that_needs_memory"):
        assert [(each.when, each.outcome) for each in reports_of(tests, pytestconfig, good)] == [
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
    second = run("second", "dd if=/dev/ubda of=read bs=512 count=1; command -v kubectl >kubectl")
    try:
        assert second.wait(60) == 0
    finally:
        second.kill()
    assert (tmp_path / "second" / "read").read_bytes().startswith(b"precious\n")
    pinned = (tmp_path / "second" / "kubectl").read_text().strip()
    assert pinned == str(Path(sys.executable).with_name("kubectl")), "it is the one that make tools installs"


def run_registers(folder: Path) -> Guest:
    """Boot a guest in which two processes at the same time look whether their registers stay."""
    program = guest.compiled(UML / "xstate_registers.c", folder / "xstate_registers")
    script = '"$0" run 1 300 >one & "$0" run 2 300 >two && wait $!'
    return Guest(folder, ["sh", "-c", script, str(program)], cwd=folder)


def test_a_processor_with_more_state_than_the_guest_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor is an imitation, so that this is tried on all that exist: see xstate_larger.c."""
    monkeypatch.setenv("LD_PRELOAD", str(guest.preloaded(UML / "xstate_larger.c", tmp_path / "xstate_larger.so")))
    booted = run_registers(tmp_path)
    try:
        assert booted.wait(120) == 0, booted.console()
    finally:
        booted.kill()
    assert [int((tmp_path / name).read_text()) > 0 for name in ("one", "two")] == [True, True], "they took turns"


def test_without_what_is_preloaded_a_guest_panics_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else the imitation shows nothing."""
    monkeypatch.setattr(guest, "_XSTATE", UML / "xstate_larger.c")
    booted = run_registers(tmp_path)
    try:
        assert booted.wait(120) is None
    finally:
        booted.kill()
    console = (tmp_path / "console").read_text(errors="replace")
    assert "userspace - ptrace set fp regs failed, errno = 14" in console
    assert "Kernel panic" in console
    assert not (tmp_path / "one").exists()


def test_a_library_that_does_not_compile_is_said(tmp_path: Path) -> None:
    (tmp_path / "wrong.c").write_text("int broken(")
    with pytest.raises(NoGuest, match=r"(?s)^wrong.c can't be compiled \(apt-get install .* gcc libc6-dev\):.*error"):
        guest.preloaded(tmp_path / "wrong.c", tmp_path / "wrong.so")
