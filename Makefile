# `make help` lists the targets. Every target sets up its own environment in .venv first.

PYTHON   ?= python3
VENV     ?= .venv
WORKERS  ?= 2
EXAMPLES ?= 200

BIN   := $(VENV)/bin
READY := $(VENV)/.ready
PIP   := $(BIN)/python -m pip --disable-pip-version-check --no-input

# Nothing outside the environment may shadow what is installed in it.
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-all lint types format laws certificates bench-cpu bench-gpu \
        bench-traffic kernels-report docs pictures clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1|/p' Makefile | while IFS='|' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done
	@echo "  variables: PYTHON=$(PYTHON) VENV=$(VENV) WORKERS=$(WORKERS) EXAMPLES=$(EXAMPLES) ARGS=options of a benchmark"

setup: $(READY) ## build .venv from the pins in constraints.txt

# The pins hold for the build of hyperconn too: it runs in this environment, without a second, unpinned one.
$(READY): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "error: there is no '$(PYTHON)'; name a Python >= 3.10: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: hyperconn needs Python >= 3.10, '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1); name another one: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV) || \
		{ echo "error: '$(PYTHON)' cannot make virtual environments (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PIP) install -c constraints.txt pip setuptools
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[all]'
	$(PIP) check
	@$(BIN)/python -c 'import platform, torch, hyperconn; print("ready: hyperconn", hyperconn.__version__, "on torch", torch.__version__, "and Python", platform.python_version())'
	@touch $@

demo: $(READY) ## train one small model under every published scheme and compare them: demo-report/
	$(BIN)/hyperconn compare --demo --out demo-report $(ARGS)

test: lint types ## lint, types, then the tests: unit, law, doctest
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-all: test bench-traffic ## also the site, an installed plugin, every kernel size and dtype, its bytes, compiled at n = 4
	$(BIN)/python benchmarks/kernels_report.py --workers $(WORKERS) --n 4 --target cuda90 gfx942
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m exhaustive

lint: $(READY) ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not see through the folder mapping of an editable install: it reads an installed copy. setuptools would
# reuse files of an earlier build there, deleted ones included, so that build goes first.
types: $(READY) ## static types
	rm -rf build
	$(PIP) install --quiet --no-deps --no-build-isolation --no-compile --target build/types .
	MYPYPATH=build/types $(BIN)/python -m mypy -p hyperconn
	MYPYPATH=build/types $(BIN)/python -m mypy tests/typed_usage.py

format: $(READY) ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

laws: $(READY) ## check every law of every part on EXAMPLES examples
	$(BIN)/hyperconn verify --all --examples $(EXAMPLES) --jobs $(WORKERS)

certificates: $(READY) ## the same, and write what was found into the pages of docs/manifolds
	$(BIN)/hyperconn verify --all --examples $(EXAMPLES) --jobs $(WORKERS) --pages docs/manifolds

bench-cpu: $(READY) ## time a layer on the CPU against the plain residual and other implementations, with bars
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[peers]'
	$(BIN)/python benchmarks/cpu.py $(ARGS)

bench-gpu: $(READY) ## prove every kernel on the GPU, time layers there, append to benchmarks/results; no GPU, nothing done
	$(BIN)/python benchmarks/gpu.py $(ARGS)

bench-traffic: $(READY) ## bytes that a layer moves, counted in Triton's interpreter, and the bars they have to meet
	TRITON_INTERPRET=1 $(BIN)/python benchmarks/traffic.py

kernels-report: $(READY) ## compile every kernel for every GPU target, none needed: registers, shared memory, spills
	$(BIN)/python benchmarks/kernels_report.py --workers $(WORKERS)

docs: $(READY) ## build the site, strictly: any warning, broken link or anchor fails; result in site/
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: the site needs Python >= 3.11: make docs PYTHON=/path/to/python3 VENV=.venv-docs" >&2; exit 1; }
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs site
	@echo "built: site/index.html"

pictures: $(READY) ## draw the pictures of the manifolds: docs/images/manifolds/
	$(BIN)/python docs/pictures.py

clean: ## delete the environment, builds and caches; reports and runs stay
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
