# One command per job; `make` or `make help` lists them.
# Every target that needs the environment makes it first, so each works as the only command.

# The first interpreter that runs and is new enough. Set PYTHON=/path/to/python to choose another.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)
BIN := .venv/bin
STAMP := .venv/.spillway-installed
N ?= 50
FIRST ?= 0

# Nothing outside the checkout is written to.
export MPLCONFIGDIR := $(CURDIR)/build/matplotlib
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup check test demo sweep golden bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(STAMP) ## create .venv with everything in it, .venv/bin/spillway included

$(STAMP): requirements/dev.txt pyproject.toml
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { \
		echo "spillway: error: no Python 3.11 or later found;" \
			"install one, or name it: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python" >&2; \
		exit 2; }
	@test -x $(BIN)/python || { echo "Creating .venv with $(PYTHON) ..."; $(PYTHON) -m venv .venv; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "spillway: error: .venv holds a Python older than 3.11;" \
			"remove it (rm -rf .venv) and run make again" >&2; \
		exit 2; }
	@echo "Installing what requirements/dev.txt pins (a minute or two, once) ..."
	@$(BIN)/python -m pip install -qq --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	@touch $@

check: setup ## formatting, lint, types, import contracts
	@$(BIN)/ruff format --check src tests bench
	@$(BIN)/ruff check src tests bench
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

test: setup ## every test; no GPU, no network but loopback
	@mkdir -p build
	@$(BIN)/python -m pytest --basetemp=build/pytest

demo: setup ## four engines, a router, a burst, three policies: a table and build/demo.html
	@mkdir -p build
	@$(BIN)/spillway demo

sweep: setup ## N random simulated scenarios with every invariant checked (N=50 FIRST=0)
	@$(BIN)/python -m spillway.sim.sweep --count $(N) --first $(FIRST)

golden: setup ## rewrite the golden files and show what changed
	@$(BIN)/python -m pytest tests/golden --update-golden
	@git --no-pager diff --stat -- tests/golden

bench: setup ## speed and memory on this machine, also as build/bench.json
	@mkdir -p build
	@$(BIN)/python bench/run.py

clean: ## remove what the other targets made, but for .venv
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
