# `make demo` and `make test` need Python 3.11 or later with pip, and nothing else: they build .venv themselves.
# Another interpreter: make PYTHON=/path/to/python3.12 test

PYTHON ?= $(shell for each in python3 python3.13 python3.12 python3.11 python; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && break; done)
VENV := .venv
RUN := $(VENV)/bin/python -m

# A stamp says what is installed. It bears the folder's name, so that a .venv that came along with a copy is set up anew.
empty :=
HERE := $(subst /,-,$(subst $(empty) ,_,$(CURDIR)))
BASE := $(VENV)/backsight$(HERE)
DEV := $(BASE).dev
DOCS := $(BASE).docs
APP := $(BASE).app
# Without its interpreter, which may have been upgraded away, a .venv is worth nothing.
$(shell test -x $(VENV)/bin/python || rm -f $(BASE)*)

# For the lowest versions that pyproject.toml names, with the lowest Python.
LOWEST := .venv-lowest

# What is imported is compiled once and kept; where this is set, every process would compile torch and its kin anew: 13 s
# for 4 (pip leaves it to the first import, see below).
unexport PYTHONDONTWRITEBYTECODE

# Workers of one thread each: threads of torch and workers of pytest would fight over the same cores. WORKERS=0: none.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 MPLBACKEND=Agg $(RUN) pytest -n $(WORKERS) --dist worksteal

# Other kernels and other orders of adding, which other machines have: test-cpus runs under each of these, on its own.
# MKL_DYNAMIC=FALSE: more threads than cores, too. OMP_WAIT_POLICY: those that wait leave the cores to the others.
CPUS := ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 ONEDNN_MAX_CPU_ISA=SSE41 \
	MKL_CBWR=COMPATIBLE OMP_NUM_THREADS=2 OMP_NUM_THREADS=3
NUMBERS = $(sort $(shell grep -lE 'assert_rounding|assert_same|assert_close' tests/test_*.py) $(wildcard tests/test_experiments_*.py))

.PHONY: help setup demo app test test-all test-cpus test-lowest lint format docs clean distclean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:
	@echo 'make setup      build .venv; the command is then $(VENV)/bin/backsight'
	@echo 'make demo       train, reconstruct and measure on the shipped models; see demo/report.html'
	@echo 'make app        the web page on the shipped models; what it needs is installed by itself'
	@echo 'make test       style, types, import rules, and the tests that take seconds'
	@echo 'make test-all   the same, and the tests that take minutes'
	@echo 'make test-cpus  the tests that compare numbers, as other CPUs would compute them; half an hour'
	@echo 'make test-lowest  the tests of `make test`, on the lowest versions that pyproject.toml allows, in $(LOWEST)'
	@echo 'make format     bring the code into its style'
	@echo 'make docs       the documentation, in build/docs'
	@echo 'make clean      remove what was made here, but for .venv and runs/ (make distclean: .venv too)'

setup: $(BASE)

demo: $(BASE)
	$(RUN) backsight demo --out demo

app: $(APP)
	$(RUN) backsight app

test: lint
	$(PYTEST) -m 'not slow'

test-all: lint
	$(PYTEST)

test-cpus: $(DEV)
	@failed=; mkdir -p build; for each in $(CPUS); do \
		case $$each in OMP*) workers=1;; *) workers=$(WORKERS);; esac; \
		MPLBACKEND=Agg env OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive MKL_DYNAMIC=FALSE $$each $(RUN) pytest -n $$workers --dist worksteal -m 'not slow' $(NUMBERS) \
			>build/$$each.txt 2>&1 || { failed=1; cat build/$$each.txt; }; \
		echo "$$each: $$(tail -n 1 build/$$each.txt)"; \
	done; test -z "$$failed"

# What old libraries find deprecated in new ones beside them (matplotlib 3.9 and pyparsing 3.3) is no fault of ours.
test-lowest: $(LOWEST)/backsight$(HERE)
	$(subst $(VENV),$(LOWEST),$(PYTEST)) -m 'not slow' -W default::DeprecationWarning

lint: $(DEV)
	$(RUN) ruff check
	$(RUN) ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(RUN) pyright
	$(VENV)/bin/lint-imports --no-logo

format: $(DEV)
	$(RUN) ruff check --fix
	$(RUN) ruff format

docs: $(DOCS)
	$(RUN) sphinx -W --keep-going -b html -d build/doctrees docs build/docs

clean:
	rm -rf demo build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path './$(VENV)*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(LOWEST) src/*.egg-info

# ---- the virtual environment

# uv is quicker where it is there; what it cannot get (it does not read pip's settings), pip may.
# Compiling all of torch and transformers beforehand would take longer than the demo ever spends on it.
install = { command -v uv >/dev/null && uv pip install --python $(VENV)/bin/python -e '$(1)'; } \
	|| $(RUN) pip install --no-compile -e '$(1)'

$(BASE): pyproject.toml $(VENV)/bin/python
	@echo 'installing into $(VENV): the first time this takes some minutes, torch is large'
	$(call install,.)
	@touch '$@'

$(DEV): $(BASE)
	$(call install,.[dev])
	@touch '$@'

$(APP): $(BASE)
	$(call install,.[app])
	@touch '$@'

$(DOCS): $(BASE)
	$(call install,.[docs])
	@touch '$@'

# pip always takes the newest, so uv is installed too.
$(LOWEST)/backsight$(HERE): pyproject.toml
	python3.11 -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install uv
	$(LOWEST)/bin/python -m uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[dev]'
	@touch '$@'

# Some systems ship Python without ensurepip: then pip installs itself.
$(VENV)/bin/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'backsight needs Python 3.11 or later: make PYTHON=/path/to/python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV) || \
		{ $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $@ install pip; }
