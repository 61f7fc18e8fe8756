# `make demo` runs the main job on a real model; `make test` passes the tests. Both set up what they need.
.PHONY: demo test check setup clean upgrade test-floors

BIN := .venv/bin
# Where the demo's job goes.
DEMO ?= demo
# A real model that only acceptance tests take.
GEMMA := .venv/.gemma/gemma-3-270m-q4_k_m.gguf

demo: setup
	rm -rf $(DEMO)
	$(BIN)/batcher run jobs/completions/prompts.jsonl -o $(DEMO) --model smollm2-135m --max-tokens 48
	$(BIN)/batcher results $(DEMO) --limit 5

# In this order, for what fails soonest. Fault tests mostly wait, so several run at a time, beside those acceptance tests
# that compute and begin with the longest. A group shares a server or texts, so one process runs it.
test: check $(GEMMA)
	$(BIN)/pytest -n 2 tests/unit tests/integration
	$(BIN)/pytest -n 5 --dist loadgroup --no-loadscope-reorder tests/faults tests/acceptance

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: .venv/.ready

.venv/.ready: pyproject.toml $(wildcard requirements/*.lock) scripts/setup.sh $(wildcard scripts/llama_*) scripts/amx_probe.cpp
	scripts/setup.sh

$(GEMMA): requirements/gemma.lock scripts/gemma.sh | .venv/.ready
	scripts/gemma.sh $@
	touch $@

# Takes the newest versions from the index, within the ranges of pyproject.toml, into requirements/*.lock.
upgrade:
	scripts/upgrade.sh

# Runs the tests with the lowest versions that pyproject.toml allows, in an environment of their own.
test-floors: setup
	scripts/test_floors.sh

clean:
	rm -rf .venv demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
