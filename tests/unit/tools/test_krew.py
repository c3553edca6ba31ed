"""The plugin as krew installs it: the archive unpacked, and run by an interpreter that has nothing installed."""

import ast
import copy
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from command.main import EXECUTABLE
from tests.unit.command.test_main import NOWHERE
from tools import krew, krewlauncher

_ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def content() -> bytes:
    return krew.archive("1.2.0")


@pytest.fixture(scope="module")
def unpacked(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    # Not by tarfile: Debian 12's Python has no filter for it yet, and later ones warn without.
    subprocess.run(["tar", "--extract", "--gzip", "--directory", folder], input=content, check=True)
    return folder


def run(*argv: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        list(argv), env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


def bare(*argv: str | Path) -> "subprocess.CompletedProcess[str]":
    """By an interpreter without what is installed in its environment, or for its user."""
    return run(sys.executable, "-I", "-S", *argv)


def test_it_runs_with_nothing_installed(unpacked: Path) -> None:
    plugin = unpacked / EXECUTABLE
    assert bare(plugin, "--version").stdout == "elastic-local 1.2.0\n"
    assert bare(plugin, "--help").stdout.startswith("Usage: kubectl elastic-local [OPTIONS] COMMAND")
    done = bare(plugin, "capacity", "--kubeconfig", "/nowhere")
    # On a machine under load a line before says that it takes long.
    assert (done.returncode, done.stderr.splitlines()[-1].partition(";")[0]) == (1, NOWHERE)


def test_it_installs_no_driver(unpacked: Path, tmp_path: Path) -> None:
    """The archive is for every machine, so it has none."""
    done = bare(unpacked / EXECUTABLE, "flexdriver", "install", "--plugin-dir", tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    assert "The daemon has one, and installs it when it starts" in done.stderr


def test_no_word_lacks_a_module(unpacked: Path) -> None:
    words = {file.stem for file in (unpacked / "lib" / "command").glob("*.py")}
    done = bare(
        "-c",
        f"import sys; sys.path.insert(0, {str(unpacked / 'lib')!r})\n"
        f"for word in {sorted(words)}: __import__(f'command.{{word}}')\n"
        "import daemon.node, provisioner.main\n"
        "print(*{module.__file__ for module in sys.modules.values() if getattr(module, '__file__', None)}, sep='\\n')",
    )
    assert done.returncode == 0, done.stderr
    elsewhere = {file for file in done.stdout.split() if "site-packages" in file or file.startswith(f"{_ROOT}/")}
    assert not elsewhere


def test_kubectl_finds_and_completes_what_krew_linked(unpacked: Path, tmp_path: Path) -> None:
    """Krew links one name; the caveats tell how to make the other."""
    (tmp_path / EXECUTABLE).symlink_to(unpacked / EXECUTABLE)
    (link,) = re.findall(r"ln -s (\S+) \"\S+/bin/(\S+)\"", krew.manifest("1.2.0", b"", "", "")["spec"]["caveats"])
    (tmp_path / link[1]).symlink_to(link[0])
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    assert run("kubectl", "elastic-local", "--version", PATH=path).stdout == "elastic-local 1.2.0\n"
    assert run("kubectl", "__complete", "elastic-local", "vol", PATH=path).stdout == "volumes\n:4\n"


def test_an_old_python_looks_for_a_newer_one_or_says_what_is_needed(unpacked: Path, tmp_path: Path) -> None:
    source = (unpacked / EXECUTABLE).read_text()
    ast.parse(source, feature_version=(3, 6))
    old = (
        "import sys\nsys.version_info = (3, 9, 6)\nsys.argv = ['kubectl-elastic_local', 'volumes']\n"
        f"exec(compile({source!r}, 'launcher', 'exec'), {{'__name__': '__main__', '__file__': '/launcher'}})"
    )
    done = run(sys.executable, "-I", "-S", "-c", old, PATH=str(tmp_path))
    assert done.returncode == 1
    assert "needs Python 3.11 or later, and python3 is 3.9 here: install one" in done.stderr

    newer = tmp_path / "python3.13"
    newer.write_text('#!/bin/sh\necho "newer: $*"\n')
    newer.chmod(0o755)
    done = run(sys.executable, "-I", "-S", "-c", old, PATH=str(tmp_path))
    assert done.stdout == "newer: kubectl-elastic_local volumes\n"
    assert krewlauncher.OLDEST == (3, 11)


def test_the_same_tree_gives_the_same_bytes(content: bytes, tmp_path: Path) -> None:
    made = run(
        *(sys.executable, "-m", "tools.krew", tmp_path, "1.2.0", "https://example.com/x", "https://inside/files/"),
        PYTHONHASHSEED="7",
    )
    assert made.returncode == 0, made.stderr
    assert (tmp_path / krew.ARCHIVE).read_bytes() == content
    document = yaml.safe_load((tmp_path / "elastic-local.yaml").read_text())
    assert document == krew.manifest("1.2.0", content, "https://example.com/x", "https://inside/files/")
    (platform,) = document["spec"]["platforms"]
    assert platform["uri"] == f"https://inside/files/{krew.ARCHIVE}"


def test_members_are_what_krew_unpacks(content: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = archive.getmembers()
    names = [member.name for member in members]
    assert names == sorted(names)
    assert "LICENSE" in names
    for member in members:
        assert member.isreg()
        assert not member.name.startswith("/")
        assert ".." not in member.name
        assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
        assert Path(member.name).suffix not in {".so", ".pyc", ".pyd", ".dylib"}
    assert {member.name for member in members if member.mode & 0o111} >= {EXECUTABLE}
    assert len(content) < 3_000_000


def test_libraries_are_those_of_the_lock_for_every_python(content: bytes) -> None:
    """And each has its license with it."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        names = archive.getnames()
        about = {
            match[1]: archive.extractfile(name).read().decode()  # type: ignore[union-attr]
            for name in names
            if (match := re.fullmatch(r"lib/([^/]+)\.dist-info/METADATA", name)) and "elastic_local" not in name
        }
    locked = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (_ROOT / "requirements.lock").read_text(), re.MULTILINE))
    versions = {name.lower().replace("_", "-"): version for name, version in (each.split("-") for each in about)}
    assert {name: locked[name] for name in versions} == versions
    for name in about:
        assert any(re.match(rf"lib/{re.escape(name)}\.dist-info/.*LICENSE", each) for each in names), name

    required = {
        requirement.name.lower().replace("_", "-")
        for text in about.values()
        for requirement in map(Requirement, re.findall(r"^Requires-Dist: (.*)$", text, re.MULTILINE))
        for python in ("3.11", "3.12", "3.13", "3.14")
        for system in ("linux", "darwin")
        if requirement.marker is None
        or requirement.marker.evaluate(
            {
                "python_version": python,
                "python_full_version": f"{python}.0",
                "sys_platform": system,
                "platform_system": system.title(),
                "extra": "",
            }
        )
    }
    assert required - set(versions) <= krew.LEFT_OUT


def test_another_version_than_the_locked_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("typer==0.0.1 \\\n    --hash=sha256:00\n")
    monkeypatch.setattr(krew, "_LOCK", lock)
    with pytest.raises(ValueError, match=r"typer \S+ is installed, 0\.0\.1 is locked: run `make tools`"):
        krew.archive("1.2.0")


@pytest.mark.parametrize(
    ("version", "for_krew"),
    [
        ("1.2.0", "v1.2.0"),
        ("1.2.0rc1", "v1.2.0-rc1"),
        ("1.2.0.post5+g1a2b3c4.dirty", "v1.2.0-post5+g1a2b3c4.dirty"),
        ("0+unknown", "v0.0.0+unknown"),
    ],
)
def test_versions_are_semantic_for_krew(version: str, for_krew: str) -> None:
    assert krew.semantic(version) == for_krew
    assert refusal(krew.manifest(version, b"", "https://example.com", "")) == ""


def refusal(plugin: Mapping[str, Any]) -> str:
    """Why krew would refuse the manifest elastic-local.yaml, empty: it would not.

    Source: krew, internal/index/validation/validate.go, cmd/validate-krew-manifest/main.go, and
    k8s.io/apimachinery/pkg/util/version for what ParseSemantic takes."""
    if plugin.get("apiVersion") != "krew.googlecontainertools.github.com/v1alpha2" or plugin.get("kind") != "Plugin":
        return "apiVersion or kind"
    name, spec = plugin["metadata"].get("name", ""), plugin["spec"]
    if name != "elastic-local" or not re.fullmatch(r"[\w-]+", name):
        return "name"
    if not spec.get("shortDescription") or re.search(r"[\r\n]", spec["shortDescription"]):
        return "shortDescription"
    number, words = r"(?:0|[1-9]\d*)", r"[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*"
    if not re.fullmatch(rf"v{number}\.{number}\.{number}(?:-{words})?(?:\+{words})?", spec.get("version", "")):
        return "version"
    selected = [pair for platform in spec.get("platforms", []) for pair in pairs(platform.get("selector") or {})]
    if not selected or len(selected) != len(set(selected)):
        return "selector"
    for platform in spec["platforms"]:
        if not platform.get("uri", "").startswith("https://"):
            return "uri"
        if not re.fullmatch(r"[a-f0-9]{64}", platform.get("sha256", "")):
            return "sha256"
        if not platform.get("bin"):
            return "bin"
        for each in platform.get("files", [{"from": "*", "to": "."}]) or [{}]:
            if not each.get("from") or not each.get("to"):
                return "files"
    return ""


def pairs(selector: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The systems and machines, of those that krew is for, that a selector takes."""
    expressions = {each["key"]: each for each in selector.get("matchExpressions", [])}
    if not expressions or not set(expressions) <= {"os", "arch"}:
        return []
    assert {each["operator"] for each in expressions.values()} == {"In"}
    return [
        (system, machine)
        for system in ("windows", "linux", "darwin")
        for machine in ("386", "amd64", "arm", "arm64", "ppc64le")
        if system in expressions.get("os", {"values": [system]})["values"]
        and machine in expressions.get("arch", {"values": [machine]})["values"]
    ]


def test_krew_takes_the_manifest(content: bytes) -> None:
    plugin = krew.manifest("1.2.0", content, "https://example.com/owner/elastic-local", "")
    assert refusal(plugin) == ""
    spec = plugin["spec"]
    assert all(spec[field] for field in ("description", "caveats", "homepage"))
    assert len(spec["shortDescription"]) <= 50
    (platform,) = spec["platforms"]
    assert set(pairs(platform["selector"])) == {(s, m) for s in ("linux", "darwin") for m in ("amd64", "arm64")}
    assert platform["sha256"] == hashlib.sha256(content).hexdigest()
    assert platform["uri"] == f"https://example.com/owner/elastic-local/releases/download/v1.2.0/{krew.ARCHIVE}"
    assert f"kubectl-{plugin['metadata']['name'].replace('-', '_')}" == platform["bin"] == EXECUTABLE
    assert yaml.safe_load(krew.written(plugin)) == json.loads(json.dumps(plugin))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda spec: spec.update(version="1.2.0"), "version"),
        (lambda spec: spec.update(version="v1.2.0.post5"), "version"),
        (lambda spec: spec.update(shortDescription="two\nlines"), "shortDescription"),
        (lambda spec: spec["platforms"][0].update(sha256="ABC"), "sha256"),
        (lambda spec: spec["platforms"][0].pop("bin"), "bin"),
        (lambda spec: spec["platforms"][0].update(files=[]), "files"),
        (lambda spec: spec["platforms"].append(spec["platforms"][0]), "selector"),
        (lambda spec: spec["platforms"][0].pop("selector"), "selector"),
    ],
)
def test_what_krew_refuses_is_found(spoil: Callable[[Any], object], why: str) -> None:
    plugin = copy.deepcopy(dict(krew.manifest("1.2.0", b"", "https://example.com", "")))
    spoil(plugin["spec"])
    assert refusal(plugin) == why
