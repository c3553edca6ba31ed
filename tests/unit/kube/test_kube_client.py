import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from kube import kubeconfig, transport
from kube.client import MERGE, STRATEGIC, Cluster
from kube.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NoLongerLeading,
    NotFound,
    Unauthorized,
    Unreachable,
)
from kube.kubeconfig import ConfigurationError
from kube.resources import CLAIMS, LEASES, NODES, VOLUMES
from tests.ports import reserved_port
from tests.unit.kube.apiserver import (
    ApiServer,
    begun,
    connected,
    falling_silent,
    hang,
    page,
    serving,
    status,
    stream,
    volume,
    write_kubeconfig,
)
from tests.unit.kube.certificate import server_tls
from tests.waiting import until


@pytest.fixture
def server() -> ApiServer:
    return ApiServer(["n"])


@pytest.fixture
async def cluster(server: ApiServer, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with connected(server, tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (409, "AlreadyExists", AlreadyExists),
        (409, "Conflict", Conflict),
        (404, "NotFound", NotFound),
        (410, "Expired", Gone),
        (401, "Unauthorized", Unauthorized),
        (403, "Forbidden", Forbidden),
        (422, "Invalid", Invalid),
        (400, "BadRequest", Invalid),
        (405, "MethodNotAllowed", ApiError),
        (429, "TooManyRequests", Unreachable),
        (500, "InternalError", Unreachable),
        (504, "Timeout", Unreachable),
    ],
)
async def test_statuses_become_types(
    cluster: Cluster, server: ApiServer, code: int, reason: str, kind: type[ApiError]
) -> None:
    server.next("GET", *[status(code, reason, "the server's words")] * 2)
    with pytest.raises(ApiError, match="the server's words") as caught:
        await cluster.get(VOLUMES, "pv")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.reason) == (code, reason)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (404, "404 page not found\n"),  # an API server that does not serve this yet, says so in plain text
        (404, '{"kind": "Status", "code": 404, "reason": "NotFound", "details": {}}'),
        (404, '{"error": "no such route"}'),
        (404, '{"details": "no such route"}'),
        (410, "gone"),
        (409, ""),
        (400, "<html>bad request</html>"),
    ],
)
async def test_only_the_api_server_itself_says_that_an_object_is_gone(
    cluster: Cluster, server: ApiServer, code: int, text: str
) -> None:
    """What a proxy on the way answers says nothing of the object."""

    async def proxy(_: web.Request) -> web.StreamResponse:
        return web.Response(text=text, status=code)

    server.next("GET", proxy)
    with pytest.raises(Unreachable) as caught:
        await cluster.get(VOLUMES, "pv")
    assert caught.value.status == code


