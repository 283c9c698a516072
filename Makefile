# Two commands on a fresh machine with python3 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Everything here works without the Hugging Face Hub.
export HF_HUB_OFFLINE ?= 1

IMPORTS := "import bilinear_circuits as bc; bc.load_model(); bc.load_dictionaries(4)" \
	"import datasets, scipy.stats, pandas, sympy, pytest, beartype, playwright.sync_api, mkdocs.__main__, mkdocstrings_handlers.python"

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

# pip would compile all that it installs, on one core, of which a quarter is ever imported: what is, is compiled by two
# processes that import it, here and not at the start of each process that comes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "bilinear-circuits needs Python 3.11 or later, got %d.%d as $(PYTHON). Name another: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable ".[dev]"
	@printf '%s\n' $(IMPORTS) | PYTHONDONTWRITEBYTECODE= xargs -P 2 -I{} $(BIN)/python -c "{}" >/dev/null 2>&1 || true
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
