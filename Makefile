# Every target works from a fresh clone: the first one installs the tested packages into .venv.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)
CODE := $(wildcard rlmec_trl recipes tests benchmarks)

# The built-in task needs nothing from the Hub, and tests must not start to.
demo compare test: export HF_HUB_OFFLINE := 1
demo compare test: export HF_HUB_DISABLE_TELEMETRY := 1
# Silences the warning of tokenizers that are forked after their threads have started; data this small needs none.
demo compare test: export TOKENIZERS_PARALLELISM := false

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(STAMP) ## run the whole pipeline on the built-in arithmetic task, on a CPU
	$(VENV_PYTHON) recipes/pipeline.py --config recipes/arithmetic/pipeline.yaml

.PHONY: compare
compare: $(STAMP) ## train RLMEC and its baselines on the arithmetic task and compare them
	$(VENV_PYTHON) recipes/pipeline.py --config recipes/arithmetic/compare.yaml

.PHONY: test
test: $(STAMP) ## run the tests
	$(VENV_PYTHON) -m pytest tests

.PHONY: lint
lint: $(STAMP) ## check style and format
	$(VENV_PYTHON) -m ruff check $(CODE)
	$(VENV_PYTHON) -m ruff format --check $(CODE)

.PHONY: bench
bench: $(STAMP) ## run every benchmark
	for script in benchmarks/bench_*.py; do echo "== $$script"; $(VENV_PYTHON) "$$script"; done

.PHONY: clean
clean: ## remove the environment, caches and build outputs; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .hypothesis .pytest_cache .ruff_cache
	find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} +

# torch is installed first, on its own: it comes in several builds (CPU, CUDA), pip's own settings decide which, and the
# second step keeps it.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV_PYTHON) -m pip install -c constraints.txt $(TORCH)
	$(VENV_PYTHON) -m pip install -c constraints.txt -e '.[test,lint]'
	touch $@
