"""An API server that agrees to all that a node asks it before it destroys anything, for tests of what happens then."""

from contract.volume import DELETE
from daemon.storage.deletionguard import Owner

CLUSTER = "11111111-2222-3333-4444-555555555555"


class _AnyUid(str):
    """Is the one that is asked for."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


class Agreeing:
    """See daemon.storage.deletionguard.OwnerLookup."""

    cluster = CLUSTER

    async def owner(self, pv: str, content: str = "") -> Owner | None:
        return Owner(_AnyUid("any"), DELETE, reclaimable=True)
