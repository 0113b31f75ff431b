"""API errors in the Kubernetes ``Status`` form.

Source: Kubernetes API conventions, "Response Status Kind". Everything that can go wrong for a caller is an
:class:`ApiError`; its message says what happened and why, and where it can, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason an object was refused. ``reason`` is e.g. ``FieldValueInvalid``, ``field`` a dotted path."""

    reason: str
    field: str
    message: str


#: Of one refusal.
MAX_CAUSES = 100


class ApiError(Exception):
    """A refusal with an HTTP code, a machine-readable reason and a message for people."""

    def __init__(self, code: int, reason: str, message: str, *, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details or {}
        #: Of a list that cannot go on as it was: where to go on nonetheless.
        self.continue_token = ""

    @property
    def retry_after_seconds(self) -> float:
        """So long the server asks to be left alone, a minute at most; 0 where it says nothing."""
        stated = self.details.get("retryAfterSeconds")
        return min(60.0, max(0.0, float(stated))) if isinstance(stated, int | float) else 0.0

    def status(self) -> dict[str, Any]:
        """The ``Status`` object as it goes over the wire."""
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {"continue": self.continue_token} if self.continue_token else {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if self.details:
            body["details"] = self.details
        return body

    @classmethod
    def of(cls, status: dict[str, Any]) -> ApiError:
        """The error that a ``Status`` body stands for."""
        return cls(
            int(status.get("code") or 500),
            str(status.get("reason") or "Unknown"),
            str(status.get("message") or "unknown error"),
            details=status.get("details"),
        )


def _details(group: str, plural: str, name: str) -> dict[str, Any]:
    return {k: v for k, v in {"name": name, "group": group, "kind": plural}.items() if v}


def _qualified(group: str, plural: str) -> str:
    return f"{plural}.{group}" if group else plural


def not_found(group: str, plural: str, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{_qualified(group, plural)} "{name}" not found', details=_details(group, plural, name))


def already_exists(group: str, plural: str, name: str) -> ApiError:
    return ApiError(
        409, "AlreadyExists", f'{_qualified(group, plural)} "{name}" already exists', details=_details(group, plural, name)
    )


def conflict(group: str, plural: str, name: str, why: str = "") -> ApiError:
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    return ApiError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {_qualified(group, plural)} "{name}": {why}',
        details=_details(group, plural, name),
    )


def invalid(group: str, kind: str, name: str, causes: Iterable[Cause]) -> ApiError:
    """422: the object was understood and refused; every cause names a field. The first ``MAX_CAUSES`` are told."""
    found = list(causes)
    if len(found) > MAX_CAUSES:
        found = [*found[:MAX_CAUSES], Cause("FieldValueInvalid", "", f"there are {len(found) - MAX_CAUSES} more")]
    listed = "; ".join(f"{c.field}: {c.message}" for c in found)
    if len(found) > 1:
        listed = "[" + ", ".join(f"{c.field}: {c.message}" for c in found) + "]"
    qualified = f"{kind}.{group}" if group else kind
    details = _details(group, kind, name) | {
        "causes": [{"reason": c.reason, "message": c.message, "field": c.field} for c in found]
    }
    return ApiError(422, "Invalid", f'{qualified} "{name}" is invalid: {listed}', details=details)


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def unauthorized(message: str = "Unauthorized") -> ApiError:
    return ApiError(401, "Unauthorized", message)


def forbidden(group: str, plural: str, name: str, why: str) -> ApiError:
    subject = f'{_qualified(group, plural)} "{name}"' if name else _qualified(group, plural)
    return ApiError(403, "Forbidden", f"{subject} is forbidden: {why}", details=_details(group, plural, name))


def method_not_allowed(message: str) -> ApiError:
    return ApiError(405, "MethodNotAllowed", message)


def expired(message: str) -> ApiError:
    """410: the asked-for revision has been compacted, or a watcher fell behind; list again."""
    return ApiError(410, "Expired", message)


def unsupported_media_type(message: str) -> ApiError:
    return ApiError(415, "UnsupportedMediaType", message)


def too_large(message: str) -> ApiError:
    return ApiError(413, "RequestEntityTooLarge", message)


def too_many_requests(message: str, retry_after_seconds: int = 1) -> ApiError:
    return ApiError(429, "TooManyRequests", message, details={"retryAfterSeconds": retry_after_seconds})


def unavailable(message: str) -> ApiError:
    return ApiError(503, "ServiceUnavailable", message)


def insufficient_storage(message: str) -> ApiError:
    return ApiError(507, "InsufficientStorage", message)


def internal(message: str) -> ApiError:
    return ApiError(500, "InternalError", message)
