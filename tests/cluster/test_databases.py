"""The samples of databases, as far as they go here: volumes, users and folders of their StatefulSets, with a shell in
place of the database. It does what each of them does first: wants its folder empty, and writes there."""

import asyncio
from typing import Any

import yaml

from kube.resources import CLAIMS, PODS
from tests.sandbox.sandbox import SAMPLES
from tests.sandbox.workloads import Namespace
from tests.waiting import until

Json = dict[str, Any]

FOLDERS = {
    "postgresql": "$PGDATA",
    "elasticsearch": "/usr/share/elasticsearch/data",
    "kafka": "$KAFKA_LOG_DIRS",
}
"""Where each keeps its data, in its container."""
_SMALLEST = {"elastic-local": "64Mi", "elastic-local-xfs": "300Mi"}


def stateful_set(database: str) -> Json:
    objects = yaml.safe_load_all((SAMPLES / "databases" / f"{database}.yaml").read_text())
    (found,) = (each for each in objects if each["kind"] == "StatefulSet")
    return dict(found)


def member(database: str, script: str) -> tuple[Json, Json]:
    """The claim and the pod that the StatefulSet's controller makes for its first member, with a smaller volume and
    that script in place of the image."""
    spec = stateful_set(database)["spec"]
    (template,) = spec["volumeClaimTemplates"]
    name = template["metadata"]["name"]
    size = {"resources": {"requests": {"storage": _SMALLEST[template["spec"]["storageClassName"]]}}}
    claim: Json = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": f"{name}-{database}-0"},
        "spec": {**template["spec"], **size},
    }
    (container,) = spec["template"]["spec"]["containers"]
    kept = {key: container[key] for key in ("name", "image", "env", "volumeMounts")}
    pod: Json = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{database}-0", "labels": spec["template"]["metadata"]["labels"]},
        "spec": {
            **spec["template"]["spec"],
            "containers": [{**kept, "command": ["sh", "-ec", script]}],
            "volumes": [{"name": name, "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}],
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
        },
    }
    return claim, pod


async def test_a_member_has_a_folder_of_its_own_and_comes_back_to_it(namespace: Namespace) -> None:
    await asyncio.gather(*(lives(namespace, database) for database in FOLDERS))


async def lives(namespace: Namespace, database: str) -> None:
    folder = FOLDERS[database]
    claim, first = member(
        database, f'cd "{folder}" 2>/dev/null || {{ mkdir -m 700 "{folder}"; cd "{folder}"; }}\n'
        'test -z "$(ls -A)"; echo first > member; exec sleep infinity'
    )  # fmt: skip
    await asyncio.gather(namespace.create(CLAIMS, claim), namespace.create(PODS, first))
    started = await namespace.until_running(first["metadata"]["name"], seconds=60)
    node = namespace.sandbox.node_of(started)
    volume = node.staging / (await namespace.until_bound(claim["metadata"]["name"]))["metadata"]["name"]

    def written() -> list[str]:
        return [line for file in volume.glob("*/member") for line in file.read_text().split()]

    await until(lambda: written() == ["first"], what=f"{database} has written into its empty folder")
    (file,) = volume.glob("*/member")
    security = first["spec"]["securityContext"]
    assert file.stat().st_uid == security["runAsUser"]
    assert file.parent.name in ("pgdata", "data", "logs")
    assert (volume / "lost+found").exists() == (claim["spec"]["storageClassName"] == "elastic-local")

    await namespace.delete(PODS, first["metadata"]["name"])
    await namespace.until_gone(PODS, first["metadata"]["name"])
    _, second = member(database, f'cd "{folder}"; grep -q first member; echo second >> member; exec sleep infinity')
    await namespace.create(PODS, second)
    assert namespace.sandbox.node_of(await namespace.until_running(second["metadata"]["name"])) is node
    await until(lambda: written() == ["first", "second"], what=f"{database} has found its data")
