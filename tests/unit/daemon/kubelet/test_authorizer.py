"""What the API server is asked before a mount: the PersistentVolume and its claim, at the same time where it can be
told which claim that is, and whatever comes first, what is live decides."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import pytest

from contract import names
from contract.volume import PersistentVolume
from daemon.cluster.nodevolumes import NodeVolumes
from daemon.errors import NoSuchVolume, Refused, Undecided
from daemon.kubelet.authorization import Authorization, Authorizer, PodHint
from kube.client import Cluster
from kube.errors import ApiError, Json, NotFound
from kube.informer import Informer
from kube.records import Pod, PodVolume
from kube.resources import CLAIMS, PODS, VOLUMES, Resource
from tests.unit.daemon.kubelet.test_authorization import FOLDER, MENTION, NODE, POD, POD_UID, pv
from tests.waiting import until

NOBODY = PodHint("", "")
VOLUME, ITS_CLAIM, OTHER_CLAIM = (VOLUMES, "pvc-1"), (CLAIMS, "claim"), (CLAIMS, "other")
TWO_CLAIMS = replace(POD, volumes=(MENTION, PodVolume("more", "other", read_only=False, ephemeral=False)))

Asked = tuple[Resource, str]
GONE = NotFound(404, "NotFound", "there is none")
UNAVAILABLE = ApiError(503, "ServiceUnavailable", "it is away")


class Api:
    """Answers when a test lets it."""

    def __init__(self) -> None:
        self.objects: dict[Asked, Json | Exception] = {VOLUME: volume(), ITS_CLAIM: claim()}
        self.asked: list[Asked] = []
        self.answered: list[Asked] = []
        self.held: dict[Asked, asyncio.Event] = {}

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Json:
        assert namespace == (None if resource is VOLUMES else POD.namespace)
        self.asked.append((resource, name))
        if event := self.held.get((resource, name)):
            await event.wait()
        self.answered.append((resource, name))
        found = self.objects.get((resource, name), GONE)
        if isinstance(found, Exception):
            raise found
        return found


class Cached:
    """What an informer shows, or the PersistentVolumes of the node."""

    def __init__(self, *objects: Any) -> None:
        self._objects = objects

    def values(self) -> Iterable[Any]:
        return self._objects

    def get(self, name: str) -> Any:
        return next((each for each in self._objects if each.name == name), None)


def volume(claim_name: str = "claim", uid: str = "claim-uid") -> Json:
    return {
        "metadata": {"name": "pvc-1", "uid": "pv-uid", "resourceVersion": "7", "finalizers": [names.FINALIZER]},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "flexVolume": {"driver": names.DRIVER},
            "claimRef": {"namespace": "tenant", "name": claim_name, "uid": uid},
        },
    }


def claim(name: str = "claim", uid: str = "claim-uid", volume_name: str = "pvc-1") -> Json:
    return {
        "metadata": {"name": name, "namespace": "tenant", "uid": uid, "resourceVersion": "1"},
        "spec": {
            "volumeName": volume_name,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1"}},
        },
        "status": {"phase": "Bound"},
    }


def authorizer(api: Api, *pods: Pod, known: PersistentVolume | None = None) -> Authorizer:
    return Authorizer(
        cast("Cluster", api),
        cast("Informer[Pod]", Cached(*pods)),
        NODE,
        cast("NodeVolumes", Cached(*([known] if known else []))),
    )


async def authorized(api: Api, *pods: Pod, known: PersistentVolume | None = None) -> Authorization:
    return await authorizer(api, *pods, known=known).authorize(FOLDER, NOBODY, read_only=False)


def known(claim_name: str = "claim") -> PersistentVolume:
    found = pv()
    assert found.claim
    return replace(found, claim=replace(found.claim, name=claim_name))


@pytest.mark.parametrize("late", [VOLUME, ITS_CLAIM])
@pytest.mark.parametrize(
    ("pod", "cached"), [(POD, None), (POD, known()), (TWO_CLAIMS, known())], ids=["first mount", "known", "of two"]
)
async def test_both_are_asked_for_at_once_and_either_may_come_first(
    late: Asked, pod: Pod, cached: PersistentVolume | None
) -> None:
    api = Api()
    api.held[late] = asyncio.Event()
    deciding = asyncio.create_task(authorized(api, pod, known=cached))
    await until(lambda: len(api.asked) == 2 and len(api.answered) == 1)
    assert not deciding.done()
    api.held[late].set()
    assert (await deciding).pod == pod
    assert sorted(api.asked, key=str) == sorted([VOLUME, ITS_CLAIM], key=str)
    assert api.answered[-1] == late


async def test_which_of_several_claims_it_is_says_the_volume_where_nothing_else_does() -> None:
    api = Api()
    await authorized(api, TWO_CLAIMS)
    assert api.asked == [VOLUME, ITS_CLAIM]


@pytest.mark.parametrize("late", [VOLUME, OTHER_CLAIM])
async def test_the_claim_that_the_live_volume_names_decides(late: Asked) -> None:
    """It was bound anew since the cache heard of it. The claim that the cache names is there, and holds it no more."""
    api = Api()
    api.objects[OTHER_CLAIM] = claim("other", "other-uid")
    api.held[late] = asyncio.Event()
    deciding = asyncio.create_task(authorized(api, TWO_CLAIMS, known=known("other")))
    await until(lambda: len(api.answered) == 1)
    api.held[late].set()
    assert (await deciding).volume.claim == known().claim
    assert api.asked == [VOLUME, OTHER_CLAIM, ITS_CLAIM]


async def test_the_claim_that_the_live_volume_names_refuses() -> None:
    api = Api()
    api.objects |= {VOLUME: volume("other", "other-uid"), OTHER_CLAIM: claim("other", "another")}
    with pytest.raises(Refused, match="claim tenant/other of volume pvc-1 is gone"):
        await authorized(api, TWO_CLAIMS, known=known())
    assert api.asked == [VOLUME, ITS_CLAIM, OTHER_CLAIM]


async def test_a_claim_of_nobody_else_is_asked_for() -> None:
    """A pod learns nothing of the claims of others, not by the time that an answer takes either."""
    stranger = replace(POD, volumes=(replace(MENTION, claim="other"),))
    api = Api()
    with pytest.raises(Refused, match="has no claim"):
        await authorized(api, stranger, known=known())
    assert api.asked == [VOLUME]


@pytest.mark.parametrize("failing", [VOLUME, ITS_CLAIM])
async def test_without_one_of_both_nothing_is_decided(failing: Asked) -> None:
    api = Api()
    api.objects[failing] = UNAVAILABLE
    with pytest.raises(Undecided, match="it is away"):
        await authorized(api, POD)
    assert len(api.asked) == 2


@pytest.mark.parametrize(
    ("live", "refusal"), [(None, NoSuchVolume), (volume("other"), Refused)], ids=["no volume", "of another claim"]
)
async def test_a_claim_that_is_not_needed_may_be_unreadable(live: Json | None, refusal: type[Exception]) -> None:
    api = Api()
    api.objects |= {VOLUME: live or GONE, ITS_CLAIM: UNAVAILABLE}
    with pytest.raises(refusal, match="has no claim"):
        await authorized(api, POD)
    assert api.asked == [VOLUME, ITS_CLAIM]


async def test_a_pod_that_is_not_known_yet_is_read_beside_its_volume() -> None:
    api = Api()
    pod = {
        "metadata": {"name": "web", "namespace": "tenant", "uid": POD_UID},
        "spec": {
            "nodeName": NODE.name,
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "claim"}}],
            "containers": [],
        },
        "status": {"phase": "Pending"},
    }
    api.objects[PODS, "web"] = pod
    api.held[VOLUME] = asyncio.Event()
    deciding = asyncio.create_task(
        authorizer(api).authorize(FOLDER, PodHint("tenant", "web"), read_only=False), name="deciding"
    )
    await until(lambda: len(api.answered) == 2)
    api.held[VOLUME].set()
    assert (await deciding).pod.name == "web"
    assert api.asked == [VOLUME, (PODS, "web"), ITS_CLAIM]
