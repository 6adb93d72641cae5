# Each target alone is enough on a fresh clone: it makes the virtual environment, installs and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CLIENTS := .venv-clients
SPREAD := -n auto --maxprocesses 4 --dist worksteal
REFERENCES := .venv-references
DOCS := .venv-docs

.PHONY: fuzz soak demo test slow distributed clients parity compare bench lint clean docs

demo: $(READY)
	$(BIN)/steprule demo

test: $(READY)
	OMP_WAIT_POLICY=passive $(BIN)/pytest $(SPREAD) --ignore=tests/distributed -m "not slow"

# What takes long and rarely breaks.
slow: $(READY)
	OMP_WAIT_POLICY=passive $(BIN)/pytest $(SPREAD) --ignore=tests/distributed -m slow

distributed: $(READY)
	$(BIN)/pytest tests/distributed

# Trainers and wrappers of others: 2.3 GB in a venv of their own, and some six minutes the first time; two after that.
clients: $(CLIENTS)/.ready
	OMP_NUM_THREADS=1 $(CLIENTS)/bin/pytest -q -W ignore tests/clients

# The documentation site, in build/docs/html; then it is looked through, and a notebook runs.
docs: $(DOCS)/.ready
	$(DOCS)/bin/python scripts/docs.py
	$(DOCS)/bin/pytest -q -W ignore tests/site

# Every algorithm beside the package that has it too; without the packages, make test runs the rest.
parity: $(REFERENCES)/.ready
	$(REFERENCES)/bin/pytest -q tests/parity

# Many algorithms on the same tasks: the section of docs/comparison.md, in half an hour on two cores.
compare: $(READY)
	$(BIN)/python benchmarks/compare.py

bench: $(READY)
	$(BIN)/python benchmarks/step_time.py

# A million steps, or STEPS: memory and time stay flat.
soak: $(READY)
	STEPS=$(or $(STEPS),1000000) $(BIN)/python benchmarks/soak.py

# Files and state dictionaries changed at random, for an hour or for SECONDS; SEED runs one case again.
SECONDS ?= 3600
SEED ?=
fuzz: $(READY)
	SECONDS=$(SECONDS) SEED=$(SEED) $(BIN)/pytest -q -s -x tests/fuzz/fuzz_saving.py

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

# torch comes first and pinned: asked for as a range it may bring another build. Which build the pin brings, for a CPU or
# with CUDA, is the index's to say.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(CLIENTS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(CLIENTS)/bin/pip install --quiet --constraint constraints.txt --editable '.[clients]'
	touch $@

$(REFERENCES)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(REFERENCES)
	$(REFERENCES)/bin/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(REFERENCES)/bin/pip install --quiet --constraint constraints.txt --editable '.[references]'
	touch $@

$(DOCS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(DOCS)/bin/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) $(CLIENTS) $(REFERENCES) $(DOCS) .pytest_cache .mypy_cache .ruff_cache .hypothesis
