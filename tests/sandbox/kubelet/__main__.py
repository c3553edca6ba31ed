"""`python -m tests.sandbox.kubelet`: one node's kubelet."""

import argparse
import asyncio
import logging
import os
import signal
from pathlib import Path

from kube.client import Cluster
from tests.sandbox.kubelet.agent import Identity, Kubelet


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", required=True)
    parser.add_argument("--hostname", help="value of the hostname label, the node's name by default")
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--root", required=True, type=Path)
    parser.add_argument("--plugin-dir", required=True, type=Path)
    parser.add_argument("--metrics-port", required=True, type=int)
    parser.add_argument("--lifeline", required=True, type=int, help="file descriptor at whose end containers die")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the drivers")
    return parser.parse_args()


async def main() -> None:
    given = arguments()
    environment = os.environ | dict(pair.split("=", 1) for pair in given.env)
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    async with await Cluster.connect(given.kubeconfig, program="kubelet") as cluster:
        identity = Identity(given.node, given.hostname or given.node)
        await Kubelet(
            cluster, identity, given.root, given.plugin_dir, environment, given.lifeline, given.metrics_port
        ).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        logging.info("ended by SIGTERM")
