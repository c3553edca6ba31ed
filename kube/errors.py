"""What can go wrong with a request to the API server, as types that a caller can act on.

Made from the Status object that the server answers: the HTTP status alone does not distinguish AlreadyExists from
Conflict, and the two want opposite reactions. Everything that may pass by itself (network, timeout, overload, a failing
server) is one type, Unreachable, because the reaction is one: the same again, later.

A proxy or a load balancer on the way has answers of its own, and an API server that is just starting has a bare
"404 page not found" for what it does not serve yet. None of them knows whether an object is there, and what a program
does about one that is gone can't be undone: so only a Status that names the object says that it is gone.
"""

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

TOO_MANY_REQUESTS = 429
_LONGEST_RETRY_AFTER = 30.0
"""Seconds. Whoever answers in the server's place may name any time; the server itself names a few seconds."""
_TOO_LARGE = "ResourceVersionTooLarge"
"""metav1.CauseTypeResourceVersionTooLarge: the client knows of a later state than the server, which was restored."""


class ApiError(Exception):
    """A request was refused. `status` is the HTTP status (0: there was no answer), `reason` its
    name (metav1.StatusReason), `message` the server's sentence."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{message} ({reason})" if reason else message)
        self.status = status
        self.reason = reason
        self.message = message


class NotFound(ApiError):
    """There is no such object: the API server itself reports that."""


class Conflict(ApiError):
    """The object changed since it was read, or a precondition does not hold: read it again and decide anew."""


class AlreadyExists(ApiError):
    """There is an object of this name. Only its uid or its contents show whose it is."""


class Gone(ApiError):
    """The resourceVersion or the continue token is too old, or is one that the server has not reached: list again."""


class Unauthorized(ApiError):
    """The credentials are not, or no longer, good."""


class Forbidden(ApiError):
    """The credentials are good, and RBAC or an admission rule says no."""


class Invalid(ApiError):
    """The object breaks a rule of the API: the same request never succeeds."""


class NoLongerLeading(ApiError):
    """The request was not sent: what it is based on is a leader's plan, and another may lead by now."""


class Unreachable(ApiError):
    """No answer, or one that says "not now": network error, timeout, 429, 5xx, or an answer that is not the API
    server's. The request may have been carried out all the same. `retry_after` is what the server asks for in seconds,
    when it has one, up to a bound."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(status, reason, message)
        self.retry_after = retry_after


def is_unknown_kind(error: Exception) -> bool:
    """Whether the server does not have that kind of object: its CustomResourceDefinition is not there (yet)."""
    return isinstance(error, Unreachable) and error.status == 404


def is_not_served(error: Exception) -> bool:
    """Whether the server does not have that kind of object, or not for us: our RBAC rule for it is not there (yet).
    Both are of a component that not every cluster has. Rights are asked first."""
    return isinstance(error, Forbidden) or is_unknown_kind(error)


_BY_STATUS: Mapping[int, type[ApiError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
}


def from_status(body: Json, http_status: int = 0, retry_after: float | None = None) -> ApiError:
    """The error of a Status object, which a watch sends as an event and everything else as the body of an answer."""
    status = int(body.get("code") or http_status)
    reason = str(body.get("reason") or "")
    message = str(body.get("message") or f"the API server answered {status}")
    details = body.get("details")
    details = details if isinstance(details, dict) else {}
    seconds = float(details.get("retryAfterSeconds") or retry_after or 0)
    delay = min(seconds, _LONGEST_RETRY_AFTER) or None
    if any(cause.get("reason") == _TOO_LARGE for cause in details.get("causes") or []):
        return Gone(status, reason, message)
    if status == TOO_MANY_REQUESTS or status >= 500 or not _is_answer(body, status, reason, details):
        return Unreachable(status, reason, message, delay)
    if reason == "AlreadyExists":
        return AlreadyExists(status, reason, message)
    return _BY_STATUS.get(status, ApiError)(status, reason, message)


def _is_answer(body: Json, status: int, reason: str, details: Json) -> bool:
    """Whether the API server has judged the request. It names the object that it does not find, of whatever kind
    (apierrors.NewNotFound). Who is not let in hears so in many ways, and is not let in all the same."""
    if status == 404:
        return reason == "NotFound" and bool(details.get("name"))
    return status in (401, 403) or bool(reason) or body.get("kind") == "Status"
