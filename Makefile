# NEMO: every target sets up what it needs and says what it does.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-$(shell sha256sum requirements-dev.txt pyproject.toml 2>/dev/null | sha256sum | cut -c1-16)
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Hundreds of processes import the same modules: these are compiled once, also where the environment says otherwise.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo up test slow check bench docs recording supply lock clean

help: ## Show this help
	@echo "NEMO, a meta operating system for the IoT-edge-cloud continuum"; echo
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, this is {v.major}.{v.minor}: run make PYTHON=python3.11 …")'
	@[ -x $(BIN)/python ] || { echo "==> creating the virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV) || { echo "the venv module is missing: on Debian or Ubuntu run 'apt-get install python3-venv', then again"; exit 1; }; }
	@echo "==> installing pinned, hashed dependencies (requirements-dev.txt)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@echo "==> installing nemo itself (editable)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.installed-*; touch $@

demo: $(STAMP) ## NEMO's main job on this machine: five sites, a real application, failures, a migration (3 minutes)
	@$(BIN)/python -m examples.demo

up: $(STAMP) ## An interactive continuum that stays up until Ctrl-C
	@$(BIN)/python -m examples.demo --stay

test: $(STAMP) ## The tests (under 5 minutes on 2 cores)
	@echo "==> running the tests"
	@$(BIN)/python -m pytest -n 2 $(ARGS)

slow: $(STAMP) ## The long tests: faults by the hundred, a real kube-apiserver beside ours where KUBECONFIG names one
	@echo "==> running the long tests"
	@$(BIN)/python -m pytest -n 2 -m slow --timeout 900 $(ARGS)

check: $(STAMP) ## ruff, mypy --strict, import-linter, and the unit tests with warnings as errors
	@echo "==> ruff";           $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "==> mypy --strict";  $(BIN)/mypy
	@echo "==> import-linter";  $(BIN)/lint-imports
	@echo "==> unit tests";     $(BIN)/python -m pytest -n 2 -W error -m "not system and not slow" $(ARGS)

bench: $(STAMP) ## Benchmarks (ONLY=word picks some); tables here, JSON in bench/results
	@$(BIN)/python -m bench $(ONLY)

docs: $(STAMP) ## Regenerate the reference pages from the code
	@$(BIN)/python -m docs.generate

recording: $(STAMP) ## Record the demo as an SVG for the README
	@$(BIN)/python -m examples.demo --record docs/demo.svg

supply: $(STAMP) ## The bill of materials (build/sbom.cdx.json), and known vulnerabilities of what is pinned
	@echo "==> bill of materials"; $(BIN)/python -m tools.supply sbom
	@echo "==> advisories";        $(BIN)/python -m tools.supply audit

lock: ## Pin all dependencies with hashes again (needs uv)
	uv pip compile pyproject.toml --extra postgres --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -o requirements.txt
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -o requirements-dev.txt

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info
