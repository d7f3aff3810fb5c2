# make setup | demo | test | check     Everything is repeatable and safe to interrupt: run it again and it goes on.
#
# Nothing but git, make, gcc and Python 3.11 or 3.12 is needed; all else is installed into .venv.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.complete
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo test test-fast reliability bench bench-full bench-14b check lint types clean

help: ## List what can be made
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## /  make \1\t/' | expand -t 20

setup: $(STAMP) ## Make .venv with everything that is needed (about 3 minutes, 7 GB)

$(STAMP): pyproject.toml
	@echo "==> setting up $(VENV) (a few minutes the first time)"
	"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else f"Python 3.11 or 3.12 is needed, {sys.executable} is {v[0]}.{v[1]}; name another: make setup PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip setuptools wheel ninja py-cpuinfo
	echo "==> torch"
	$(BIN)/python -m pip install -q "torch>=2.11" numpy
	echo "==> the other packages; DeepSpeed and fairscale are built against this torch"
	DS_BUILD_OPS=0 $(BIN)/python -m pip install -q --no-build-isolation --editable ".[train,dev]"
	touch $(STAMP)

demo: $(STAMP) ## Walk the whole way once on synthetic scenes: shards, training, resume, compression (under 6 minutes)
	$(BIN)/ringmoe demo --out demo

test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-fast: $(STAMP) ## Run the tests that take seconds
	$(BIN)/python -m pytest -n 2 -m "not slow and not distributed and not reliability"

reliability: $(STAMP) ## Run the tests of docs/reliability.md that take minutes, and write its table of kills and its soak
	records=$$(mktemp -d); trap 'rm -rf "$$records"' EXIT; code=0
	RELIABILITY_RECORDS=$$records $(BIN)/python -m pytest -n 2 --dist loadgroup -m "reliability or kills" || code=$$?
	$(BIN)/python -m tests.reliability.page "$$records"  # what was seen counts, whatever else failed
	exit $$code

bench: $(STAMP) ## Measure all claims beside their peers and write docs/performance.md's tables
	$(BIN)/python benchmarks/run.py

bench-full: $(STAMP) ## Measure the RMoE layer in all 72 settings (hours; interrupted, the same command goes on)
	$(BIN)/python benchmarks/moe_layer.py --grid benchmarks/results/grid.jsonl
	$(BIN)/python benchmarks/page.py

bench-14b: $(STAMP) ## Compress 14.7 billion parameters in every mode, in FOLDER=... with 45 GB of room
	$(BIN)/python benchmarks/compression.py --folder "$(FOLDER)"

check: lint types ## Lint, format and types

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

clean: ## Remove what the demo wrote (the environment stays)
	rm -rf demo
