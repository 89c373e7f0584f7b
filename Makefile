# `make help` lists what there is. Everything lives in .venv; nothing is installed elsewhere but what `make test` says.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.ONESHELL:

VENV := .venv
PY := $(VENV)/bin/python
# Tests start Python many hundred times; without kept bytecode each would compile all modules.
export PYTHONDONTWRITEBYTECODE :=
SEEDS ?= 500
MINUTES ?= 60
SOURCES := boss worker ecloud datastore sim migrations docs bench tests admin.py push_tasks.py settings.example.py

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*##/:/' | awk -F: '{printf "make %-11s %s\n", $$1, $$2}'

# --- environment ---------------------------------------------------------------------------------

$(VENV)/bin/python:
	@for python in $${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10; do
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then found=$$python; break; fi
	done
	if [ -z "$${found:-}" ]; then
	  echo "make: no Python >= 3.10 with venv is found: install one (Debian, Ubuntu: apt install python3 python3-venv), or say PYTHON=..." >&2
	  exit 1
	fi
	echo "making .venv with $$("$$found" --version)"
	"$$found" -m venv $(VENV)

# The lock files name one version of each package, and the hashes of its files: pip installs nothing else.
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes

$(VENV)/.runtime: requirements.lock | $(VENV)/bin/python
	@echo "installing what ECLOUD needs into .venv"
	$(PIP_INSTALL) -r requirements.lock
	touch $@

$(VENV)/.development: requirements-dev.lock requirements.lock | $(VENV)/bin/python
	@echo "installing what tests and checks need into .venv"
	$(PIP_INSTALL) -r requirements-dev.lock
	touch $@ $(VENV)/.runtime

install: $(VENV)/.runtime ## what ECLOUD needs, into .venv

# One file for every Python that pyproject.toml allows. Versions that still fit stay as they are, unless UPGRADE=1.
LOCK_TOOLS := $(VENV)/lock-tools
COMPILE := $(LOCK_TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes \
  --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

lock: | $(VENV)/bin/python ## write requirements*.lock again after a change of requirements*.txt; newer versions with UPGRADE=1
	@[ -x $(LOCK_TOOLS)/bin/uv ] || { $(PY) -m venv $(LOCK_TOOLS); $(LOCK_TOOLS)/bin/python -m pip install --quiet uv; }
	$(COMPILE) requirements-dev.txt -o requirements-dev.lock
	$(COMPILE) requirements.txt -c requirements-dev.lock -o requirements.lock
	echo "lock: look at git diff, then make test"

services: ## Mosquitto, MariaDB, sshd and rsync for the tests, by apt where that is allowed
	@tests/install_services.sh

# --- using it ------------------------------------------------------------------------------------

demo: $(VENV)/.runtime ## a real pipeline on a cluster of its own, here, in seconds
	@$(PY) push_tasks.py examples/tasks.json --local --wait --datastore demo-results
	echo
	cat demo-results/final/report.txt

# --- working on it -------------------------------------------------------------------------------

check: $(VENV)/.development ## format, lint, types, layers, drift of generated docs
	@$(VENV)/bin/ruff format --check --quiet . || { echo "make format fixes it" >&2; exit 1; }
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/mypy --no-error-summary
	$(VENV)/bin/lint-imports --no-logo > .importlint.log || { cat .importlint.log; rm -f .importlint.log; exit 1; }
	rm -f .importlint.log
	$(PY) docs/generate.py --check
	echo "check: all is well"

format: $(VENV)/.development ## rewrite the code in its format
	@$(VENV)/bin/ruff check --quiet --fix . || true
	$(VENV)/bin/ruff format --quiet .

test-fast: $(VENV)/.development ## cores, properties, simulation, contracts that need no server: about a minute
	@$(PY) -m pytest -q -n 2 --dist worksteal -m "not long" -k "not mariadb" tests/unit tests/properties tests/sim \
	  tests/contract/test_store.py

test: $(VENV)/.development services ## every test but the long ones (installs what is missing)
	@$(PY) -m pytest -q -n 4 --dist worksteal -m "not long"

test-long: $(VENV)/.development services ## the long ones
	@$(PY) -m pytest -q -m long --timeout 1800

bench: $(VENV)/.development services ## how fast, side by side with peers
	@$(PY) -m bench

bench-peers: $(VENV)/.development services ## the same work by Ray, Dask, Celery, HyperQueue and Parsl, in turns
	@$(PY) -m bench.peers

bench-scale: $(VENV)/.development services ## how cost grows with tasks and workers: a table and a plot; arrays of a million
	@$(PY) -m bench.scale --plot docs/scale.png
	@$(PY) -m bench arrays

bench-scaling: $(VENV)/.development ## GRAPHS="FILE..." our scaling beside fixed fleets and queue depth, simulated
	@$(PY) -m bench.scaling $(GRAPHS)

sim: $(VENV)/.development ## SEEDS=N new scenarios of the simulation; the same ones again with FIRST=SEED
	@$(PY) -m sim --seeds $(SEEDS) $(if $(FIRST),--first $(FIRST))

sim-mutants: $(VENV)/.development ## switch protections off, one at a time; the simulation must find each
	@$(PY) -m sim --mutants

$(VENV)/bin/mutmut: | $(VENV)/.development
	@$(PY) -m pip install --quiet --disable-pip-version-check 'mutmut>=3.8,<4'

mutants: $(VENV)/bin/mutmut ## MINUTES=60 change the two cores in small ways; the tests that notice, and what nobody notices
	@nice -n 19 timeout --signal INT $(MINUTES)m $(VENV)/bin/mutmut run || echo "not all were tried: make mutants again continues"
	$(VENV)/bin/mutmut results | grep ': survived' || true
	$(VENV)/bin/mutmut results --all true | sed 's/.*: //' | sort | uniq -c

chaos: $(VENV)/.development services ## CHAOS_SEED=N the terrible day, all parts of a real cluster killed and frozen
	@$(PY) -m pytest -q tests/chaos -m long --timeout 1800

docs: $(VENV)/.runtime ## draw the generated pages again
	@$(PY) docs/generate.py

clean: ## remove .venv, caches and the demo's results
	@rm -rf $(VENV) .peers demo-results mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help install lock services demo check format test test-long bench bench-peers bench-scale bench-scaling chaos sim sim-mutants mutants docs clean
