"""The version of a tree: from its tag, from the environment, from a source archive, or unknown and said so."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[3]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what says the version, without git."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "version", tmp_path / "tools")
    shutil.copy(ROOT / "setup.py", tmp_path)
    return tmp_path


def git(tree: Path, *words: str) -> str:
    identity = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = os.environ | identity | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(["git", *words], cwd=tree, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(tree: Path) -> str:
    git(tree, "commit", "--quiet", "--allow-empty", "--message", "x")
    return git(tree, "rev-parse", "--short=7", "HEAD")


def version(tree: Path, **environment: str) -> str:
    program = [tree / "tools" / "version"]
    done = subprocess.run(program, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return str(Version(done.stdout.strip())) if "unknown" not in done.stdout else done.stdout.strip()


def of_setup(tree: Path, **environment: str) -> str:
    program = [sys.executable, "-W", "ignore", "setup.py", "--version"]
    clean = {name: value for name, value in os.environ.items() if name != "ELASTIC_LOCAL_VERSION"}
    done = subprocess.run(program, cwd=tree, env=clean | environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_version_follows_the_tags(tree: Path) -> None:
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    first = commit(tree)
    assert version(tree) == f"0.0.0.post1+g{first}"
    git(tree, "tag", "v1.2.0")
    git(tree, "tag", "other-3")
    assert version(tree) == of_setup(tree) == "1.2.0"
    (tree / "setup.py").write_text("# changed")
    assert version(tree) == f"1.2.0.post0+g{first}.dirty"
    git(tree, "checkout", "--quiet", "setup.py")
    commit(tree)
    second = commit(tree)
    assert version(tree) == f"1.2.0.post2+g{second}"
    git(tree, "tag", "--annotate", "v1.3.0rc1", "--message", "x")
    assert version(tree) == "1.3.0rc1"
    assert Version("1.2.0") < Version(f"1.2.0.post2+g{second}") < Version("1.3.0rc1") < Version("1.3.0")


def test_version_without_git(tree: Path) -> None:
    assert version(tree) == of_setup(tree) == "0+unknown"
    assert version(tree, ELASTIC_LOCAL_VERSION="1.2.0") == of_setup(tree, ELASTIC_LOCAL_VERSION="1.2.0") == "1.2.0"


def test_version_in_a_repository_of_others(tree: Path) -> None:
    git(tree, "init", "--quiet")
    commit(tree)
    git(tree, "tag", "v9.9.9")
    unpacked = tree / "unpacked"
    shutil.copytree(tree / "tools", unpacked / "tools")
    assert version(unpacked) == "0+unknown"


def test_version_of_a_source_archive(tree: Path) -> None:
    (tree / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: elastic-local\nVersion: 1.2.0\n\nText: no header\n")
    assert of_setup(tree) == "1.2.0"


def test_version_in_a_container_build_is_an_argument(tree: Path) -> None:
    """The image has no git: both ways to build it must say the version and the commit."""
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert 'ELASTIC_LOCAL_VERSION="${VERSION}"' in dockerfile
    for builder in ("tools/build-image", "deploy/targets.mk"):
        text = (ROOT / builder).read_text()
        assert "VERSION=" in text
        assert "REVISION=" in text
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {"!setup.py", "!LICENSE", "!pyproject.toml"} <= set(ignored)
