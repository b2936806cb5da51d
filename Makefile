# Two commands need nothing but Python >= 3.11 and make: `make serve` and `make test`.
PYTHON ?= python3
ADDRESS ?= 127.0.0.1:9000
VENV := .venv-$(notdir $(PYTHON))
BIN := $(VENV)/bin
TEST ?=
BENCH ?=
export PYTHONPATH := src
# The tests start a thousand programs: where nothing may be kept, each compiles all it imports.
unexport PYTHONDONTWRITEBYTECODE
# tests/unit computes, the others wait as much. A process that is done takes over from another.
AT_ONCE = $(shell expr $$(nproc) \* $(if $(filter tests/unit%,$(TEST)),1,2))
PYTEST = -m pytest -q -n $(AT_ONCE) --dist worksteal
SOAK ?= 1
ALL_TESTS := tests/unit (no process), tests/edges (one socket, pipe or file), tests/processes (real servers): \
	about seven minutes on two CPUs. TEST=tests/unit: half a minute

.DEFAULT_GOAL := help
.PHONY: help serve env test check soak format fuzz prove bench bench-quick bench-lifecycle bench-memory bench-instructions clean

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST) | awk -F': ' '{printf "make %-16s %s\n", $$1, $$2}'

serve: ## run the echo example on 127.0.0.1:9000, with nothing to install
	@echo "echo on $(ADDRESS). Talk to it: nc $(subst :, ,$(ADDRESS))   (or: curl telnet://$(ADDRESS))"
	@echo "Stop it: Ctrl-C. Kill a worker and see it replaced: kill -9 PID"
	@exec $(PYTHON) examples/echo.py $(ADDRESS)

$(BIN)/.made: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, not " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group test --editable .
	@touch $@

$(BIN)/.dev: $(BIN)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@

env: $(BIN)/.made

test: $(BIN)/.made ## make an environment and pass the tests; TEST=... chooses, PYTHON=... too
	$(info $(or $(TEST),$(ALL_TESTS)))
	@# `make check` has the type checkers that the one left out asks.
	@$(BIN)/python $(PYTEST) --ignore=tests/processes/test_typing.py $(TEST)

check: $(BIN)/.dev ## all that is asked of a change: format, lint, types, tests with coverage
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	rm -f .coverage .coverage.*
	@# Measured, a process takes several times as long, and coverage writes at its end. What
	@# failed is shown, and asked again, unmeasured.
	$(BIN)/coverage run $(PYTEST) || \
		$(BIN)/python $(PYTEST) --last-failed --last-failed-no-failures none
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

soak: $(BIN)/.made ## what the tests do in seconds, for minutes, with its figures; SOAK=0.1 for a tenth
	SOAK=$(SOAK) $(BIN)/python $(PYTEST) -m soak -rP --timeout 1800

format: $(BIN)/.dev ## put the code in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fuzz: $(BIN)/.made ## 100,000 mutated HTTP requests, judged by h11 as well; SEED=... for others
	MUTATIONS=100000 SOAK=1 $(BIN)/python -m pytest --timeout 3600 -n 0 --hypothesis-profile=default \
		tests/edges/test_wire_h11.py tests/unit/test_wire.py tests/edges/test_proxy.py \
		tests/unit/test_stats.py

prove: ## the five promises, live, in 30 seconds
	@exec $(PYTHON) -m benchmarks.prove

$(BIN)/.peers: $(BIN)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check bjoern 2>/dev/null  # needs libev
	@touch $@

bench: $(BIN)/.peers ## everybody side by side, in 12 minutes; BENCH='--only E1,H1' chooses
	$(BIN)/python -m benchmarks $(BENCH)

bench-quick: $(BIN)/.peers ## the targets only, roughly, in 2 minutes
	$(BIN)/python -m benchmarks --quick $(BENCH)

bench-lifecycle: ## how long starting, stopping and replacing take, and what a reload costs clients
	$(PYTHON) -m benchmarks.lifecycle

bench-memory: ## what workers share of what the master has loaded
	$(PYTHON) -m benchmarks.memory

bench-instructions: ## what a request costs a worker in instructions, by callgrind, against bars
	$(PYTHON) -m benchmarks.instructions $(BENCH)

clean: ## forget what was made here
	rm -rf .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* dist
