"""The image, unpacked by buildah, and commands run in it in a chroot: what needs neither a container engine nor
namespaces."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--image", type=Path, help="the image's archive, as tools/build-image makes it")


@pytest.fixture(scope="session")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("buildah")
    return ["buildah", "--root", f"{folder}/store", "--runroot", f"{folder}/run", "--storage-driver", "vfs"]


@pytest.fixture(scope="session")
def container(request: pytest.FixtureRequest, buildah: list[str]) -> Iterator[str]:
    archive: Path | None = request.config.getoption("--image")
    assert archive is not None, "`make image` builds the image and runs these tests on it"
    made = subprocess.run(
        [*buildah, "from", "--quiet", f"docker-archive:{archive.resolve()}"], capture_output=True, text=True, check=True
    )
    name = made.stdout.strip()
    yield name
    subprocess.run([*buildah, "rm", name], capture_output=True, check=True)


@pytest.fixture(scope="session")
def labels(buildah: list[str], container: str) -> dict[str, str]:
    """Of the image."""
    shown = subprocess.run([*buildah, "inspect", container], capture_output=True, text=True, check=True).stdout
    image_labels: dict[str, str] = json.loads(shown)["OCIv1"]["config"]["Labels"]
    return image_labels


@pytest.fixture(scope="session")
def run(buildah: list[str], container: str) -> Run:
    """Runs a command of the image, as its own user or as another; the outputs come together, as a log has them."""

    def run(*argv: str, user: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
        options = [f"--env={name}={value}" for name, value in environment.items()]
        if user:
            options.append(f"--user={user}")
        return subprocess.run(
            [*buildah, "run", "--isolation", "chroot", *options, container, "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )

    return run
