"""The command as a plugin that krew installs, `make krew`: one archive for Linux and macOS on any machine, and its
manifest. https://krew.sigs.k8s.io/docs/developer-guide/plugin-manifest

The archive has the command with the libraries of the image (deploy/requirements.lock), as they are installed here,
without what of them is compiled: each has the same in Python. It is a folder and no zip application, which would
compile all modules anew for each call (1.9 s instead of 0.7 for `capacity`). The same tree, lock and Python give the
same bytes.
"""

import gzip
import hashlib
import io
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from command.main import EXECUTABLE

PLUGIN = "elastic-local"
ARCHIVE = "kubectl-elastic_local.tar.gz"
MANIFEST = f"{PLUGIN}.yaml"
"""Krew wants it named after the plugin."""

_ROOT = Path(__file__).parent.parent
_LOCK = _ROOT / "deploy" / "requirements.lock"
_PACKAGES = ("command", "contract", "daemon", "flexdriver", "host", "kube", "lvm", "provisioner", "service")
LEFT_OUT = frozenset({"colorama", "markdown-it-py", "mdurl", "orjson", "pygments", "setuptools", "uvloop"})
"""Of the lock: for Windows; what rich shows Markdown and source code with, which we never do; the provisioner's; what
installs us."""
_OURS = {".py", ".json", ".sh"}
_LICENSE = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)

_DESCRIPTION = """\
Shows the volumes that elastic-local made on the disks of the nodes, with their
claims, pods and use, and how much capacity each node has left. Its doctor checks
a cluster and says how to mend what it finds. Moves volumes from FlexVolume to CSI.
"""
_CAVEATS = """\
Needs Python 3.11 or later: python3, or python3.11 and so on, on your PATH.
Start with:
  kubectl elastic-local doctor --cluster
Completion of its words by kubectl needs one more link:
  ln -s kubectl-elastic_local "${KREW_ROOT:-$HOME/.krew}/bin/kubectl_complete-elastic_local"
"""


def archive(version: str) -> bytes:
    """Raises ValueError when what is installed is not what is locked."""
    files = {
        EXECUTABLE: Path(__file__).with_name("krewlauncher.py").read_bytes(),
        "LICENSE": (_ROOT / "LICENSE").read_bytes(),
        f"lib/elastic_local-{version}.dist-info/METADATA": _metadata(version),
    }
    for path, content in (*_ours(), *(each for name in _locked() for each in _library(*name))):
        files[f"lib/{path}"] = content
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as members:
        for path in sorted(files):
            member = tarfile.TarInfo(path)
            member.size = len(files[path])
            member.mode = 0o755 if path == EXECUTABLE or path.endswith(".sh") else 0o644
            members.addfile(member, io.BytesIO(files[path]))
    return gzip.compress(tar.getvalue(), 9, mtime=0)


def _metadata(version: str) -> bytes:
    return f"Metadata-Version: 2.4\nName: {PLUGIN}\nVersion: {version}\nLicense-Expression: Apache-2.0\n".encode()


def _ours() -> Iterator[tuple[str, bytes]]:
    for package in _PACKAGES:
        for file in _ROOT.joinpath(package).rglob("*"):
            if file.suffix in _OURS and file.is_file():
                yield str(file.relative_to(_ROOT)), file.read_bytes()


def _locked() -> Iterator[tuple[str, str]]:
    """Name and version of each library."""
    for name, version in re.findall(r"^([a-z0-9.-]+)==(\S+)", _LOCK.read_text(), re.MULTILINE):
        if name not in LEFT_OUT:
            yield name, version


def _library(name: str, version: str) -> Iterator[tuple[str, bytes]]:
    """Its modules, and what says its name, version and license."""
    distribution = metadata.distribution(name)
    if distribution.version != version:
        raise ValueError(f"{name} {distribution.version} is installed, {version} is locked: run `make tools`")
    for file in distribution.files or ():
        if ".." not in file.parts and (file.suffix == ".py" or file.name == "METADATA" or _LICENSE.match(file.name)):
            yield str(file), Path(file.locate()).read_bytes()


def semantic(version: str) -> str:
    """As krew reads versions, of one as tools/version writes it. What is between two releases looks like a candidate of
    the earlier one."""
    match = re.match(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?(.*)", version)
    assert match, version
    numbers, (rest, plus, build) = (each or "0" for each in match.groups()[:3]), match[4].partition("+")
    before = f"-{rest.lstrip('.')}" if rest else ""
    return f"v{'.'.join(numbers)}{before}{plus}{build}"


def manifest(version: str, content: bytes, repository: str, release_url: str) -> Mapping[str, Any]:
    """`release_url` is the folder that has the archive, empty: that of the version's release in the repository."""
    folder = release_url or f"{repository}/releases/download/v{version}"
    return {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": PLUGIN},
        "spec": {
            "version": semantic(version),
            "homepage": repository,
            "shortDescription": "Show and check the local volumes of nodes",
            "description": _DESCRIPTION,
            "caveats": _CAVEATS,
            "platforms": [
                {
                    "selector": {
                        "matchExpressions": [
                            {"key": "os", "operator": "In", "values": ["darwin", "linux"]},
                            {"key": "arch", "operator": "In", "values": ["amd64", "arm64"]},
                        ]
                    },
                    "uri": f"{folder.rstrip('/')}/{ARCHIVE}",
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "files": [{"from": "*", "to": "."}],
                    "bin": EXECUTABLE,
                }
            ],
        },
    }


def written(document: Mapping[str, Any]) -> str:
    """YAML, with texts of several lines as such."""

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True)


if __name__ == "__main__":
    folder, version, repository, release_url = Path(sys.argv[1]), *sys.argv[2:5]
    content = archive(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ARCHIVE).write_bytes(content)
    document = manifest(version, content, repository, release_url)
    (folder / MANIFEST).write_text(written(document))
    print(f"{folder / ARCHIVE} ({len(content) / 1e6:.1f} MB) and {folder / MANIFEST}")
