"""A cluster on one machine: real daemons, the real driver and provisioner, real mounts under a small control plane.

    async with Sandbox(folder, [NodeSpec("one"), NodeSpec("two", hostname="host-2")]) as sandbox:
        await sandbox.kubectl("apply", "-f", "deploy/samples")

Must be entered in a mount namespace of its own (mountspace.enter_private), so that no mount outlives the caller. All
programs start at once; each copes with the others' absence, as they do in a cluster.
"""

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import yaml

from contract import names, snapshot
from contract.volume import FLEX_VOLUME
from daemon.csi.server import registration_socket
from kube.client import Cluster
from tests.forkserver import REPOSITORY
from tests.ports import reserved_port
from tests.sandbox import mountspace, snapshots
from tests.sandbox.apiserver import faults, guard, kubeconfig, users
from tests.sandbox.nodes import COMMAND, Node, NodeSpec, default_source
from tests.sandbox.programs import Program, answers, says, start_all
from tests.waiting import NeverHappened, until

Json = dict[str, Any]

BASE = REPOSITORY / "deploy" / "base"
COMPONENTS = REPOSITORY / "deploy" / "components"
SAMPLES = REPOSITORY / "deploy" / "samples"

DAEMON_ACCOUNT, PROVISIONER_ACCOUNT = "daemon", "provisioner"

_STOP_SECONDS = 5.0
_CLEAN_SECONDS = 15.0
_LONGEST_SOCKET = 107
"""Bytes of the path of a socket (unix(7)). A CSI driver without its own is not registered, and only a log says so."""


class KubectlFailed(Exception):
    """kubectl ended with another exit code than 0; the text is its error output."""


