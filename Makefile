# make train: trains a first network. make test: runs the tests. make docs: builds the site.
# Each builds what it needs in .venv first.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
DOCS_READY := .venv/docs-ready

.PHONY: train test test-all lint types format docs clean

train: $(READY)
	$(BIN)/python -m experiments.run --config=nfnet_digits --workdir=runs/nfnet_digits

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" nfnets_jax tests

test-all: $(READY)
	$(BIN)/python -m pytest -q -n 2 nfnets_jax tests

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

clean:
	rm -rf .venv build dist site *.egg-info
