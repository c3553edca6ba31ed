"""Who may do what: tokens, roles and their bindings, and the words of a refusal."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.apiserver import guard, patches, users
from tests.sandbox.apiserver.client import Answer, Client
from tests.sandbox.apiserver.process import ServerProcess
from tests.sandbox.apiserver.resources import Json

_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_ACCOUNT = "robot"


@pytest.fixture(scope="module")
def audit_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "log"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, audit_log: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path_factory.mktemp("apiserver"), ("--audit-log", str(audit_log)))
    process.start()
    yield process
    assert process.stop() == 0


@pytest.fixture
def robot(api: Client, server: ServerProcess, namespace: str) -> Client:
    """Who has a service account of the namespace, and no rights."""
    api.post(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": _ACCOUNT}})
    return Client(server.port, users.token(namespace, _ACCOUNT))


def bind(api: Client, namespace: str, rule: Json, *, everywhere: bool = False) -> None:
    """Gives the robot of the namespace a rule, there or everywhere."""
    kind, role = ("ClusterRoleBinding", "ClusterRole") if everywhere else ("RoleBinding", "Role")
    place = _RBAC if everywhere else f"{_RBAC}/namespaces/{namespace}"
    api.post(f"{place}/{role.lower()}s", {"metadata": {"name": namespace}, "rules": [{"apiGroups": [""], **rule}]})
    api.post(
        f"{place}/{kind.lower()}s",
        {
            "metadata": {"name": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": namespace},
            "subjects": [{"kind": "ServiceAccount", "name": _ACCOUNT, "namespace": namespace}],
        },
    )


def refused(answer: Answer) -> str:
    assert answer.code == 403
    assert answer.body["reason"] == "Forbidden"
    return str(answer.body["message"])


def test_a_refusal_names_the_missing_right(robot: Client, namespace: str) -> None:
    robot_name, pods = f'User "system:serviceaccount:{namespace}:robot"', f"/api/v1/namespaces/{namespace}/pods"
    assert refused(robot.request("GET", f"{pods}/web")) == (
        f'pods "web" is forbidden: {robot_name} cannot get resource "pods" in API group "" in the namespace '
        f'"{namespace}"'
    )
    assert refused(robot.request("GET", "/apis/storage.k8s.io/v1/storageclasses")) == (
        f'storageclasses.storage.k8s.io is forbidden: {robot_name} cannot list resource "storageclasses" in API group '
        '"storage.k8s.io" at the cluster scope'
    )
    assert 'cannot patch resource "pods/status"' in refused(
        robot.request("PATCH", f"{pods}/web/status", {}, content_type=patches.MERGE_PATCH)
    )
    assert 'cannot deletecollection resource "pods"' in refused(
        robot.request("DELETE", f"/api/v1/namespaces/{namespace}/pods")
    )
    assert f'cannot get resource "namespaces" in API group "" in the namespace "{namespace}"' in refused(
        robot.request("GET", f"/api/v1/namespaces/{namespace}")
    )


@pytest.mark.parametrize("token", ["nonsense", "system:serviceaccount:default:nobody"])
def test_who_is_not_known_is_not_let_in(server: ServerProcess, token: str) -> None:
    assert Client(server.port, token).request("GET", "/api/v1/pods").code == 401


def test_a_role_holds_in_its_namespace_from_its_binding_on(api: Client, robot: Client, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    refused(robot.request("GET", pods))
    bind(api, namespace, {"resources": ["pods"], "verbs": ["list"]})
    assert robot.request("GET", pods).code == 200
    refused(robot.request("GET", "/api/v1/namespaces/default/pods"))
    refused(robot.request("GET", "/api/v1/pods"))
    assert 'cannot watch resource "pods"' in refused(robot.request("GET", pods, watch="true"))
    api.delete(f"{_RBAC}/namespaces/{namespace}/rolebindings/{namespace}")
    refused(robot.request("GET", pods))


def test_a_rule_may_hold_for_one_name(api: Client, robot: Client, namespace: str) -> None:
    bind(api, namespace, {"resources": ["configmaps"], "verbs": ["get", "list", "create"], "resourceNames": ["mine"]})
    place = f"/api/v1/namespaces/{namespace}/configmaps"
    api.post(place, {"metadata": {"name": "mine"}})
    assert robot.request("GET", f"{place}/mine").code == 200
    refused(robot.request("GET", f"{place}/other"))
    assert robot.request("GET", place, fieldSelector="metadata.name=mine").code == 200
    refused(robot.request("GET", place))
    # The name of what is created is not known when rights are looked at.
    refused(robot.request("POST", place, {"metadata": {"name": "mine"}}))


def test_a_subresource_needs_a_rule_of_its_own(api: Client, robot: Client, namespace: str) -> None:
    bind(api, namespace, {"resources": ["pods"], "verbs": ["patch"]})
    place = f"/api/v1/namespaces/{namespace}/pods/web"
    assert robot.request("PATCH", place, {}, content_type=patches.MERGE_PATCH).code == 404
    refused(robot.request("PATCH", f"{place}/status", {}, content_type=patches.MERGE_PATCH))


def test_a_put_that_creates_needs_both_verbs(api: Client, robot: Client, namespace: str) -> None:
    bind(api, namespace, {"resources": ["events"], "verbs": ["update"]})
    place = f"/api/v1/namespaces/{namespace}/events/told"
    body = {"metadata": {"name": "told", "namespace": namespace}, "involvedObject": {"namespace": namespace}}
    assert 'cannot create resource "events"' in refused(robot.request("PUT", place, body))


def test_what_accounts_ask_for_is_kept(api: Client, robot: Client, namespace: str, audit_log: Path) -> None:
    bind(api, namespace, {"resources": ["nodes"], "verbs": ["list"]}, everywhere=True)
    robot.request("GET", "/api/v1/nodes")
    robot.request("GET", "/api/v1/nodes/one")
    asked = [each for each in guard.requests(audit_log) if each.user == users.username(namespace, _ACCOUNT)]
    assert [(each.asked.verb, each.asked.name, each.allowed) for each in asked] == [
        ("list", "", True),
        ("get", "one", False),
    ]
