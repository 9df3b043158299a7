# make demo   distil real cells end to end (or: make demo DATA=atlas.h5ad LABEL=cell_type)
# make test   all tests, the kernels interpreted and built ahead of time among them
# Both make .venv on first use; PYTHON chooses the interpreter (3.11 or newer).

PYTHON ?= python3
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

# The default data: 700 PBMCs of 10 types that ship inside scanpy, log1p values in .raw.
DATA ?=
LABEL ?= bulk_labels
EXPRESSION ?= $(if $(DATA),counts,log1p)
OPTIONS ?=

.PHONY: demo test test-oldest lint bench sanitize fuzz clean
.DELETE_ON_ERROR:

$(VENV)/.demo: pyproject.toml setup.py constraints.txt scripts/system-libraries.sh $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit("scdd needs Python 3.11 or newer; call make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	@echo "installing into $(VENV) ..."
	@scripts/system-libraries.sh
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@$(PIP) torch -e '.[dev]'
	@touch $@

demo: $(VENV)/.demo
	@mkdir -p demo
	@data="$(DATA)"; test -n "$$data" || data=$$($(BIN)/python -c 'import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec("scanpy").origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad")'); \
	$(BIN)/scdd distill "$$data" --label "$(LABEL)" --expression $(EXPRESSION) --cells-per-class 10 \
	  --out demo/distilled.h5ad --report demo/report.html $(OPTIONS)

test: $(VENV)/.dev
	@$(BIN)/python -m pytest $(PYTEST_OPTIONS)
	@TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -P -m pytest tests/kernels -m interpret -q -n $(JOBS)
	@OMP_NUM_THREADS=1 $(BIN)/python -P -m pytest tests/test_aot.py tests/test_launches.py -m aot -q -n $(JOBS)

# The kernels on the oldest Triton that is supported: its interpreter, and builds for one architecture.
OLDEST := .venv-oldest
$(OLDEST)/.installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	@echo "installing the oldest Triton into $(OLDEST) ..."
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet 'torch==2.13.0' 'triton==3.6.0' 'numpy<2.4' pytest pytest-xdist hypothesis
	@$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -e .
	@touch $@

test-oldest: $(OLDEST)/.installed
	@TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(OLDEST)/bin/python -P -m pytest tests/kernels --confcutdir=tests/kernels -m interpret -q -n $(JOBS)
	@OMP_NUM_THREADS=1 $(OLDEST)/bin/python -P -m pytest tests/test_aot.py tests/test_launches.py --noconftest -m aot -q -k "sm90 or launch" -n $(JOBS)

lint: $(VENV)/.dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/.dev
	@$(BIN)/python bench/bench_loader.py
	@$(BIN)/python bench/run.py

$(VENV)/.sanitize: $(VENV)/.dev
	@$(PIP) $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')
	@touch $@

# the tests that reach C++, under the address and undefined-behaviour sanitizers, then under the thread sanitizer
sanitize: $(VENV)/.sanitize
	@PYTHON=$(BIN)/python scripts/sanitize.sh $(SANITIZE)

# FUZZ=300 gives every decoder five minutes of damaged input
fuzz:
	@fuzz/run.sh $(or $(FUZZ),60)

clean:
	rm -rf $(VENV) $(OLDEST) build demo .pytest_cache .ruff_cache .mypy_cache *.egg-info
