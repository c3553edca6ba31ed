# `make help` lists what there is. Everything runs from the virtual environment .venv, which is made when it is missing.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
PYTHON ?= python3
# Bytecode is kept, whatever the environment says: else each process of a test run compiles all of it anew.
RUN := PYTHONDONTWRITEBYTECODE= PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
ENVIRONMENT := $(VENV)/.complete
LIMITS = $(if $(SEED),--seed $(SEED)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(MINUTES),--minutes $(MINUTES))
CALLOUT = $(MAKE) --silent --directory flexdriver/native PYTHON=$(CURDIR)/$(VENV)/bin/python

.PHONY: help demo test test-driver torture databases bench bench-scale callout callout-here image krew lint format lock stubs docs man site tools clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-21s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: tools callout-here ## the main job on this machine, no cluster needed: a claim becomes a mounted volume and goes again
	@$(RUN) python -m tests.sandbox.demo

test: tools callout-here ## all tests: unit, node (real LVM, in User-mode Linux where the kernel has no device-mapper), cluster
	@$(RUN) pytest --numprocesses 3 --dist loadgroup

test-driver: tools callout-here ## all cluster tests with volumes of one driver only: VOLUME_SOURCE=flexVolume (or csi)
	@$(RUN) pytest tests/cluster --numprocesses 3 --dist loadgroup --volume-source $(or $(VOLUME_SOURCE),flexVolume)

torture: tools callout-here ## kill, cut the power and refuse at random; SEED, ROUNDS, MINUTES: see docs/reliability.md
	@for backend in loop folder lvm; do $(RUN) python -m tests.torture kills --backend $$backend $(LIMITS) || exit; done
	@for campaign in growth powercuts faults clusterkills apifaults; do \
		$(RUN) python -m tests.torture $$campaign $(LIMITS) || exit; \
	done

databases: tools callout-here ## try databases on volumes: killed, copied, filled and grown while they write; installs them with apt
	@tools/system-packages databases
	@$(RUN) python -m tests.databases $(DATABASES)

bench: tools callout-here ## measure: start of the callout, idle memory, time from claim to mount, erasing, snapshots
	@$(RUN) python -m tests.bench

bench-scale: tools callout-here ## measure what grows: 50,000 PersistentVolumes of 1,000 nodes, 2,000 volumes of one node; a quarter of an hour
	@$(RUN) python -m tests.bench.scale
	@$(RUN) python -m tests.bench.node
	@$(RUN) python -m tests.bench.lvm
	@$(RUN) python -m tests.bench.figures

callout: tools ## build the executable that the kubelet calls, for amd64 and arm64, and try the one that is not this machine's
	@tools/system-packages callout
	@$(CALLOUT)
	@$(RUN) pytest --quiet tests/unit/flexdriver/test_callout.py tests/unit/flexdriver/test_late.py -k native \
		--machine $(if $(filter x86_64,$(shell uname -m)),aarch64,x86_64)

image: tools ## build the image without a container engine, as build/image.tar, and run every program in it; as root
	@tools/system-packages image
	@mkdir -p build
	@tools/build-image build/image.tar
	@$(RUN) pytest --quiet tests/image --image build/image.tar

callout-here: tools
	@$(CALLOUT) build/callout.$(shell uname -m)

lint: tools ## ruff, mypy --strict, import-linter
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(RUN) mypy
	@$(RUN) lint-imports --no-logo

format: tools ## write the code as ruff formats it
	@$(RUN) ruff format
	@$(RUN) ruff check --fix

lock: tools ## choose the dependencies anew and pin them: requirements.lock, and those of the image in deploy/
	@$(VENV)/bin/pip install --quiet uv
	@$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra test --generate-hashes \
		--no-header --no-emit-index-url pyproject.toml --output-file requirements.lock
	@$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --extra image --generate-hashes \
		--no-header --no-emit-index-url --constraint requirements.lock pyproject.toml --output-file deploy/requirements.lock
	@printf 'grpcio-tools\ngrpclib\n' | $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-header --no-emit-index-url --constraint requirements.lock - --output-file tools/stubs.lock
	@printf 'mkdocs-material\n' | $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-header --no-emit-index-url - --output-file tools/docs.lock

stubs: ## generate the Python of the CSI protocols from daemon/csi/proto/*.proto, with the generators of tools/stubs.lock
	@$(PYTHON) -m venv build/stubs
	@build/stubs/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement tools/stubs.lock
	@PATH="$(CURDIR)/build/stubs/bin:$$PATH" build/stubs/bin/python -m grpc_tools.protoc --proto_path=. \
		--python_out=. --pyi_out=. --grpclib_python_out=. daemon/csi/proto/*.proto

docs: tools ## write docs/metrics.md and the schemas of configuration files, daemon/schemas, from the code
	@$(RUN) python -m tools.metricspage > docs/metrics.md.new && mv docs/metrics.md.new docs/metrics.md
	@$(RUN) python -m tools.schemas daemon/schemas

site: ## build the site of the docs in build/site, with the generator of tools/docs.lock; a broken link ends it
	@$(PYTHON) -m venv build/docs
	@build/docs/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement tools/docs.lock
	@rm -rf build/pages build/site && mkdir -p build/pages/deploy
	@cp *.md LICENSE build/pages && cp -r docs build/pages && cp -rL deploy/samples deploy/schemas build/pages/deploy
	@NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --quiet --strict
	@echo "the site is in build/site"

man: tools ## write the manual page build/elastic-local.1
	@mkdir -p build
	@$(RUN) python -m tools.manpage > build/elastic-local.1

krew: tools ## build the kubectl plugin for krew in build/krew: an archive, and a manifest with REPOSITORY, or RELEASE_URL
	@$(RUN) python -m tools.krew build/krew "$$(tools/version)" "$(or $(REPOSITORY),https://example.com/elastic-local)" \
		"$(RELEASE_URL)"

tools: $(ENVIRONMENT) ## install what is needed: Debian packages, the virtual environment, kubectl
	@tools/system-packages
	@$(VENV)/bin/python tools/kubectl.py

$(ENVIRONMENT): requirements.lock pyproject.toml setup.py tools/system-packages
	@tools/system-packages
	@echo "making the virtual environment $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement tools/pip.lock
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements.lock
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

include deploy/targets.mk

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) build flexdriver/native/build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
