import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kube.backoff import Backoff
from kube.client import Cluster
from kube.informer import Informer
from kube.resources import ATTRIBUTES_CLASSES, ATTRIBUTES_CLASSES_BETA, VOLUMES
from tests.ports import reserved_port
from tests.unit.kube.apiserver import (
    Answer,
    ApiServer,
    Json,
    connected,
    page,
    serving,
    status,
    stream,
    volume,
    write_kubeconfig,
)
from tests.waiting import until


def parse(body: Json) -> str | None:
    """A record of a size, so that a change of something else is none of ours."""
    if body.get("broken"):
        raise ValueError("broken")
    return None if body.get("foreign") else str(body.get("size", "small"))


class Following:
    def __init__(self, cluster: Cluster, *, optional: bool = False) -> None:
        self.informer = Informer(cluster, VOLUMES, parse, optional=optional)
        self.notified: list[tuple[str, str | None, str | None]] = []
        self.informer.subscribe(lambda *change: self.notified.append(change))


@asynccontextmanager
async def following(server: ApiServer, folder: Path, *, optional: bool = False) -> AsyncIterator[Following]:
    """An informer at work. Once the script is used up, watches stay open and silent."""
    server.script += [("GET", stream(keep_open=True))] * 3
    async with connected(server, folder) as cluster:
        made = Following(cluster, optional=optional)
        task = asyncio.create_task(made.informer.run())
        try:
            yield made
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


