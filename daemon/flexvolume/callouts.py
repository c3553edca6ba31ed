"""The callouts of one node, handed to the mounter that serves both drivers."""

from collections.abc import Mapping

from contract import callout
from daemon.flexvolume.calls import Expand, Mount, Unmount
from daemon.kubelet.authorization import PodHint
from daemon.kubelet.mounter import Mounter
from daemon.kubelet.podfolder import PodFolder


class NodeCallouts:
    """See daemon.flexvolume.api.Callouts."""

    def __init__(self, mounter: Mounter) -> None:
        self._mounter = mounter

    async def mount(self, request: Mount) -> bool:
        return await self._mounter.mount(
            self._folder(request.dir), pod_hint(request.options), read_only=read_only(request.options)
        )

    async def unmount(self, request: Unmount) -> None:
        await self._mounter.unmount(self._folder(request.dir))

    async def expand(self, request: Expand) -> None:
        await self._mounter.expand(self._folder(request.dir), pod_hint(request.options), request.new_size)

    def _folder(self, text: str) -> PodFolder:
        return PodFolder.parse(text, self._mounter.kubelet_root)


def pod_hint(options: Mapping[str, str]) -> PodHint:
    return PodHint(options.get(callout.POD_NAMESPACE_OPTION, ""), options.get(callout.POD_NAME_OPTION, ""))


def read_only(options: Mapping[str, str]) -> bool:
    """Anything but a plain "rw" is taken as read-only."""
    return options.get(callout.READ_WRITE_OPTION) != "rw"
