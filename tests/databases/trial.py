"""What is done to one database on one volume, while a client writes to it all the time."""

import asyncio
import contextlib
import copy
import logging
import os
import pwd
import re
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract import quantity
from contract.volume import CSI
from kube.resources import CLAIMS, PODS, SNAPSHOTS
from tests.cluster import onnode
from tests.cluster.test_databases import stateful_set
from tests.databases.engine import Engine, Refused, Session
from tests.databases.load import RECORD, Load
from tests.ports import reserved_port
from tests.sandbox.nodes import Node
from tests.sandbox.snapshots import from_snapshot, snapshot
from tests.sandbox.workloads import Namespace
from tests.waiting import until

Json = dict[str, Any]

_log = logging.getLogger(__name__)

SIZE, GROWN, GROWN_AGAIN = "320Mi", "400Mi", "480Mi"
"""Of the claim: at first, after it grew, and after it was full and grew. xfs wants 300 MiB."""
LARGE_RECORD = 128 * 1024
"""Characters of a record that is to fill the volume."""
LEFT_FREE = 48 * 1024**2
"""Bytes of the volume that the database itself is to fill."""
SNAPSHOT_CLASS = "databases"
_START_SECONDS = 120.0
_CAP_SYS_RESOURCE = 24


class Lost(AssertionError):
    """The database, or its volume, is not as it must be."""


@dataclass
class Outcome:
    """What came of a trial."""

    engine: Engine
    source: str
    filesystem: str
    done: list[str] = field(default_factory=list)
    records: int = 0
    error_when_full: str = ""
    failure: str = ""