@pytest.fixture(autouse=True)
def failures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many failures in a row each wait of the informer was for."""
    waits: list[int] = []

    class Noting(Backoff):
        def delay(self, failures: int) -> float:
            waits.append(failures)
            return 0.005

    monkeypatch.setattr("kube.informer._BACKOFF", Noting())
    return waits


@pytest.fixture
def server() -> ApiServer:
    return ApiServer()


async def test_list_in_pages_then_watch_from_there(server: ApiServer, tmp_path: Path) -> None:
    server.next(
        "GET",
        page(["a"], "5", more="next"),
        page(["b"], "5"),
        stream(
            ("MODIFIED", volume("a", "6", size="large")),
            ("MODIFIED", volume("a", "7", size="large", status="news to others only")),
            ("DELETED", volume("b", "8")),
            ("ADDED", volume("c", "9")),
            ("BOOKMARK", {"metadata": {"resourceVersion": "12"}}),
        ),
    )
    async with following(server, tmp_path) as it:
        assert not it.informer.synced
        await it.informer.wait_synced()
        await until(lambda: len(server.asked) == 4)
        assert it.notified == [
            ("a", None, "small"),
            ("b", None, "small"),
            ("a", "small", "large"),
            ("b", "small", None),
            ("c", None, "small"),
        ]
        assert (it.informer.get("a"), it.informer.get("b")) == ("large", None)
        assert it.informer.values() == ["large", "small"]
    assert [asked.query.get("resourceVersion") for asked in server.asked] == [None, None, "5", "12"]


async def test_a_cut_watch_goes_on_from_where_it_was(server: ApiServer, tmp_path: Path) -> None:
    server.next("GET", page(["a"], "5"), stream(("ADDED", volume("b", "6")), cut=True), page(["a"], "7", more="b"))
    async with following(server, tmp_path) as it:
        await until(lambda: len(server.asked) == 4)
        assert it.notified == [("a", None, "small"), ("b", None, "small")]
    assert [asked.query.get("resourceVersion") for asked in server.asked] == [None, "5", None, "6"]
    assert server.asked[2].query["limit"] == "1"  # only asked how late it is


_LOST = stream(cut=True)
_SILENT = stream()
_BACK = stream(("MODIFIED", volume("a", "3", size="large")))
_BOOKMARK = stream(("BOOKMARK", {"metadata": {"resourceVersion": "3"}}))
_TOO_LARGE = {
    "code": 504,
    "reason": "Timeout",
    "message": "Timeout: Too large resource version: 5, current: 3",
    "details": {"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]},
}


@pytest.mark.parametrize(
    "answers",
    [(_LOST, page(["a"], "3")), (_SILENT, page(["a"], "3")), (_BACK,), (_BOOKMARK,), (stream(("ERROR", _TOO_LARGE)),)],
    ids=["lost", "silent", "event", "bookmark", "refused"],
)
async def test_a_server_that_went_back_in_time_is_listed_again(
    server: ApiServer, tmp_path: Path, answers: tuple[Answer, ...]
) -> None:
    """As after etcd was restored from a backup: a watch from a future version would be silent until it is reached."""
    server.next("GET", page(["a", "gone"], "5"), *answers, page(["a", "again"], "3"))
    async with following(server, tmp_path) as it:
        await until(lambda: it.informer.get("again") is not None)
        assert it.notified == [
            ("a", None, "small"),
            ("gone", None, "small"),
            ("again", None, "small"),
            ("gone", "small", None),
        ]
        await until(lambda: len(server.asked) == 4 + len(answers) - 1)
    assert server.asked[-1].query["resourceVersion"] == "3"


async def test_subscribers_are_called_when_the_server_is_back(server: ApiServer, tmp_path: Path) -> None:
    server.next("GET", page(["a"], "5"), _LOST, status(503, "ServiceUnavailable"), page(["a"], "5"))
    notified = []
    async with following(server, tmp_path) as it:
        it.informer.on_return(lambda: notified.append(len(server.asked)))
        await until(lambda: len(server.asked) == 5)
    assert notified == [4]


async def test_a_server_that_is_back_and_forgot_our_version_is_listed_at_once(
    server: ApiServer, tmp_path: Path, failures: list[int]
) -> None:
    away = [status(503, "ServiceUnavailable")] * 3
    back = [page(["a"], "7"), status(410, "Expired"), page(["a", "b"], "7")]
    server.next("GET", page(["a"], "5"), _LOST, *away, *back)
    async with following(server, tmp_path) as it:
        await until(lambda: it.informer.get("b") is not None)
    assert failures == [1, 1, 2, 3, 1]


@pytest.mark.parametrize("answer", [(503, ""), (404, ""), (502, "")])
async def test_what_stands_in_the_place_of_a_server_is_asked_again_soon(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str]
) -> None:
    monkeypatch.setattr("kube.informer._BACKOFF", Backoff(first=3600))
    monkeypatch.setattr("kube.informer._AWAY", (0.001, 0.002))
    server.next("GET", *[status(*answer)] * 3, page(["a"], "5"))
    async with following(server, tmp_path) as it:
        await until(lambda: it.informer.synced)


@pytest.mark.parametrize(
    "expired",
    [
        status(410, "Expired"),
        stream(("ERROR", {"code": 410, "reason": "Expired", "message": "too old resource version"})),
    ],
)
async def test_what_vanished_meanwhile_is_reported(server: ApiServer, tmp_path: Path, expired: object) -> None:
    server.next("GET", page(["a", "b"], "5"), expired, page(["b", "c"], "50"))  # type: ignore[arg-type]
    async with following(server, tmp_path) as it:
        await until(lambda: len(server.asked) == 4)
        assert it.notified == [
            ("a", None, "small"),
            ("b", None, "small"),
            ("c", None, "small"),
            ("a", "small", None),
        ]
    assert server.asked[3].query["resourceVersion"] == "50"


async def test_an_expired_continue_begins_the_list_again(server: ApiServer, tmp_path: Path) -> None:
    server.next("GET", page(["a"], "5", more="old"), status(410, "Expired"), page(["a", "b"], "6"))
    async with following(server, tmp_path) as it:
        await it.informer.wait_synced()
        assert sorted(it.notified) == [("a", None, "small"), ("b", None, "small")]
    assert "continue" not in server.asked[2].query


async def test_a_half_read_list_deletes_nothing(server: ApiServer, tmp_path: Path) -> None:
    server.next(
        "GET",
        page(["a", "b"], "5"),
        status(410, "Expired"),
        page(["a"], "6", more="next"),
        status(503, "ServiceUnavailable"),
        page(["a", "b"], "7"),
    )
    async with following(server, tmp_path) as it:
        await until(lambda: len(server.asked) == 6)
        assert it.notified == [("a", None, "small"), ("b", None, "small")]


async def test_the_server_restarts(server: ApiServer, tmp_path: Path, failures: list[int]) -> None:
    server.next("GET", page(["a"], "5"), stream(keep_open=True))
    later = ApiServer()
    later.next("GET", page(["a"], "5"), stream(("ADDED", volume("b", "6"))), stream(keep_open=True))
    with reserved_port() as port:
        async with serving(server, port) as url:
            cluster = await Cluster.connect(write_kubeconfig(tmp_path / "kubeconfig", url))
            it = Following(cluster)
            task = asyncio.create_task(it.informer.run())
            await until(lambda: len(server.asked) == 2)
        await until(lambda: len(failures) >= 3)
        assert it.informer.get("a") == "small"
        async with serving(later, port):
            await until(lambda: it.informer.get("b") == "small")
            assert later.asked[1].query["resourceVersion"] == "5"
            task.cancel()
            await cluster.close()


async def test_one_bad_object_spoils_nothing(
    server: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.next(
        "GET",
        page(["a"], "5"),
        stream(
            ("MODIFIED", volume("a", "6", broken=True)),
            ("MODIFIED", volume("a", "7", broken=True)),
            ("ADDED", volume("b", "8")),
        ),
        stream(("MODIFIED", volume("a", "9", size="large"))),
    )
    with caplog.at_level(logging.WARNING):
        async with following(server, tmp_path) as it:
            await until(lambda: it.informer.get("a") == "large")
    assert it.notified == [("a", None, "small"), ("b", None, "small"), ("a", "small", "large")]
    assert sum("can't be read" in record.message for record in caplog.records) == 1


async def test_what_is_not_kept_any_more_is_reported_as_gone(server: ApiServer, tmp_path: Path) -> None:
    server.next("GET", page(["a"], "5"), stream(("MODIFIED", volume("a", "6", foreign=True))))
    async with following(server, tmp_path) as it:
        await until(lambda: len(it.notified) == 2)
    assert it.notified[1] == ("a", "small", None)


async def test_a_failing_subscriber_harms_no_other(server: ApiServer, tmp_path: Path) -> None:
    server.next("GET", page(["a"], "5"))

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    async with connected(server, tmp_path) as cluster:
        informer = Informer(cluster, VOLUMES, parse)
        notified: list[str] = []
        informer.subscribe(fail)
        informer.subscribe(lambda key, _old, _new: notified.append(key))
        task = asyncio.create_task(informer.run())
        await informer.wait_synced()
        informer.subscribe(lambda key, _old, _new: notified.append(f"late {key}"))
        task.cancel()
    assert notified == ["a", "late a"]


async def test_watches_that_end_at_once_are_not_asked_without_pause(
    server: ApiServer, tmp_path: Path, failures: list[int]
) -> None:
    server.next("GET", page(["a"], "5"), stream(), page([], "5"), stream(), page([], "5"), stream(), page([], "5"))
    async with following(server, tmp_path):
        await until(lambda: len(server.asked) == 8)
    assert failures == [1, 2, 3]


@pytest.mark.parametrize("answer", [(404, ""), (403, "Forbidden")], ids=["not served", "not allowed"])
async def test_a_kind_that_not_every_cluster_serves_is_waited_for_in_silence(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    answer: tuple[int, str],
) -> None:  # fmt: skip
    monkeypatch.setattr("kube.informer._NOT_SERVED", (0.001, 0.002))
    caplog.set_level(logging.INFO, "kube.informer")
    server.next("GET", *[status(*answer)] * 20, page(["a"], "5"))
    async with following(server, tmp_path, optional=True) as it:
        await until(lambda: it.informer.synced)
    assert it.notified == [("a", None, "small")]
    assert [record.levelname for record in caplog.records if record.name == "kube.informer"] == ["INFO"]


async def test_one_that_is_not_served_any_more_is_listed_anew_when_it_is(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells that its objects went with it."""
    monkeypatch.setattr("kube.informer._AWAY", (0.001, 0.002))
    server.next("GET", page(["a", "b"], "5"), _LOST, *[status(404, "")] * 3, page(["b"], "50"))
    async with following(server, tmp_path, optional=True) as it:
        await until(lambda: ("a", "small", None) in it.notified)
        assert it.informer.get("b") == "small"


async def test_a_kind_is_asked_for_in_its_older_version_where_the_newer_is_not_served(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again in the newer one when a server that was upgraded does not serve the older one any more."""
    monkeypatch.setattr("kube.informer._NOT_SERVED", (0.001, 0.002))
    monkeypatch.setattr("kube.informer._AWAY", (0.001, 0.002))
    newer, older = (f"GET {resource.path()}" for resource in (ATTRIBUTES_CLASSES, ATTRIBUTES_CLASSES_BETA))
    server.next(newer, status(404, ""), status(404, ""), page(["b"], "50"), stream(keep_open=True))
    server.next(older, status(404, ""), page(["a"], "5"), _LOST, status(404, ""))
    async with connected(server, tmp_path) as cluster:
        informer = Informer(cluster, ATTRIBUTES_CLASSES, parse, optional=True, older=ATTRIBUTES_CLASSES_BETA)
        seen: list[tuple[str, bool]] = []
        informer.subscribe(lambda key, old, new: seen.append((key, new is not None)))
        following = asyncio.create_task(informer.run())
        await until(lambda: informer.get("b"))
        following.cancel()
        await asyncio.wait([following])
    assert seen == [("a", True), ("b", True), ("a", False)]
    assert not informer.not_served
