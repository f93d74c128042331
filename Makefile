# make demo   a first segmentation on real images, from nothing, on CPU
# make test   everything the project promises, tested
# make test-slow   the tests that train for minutes
# make check  style, types, and the floors of the house
# make docs   the documents as a site in build/site, every link checked
#
# Each makes .venv and installs what it needs by itself. VENV=PATH uses another environment.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.statefield-installed

.PHONY: demo test test-slow check bench docs install clean

install: $(STAMP)

$(STAMP): pyproject.toml CMakeLists.txt $(wildcard statefield/kernels/native/*)
	@PYTHON="$(PYTHON)" sh ./scripts/install.sh "$(VENV)"
	@touch $@

demo: install
	$(BIN)/statefield medical train --config recipes/medical/demo.yaml --overwrite true

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"  # two workers of one thread: no core is fought for

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/statefield bench kernels --json benchmarks/results/kernels_cpu.json

# The site needs MkDocs alone: no torch, and not the package.
docs: $(VENV)/.docs-installed
	$(BIN)/mkdocs build --strict

$(VENV)/.docs-installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" > $(VENV)/docs.txt
	@$(BIN)/python -m pip install --quiet --requirement $(VENV)/docs.txt
	@touch $@

clean:
	rm -rf $(VENV) build runs .pytest_cache .mypy_cache .ruff_cache
