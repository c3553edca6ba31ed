"""`vg create --any-disk` on a machine with real disks: ubd devices of User-mode Linux, whatever kernel runs the tests.
On the machine that runs the tests it would take one of its disks."""

import json
import sys
from pathlib import Path

import pytest

from tests.uml.guest import PROJECT, Guest

pytestmark = [pytest.mark.xdist_group("uml-own"), pytest.mark.usefixtures("user_mode_linux")]

_SCRIPT = """
import json, subprocess
from typer.testing import CliRunner
from command.main import app

def create(*arguments):
    done = CliRunner().invoke(app, ["vg", "create", *arguments, "--output", "json", "--data-dir", "/tmp/data"])
    return done.exit_code, done.stdout, done.stderr

subprocess.run(["mkfs.xfs", "-q", "-f", "/dev/ubdc"], check=True)
answers = {
    "first": create("first", "--any-disk", "--loop-size", "64Mi"),
    "second": create("second", "--any-disk"),
    "none left": create("third", "--any-disk"),
    "third": create("third", "--any-disk", "--loop-size", "32Mi"),
    "first again": create("first", "--any-disk", "--loop-size", "64Mi"),
}
open("answers", "w").write(json.dumps(answers))
"""
_SIZES = {"small": 64 << 20, "large": 256 << 20, "largest-but-used": 320 << 20}


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    paths = []
    for name, size in _SIZES.items():
        path = tmp_path / name
        with path.open("wb") as file:
            file.truncate(size)
        paths.append(path)
    return paths


def test_the_largest_empty_disk_is_taken_and_a_file_when_there_is_none(tmp_path: Path, disks: list[Path]) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    guest = Guest(
        folder,
        [sys.executable, "-c", _SCRIPT],
        cwd=folder,
        environment={"PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"},
        disks=disks,
    )
    try:
        assert guest.wait(150) == 0, guest.console()
    finally:
        guest.kill()
    answers = json.loads((folder / "answers").read_text())

    def devices(name: str) -> list[str]:
        code, output, errors = answers[name]
        assert code == 0, errors
        (group,) = json.loads(output)
        names: list[str] = group["devices"]
        return names

    assert devices("first") == devices("first again") == ["/dev/ubdb"]
    assert devices("second") == ["/dev/ubda"]
    assert devices("third")[0].startswith("/dev/loop")
    code, _, said = answers["none left"]
    assert code == 1
    assert "no disk of this node is empty" in said
    assert "/dev/ubda (64Mi): it belongs to LVM" in said
    assert "/dev/ubdc (320Mi): it holds xfs" in said
