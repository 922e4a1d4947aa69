# `make help` lists what there is to make. Variables that a user may set:
#   PYTHON  Python to make the virtual environment with
#   VENV    the virtual environment; one of your own is used with the torch that is in it
#   TORCH   what pip installs as PyTorch, e.g. TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
#   BENCH   the benches that `make bench` runs (`python benches/run.py --list` names them); all without it
#   STRICT  set to 1, `make bench` fails when a ratio misses its bar
#   WORKERS processes that `make test` runs the tests in Python in, side by side: most of them wait most of the time
#   VERIFY  the long forms that `make verify` runs, e.g. VERIFY="tsan fuzz"; ci/verify/ has them all
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch
WORKERS ?= 4
VERIFY ?= laws loom shuttle planted assembly attacks tsan python_stress fuzz studies
export PYTHON VENV TORCH

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:
.NOTPARALLEL:

BIN := $(abspath $(VENV))/bin
STAMPS := $(VENV)/.melissa
STEP := ci/step.sh

# What the extension and the package's metadata are made from.
BUILD_INPUTS := pyproject.toml Cargo.toml Cargo.lock $(wildcard rust/*/Cargo.toml) $(shell find rust/*/src -name '*.rs')

# So that cargo and maturin build PyO3 for the same interpreter.
export PYO3_PYTHON := $(BIN)/python
# The tests start `python` and `mpiexec`: those of the environment.
export PATH := $(BIN):$(PATH)

.PHONY: help demo test lint rust-test models python-test verify bench wheel clean tools packages environment

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F '|' '{ printf "%-14s%s\n", $$1, $$2 }'
	@sed -n '/^# .*Variables/,/^PYTHON/s/^#//p' Makefile | sed '1s/.*/\nVariables:/'

demo: $(STAMPS)/extension-release ## build everything and run the heat study to its end
	@ci/demo.sh

test: lint rust-test models python-test ## install what the tests need and run them all

lint: $(STAMPS)/requirements-test $(STAMPS)/extension-dev ## format, style and types, of Python and of Rust
	@$(STEP) "ruff check" ruff check
	@$(STEP) "ruff format" ruff format --check
	@STEP_DETAIL=1 $(STEP) "mypy" mypy
	@STEP_DETAIL=1 $(STEP) "stubtest" stubtest --mypy-config-file pyproject.toml melissa._melissa
	@$(STEP) "rustfmt" cargo fmt --check
	@$(STEP) "clippy" cargo clippy --locked --workspace --all-targets -- -D warnings

rust-test: environment ## the tests in Rust
	@$(STEP) "cargo test" cargo test --locked --workspace --exclude melissa-py

models: environment ## model checks of the core's concurrency, and whether they find planted defects
	@STEP_DETAIL=1 $(STEP) "loom" ci/models.sh loom
	@STEP_DETAIL=1 $(STEP) "shuttle" ci/models.sh shuttle
	@STEP_DETAIL=1 $(STEP) "planted defects" ci/verify/planted.sh

python-test: packages $(STAMPS)/requirements-test $(STAMPS)/extension-dev ## the tests in Python
	@STEP_DETAIL=1 $(STEP) "pytest" python -m pytest -q -n $(WORKERS) --dist loadfile

verify: $(STAMPS)/requirements-test $(STAMPS)/extension-dev ## the long forms of the proofs (docs/verification.md)
	@for check in $(VERIFY); do STEP_DETAIL=1 $(STEP) "verify $$check" ci/verify/$$check.sh; done

bench: $(STAMPS)/requirements-test $(STAMPS)/extension-release ## measure the parts against their bounds, and print the table
	@python benches/run.py $(BENCH) $(if $(STRICT),--strict)

wheel: environment ## build the wheel, into dist/, and try it in an empty environment
	@$(STEP) "wheel" maturin build --release --locked --out dist
	@STEP_DETAIL=1 $(STEP) "wheel in an empty environment" ci/wheel.sh

clean: ## remove what was built, and the environment of the checkout
	rm -rf target dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

tools:
	@ci/tools.sh

packages:
	@STEP_DETAIL=1 $(STEP) "packages of the system" ci/packages.sh

environment: tools
	@ci/environment.sh

$(STAMPS)/requirements-test: pyproject.toml | environment
	@$(STEP) "requirements of the tests" ci/requirements.sh test
	@touch $@

# The package is installed in place, so there is one build at a time: that of the tests, or that of the demo.
$(STAMPS)/extension-dev: $(BUILD_INPUTS) | environment
	@$(STEP) "extension (dev)" ci/extension.sh dev
	@rm -f $(STAMPS)/extension-release && touch $@

$(STAMPS)/extension-release: $(BUILD_INPUTS) | environment
	@$(STEP) "extension (release)" ci/extension.sh release
	@rm -f $(STAMPS)/extension-dev && touch $@
