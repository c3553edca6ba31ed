"""The node floor: real lvm2, mkfs, mounts and loop devices. Nothing about LVM is ever mocked here.

Mark what needs device-mapper, and so anything that creates a logical volume:

    pytestmark = pytest.mark.device_mapper

Where the kernel has device-mapper and we are root, such a test runs like any other. Elsewhere it runs inside User-mode
Linux (uml.py): the first one boots a guest that runs all of them, and each report comes back as the test's own. A guest
that panics, hangs or leaves a test out fails that test and shows its console. Under xdist all of them go to one worker
(`--dist loadgroup`).

In the guest /run, /tmp and /mnt are empty folders in memory at the start; there is no network, no udev, and everything
takes 3 to 9 times as long. Tests without the mark run on the host as it is.

Fixtures:

    lvm           an Lvm with a configuration folder of its own
    make_disks    make_disks(count, size) -> paths of fresh, empty block devices (sparse files on loop devices)
    by_hand       by_hand("lvchange", ...) runs what the library does not offer and a person at the node might do
    volume_group  the name of a fresh volume group on three disks of 3 GiB, extents of 4 MiB: 767 extents a disk
"""

import contextlib
import os
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from host import loopdevice
from lvm import Lvm
from tests.node import uml
from tests.node.guest import GuestFailure, Tests

_MARK = "device_mapper"
_GROUP = "uml"
_DISK = 3 << 30

MakeDisks = Callable[[int, int], list[str]]
ByHand = Callable[..., None]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{_MARK}: needs device-mapper: runs in User-mode Linux where the kernel has none"
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker(_MARK):
        item.add_marker(pytest.mark.xdist_group(_GROUP))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if item.get_closest_marker(_MARK) is None or _has_device_mapper():
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # The modules and folders that were set up for earlier tests go, if the next test is not in them: for a test
    # that runs here, pytest does so itself.
    item.session._setupstate.teardown_exact(nextitem)
    return True


def _has_device_mapper() -> bool:
    """The file alone says nothing: it may be there without the driver."""
    try:
        os.close(os.open("/dev/mapper/control", os.O_RDWR))
    except OSError:
        return False
    return True


_tests: pytest.StashKey[Tests] = pytest.StashKey()


def _reports(item: pytest.Item) -> Iterator[pytest.TestReport]:
    try:
        for report in _guest(item.session).reports(item.config, _node_id(item)):
            report.nodeid = item.nodeid
            yield report
    except GuestFailure as failure:
        yield pytest.TestReport(
            item.nodeid, item.location, dict.fromkeys(item.keywords, 1), "failed", str(failure), "call"
        )


def _guest(session: pytest.Session) -> Tests:
    """The guest of this pytest process, booted for all tests that need it."""
    tests = session.config.stash.get(_tests, None)
    if tests is None:
        if absent := uml.missing():
            raise GuestFailure(f"this kernel has no device-mapper, and to boot one that has: {absent}")
        folder = tempfile.TemporaryDirectory(prefix="uml-")
        session.config.add_cleanup(folder.cleanup)
        wanted = [_node_id(item) for item in session.items if item.get_closest_marker(_MARK)]
        tests = session.config.stash[_tests] = Tests(Path(folder.name), session.config.rootpath, wanted)
        session.config.add_cleanup(tests.close)
    return tests


def _node_id(item: pytest.Item) -> str:
    """xdist adds the group to the name of a test."""
    return item.nodeid.removesuffix(f"@{_GROUP}")


@pytest.fixture
def lvm(tmp_path: Path) -> Lvm:
    return Lvm(tmp_path / "lvm")


@pytest.fixture
def make_disks(tmp_path: Path) -> Iterator[MakeDisks]:
    with contextlib.ExitStack() as attached:

        def make(count: int, size: int) -> list[str]:
            paths = []
            for _ in range(count):
                image = tmp_path / f"disk-{uuid.uuid4().hex}"
                with image.open("wb") as file:
                    file.truncate(size)
                paths.append(str(attached.enter_context(loopdevice.attached(image))))
            return paths

        yield make


@pytest.fixture
def by_hand(lvm: Lvm, tmp_path: Path) -> ByHand:
    def run(*arguments: str) -> None:
        environment = {**os.environ, "LVM_SYSTEM_DIR": str(tmp_path / "lvm"), "LVM_SUPPRESS_FD_WARNINGS": "1"}
        subprocess.run(["lvm", *arguments], check=True, capture_output=True, env=environment)

    return run


@pytest.fixture
async def volume_group(lvm: Lvm, make_disks: MakeDisks, by_hand: ByHand) -> AsyncIterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    await lvm.create_group(name, make_disks(3, _DISK))
    yield name
    by_hand("vgremove", "--force", "--yes", name)
