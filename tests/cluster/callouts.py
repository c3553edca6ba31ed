"""The driver's executable, called as the kubelet calls it."""

import json
import os

from contract import callout, names
from tests.sandbox.kubelet.driver import Driver
from tests.sandbox.nodes import Node
from tests.sandbox.workloads import Json


def driver_of(node: Node) -> Driver:
    return Driver(node.driver, os.environ | {names.SOCKET_VARIABLE: str(node.socket)})


def options_for(pod: Json, **more: str) -> str:
    """What the kubelet says of the pod that it mounts for. `more` is what a user can add, or write over it."""
    return json.dumps(
        {
            callout.READ_WRITE_OPTION: "rw",
            callout.POD_NAME_OPTION: pod["metadata"]["name"],
            callout.POD_NAMESPACE_OPTION: pod["metadata"]["namespace"],
            **more,
        }
    )
