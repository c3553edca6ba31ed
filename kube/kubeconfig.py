"""Where the API server is and who we are there: kubeconfig files, or the service account of a pod.

Read as client-go reads them (clientcmd, and rest.InClusterConfig), but for three things. An exec plugin is asked when a
configuration is read, and again when the server refuses what it gave; its answer is not kept for others. A token of the
auth-provider `oidc` is used and never renewed, because an identity provider may take the refresh token back then, and
kubectl would still have the old one. SOCKS proxies are refused.

A client library was here. Importing it took 23 MB and a third of a second in each of our processes, for this alone.
"""

import asyncio
import base64
import binascii
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

Fields = Mapping[str, Any]

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PLUGIN_DEADLINE = 60.0
"""Seconds for an exec plugin that nobody can be asked by. One that may ask a person has no deadline."""
_GONE_PROVIDERS = {"gcp": "gke-gcloud-auth-plugin", "azure": "kubelogin"}
"""Providers that left Kubernetes with 1.26, and the exec plugins that took their place."""


class ConfigurationError(Exception):
    """No API server can be reached with what is configured: says where it was looked for and what to set."""


@dataclass(frozen=True)
class Connection:
    """One API server, and what we say of ourselves there. Certificates and keys are PEM; empty: none."""

    server: str
    """URL without a slash at the end."""
    authority: str = ""
    """Certificates that the server's may be signed by. Empty: those that the system trusts."""
    verify: bool = True
    server_name: str = ""
    """What the server's certificate says. Empty: the host of the URL."""
    proxy: str = ""
    certificate: str = ""
    key: str = field(default="", repr=False)
    authorization: str = field(default="", repr=False)
    """Value of the header. Empty: none."""
    token_file: Path | None = None
    """Has a bearer token that is replaced before it expires: what stands there is newer than `authorization`."""
    impersonation: tuple[tuple[str, str], ...] = ()
    """Headers that ask to act as somebody else."""


async def load(kubeconfig: str | None, context: str | None = None) -> Connection:
    """By `kubeconfig`, else $KUBECONFIG, else the pod's service account, else ~/.kube/config. Several files are
    separated by colons. `context`: of these files, None: their current one.

    Raises ConfigurationError."""
    home = Path.home() / ".kube" / "config"
    paths = kubeconfig or os.environ.get("KUBECONFIG")
    if not paths and not context and "KUBERNETES_SERVICE_HOST" in os.environ:
        source = "the pod's service account"
        try:
            return _service_account(os.environ, _SERVICE_ACCOUNT)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{source} can't be used: {error}") from error
    if not paths and not home.exists():
        raise ConfigurationError(
            f"no API server is configured: set KUBECONFIG, or create {home}, or run in a pod with a service account"
        )
    source = f"kubeconfig {paths or home}"
    try:
        return await _of_context(_read(paths or str(home)), context)
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{source} can't be used: {' '.join(str(error).split())}") from error


def read_token(file: Path) -> str:
    """Value of the header for the token in a file. Raises OSError and ValueError."""
    token = file.read_text().strip()
    if not token:
        raise ValueError(f"{file} is empty, and should have a token")
    return f"Bearer {token}"


def _service_account(environment: Mapping[str, str], folder: Path) -> Connection:
    host, port = environment["KUBERNETES_SERVICE_HOST"], environment.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise ValueError("KUBERNETES_SERVICE_HOST or KUBERNETES_SERVICE_PORT is empty")
    authority = (folder / "ca.crt").read_text()
    if not authority.strip():
        raise ValueError(f"{folder / 'ca.crt'} is empty")
    return Connection(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        authority=authority,
        authorization=read_token(folder / "token"),
        token_file=folder / "token",
    )


@dataclass(frozen=True)
class _Kubeconfig:
    """Several files as one: whichever names a thing first has it. With each entry the folder of its file, to which its
    paths are relative."""

    current: str
    contexts: Mapping[str, tuple[Fields, Path]]
    clusters: Mapping[str, tuple[Fields, Path]]
    users: Mapping[str, tuple[Fields, Path]]


