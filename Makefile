# make train: trains a first network. make test: runs the tests. make plan-test: compiles for GPUs and
# TPUs that are not there. make docs: builds the site. Each first installs what it needs.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
DOCS_READY := .venv/docs-ready
PLAN_READY := .venv-plan/ready

.PHONY: train test test-all plan-test lint types format docs clean

train: $(READY)
	$(BIN)/python -m experiments.run --config=nfnet_digits --workdir=runs/nfnet_digits

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" nfnets_jax tests

test-all: $(READY)
	$(BIN)/python -m pytest -q -n 2 nfnets_jax tests

plan-test: $(PLAN_READY)
	.venv-plan/bin/python -m pytest -q -n 2 --dist worksteal tests/accelerators

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo site/index.html

$(READY): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Python 3.11 to 3.13 is needed, not " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $(DOCS_READY)

# The compilers for GPUs and TPUs, 8 GB, which no device is needed for.
$(PLAN_READY): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-plan
	.venv-plan/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[plan]'
	touch $(PLAN_READY)

clean:
	rm -rf .venv .venv-plan build dist site *.egg-info
