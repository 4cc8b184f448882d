# make, make test, make demo: everything that they need is set up on the way (contrib/dev/setup).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PREFIX ?= /usr/local
DESTDIR ?=
# Arguments for pytest: make test T="-k console -x"
T ?=
# For make soak: how many steps in the lab, and what they are made from.
STEPS ?= 600
SEED ?= 1
# For make chaos.
ROUNDS ?= 25

python := .venv/bin/python

.PHONY: help
help: ## Show this help
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: setup
setup: ## Install what is missing: packages, virtual environment, guest kernel
	@contrib/dev/setup

.PHONY: demo
demo: setup ## Run the main job on a real guest and tell the story as it happens
	@$(python) contrib/demo/demo.py
	@contrib/demo/offer-gpu

.PHONY: demo-gpu
demo-gpu: setup ## Show a card being plugged and its VM starting, in a virtual machine
	@tests/lab/run --program contrib/demo/gpu.py

.PHONY: setup-tests
setup-tests: ## Install what else the tests start: clients that show a VM's screen
	@contrib/dev/setup --for-tests

.PHONY: test
test: setup-tests ## Run the linters and all tests (T="-k name" chooses)
	@$(python) -m pytest $(T)

.PHONY: lock
lock: ## Pin all libraries to the newest that fit, with hashes (contrib/lock)
	@contrib/dev/lock

.PHONY: lint
lint: setup ## Run the linters alone
	@$(python) -m pytest -q tests/test_linters.py $(T)

.PHONY: fuzz
fuzz: setup ## Search for a minute for input that the readers of VM files and QMP do not take
	@ARCSUP_FUZZ_SECONDS=30 $(python) -m pytest -q tests/test_fuzz.py $(T)

.PHONY: bench
bench: setup ## Measure arcsup beside bare QEMU; writes bench.json
	@$(python) -m tests.bench

.PHONY: lab
lab: setup ## Test against real kernel devices in a virtual machine
	@tests/lab/run $(if $(SUITE),--suite $(SUITE)) -- $(T)

.PHONY: lab-shell
lab-shell: setup ## Open a shell in that machine
	@tests/lab/run $(if $(SUITE),--suite $(SUITE)) --shell

.PHONY: soak
soak: setup ## Make random steps, in memory and on real devices (STEPS=600 SEED=1)
	@ARCSUP_SOAK=$$(( ($(STEPS) + 59) / 60 )) $(python) -m pytest -q tests/test_soak.py
	@tests/lab/run --deadline $$(( $(STEPS) * 20 + 900 )) -- \
		tests/lab/test_soak.py --soak-steps=$(STEPS) --soak-seed=$(SEED)

.PHONY: chaos
chaos: setup ## Bring random faults upon a daemon with real QEMUs (ROUNDS=25 SEED=1)
	@$(python) -m tests.chaos --rounds $(ROUNDS) --seed $(SEED)

.PHONY: install
install: ## Install for the system (PREFIX=/usr/local, DESTDIR=)
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' contrib/install

.PHONY: deb
deb: setup ## Build a Debian package into dist/
	@contrib/debian/build

.PHONY: test-deb
test-deb: deb ## Install, run, upgrade and remove it in a fresh Debian (SUITE=trixie)
	@tests/packages/run $(if $(SUITE),$(SUITE),trixie)

.PHONY: test-script
test-script: deb ## Run contrib/install.sh and a user's own daemon in a fresh Debian (SUITE=trixie)
	@tests/packages/run-install-script $(if $(SUITE),$(SUITE),trixie)

.PHONY: clean
clean: ## Remove everything made here; the cache in ~/.cache/arcsup stays
	@rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@rm -rf build dist bench.json
	@find . -name __pycache__ -prune -exec rm -rf {} +
