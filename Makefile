# Two commands for a newcomer: `make demo` and `make test`. Everything runs inside .venv, made on first use.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q

FLOWER := .venv-flower
FLOWER_STAMP := $(FLOWER)/.installed
FLOWER_PIP := $(FLOWER)/bin/python -m pip --disable-pip-version-check -q

DOCS_STAMP := $(VENV)/.docs-installed

RELEASE := .venv-release
RELEASE_STAMP := $(RELEASE)/.installed

export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1

.PHONY: demo demo-flower test test-flower test-wheel dist audit-dependencies check mutants audit-self-test bench utility docs clean setup
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt demo-packages.txt
	@echo "Setting up $(VENV) (once; a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch==2.13.0
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install --no-deps -r demo-packages.txt
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/fedtree-secure demo --out runs/demo

demo-flower: $(FLOWER_STAMP)
	rm -rf runs/demo-flower
	$(FLOWER_PIP) install --no-deps -r demo-packages.txt
	$(FLOWER)/bin/python examples/deploy.py runs/demo-flower --more eyes lungs

# Two workers of one thread each: more threads than cores wait for one another.
test: export OMP_NUM_THREADS = 1
test: export OPENBLAS_NUM_THREADS = 1
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term

# Flower's dependencies exclude some of ours, so it has an environment of its own.
$(FLOWER_STAMP): pyproject.toml constraints-flower.txt
	@echo "Setting up $(FLOWER) (once; a few minutes)"
	$(PYTHON) -m venv $(FLOWER)
	$(FLOWER_PIP) install -c constraints-flower.txt torch==2.13.0
	$(FLOWER_PIP) install -c constraints-flower.txt -e '.[flower]' pytest pytest-xdist
	@touch $(FLOWER_STAMP)

test-flower: $(FLOWER_STAMP)
	$(FLOWER)/bin/python -m pytest -n 2 --dist loadscope tests/flower

# Tools that build and check a release; nothing of ours is installed there.
$(RELEASE_STAMP): constraints-release.txt
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip --disable-pip-version-check -q install -c constraints-release.txt build hatchling twine uv pip-audit
	@touch $(RELEASE_STAMP)

dist: $(RELEASE_STAMP)
	rm -rf dist
	$(RELEASE)/bin/python -m build --no-isolation --outdir dist
	$(RELEASE)/bin/python -m twine check --strict dist/*

# Installs the wheel outside of the checkout and walks from CSVs to a gate.
test-wheel: $(STAMP) dist
	$(BIN)/python -m pytest -m wheel -n 0 tests/test_wheel.py

requirements.lock: $(RELEASE_STAMP) pyproject.toml constraints.txt
	$(RELEASE)/bin/uv pip compile -q pyproject.toml --universal --python-version 3.11 -c constraints.txt \
	  --generate-hashes --custom-compile-command "make requirements.lock" -o requirements.lock

# Asks a database of advisories. Without a connection it fails; it never passes what it could not ask about.
audit-dependencies: $(RELEASE_STAMP)
	$(RELEASE)/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off -r requirements.lock

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python tests/prose.py

mutants: $(STAMP)
	$(BIN)/python tests/mutants.py

audit-self-test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m fedtree_audits.self_test --seeds 20 --workers 2

# The site's own packages go into the same environment, because the API's pages import the code.
$(DOCS_STAMP): $(STAMP) pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $(DOCS_STAMP)

docs: $(DOCS_STAMP)
	FEDTREE_TINY=1 $(BIN)/python docs/notebooks/execute.py
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(STAMP)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

utility: $(STAMP)
	$(BIN)/python benchmarks/utility

clean:
	rm -rf $(VENV) $(FLOWER) $(RELEASE) build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
