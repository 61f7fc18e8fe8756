"""Write reviews.parquet from reviews.csv, the text that people edit: `python jobs/classification/make_table.py`."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

HERE = Path(__file__).parent

COLUMNS = {
    "review_id": pa.string(),
    "product": pa.string(),
    "review": pa.string(),
    "stars": pa.int8(),
    "posted": pa.date32(),
}


def read_reviews() -> pa.Table:
    """The reviews, typed."""
    return csv.read_csv(HERE / "reviews.csv", convert_options=csv.ConvertOptions(column_types=COLUMNS))


if __name__ == "__main__":
    pq.write_table(read_reviews(), HERE / "reviews.parquet", compression="zstd")
