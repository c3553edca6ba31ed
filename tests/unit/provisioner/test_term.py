"""A term of leadership against an API server in memory: what users see of provisioning, and its races."""

import asyncio
from typing import Any

import pytest

from contract import names
from kube.errors import Forbidden, Unreachable
from kube.records import IMMEDIATE, SELECTED_NODE, Claim
from kube.resources import CAPACITIES, CLAIMS, CLASSES, NODES, PODS, VOLUMES
from provisioner import claims, reservations, volumecreation
from provisioner.decision import Decision, decide
from provisioner.metrics import Metrics
from tests.memorycluster import MemoryCluster, lose_answer
from tests.sandbox.workloads import pod
from tests.unit.provisioner.leader import PV, bind, claim, does, figures, leading, raises, volume
from tests.unit.provisioner.objects import GIB, capacity_body, claim_body, class_body, local_body, node_body
from tests.waiting import drained, until


async def test_a_claim_becomes_a_volume_with_events_for_its_owner(cluster: MemoryCluster) -> None:
    metrics = Metrics()
    cluster.put(CLAIMS, claim_body())
    async with leading(cluster, metrics):
        await until(lambda: cluster.messages("ProvisioningSucceeded"))
    assert cluster.messages("ProvisioningSucceeded") == [f"Successfully provisioned volume {PV}"]
    assert figures(metrics) == {
        "controller_persistentvolumeclaim_provision_total": 1,
        "controller_persistentvolumeclaim_provision_duration_seconds_count": 1,
    }


async def test_an_existing_volume_is_not_created_again_while_its_claim_is_unbound(
    cluster: MemoryCluster,
) -> None:
    cluster.put(CLAIMS, claim_body())
    async with leading(cluster) as term:
        await until(lambda: volume(cluster))
        cluster.put(CLAIMS, {**claim(cluster), "status": {"phase": "Pending"}})
        await drained(term.claims.queue)
        cluster.put(CLAIMS, claim_body("other"))
        await until(lambda: volume(cluster, "pvc-uid-of-other"))
    assert cluster.requests.count(("create", "persistentvolumes", PV)) == 1


async def test_a_burst_takes_the_capacity_and_the_rest_get_an_event(cluster: MemoryCluster) -> None:
    for number in range(30):
        cluster.put(CLAIMS, claim_body(f"c{number}", node=f"n{number % 2 + 1}"))
    async with leading(cluster):
        await until(lambda: len(cluster.all(VOLUMES)) == 15)
        await until(lambda: sum(SELECTED_NODE not in c["metadata"]["annotations"] for c in cluster.all(CLAIMS)) == 15)
        expected = "the claim asks for 1Gi, node n2 has 0 bytes left in pool vg: another node is asked for"
        failed = f'failed to provision volume with StorageClass "elastic-local": {expected}'
        await until(lambda: failed in cluster.messages("ProvisioningFailed"))
    nodes = [body["metadata"]["labels"][names.NODE_LABEL] for body in cluster.all(VOLUMES)]
    assert (nodes.count("n1"), nodes.count("n2")) == (10, 5)
    assert [verb for verb, plural, _ in cluster.requests if plural == "persistentvolumes"].count("create") == 15


async def test_a_rescheduled_claim_is_provisioned_on_the_next_selected_node(cluster: MemoryCluster) -> None:
    cluster.put(CLAIMS, claim_body(size="6Gi", node="n2"))
    async with leading(cluster):
        await until(lambda: SELECTED_NODE not in claim(cluster)["metadata"]["annotations"])
        body = claim(cluster)
        body["metadata"]["annotations"][SELECTED_NODE] = "n1"
        cluster.put(CLAIMS, body)
        await until(lambda: volume(cluster))


