import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from host import command

Run = Callable[..., "subprocess.CompletedProcess[str]"]
PYTHON = "/opt/elastic-local/bin/python"


def test_nobody_in_particular_runs_it(run: Run) -> None:
    assert run("id", "-u").stdout.strip() == "65532"


def test_it_says_which_version_it_is(run: Run, labels: dict[str, str]) -> None:
    root = Path(__file__).parents[2]
    version = subprocess.run([root / "tools" / "version"], capture_output=True, text=True, check=True).stdout.strip()
    assert run("elastic-local", "--version").stdout == f"elastic-local {version}\n"
    known = {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()}
    assert (known["version"], known["licenses"], known["title"]) == (version, "Apache-2.0", "elastic-local")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    assert known["revision"] == (commit.stdout.strip() or "unknown")


@pytest.mark.parametrize("words", [[], ["daemon"], ["provisioner"], ["flexdriver", "install"], ["vg", "create"]])
def test_every_command_is_there(run: Run, words: list[str]) -> None:
    done = run("elastic-local", *words, "--help")
    assert done.returncode == 0, done.stdout
    assert "Usage: elastic-local" in done.stdout


@pytest.mark.parametrize(
    ("program", "user", "environment", "words"),
    [
        ("daemon", "0", {}, "NODE_NAME is not set"),
        ("daemon", "0", {"NODE_NAME": "n", "DRIVER_KIND": "ZFS"}, "DRIVER_KIND is 'ZFS'"),
        ("daemon", "0", {"NODE_NAME": "n"}, "KUBECONFIG"),
        ("provisioner", "", {"LOG_LEVEL": "LOUD"}, "LOG_LEVEL is 'LOUD'"),
        ("provisioner", "", {}, "KUBECONFIG"),
    ],
)
def test_a_wrong_setting_ends_a_program_with_a_line(
    run: Run, program: str, user: str, environment: dict[str, str], words: str
) -> None:
    done = run("elastic-local", program, user=user, **environment)
    assert done.returncode == 2
    assert words in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("program", sorted(command.PACKAGES))
def test_every_program_that_we_call_is_there(run: Run, program: str) -> None:
    assert run("sh", "-c", 'command -v "$0"', program).returncode == 0


def test_lvm_answers(run: Run) -> None:
    assert "LVM version:     2.03" in run("lvm", "version", user="0").stdout
    assert run("thin_check", "--version").returncode == 0


@pytest.mark.parametrize(
    ("make", "check"),
    [
        ("mkfs.ext4 -q", "e2fsck -fn"),
        ("mkfs.xfs -q", "xfs_repair -n"),
        ("mkfs.btrfs -q", "btrfs check"),
    ],
)
def test_each_filesystem_can_be_made_and_checked(run: Run, make: str, check: str) -> None:
    file = "/tmp/" + make.split()[0]
    done = run("sh", "-ec", f"truncate -s 400M {file}; {make} {file}; {check} {file}; rm {file}")
    assert done.returncode == 0, done.stdout


def test_it_installs_the_native_driver_which_answers(run: Run) -> None:
    done = run(
        *("sh", "-ec", "elastic-local flexdriver install --plugin-dir /tmp/plugins; exec /tmp/plugins/*/* init"),
        user="0",
    )
    installed, answer = done.stdout.splitlines()
    assert "(native, for " in installed
    assert json.loads(answer)["status"] == "Success"


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183)])
def test_it_has_the_driver_for_nodes_of_both_machines(run: Run, machine: str, number: int) -> None:
    """The number is that of the machine in the head of an ELF file (elf(5), e_machine)."""
    source = f"from flexdriver.installation import native; print(native({machine!r}).executable[:20].hex())"
    head = bytes.fromhex(run(PYTHON, "-c", source).stdout)
    assert head[:4] == b"\x7fELF"
    assert int.from_bytes(head[18:20], "little") == number


@pytest.mark.parametrize("what", ["gcc", "make", "pip", "/opt/elastic-local/bin/pip", "pytest"])
def test_what_only_builds_it_is_not_in_it(run: Run, what: str) -> None:
    assert run("sh", "-c", 'command -v "$0"', what).returncode != 0
