# Everything goes through one virtual environment, made from locks/development.lock on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile
UV := $(BIN)/uv pip install --quiet --system-certs --no-deps --python $(BIN)/python

export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test test-slow test-endurance lint policy docs bench locks

setup: $(STAMP)

$(STAMP): locks/development.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	awk '/^uv==/ { uv = 1; print; next } /^[^ ]/ { uv = 0 } uv' locks/development.lock > $(VENV)/uv.lock
	$(PIP) --require-hashes -r $(VENV)/uv.lock  # uv unpacks on all cores; where it reaches no index, pip may, which has settings of its own
	$(UV) --require-hashes -r locks/development.lock || $(PIP) --require-hashes -r locks/development.lock
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores, where pip would use one; packages ship broken files too
	$(PIP) --no-build-isolation -e .
	touch $@

demo: setup
	mmrl flow adapt

# Two processes of one thread each; a file's tests stay together, since they share what is dear to set up. Files come in
# the order of tests/conftest.py.
test test-slow test-endurance: export OMP_NUM_THREADS ?= 1
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# Every process imports every file that it is given.
WITH_SLOW = $(sort $(shell grep -rl --include='test_*.py' 'mark\.slow' tests))

test: setup
	$(PYTEST) -m "not slow" --ignore=tests/slow

test-slow: setup
	$(PYTEST) -m "slow and not endurance" $(WITH_SLOW)

# Before a release: long sweeps of what `make test-slow` does once of each kind.
test-endurance: setup
	$(PYTEST) -m endurance $(WITH_SLOW)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

# What runs on servers, by tools whose versions the project's own packages do not agree with.
POLICY := $(VENV)/policy
policy: $(POLICY)/.installed
	$(POLICY)/bin/python infra/policy/check.py

$(POLICY)/.installed: $(STAMP) locks/policy.lock
	$(PYTHON) -m venv --without-pip --clear $(POLICY)
	$(BIN)/uv pip install --quiet --system-certs --no-deps --python $(POLICY)/bin/python --require-hashes -r locks/policy.lock \
	  || $(PIP:install=--python $(POLICY)/bin/python install) --require-hashes -r locks/policy.lock
	touch $@

# Into site/, with every warning an error; nothing is fetched.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Versions that are locked stay; `rm locks/*` first, or an edit of a file, takes newer ones.
COMPILE := $(BIN)/uv pip compile --quiet --system-certs --universal --python-version 3.11 --generate-hashes --no-annotate --no-header
LOCK := $(COMPILE) pyproject.toml
locks: setup
	$(LOCK) --extra dev --group clients -o locks/development.lock
	cp locks/development.lock locks/core.lock
	$(LOCK) -o locks/core.lock
	cp locks/development.lock locks/pipeline.lock
	$(LOCK) --extra pipeline --extra serve --extra postgres --extra s3 --extra server --extra heif --extra transformers -o locks/pipeline.lock
	$(COMPILE) infra/policy/requirements.txt -o locks/policy.lock

bench: setup
	$(BIN)/python -m benchmarks