def _read(paths: str) -> _Kubeconfig:
    """Files that are not there are left out, as kubectl does, unless none is."""
    files = [Path(path).expanduser() for path in paths.split(":") if path]
    there = [file for file in files if file.exists()]
    if not there:
        raise ValueError("there is no such file")
    current = ""
    tables: dict[str, dict[str, tuple[Fields, Path]]] = {"contexts": {}, "clusters": {}, "users": {}}
    for file in there:
        content = yaml.safe_load(file.read_text()) or {}
        if not isinstance(content, dict):
            raise ValueError(f"{file} has no mapping at its top")
        current = current or str(content.get("current-context") or "")
        for kind, table in tables.items():
            for entry in content.get(kind) or []:
                if not entry.get("name"):
                    raise ValueError(f"an entry of {kind} has no name")
                fields = entry.get(kind.removesuffix("s")) or {}
                table.setdefault(str(entry["name"]), (fields, file.absolute().parent))
    return _Kubeconfig(current, **tables)


async def _of_context(config: _Kubeconfig, name: str | None) -> Connection:
    name = name or config.current
    if not name:
        raise ValueError("it has no current-context: set one with `kubectl config use-context`")
    context, _ = _named(config.contexts, "context", name)
    cluster, folder = _named(config.clusters, "cluster", str(context.get("cluster") or ""))
    connection = _of_cluster(cluster, folder)
    if not context.get("user"):
        return connection
    user, folder = _named(config.users, "user", str(context["user"]))
    connection = _as_user(connection, user, folder)
    if not connection.authorization and (plugin := user.get("exec")):
        known = _cluster_information(cluster, connection) if plugin.get("provideClusterInfo") else None
        return _with_credential(connection, await _ask_plugin(plugin, known, folder))
    return connection


def _named(entries: Mapping[str, tuple[Fields, Path]], kind: str, name: str) -> tuple[Fields, Path]:
    if name not in entries:
        raise ValueError(f"it has no {kind} {name!r}, only: {', '.join(sorted(entries)) or 'none'}")
    return entries[name]


def _of_cluster(cluster: Fields, folder: Path) -> Connection:
    server = str(cluster.get("server") or "").rstrip("/")
    if not server:
        raise ValueError("the cluster has no server")
    proxy = str(cluster.get("proxy-url") or "")
    if proxy and not proxy.startswith(("http://", "https://")):
        raise ValueError(f"proxy-url {proxy} can't be used: give one of http:// or https://")
    return Connection(
        server=server if "://" in server else f"https://{server}",
        authority=_pem(cluster, "certificate-authority", folder),
        verify=not cluster.get("insecure-skip-tls-verify"),
        server_name=str(cluster.get("tls-server-name") or ""),
        proxy=proxy,
    )


def _as_user(connection: Connection, user: Fields, folder: Path) -> Connection:
    connection = replace(
        connection,
        certificate=_pem(user, "client-certificate", folder),
        key=_pem(user, "client-key", folder),
        impersonation=tuple(_impersonation(user)),
    )
    if file := user.get("tokenFile"):
        return replace(connection, authorization=read_token(folder / file), token_file=folder / file)
    if token := user.get("token"):
        return replace(connection, authorization=f"Bearer {token}")
    if user.get("username"):
        pair = f"{user['username']}:{user.get('password') or ''}".encode()
        return replace(connection, authorization=f"Basic {base64.b64encode(pair).decode()}")
    if provider := user.get("auth-provider"):
        return replace(connection, authorization=f"Bearer {_id_token(provider)}")
    return connection


def _pem(fields: Fields, name: str, folder: Path) -> str:
    """What stands in the field `<name>-data`, else in the file that the field names."""
    if data := fields.get(f"{name}-data"):
        try:
            return base64.b64decode(data, validate=True).decode()
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"{name}-data is no base64 of PEM: {error}") from None
    return (folder / fields[name]).read_text() if fields.get(name) else ""


def _impersonation(user: Fields) -> list[tuple[str, str]]:
    headers = [("Impersonate-User", str(user["as"]))] if user.get("as") else []
    headers += [("Impersonate-Uid", str(user["as-uid"]))] if user.get("as-uid") else []
    headers += [("Impersonate-Group", str(group)) for group in user.get("as-groups") or []]
    for key, values in (user.get("as-user-extra") or {}).items():
        headers += [(f"Impersonate-Extra-{key}", str(value)) for value in values]
    return headers


