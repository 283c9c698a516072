# Two commands on a fresh machine with python3 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Everything here works without the Hugging Face Hub.
export HF_HUB_OFFLINE ?= 1

.PHONY: help install demo test fast test-all wheel docs bench bench-gpu lint type check clean

help:
	@echo "make demo      find the negation circuit of the shipped model: out/negation/report.html"
	@echo "make test      lint, types and the fast tests"
	@echo "make fast      the fast tests alone"
	@echo "make test-all  the slow tests too"
	@echo "make wheel     build the wheel, install it and run it away from this folder"
	@echo "make docs      build the documents as a site: out/site/index.html"
	@echo "make bench     time the sweep over all interactions against the reference: out/bench"
	@echo "make bench-gpu the same on an NVIDIA GPU"
	@echo "make install   only set up $(VENV)"

install: $(VENV)/.installed

# Compiled by all cores afterwards: pip does it on one. Files that are templates do not compile, and need not.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "bilinear-circuits needs Python 3.11 or later, got %d.%d as $(PYTHON). Name another: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable ".[dev]"
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true
	@touch $@

demo: install
	$(BIN)/bilinear-circuits circuits sentiment_negation --out out/negation

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: install
	$(BIN)/mypy

check: lint type

# The check goes by on one core, beside the tests.
test: install
	@$(MAKE) --no-print-directory -j 2 check fast

fast: install
	$(BIN)/pytest -n auto --dist loadfile

# Built offline by the setuptools of .venv, installed in an environment of its own, run in an empty folder.
wheel: install
	$(BIN)/pytest -n 0 -m slow tests/test_wheel.py

# Every warning, such as a link that leads nowhere, is an error.
docs: export NO_MKDOCS_2_WARNING = 1
docs: install
	$(BIN)/mkdocs build --strict --quiet

test-all: install check
	$(BIN)/pytest -n auto --dist loadfile -m "not gpu"

bench: install
	$(BIN)/python benchmarks/sweep.py --full --out out/bench

bench-gpu: install
	$(BIN)/python benchmarks/sweep.py --full --device cuda --task topk spectra --out out/bench-gpu

clean:
	rm -rf $(VENV) out build *.egg-info
