"""What a node says that has no storage, or not yet."""

from pathlib import Path

from daemon.backends.folder import FolderBackend
from daemon.errors import BackendFailed
from daemon.record import Inventory, Pool
from daemon.refresh import Refresher, missing
from daemon.volumes import Volumes


def test_what_is_missing_is_said_with_the_command_that_makes_it() -> None:
    group = Pool("vg", 10, 10, 0, 1)
    assert "elastic-local vg create vg" in missing(Inventory(), "vg")
    assert "elastic-local vg create vg" in missing(Inventory(), "vg/pool")
    assert "no thin pool pool in volume group vg" in missing(Inventory(pools=[group]), "vg/pool")
    assert missing(Inventory(pools=[group]), "vg") == ""


class Bare(FolderBackend):
    """A node whose storage fails until somebody repairs it."""

    failure = True

    async def inspect(self) -> Inventory:
        if self.failure:
            raise BackendFailed("the disk is out")
        return await super().inspect()


async def test_storage_that_fails_is_a_problem_until_it_is_there(tmp_path: Path) -> None:
    backend = Bare(tmp_path / "data", 100)
    volumes = Volumes(backend, tmp_path / "staging")
    changes: list[bool] = []
    refresher = Refresher(volumes, backend, changes.append)
    await refresher.look()
    await refresher.wait_looked()
    assert refresher.problem == "the disk is out"
    backend.failure = False
    await refresher.look()
    assert refresher.problem == ""
    assert volumes.inventory.pools
    assert changes == [False, True]
    await refresher.look()
    assert changes == [False, True]
