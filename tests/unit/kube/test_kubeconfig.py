import base64
import json
import ssl
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube import kubeconfig
from kube.client import Cluster
from kube.kubeconfig import ConfigurationError, Connection
from kube.resources import NODES
from tests.unit.kube.apiserver import ApiServer, serving, status
from tests.unit.kube.certificate import CERTIFICATE, KEY, TRUSTED, in_base64, server_tls

Json = dict[str, Any]


def write(
    file: Path,
    user: Mapping[str, Any] | None = None,
    cluster: Mapping[str, Any] | None = None,
    *,
    current: str | None = "it",
    name: str = "it",
) -> Path:
    file.parent.mkdir(exist_ok=True)
    content: Json = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": "https://api.example:6443"} | dict(cluster or {})}],
        "contexts": [{"name": name, "context": {"cluster": name} | ({"user": name} if user is not None else {})}],
        "users": [] if user is None else [{"name": name, "user": dict(user)}],
    }
    file.write_text(yaml.safe_dump(content | ({"current-context": current} if current else {})))
    return file


async def loaded(folder: Path, user: Mapping[str, Any] | None, cluster: Mapping[str, Any] | None = None) -> Connection:
    return await kubeconfig.load(str(write(folder / "config", user, cluster)))


@pytest.mark.parametrize(
    ("user", "authorization"),
    [
        (None, ""),
        ({}, ""),
        ({"token": "secret"}, "Bearer secret"),
        ({"token": 12345}, "Bearer 12345"),
        ({"username": "me", "password": "p:w"}, f"Basic {in_base64('me:p:w')}"),
        ({"username": "me", "password": "p", "token": "secret"}, "Bearer secret"),
    ],
)
async def test_how_a_user_says_who_he_is(tmp_path: Path, user: Json | None, authorization: str) -> None:
    assert await loaded(tmp_path, user) == Connection("https://api.example:6443", authorization=authorization)


async def test_secrets_are_in_no_log(tmp_path: Path) -> None:
    user = {"token": "secret", "client-certificate-data": in_base64(CERTIFICATE), "client-key-data": in_base64(KEY)}
    shown = repr(await loaded(tmp_path, user))
    assert "secret" not in shown
    assert "PRIVATE" not in shown


async def test_a_token_file_wins_and_paths_are_relative_to_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    for name, text in (("token", "fresh\n"), ("crt", CERTIFICATE), ("key", KEY), ("ca", CERTIFICATE)):
        (tmp_path / "keys" / name).write_text(text)
    user = {
        "token": "old",
        "tokenFile": "keys/token",
        "client-certificate": "keys/crt",
        "client-key": "keys/key",
        "client-key-data": in_base64("other"),
    }
    connection = await loaded(tmp_path, user, {"certificate-authority": "keys/ca"})
    assert (connection.authorization, connection.token_file) == ("Bearer fresh", tmp_path / "keys/token")
    assert (connection.certificate, connection.key, connection.authority) == (CERTIFICATE, "other", CERTIFICATE)


async def test_what_a_cluster_says(tmp_path: Path) -> None:
    cluster = {
        "server": "https://rancher.example/k8s/clusters/c-1/",
        "insecure-skip-tls-verify": True,
        "tls-server-name": "other.example",
        "proxy-url": "http://proxy.example:3128",
        "certificate-authority-data": in_base64(CERTIFICATE),
    }
    connection = await loaded(tmp_path, None, cluster)
    assert connection == Connection(
        "https://rancher.example/k8s/clusters/c-1",
        authority=CERTIFICATE,
        verify=False,
        server_name="other.example",
        proxy="http://proxy.example:3128",
    )


async def test_who_acts_for_another_does_not_act_as_himself(tmp_path: Path) -> None:
    user = {
        "token": "t",
        "as": "other",
        "as-uid": "7",
        "as-groups": ["a", "b"],
        "as-user-extra": {"scopes": ["x", "y"]},
    }
    assert (await loaded(tmp_path, user)).impersonation == (
        ("Impersonate-User", "other"),
        ("Impersonate-Uid", "7"),
        ("Impersonate-Group", "a"),
        ("Impersonate-Group", "b"),
        ("Impersonate-Extra-scopes", "x"),
        ("Impersonate-Extra-scopes", "y"),
    )


async def test_several_files_are_one_and_the_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path / "a" / "config", {"token": "1"}, current=None, name="near")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "token").write_text("far")
    second = write(tmp_path / "b" / "config", {"tokenFile": "token"}, current="far", name="far")
    third = write(tmp_path / "c" / "config", {"token": "3"}, current="near", name="near")
    monkeypatch.setenv("KUBECONFIG", f"{first}:{tmp_path}/missing:{second}:{third}:")
    assert (await kubeconfig.load(None)).authorization == "Bearer far"
    assert (await kubeconfig.load(None, "near")).authorization == "Bearer 1"


