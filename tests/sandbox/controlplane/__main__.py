"""`python -m tests.sandbox.controlplane`: scheduler and controllers."""

import argparse
import asyncio
import logging
import signal

from kube.client import Cluster
from kube.events import Recorder
from tests.sandbox.controlplane.caches import Caches
from tests.sandbox.controlplane.ephemeral import EphemeralController
from tests.sandbox.controlplane.growth import GrowthController
from tests.sandbox.controlplane.protection import ProtectionController
from tests.sandbox.controlplane.scheduler import Scheduler
from tests.sandbox.controlplane.snapshots import SnapshotController
from tests.sandbox.controlplane.volumes import VolumeController


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", required=True)
    given = parser.parse_args()
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    async with (
        await Cluster.connect(given.kubeconfig, program="controlplane") as cluster,
        asyncio.TaskGroup() as tasks,
    ):
        caches = Caches(cluster)
        for informer in caches.all:
            tasks.create_task(informer.run())
        controllers = Recorder(cluster, "persistentvolume-controller")
        ephemeral = Recorder(cluster, "ephemeral_volume")
        scheduler = Recorder(cluster, "default-scheduler")
        expand = Recorder(cluster, "volume_expand")
        snapshots = Recorder(cluster, "snapshot-controller")
        for recorder in (controllers, ephemeral, expand, scheduler, snapshots):
            tasks.create_task(recorder.run())
        await caches.wait_synced()
        tasks.create_task(VolumeController(cluster, caches, controllers).run())
        tasks.create_task(EphemeralController(cluster, caches, ephemeral).run())
        tasks.create_task(GrowthController(cluster, caches, expand).run())
        tasks.create_task(ProtectionController(cluster, caches).run())
        tasks.create_task(SnapshotController(cluster, caches, snapshots).run())
        tasks.create_task(Scheduler(cluster, caches, scheduler).run())
        logging.info("the control plane is ready")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        logging.info("ended by SIGTERM")
