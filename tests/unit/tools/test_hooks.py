"""What runs at each commit is what `make lint` runs, and a subject stays short."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]


def test_hooks_are_the_checks_of_make_lint() -> None:
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    checks = [line.removeprefix("\t@$(RUN) ") for line in recipe.splitlines()]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook for hook in repository["hooks"] if "stages" not in hook]
    assert [hook["entry"].removeprefix(".venv/bin/") for hook in hooks] == checks
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in hooks)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("Short\n", ""),
        ("Short\n\nThe reasons, in a body whose lines are longer than a subject may ever be in this repository.\n", ""),
        ("# a comment of git\nShort\n# another\n", ""),
        ("ä" * 72 + "\n", ""),
        ("x" * 73 + "\n", "has 73 characters"),
        ("", "has 0 characters"),
        ("Short\nand more\n", "the second line is not empty"),
        ('Revert "' + "x" * 72 + '"\n', ""),
    ],
)
def test_subject_of_a_commit(tmp_path: Path, message: str, error: str) -> None:
    file = tmp_path / "message"
    file.write_text(message)
    done = subprocess.run([ROOT / "tools" / "commit-subject", file], capture_output=True, text=True)
    assert done.returncode == (1 if error else 0), done.stderr
    assert error in done.stderr


def test_editors_and_ruff_agree_on_the_length_of_a_line() -> None:
    (editor,) = re.findall(r"^max_line_length = (\d+)$", (ROOT / ".editorconfig").read_text(), re.MULTILINE)
    (ruff,) = re.findall(r"^line-length = (\d+)$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert editor == ruff