async def test_the_scheduler_changed_its_mind_while_the_claim_was_rescheduled(cluster: MemoryCluster) -> None:
    """The withdrawal is for the choice that was judged, not for the next one."""

    def choose_again() -> None:
        body = claim(cluster)
        body["metadata"]["annotations"][SELECTED_NODE] = "n1"
        cluster.put(CLAIMS, body)

    cluster.before["patch", "persistentvolumeclaims"] = [does(choose_again)]
    cluster.put(CLAIMS, claim_body(size="6Gi", node="n2"))
    async with leading(cluster):
        await until(lambda: volume(cluster))
    assert claim(cluster)["metadata"]["annotations"][SELECTED_NODE] == "n1"


async def test_a_claim_that_the_cache_still_shows_is_not_provisioned(cluster: MemoryCluster) -> None:
    cluster.put(CLAIMS, claim_body())
    cluster.before["get", "persistentvolumeclaims"] = [does(lambda: cluster.remove(CLAIMS, "data", "default"))]
    async with leading(cluster) as term:
        await until(lambda: ("get", "persistentvolumeclaims", "data") in cluster.requests)
        await drained(term.claims.queue)
    assert ("create", "persistentvolumes", PV) not in cluster.requests


async def test_a_namesake_gets_a_volume_of_its_own(cluster: MemoryCluster) -> None:
    """Deleted and made again under the same name, before our cache knows."""
    cluster.put(CLAIMS, claim_body())

    def swap() -> None:
        cluster.remove(CLAIMS, "data", "default")
        cluster.put(CLAIMS, claim_body(uid="second"))

    cluster.before["get", "persistentvolumeclaims"] = [does(swap)]
    async with leading(cluster):
        await until(lambda: volume(cluster, "pvc-second"))
    assert volume(cluster) is None


async def test_a_choice_that_changed_since_the_cache_saw_it_is_followed(cluster: MemoryCluster) -> None:
    cluster.put(CLAIMS, claim_body(node="n1"))

    def choose_again() -> None:
        cluster.put(CLAIMS, claim_body(node="n2"))

    cluster.before["get", "persistentvolumeclaims"] = [does(choose_again)]
    async with leading(cluster):
        await until(lambda: volume(cluster))
    body = volume(cluster)
    assert body is not None
    assert body["metadata"]["labels"][names.NODE_LABEL] == "n2"


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
async def test_a_claim_deleted_while_its_volume_is_made_leaves_nothing(
    cluster: MemoryCluster, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumecreation, "_UNUSED", 60.0)
    cluster.put(CLASSES, class_body(reclaimPolicy=policy))
    cluster.put(CLAIMS, claim_body())

    def go() -> None:
        cluster.remove(CLAIMS, "data", "default")
        if policy == "Delete":  # what Kubernetes makes of a volume without its claim
            cluster.put(VOLUMES, {**(volume(cluster) or {}), "status": {"phase": "Released"}})

    cluster.after["create", "persistentvolumes"] = [does(go)]
    cluster.before["delete", "persistentvolumes"] = [lose_answer]
    async with leading(cluster):
        await until(lambda: "deletionTimestamp" in ((volume(cluster) or {}).get("metadata") or {}))
    # Or its node would keep what it may have made meanwhile.
    assert (volume(cluster) or {})["spec"]["persistentVolumeReclaimPolicy"] == "Delete"


async def test_a_claim_takes_no_request_that_nobody_needs(cluster: MemoryCluster) -> None:
    """Each costs us and the API server most of a millisecond. One that chose a node that none chose before no more."""
    for name in ("data", "next"):
        waiting = {"metadata": {"name": name, "namespace": "default"}, "status": {"phase": "Pending"}}
        cluster.put(PODS, {**pod(name, {"/data": name}), **waiting})
    async with leading(cluster):
        cluster.put(CLAIMS, claim_body())
        await until(lambda: cluster.messages("ProvisioningSucceeded"))
        asked = len(cluster.requests)
        cluster.put(CLAIMS, claim_body("next", node="n2"))
        await until(lambda: len(cluster.messages("ProvisioningSucceeded")) == 2)
    assert [request[:2] for request in cluster.requests[asked:] if request[1] != "leases"] == [
        ("get", "persistentvolumeclaims"),
        ("create", "persistentvolumes"),
        ("create", "events"),
    ]


