# make run    the quickstart: everything from an empty machine to a tuned foundation model
# make test   the test suite; make cluster-test: several nodes, a Ray with dashboard and jobs, long runs; many minutes
# Both create .venv from constraints.txt when it is missing or older than the project's requirements.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run digits test cluster-test lint install clean
run: $(INSTALLED)
	@$(BIN)/fedpft run experiments/configs/quickstart.yaml

digits: $(INSTALLED)
	@$(BIN)/fedpft run experiments/configs/digits_vit.yaml

test: $(INSTALLED)
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 tests/unit
	@$(BIN)/python -m pytest -n 2 --dist loadfile --durations 12 tests/integration tests/simulation

cluster-test: $(INSTALLED)
	@$(BIN)/python -m pytest -m cluster --durations 0

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache

install: $(INSTALLED)

$(INSTALLED): constraints.txt pyproject.toml
	@echo "installing into $(VENV) (some minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fedpft needs Python 3.11 or newer")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[quickstart,sweep,dashboard,dev]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
