"""Errors as the API tells them: a status, and `{"error": {"message", "type", "param", "code"}}`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

#: Each status that the server answers, and what /docs says of it.
MEANINGS = {
    400: "The request can't be used as it is; the message says what to change",
    401: "No key, or one that is not known",
    403: "Without keys, only this machine may ask",
    404: "No such thing",
    405: "The path has other methods",
    408: "The rest of the body did not come",
    413: "The body is larger than the limit",
    429: "Too many requests at a time; `retry-after` says when to come again",
    500: "The server or an engine failed",
    503: "The engine is away or the server is stopping; `retry-after` says when to come again",
    504: "The completion took longer than allowed",
}


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorObject


@dataclass(eq=False)
class ApiError(Exception):
    """Ends a request with `status` and the documented error object. Nothing internal belongs into `message`."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """The error's `type`, by which clients tell the kinds apart."""
        return _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """The documented error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
