# The same targets for people and for CI. `make` alone lists them.

PYTHON ?= python3
# Data tests read real images, which needs the decoder of the `train` extra.
EXTRAS ?= $(if $(SARTO_DATA),dev$(comma)train,dev)
# Tests run in two processes of one thread each: small steps are many times slower with two threads.
WORKERS ?= 2

comma := ,
BIN := .venv/bin
STAMP := .venv/.installed-$(subst $(comma),-,$(EXTRAS))
# Tests of benchmarks that skip what needs the extra `bench`.
TESTS_OF_BENCH := $(addprefix tests/unit/benchmarks/,test_coverage.py test_coverage_torch_pruning.py test_prune_and_tune.py test_surgery_speed.py)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-data test-models fmt lint types docs bench-smoke check clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## install sarto and its tools into .venv (once; again when the dependencies change)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "sarto needs Python 3.11 or newer; '$(PYTHON)' is not on this machine. Install it, or name another: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "sarto needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' can't make virtual environments: its venv or ensurepip is missing. On Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing sarto [$(EXTRAS)] into .venv, which takes a minute or two"
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
	  $(BIN)/python -m pip install --quiet --quiet --progress-bar off --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)  ## the main job, start to end, on the models and images in examples/
	$(BIN)/python examples/demo.py

test: $(STAMP)  ## the default tests: no network, no data, no GPU
	$(PYTEST) -n $(WORKERS)

test-all: $(STAMP)  ## with the slow ones, and with the data ones when SARTO_DATA names their folder
	$(PYTEST) -n $(WORKERS) -m "not gpu$(if $(SARTO_DATA),, and not data)"

test-data: $(STAMP)  ## the quick tests on real data in the folder SARTO_DATA
	@test -d "$(SARTO_DATA)" || { echo "SARTO_DATA is '$(SARTO_DATA)', which is not a folder; name the one that holds the data sets: make test-data SARTO_DATA=..."; exit 1; }
	SARTO_DATA="$(abspath $(SARTO_DATA))" $(PYTEST) -n $(WORKERS) -m "data and not slow and not gpu"

test-models: $(STAMP)  ## the tests that need transformers, Torch-Pruning and published weights, and the long fuzz
	@$(BIN)/python -c 'import transformers, torch_pruning, efficientnet_lite_pytorch' || { echo "these tests need two extras: make test-models EXTRAS=dev,bench,weights"; exit 1; }
	$(PYTEST) -n $(WORKERS) -m "not gpu and not data" tests/unit/pipeline/test_sources_transformers.py tests/unit/cli/test_sources.py \
	  tests/e2e/test_sources.py tests/unit/zoo/test_real_weights.py tests/property/test_fuzz.py $(TESTS_OF_BENCH)

fmt: $(STAMP)  ## format the code and sort its imports
	$(BIN)/ruff check --quiet --select I --fix
	$(BIN)/ruff format

lint: $(STAMP)  ## style, import rules, and that changelog and package name one version
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports
	$(PYTEST) --quiet tests/docs/test_changelog.py

types: $(STAMP)  ## mypy, strict in the rooms that others build on
	$(BIN)/mypy

docs: $(STAMP)  ## what README and docs say is so
	$(PYTEST) tests/docs

bench-smoke: $(STAMP)  ## every benchmark once, small, to keep them alive
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/run.py --smoke --jobs $(WORKERS) benchmarks/cases/*.yaml benchmarks/cases/*/*.yaml

check: lint types test bench-smoke  ## what a change has to pass

clean:  ## remove .venv and what tools left behind
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