def _id_token(provider: Fields) -> str:
    """Of the auth-provider `oidc`, while it is valid."""
    name, config = provider.get("name"), provider.get("config") or {}
    if name != "oidc":
        instead = _GONE_PROVIDERS.get(str(name), "an exec plugin")
        raise ValueError(f"auth-provider {name} is none of Kubernetes any more: use {instead}")
    token = str(config.get("id-token") or "")
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        expires = float(claims["exp"])
    except (IndexError, KeyError, ValueError):
        expires = 0.0
    if expires < time.time():
        raise ValueError("the id-token of its user has expired: any command of kubectl with this context renews it")
    return token


async def _ask_plugin(plugin: Fields, cluster: Fields | None, folder: Path) -> Fields:
    """The credential that an exec plugin hands out, client.authentication.k8s.io. `cluster`: what it is told of that.
    It talks to the terminal if there is one and it may."""
    command, version = str(plugin.get("command") or ""), str(plugin.get("apiVersion") or "")
    if not command or not version:
        raise ValueError("exec: command or apiVersion is missing")
    mode = plugin.get("interactiveMode") or "IfAvailable"
    interactive = mode != "Never" and sys.stdin is not None and sys.stdin.isatty()
    if mode == "Always" and not interactive:
        raise ValueError(f"exec: {command} needs a terminal (interactiveMode Always), and there is none")
    spec: dict[str, Any] = {"interactive": interactive}
    if cluster is not None:
        spec["cluster"] = cluster
    asked = {"apiVersion": version, "kind": "ExecCredential", "spec": spec}
    given = {str(each["name"]): str(each["value"]) for each in plugin.get("env") or []}
    program = str(folder / command) if "/" in command else command
    try:
        answer = await _run(
            [program, *(str(each) for each in plugin.get("args") or [])],
            {**os.environ, **given, "KUBERNETES_EXEC_INFO": json.dumps(asked)},
            interactive,
        )
    except FileNotFoundError:
        hint = str(plugin.get("installHint") or "install it, or put it on PATH").strip()
        raise ValueError(f"exec: there is no program {command}: {hint}") from None
    try:
        credential = json.loads(answer)
    except ValueError as error:
        raise ValueError(f"exec: the answer of {command} is no JSON: {error}") from None
    if not isinstance(credential, dict) or credential.get("apiVersion") != version:
        raise ValueError(f"exec: {command} does not answer with an ExecCredential of {version}")
    status = credential.get("status") or {}
    if not status.get("token") and not (status.get("clientCertificateData") and status.get("clientKeyData")):
        raise ValueError(f"exec: {command} hands out neither a token nor a certificate with its key")
    return dict(status)


async def _run(command: Sequence[str], environment: Mapping[str, str], interactive: bool) -> bytes:
    """What the program prints. Raises ValueError when it fails or does not end."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=dict(environment),
        stdin=None if interactive else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=None if interactive else asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(None if interactive else _PLUGIN_DEADLINE):
            output, errors = await process.communicate()
    except TimeoutError:
        raise ValueError(f"exec: {command[0]} did not answer in {_PLUGIN_DEADLINE:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        words = (errors or b"").decode(errors="replace").strip()[-500:]
        raise ValueError(f"exec: {command[0]} failed with {process.returncode}: {words or 'it said nothing'}")
    return output


def _cluster_information(cluster: Fields, connection: Connection) -> Fields:
    """What a plugin may know of the cluster; `config` is what its kubeconfig has there for plugins."""
    extensions = {each["name"]: each.get("extension") for each in cluster.get("extensions") or []}
    said = {
        "server": connection.server,
        "tls-server-name": connection.server_name,
        "insecure-skip-tls-verify": not connection.verify,
        "certificate-authority-data": base64.b64encode(connection.authority.encode()).decode(),
        "proxy-url": connection.proxy,
        "config": extensions.get("client.authentication.k8s.io/exec"),
    }
    return {key: value for key, value in said.items() if value}


def _with_credential(connection: Connection, status: Fields) -> Connection:
    if status.get("token"):
        connection = replace(connection, authorization=f"Bearer {status['token']}")
    if status.get("clientCertificateData"):
        connection = replace(connection, certificate=status["clientCertificateData"], key=status["clientKeyData"])
    return connection
