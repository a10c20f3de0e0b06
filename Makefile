# make demo, make test, make lint: each sets up what it needs (a virtual environment, uv, the locked dependencies).
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
BIN := .venv/bin
SYNCED := .venv/.synced
DEMO_SYNCED := .venv/.demo-synced
OLD_PYTHON := echo "error: $(PYTHON) is older than 3.11. Install a newer Python, or name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1

export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export GX_ANALYTICS_ENABLED := false
# The demo and the tests start many Python processes: each finds what the one before it has compiled.
export PYTHONDONTWRITEBYTECODE :=
# The Python that was asked for, never one that uv fetches.
export UV_PYTHON_DOWNLOADS := never

.PHONY: help setup demo test test-fast coverage docs site integrations lint format clients torture lake clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(SYNCED) ## the virtual environment with the locked dependencies

.uv/bin/uv: requirements-uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { $(OLD_PYTHON); }
	@$(PYTHON) -m venv .uv || \
	  { rm -rf .uv; echo "error: $(PYTHON) cannot make a virtual environment. On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	@touch $@

$(SYNCED): pyproject.toml uv.lock | $(filter .uv/bin/uv,$(UV))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { $(OLD_PYTHON); }
	@echo "installing into .venv: everything, with the tools of the tests (a few minutes the first time) ..."
	@$(UV) sync --quiet --locked --all-extras --no-extra adapter --compile-bytecode --python "$$(command -v $(PYTHON))"
	@touch $@ $(DEMO_SYNCED)

# What the demo and `reasoning serve` need; what is there already for the tests stays.
$(DEMO_SYNCED): pyproject.toml uv.lock | $(filter .uv/bin/uv,$(UV))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { $(OLD_PYTHON); }
	@echo "installing into .venv (one to three minutes the first time) ..."
	@$(UV) sync --quiet --locked --inexact --no-group dev --compile-bytecode --python "$$(command -v $(PYTHON))" \
	  --extra pipeline --extra gateway --extra encoder --extra emulator --extra demo --extra alerts --extra mcp
	@touch $@

demo: $(DEMO_SYNCED) ## the whole wheel on real conversations, on this machine, without an API key
	@$(BIN)/reasoning demo

test: $(SYNCED) ## the tests; some of them: make test TESTS=tests/storage
	@$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(TESTS)

test-fast: $(SYNCED) ## the tests that start no processes, in under a minute
	@$(BIN)/pytest -n 3 --dist worksteal --fast $(TESTS)

lint: $(SYNCED) ## ruff (lint and format) and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

coverage: $(SYNCED) ## the tests with coverage; fails below the figure in pyproject.toml
	@rm -rf .coverage.d && mkdir .coverage.d
	@$(BIN)/coverage run -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(TESTS)
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage report

docs: $(SYNCED) ## docs/reference, from the code
	@$(BIN)/python docs/generate.py

site: $(SYNCED) ## the documentation as a site that works offline, in dist/site; fails on a broken link
	@$(UV) run --quiet --isolated --only-group docs zensical build --strict

format: $(SYNCED) ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

integrations: ## the adapters for agents' frameworks, tested with the frameworks
	@$(UV) run --quiet --isolated --all-extras --no-extra adapter --group integrations pytest -n 0 tests/integrations

clients: $(SYNCED) ## real clients through the gateway: Claude Code, npm SDKs, elizaOS, aider (needs npm and the network)
	@$(BIN)/python -m tests.clients

torture: $(SYNCED) ## the long fault tests
	@$(BIN)/pytest -n 2 -m torture

lake: $(SYNCED) ## the tests of a log in a lake, with the DuckDB that has extensions on PyPI
	@$(UV) pip install --quiet --python $(BIN)/python --target .lake --no-deps duckdb==1.5.5 \
	  duckdb-extension-ducklake==1.5.5 duckdb-extension-postgres-scanner==1.5.5 duckdb-extension-httpfs==1.5.5
	@PYTHONPATH=.lake $(BIN)/pytest tests/storage/test_lake.py

clean: ## everything that was made, but no data
	rm -rf .venv .uv .lake .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage.d dist
