# `make help` lists what there is. Everything runs from the virtual environment .venv, which is made when it is missing.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
PYTHON ?= python3
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
ENVIRONMENT := $(VENV)/.complete

.PHONY: help demo test bench lint format lock tools clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: tools ## the main job on this machine, no cluster needed: a claim becomes a mounted volume and goes again
	@$(RUN) python -m tests.sandbox.demo

test: tools ## all tests: unit, node (real LVM, in User-mode Linux where the kernel has no device-mapper), cluster
	@$(RUN) pytest --numprocesses 2 --dist loadgroup

bench: tools ## measure: start of the callout, time from claim to mount
	@$(RUN) python -m tests.bench

lint: tools ## ruff, mypy --strict, import-linter
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(RUN) mypy
	@$(RUN) lint-imports --no-logo

format: tools ## write the code as ruff formats it
	@$(RUN) ruff format
	@$(RUN) ruff check --fix

lock: tools ## choose the dependencies anew and pin them in requirements.lock
	@$(VENV)/bin/pip install --quiet uv
	@$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra test --generate-hashes \
		--no-header --no-emit-index-url pyproject.toml --output-file requirements.lock

tools: $(ENVIRONMENT) ## install what is needed: Debian packages, the virtual environment, kubectl
	@tools/system-packages
	@$(VENV)/bin/python tools/kubectl.py

$(ENVIRONMENT): requirements.lock pyproject.toml tools/system-packages
	@tools/system-packages
	@echo "making the virtual environment $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
