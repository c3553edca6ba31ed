import asyncio
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web

from contract.volume import ObjectReference
from kube.backoff import Backoff
from kube.client import Cluster
from kube.events import _TOGETHER, _TRIES, MESSAGE_BYTES, Recorder
from kube.resources import EVENTS
from tests.unit.kube.apiserver import ApiServer, connected, hang, status
from tests.waiting import until

CLAIM = ObjectReference("PersistentVolumeClaim", "v1", "shop", "data", "uid-1", "17")
NODE = ObjectReference("Node", "v1", "", "node-1", "uid-2")


@pytest.fixture
def server() -> ApiServer:
    return ApiServer(["shop"])


@pytest.fixture
async def cluster(server: ApiServer, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with connected(server, tmp_path) as made:
        yield made


@pytest.fixture
def recorder(cluster: Cluster) -> Recorder:
    return Recorder(cluster, "tester", "node-1")


async def test_an_event_as_the_api_server_wants_it(server: ApiServer, recorder: Recorder) -> None:
    recorder.warning(CLAIM, "ProvisioningFailed", "no room")
    await recorder.flush()
    (event,) = server.all(EVENTS)
    assert re.fullmatch(r"data\.[0-9a-f]{16}", event["metadata"]["name"])
    assert event["involvedObject"] == {
        "kind": "PersistentVolumeClaim",
        "apiVersion": "v1",
        "namespace": "shop",
        "name": "data",
        "uid": "uid-1",
        "resourceVersion": "17",
    }
    assert event["metadata"]["namespace"] == "shop"
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "ProvisioningFailed", "no room")
    assert event["source"] == {"component": "tester", "host": "node-1"}
    assert (event["reportingComponent"], event["reportingInstance"]) == ("tester", "node-1")
    assert event["count"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", event["firstTimestamp"])


async def test_events_on_cluster_scoped_objects_are_in_default(server: ApiServer, recorder: Recorder) -> None:
    recorder.normal(NODE, "Ready", "volume group found")
    await recorder.flush()
    (event,) = server.all(EVENTS)
    assert event["metadata"]["namespace"] == "default"
    assert event["metadata"]["name"].startswith("node-1.")
    assert "namespace" not in event["involvedObject"]


async def test_repeats_raise_the_count(server: ApiServer, recorder: Recorder) -> None:
    newer = ObjectReference("PersistentVolumeClaim", "v1", "shop", "data", "uid-1", "18")
    for reference in (CLAIM, newer):
        recorder.normal(reference, "Waiting", "for a node")
    await recorder.flush()
    for _ in range(3):
        recorder.normal(CLAIM, "Waiting", "for a node")
    recorder.normal(CLAIM, "Waiting", "for another node")
    await recorder.flush()
    counts = {event["message"]: event["count"] for event in server.all(EVENTS)}
    assert counts == {"for a node": 5, "for another node": 1}
    (patch,) = server.asked_for("PATCH")
    assert sorted(patch.body) == ["count", "lastTimestamp"]


async def test_an_event_that_ran_out_on_the_server_is_made_anew(server: ApiServer, recorder: Recorder) -> None:
    recorder.normal(CLAIM, "Waiting", "for a node")
    await recorder.flush()
    (event,) = server.all(EVENTS)
    server.remove(EVENTS, event["metadata"]["name"], "shop")
    recorder.normal(CLAIM, "Waiting", "for a node")
    await recorder.flush()
    assert [event["count"] for event in server.all(EVENTS)] == [1]


async def test_a_lost_answer_makes_no_second_event(server: ApiServer, recorder: Recorder) -> None:
    recorder.normal(CLAIM, "Waiting", "for a node")
    server.next("POST", status(503, "ServiceUnavailable"))
    await recorder.flush()
    server.put(EVENTS, server.asked_for("POST")[0].body)
    await recorder.flush()
    assert len(server.asked_for("POST")) == 2
    assert len(server.all(EVENTS)) == 1


async def test_what_waits_is_written_when_the_server_is_there_again(server: ApiServer, recorder: Recorder) -> None:
    later = status(503, "ServiceUnavailable", **{"Retry-After": "30"})
    server.next("POST", later)
    running = asyncio.create_task(recorder.run())
    recorder.normal(CLAIM, "Waiting", "for a node")
    await until(lambda: bool(server.asked_for("POST")))
    await asyncio.sleep(0.05)
    assert not server.all(EVENTS)
    recorder.hurry()
    await until(lambda: bool(server.all(EVENTS)))
    running.cancel()


async def test_messages_fit(server: ApiServer, recorder: Recorder) -> None:
    recorder.normal(CLAIM, "Long", "é" * 1000)
    recorder.normal(CLAIM, "Fits", "x" * MESSAGE_BYTES)
    recorder.normal(ObjectReference("Pod", "v1", "shop", "p" * 253, "u"), "Name", "long")
    await recorder.flush()
    written = {event["reason"]: event for event in server.all(EVENTS)}
    long, fits, named = written["Long"], written["Fits"], written["Name"]
    assert len(long["message"].encode()) <= MESSAGE_BYTES
    assert re.fullmatch("é+[.]{3}", long["message"])
    assert fits["message"] == "x" * MESSAGE_BYTES
    assert len(named["metadata"]["name"]) == 253


async def test_a_loop_can_not_flood(server: ApiServer, cluster: Cluster) -> None:
    now = 1000.0
    recorder = Recorder(cluster, "tester", clock=lambda: now)
    for number in range(100):
        recorder.warning(CLAIM, "Failed", f"try {number}")
    recorder.warning(NODE, "Failed", "another object has its own budget")
    recorder.warning(CLAIM, "Lost", "another reason has its own budget")
    await recorder.flush()
    assert len(server.all(EVENTS)) == 27
    now += 31
    recorder.warning(CLAIM, "Failed", "later")
    recorder.warning(CLAIM, "Failed", "too soon")
    await recorder.flush()
    assert server.messages("Failed").count("later") == 1
    assert len(server.all(EVENTS)) == 28


async def test_refusals_are_logged_and_do_not_stop_the_others(
    server: ApiServer, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    server.next("POST", status(403, "Forbidden", "namespace is terminating"))
    recorder.normal(CLAIM, "One", "is lost")
    recorder.normal(CLAIM, "Another", "is kept")
    with caplog.at_level(logging.WARNING):
        await recorder.flush()
    assert len(server.all(EVENTS)) == 1
    assert "namespace is terminating" in caplog.text


def _number_of(server: ApiServer, events: int) -> bool:
    return len(server.all(EVENTS)) == events


async def test_those_that_the_server_fails_with_hold_up_no_others(
    server: ApiServer, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A webhook is away that is asked for the events of one namespace: answered as any failure of the server is."""
    monkeypatch.setattr("kube.events._BACKOFF", Backoff(first=0.001, limit=0.001))
    failed = status(500, "InternalError", 'failed calling webhook "policy.x.io": no endpoints available')

    async def fail(request: web.Request) -> web.StreamResponse:
        server.next("POST /api/v1/namespaces/ill", fail)
        return await failed(request)

    ill = 2 * _TOGETHER
    server.next("POST /api/v1/namespaces/ill", *[fail] * _TOGETHER)
    for number in range(ill):
        recorder.warning(replace(CLAIM, namespace="ill", uid=str(number)), "Reason", "message")
    writing = asyncio.create_task(recorder.run())
    try:
        written = 0
        while recorder._pending:
            written += 1
            recorder.warning(replace(CLAIM, uid=f"well-{written}"), "Reason", "message")
            await until(partial(_number_of, server, written), what="one of another namespace is written")
        assert _TRIES <= written < 10 * _TRIES
        assert sum("can't be written, so it is here" in message for message in caplog.messages) == ill
    finally:
        writing.cancel()


async def test_events_outlive_an_api_server_that_is_away(
    server: ApiServer, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kube.events._BACKOFF", Backoff(first=0.005, factor=1))
    server.next("POST", *[status(503, "ServiceUnavailable")] * 3)
    task = asyncio.create_task(recorder.run())
    recorder.normal(CLAIM, "Patient", "waits")
    await until(lambda: len(server.all(EVENTS)) == 1)
    recorder.normal(CLAIM, "Awake", "still")
    await until(lambda: len(server.all(EVENTS)) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_clean_exit_does_not_wait_for_ever(
    server: ApiServer, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    server.next("POST", hang)
    recorder.normal(CLAIM, "Late", "never written")
    with caplog.at_level(logging.WARNING):
        await recorder.flush(seconds=0.02)
    assert "1 events were not written" in caplog.text
