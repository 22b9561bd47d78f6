# From a bare machine with Python 3.10+ and pip:
#
#   make demo        the environment, then the whole chain in minutes; ends with the path of a report
#   make test        the environment, then linters, types and tests (what .ci/run calls)
#   make check-full  the same with the slow tests (the demo, the README's commands, the notebooks), the site, the consumers and five minutes
#                    of fuzzing
#   make site        the pages of docs/ as a site in site/, built strictly
#   make consumers   round trips through programs that read our exports, in an environment of their own (.venv-consumers)
#   make clean       remove the environment and the caches; runs/ is yours and stays
#
# The environment is .venv in this folder; it is made once and brought up to date when pyproject.toml or constraints.txt change.
# make PYTHON=python3.12 ... picks the interpreter, JOBS=1 the number of test processes.

PYTHON ?= python3
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
VENV := .venv
CONSUMERS := .venv-consumers
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test lint site check-full consumers clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.ready
	$(BIN)/ccdiff demo --out runs/demo

test: lint
	$(PYTEST) -m "not slow" -n $(JOBS) --maxprocesses 8 --dist loadfile

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check-full: test consumers site
	$(PYTEST) -m slow
	@if $(BIN)/python -c 'import atheris' 2>/dev/null; then \
		$(BIN)/python -m tests.fuzz.fuzz_readers runs/fuzz -max_total_time=300 -timeout=30 -rss_limit_mb=3000; \
	else echo "no atheris for this Python: fuzzing left out"; fi

site: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

consumers: $(CONSUMERS)/.ready
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(CONSUMERS)/bin/python -m pytest -rs tests/export/test_consumers.py

$(CONSUMERS)/.ready: tests/export/consumers.txt $(VENV)/.ready-dev
	@# it sees what $(VENV) has (PyTorch is not fetched twice); what it installs itself comes first
	$(PYTHON) -m venv $(CONSUMERS) || { $(PYTHON) -m venv --clear --without-pip $(CONSUMERS) && $(PYTHON) -m pip --python $(CONSUMERS)/bin/python install pip; }
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $(CONSUMERS)/shared.pth
	mv $(CONSUMERS)/shared.pth "$$($(CONSUMERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(CONSUMERS)/bin/python -m pip install --disable-pip-version-check --requirement tests/export/consumers.txt
	@touch $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: ccdiff needs Python 3.10 or newer, $(PYTHON) is not: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@# Debian's Python has venv but not always ensurepip: then the system's pip fills the environment
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	@touch $@

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "Installing into $(VENV): the first time this fetches PyTorch and may take some minutes."
	$(INSTALL) --editable '.[cpu-detector,raster]'
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "Installing into $(VENV): the first time this fetches PyTorch and may take some minutes."
	$(INSTALL) --editable '.[cpu-detector,evaluate,fuzz,mmrotate,raster,lora,8bit,dev]'
	@touch $(VENV)/.ready $@

$(VENV)/.ready-docs: $(VENV)/.ready-dev
	$(INSTALL) --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(CONSUMERS) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find ccdiff_cli tests -name __pycache__ -type d -prune -exec rm -rf {} +
