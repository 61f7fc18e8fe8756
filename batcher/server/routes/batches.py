"""`/v1/batches`: what clients ask of batches, in the objects of the documented API."""

from functools import partial
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from batcher.server.batches.records import Batch
from batcher.server.batches.requests import (
    ENDPOINTS,
    MAX_METADATA_KEY_CHARS,
    MAX_METADATA_PAIRS,
    MAX_METADATA_VALUE_CHARS,
)
from batcher.server.batches.service import Batches
from batcher.server.batches.uploads import MAX_EXPIRES_S, MIN_EXPIRES_S
from batcher.server.guard.clients import client_of
from batcher.server.guard.errors import ApiError
from batcher.server.guard.parsing import parse_apart
from batcher.server.routes.queries import (
    error_responses,
    in_thread,
    limit_parameter,
    parse_json,
    path_parameter,
    query_parameter,
    text_parameter,
)

DEFAULT_LIMIT = 20
MAX_LIMIT = 100


class ExpiresAfter(BaseModel):
    """When output files are to go."""

    model_config = ConfigDict(strict=True)

    anchor: Literal["created_at"]
    seconds: int


class CreateBatch(BaseModel):
    """What a batch is asked for with. Fields that are not known are ignored."""

    model_config = ConfigDict(strict=True)

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None
    priority: int | str | None = None
    finish_by: str | None = None


class BatchErrorObject(BaseModel):
    """What is wrong with an input; `line` counts from 1."""

    code: str | None
    line: int | None
    message: str | None
    param: str | None


class BatchErrorList(BaseModel):
    """All that is wrong with an input as a whole."""

    object: Literal["list"] = "list"
    data: list[BatchErrorObject]


class RequestCounts(BaseModel):
    """The requests of a batch."""

    total: int
    completed: int
    failed: int


class InputTokensDetails(BaseModel):
    """Of the input tokens."""

    cached_tokens: int


class OutputTokensDetails(BaseModel):
    """Of the output tokens."""

    reasoning_tokens: int = 0


class BatchUsage(BaseModel):
    """The tokens of a batch so far."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class BatchObject(BaseModel):
    """A batch. Times are in Unix seconds, null: it did not happen (yet)."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrorList | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    """A page of batches, the newest first."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


_METADATA = {
    "type": ["object", "null"],
    "maxProperties": MAX_METADATA_PAIRS,
    "propertyNames": {"type": "string", "maxLength": MAX_METADATA_KEY_CHARS},
    "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_VALUE_CHARS},
}
_CREATE = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["input_file_id", "endpoint", "completion_window"],
                    "properties": {
                        "input_file_id": {"type": "string", "description": "A file of purpose `batch`."},
                        "endpoint": {"type": "string", "enum": list(ENDPOINTS)},
                        "completion_window": {
                            "type": "string",
                            "pattern": "^[1-9][0-9]?[mhd]$",
                            "description": "`24h`, or another number of minutes, hours or days.",
                        },
                        "metadata": _METADATA,
                        "output_expires_after": {
                            "type": ["object", "null"],
                            "required": ["anchor", "seconds"],
                            "properties": {
                                "anchor": {"type": "string", "enum": ["created_at"]},
                                "seconds": {"type": "integer", "minimum": MIN_EXPIRES_S, "maximum": MAX_EXPIRES_S},
                            },
                        },
                        "priority": {
                            "type": ["integer", "string", "null"],
                            "description": "0 to 9, of which 9 is the most urgent, or `urgent`, `normal`, `low`; by "
                            "default that of the metadata key `priority`, if it has one of these.",
                        },
                        "finish_by": {
                            "type": ["string", "null"],
                            "description": "When it has to be finished: a time such as `2027-01-31T18:00Z`, or `+2h`.",
                        },
                    },
                }
            }
        },
    }
}
_BATCH_ID = {"parameters": [path_parameter("batch_id")]}
_LIST_PARAMETERS = {
    "parameters": [
        query_parameter("limit", "Batches a page.", type="integer", minimum=1, maximum=MAX_LIMIT, default=20),
        query_parameter("after", "The id of the batch that the page begins behind.", type="string"),
    ]
}


