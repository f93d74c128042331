# make demo   a first segmentation on real images, from nothing, on CPU
# make test   everything the project promises, tested
# make test-slow   the tests that train for minutes
# make test-lowest   make test with the lowest versions that pyproject.toml allows; test-newest with the newest of today
# make check  style, types, and the floors of the house
# make docs   the documents as a site in build/site, every link checked
# make wheel  source archive and wheel in build/dist, the wheel's libraries checked by auditwheel
# make licenses  the licence of every installed package, and a CycloneDX bill of materials; fails on GPL and AGPL
#
# Each makes .venv and installs what it needs by itself. VENV=PATH uses another environment.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.statefield-installed

TOOLS := build/tools/bin

.PHONY: demo test test-slow test-lowest test-newest check bench docs wheel licenses install clean

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

# Old packages on new ones of others warn of what will go away.
GOING := -W ignore::DeprecationWarning -W ignore::PendingDeprecationWarning -W ignore::FutureWarning

# pip reads its constraints from the environment. Each makes a virtual environment of its own (6 GB) anew.
# PIP_PRE=1 make test-newest takes candidates for releases too.
test-lowest:
	rm -rf build/lowest && mkdir -p build/lowest
	$(PYTHON) scripts/lowest_versions.py > build/lowest/versions.txt
	PIP_CONSTRAINT="$(abspath build/lowest/versions.txt)" PYTEST_ADDOPTS="$(GOING)" $(MAKE) test VENV=build/lowest/venv

test-newest:
	rm -rf build/newest
	$(MAKE) test VENV=build/newest/venv

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

# The wheel is built from the archive, so the archive is seen to be whole. libgomp stays outside: torch brings the one to
# share, and two would be two pools of threads.
wheel: $(TOOLS)/.installed
	rm -rf build/dist build/raw
	$(TOOLS)/python -m build --outdir build/raw
	PATH="$(abspath $(TOOLS)):$$PATH" $(TOOLS)/python -m auditwheel repair --exclude libgomp.so.1 --wheel-dir build/dist build/raw/*.whl
	mv build/raw/*.tar.gz build/dist/
	@rm -rf build/raw; ls -l build/dist

licenses: install $(TOOLS)/.installed
	$(TOOLS)/pip-licenses --python $(BIN)/python --from mixed --order license --with-urls --format markdown \
	  --partial-match --fail-on "GPL;General Public License" --output-file build/licenses.md
	$(TOOLS)/cyclonedx-py environment --pyproject pyproject.toml --mc-type library --output-reproducible \
	  --output-file build/sbom.json $(BIN)/python

# Apart from the environment that they look at, so that they do not list themselves.
$(TOOLS)/.installed: pyproject.toml
	@test -x $(TOOLS)/python || $(PYTHON) -m venv build/tools
	@$(TOOLS)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['release'], sep='\n')" > build/tools/release.txt
	@$(TOOLS)/python -m pip install --quiet --requirement build/tools/release.txt
	@touch $@

clean:
	rm -rf $(VENV) build runs .pytest_cache .mypy_cache .ruff_cache
