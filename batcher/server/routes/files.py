"""`/v1/files`: uploads, which go straight to the disk, and downloads, also of the output files of batches."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, BinaryIO, Literal
from weakref import WeakValueDictionary

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from batcher.server.batches.outputs import is_virtual_input, parse_output_id
from batcher.server.batches.service import Batches, OutputFile
from batcher.server.batches.uploads import MAX_EXPIRES_S, MIN_EXPIRES_S, PURPOSES, FileStore, StoredFile
from batcher.server.guard.errors import ApiError
from batcher.server.routes.multipart import UploadForm, boundary_of
from batcher.server.routes.queries import (
    error_responses,
    in_thread,
    limit_parameter,
    path_parameter,
    query_parameter,
    text_parameter,
)

MAX_LIMIT = 10_000
#: Bytes that are parsed and written, or read, in one go of a thread.
_BLOCK_BYTES = 256 << 10

OUTPUT_PURPOSE = "batch_output"


class FileObject(BaseModel):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: str | None = None


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """That a file is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": MIN_EXPIRES_S,
                            "maximum": MAX_EXPIRES_S,
                        },
                    },
                    # One of them says nothing without the other.
                    "dependentRequired": {
                        "expires_after[anchor]": ["expires_after[seconds]"],
                        "expires_after[seconds]": ["expires_after[anchor]"],
                    },
                }
            }
        },
    }
}
_FILE_ID = {"parameters": [path_parameter("file_id")]}
_LIST_PARAMETERS = {
    "parameters": [
        query_parameter("limit", "Files a page.", type="integer", minimum=1, maximum=MAX_LIMIT, default=MAX_LIMIT),
        query_parameter("after", "The id of the file that the page begins behind.", type="string"),
        query_parameter("order", "By time of creation.", type="string", enum=["asc", "desc"], default="desc"),
        query_parameter("purpose", "Only files of this purpose.", type="string"),
    ]
}
_CONTENT_TYPES = ("application/octet-stream", "application/jsonl")
_CONTENT_RESPONSE: dict[str, Any] = {
    "description": "The content",
    "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _CONTENT_TYPES},
}


