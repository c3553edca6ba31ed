"""tools/system-packages on machines where nothing is installed yet, whichever this is."""

import os
import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[3] / "tools" / "system-packages"


def wanted(folder: Path, machine: str, *sets: str) -> list[str]:
    """What a user who is not root is told to install."""
    for name, answer in {"uname": f"echo {machine}", "id": "echo 1000", "dpkg-query": "exit 1"}.items():
        (folder / name).write_text(f"#!/bin/sh\n{answer}\n")
        (folder / name).chmod(0o755)
    done = subprocess.run(
        [PROGRAM, *sets],
        env={"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    said, packages = done.stderr.split("apt-get install ")
    assert said == "these packages are missing; as root: "
    return packages.split()


@pytest.mark.parametrize(("machine", "there"), [("x86_64", True), ("aarch64", False)])
@pytest.mark.parametrize("sets", [[], ["callout"], ["image"]], ids=["tests", "callout", "image"])
def test_user_mode_linux_is_wanted_where_it_exists(tmp_path: Path, machine: str, there: bool, sets: list[str]) -> None:
    packages = wanted(tmp_path, machine, *sets)
    assert ("user-mode-linux" in packages) is there
    assert {"lvm2", "gcc", "libc6-dev"} <= set(packages)