def id_token(expires: float) -> str:
    return f"head.{base64.urlsafe_b64encode(json.dumps({'exp': expires}).encode()).decode().rstrip('=')}.signature"


async def test_a_token_of_oidc_is_used_while_it_is_valid(tmp_path: Path) -> None:
    token = id_token(time.time() + 100)
    user = {"auth-provider": {"name": "oidc", "config": {"id-token": token, "refresh-token": "r"}}}
    assert (await loaded(tmp_path, user)).authorization == f"Bearer {token}"


PLUGIN = """\
import json, os, sys
info = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
assert sys.argv[1:] == ["--for", "us"] and os.environ["MORE"] == "1", sys.argv
assert not info["spec"]["interactive"]
print(json.dumps({"apiVersion": info["apiVersion"], "kind": "ExecCredential", "status": STATUS}))
"""


def plugin(folder: Path, status: str, **more: Any) -> Json:
    program = folder / "plugin"
    program.write_text(f"#!{sys.executable}\n{PLUGIN.replace('STATUS', status)}")
    program.chmod(0o755)
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "./plugin",
            "args": ["--for", "us"],
            "env": [{"name": "MORE", "value": "1"}],
            "interactiveMode": "Never",
            **more,
        }
    }


async def test_an_exec_plugin_hands_out_a_token_and_a_certificate(tmp_path: Path) -> None:
    answer = '{"token": "t", "clientCertificateData": "crt", "clientKeyData": "key"}'
    connection = await loaded(tmp_path, plugin(tmp_path, answer))
    assert (connection.authorization, connection.certificate, connection.key) == ("Bearer t", "crt", "key")


async def test_an_exec_plugin_is_told_of_the_cluster_if_it_is_to_be(tmp_path: Path) -> None:
    answer = '{"token": json.dumps(info["spec"].get("cluster"))}'
    cluster = {
        "certificate-authority-data": in_base64(CERTIFICATE),
        "extensions": [{"name": "client.authentication.k8s.io/exec", "extension": {"audience": "a"}}],
    }
    told = (await loaded(tmp_path, plugin(tmp_path, answer, provideClusterInfo=True), cluster)).authorization
    assert json.loads(told.removeprefix("Bearer ")) == {
        "server": "https://api.example:6443",
        "certificate-authority-data": in_base64(CERTIFICATE),
        "config": {"audience": "a"},
    }
    assert (await loaded(tmp_path, plugin(tmp_path, answer), cluster)).authorization == "Bearer null"


@pytest.mark.parametrize(
    ("status", "more", "message"),
    [
        ("sys.exit('you are not logged in')", {}, "plugin failed with 1: you are not logged in"),
        ("{}", {}, "neither a token nor a certificate"),
        ('{"clientCertificateData": "crt"}', {}, "neither a token nor a certificate"),
        ('print("hello") or {"token": "t"}', {}, "is no JSON"),
        ('{"token": "t"}', {"command": ""}, "command or apiVersion is missing"),
        ('{"token": "t"}', {"command": "no-such-plugin", "installHint": "get it at x"}, "no-such-plugin: get it at x"),
        ('{"token": "t"}', {"interactiveMode": "Always"}, "needs a terminal"),
        ('print("{}") or sys.exit()', {}, "does not answer with an ExecCredential"),
    ],
)
async def test_an_exec_plugin_that_fails_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, more: Json, message: str
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigurationError, match=message):
        await loaded(tmp_path, plugin(tmp_path, status, **more))


async def test_an_exec_plugin_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubeconfig, "_PLUGIN_DEADLINE", 0.5)
    with pytest.raises(ConfigurationError, match="did not answer in"):
        await loaded(tmp_path, plugin(tmp_path, "__import__('time').sleep(60)"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "kubeconfig .* can't be used"),
        ("just text", "has no mapping at its top"),
        ("", "no current-context"),
        ("current-context: it", "no context 'it', only: none"),
        ("{current-context: it, contexts: [{name: it, context: {cluster: c}}]}", "no cluster 'c'"),
        ("{current-context: it, contexts: [{context: {}}]}", "an entry of contexts has no name"),
        ("{current-context: it, contexts: 7}", "can't be used"),
    ],
)
async def test_a_file_that_says_nothing_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        await kubeconfig.load(str(file))