def batches_router(batches: Batches) -> APIRouter:
    """The routes of batches."""
    router = APIRouter(tags=["batches"])

    @router.post("/v1/batches", response_model=BatchObject, responses=error_responses(404, 413), openapi_extra=_CREATE)
    async def create_batch(request: Request) -> Response:
        """Make a batch of an uploaded file."""
        asked = await parse_apart(
            partial(parse_json, CreateBatch), await request.body(), client=client_of(request.scope)
        )
        expires = asked.output_expires_after
        batch = await in_thread(
            batches.create,
            input_file_id=asked.input_file_id,
            endpoint=asked.endpoint,
            completion_window=asked.completion_window,
            metadata=asked.metadata,
            output_expires_s=expires.seconds if expires is not None else None,
            priority=asked.priority,
            finish_by=asked.finish_by,
        )
        return _answer(_object(batch))

    @router.get("/v1/batches", response_model=BatchList, responses=error_responses(404), openapi_extra=_LIST_PARAMETERS)
    async def list_batches(request: Request) -> Response:
        """List batches, jobs of the command line among them."""
        limit = limit_parameter(request, default=DEFAULT_LIMIT, most=MAX_LIMIT)
        page = await in_thread(batches.list_page, after=text_parameter(request, "after"), limit=limit)
        data = [_object(batch) for batch in page.batches]
        return _answer(
            BatchList(
                data=data,
                first_id=data[0].id if data else None,
                last_id=data[-1].id if data else None,
                has_more=page.has_more,
            )
        )

    @router.get(
        "/v1/batches/{batch_id}", response_model=BatchObject, responses=error_responses(404), openapi_extra=_BATCH_ID
    )
    async def retrieve_batch(request: Request) -> Response:
        """Say how far a batch is."""
        batch_id = request.path_params["batch_id"]
        return _answer(_found(await in_thread(batches.get, batch_id), batch_id))

    @router.post(
        "/v1/batches/{batch_id}/cancel",
        response_model=BatchObject,
        responses=error_responses(404),
        openapi_extra=_BATCH_ID,
    )
    async def cancel_batch(request: Request) -> Response:
        """Cancel a batch; what is finished stays."""
        batch_id = request.path_params["batch_id"]
        return _answer(_found(await in_thread(batches.cancel, batch_id), batch_id))

    return router


def _found(batch: Batch | None, batch_id: str) -> BatchObject:
    if batch is None:
        raise ApiError(404, f"No such batch: {batch_id[:140]}", param="batch_id")
    return _object(batch)


def _object(batch: Batch) -> BatchObject:
    counts = batch.counts
    usage = BatchUsage(
        input_tokens=counts.input_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=counts.cached_tokens),
        output_tokens=counts.output_tokens,
        output_tokens_details=OutputTokensDetails(),
        total_tokens=counts.input_tokens + counts.output_tokens,
    )
    errors = [
        BatchErrorObject(code=error.code, line=error.line, message=error.message, param=error.param)
        for error in batch.errors
    ]
    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        model=batch.model,
        errors=BatchErrorList(data=errors) if errors else None,
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        status=batch.status.value,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=batch.created_at,
        in_progress_at=batch.in_progress_at,
        expires_at=batch.expires_at,
        finalizing_at=batch.finalizing_at,
        completed_at=batch.completed_at,
        failed_at=batch.failed_at,
        expired_at=batch.expired_at,
        cancelling_at=batch.cancelling_at,
        cancelled_at=batch.cancelled_at,
        request_counts=RequestCounts(total=counts.total, completed=counts.completed, failed=counts.failed),
        # Null while there is nothing that could use any.
        usage=usage if batch.in_progress_at is not None else None,
        metadata=batch.metadata,
    )


def _answer(body: BaseModel) -> Response:
    content: dict[str, Any] = body.model_dump(mode="json")
    return JSONResponse(content)
