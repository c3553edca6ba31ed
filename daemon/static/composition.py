"""The two halves of the static part, discovery and deletion, put together for a node."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry

from daemon.static.cache import Cache
from daemon.static.controller import StaticVolumes
from daemon.static.deleter import Deleter
from daemon.static.metrics import StaticMetrics
from daemon.static.ownfolders import OwnFolders
from daemon.static.settings import StaticSettings
from kube.client import Cluster
from kube.events import Recorder
from kube.records import Node


def static_volumes(
    cluster: Cluster,
    node: Node,
    events: Recorder,
    registry: CollectorRegistry,
    chosen: StaticSettings,
    own: OwnFolders,
) -> StaticVolumes:
    """`own`: the folders that the daemon works in, which no class may offer."""

    def deletions(cache: Cache, metrics: StaticMetrics, wake: Callable[[], None]) -> Deleter:
        deleter = Deleter(
            cluster,
            cache.volumes,
            node,
            events,
            metrics,
            wake,
            namespace=chosen.namespace,
            job_image=chosen.job_image,
        )
        cache.informer.subscribe(deleter.heard)
        return deleter

    return StaticVolumes(cluster, node, events, StaticMetrics(registry), chosen, deletions, own)
