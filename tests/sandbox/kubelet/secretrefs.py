"""The Secrets that a CSI PersistentVolume refers to, read for the calls that they go to.

Source: getCredentialsFromSecret in pkg/volume/csi/csi_util.go of Kubernetes 1.36.2, and its callers in csi_attacher.go,
csi_mounter.go, csi_block.go and expander.go. A Secret is asked for at each call and never kept. The real kubelet asks
as its node, to which the node authorizer (plugin/pkg/auth/authorizer/node/graph.go) shows just these: what a
PersistentVolume refers to whose claim a pod of the node uses.
"""

import base64

from contract.parameters import SecretReference
from kube.client import Cluster
from kube.errors import ApiError
from kube.resources import SECRETS
from tests.sandbox.kubelet.csiclient import Secrets
from tests.sandbox.kubelet.driver import CallFailed, Transient
from tests.sandbox.kubelet.sources import Csi

_PLUGIN = "kubernetes.io/csi"


class SecretReader:
    """Methods raise CallFailed, in the words of the real one: each has its own."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def to_stage(self, source: Csi) -> Secrets:
        """MountDevice and stageVolumeForBlock."""
        what = f"NodeStageSecretRef {source.stage_secret}"
        try:
            return await self._read(source.stage_secret)
        except ApiError as error:
            words = f"{_PLUGIN}: failed to get {what}" if source.block else f"fetching {what} failed"
            raise Transient(f"{words}: {error.message}") from error

    async def to_publish(self, source: Csi) -> Secrets:
        """SetUpAt and publishVolumeForBlock."""
        what = f"NodePublishSecretRef {source.publish_secret}"
        block = f"{_PLUGIN}: blockMapper.publishVolumeForBlock failed to get {what}"
        try:
            return await self._read(source.publish_secret)
        except ApiError as error:
            raise Transient(f"{block if source.block else f'fetching {what} failed'}: {error.message}") from error

    async def to_expand(self, source: Csi) -> Secrets:
        """nodeExpandWithClient, where it counts as a failure of the expansion."""
        try:
            return await self._read(source.expand_secret)
        except ApiError as error:
            what = f"NodeExpandSecretRef {source.expand_secret}"
            raise CallFailed(f"expander.NodeExpand failed to get {what}: {error.message}") from error

    async def _read(self, secret: SecretReference | None) -> Secrets:
        """Raises ApiError."""
        if secret is None:
            return {}
        found = await self._cluster.get(SECRETS, secret.name, secret.namespace)
        return {key: base64.b64decode(content) for key, content in (found.get("data") or {}).items()}
