# `make verify` and `make test` do all the set-up that they need; both are safe to repeat.
# The store that they use is $RAMET_HOME, by default .state/home in this checkout.

export RAMET_HOME ?= $(CURDIR)/.state/home
BIN := .venv/bin
PYTEST := $(BIN)/pytest
# An emulated guest keeps one CPU busy, so two tests run at a time. Those that need KVM come last, each of the two in a lab.
# make test-all TESTS=tests/lab runs a part of them: all take hours.
TESTS :=
GUESTS = $(PYTEST) -m vm -n 2 --dist worksteal --durations 15 --durations-min 20 $(TESTS)

.DEFAULT_GOAL := help
.PHONY: help verify test test-all check bench fuzz setup clean

help:           ## Say what there is to make
	@sed -n 's/^\([a-z-]*\): .*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

verify: setup   ## Prove on this host that forks are isolated
	$(BIN)/ramet verify

test: check image firecracker  ## Everything: lint, types, unit, contract, real guests (the long scenarios in bounded samples)
	$(GUESTS)

test-all: check image firecracker  ## The same, with the long scenarios at length
	$(GUESTS)

check: test-packages venv  ## Lint, types, layers, unit and contract tests: no root, no VM, a minute or two
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -m "not vm" -n auto

bench: setup test-packages  ## Time Ramet against the raw mechanism and its peers, in one run
	$(BIN)/python -m bench

fuzz: setup test-packages  ## Fuzz the agent's protocol for a while (FUZZ_SECONDS=60)
	tools/fuzz-agent $${FUZZ_SECONDS:-60}

setup: image    ## Debian packages, virtual environment, guest image

test-all: export RAMET_TEST_ALL = 1

# A Firecracker of your own is tested instead if RAMET_FIRECRACKER names it.
test test-all: export RAMET_FIRECRACKER ?= $(CURDIR)/.state/firecracker/firecracker

.PHONY: packages test-packages venv image firecracker
packages:
	@tools/setup packages

test-packages: packages
	@tools/setup test-packages

venv: packages
	@tools/setup venv

image: venv
	@tools/setup image

firecracker: venv
	@tools/setup firecracker

clean:          ## Remove what was built here, instances in .state/home included
	@if [ -x $(BIN)/ramet ] && [ -d .state/home ]; then RAMET_HOME=$(CURDIR)/.state/home $(BIN)/ramet rm --all --force; fi
	rm -rf .venv .state .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache artifacts
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