async def test_what_is_no_list_is_not_an_empty_one(cluster: Cluster, server: ApiServer) -> None:
    async def proxy(_: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok"})

    server.next("GET", proxy)
    with pytest.raises(Unreachable, match="this is no list"):
        await cluster.list(VOLUMES)


async def test_nobody_names_a_time_of_hours(cluster: Cluster, server: ApiServer) -> None:
    server.next("GET", status(503, "ServiceUnavailable", **{"Retry-After": "86400"}))
    with pytest.raises(Unreachable) as caught:
        await cluster.get(VOLUMES, "pv")
    assert caught.value.retry_after == 30


async def test_the_server_says_when_to_come_back(cluster: Cluster, server: ApiServer) -> None:
    server.next("GET", status(429, "TooManyRequests", **{"Retry-After": "7"}))
    with pytest.raises(Unreachable) as caught:
        await cluster.get(VOLUMES, "pv")
    assert caught.value.retry_after == 7


async def test_an_answer_that_is_no_json_is_no_answer(cluster: Cluster, server: ApiServer) -> None:
    async def proxy_page(_: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>busy</html>")

    server.next("GET", proxy_page)
    with pytest.raises(Unreachable, match="GET /api/v1/persistentvolumes/pv"):
        await cluster.get(VOLUMES, "pv")


async def test_a_request_has_an_end(server: ApiServer, tmp_path: Path) -> None:
    server.next("GET", hang)
    async with connected(server, tmp_path, deadline=0.05) as cluster:
        with pytest.raises(Unreachable):
            await cluster.get(VOLUMES, "pv")


async def test_nobody_listens(tmp_path: Path) -> None:
    with reserved_port() as port:
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{port}")
        async with await Cluster.connect(kubeconfig) as cluster:
            with pytest.raises(Unreachable):
                await cluster.list(VOLUMES)


async def test_lists_are_read_in_pages(cluster: Cluster, server: ApiServer) -> None:
    server.next("GET", page(["a", "b"], "10", more="token"), page(["c"], "10"))
    items = await cluster.list(VOLUMES, label_selector="app=x")
    assert [item["metadata"]["name"] for item in items] == ["a", "b", "c"]
    first, second = server.asked
    assert first.query == {"limit": "500", "labelSelector": "app=x"}
    assert second.query == {"limit": "500", "labelSelector": "app=x", "continue": "token"}


async def test_where_objects_are(cluster: Cluster, server: ApiServer) -> None:
    await cluster.create(LEASES, {"metadata": {"name": "l", "namespace": "n"}})
    await cluster.create(NODES, {"metadata": {"name": "node"}})
    assert [asked.path for asked in server.asked] == [
        "/apis/coordination.k8s.io/v1/namespaces/n/leases",
        "/api/v1/nodes",
    ]
    assert server.stored(LEASES, "l", "n")
    assert server.stored(NODES, "node")
    with pytest.raises(AlreadyExists):
        await cluster.create(NODES, {"metadata": {"name": "node"}})


async def test_replace_asks_for_the_version_it_read(cluster: Cluster) -> None:
    read = await cluster.create(NODES, {"metadata": {"name": "node"}})
    await cluster.replace(NODES, "node", read | {"spec": {"unschedulable": True}})
    with pytest.raises(Conflict):
        await cluster.replace(NODES, "node", read)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (MERGE, {"metadata": {"labels": {"a": None}}}),
        (STRATEGIC, {"count": 2}),
    ],
)
async def test_patches(cluster: Cluster, server: ApiServer, content_type: str, body: dict[str, object]) -> None:
    server.next("PATCH", page([], "1"))
    await cluster.patch(CLAIMS, "c", body, "n", "status", content_type)
    (asked,) = server.asked
    assert asked.path == "/api/v1/namespaces/n/persistentvolumeclaims/c/status"
    assert asked.headers["Content-Type"] == content_type
    assert asked.body == body


async def test_delete_with_preconditions(cluster: Cluster, server: ApiServer) -> None:
    server.next("DELETE", page([], "1"), status(409, "Conflict"))
    await cluster.delete(VOLUMES, "pv")
    with pytest.raises(Conflict):
        await cluster.delete(VOLUMES, "pv", uid="u", resource_version="5", propagation="Foreground")
    plain, guarded = (asked.body for asked in server.asked)
    assert "preconditions" not in plain
    assert guarded["preconditions"] == {"uid": "u", "resourceVersion": "5"}
    assert guarded["propagationPolicy"] == "Foreground"


async def test_watch(cluster: Cluster, server: ApiServer) -> None:
    bookmark = {"metadata": {"resourceVersion": "9"}}
    large = volume("pv", "8", padding="x" * 1_500_000)
    server.next("GET", stream(("ADDED", large), ("BOOKMARK", bookmark)))
    events = [event async for event in cluster.watch(VOLUMES, resource_version="7", timeout_seconds=60)]
    assert events == [("ADDED", large), ("BOOKMARK", bookmark)]
    assert server.asked[0].query == {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": "7",
        "timeoutSeconds": "60",
    }


async def test_watch_of_a_version_too_old(cluster: Cluster, server: ApiServer) -> None:
    expired = {"code": 410, "reason": "Expired", "message": "too old"}
    server.next("GET", status(410, "Expired"), stream(("ADDED", volume("pv", "8")), ("ERROR", expired)))
    with pytest.raises(Gone):
        await anext(cluster.watch(VOLUMES, resource_version="7"))
    events = cluster.watch(VOLUMES, resource_version="7")
    assert (await anext(events))[0] == "ADDED"
    with pytest.raises(Gone, match="too old"):
        await anext(events)


