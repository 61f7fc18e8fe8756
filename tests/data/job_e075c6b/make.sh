#!/usr/bin/env bash
# make.sh CHECKOUT: makes what is in this folder anew in the current one, which is empty, by the Batcher in CHECKOUT: a
# clone at e075c6b in which `make setup` has run. It writes 100 MB beside it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$1/.venv/bin
"$bin/python" "$here/inputs.py"
# The tests' tiny model with a feed-forward part so wide that a run can be stopped between two of its rows.
PYTHONPATH=$1 "$bin/python" -c '
from pathlib import Path
from tests.support.tiny_gguf import Shape, write_tiny_gguf
write_tiny_gguf(Path("tiny.gguf"), end_bias=-30.0, shape=Shape(hidden=64_000))'
engine=(--model tiny=tiny.gguf --ctx 128 --slots 1 --threads 1)

# A batch of the server.
export BATCHER_API_KEYS=0123456789abcdef
"$bin/batcher" serve "${engine[@]}" --port 8765 --jobs-dir jobs &
server=$!
"$bin/python" - <<'END'
import time
import httpx

with httpx.Client(base_url="http://127.0.0.1:8765/v1", headers={"Authorization": "Bearer 0123456789abcdef"}) as client:
    while True:
        try:
            client.get("/models")
            break
        except httpx.ConnectError:
            time.sleep(0.1)
    with open("batch.jsonl", "rb") as file:
        input_id = client.post("/files", files={"file": file}, data={"purpose": "batch"}).json()["id"]
    asked = {"input_file_id": input_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = client.post("/batches", json=asked | {"metadata": {"team": "old"}}).json()
    while batch["status"] != "completed":
        time.sleep(0.1)
        batch = client.get(f"/batches/{batch['id']}").json()
    for kind in ("output", "error"):
        print(client.get(f"/files/{batch[f'{kind}_file_id']}/content").text)
END
kill $server
wait $server

# A job of the command line, stopped in the midst of its second shard, then taken up again and killed there.
run=("$bin/batcher" run tickets.parquet bodies.jsonl -o jobs/interrupted "${engine[@]}" --shard-rows 6 --max-tokens 4)
"${run[@]}" &
until [ -e jobs/interrupted/results/part-00000.parquet ]; do sleep 0.01; done
sleep 0.1
kill $!
wait $! || true
"${run[@]}" &
until [ -e jobs/interrupted/attempts/00001/0002.json ]; do sleep 0.01; done
sleep 0.1
kill -KILL $! $(pgrep -P $!)
wait $! || true
