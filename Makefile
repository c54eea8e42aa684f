# Everything goes through one virtual environment, made from requirements.lock on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test test-slow test-endurance lint docs bench

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13) and "Python 3.11 or 3.12 is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	awk '/^[^ ]/ { n++ } { print > ("$(VENV)/half" n % 2) }' requirements.lock  # side by side, since pip unpacks on one core
	printf '%s\n' 0 1 | xargs -I N -P 2 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --require-hashes -r $(VENV)/halfN
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores, where pip would use one; packages ship broken files too
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
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

# Into site/, with every warning an error; nothing is fetched.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup
	$(BIN)/python -m benchmarks