@pytest.mark.both_loops
@pytest.mark.parametrize("secured", [False, True], ids=["HTTP", "TLS"])
async def test_watch_of_a_server_that_went_silent(
    secured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends by its timer and leaves nothing behind, though the server has no part in the end."""
    monkeypatch.setattr("kube.client._WATCH_GRACE", 0.05)
    only_this = asyncio.all_tasks()
    tls = server_tls(tmp_path) if secured else None
    with falling_silent(begun("200 OK", {"type": "ADDED", "object": volume("pv", "8")}), tls) as url:
        async with await Cluster.connect(write_kubeconfig(tmp_path / "kubeconfig", url)) as cluster:
            events = cluster.watch(VOLUMES, resource_version="7", timeout_seconds=0)
            assert (await anext(events))[0] == "ADDED"
            assert connections(url) == 1
            async with asyncio.timeout(30):
                with pytest.raises(Unreachable):
                    await anext(events)
            await until(lambda: not connections(url) and asyncio.all_tasks() == only_this, at_most=10)
    gc.collect()  # what was not closed warns then
    assert caplog.messages == []


@pytest.mark.both_loops
@pytest.mark.parametrize("secured", [False, True], ids=["HTTP", "TLS"])
@pytest.mark.parametrize(
    "begin",
    [b"", begun("200 OK"), begun("200 OK", {}), begun("503 Service Unavailable", {})],
    ids=["nothing", "headers", "half", "half an error"],
)
async def test_request_to_a_server_that_went_silent(
    begin: bytes, secured: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As the watch does: it ends by its deadline, and no socket waits for the server."""
    only_this = asyncio.all_tasks()
    tls = server_tls(tmp_path) if secured else None
    with falling_silent(begin, tls) as url:
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", url)
        async with await Cluster.connect(kubeconfig, deadline=0.5) as cluster:
            with pytest.raises(Unreachable):
                await cluster.create(VOLUMES, volume("pv", "8"))
            await until(lambda: not connections(url) and asyncio.all_tasks() == only_this, at_most=10)
    gc.collect()  # what was not closed warns then
    assert caplog.messages == []


def connections(url: str) -> int:
    """How many to a server are open. Source of the format: proc_pid_net(5)."""
    server = f":{URL(url).port:04X}"
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()]
    return sum(row[2].endswith(server) and row[9] != "0" for row in rows)  # no inode: nobody has it open any more


async def test_tokens_rotate(server: ApiServer, tmp_path: Path) -> None:
    all_came = asyncio.Barrier(3)

    async def refuse(request: web.Request) -> web.StreamResponse:
        await all_came.wait()
        return await status(401, "Unauthorized")(request)

    async with serving(server) as url:
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", url, token="old")
        async with await Cluster.connect(kubeconfig, program="tester") as cluster:
            write_kubeconfig(tmp_path / "kubeconfig", url, token="new")
            server.next("GET", *[refuse] * 3, *[page(["pv"], "1")] * 3)
            lists = await asyncio.gather(*[cluster.list(VOLUMES) for _ in range(3)])
    assert [len(items) for items in lists] == [1, 1, 1]
    assert [asked.headers["Authorization"] for asked in server.asked] == ["Bearer old"] * 3 + ["Bearer new"] * 3
    assert server.asked[0].headers["User-Agent"] == "tester"


