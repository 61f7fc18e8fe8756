#!/usr/bin/env bash
# The tables of a processor with AMX, by our build with it and by one without, each beside llama.cpp's programs built in the
# same way: bench/amx.sh [FOLDER [GGUF...]]. Writes FOLDER/{with,without}-amx.md. Per GGUF some hours on 2 cores; without
# one it is SmolLM2-135M as Q4_0.
set -euo pipefail
cd "$(dirname "$0")/.."
grep -qs amx_tile /proc/cpuinfo || { echo "this processor has no AMX (lscpu | grep amx)" >&2; exit 1; }
folder=$(realpath -m "${1:-amx-tables}")
models=("${@:2}")
mkdir -p "$folder"

throughput() { # throughput OPTION...
    .venv/bin/python -m bench.throughput --json "$table.json" "$@" >>"$table.md"
}

measure() { # measure NAME: of the build that CFLAGS and CXXFLAGS ask for
    scripts/setup.sh
    table=$folder/$1
    {
        lscpu | grep '^Model name'
        .venv/bin/python -m workers.engines.llama.kernels
        .venv/bin/batcher run jobs/completions/prompts.jsonl -o "$folder/demo-$1" --model smollm2-135m --max-tokens 48
    } >"$table.md"
    local model
    for model in "${models[@]:-}"; do
        local of_model=(${model:+--model "$model"})
        throughput "${of_model[@]}" --workload ragged --sides server,server-our-build,ours,ours-sampled,ceiling
        throughput "${of_model[@]}" --workload template --sides server,server-our-build,ours
        # 96 rows, and 384 of them.
        throughput "${of_model[@]}" --workload templates --scale 0.5 --sides server,server-our-build,ours
        throughput "${of_model[@]}" --workload templates --scale 2 --sides server,server-our-build,ours
    done
}

measure with-amx
no_amx="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
CFLAGS="${CFLAGS:-} $no_amx" CXXFLAGS="${CXXFLAGS:-} $no_amx" measure without-amx
scripts/setup.sh
