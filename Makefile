# Everything a newcomer needs: `make demo` and `make test`. Each target sets up what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRACE ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup assets test lint unit cluster demo demo-short lock protos crds chart bench-baselines bench-explain bench-brute-force bench-planner bench-pairs bench-scale bench-splitting bench-simulate bench-tick bench-caps bench-simcluster bench-operator clean

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Penstock needs Python 3.11 or newer, found " + sys.version.split()[0] + "; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

assets: $(VENV)/ready ## Build the simulated cluster's binaries into the cache (needs Go)
	$(BIN)/python -m tests.simcluster.assets

setup: $(VENV)/ready assets ## Make the virtual environment and the binaries

lint: $(VENV)/ready ## Check style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: setup lint ## Set up everything, then run all checks and tests
	@$(MAKE) --no-print-directory -j2 unit cluster

unit: $(VENV)/ready ## Run the tests that need no cluster
	$(BIN)/pytest -m "not cluster" --numprocesses auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

cluster: setup ## Run the tests that need the simulated cluster; what they print comes at their end
	@$(BIN)/pytest -m cluster $(PYTEST_ARGS) >$(VENV)/cluster.log 2>&1; status=$$?; cat $(VENV)/cluster.log; exit $$status

demo: setup ## Run the operator on a simulated cluster replaying a trace (TRACE=FILE)
	$(BIN)/penstock demo $(if $(TRACE),--trace $(TRACE))

demo-short: setup ## The 90-second form of the demo
	$(BIN)/penstock demo --short $(if $(TRACE),--trace $(TRACE))

protos: $(VENV)/ready ## Generate the gRPC code again
	$(BIN)/python -m protos.generate

crds: $(VENV)/ready ## Generate the resource definitions again
	$(BIN)/python -m controller.crds

chart: crds ## Copy the resource definitions into the chart and render deploy/operator.yaml again
	$(BIN)/python -m tests.render_chart

bench-baselines: $(VENV)/ready ## Set our plans beside those of four baselines
	$(BIN)/python -m tests.bench_baselines $(BENCH_ARGS)

bench-explain: $(VENV)/ready ## Predict what losses cost, and decide anew to compare
	$(BIN)/python -m tests.bench_explain $(BENCH_ARGS)

bench-brute-force: $(VENV)/ready ## Hold plans against every count of 2,000 tiny fleets
	$(BIN)/python -m tests.bench_brute_force $(BENCH_ARGS)

bench-planner: $(VENV)/ready ## Time the planner on a 1,213-node fleet with ten services
	$(BIN)/python -m tests.bench_planner $(BENCH_ARGS)

bench-splitting: $(VENV)/ready ## Plan fleets whose routers split by size beside those whose do not
	$(BIN)/python -m tests.bench_splitting $(BENCH_ARGS)

bench-pairs: $(VENV)/ready ## Plan large fleets whose prefill and decode pair by place or over links: gap and time
	$(BIN)/python -m tests.bench_pairs $(BENCH_ARGS)

bench-scale: $(VENV)/ready ## Plan synthetic fleets of 100, 1,000 and 12,500 nodes: time, gap, memory
	$(BIN)/python -m tests.bench_scale $(BENCH_ARGS)

bench-tick: $(VENV)/ready ## Time caps, routing and shedding between plans, up to 12,500 nodes
	$(BIN)/python -m tests.bench_tick $(BENCH_ARGS)

bench-caps: $(VENV)/ready ## Show what power caps bring where watts are short
	$(BIN)/python -m tests.bench_caps $(BENCH_ARGS)

bench-simulate: $(VENV)/ready ## Time the request-level simulation, plain and compiled
	$(BIN)/python -m tests.bench_simulate $(BENCH_ARGS)

.PHONY: bench-sim-oracle
bench-sim-oracle: $(VENV)/ready ## Hold the simulation against a step-by-step one on 2,000 random fleets
	$(BIN)/python -m tests.bench_sim_oracle $(BENCH_ARGS)

bench-simcluster: setup ## Bring up 1,000 nodes with 10,000 pods
	$(BIN)/python -m tests.bench_simcluster $(BENCH_ARGS)

bench-operator: setup ## Time the operator on 1,000 nodes with 10,000 pods
	$(BIN)/python -m tests.bench_operator $(BENCH_ARGS)

.PHONY: bench-packing bench-openb
bench-packing: $(VENV)/ready ## Pack bins, class by class, and say what is proved
	$(BIN)/python -m tests.bench_packing $(BENCH_ARGS)

bench-openb: $(VENV)/ready ## Fill a fleet with tasks as they come (needs the openb lists)
	$(BIN)/python -m tests.bench_openb $(BENCH_ARGS)

.PHONY: bench-profiles
bench-profiles: $(VENV)/ready ## Compare profiles with measured servers
	$(BIN)/python -m tests.bench_profiles $(BENCH_ARGS)

.PHONY: bench-formulas bench-claims
bench-formulas: $(VENV)/ready ## Set queueing formulas beside the simulation over load
	$(BIN)/python -m tests.bench_formulas $(BENCH_ARGS)

.PHONY: bench-batches
bench-batches: $(VENV)/ready ## Set prompts computed together beside one after another
	$(BIN)/python -m tests.bench_batches $(BENCH_ARGS)

.PHONY: bench-policies
bench-policies: $(VENV)/ready ## Serve the Azure traces under seven policies: cost, joules, SLOs
	$(BIN)/python -m tests.bench_policies $(BENCH_ARGS)

bench-claims: $(VENV)/ready ## Colocated, chunked and disaggregated serving, goodput per GPU
	$(BIN)/python -m tests.bench_claims $(BENCH_ARGS)

lock: ## Pin the dependencies again (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra dask --extra dev --extra fast --extra report --extra silicon pyproject.toml -o requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml -o deploy/requirements.lock

clean: ## Remove what the targets made in this folder (the binaries' cache stays)
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
