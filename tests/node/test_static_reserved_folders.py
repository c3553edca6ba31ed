"""A class in a folder where the daemon has mounts of its own, beside one that is right."""

from pathlib import Path

from daemon.static.configuration import refuse_reserved_folders
from daemon.static.discovery import CLASS_FAILED
from tests.node.staticvolumes import class_config, configured, discovery, mount
from tests.unit.daemon.nodecluster import NODE


async def test_our_mounts_are_not_offered_and_other_classes_are(tmp_path: Path) -> None:
    staging, disks = tmp_path / "staging", tmp_path / "disks"
    mount(staging / "pvc-1")
    mount(disks / "one")
    both = configured(class_config(staging, "slow"), class_config(disks))
    refusing = refuse_reserved_folders(both, [("STAGING_DIR", staging)])
    async with discovery(tmp_path / "api") as node:
        for _ in range(2):
            (error,) = await node.look(refusing)
            assert error.startswith(
                f"class slow: mountDir {staging} is the folder that the daemon uses itself (STAGING_DIR "
            )
        assert (await node.volumes()).keys() == {"/host/disks/one"}
        assert await node.recorded_events() == [(NODE, CLASS_FAILED, error)], "reported once"
        assert await node.look(both) == []
        assert (await node.volumes()).keys() == {"/host/disks/one", "/host/staging/pvc-1"}, "else it is offered"
