# `make demo` runs the main job on a real model; `make test` passes the tests. Both set up what they need.
.PHONY: demo test check setup clean

BIN := .venv/bin

setup: .venv/.ready

.venv/.ready: pyproject.toml scripts/setup.sh scripts/llama_build.cmake
	scripts/setup.sh

test: check
	$(BIN)/pytest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
