# One command per job; `make` or `make help` lists them.
# Every target that needs the environment makes it first, so each works as the only command.

# The first interpreter that runs and is new enough. Set PYTHON=/path/to/python to choose another.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)
BIN := .venv/bin
STAMP := .venv/.spillway-installed
VLLM := .venv-vllm/bin/python
VLLM_STAMP := .venv-vllm/.spillway-installed
N ?= 50
FIRST ?= 0

# Nothing outside the checkout is written to.
export MPLCONFIGDIR := $(CURDIR)/build/matplotlib
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup check test demo sweep headroom-report golden bench bench-core bench-sim bench-router bench-workers bench-judges soak chaos clean reproduce compiled test-compiled test-ray test-otel vllm-env test-vllm fuzz judge-env test-judge vllm-demo validate-vllm gpu-steps

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

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

headroom-report: setup ## write docs/headroom.md anew: headroom against its rivals (minutes)
	@mkdir -p build
	@$(BIN)/python scripts/headroom_report.py

golden: setup ## rewrite the golden files and show what changed
	@$(BIN)/python -m pytest tests/golden --update-golden
	@git --no-pager diff --stat -- tests/golden

bench: bench-core bench-sim bench-router bench-workers ## all four, then docs/benchmarks.md from them (half an hour)
	@$(BIN)/python bench/document.py

soak: setup ## 2,000 streams through one router: errors, memory, open files (DURATION_S=60)
	@$(BIN)/python bench/soak.py --duration-s $(or $(DURATION_S),60)

chaos: setup ## engines, wires and clocks that fail under load, every token checked (DURATION_S=60)
	@$(BIN)/python bench/chaos.py --duration-s $(or $(DURATION_S),60)

bench-core: setup ## decisions, ledger, dispatcher, trace readers: time and allocations
	@$(BIN)/python bench/run.py --only core $(if $(QUICK),--quick)

bench-sim: setup ## our simulator beside its peers, on the same requests (QUICK=1: fewer)
	@$(BIN)/python bench/run.py --only sim $(if $(QUICK),--quick)

bench-judges: setup ## outside load generators at our router: do they agree with its metrics?
	@$(BIN)/python bench/run.py --only judges $(if $(QUICK),--quick)

bench-router: setup ## our router beside its peers, between mocks in C (QUICK=1: fewer rounds)
	@$(BIN)/python bench/run.py --only router $(if $(QUICK),--quick)

bench-workers: setup ## two worker processes of our router beside one (QUICK=1: fewer rounds)
	@$(BIN)/python bench/run.py --only workers $(if $(QUICK),--quick)

reproduce: setup ## write docs/reproduction.md anew: the paper's claims and what we measure (minutes)
	@$(BIN)/spillway sweep examples/reproduction.toml --out build/reproduction.parquet
	@$(BIN)/python scripts/reproduce.py build/reproduction.parquet

test-ray: setup ## the sweep on a local Ray cluster gives the same bytes
	@$(BIN)/python -m pip install -qq --require-hashes -r requirements/ray.txt
	@$(BIN)/python -m pytest --basetemp=build/pytest-ray -k ray tests/sim/test_farm.py tests/sim/test_matrixrun.py

compiled: setup ## build/compiled: the package with core and simulator as machine code (a C compiler)
	@$(BIN)/python -m pip install -qq --require-hashes -r requirements/compile.txt
	@$(BIN)/python scripts/compiled.py

test-compiled: compiled ## the compiled copy gives the same decisions, records and counts
	@$(BIN)/python -m pytest --basetemp=build/pytest-compiled tests/sim/test_compiled.py

test-otel: setup ## spans as a collector gets them
	@$(BIN)/python -m pip install -qq --require-hashes -r requirements/otel.txt
	@$(BIN)/python -m pytest --basetemp=build/pytest-otel tests/router/test_otlp.py tests/router/test_tracing.py

vllm-env: $(VLLM_STAMP) ## create .venv-vllm: a real vLLM engine on the CPU (minutes, 3 GB)

# Torch comes last and without a hash: which build of it is served differs from machine to machine.
# Its own requirements are pinned with everything else.
$(VLLM_STAMP): requirements/vllm.txt scripts/fetch_vllm_sources.py
	@test -x $(VLLM) || { echo "Creating .venv-vllm with $(PYTHON) ..."; $(PYTHON) -m venv .venv-vllm; }
	@echo "Installing what requirements/vllm.txt pins (several minutes, once) ..."
	@$(VLLM) -m pip install -qq --no-deps --require-hashes -r requirements/vllm.txt
	@$(VLLM) -m pip install -qq torch==2.13.0
	@$(VLLM) scripts/fetch_vllm_sources.py
	@touch $@

test-vllm: vllm-env ## the plug-in in vLLM's real schedulers, and a real cluster; no GPU
	@mkdir -p build
	@for release in .venv-vllm/sources/*; do \
		echo "vLLM $$(basename $$release), its schedulers only:"; \
		PYTHONPATH=src:$(CURDIR)/$$release nice $(VLLM) -m pytest -W ignore \
			--basetemp=build/pytest-vllm tests/engine/test_scheduler.py \
			tests/engine/test_release.py || exit 1; \
	done
	@PYTHONPATH=src nice $(VLLM) -m pytest -W ignore --basetemp=build/pytest-vllm tests/engine
	@echo "Real engines: one prefill and one decode node, KV by NIXL:"
	@PYTHONPATH=src nice $(VLLM) -m pytest -W default --basetemp=build/pytest-vllm tests/realvllm

fuzz: setup ## hostile input to every surface, in memory, by seed (N=10000 SURFACE=client SEED=1 FIRST=0)
	@PYTHONPATH=tests $(BIN)/python -m fuzzing --seed $(or $(SEED),1) --first $(FIRST) \
		--count $(if $(filter command,$(firstword $(origin N))),$(N),10000) \
		$(if $(SURFACE),--surface $(SURFACE))

judge-env: setup ## install aiperf, a load generator of others, into .venv-peers (a minute or two)
	@$(BIN)/python bench/outside.py --install

test-judge: setup ## aiperf completes against the router over fake engines, without an error
	@$(BIN)/python bench/outside.py

vllm-demo: setup vllm-env ## a burst on real vLLM engines on the processor, NIXL between them: a table
	@$(BIN)/spillway up --engine vllm --burst

validate-vllm: setup vllm-env ## measure on real vLLM, into docs/validation.md: a quarter of an hour
	@PYTHONPATH=bench $(BIN)/python -m validate_vllm

GPU_PYTHON ?= $(VLLM)
gpu-steps: setup ## on a GPU: step times of two models' kernels, and profiles, in build/gpu-steps
	@mkdir -p build/gpu-steps
	@for model in llama-3.1-8b deepseek-v2-lite; do for graphs in off on; do \
		PYTHONPATH=src:bench $(GPU_PYTHON) -m gpu_steps --model $$model --graphs $$graphs \
			--out build/gpu-steps/$$model-graphs-$$graphs.jsonl || exit 1; \
		$(BIN)/spillway fit build/gpu-steps/$$model-graphs-$$graphs.jsonl \
			--out build/gpu-steps/$$model-graphs-$$graphs.json; \
	done; done

clean: ## remove what the other targets made, but for .venv
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
