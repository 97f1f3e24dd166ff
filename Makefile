# `make` lists what there is. Nothing here needs the network once `make setup` is done.

VENV ?= .venv
BENCHMARK_VENV ?= .venv-benchmark
PEERS_VENV ?= .venv-peers

# The first Python here that is new enough; `make setup PYTHON=...` takes another one.
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)

MAKEFLAGS += --no-print-directory

# Frameworks look for updates, fonts and telemetry hosts unless told that there are none.
export YOLO_OFFLINE = true
export YOLO_AUTOINSTALL = false
export MLFLOW_DISABLE_TELEMETRY = true
export HF_HUB_OFFLINE = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test benchmark page peers clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  VENV=DIR     use this virtual environment (default $(VENV))"
	@echo "  PYTHON=EXE   make it with this Python, 3.11 or newer (default $(PYTHON))"
	@echo "  ARGS=...     passed on by demo, test (to pytest), benchmark and page"

setup: $(VENV)/.installed ## Install everything that demo and test need (about 7 GB, some minutes)

demo: $(VENV)/.installed ## Show what rightbatch does, on this machine
	$(VENV)/bin/python -m rightbatch.examples.demo $(ARGS)

# OpenMP's threads wait for work in a loop; where two test processes share the cores, each such loop
# holds the others up, and tests took up to ten times as long.
test: export OMP_WAIT_POLICY = passive
test: $(VENV)/.installed ## Lint, check types, run the tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

benchmark: $(BENCHMARK_VENV)/.installed ## Compare with other ways to choose a batch size
	$(BENCHMARK_VENV)/bin/python -m benchmarks $(ARGS)

page: $(VENV)/.installed ## Write docs/benchmarks.md from benchmarks/results
	$(VENV)/bin/python -m benchmarks.page $(ARGS)

peers: $(PEERS_VENV)/.installed ## Install the servers that benchmarks.serve.real_model compares with
	@echo "now, on a machine that does nothing else: $(VENV)/bin/python -m benchmarks.serve.real_model"

clean: ## Remove the virtual environments, caches and build results
	rm -rf .venv .venv-benchmark .venv-peers build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# A virtual environment is up to date when its stamp is newer than its lock.
$(VENV)/.installed: requirements/ci.lock
$(BENCHMARK_VENV)/.installed: requirements/benchmark.lock
$(PEERS_VENV)/.installed: requirements/peers.lock
$(VENV)/.installed $(BENCHMARK_VENV)/.installed: pyproject.toml
	$(install-lock)
	@$(@D)/bin/python -c 'import cv2' 2>/dev/null || { echo 'cv2 does not load, as on machines without libGL: taking the one without windows'; \
		$(@D)/bin/python -m pip install --require-hashes --no-deps --force-reinstall -r requirements/headless.lock; }
	$(@D)/bin/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@

# The peers find rightbatch by its path: what it needs there, and no more, is in their lock.
$(PEERS_VENV)/.installed:
	$(install-lock)
	@touch $@

define install-lock
@test -n "$(PYTHON)" || { echo "rightbatch needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
$(@D)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(@D)
@echo '*' > $(@D)/.gitignore
$(@D)/bin/python -m pip install --require-hashes -r $(filter %.lock,$^)
endef