class Sandbox:
    """Programs: `apiserver`, `controlplane`, `provisioners`, and of each of `nodes` its `kubelet` and `daemon`."""

    def __init__(
        self,
        folder: Path,
        nodes: Sequence[NodeSpec],
        provisioners: int = 1,
        manifests: Path = BASE,
        *,
        components: Sequence[Path] = (),
        snapshots: bool = False,
    ) -> None:
        """`folder` must exist, be empty, and have a short path: sockets are made in it. `manifests` is the folder of
        deploy/ that gives our programs their rights, to which these `components` are added. `snapshots`: the API server
        serves them from the start, and the manifests have the component for them. Raises ValueError where the path of a
        node's socket is too long."""
        self.folder = folder.resolve()
        self._snapshots = snapshots
        self._manifests = manifests
        self._components = [*components, *([] if default_source() == FLEX_VOLUME else [COMPONENTS / "csi"])]
        self.kubeconfig = self.folder / "kubeconfig"
        # Programs are killed and started again under the same address.
        self._ports = contextlib.ExitStack()
        self.address = f"http://127.0.0.1:{self._port()}"
        self.audit_log = self.folder / "audit.log"
        self.refusals_expected = False
        """Whether a test takes rights away. Else it is an error at the end that a program of ours was refused."""
        self.logs = self.folder / "logs"
        self._state = self.folder / "nodes"
        # Only this process has the other end: when it is gone, so are the containers (kubelet/shim.py).
        self._lifeline, self._our_end = os.pipe()
        self.nodes = {
            spec.name: Node(
                spec,
                self._state / spec.name,
                self.kubeconfig,
                self.kubeconfig_of(DAEMON_ACCOUNT, spec.name),
                self.logs,
                self._lifeline,
                self._port(),
                self._port(),
            )
            for spec in nodes
        }
        for node in self.nodes.values():
            longest = registration_socket(node.kubelet_root)
            if len(os.fsencode(longest)) > _LONGEST_SOCKET:
                raise ValueError(
                    f"{longest} is longer than the {_LONGEST_SOCKET} bytes that the path of a socket may have: shorten "
                    f"the name of node {node.name} or the folder"
                )
        self.apiserver = self._apiserver()
        self.controlplane = Program(
            name="control plane",
            argv=[sys.executable, "-m", "tests.sandbox.controlplane", "--kubeconfig", str(self.kubeconfig)],
            log=self.logs / "controlplane.log",
            ready=says("is ready"),
        )
        self.provisioners = [self._provisioner(number) for number in range(1, provisioners + 1)]
        self._api: Cluster | None = None

    @property
    def api(self) -> Cluster:
        assert self._api is not None, "the sandbox was not entered"
        return self._api

    @property
    def programs(self) -> list[Program]:
        nodes = self.nodes.values()
        return [
            *(node.kubelet for node in nodes),
            *self.provisioners,
            *(node.daemon for node in nodes),
            self.controlplane,
            self.apiserver,
        ]

    async def __aenter__(self) -> "Sandbox":
        self._state.mkdir()
        mountspace.mount_memory(self._state)
        for node in self.nodes.values():
            node.make_folders()
        for account, home in ((PROVISIONER_ACCOUNT, ""), *((DAEMON_ACCOUNT, name) for name in self.nodes)):
            self.issue_token(account, home)
        try:
            await self.apiserver.start()
            self._api = await Cluster.connect(str(self.kubeconfig), program="sandbox")
            if self._snapshots:
                await snapshots.install(self._api)
            first = [self.controlplane, *(node.kubelet for node in self.nodes.values())]
            for program in first:
                program.launch()
            await self.kubectl("apply", "-k", str(self._overlay()))
            await asyncio.gather(
                start_all([*self.provisioners, *(node.daemon for node in self.nodes.values())]),
                *(program.wait_ready() for program in first),
            )
        except BaseException:
            await self._tear_down()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tear_down()
        if error is None and not self.refusals_expected:
            refused = dict.fromkeys(str(request) for request in self.requests() if self._is_missed(request))
            assert not refused, f"deploy/ gives too few rights, or its policies refuse too much: {list(refused)}"

    def issue_token(self, account: str, node: str = "") -> Path:
        """The kubeconfig of a service account of ours, with a token bound to a pod on that node."""
        path = self.kubeconfig_of(account, node)
        kubeconfig.write(path, self.address, users.token(names.NAMESPACE, account, node))
        return path

    def kubeconfig_of(self, account: str, node: str = "") -> Path:
        """Of a service account of ours, as its pod on that node has it: what it may do is what deploy/ gives it."""
        return self.folder / f"kubeconfig-{account}{node and '-'}{node}"

    def requests(self) -> list[guard.Request]:
        """What our programs asked the API server for."""
        return list(guard.requests(self.audit_log))

    async def begin_faults(self, plan: faults.Plan) -> dict[str, int]:
        """What our programs ask the API server for is disturbed, until another plan comes or it starts anew. How often
        each kind was done since the last plan."""
        async with (
            aiohttp.ClientSession() as session,
            session.put(self.address + faults.PATH, json=plan.to_fields(), raise_for_status=True) as response,
        ):
            counts: dict[str, int] = await response.json()
            return counts

    async def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl prints. Raises KubectlFailed."""
        process = await asyncio.create_subprocess_exec(
            "kubectl",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"KUBECONFIG": str(self.kubeconfig), "HOME": str(self.folder)},
        )
        output, errors = await process.communicate(None if stdin is None else stdin.encode())
        if process.returncode != 0:
            raise KubectlFailed(f"kubectl {' '.join(arguments)}: {errors.decode().strip()}")
        return output.decode()

    async def apply(self, *objects: Json) -> None:
        """kubectl apply, for objects made in Python."""
        await self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def _overlay(self) -> Path:
        """The folder of the manifests with all components. Their classes make the volumes that the environment asks
        for."""
        if not self._components:
            return self._manifests
        folder = self.folder / "manifests"
        folder.mkdir()
        # kustomize takes relative paths only.
        manifests, *components = (
            os.path.relpath(path.resolve(), folder) for path in (self._manifests, *self._components)
        )
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [manifests],
            "components": components,
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return folder

    def _is_missed(self, request: guard.Request) -> bool:
        """Whether a program of ours was refused what it should have. Snapshots are asked for in every cluster, and a
        component gives the rights."""
        return not request.allowed and (self._snapshots or request.asked.group != snapshot.GROUP)

    def identity_of(self, provisioner: Program) -> str:
        """As which a provisioner that was started competes for the lease. Empty: it has not said so yet."""
        waiting = re.search(r"waiting to lead as (\S+)", provisioner.output)
        return waiting[1] if waiting else ""

    def node_of(self, pod: Json) -> Node:
        """The node that a pod is bound to."""
        return self.nodes[pod["spec"]["nodeName"]]

    def _port(self) -> int:
        return self._ports.enter_context(reserved_port())

    def _apiserver(self) -> Program:
        return Program(
            name="API server",
            argv=[
                *(sys.executable, "-m", "tests.sandbox.apiserver"),
                *("--port", self.address.rpartition(":")[2]),
                *("--data", str(self.folder / "etcd")),
                *("--kubeconfig", str(self.kubeconfig)),
                *("--audit-log", str(self.audit_log)),
            ],
            log=self.logs / "apiserver.log",
            ready=answers(f"{self.address}/readyz"),
        )

    def _provisioner(self, number: int) -> Program:
        address = f"127.0.0.1:{self._port()}"
        return Program(
            name=f"provisioner {number}",
            argv=[COMMAND, "provisioner"],
            log=self.logs / f"provisioner-{number}.log",
            ready=answers(f"http://{address}/readyz"),
            environment={
                "KUBECONFIG": str(self.kubeconfig_of(PROVISIONER_ACCOUNT)),
                "LISTEN_ADDRESS": address,
                "POD_NAME": f"provisioner-{number}",
            },
        )

    async def _tear_down(self) -> None:
        """End everything; raises NeverHappened when a mount or a loop device stays."""
        if self._api is not None:
            await self._api.close()
        await asyncio.gather(*(program.stop(_STOP_SECONDS) for program in self.programs))
        os.close(self._our_end)
        os.close(self._lifeline)
        self._ports.close()
        try:
            await until(
                lambda: _freed(lambda: mountspace.unmount_all(self._state)),
                what=f"{self._state} has no mounts",
                seconds=_CLEAN_SECONDS,
            )
            await until(
                lambda: not list(mountspace.loop_devices(self._state)),
                what=f"no loop device has a file in {self._state}",
                seconds=_CLEAN_SECONDS,
            )
            await until(
                lambda: _freed(lambda: mountspace.unmount(self._state)),
                what=f"nobody uses {self._state}",
                seconds=_CLEAN_SECONDS,
            )
        except NeverHappened as error:
            left = [str(path) for path in mountspace.mounts_below(self._state) if path != self._state]
            devices = [str(device) for device in mountspace.loop_devices(self._state)]
            raise NeverHappened(f"{error}; left are mounts {left} and loop devices {devices}") from None


def _freed(unmount: Callable[[], None]) -> bool:
    """Containers take a moment to die, and until then their volumes are busy."""
    try:
        unmount()
    except OSError:
        return False
    return True
