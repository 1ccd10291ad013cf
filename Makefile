# make run    the quickstart: everything from an empty machine to a tuned foundation model
# make test   the test suite; make cluster-test: several nodes, a Ray with dashboard and jobs, long runs; many minutes
# make docs   the book, docs/_build/html/index.html
# make draw-test  the property tests with examples that are drawn anew; make coverage: which lines the tests reach
# All create .venv from constraints.txt when it is missing or older than the project's requirements.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

PYTEST_OPTIONS ?=

.PHONY: run digits test cluster-test draw-test coverage docs lint install clean
run: $(INSTALLED)
	@$(BIN)/fedpft run experiments/configs/quickstart.yaml

digits: $(INSTALLED)
	@$(BIN)/fedpft run experiments/configs/digits_vit.yaml

test: $(INSTALLED)
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 $(PYTEST_OPTIONS) tests/unit
	@$(BIN)/python -m pytest -n 2 --dist loadfile --durations 12 $(PYTEST_OPTIONS) tests/integration tests/simulation

cluster-test: $(INSTALLED)
	@$(BIN)/python -m pytest -m cluster --durations 0

draw-test: $(INSTALLED)
	@$(BIN)/python -m pytest --hypothesis-profile anew -m "hypothesis and not cluster" tests/unit

coverage: $(INSTALLED)
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --cov --cov-report= tests/unit
	@$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-append --cov-report=term:skip-covered \
		tests/integration tests/simulation

docs: $(VENV)/.docs
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs docs/_build/html
	@echo docs/_build/html/index.html

$(VENV)/.docs: $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

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
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[quickstart,sweep,board,dashboard,tensorboard,mlflow,trackio,privacy,quantize,dev]"
	@touch $@

clean:
	rm -rf $(VENV) build docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache
