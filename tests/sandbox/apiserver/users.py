"""Who asks: the name and the groups behind a request's credentials.

Without credentials it is the cluster's administrator: kubectl, the control plane and the kubelets of a sandbox, which
owns the machine anyhow. A program of ours brings the bearer token of its service account, as its pod would. The tokens
are not secret and not signed, for nobody is to be kept out here; what counts is what an account may do. Like the token
that the kubelet gives a pod it can be bound to the pod's node, of which admission policies then read.
"""

from dataclasses import dataclass

from tests.sandbox.apiserver import errors
from tests.sandbox.apiserver.resources import SERVICE_ACCOUNTS
from tests.sandbox.apiserver.store import Store

MASTERS = "system:masters"
_AUTHENTICATED = "system:authenticated"
_ACCOUNT = "system:serviceaccount:"
_BOUND_TO = "@"
_NODE_NAME = "authentication.kubernetes.io/node-name"
"""Source: k8s.io/apiserver/pkg/authentication/serviceaccount/util.go. There since Kubernetes 1.30."""


@dataclass(frozen=True)
class User:
    name: str
    groups: frozenset[str]
    node: str = ""
    """That the token is bound to."""

    @property
    def extra(self) -> dict[str, list[str]]:
        return {_NODE_NAME: [self.node]} if self.node else {}


ADMINISTRATOR = User("kubernetes-admin", frozenset({MASTERS, _AUTHENTICATED}))


def username(namespace: str, name: str) -> str:
    """Of the service account."""
    return f"{_ACCOUNT}{namespace}:{name}"


def token(namespace: str, name: str, node: str = "") -> str:
    """Of the service account: simply its user name, and the node of the pod that has it."""
    return f"{username(namespace, name)}{_BOUND_TO}{node}" if node else username(namespace, name)


def authenticate(authorization: str, store: Store) -> User:
    """The user of an Authorization header. Raises Unauthorized, as for an account that is gone."""
    if not authorization:
        return ADMINISTRATOR
    scheme, _, secret = authorization.partition(" ")
    account, _, node = secret.partition(_BOUND_TO)
    namespace, _, name = account.removeprefix(_ACCOUNT).partition(":")
    known = scheme.lower() == "bearer" and secret == token(namespace, name, node)
    if not known or store.get(SERVICE_ACCOUNTS, namespace, name) is None:
        raise errors.unauthorized()
    groups = {"system:serviceaccounts", f"system:serviceaccounts:{namespace}", _AUTHENTICATED}
    return User(account, frozenset(groups), node)
