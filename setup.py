"""The version, which comes from the tag. Everything else is in pyproject.toml."""

import os
import subprocess
from email.parser import Parser
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def version() -> str:
    """Without git, as in the build of the image, that of ELASTIC_LOCAL_VERSION; in a source archive, its own."""
    archive, program = ROOT / "PKG-INFO", ROOT / "tools" / "version"
    if given := os.environ.get("ELASTIC_LOCAL_VERSION"):
        return given
    if archive.exists():
        return str(Parser().parsestr(archive.read_text(), headersonly=True)["Version"])
    if program.exists():
        return subprocess.run([program], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    return "0+unknown"


setup(version=version())