@pytest.mark.parametrize(
    ("user", "cluster", "message"),
    [
        ({}, {"server": ""}, "no server"),
        ({}, {"proxy-url": "socks5://p"}, "socks5://p can't be used"),
        ({}, {"certificate-authority-data": "%"}, "certificate-authority-data is no base64"),
        ({"tokenFile": "missing"}, {}, "No such file"),
        ({"client-key": "missing"}, {}, "No such file"),
        ({"auth-provider": {"name": "gcp"}}, {}, "use gke-gcloud-auth-plugin"),
        ({"auth-provider": {"name": "oidc"}}, {}, "expired: any command of kubectl"),
        ({"auth-provider": {"name": "oidc", "config": {"id-token": id_token(5)}}}, {}, "expired: any command"),
    ],
)
async def test_what_can_not_be_used_is_an_error(tmp_path: Path, user: Json, cluster: Json, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        await loaded(tmp_path, user, cluster)


async def test_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing can't be used: there is no such file"):
        await kubeconfig.load(str(tmp_path / "missing"))


@pytest.fixture
def service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(kubeconfig, "_SERVICE_ACCOUNT", tmp_path)
    (tmp_path / "ca.crt").write_text(CERTIFICATE)
    (tmp_path / "token").write_text("first\n")
    return tmp_path


@pytest.mark.parametrize(
    ("host", "server"), [("10.0.0.1", "https://10.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
async def test_a_pod_has_a_service_account(
    service_account: Path, monkeypatch: pytest.MonkeyPatch, host: str, server: str
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    assert await kubeconfig.load(None) == Connection(
        server, authority=CERTIFICATE, authorization="Bearer first", token_file=service_account / "token"
    )


async def test_a_kubeconfig_comes_before_the_service_account(
    service_account: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(write(tmp_path / "config")))
    assert (await kubeconfig.load(None)).server == "https://api.example:6443"


@pytest.mark.parametrize("name", ["ca.crt", "token"])
async def test_a_service_account_that_is_not_whole_is_an_error(service_account: Path, name: str) -> None:
    for spoil in (lambda: (service_account / name).write_text(""), (service_account / name).unlink):
        spoil()
        with pytest.raises(ConfigurationError, match=f"the pod's service account can't be used: .*{name}"):
            await kubeconfig.load(None)


async def test_a_token_that_was_replaced_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the server refuses the old one."""
    (tmp_path / "token").write_text("first")
    server = ApiServer()
    server.put(NODES, {"metadata": {"name": "node"}})
    async with serving(server) as url:
        file = write(tmp_path / "config", {"tokenFile": "token"}, {"server": url})
        async with await Cluster.connect(str(file)) as cluster:
            await cluster.get(NODES, "node")
            (tmp_path / "token").write_text("second")
            await cluster.get(NODES, "node")
            monkeypatch.setattr("kube.transport._TOKEN_READ_INTERVAL", 0.0)
            await cluster.get(NODES, "node")
    assert [asked.headers["Authorization"] for asked in server.asked] == [
        "Bearer first",
        "Bearer first",
        "Bearer second",
    ]


async def test_a_plugin_is_asked_again_when_its_token_is_refused(tmp_path: Path) -> None:
    answer = '{"token": open("/dev/urandom", "rb").read(4).hex()}'
    server = ApiServer()
    server.put(NODES, {"metadata": {"name": "node"}})
    server.next("GET", status(401, "Unauthorized"))
    async with serving(server) as url:
        file = write(tmp_path / "config", {**plugin(tmp_path, answer), "as": "other"}, {"server": url})
        async with await Cluster.connect(str(file)) as cluster:
            await cluster.get(NODES, "node")
    first, second = server.asked
    assert first.headers["Authorization"] != second.headers["Authorization"]
    assert first.headers["Impersonate-User"] == second.headers["Impersonate-User"] == "other"


WHO = {"client-certificate-data": in_base64(CERTIFICATE), "client-key-data": in_base64(KEY)}


@pytest.mark.parametrize(
    ("user", "cluster", "message"),
    [
        (WHO, TRUSTED, ""),
        (WHO, {"insecure-skip-tls-verify": True}, ""),
        (WHO, {}, "certificate verify failed"),
        (WHO, {"certificate-authority-data": in_base64(CERTIFICATE)}, "certificate is not valid for '127.0.0.1'"),
        ({}, TRUSTED, "no good answer from the API server"),
    ],
)
async def test_both_sides_are_who_they_say(tmp_path: Path, user: Json, cluster: Json, message: str) -> None:
    tls = server_tls(tmp_path)
    tls.load_verify_locations(cadata=CERTIFICATE)
    tls.verify_mode = ssl.CERT_REQUIRED
    async with serving(ApiServer(), tls=tls) as url:
        file = write(tmp_path / "config", user, {"server": url, **cluster})
        async with await Cluster.connect(str(file)) as connected:
            if not message:
                assert await connected.list(NODES) == []
                return
            with pytest.raises(Exception, match=message):
                await connected.list(NODES)


@pytest.mark.parametrize(
    ("user", "cluster"),
    [
        ({"client-certificate-data": in_base64(CERTIFICATE)}, {}),
        ({**WHO, "client-key-data": in_base64("no key")}, {}),
        ({}, {"certificate-authority-data": in_base64("no certificate")}),
    ],
)
async def test_a_certificate_that_is_none_is_an_error(tmp_path: Path, user: Json, cluster: Json) -> None:
    with pytest.raises(ConfigurationError, match="can't be used"):
        await Cluster.connect(str(write(tmp_path / "config", user, cluster)))
