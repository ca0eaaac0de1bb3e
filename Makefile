# Every target works from a fresh clone with python3, python3-venv, git and make: .venv is made when it is missing or older
# than the locks. No compiler is needed (docs/decisions/0002).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps
ARGS ?=
# Several tests at once, one more than there are cores; those that share a grid of nodes in one process (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check format bench lock clean install

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS="$$(printf '\t')" read -r a b; do printf '  make %-10s %s\n' "$$a" "$$b"; done

demo: $(READY) ## watch five nodes render a Julia set, and kill one of them
	$(BIN)/p2pgrid demo $(ARGS)

test: $(READY) ## all tests, real processes included (ARGS="-k word" for some, -n0: one at a time)
	$(PYTEST) $(ARGS)

test-fast: $(READY) ## the tests without real processes
	$(PYTEST) -m "not slow" $(ARGS)

check: $(READY) ## linter, formatter, types, import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## rewrite the sources as `make check` wants them
	$(BIN)/ruff check --fix --exit-zero
	$(BIN)/ruff format

bench: $(READY) ## the hot path beside multiprocessing, in one run
	$(BIN)/python -m benchmarks hotpath $(ARGS)

lock: ## make the locks anew (ARGS=--upgrade to move every version)
	PYTHON=$(PYTHON) .ci/refresh-lock $(ARGS)

install: $(READY) ## only make .venv

clean: ## remove .venv and whatever was built
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# libp2p brings trio-typing, whose stubs of an old trio would hide trio's own types from mypy: its folder goes.
# In this order: what builds, what is built with it (two dependencies are pure-Python sources), ourselves.
$(READY): requirements-build.lock requirements-dev.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "p2pgrid needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "installing into $(VENV) (once)"
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) --require-hashes -r requirements-build.lock
	$(PIP) --require-hashes --no-build-isolation --use-pep517 -r requirements-dev.lock
	$(PIP) --no-build-isolation -e .
	rm -rf $(VENV)/lib/python*/site-packages/trio-stubs
	@touch $@
