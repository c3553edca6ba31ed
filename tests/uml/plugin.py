"""The mark `device_mapper`: for a test, on any floor, that needs device-mapper, and so for any that creates a logical
volume.

    pytestmark = pytest.mark.device_mapper

Where the kernel has device-mapper and we are root, such a test runs like any other. Elsewhere it runs inside User-mode
Linux (guest.py): the first one boots a guest that runs all of its group, and each report comes back as the test's own.
A guest that panics, hangs or leaves a test out fails that test and shows its console. Under xdist a group goes to one
worker (`--dist loadgroup`).

In the guest /run, /tmp and /mnt are empty folders in memory at the start; there is a loopback network only, no udev,
and everything takes 3 to 9 times as long. Tests without the mark run on the host as it is.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.uml import guest
from tests.uml.guest import NoGuest
from tests.uml.reports import GuestFailure, Tests

_MARK = "device_mapper"
_TESTS = Path(__file__).parents[1]
_PARTS = ("test_m", "test_t")
"""Where the names of the second and third begin."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{_MARK}: needs device-mapper: runs in User-mode Linux where the kernel has none"
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker(_MARK):
        item.add_marker(pytest.mark.xdist_group(_group(item)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if item.get_closest_marker(_MARK) is None or has_device_mapper():
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # The modules and folders that were set up for earlier tests go, if the next test is not in them: for a test
    # that runs here, pytest does so itself.
    item.session._setupstate.teardown_exact(nextitem)
    return True


@pytest.fixture
def user_mode_linux() -> None:
    """For a test that boots a guest by itself, whatever kernel runs the tests. What stands in its way is said in one
    sentence. For other machines than x86-64 there is none, and nothing is lost where device-mapper is at hand."""
    if absent := guest.missing():
        if guest.other_machine() and has_device_mapper():
            pytest.skip(absent)
        pytest.fail(absent, pytrace=False)


def has_device_mapper() -> bool:
    """The file alone says nothing: it may be there without the driver."""
    try:
        os.close(os.open("/dev/mapper/control", os.O_RDWR))
    except OSError:
        return False
    return True


def _group(item: pytest.Item) -> str:
    """Which guest a test runs in: one of its floor. Three parts of the alphabet, because those of the node floor take
    longer than all other tests together."""
    part = 1 + sum(item.path.name >= begin for begin in _PARTS)
    return f"uml-{item.path.relative_to(_TESTS).parts[0]}-{part}"


_tests: pytest.StashKey[dict[str, Tests]] = pytest.StashKey()


def _reports(item: pytest.Item) -> Iterator[pytest.TestReport]:
    try:
        for report in _guest(item.session, _group(item)).reports(item.config, _node_id(item)):
            report.nodeid = item.nodeid
            yield report
    except GuestFailure as failure:
        yield _failed(item, str(failure))
    except NoGuest as reason:
        yield _failed(item, f"this kernel has no device-mapper for us, and to boot one that has: {reason}")


def _failed(item: pytest.Item, text: str) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, dict.fromkeys(item.keywords, 1), "failed", text, "call")


def _guest(session: pytest.Session, group: str) -> Tests:
    """A guest of this pytest process, booted for all tests of its group."""
    guests = session.config.stash.setdefault(_tests, {})
    if group not in guests:
        folder = tempfile.TemporaryDirectory(prefix="uml-")
        session.config.add_cleanup(folder.cleanup)
        marked = [item for item in session.items if item.get_closest_marker(_MARK)]
        wanted = [_node_id(item) for item in marked if _group(item) == group]
        guests[group] = Tests(Path(folder.name), session.config.rootpath, wanted)
        session.config.add_cleanup(guests[group].close)
    return guests[group]


def _node_id(item: pytest.Item) -> str:
    """xdist adds the group to the name of a test."""
    return item.nodeid.removesuffix(f"@{_group(item)}")
