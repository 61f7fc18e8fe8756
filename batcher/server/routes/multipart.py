"""A file on its way from a multipart body to the disk, in one pass: nothing is spooled first, memory is bounded."""

from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from batcher.server.batches.uploads import StoredFile, Upload
from batcher.server.guard.errors import ApiError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

#: Of all parts that are no file together, in bytes: each is a word or a number.
MAX_FIELD_BYTES = 64 << 10
MAX_PARTS = 64
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


def boundary_of(content_type: str | None) -> bytes:
    """What separates the parts. Raises ApiError where the body is no multipart form."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(400, "the content type must be multipart/form-data with a boundary")
    return boundary


class UploadForm:
    """The form of an upload: `feed` it the body in chunks, then `commit`. These block; for one thread at a time.

    The fields may come in any order; those that are not known are ignored. A part `file` beyond `max_bytes` and
    whatever is wrong with the form raises ApiError.
    """

    def __init__(self, boundary: bytes, upload: Upload, *, max_bytes: int) -> None:
        self._upload = upload
        self._max_bytes = max_bytes
        self._fields: dict[str, bytearray] = {}
        self._field_bytes = 0
        self._num_parts = 0
        self._filename: str | None = None
        self._name = ""
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._is_whole = False
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._on_part_begin,
            "on_part_data": self._on_part_data,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as exc:
            raise ApiError(400, "the boundary of the form is too long") from exc

    def feed(self, chunk: bytes) -> None:
        """Take the next part of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as exc:
            raise ApiError(400, "the body is not well-formed multipart/form-data") from exc

    def commit(self) -> StoredFile:
        """Make the file exist that the whole form holds. Raises InputError for a purpose or time that can't be."""
        if not self._is_whole:
            raise ApiError(400, "the form is not complete: it ends before its last boundary")
        if self._filename is None:
            raise ApiError(400, "the form has no file; send it as `file`", param="file")
        purpose = self._field("purpose")
        if purpose is None:
            raise ApiError(400, "the form does not say what the file is for; send `purpose`", param="purpose")
        return self._upload.commit(purpose=purpose, filename=self._filename, expires_after_s=self._expires_after_s())

    def _expires_after_s(self) -> int | None:
        anchor, seconds = self._field("expires_after[anchor]"), self._field("expires_after[seconds]")
        if anchor is None and seconds is None:
            return None
        if anchor != "created_at":
            raise ApiError(400, "expires_after[anchor] must be 'created_at'", param="expires_after[anchor]")
        if seconds is None or not (seconds.isascii() and seconds.isdigit() and len(seconds) <= 9):
            raise ApiError(400, "expires_after[seconds] must be an integer", param="expires_after[seconds]")
        return int(seconds)

    def _field(self, name: str) -> str | None:
        value = self._fields.get(name)
        return None if value is None else value.decode("utf-8", "replace")

    # -- callbacks of the parser ------------------------------------------------------------------------------------

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise ApiError(400, f"the form has more than {MAX_PARTS} parts")
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition.decode("latin-1"))
        if kind != b"form-data" or b"name" not in options:
            raise ApiError(400, "a part of the form has no name")
        self._name = options[b"name"].decode("utf-8", "replace")
        if self._name == "file":
            if self._filename is not None:
                raise ApiError(400, "the form has two files; send one", param="file")
            self._filename = options.get(b"filename", b"").decode("utf-8", "replace")
        elif self._name in self._fields:
            raise ApiError(400, f"the form has {self._name!r} twice", param=self._name)
        elif self._name in _FIELDS:
            self._fields[self._name] = bytearray()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            if self._upload.num_bytes + end - start > self._max_bytes:
                raise ApiError(413, f"the file is larger than {self._max_bytes} bytes; split it", param="file")
            self._upload.write(memoryview(data)[start:end])
            return
        self._field_bytes += end - start
        if self._field_bytes > MAX_FIELD_BYTES:
            raise ApiError(413, f"the fields beside the file take more than {MAX_FIELD_BYTES} bytes")
        # Other fields are ignored, as many as there are.
        if self._name in self._fields:
            self._fields[self._name] += data[start:end]

    def _on_end(self) -> None:
        self._is_whole = True
