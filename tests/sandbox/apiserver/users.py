"""Who asks: the name and the groups behind a request's credentials.

Without credentials it is the cluster's administrator: kubectl, the control plane and the kubelets of a sandbox, which
owns the machine anyhow. A program of ours brings the bearer token of its service account, as its pod would. The tokens
are not secret and not signed, for nobody is to be kept out here; what counts is what an account may do.
"""

from dataclasses import dataclass

from tests.sandbox.apiserver import errors
from tests.sandbox.apiserver.resources import SERVICE_ACCOUNTS
from tests.sandbox.apiserver.store import Store

MASTERS = "system:masters"
_AUTHENTICATED = "system:authenticated"
_ACCOUNT = "system:serviceaccount:"


@dataclass(frozen=True)
class User:
    name: str
    groups: frozenset[str]


ADMINISTRATOR = User("kubernetes-admin", frozenset({MASTERS, _AUTHENTICATED}))


def token(namespace: str, name: str) -> str:
    """Of the service account: simply its user name."""
    return f"{_ACCOUNT}{namespace}:{name}"


def authenticate(authorization: str, store: Store) -> User:
    """The user of an Authorization header. Raises Unauthorized, as for an account that is gone."""
    if not authorization:
        return ADMINISTRATOR
    scheme, _, secret = authorization.partition(" ")
    namespace, _, name = secret.removeprefix(_ACCOUNT).partition(":")
    known = scheme.lower() == "bearer" and secret == token(namespace, name)
    if not known or store.get(SERVICE_ACCOUNTS, namespace, name) is None:
        raise errors.unauthorized()
    groups = {"system:serviceaccounts", f"system:serviceaccounts:{namespace}", _AUTHENTICATED}
    return User(secret, frozenset(groups))
