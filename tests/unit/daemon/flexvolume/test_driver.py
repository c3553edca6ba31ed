"""The driver is put into the plugin directory, kept there, and a kubelet that does not call it is told of."""

from pathlib import Path

import pytest

from contract import names
from contract.volume import ObjectReference
from daemon.cluster.events import NodeEvents
from daemon.flexvolume.driver import DRIVER_FOUND, DRIVER_MISSING, DriverInstaller
from flexdriver import installation
from kube.events import Recorder

CHOSEN = installation.Driver("a test's", b"#!/bin/true\n")
NODE = ObjectReference(kind="Node", api_version="v1", namespace="", name="node-1", uid="1")


class RecordedEvents(Recorder):
    """Notes what is said about the node."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def normal(self, reference: ObjectReference, reason: str, message: str) -> None:
        self.events.append(reason)

    def warning(self, reference: ObjectReference, reason: str, message: str) -> None:
        self.events.append(reason)


@pytest.fixture
def recorded() -> RecordedEvents:
    return RecordedEvents()


def driver(*folders: Path, recorded: RecordedEvents, patience: float = 300) -> DriverInstaller:
    events = NodeEvents(recorded)
    events.set_node(NODE)
    return DriverInstaller(CHOSEN, folders, events, patience)


async def test_the_first_look_puts_it_there_anew_so_that_the_kubelet_calls(
    tmp_path: Path, recorded: RecordedEvents
) -> None:
    before = installation.install(CHOSEN, tmp_path).stat().st_ino
    installer = driver(tmp_path, recorded=recorded)
    assert installer.problem == "not installed yet"
    await installer.check()
    target = tmp_path / names.DRIVER_FOLDER / names.DRIVER_NAME
    anew = target.stat().st_ino
    assert anew != before
    await installer.check()
    assert target.stat().st_ino == anew
    assert (installer.problem, recorded.events) == ("", [])


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"#!/bin/false\n")])
async def test_one_that_was_removed_or_changed_is_put_there_again(
    tmp_path: Path, recorded: RecordedEvents, harm: object
) -> None:
    installer = driver(tmp_path, recorded=recorded)
    await installer.check()
    assert callable(harm)
    harm(tmp_path / names.DRIVER_FOLDER / names.DRIVER_NAME)
    await installer.check()
    assert installation.installed(CHOSEN, tmp_path)


async def test_a_kubelet_that_does_not_call_is_reported_until_it_does(tmp_path: Path, recorded: RecordedEvents) -> None:
    installer = driver(tmp_path, recorded=recorded, patience=0)
    await installer.check()
    await installer.check()
    assert str(tmp_path) in installer.problem
    assert "--volume-plugin-dir" in installer.problem
    assert recorded.events == [DRIVER_MISSING]
    installer.called()
    assert (installer.problem, recorded.events) == ("", [DRIVER_MISSING, DRIVER_FOUND])
    await installer.check()
    assert installer.problem == ""


async def test_an_impossible_folder_is_reported_even_if_an_old_driver_is_called(
    tmp_path: Path, recorded: RecordedEvents
) -> None:
    (tmp_path / "file").touch()
    installer = driver(tmp_path / "file", recorded=recorded)
    await installer.check()
    installer.called()
    assert "can't be installed" in installer.problem
    assert recorded.events == [DRIVER_MISSING]
    (tmp_path / "file").unlink()
    await installer.check()
    assert (installer.problem, recorded.events) == ("", [DRIVER_MISSING, DRIVER_FOUND])


async def test_it_is_put_into_each_of_several_folders(tmp_path: Path, recorded: RecordedEvents) -> None:
    """One of them is the kubelet's; a folder that can't be written is told of, and the others have it all the same."""
    (tmp_path / "file").touch()
    installer = driver(tmp_path / "file", tmp_path / "b", tmp_path / "c", recorded=recorded, patience=0)
    await installer.check()
    assert f"can't be installed in {tmp_path / 'file'} " in installer.problem
    assert [installation.installed(CHOSEN, tmp_path / name) for name in "bc"] == [True, True]
    (tmp_path / "file").unlink()
    await installer.check()
    assert installation.installed(CHOSEN, tmp_path / "file")
    assert f"{tmp_path / 'file'} and {tmp_path / 'b'} and {tmp_path / 'c'}" in installer.problem
    installer.called()
    (tmp_path / "c" / names.DRIVER_FOLDER / names.DRIVER_NAME).unlink()
    await installer.check()
    assert installation.installed(CHOSEN, tmp_path / "c")


async def test_problems_from_before_the_node_was_known_are_reported_then(
    tmp_path: Path, recorded: RecordedEvents
) -> None:
    events = NodeEvents(recorded)
    installer = DriverInstaller(CHOSEN, [tmp_path], events, 0)
    await installer.check()
    assert recorded.events == []
    events.set_node(NODE)
    assert recorded.events == [DRIVER_MISSING]
