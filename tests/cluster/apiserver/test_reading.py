"""Lists and watches: selectors, consistent pages, what a watch replays, when it is told to start over, restarts."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.cluster.apiserver.samples import claim, config, maps, pod, pods
from tests.sandbox.apiserver.client import Client
from tests.sandbox.apiserver.process import ServerProcess
from tests.sandbox.apiserver.resources import Json


def names(answer: Json) -> list[str]:
    return [each["metadata"]["name"] for each in answer["items"]]


def revision(body: Json) -> int:
    return int(body["metadata"]["resourceVersion"])


def changes_of(events: Iterator[Json], count: int) -> list[tuple[str, str]]:
    return [(each["type"], each["object"]["metadata"]["name"]) for each in islice(events, count)]


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ("tier=web", "ab"),
        ("tier==web", "ab"),
        ("tier!=web", "cd"),
        ("tier in (web, db)", "abc"),
        ("tier notin (web,db)", "d"),
        ("tier", "abc"),
        ("!tier", "d"),
        ("tier=web,size=", "b"),
        ("tier,!size", "c"),
        ("size in (,)", "b"),
        ("rank>1", "c"),
        ("rank<2", "a"),
        ("", "abcd"),
    ],
)
def test_label_selectors(api: Client, namespace: str, selector: str, selected: str) -> None:
    labels = {"a": {"tier": "web", "size": "big", "rank": "1"}, "b": {"tier": "web", "size": ""}, "c": {"tier": "db"}}
    labels["c"]["rank"] = "2"
    for name in "abcd":
        api.post(maps(namespace), config(name, labels=labels.get(name, {})))
    assert names(api.get(maps(namespace), labelSelector=selector)) == list(selected)


@pytest.mark.parametrize("selector", ["a=b=c", "a in b", "a in (b", "=b", "a,,b", "a>x", "a,", "!"])
def test_a_broken_label_selector_is_a_bad_request(api: Client, selector: str) -> None:
    answer = api.request("GET", "/api/v1/pods", labelSelector=selector)
    assert (answer.code, answer.body["reason"]) == (400, "BadRequest")


def test_field_selectors(api: Client, namespace: str) -> None:
    for name in ("a", "b", "c"):
        api.post(pods(namespace), pod(name))
    api.post(pods(namespace, "a") + "/binding", {"target": {"kind": "Node", "name": "n1"}})
    api.patch(pods(namespace, "b") + "/status", {"status": {"phase": "Failed"}})
    assert names(api.get(pods(namespace), fieldSelector="spec.nodeName=n1")) == ["a"]
    assert names(api.get(pods(namespace), fieldSelector="spec.nodeName=")) == ["b", "c"]
    assert names(api.get(pods(namespace), fieldSelector="status.phase!=Failed,metadata.name!=a")) == ["c"]
    assert names(api.get("/api/v1/pods", fieldSelector=f"metadata.namespace={namespace},metadata.name=b")) == ["b"]
    refused = api.request("GET", pods(namespace), fieldSelector="spec.colour=red")
    assert refused.code == 400
    assert "field label not supported: spec.colour" in refused.body["message"]


def test_events_are_found_by_what_they_are_about(api: Client, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/events"
    for name, kind in (("one", "Pod"), ("two", "PersistentVolumeClaim")):
        about = {"kind": kind, "namespace": namespace, "name": "x", "uid": f"uid-{name}"}
        api.post(path, {"metadata": {"name": name}, "involvedObject": about, "reason": "R", "type": "Warning"})
    assert names(api.get(path, fieldSelector="involvedObject.kind=Pod,type=Warning,reason=R")) == ["one"]
    assert names(api.get(path, fieldSelector="involvedObject.uid=uid-two,involvedObject.name=x")) == ["two"]


def test_the_items_of_a_list_have_no_kind_of_their_own(api: Client, namespace: str) -> None:
    api.post(maps(namespace), config("a"))
    answer = api.get(maps(namespace))
    assert (answer["kind"], answer["apiVersion"]) == ("ConfigMapList", "v1")
    assert "kind" not in answer["items"][0]


def test_pages_show_one_moment(api: Client, namespace: str) -> None:
    for name in "abcde":
        api.post(maps(namespace), config(name))
    first = api.get(maps(namespace), limit=2)
    assert names(first) == ["a", "b"]
    assert first["metadata"]["remainingItemCount"] == 3
    api.delete(maps(namespace, "c"))
    api.patch(maps(namespace, "d"), {"data": {"key": "later"}})
    api.post(maps(namespace), config("cc"))
    second = api.get(maps(namespace), limit=2, **{"continue": first["metadata"]["continue"]})
    assert names(second) == ["c", "d"]
    assert second["items"][1]["data"] == {"key": "value"}
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    third = api.get(maps(namespace), limit=2, **{"continue": second["metadata"]["continue"]})
    assert names(third) == ["e"]
    assert "continue" not in third["metadata"]


def test_a_list_of_an_exact_earlier_revision(api: Client, namespace: str) -> None:
    then = revision(api.post(maps(namespace), config("a")))
    api.post(maps(namespace), config("b"))
    exact = api.get(maps(namespace), resourceVersion=then, resourceVersionMatch="Exact")
    assert names(exact) == ["a"]
    assert names(api.get(maps(namespace), resourceVersion=then)) == ["a", "b"]
    ahead = api.request("GET", maps(namespace), resourceVersion=then + 1000)
    assert (ahead.code, ahead.body["reason"]) == (504, "Timeout")


def test_a_watch_replays_what_it_missed_and_goes_on(api: Client, namespace: str) -> None:
    since = api.get(maps(namespace))["metadata"]["resourceVersion"]
    api.post(maps(namespace), config("a"))
    api.post(maps("default"), config(namespace))
    api.patch(maps(namespace, "a"), {"data": {"key": "x"}})
    with api.watch(maps(namespace), resourceVersion=since) as events:
        assert changes_of(events, 2) == [("ADDED", "a"), ("MODIFIED", "a")]
        gone = api.delete(maps(namespace, "a"))
        assert gone["status"] == "Success"
        deleted = next(events)
    assert deleted["type"] == "DELETED"
    assert deleted["object"]["kind"] == "ConfigMap"
    assert int(deleted["object"]["metadata"]["resourceVersion"]) > int(since) + 3


@pytest.mark.parametrize("start", ["", "0"])
def test_a_watch_from_nowhere_begins_with_what_is_there(api: Client, namespace: str, start: str) -> None:
    api.post(maps(namespace), config("a"))
    with api.watch(maps(namespace), resourceVersion=start) as events:
        assert changes_of(events, 1) == [("ADDED", "a")]
        api.post(maps(namespace), config("b"))
        assert changes_of(events, 1) == [("ADDED", "b")]


def test_initial_events_end_with_a_bookmark(api: Client, namespace: str) -> None:
    api.post(maps(namespace), config("a"))
    wanted = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    with api.watch(maps(namespace), **wanted) as events:
        assert changes_of(events, 1) == [("ADDED", "a")]
        bookmark = next(events)
    assert bookmark["type"] == "BOOKMARK"
    assert bookmark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    lacking = api.request("GET", maps(namespace), watch="true", sendInitialEvents="true")
    assert lacking.code == 422


def test_an_object_that_leaves_the_selector_is_reported_as_deleted(api: Client, namespace: str) -> None:
    with api.watch(maps(namespace), labelSelector="on") as events:
        api.post(maps(namespace), config("a"))
        api.patch(maps(namespace, "a"), {"metadata": {"labels": {"on": ""}}})
        assert changes_of(events, 1) == [("ADDED", "a")]
        api.patch(maps(namespace, "a"), {"data": {"key": "x"}})
        assert changes_of(events, 1) == [("MODIFIED", "a")]
        api.patch(maps(namespace, "a"), {"metadata": {"labels": {"on": None}}})
        left = next(events)
        assert left["type"] == "DELETED"
        assert "labels" not in left["object"]["metadata"]
        api.delete(maps(namespace, "a"))
        api.post(maps(namespace), config("b", labels={"on": ""}))
        assert changes_of(events, 1) == [("ADDED", "b")]


def test_a_watch_of_a_field_follows_the_pods_of_a_node(api: Client, namespace: str) -> None:
    api.post(pods(namespace), pod("p"))
    with api.watch("/api/v1/pods", fieldSelector=f"spec.nodeName=node-{namespace}") as events:
        api.post(pods(namespace, "p") + "/binding", {"target": {"kind": "Node", "name": f"node-{namespace}"}})
        assert changes_of(events, 1) == [("ADDED", "p")]


def test_a_watch_of_one_object(api: Client, namespace: str) -> None:
    api.post(maps(namespace), config("a"))
    with api.watch(maps(namespace, "a")) as events:
        api.post(maps(namespace), config("b"))
        api.delete(maps(namespace, "a"))
        assert changes_of(events, 2) == [("ADDED", "a"), ("DELETED", "a")]


def test_a_watch_ends_after_its_timeout(api: Client, namespace: str) -> None:
    with api.watch(maps(namespace), timeoutSeconds=1) as events:
        assert list(events) == []


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[ServerProcess]:
    """Remembers three changes, and sends a bookmark every tenth of a second."""
    process = ServerProcess(tmp_path, ("--history", "3", "--bookmark-seconds", "0.1"))
    process.start()
    yield process
    process.stop()


def test_bookmarks_have_the_revision_while_nothing_happens(forgetful: ServerProcess) -> None:
    api = Client(forgetful.port)
    with api.watch(maps("default"), allowWatchBookmarks="true") as events:
        other = api.post("/api/v1/namespaces", {"metadata": {"name": "other"}})
        told_all = next(each for each in events if revision(each["object"]) >= revision(other))
    assert told_all["type"] == "BOOKMARK"
    with api.watch(maps("default"), timeoutSeconds=1) as events:
        assert list(events) == []


def test_who_comes_too_late_starts_over(forgetful: ServerProcess) -> None:
    api = Client(forgetful.port)
    for name in "abcd":
        api.post(maps("default"), config(name))
    page = api.get(maps("default"), limit=1)
    old = page["metadata"]["resourceVersion"]
    for value in "12345":
        api.patch(maps("default", "a"), {"data": {"key": value}})
    with api.watch(maps("default"), resourceVersion=old) as events:
        (error,) = events
    assert (error["type"], error["object"]["code"], error["object"]["reason"]) == ("ERROR", 410, "Expired")
    late = api.request("GET", maps("default"), **{"continue": page["metadata"]["continue"]})
    assert (late.code, late.body["reason"]) == (410, "Expired")
    resumed = api.get(maps("default"), **{"continue": late.body["metadata"]["continue"]})
    assert names(resumed) == ["b", "c", "d"]


def test_a_killed_server_comes_back_with_its_objects_but_not_its_history(forgetful: ServerProcess) -> None:
    api = Client(forgetful.port)
    before = api.get(maps("default"))["metadata"]["resourceVersion"]
    api.post(maps("default"), config("kept"))
    api.post(maps("default"), config("deleted"))
    api.delete(maps("default", "deleted"))
    api.post("/api/v1/namespaces/default/persistentvolumeclaims", claim("c"))
    listed = api.get(maps("default"))
    port = forgetful.port
    forgetful.kill()
    forgetful.start()
    assert forgetful.port == port
    again = api.get(maps("default"))
    assert again["items"] == listed["items"]
    assert api.get("/api/v1/namespaces/default/persistentvolumeclaims/c")["status"]["phase"] == "Pending"
    with api.watch(maps("default"), resourceVersion=before) as events:
        assert [each["object"]["code"] for each in events] == [410]
    with api.watch(maps("default"), resourceVersion=again["metadata"]["resourceVersion"]) as events:
        new = api.post(maps("default"), config("new"))
        assert changes_of(events, 1) == [("ADDED", "new")]
    assert int(new["metadata"]["resourceVersion"]) > int(again["metadata"]["resourceVersion"])
