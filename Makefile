# Needs Python 3.11 or newer, git and make; all else is installed into .venv. Every target may be called again:
# it does what is missing and goes on where it was interrupted.

PYTHON ?= python3
JOBS ?= 2
PIP := .venv/bin/python -m pip install --quiet -c constraints.txt
LAB := $(CURDIR)/.venv/bin/lab
# plain `dvc repro` finds the `lab` of this environment; after `lab repro` it has nothing to do, and says so
DVC_REPRO := PATH="$(CURDIR)/.venv/bin:$$PATH" $(CURDIR)/.venv/bin/dvc repro --quiet
SMOKE := .lab/smoke

.PHONY: help run reference smoke ui test lint constraints clean

help: ## what can be made
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

run: .venv/installed ## install, run the default pipeline, compare its arms
	$(LAB) repro --jobs $(JOBS)
	$(DVC_REPRO)
	$(LAB) compare
	@echo "Curves, pictures and every run: make ui"

reference: .venv/installed ## the larger pipeline whose results are in the repository (hours)
	cd experiments/ablations/reference && $(LAB) repro --jobs $(JOBS) && $(DVC_REPRO) && $(LAB) compare

smoke: .venv/installed ## the whole pipeline in miniature, in a clone of its own under .lab
	rm -rf $(SMOKE) && git clone --quiet . $(SMOKE) && cp dvc.yaml $(SMOKE)
	sed 's|^root:.*|root: .|' experiments/ablations/smoke/params.yaml > $(SMOKE)/params.yaml
	cd $(SMOKE) && $(LAB) repro --jobs $(JOBS) && $(DVC_REPRO) && $(LAB) compare

ui: .venv/installed ## MLflow on this machine, with links to the arms
	$(LAB) ui

test: .venv/tested ## all tests, JOBS files at a time
	.venv/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

lint: .venv/linted ## ruff and mypy
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

constraints: .venv/linted ## pin the newest versions that pyproject.toml allows
	(echo '# Every version, direct and transitive. Made by `make constraints`; see [tool.uv] in pyproject.toml.' && \
	.venv/bin/uv pip compile --quiet pyproject.toml --all-extras --universal --python-version 3.11 --no-header \
	--no-annotate | sed 's/+cpu//') > constraints.new && mv constraints.new constraints.txt

clean: ## remove outputs and caches; DVC's cache and MLflow's records stay, so `make run` restores the outputs
	[ ! -d .lab ] || find .lab -mindepth 1 -maxdepth 1 ! -name tracking -exec rm -rf {} +
	rm -rf output .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find lab components tests -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d; name one: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing the lab into .venv; this takes a minute or two"
	$(PIP) -e . && touch $@

.venv/tested: .venv/installed
	$(PIP) -e '.[test]' && touch $@

.venv/linted: .venv/installed
	$(PIP) -e '.[dev]' && touch $@