class Trial:
    def __init__(
        self, namespace: Namespace, engine: Engine, source: str, storage_class: str, port: int, outcome: Outcome
    ) -> None:
        """`storage_class` has volumes of that source."""
        self._namespace = namespace
        self._engine = engine
        self._source = source
        self._class = storage_class
        self._port = port
        self._outcome = outcome
        self._load = Load(engine, port)
        self._stateful_set = stateful_set(engine.sample)
        self._claim_name = f"{self._template['metadata']['name']}-{self._stateful_set['metadata']['name']}-0"
        self._pod_name = f"{self._stateful_set['metadata']['name']}-0"

    async def run(self) -> None:
        await self._create_claim(self._claim_name)
        await self._start(self._pod_name, self._claim_name)
        try:
            async with self._load.running():
                await self._load.goes_on()
                await self._check_owner()
                await self._lose_the_daemon()
                await self._grow(GROWN)
                await self._copy()
                await self._replace_pod(grace=0)
                self._done("pod killed and made anew")
                await self._replace_pod(grace=None)
                self._done("pod deleted and made anew")
                await self._fill()
            await self._stop()
            self._outcome.records = len(self._load.acknowledged)
        finally:
            self._outcome.error_when_full = self._outcome.error_when_full.strip()

    @property
    def _template(self) -> Json:
        template: Json = self._stateful_set["spec"]["volumeClaimTemplates"][0]
        return template

    def _done(self, what: str) -> None:
        self._outcome.done.append(what)
        print(f"    {what}", flush=True)

    async def _create_claim(self, name: str, size: str = SIZE, **spec: Any) -> None:
        """As the StatefulSet controller makes it of the template, but of this size and class."""
        template = copy.deepcopy(self._template["spec"])
        template["resources"]["requests"]["storage"] = size
        template["storageClassName"] = self._class
        body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}}
        await self._namespace.create(CLAIMS, {**body, "spec": {**template, **spec}})

    async def _start(self, name: str, claim: str, port: int = 0) -> Json:
        await self._namespace.create(PODS, self._pod(name, claim, port or self._port))
        return await self._namespace.until_running(name, seconds=60)

    def _pod(self, name: str, claim: str, port: int) -> Json:
        """That of the sample's StatefulSet. Its image is what Debian has: program and account differ."""
        spec = copy.deepcopy(self._stateful_set["spec"]["template"]["spec"])
        (container,) = spec["containers"]
        environment = {each["name"]: each.get("value", "") for each in container["env"]}
        (mount,) = container["volumeMounts"]
        container["command"] = ["sh", "-ec", self._engine.script(environment, mount["mountPath"], port)]
        container.pop("args", None)
        if self._engine.user:
            account = user_ids(self._engine.user)
            spec["securityContext"].update(runAsUser=account[0], runAsGroup=account[1], fsGroup=account[1])
        spec["volumes"] = [{"name": mount["name"], "persistentVolumeClaim": {"claimName": claim}}]
        labels = self._stateful_set["spec"]["template"]["metadata"]["labels"]
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}

    @property
    def _node(self) -> Node:
        (node,) = self._namespace.sandbox.nodes.values()
        return node

    async def _check_owner(self) -> None:
        """What the database wrote is its account's, and it wrote nothing beside ext4's own folder."""
        running = await self._namespace.get(PODS, self._pod_name)
        user = running["spec"]["securityContext"]["runAsUser"]
        folder = await self._folder()
        owners = {path.stat().st_uid for path in folder.rglob("*") if path.is_file()}
        if owners != {user} or user == 0:
            raise Lost(f"the files of the database are owned by {owners}, and not by {user} alone")
        beside = {path.name for path in folder.iterdir()} - {"lost+found"}
        if any((folder / name).is_file() for name in beside):
            raise Lost(f"the database did not stay in a folder of its own: {beside}")
        self._done(f"runs as user {user}, in the folder {', '.join(beside)} of the volume")

    async def _lose_the_daemon(self) -> None:
        async with self._without_errors():
            await self._node.daemon.kill()
            await self._load.goes_on()
            await self._node.daemon.start()
            await self._load.goes_on()
        self._done("daemon killed and started again: no error")

    async def _grow(self, size: str) -> None:
        """While it writes where the kernel lets us; else the filesystem grows before the next pod starts."""
        request = {"spec": {"resources": {"requests": {"storage": size}}}}
        grows_mounted = self._outcome.filesystem == "xfs" or may_grow_mounted_ext4()
        async with self._without_errors() if grows_mounted else contextlib.nullcontext():
            await self._namespace.api.patch(CLAIMS, self._claim_name, request, self._namespace.name)
            if not grows_mounted:
                await self._replace_pod(grace=None)
            await self._until_grown(size)
            await self._load.goes_on()
        self._done("grown to " + size + ("" if grows_mounted else " before the next pod (no CAP_SYS_RESOURCE here)"))

    async def _until_grown(self, size: str) -> None:
        def has(claim: Json) -> bool:
            return quantity.parse(claim["status"]["capacity"]["storage"]) == quantity.parse(size)

        await self._namespace.until(CLAIMS, self._claim_name, has, what=f"has {size}", seconds=60)

    async def _copy(self) -> None:
        """A VolumeSnapshot, or a clone where the driver has no snapshots, is a crash-consistent copy: the database on
        it has every record that was acknowledged before, and none without those before it."""
        before = set(self._load.acknowledged)
        async with self._without_errors():
            if self._source == CSI:
                await self._namespace.create(SNAPSHOTS, snapshot("at-work", self._claim_name, SNAPSHOT_CLASS))
                await self._namespace.until(
                    SNAPSHOTS,
                    "at-work",
                    lambda body: (body.get("status") or {}).get("readyToUse"),
                    what="is ready",
                    seconds=120,
                )
                wish = from_snapshot("at-work")
            else:
                wish = {"dataSource": {"kind": "PersistentVolumeClaim", "name": self._claim_name}}
            await self._create_claim("copy", GROWN, **wish)
            with reserved_port() as port:
                await self._start("copy", "copy", port)
                await self._load.goes_on()
                async with self._opened(port) as session:
                    found = await session.digests()
                    await session.check()
                await self._delete_pod("copy", grace=None)
        self._compare(found, before)
        if missing := [number for number in self._load.acknowledged if number < max(found) and number not in found]:
            raise Lost(f"the copy has record {max(found)}, and not {missing[:5]} before it")
        await self._namespace.delete(CLAIMS, "copy")
        if self._source == CSI:
            await self._namespace.delete(SNAPSHOTS, "at-work")
        self._done(f"{'snapshot restored' if self._source == CSI else 'cloned'} while it wrote: it recovered by itself")

    async def _replace_pod(self, grace: int | None) -> None:
        """`grace` 0: killed at once, in the middle of its writes."""
        await self._delete_pod(self._pod_name, grace)
        await self._start(self._pod_name, self._claim_name)
        await self._load.goes_on()
        await self._verify()

    async def _delete_pod(self, name: str, grace: int | None) -> None:
        if grace is None:
            await self._namespace.delete(PODS, name)
        else:
            await self._namespace.api.delete(PODS, name, self._namespace.name, grace_seconds=grace)
        await self._namespace.until_gone(PODS, name, seconds=150)

    async def _fill(self) -> None:
        """The filesystem is full. The database says so, keeps what it has, and goes on when the volume grows."""
        folder = await self._folder()
        known = len(self._load.errors)
        with (folder / "ballast").open("wb") as ballast:  # beside the database's own: else this takes minutes
            os.posix_fallocate(ballast.fileno(), 0, max(1, free_bytes(folder) - LEFT_FREE))
        self._load.characters = LARGE_RECORD
        await until(lambda: len(self._load.errors) > known, what="the database refuses a record", seconds=120)
        self._load.characters = RECORD
        self._outcome.error_when_full = await self._why(known)
        free = free_bytes(folder)
        self._done(f"full, {free >> 10} KiB free: {self._outcome.error_when_full.splitlines()[0][:100]}")
        await self._grow_when_full()
        await self._load.goes_on()
        await self._verify()
        self._done(f"grown to {GROWN_AGAIN} when full: it goes on, all records are there")

    async def _grow_when_full(self) -> None:
        request = {"spec": {"resources": {"requests": {"storage": GROWN_AGAIN}}}}
        await self._namespace.api.patch(CLAIMS, self._claim_name, request, self._namespace.name)
        grows_mounted = self._outcome.filesystem == "xfs" or may_grow_mounted_ext4()
        if grows_mounted:
            await self._until_grown(GROWN_AGAIN)
        if not grows_mounted or self._engine.hangs_when_full:
            await self._delete_pod(self._pod_name, None)
            await self._start(self._pod_name, self._claim_name)
        await self._until_grown(GROWN_AGAIN)

    async def _why(self, known: int) -> str:
        """The error of the client that names the disk, or the line of the server's log that does."""
        words = re.compile("no space left|disk full|is full", re.IGNORECASE)
        running = await self._namespace.get(PODS, self._pod_name)
        container = running["spec"]["containers"][0]["name"]
        log = self._node.container_log(running["metadata"]["uid"], container)

        def named() -> str:
            lines = [*self._load.errors[known:], *reversed(log.read_text(errors="replace").splitlines())]
            return next((line[: found.end()] for line in lines if (found := words.search(line))), "")

        if self._engine.silent_when_full:
            return named() or "no answer, and nothing in its log"
        error: str = await until(named, what="the database says that the disk is full", seconds=60)
        return error

    async def _folder(self) -> Path:
        running = await self._namespace.get(PODS, self._pod_name)
        volume = await self._namespace.until_bound(self._claim_name)
        return self._node.volume_folder(running["metadata"]["uid"], volume["metadata"]["name"], self._source)

    async def _stop(self) -> None:
        """All that was acknowledged is there, and the filesystem is sound."""
        await self._verify()
        volume = (await self._namespace.until_bound(self._claim_name))["metadata"]["name"]
        await self._delete_pod(self._pod_name, None)
        image = onnode.image(self._node, volume)
        tool = ["xfs_repair", "-n"] if self._outcome.filesystem == "xfs" else ["e2fsck", "-fn"]
        done = await asyncio.to_thread(lambda: subprocess.run([*tool, image], capture_output=True, text=True))
        if done.returncode != 0:
            raise Lost(f"{tool[0]}: {done.stdout}{done.stderr}")
        self._done("the filesystem is sound")

    async def _verify(self) -> None:
        """The database has all that was acknowledged, as it was written."""
        acknowledged = set(self._load.acknowledged)
        async with self._opened(self._port) as session:
            found = await session.digests()
            await session.check()
        self._compare(found, acknowledged)

    def _compare(self, found: dict[int, str], acknowledged: set[int]) -> None:
        _log.info("%d records found, %d were acknowledged", len(found), len(acknowledged))
        if lost := sorted(acknowledged - found.keys()):
            raise Lost(f"{len(lost)} records that were acknowledged are lost: {lost[:5]}...")
        wrong = [number for number, seen in found.items() if seen != self._load.digests[number]]
        if wrong:
            raise Lost(f"records are not as they were written: {wrong[:5]}")

    @contextlib.asynccontextmanager
    async def _opened(self, port: int) -> AsyncIterator[Session]:
        """A session, as soon as the database answers: it recovers first."""
        deadline = time.monotonic() + _START_SECONDS
        async with contextlib.AsyncExitStack() as stack:
            while True:
                try:
                    session = await stack.enter_async_context(self._engine.connect(port))
                    break
                except Refused as error:
                    if time.monotonic() > deadline:
                        raise Lost(f"it does not answer after {_START_SECONDS:g} s: {error}") from None
                    await asyncio.sleep(0.2)
            yield session

    @contextlib.asynccontextmanager
    async def _without_errors(self) -> AsyncIterator[None]:
        """The client notices nothing of what is done meanwhile."""
        known = len(self._load.errors)
        yield
        if errors := self._load.errors[known:]:
            raise Lost(f"the client got errors: {errors[:3]}")


def user_ids(account: str) -> tuple[int, int]:
    found = pwd.getpwnam(account)
    return found.pw_uid, found.pw_gid


def may_grow_mounted_ext4() -> bool:
    """The kernel wants CAP_SYS_RESOURCE of whoever grows a mounted ext4."""
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.M)
    return effective is not None and bool(int(effective[1], 16) >> _CAP_SYS_RESOURCE & 1)


def free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
