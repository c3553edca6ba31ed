"""Puts the provisioner together and runs it: two replicas, one of which leads and does the work.

What is cached and reserved belongs to one term of leadership. So nothing outlives it: whoever loses the lease ends, and
what starts next sees the cluster as it is.
"""

import asyncio
import gc
import json
import logging

from kube import leadership
from kube.client import Cluster, ReadJson
from kube.events import Recorder
from kube.kubeconfig import ConfigurationError
from provisioner.capacityledger import Account, CapacityLedger
from provisioner.claims import ClaimController
from provisioner.clusterstate import ClusterCache
from provisioner.expansion import ExpansionController
from provisioner.metrics import Metrics
from provisioner.modification import ModificationController
from provisioner.nodecleanup import NodeCleanupController
from provisioner.nodetracker import NodeTracker
from provisioner.reclaim import ReclaimController
from provisioner.reservations import ReservationVerifier
from provisioner.settings import Settings
from provisioner.snapshots import SnapshotController
from provisioner.volumecreation import DeletedClaimCheck, VolumeCreator
from service import endpoints, logs
from service.endpoints import HealthChecks
from service.environment import SettingsError
from service.lifecycle import Supervisor, raise_open_files, run_until_signal

COMPONENT = "elastic-local-provisioner"

_log = logging.getLogger(__name__)
_COLLECTED_AFTER = 10_000
"""Objects made beyond those that went, after which Python looks for cycles. With its 700, a start that makes records of
50,000 PersistentVolumes goes through all of them two dozen times, a fifth of its processor time."""


async def run(settings: Settings, read_json: ReadJson = json.loads) -> None:
    """Until SIGTERM or SIGINT, after which the lease is given back. Raises leadership.LeadershipLost, on which the
    process must end with a failure, and SettingsError when the API server's address can't be found."""
    logs.configure(settings.log_format, settings.log_level)
    raise_open_files()
    gc.set_threshold(_COLLECTED_AFTER)
    try:
        cluster = await Cluster.connect(settings.kubeconfig, program=COMPONENT, read_json=read_json)
    except ConfigurationError as error:
        raise SettingsError(f"KUBECONFIG: {error}") from error
    async with cluster:
        await run_until_signal(serve(cluster, settings))


async def serve(cluster: Cluster, settings: Settings) -> None:
    """Follows until the lease is free, then leads. For ever."""
    metrics = Metrics()
    supervisor = Supervisor(fatal=(leadership.LeadershipLost,))
    term: Term | None = None

    def unready() -> str:
        return "" if term is None or term.cache.synced else "leading, and still reading the state of the cluster"

    async def work(leading: Cluster) -> None:
        nonlocal term
        metrics.leading(True)
        term = Term(leading, settings, metrics)
        await term.run(supervisor)

    health = HealthChecks({"leadership": unready, "parts": lambda: supervisor.problem})
    served = endpoints.application(health, metrics.registry)
    async with endpoints.listening(served, settings.listen_host, settings.listen_port) as port:
        _log.info("metrics and health are served on port %d; waiting to lead as %s", port, settings.identity)
        await leadership.lead(cluster, settings.lease, settings.namespace, settings.identity, work)


class Term:
    """One term of leadership."""

    def __init__(self, cluster: Cluster, settings: Settings, metrics: Metrics) -> None:
        parallelism = settings.parallelism
        self.ledger = CapacityLedger()
        self.cache = ClusterCache(cluster, settings.namespace, self.ledger)
        self.cache.classes.subscribe(metrics.class_changed)
        self._recorder = Recorder(cluster, COMPONENT)
        self.claim_check = DeletedClaimCheck(cluster, parallelism=parallelism)
        verifier = ReservationVerifier(
            cluster,
            self.cache,
            settings.namespace,
            on_missing=lambda name: self.claims.volume_missing(name),
            on_freed=self._capacity_freed,
        )
        creator = VolumeCreator(cluster, self.ledger, verifier, self.claim_check, self._recorder)
        self._tracker = NodeTracker(cluster)
        self.claims = ClaimController(
            cluster, self.cache, creator, self._recorder, metrics, self._tracker, parallelism=parallelism
        )
        self._expansion = ExpansionController(cluster, self.cache, self._recorder, parallelism=parallelism)
        self._modification = ModificationController(cluster, self.cache, self._recorder, parallelism=parallelism)
        self.snapshots = SnapshotController(
            cluster,
            self.cache,
            self._recorder,
            self._tracker,
            parallelism=parallelism,
            node_loss_delay=settings.node_loss_delay,
        )
        reclaim = ReclaimController(cluster, self.cache.volumes, self._recorder, metrics, parallelism=parallelism)
        self._node_cleanup = NodeCleanupController(
            cluster,
            self.cache.volumes,
            self._recorder,
            metrics,
            self._tracker,
            delay=settings.node_loss_delay,
            classes=settings.node_cleanup_classes,
        )
        self._queues = {
            "claims": self.claims.queue,
            "growing": self._expansion.queue,
            "modifying": self._modification.queue,
            "snapshots": self.snapshots.queue,
            "reclaiming": reclaim.queue,
            "orphans": self.claim_check.queue,
            "reservations": verifier.reservations,
            "retained volumes": verifier.retained,
        }
        metrics.observe_queue("claims", self.claims.queue)
        metrics.observe_queue("growth", self._expansion.queue)
        metrics.observe_queue("modification", self._modification.queue)
        metrics.observe_queue("snapshots", self.snapshots.queue)
        metrics.observe_queue("volumes", reclaim.queue)
        metrics.observe_queue("orphans", self.claim_check.queue)
        metrics.observe_queue("nodes", self._node_cleanup.queue)
        for queue in (*self._queues.values(), self._node_cleanup.queue):
            self.cache.volumes.on_return(queue.hurry)
        self.cache.volumes.on_return(self._recorder.hurry)

    def _capacity_freed(self, account: Account) -> None:
        """A reserved volume was never made, or is known to be part of what a node published."""
        self.claims.capacity_freed(account)
        self._expansion.capacity_freed(account)

    async def run(self, supervisor: Supervisor) -> None:
        """For ever. Nothing is decided before the whole cluster was seen: the ledger must hold every volume."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(supervisor.keep("events", self._recorder.run))
            tasks.create_task(supervisor.keep("caches", self.cache.run))
            tasks.create_task(supervisor.keep("nodes", self._tracker.run))
            await self.cache.wait_synced()
            _log.info("the state of the cluster is known")
            self.claims.restore_reservations()
            for name, queue in self._queues.items():
                tasks.create_task(supervisor.keep(name, queue.run))
            tasks.create_task(supervisor.keep("node cleanup", self._node_cleanup.run))