async def test_configuration_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="missing can't be used"):
        await Cluster.connect(str(tmp_path / "missing"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigurationError, match="set KUBECONFIG"):
        await Cluster.connect()


async def test_the_service_account_of_a_pod(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(ConfigurationError, match="service account"):
        await Cluster.connect()


class Guard:
    """Lets pass until it is shut."""

    def __init__(self) -> None:
        self.is_shut = False

    def shut(self) -> None:
        self.is_shut = True

    def __call__(self) -> None:
        if self.is_shut:
            raise NoLongerLeading(0, "", "not written")


async def test_the_guard_is_asked_after_the_wait_for_a_connection(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guard()
    make_socket = transport._socket

    def late(address: aiohttp.AddrInfoType) -> socket.socket:
        guard.shut()
        return make_socket(address)

    monkeypatch.setattr(transport, "_socket", late)
    async with connected(server, tmp_path) as cluster:
        with pytest.raises(NoLongerLeading, match="not written"):
            await cluster.guarded(guard).patch(VOLUMES, "v", {})
    assert guard.is_shut
    assert not server.asked


async def test_the_guard_is_asked_again_after_new_credentials(cluster: Cluster, server: ApiServer) -> None:
    guard = Guard()

    async def refuse(request: web.Request) -> web.StreamResponse:
        guard.shut()
        return await status(401, "Unauthorized")(request)

    server.next("DELETE", refuse)
    with pytest.raises(NoLongerLeading, match="not written"):
        await cluster.guarded(guard).delete(VOLUMES, "v")
    assert len(server.asked) == 1


async def test_the_guard_is_asked_right_before_the_bytes_go(
    cluster: Cluster, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else gets its turn between, which could shut it."""
    server.put(NODES, {"metadata": {"name": "node"}})
    told: list[str] = []
    write = aiohttp.BytesPayload.write_with_length

    def guard() -> None:
        told.append("asked")
        asyncio.get_running_loop().call_soon(told.append, "another's turn")

    async def written(body: aiohttp.BytesPayload, writer: AbstractStreamWriter, length: int | None) -> None:
        await write(body, writer, length)
        told.append("written")

    monkeypatch.setattr(aiohttp.BytesPayload, "write_with_length", written)
    for _ in ("over a new connection", "over one that is there"):
        await cluster.guarded(guard).patch(NODES, "node", {})
    assert [each for each in told if each != "another's turn"] == ["asked", "written"] * 2
    assert all(told[place + 1] == "written" for place, each in enumerate(told) if each == "asked")


async def test_what_is_guarded_may_read_and_others_may_write(cluster: Cluster, server: ApiServer) -> None:
    body = server.put(NODES, {"metadata": {"name": "node"}})
    guard = Guard()
    guard.shut()
    cordon = {"spec": {"unschedulable": True}}
    read, _ = await asyncio.gather(cluster.guarded(guard).get(NODES, "node"), cluster.patch(NODES, "node", cordon))
    assert read["metadata"]["name"] == "node"
    cordoned = server.stored(NODES, "node")
    assert cordoned
    assert cordoned["spec"]["unschedulable"]
    for write in (
        cluster.guarded(guard).create(NODES, {"metadata": {"name": "another"}}),
        cluster.guarded(guard).replace(NODES, "node", body),
        cluster.guarded(guard).patch(NODES, "node", {}),
        cluster.guarded(guard).delete(NODES, "node"),
    ):
        with pytest.raises(NoLongerLeading):
            await write
    assert len(server.asked) == 2


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../pods/x", "a%2fb", "a\\b", "a\nb", "a\x00b"])
async def test_no_name_leads_to_another_path(cluster: Cluster, server: ApiServer, name: str) -> None:
    for request in (
        cluster.get(VOLUMES, name),
        cluster.delete(VOLUMES, name),
        cluster.patch(CLAIMS, name, {}, "ns"),
        cluster.get(CLAIMS, "claim", name),
        cluster.replace(LEASES, "lease", {}, name),
    ):
        with pytest.raises(Invalid, match="is no name that an object can have"):
            await request
    assert server.asked == []


def test_a_name_is_one_segment() -> None:
    assert VOLUMES.path(name="a b?c#d..e") == "/api/v1/persistentvolumes/a%20b%3Fc%23d..e"
    assert CLAIMS.path("ns", "x.y", "status") == "/api/v1/namespaces/ns/persistentvolumeclaims/x.y/status"
    assert CLAIMS.path() == "/api/v1/persistentvolumeclaims"


async def test_a_page_that_is_too_large_is_asked_for_in_smaller_ones(cluster: Cluster, server: ApiServer) -> None:
    """Somebody made objects of a megabyte: no more than a few are in memory at the same time."""
    bodies = [volume(f"pv-{number:02}", "7", spec={"comment": "<" * 900_000}) for number in range(40)]

    async def answer(request: web.Request) -> web.StreamResponse:
        begin, limit = int(request.query.get("continue", "0")), int(request.query["limit"])
        end = begin + limit
        metadata = {"resourceVersion": "7"} | ({"continue": str(end)} if end < len(bodies) else {})
        return web.json_response({"metadata": metadata, "items": bodies[begin:end]})

    server.next(f"GET {VOLUMES.path()}", *[answer] * 100)
    sizes, names = [], []
    async for part in cluster.pages(VOLUMES):
        sizes.append(len(part.items))
        names += [body["metadata"]["name"] for body in part.items]
    assert names == [f"pv-{number:02}" for number in range(40)]
    assert max(sizes) <= 8
    too_large = len(server.asked) - len(sizes)
    assert too_large <= 4, "of 500, 125 and 31 objects, and one that was tried since"


async def test_an_event_of_the_largest_object_there_can_be_is_read(cluster: Cluster, server: ApiServer) -> None:
    """1.5 MB of what JSON escapes: a watch that broke at it would break for ever."""
    huge = volume("pv", "8", comment="\u001f" * 1_500_000)
    server.next(f"GET {VOLUMES.path()}", stream(("ADDED", huge), ("ADDED", volume("next", "9"))))
    seen = [body["metadata"]["name"] async for _, body in cluster.watch(VOLUMES, resource_version="1")]
    assert seen == ["pv", "next"]


async def test_a_context_of_the_kubeconfig_is_taken(tmp_path: Path) -> None:
    clusters = {"near": "http://127.0.0.1:1", "far": "http://127.0.0.1:2"}
    file = tmp_path / "kubeconfig"
    file.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": name, "cluster": {"server": url}} for name, url in clusters.items()],
                "users": [{"name": "me", "user": {"token": "secret"}}],
                "contexts": [{"name": name, "context": {"cluster": name, "user": "me"}} for name in clusters],
                "current-context": "near",
            }
        )
    )
    assert (await kubeconfig.load(str(file))).server == clusters["near"]
    assert (await kubeconfig.load(str(file), "far")).server == clusters["far"]
    with pytest.raises(ConfigurationError, match="elsewhere"):
        await kubeconfig.load(str(file), "elsewhere")


async def test_a_request_takes_no_thread(cluster: Cluster, server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hops a request to ask the environment for proxies and passwords were half of what a claim cost."""

    def refuse(*_: object) -> None:
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", refuse)
    server.next(f"GET {VOLUMES.path()}", page(["pv"], "7"))
    assert [body["metadata"]["name"] for body in await cluster.list(VOLUMES)] == ["pv"]


async def test_a_proxy_of_the_environment_is_used(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(server) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        server.next(f"GET {VOLUMES.path()}", page(["pv"], "7"))
        file = write_kubeconfig(tmp_path / "kubeconfig", "http://api.invalid")
        async with await Cluster.connect(file, deadline=5) as cluster:
            assert [body["metadata"]["name"] for body in await cluster.list(VOLUMES)] == ["pv"]


async def test_changes_that_follow_one_another_are_read_together(
    cluster: Cluster, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read wakes the program. An event that is cut goes on with the next read, wherever that is."""
    text = b"".join(b'{"type": "ADDED", "object": "%d"}\n\n' % number for number in range(4))
    parts = text[:70], text[70:71], text[71:102], text[102:]
    told: list[object] = []

    async def read(content: object) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async def pause(seconds: float) -> None:
        told.append(seconds)

    server.next(f"GET {VOLUMES.path()}", stream())
    monkeypatch.setattr("aiohttp.StreamReader.iter_any", read)
    monkeypatch.setattr("asyncio.sleep", pause)
    async for _, body in cluster.watch(VOLUMES, resource_version="1", gather=0.05):
        told.append(body)
    assert told == ["0", "1", 0.05, "2", 0.05, "3", 0.05]
