# Every target works from a fresh clone: the first one installs the tested packages into .venv.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# The pinned torch in every environment: on Linux, the package index has other releases only with gigabytes of CUDA
# libraries. To test another one: make test-lowest TORCH=torch==2.8.0
TORCH := $(shell grep '^torch==' constraints.txt)
CODE := $(wildcard rlmec_trl recipes tests benchmarks .ci)

# One process for each core. The tests of a file run in one process, since they share models and finished runs.
PYTEST := -m pytest tests --numprocesses auto --maxprocesses 8 --dist loadfile

RUNS := demo demo-rllr online compare test test-latest test-lowest
# The built-in task needs nothing from the Hub, and tests must not start to.
$(RUNS): export HF_HUB_OFFLINE := 1
$(RUNS): export HF_HUB_DISABLE_TELEMETRY := 1
# Silences the warning of tokenizers that are forked after their threads have started; data this small needs none.
$(RUNS): export TOKENIZERS_PARALLELISM := false

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(STAMP) ## run the whole pipeline on the built-in arithmetic task, on a CPU
	$(VENV_PYTHON) recipes/pipeline.py --config recipes/arithmetic/pipeline.yaml

.PHONY: demo-rllr
demo-rllr: $(STAMP) ## run RLLR and its baselines on the built-in task with labels, on a CPU
	$(VENV_PYTHON) recipes/pipeline.py --config recipes/verdicts/demo.yaml

.PHONY: online
online: $(STAMP) ## train online on the arithmetic task, after the stages of the demo
	$(VENV_PYTHON) recipes/pipeline.py --config recipes/arithmetic/online.yaml

.PHONY: compare
compare: $(STAMP) ## train RLMEC and its baselines on the arithmetic task and compare them
	$(VENV_PYTHON) recipes/pipeline.py --config recipes/arithmetic/compare.yaml

.PHONY: test
test: $(STAMP) ## run the tests
	$(VENV_PYTHON) $(PYTEST)

# These two start from an empty environment each time, because the newest releases and setup.cfg change.
.PHONY: test-latest
test-latest: ## run the tests with the newest releases that setup.cfg allows
	$(PYTHON) -m venv --clear --upgrade-deps .venv-latest
	.venv-latest/bin/python -m pip install $(TORCH)
	.venv-latest/bin/python -m pip install -e '.[test]'
	.venv-latest/bin/python $(PYTEST)

# uv, because pip cannot resolve to the lowest releases. The second step keeps torch, as in .venv.
.PHONY: test-lowest
test-lowest: ## run the tests with the lowest releases that setup.cfg allows
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install uv $(TORCH)
	.venv-lowest/bin/python -m uv pip install --resolution lowest-direct $(TORCH) -e '.[test]'
	.venv-lowest/bin/python $(PYTEST)

.PHONY: lint
lint: $(STAMP) ## check style and format
	$(VENV_PYTHON) -m ruff check $(CODE)
	$(VENV_PYTHON) -m ruff format --check $(CODE)

.PHONY: audit
audit: $(STAMP) ## check the pinned packages against the package index
	$(VENV_PYTHON) .ci/audit_pins.py

.PHONY: bench
bench: $(STAMP) ## run every benchmark
	for script in benchmarks/bench_*.py; do echo "== $$script"; $(VENV_PYTHON) "$$script"; done

.PHONY: clean
clean: ## remove the environments, caches and build outputs; runs/ stays
	rm -rf $(VENV) .venv-latest .venv-lowest build dist *.egg-info .hypothesis .pytest_cache .ruff_cache
	find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} +

# torch is installed first, on its own: it comes in several builds (CPU, CUDA), pip's own settings decide which, and the
# second step keeps it. `audit` needs a newer pip than Python 3.11 comes with.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv --upgrade-deps $(VENV)
	$(VENV_PYTHON) -m pip install -c constraints.txt $(TORCH)
	$(VENV_PYTHON) -m pip install -c constraints.txt -e '.[test,lint]'
	touch $@