class _Turns:
    """One at a time makes the output files of a job. Those who wait hold no thread, which other requests need."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, file_id: str) -> asyncio.Lock:
        """What to hold while asking for an output file. It is forgotten when nobody holds it or waits."""
        parsed = parse_output_id(file_id)
        job_id = parsed[0] if parsed is not None else ""
        lock = self._locks.get(job_id)
        if lock is None:
            lock = self._locks[job_id] = asyncio.Lock()
        return lock


def files_router(files: FileStore, batches: Batches, *, max_bytes: int) -> APIRouter:
    """The routes of files; an upload has at most `max_bytes`."""
    router = APIRouter(tags=["files"])
    turns = _Turns()

    @router.post("/v1/files", response_model=FileObject, responses=error_responses(413), openapi_extra=_FORM)
    async def create_file(request: Request) -> Response:
        """Upload a file."""
        return _answer(_of_upload(await _receive(request, files, max_bytes=max_bytes)))

    @router.get("/v1/files", response_model=FileList, responses=error_responses(404), openapi_extra=_LIST_PARAMETERS)
    async def list_files(request: Request) -> Response:
        """List files, those among them that batches have written and somebody has asked for."""
        return _answer(await _list(request, files, batches))

    @router.get(
        "/v1/files/{file_id}", response_model=FileObject, responses=error_responses(404), openapi_extra=_FILE_ID
    )
    async def retrieve_file(request: Request) -> Response:
        """Describe a file."""
        return _answer(await _describe(request.path_params["file_id"], files, batches, turns))

    @router.delete(
        "/v1/files/{file_id}", response_model=FileDeleted, responses=error_responses(404), openapi_extra=_FILE_ID
    )
    async def delete_file(request: Request) -> Response:
        """Delete a file; not while a batch is about to read it."""
        return _answer(await _delete(request.path_params["file_id"], files, batches))

    @router.get(
        "/v1/files/{file_id}/content",
        response_class=Response,
        responses={200: _CONTENT_RESPONSE, **error_responses(404)},
        openapi_extra=_FILE_ID,
    )
    async def download_file(request: Request) -> Response:
        """Download a file."""
        return await _download(request.path_params["file_id"], files, batches, turns)

    return router


async def _list(request: Request, files: FileStore, batches: Batches) -> FileList:
    limit = limit_parameter(request, default=MAX_LIMIT, most=MAX_LIMIT)
    order = text_parameter(request, "order", choices=("asc", "desc")) or "desc"
    after, purpose = text_parameter(request, "after"), text_parameter(request, "purpose")
    found = await in_thread(_all_files, files, batches)
    found.sort(key=lambda file: (file.created_at, file.id), reverse=order == "desc")
    if after is not None:
        ids = [file.id for file in found]
        if after not in ids:
            raise ApiError(404, f"No such file: {after[:80]!r}; use the id of one", param="after")
        found = found[ids.index(after) + 1 :]
    # After that: the cursor may be of a file with another purpose.
    found = [file for file in found if purpose is None or file.purpose == purpose]
    page = found[:limit]
    return FileList(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=len(found) > limit,
    )


async def _describe(file_id: str, files: FileStore, batches: Batches, turns: _Turns) -> FileObject:
    stored = await in_thread(files.get, file_id)
    if stored is not None:
        return _of_upload(stored)
    async with turns.of(file_id):
        output = await in_thread(batches.output_file, file_id)
    if output is None:
        raise _no_such_file(file_id)
    return _of_output(output)


async def _delete(file_id: str, files: FileStore, batches: Batches) -> FileDeleted:
    if await in_thread(batches.is_input_needed, file_id):
        # Not 409, which the SDK would send again at once.
        message = f"file {file_id} is about to be read by a batch; delete it when that is in progress, or cancel that"
        raise ApiError(400, message, param="file_id", code="file_in_use")
    if not (await in_thread(files.delete, file_id) or await in_thread(batches.delete_output, file_id)):
        raise _no_such_file(file_id)
    return FileDeleted(id=file_id)


async def _download(file_id: str, files: FileStore, batches: Batches, turns: _Turns) -> Response:
    file = await in_thread(files.open, file_id)
    if file is not None:
        return await _stream(file, media_type="application/octet-stream")
    async with turns.of(file_id):
        opened = await in_thread(batches.open_output, file_id)
    if opened is None:
        raise _no_such_file(file_id)
    return await _stream(opened[1], media_type="application/jsonl")


async def _receive(request: Request, files: FileStore, *, max_bytes: int) -> StoredFile:
    """Take an upload in. Of one that fails or breaks off nothing is left."""
    boundary = boundary_of(request.headers.get("content-type"))
    upload = await in_thread(files.begin)
    try:
        form = UploadForm(boundary, upload, max_bytes=max_bytes)
        async for block in _blocks(request.stream()):
            await in_thread(form.feed, block)
        return await in_thread(form.commit)
    finally:
        # Not awaited: the request may have been cancelled. Does nothing after a commit.
        asyncio.get_running_loop().run_in_executor(None, upload.discard)


async def _blocks(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks of a body, gathered: a hop to a thread should be worth its while."""
    waiting = bytearray()
    async for chunk in body:
        waiting += chunk
        if len(waiting) >= _BLOCK_BYTES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


async def _stream(file: BinaryIO, *, media_type: str) -> Response:
    """The content of an open file, read as fast as the client takes it. Never shown by a browser as a page."""
    size = await run_in_threadpool(file.seek, 0, os.SEEK_END)
    file.seek(0)
    headers = {
        "content-length": str(size),
        "content-disposition": "attachment",
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(_read_blocks(file), media_type=media_type, headers=headers)


async def _read_blocks(file: BinaryIO) -> AsyncIterator[bytes]:
    try:
        while block := await run_in_threadpool(file.read, _BLOCK_BYTES):
            yield block
    finally:
        file.close()


def _all_files(files: FileStore, batches: Batches) -> list[FileObject]:
    uploads = [_of_upload(stored) for stored in files.list_files()]
    return uploads + [_of_output(output) for output in batches.output_files()]


def _of_upload(stored: StoredFile) -> FileObject:
    return FileObject(
        id=stored.id,
        bytes=stored.num_bytes,
        created_at=stored.created_at,
        expires_at=stored.expires_at,
        filename=stored.filename,
        purpose=stored.purpose,
    )


def _of_output(output: OutputFile) -> FileObject:
    return FileObject(
        id=output.id,
        bytes=output.num_bytes,
        created_at=output.created_at,
        expires_at=output.expires_at,
        filename=output.filename,
        purpose=OUTPUT_PURPOSE,
    )


def _no_such_file(file_id: str) -> ApiError:
    if is_virtual_input(file_id):
        message = f"{file_id[:140]} stands for the input of a job of the command line, which the server does not keep"
        return ApiError(404, message, param="file_id")
    return ApiError(404, f"No such file: {file_id[:140]}", param="file_id")


def _answer(body: BaseModel) -> Response:
    return JSONResponse(body.model_dump(mode="json"))