async def test_a_claim_is_decided_on_twice_and_leaves_nothing_to_do(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once from the cache, once as it is now; and nobody verifies a reservation that the watch has closed."""
    monkeypatch.setattr(reservations, "REQUEST_LIFETIME", 0.5)
    decided: list[str] = []
    verified: list[str] = []

    def counted(asked: Claim, *arguments: Any, **more: Any) -> Decision:
        decided.append(asked.name)
        return decide(asked, *arguments, **more)

    monkeypatch.setattr(claims, "decide", counted)
    waiting = {"metadata": {"name": "data", "namespace": "default"}, "status": {"phase": "Pending"}}
    cluster.put(PODS, {**pod("data", {"/data": "data"}), **waiting})
    async with leading(cluster) as term:
        await term.cache.wait_synced()
        verifies = term._queues["reservations"]
        monkeypatch.setattr(verifies, "add", verified.append)
        cluster.put(CLAIMS, claim_body())
        await until(lambda: term.cache.volumes.get(PV))
        await asyncio.sleep(0.6)
        assert decided == ["data", "data"]
        assert not verified


async def test_an_answer_that_was_lost_is_found_out_by_the_next_try(cluster: MemoryCluster) -> None:
    cluster.put(CLAIMS, claim_body())
    cluster.after["create", "persistentvolumes"] = [lose_answer]
    metrics = Metrics()
    async with leading(cluster, metrics) as term:
        await until(lambda: cluster.messages("ProvisioningSucceeded"))
        await until(lambda: term.ledger.reservation(PV) is None)
    assert len(cluster.all(VOLUMES)) == 1
    assert figures(metrics)["controller_persistentvolumeclaim_provision_failed_total"] == 1


async def test_an_unanswered_request_keeps_its_reservation_until_it_expires(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reservations, "REQUEST_LIFETIME", 2.0)
    cluster.put(CLAIMS, claim_body(size="5Gi", node="n2"))

    async def vanish() -> None:
        cluster.remove(CLAIMS, "data", "default")
        raise Unreachable(0, "", "timed out")

    cluster.before["create", "persistentvolumes"] = [vanish]
    async with leading(cluster) as term:
        await until(lambda: term.ledger.reservation(PV))
        cluster.put(CLAIMS, claim_body("next", size="1Gi", node="n2"))
        await until(lambda: cluster.messages("ProvisioningFailed"))
        await until(lambda: any("n2 has 0 bytes left" in text for text in cluster.messages("ProvisioningFailed")))
        await until(lambda: term.ledger.reservation(PV) is None)
        cluster.put(CLAIMS, claim_body("next", size="1Gi", node="n2"))
        await until(lambda: volume(cluster, "pvc-uid-of-next"))


async def test_a_volume_of_that_name_that_is_not_ours_is_no_success(cluster: MemoryCluster) -> None:
    claim_reference = {"namespace": "default", "name": "data", "uid": "x"}
    cluster.put(VOLUMES, local_body(PV, claimRef=claim_reference))
    cluster.put(CLAIMS, claim_body())
    async with leading(cluster) as term:
        await until(lambda: cluster.messages("ProvisioningFailed"))
        assert f"there is a PersistentVolume {PV} already" in cluster.messages("ProvisioningFailed")[0]
        assert term.ledger.reservation(PV) is None
    assert not cluster.messages("ProvisioningSucceeded")


async def test_a_refusal_of_the_api_server_is_reported_and_retried(cluster: MemoryCluster) -> None:
    cluster.put(CLAIMS, claim_body(size="10Gi"))
    cluster.before["create", "persistentvolumes"] = [raises(Forbidden(403, "Forbidden", "exceeded quota"))]
    async with leading(cluster):
        await until(lambda: volume(cluster))
    assert any("exceeded quota" in message for message in cluster.messages("ProvisioningFailed"))


async def test_a_class_that_comes_later_is_enough(cluster: MemoryCluster) -> None:
    cluster.remove(CLASSES, "elastic-local")
    cluster.put(CLAIMS, claim_body())
    async with leading(cluster):
        await until(lambda: cluster.messages("ProvisioningFailed"))
        assert "there is no StorageClass" in cluster.messages("ProvisioningFailed")[0]
        cluster.put(CLASSES, class_body())
        await until(lambda: volume(cluster))


async def test_a_daemon_that_publishes_a_moment_later_keeps_the_claim(cluster: MemoryCluster) -> None:
    cluster.put(CLAIMS, claim_body(node="n3"))
    async with leading(cluster) as term:
        await until(lambda: term.cache.synced)
        await drained(term.claims.queue)
        cluster.put(CAPACITIES, capacity_body("n3"))
        await until(lambda: volume(cluster))
    assert not cluster.messages("ProvisioningFailed")


async def test_an_immediate_claim_waits_for_room_and_gets_it(cluster: MemoryCluster) -> None:
    cluster.put(CLASSES, class_body(volumeBindingMode=IMMEDIATE))
    cluster.put(CLAIMS, claim_body(size="20Gi", node=""))
    async with leading(cluster):
        await until(lambda: cluster.messages("ProvisioningFailed"))
        assert "the most that a node has is 10Gi" in cluster.messages("ProvisioningFailed")[0]
        cluster.put(CAPACITIES, capacity_body("n1", 30 * GIB))
        await until(lambda: volume(cluster))


async def test_a_volume_that_went_makes_room_for_who_waits(cluster: MemoryCluster) -> None:
    cluster.put(CLASSES, class_body(volumeBindingMode=IMMEDIATE))
    cluster.put(CLAIMS, claim_body(size="10Gi", node=""))
    async with leading(cluster):
        await until(lambda: volume(cluster))
        bind(cluster)
        cluster.put(CLAIMS, claim_body("next", size="10Gi", node=""))
        await until(lambda: cluster.messages("ProvisioningFailed"))
        cluster.remove(VOLUMES, PV)
        await until(lambda: volume(cluster, "pvc-uid-of-next"))


async def test_a_volume_deleted_under_a_claim_that_waits_is_made_again(cluster: MemoryCluster) -> None:
    cluster.put(CLAIMS, claim_body())
    async with leading(cluster):
        await until(lambda: volume(cluster))
        first = (volume(cluster) or {})["metadata"]["uid"]
        cluster.remove(VOLUMES, PV)
        await until(lambda: volume(cluster))
        assert (volume(cluster) or {})["metadata"]["uid"] != first


async def test_the_next_leader_counts_what_the_last_one_made(cluster: MemoryCluster) -> None:
    cluster.put(CLAIMS, claim_body(size="5Gi", node="n2"))
    async with leading(cluster):
        await until(lambda: volume(cluster))
    cluster.put(CLAIMS, claim_body("next", size="1Gi", node="n2"))
    async with leading(cluster):
        await until(lambda: SELECTED_NODE not in claim(cluster, "next")["metadata"]["annotations"])
    assert volume(cluster, "pvc-uid-of-next") is None


async def test_space_of_a_retained_volume_is_not_reused_on_stale_capacity(cluster: MemoryCluster) -> None:
    """Its node published the smaller figure first, but we hear of it last."""
    cluster.put(CLASSES, class_body(reclaimPolicy="Retain"))
    cluster.put(CLAIMS, claim_body(size="5Gi", node="n2"))
    async with leading(cluster) as term:
        await until(lambda: volume(cluster))
        bind(cluster)
        await until(lambda: term.cache.volumes.get(PV) is not None)
        published = term.cache.published("n2")
        term.cache.published = lambda node: published  # type: ignore[method-assign]
        cluster.put(CAPACITIES, capacity_body("n2", 0))
        uid = (volume(cluster) or {})["metadata"]["uid"]
        cluster.remove(VOLUMES, PV)
        await until(lambda: term.ledger.retained(uid))
        listed = len(cluster.requests)
        await until(lambda: ("list", "csistoragecapacities", "") in cluster.requests[listed:])
        assert term.ledger.retained(uid)
        del term.cache.published
        await until(lambda: term.ledger.retained(uid) is None)


async def test_a_retained_volume_that_may_have_been_used_is_left_to_its_policy(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim is gone as well, but we learn it too late to know that nobody wrote on it."""
    monkeypatch.setattr(volumecreation, "_UNUSED", 0.0)
    cluster.put(CLASSES, class_body(reclaimPolicy="Retain"))
    cluster.put(CLAIMS, claim_body())
    cluster.after["create", "persistentvolumes"] = [does(lambda: cluster.remove(CLAIMS, "data", "default"))]
    async with leading(cluster) as term:
        await until(lambda: cluster.requests.count(("get", "persistentvolumeclaims", "data")) == 2)
        await drained(term.claim_check.queue)
    assert "deletionTimestamp" not in (volume(cluster) or {})["metadata"]


@pytest.mark.parametrize("verb", ["patch", "delete"])
async def test_a_retained_volume_that_was_given_away_before_it_could_be_deleted_is_kept(
    cluster: MemoryCluster, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim went in time, and the API server did not take the deletion for a while."""
    monkeypatch.setattr(volumecreation, "_UNUSED", 60.0)
    cluster.put(CLASSES, class_body(reclaimPolicy="Retain"))
    cluster.put(CLAIMS, claim_body())

    def given_away() -> None:
        body = volume(cluster) or {}
        reference = {"namespace": "default", "name": "next", "uid": "uid-of-next"}
        cluster.put(VOLUMES, {**body, "spec": {**body["spec"], "claimRef": reference}})
        raise Unreachable(503, "", "later")

    cluster.after["create", "persistentvolumes"] = [does(lambda: cluster.remove(CLAIMS, "data", "default"))]
    cluster.before[verb, "persistentvolumes"] = [does(given_away)]
    async with leading(cluster) as term:
        await until(lambda: not cluster.before[verb, "persistentvolumes"])
        await until(lambda: not term.claim_check._created, what="a decision about the volume")
    kept = volume(cluster) or {}
    assert "deletionTimestamp" not in kept["metadata"]
    assert verb == "delete" or kept["spec"]["persistentVolumeReclaimPolicy"] == "Retain"


async def test_a_claim_that_takes_its_time_to_go_leaves_nothing_either(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumecreation, "_UNUSED", 60.0)
    cluster.put(CLASSES, class_body(reclaimPolicy="Retain"))
    cluster.put(CLAIMS, claim_body())

    def begin_to_go() -> None:
        body = claim(cluster)
        cluster.put(CLAIMS, {**body, "metadata": {**body["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}})

    cluster.after["create", "persistentvolumes"] = [does(begin_to_go)]
    async with leading(cluster):
        await until(lambda: cluster.requests.count(("get", "persistentvolumeclaims", "data")) == 2)
        cluster.remove(CLAIMS, "data", "default")
        await until(lambda: "deletionTimestamp" in (volume(cluster) or {})["metadata"])


async def test_a_node_that_publishes_room_under_anothers_hostname_is_not_believed(cluster: MemoryCluster) -> None:
    """The volume would be assigned to the other one."""
    cluster.put(NODES, node_body("n1", "host-of-somebody-else"))
    cluster.put(NODES, node_body("n2"))
    cluster.put(CLAIMS, claim_body())
    cluster.put(CLAIMS, claim_body("other", node="n2"))
    async with leading(cluster):
        await until(lambda: volume(cluster, "pvc-uid-of-other"))
        await until(lambda: SELECTED_NODE not in claim(cluster)["metadata"]["annotations"])
        expected = (
            "publishes capacity for hostname host-n1, and its label says host-of-somebody-else, so it is not believed"
        )
        await until(lambda: any(expected in each for each in cluster.messages("ProvisioningFailed")))
    assert volume(cluster) is None
