import platform
import subprocess
import sys
from pathlib import Path

import pytest

from flexdriver import installation
from flexdriver.installation import Driver

SOURCES = Path(installation.__file__).with_name("native")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--machine",
        default=platform.machine(),
        help="hold the native callout of this machine to the tests; another than this one needs qemu-user",
    )


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest) -> str:
    name: str = request.config.getoption("--machine", default=platform.machine())
    return name


@pytest.fixture(scope="session")
def native(machine: str) -> Driver:
    """The native driver, built unless it is as new as its sources."""
    subprocess.run(
        ["make", "--silent", "-C", SOURCES, f"build/callout.{machine}", f"PYTHON={sys.executable}"], check=True
    )
    driver = installation.native(machine)
    assert driver is not None
    return driver
