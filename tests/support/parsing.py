"""Parses raw rows for tests: lines as bytes or as what JSON makes of them, tables by their columns."""

import json
from itertools import count
from typing import Any

import pyarrow as pa

from batcher.jobdir.shards import ShardRow
from batcher.submission.readers.files import LineBatch, Origin, TableBatch
from batcher.submission.rows import RowBatch, RowParser
from batcher.submission.template import parse_template
from batcher.types import SamplingParams


def make_parser(**options: Any) -> RowParser:
    if isinstance(options.get("template"), str):
        options["template"] = parse_template(options["template"])
    usual: dict[str, Any] = {"params": SamplingParams(), "default_model": "m"}
    return RowParser(**(usual | options))


def parse_lines(*lines: bytes | dict[str, Any] | None, **options: Any) -> RowBatch:
    data = [json.dumps(line).encode() if isinstance(line, dict) else line for line in lines]
    origin = Origin("in.jsonl", ":", range(1, len(data) + 1))
    return make_parser(**options).parse(LineBatch(origin, data), numbers=count())


def parse_line(line: bytes | dict[str, Any], **options: Any) -> ShardRow:
    return parse_lines(line, **options).rows[0]


def parse_table(columns: dict[str, Any], **options: Any) -> RowBatch:
    table = pa.table(columns)
    origin = Origin("in.parquet", ": row ", range(1, table.num_rows + 1))
    return make_parser(**options).parse(TableBatch(origin, table), numbers=count())


def message(row: ShardRow) -> str:
    assert row.error is not None
    return row.error.message


def batch_line(body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body} | changes
