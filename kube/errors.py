"""What can go wrong with a request to the API server, as types that a caller can act on.

Made from the Status object that the server answers: the HTTP status alone can't tell AlreadyExists from Conflict,
and the two want opposite reactions. Everything that may pass by itself (network, timeout, overload, a failing server)
is one type, Unreachable, because the reaction is one: the same again, later.
"""

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

_TOO_MANY_REQUESTS = 429
_TOO_LARGE = "ResourceVersionTooLarge"
"""metav1.CauseTypeResourceVersionTooLarge: the client knows of a later state than the server, which was restored."""


class ApiError(Exception):
    """A request was refused. `status` is the HTTP status (0: there was no answer), `reason` the machine's word for
    it (metav1.StatusReason), `message` the server's sentence."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{message} ({reason})" if reason else message)
        self.status = status
        self.reason = reason
        self.message = message


class NotFound(ApiError):
    """There is no such object."""


class Conflict(ApiError):
    """The object changed since it was read, or a precondition does not hold: read it again and decide anew."""


class AlreadyExists(ApiError):
    """There is an object of this name. Whose it is only its uid or its contents tell."""


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
    """No answer, or one that says "not now": network error, timeout, 429, 5xx. The request may have been carried out
    all the same. `retry_after` is the server's wish in seconds, when it has one."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(status, reason, message)
        self.retry_after = retry_after


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
    details = body.get("details") or {}
    if any(cause.get("reason") == _TOO_LARGE for cause in details.get("causes") or []):
        return Gone(status, reason, message)
    if status == _TOO_MANY_REQUESTS or status >= 500:
        seconds = details.get("retryAfterSeconds")
        return Unreachable(status, reason, message, float(seconds) if seconds else retry_after)
    if reason == "AlreadyExists":
        return AlreadyExists(status, reason, message)
    return _BY_STATUS.get(status, ApiError)(status, reason, message)
