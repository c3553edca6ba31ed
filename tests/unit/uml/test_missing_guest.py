"""What is said where no guest can be booted."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.uml import guest
from tests.uml.guest import PROJECT, Guest, NoGuest

SENTENCE = (
    "User-mode Linux is for x86-64 only, and this is aarch64; "
    "as root, on a machine whose kernel has device-mapper: modprobe dm_mod && make test"
)


def test_a_program_is_said_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(guest, "_PROGRAMS", ("sh", "no-such-program"))
    said = guest.missing()
    assert said.startswith("no-such-program not found: apt-get install user-mode-linux ")
    with pytest.raises(NoGuest) as failed:
        Guest(tmp_path, ["true"], cwd=tmp_path)
    assert str(failed.value) == said


@pytest.mark.parametrize(
    ("device_mapper", "lines"),
    [
        (
            False,
            [
                "FAILED test_two.py::test_that_needs_it - this kernel has no device-mapper for us, and to boot one "
                f"that has: {SENTENCE}",
                f"ERROR test_two.py::test_that_boots_a_guest - Failed: {SENTENCE}",
                "1 failed, 1 error",
            ],
        ),
        (True, ["1 passed, 1 skipped"]),
    ],
    ids=["none", "device-mapper"],
)
def test_another_machine_needs_a_kernel_with_device_mapper(
    tmp_path: Path, device_mapper: bool, lines: list[str]
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(
        textwrap.dedent(f"""
        import platform
        from pathlib import Path
        from tests.uml import plugin
        platform.machine = lambda: "aarch64"
        plugin._TESTS = Path(__file__).parents[1]
        plugin.has_device_mapper = lambda: {device_mapper}
        """)
    )
    (tmp_path / "test_two.py").write_text(
        textwrap.dedent("""
        import pytest
        @pytest.mark.device_mapper
        def test_that_needs_it():
            pass
        @pytest.mark.usefixtures("user_mode_linux")
        def test_that_boots_a_guest():
            pass
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.uml.plugin", "-p", "no:cacheprovider", "--quiet", "--color=no"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(PROJECT), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert [line for line in lines if line not in done.stdout] == [], done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "guest.py" not in done.stdout
