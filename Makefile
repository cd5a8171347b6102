# `make demo` trains the default recipe, `make test` runs the tests; both set up .venv first.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types check results

# All that accelerate launch would otherwise list as not given.
LAUNCH := accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

demo: .venv/installed
	$(BIN)/$(LAUNCH) recipes/train.py --experiment demo --overwrite

test: .venv/installed
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/installed
	$(BIN)/mypy

check: test lint types

results: .venv/installed
	$(BIN)/python recipes/results.py

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --editable . --group dev
	touch $@
