"""Every failure as an answer: what other modules raise, told as the documented error object and never more than that.

`Boundary` is the outermost layer of the app. It is plain ASGI, like the other layers: a layer that runs the app in a
task of its own (starlette's BaseHTTPMiddleware) would hide from the app that its client has hung up.
"""

import logging
import secrets
import time
from collections.abc import Mapping

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batcher.errors import InvalidBodyError
from batcher.live import EngineAwayError, LiveRequestError
from batcher.server.guard.errors import ApiError
from batcher.server.metrics import Metrics
from batcher.types import ErrorCode

logger = logging.getLogger(__name__)

#: Seconds after which a request that found no engine should come again: a small model loads in about that time.
RETRY_AWAY_S = 5
#: What the metrics say of a request whose client went away before the answer. nginx's number; nobody receives it.
CLIENT_GONE = 499

#: Where in a request's scope its id is, by which log lines and the header `x-request-id` name it.
REQUEST_ID = "batcher.request_id"

_NO_RETRY = {"x-should-retry": "false"}


class ClientGoneError(Exception):
    """The client has hung up. Nobody is left to be told, so this only ends what was done for it."""


class JSONAnswer(Response):
    """A JSON body, written by pydantic's Rust core. NaN and infinities, which JSON has not, become null."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return to_json(content, inf_nan_mode="null")


def error_answer(error: ApiError) -> JSONAnswer:
    """The answer that tells of `error`."""
    return JSONAnswer(error.body(), status_code=error.status, headers=dict(error.headers))


def timeout_error(message: str) -> ApiError:
    """A request that took too long.

    504 is what it is, and the SDK's own default is to send it again, twice, with the same end and three times the load
    (as it would a 408); it obeys the header that tells it not to.
    """
    return ApiError(504, message, code=ErrorCode.TIMEOUT, headers=_NO_RETRY)


def as_api_error(exc: BaseException, scope: Scope) -> ApiError:
    """What to tell the client of a request that failed with `exc`.

    What is unforeseen is told in no detail, and logged with its traceback.
    """
    if isinstance(exc, ApiError):
        return exc
    if isinstance(exc, InvalidBodyError):
        is_unknown = exc.code == ErrorCode.MODEL_NOT_FOUND
        code = exc.code or ErrorCode.INVALID_REQUEST
        return ApiError(404 if is_unknown else 400, str(exc), param=exc.param, code=code)
    if isinstance(exc, EngineAwayError):
        return ApiError(503, str(exc), code="engine_away", headers={"retry-after": str(RETRY_AWAY_S)})
    if isinstance(exc, LiveRequestError):
        error = exc.error
        match error.code:
            case ErrorCode.INVALID_REQUEST | ErrorCode.CONTEXT_LENGTH_EXCEEDED:
                return ApiError(400, error.message, param=error.param, code=error.code)
            case ErrorCode.MODEL_NOT_FOUND:
                return ApiError(404, error.message, param="model", code=error.code)
            case ErrorCode.TIMEOUT:
                return timeout_error(error.message)
        logger.error("%s failed: %s: %s", scope[REQUEST_ID], error.code, error.message, extra=_address(scope))
        # The request may be what the engine can't bear, so it should not come again by itself.
        return ApiError(500, "the engine failed at this request", code=error.code, headers=_NO_RETRY)
    logger.error("%s: unforeseen error in the server", scope[REQUEST_ID], exc_info=exc, extra=_address(scope))
    return ApiError(500, "internal error; the server's log has the details", code="internal_error")


def _address(scope: Scope) -> dict[str, str]:
    """Whom a line of the log is of."""
    return {"address": (scope.get("client") or ("",))[0]}


class Boundary:
    """Turns what the app raises into answers, counts and times every request, and gives each an id.

    Once an answer has begun there is no other status to tell, so what is raised then goes on to the web server, which
    cuts the connection: the client sees that something is missing.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_at = time.perf_counter()
        request_id = scope[REQUEST_ID] = f"req_{secrets.token_hex(12)}"
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        self._metrics.begin()
        try:
            await self._app(scope, receive, send_with_id)
        except ClientGoneError:
            status = CLIENT_GONE
        except Exception as exc:
            if status:
                raise
            error = as_api_error(exc, scope)
            await error_answer(error)(scope, receive, send_with_id)
        finally:
            self._metrics.end(
                _route(scope), method=scope["method"], status=status, seconds=time.perf_counter() - began_at
            )


def _route(scope: Mapping[str, object]) -> str:
    """The route's template, such as /v1/files/{file_id}: paths themselves are without number."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "other"
