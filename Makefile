# make demo    trains a small language model, samples from it, and writes a page that shows it from within
# make test    lint, types and tests, as the CI runs them; where JAX finds a GPU, those for it as well
# make test-gpu  the tests that need an NVIDIA GPU, with a jax that finds it: make test-gpu JAX='jax[cuda13]'
# make lint    ruff and mypy alone
# make docs    builds the site, build/site/index.html; its pages are executed, which takes a quarter of an hour once
# make test-release  builds wheel, sdist and site, installs the one and opens the other in a browser
# make bench   the quick benchmarks
# make fuzz    random command lines, calls and damaged files; half an hour on two cores (FUZZ=100 is a short one)
# make clean   removes environments and caches; runs/ stays
#
# Python and make are all that these need: they make .venv and install into it. Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
NEWEST := .venv-newest
# Twice quiet: errors alone.
PIP_INSTALL := -m pip install --quiet --quiet --disable-pip-version-check
ON_GPU := import jax, sys; sys.exit(jax.default_backend() != "gpu")

.PHONY: test demo lint docs bench fuzz clean test-newest test-gpu test-release
.NOTPARALLEL:
.DELETE_ON_ERROR:

# Types are checked beside the tests, which leave no core idle then; what they say comes last.
test: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	@mkdir -p .cache
	@$(VENV)/bin/mypy >.cache/mypy.txt 2>&1 & types=$$!; \
	  $(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal; tests=$$?; \
	  wait $$types; types=$$?; cat .cache/mypy.txt; exit $$((tests ? tests : types))
	@if $(VENV)/bin/python -c '$(ON_GPU)' 2>/dev/null; then $(MAKE) test-gpu; fi

# Where the site is built, the page of the demo links its terms to the course there.
SITE_OPTION = $(if $(wildcard build/site/course/*.html),--site build/site)

demo: $(VENV)/.installed-lm
	$(VENV)/bin/rnnjax train --preset demo --out runs/demo --force
	$(VENV)/bin/rnnjax sample runs/demo --length 1000 --seed 1
	@echo; echo "The pictures of this run:"; find runs/demo -name '*.png' -o -name '*.svg' -o -name '*.pdf'
	@echo; echo "The run from within, as a page (half a minute):"
	$(VENV)/bin/rnnjax report runs/demo $(SITE_OPTION)
	@echo "Open $(CURDIR)/runs/demo/report.html in a browser."

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# A warning is an error. What was executed is kept in .cache/docs, and executed again when its code has changed.
docs: $(VENV)/.installed-docs
	$(VENV)/bin/python -m sphinx -q -W --keep-going -b html -d .cache/doctrees docs build/site
	$(VENV)/bin/python -m sphinx -q -W --keep-going -b html -D language=ko -d .cache/doctrees_ko docs build/site/ko
	@echo "Open $(CURDIR)/build/site/index.html in a browser."

test-release: docs $(VENV)/.installed-test
	$(VENV)/bin/python $(PIP_INSTALL) build twine
	$(VENV)/bin/python -m pytest -m release

bench: $(VENV)/.installed-bench
	$(VENV)/bin/python -m benchmarks --quick

# Every fuzzer that lies there, on the CPU, with the same seed each time; SEED=1 for another.
FUZZ ?= 2000
SEED ?= 0
fuzz: $(VENV)/.installed-test
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m tests.fuzz.fuzz_cli --calls $(FUZZ) --seed $(SEED) --workers $(WORKERS)
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m tests.fuzz.fuzz_damage --damages $$(($(FUZZ) / 2)) --seed $(SEED)
	@if [ -f tests/fuzz/fuzz_api.py ]; then \
	  JAX_PLATFORMS=cpu $(VENV)/bin/python -m tests.fuzz.fuzz_api --calls $(FUZZ) --seed $(SEED); fi

# The quick tests on the newest jax, which needs a newer Python than the oldest one supported.
test-newest: $(NEWEST)/.installed
	$(NEWEST)/bin/python -c 'import jax, sys; print("Python", sys.version.split()[0], "jax", jax.__version__)'
	OMP_NUM_THREADS=2 $(NEWEST)/bin/python -m pytest -m quick -n $(WORKERS) --dist worksteal  # native loops: 2 threads

# One process, since the tests share one GPU; GPU_WORKERS=12 where it has 60 GB and the machine 12 cores, as compilation
# takes most of the time. Files without such tests are not even read.
JAX ?= jax[cuda13]
GPU_WORKERS ?= 0
test-gpu: $(VENV)/.installed-test
	@$(VENV)/bin/python -c '$(ON_GPU)' 2>/dev/null || \
	  $(VENV)/bin/python $(PIP_INSTALL) '$(JAX)'
	$(VENV)/bin/python -c 'import jax; print(*jax.devices())'
	$(VENV)/bin/python -m pytest -m gpu -n $(GPU_WORKERS) --dist worksteal \
	  $$(grep -rl 'pytest\.mark\.gpu' tests --include='test_*.py')

clean:
	rm -rf $(VENV) $(NEWEST) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A name on the PATH may not run (a pyenv shim without its version), so each is tried before it is used.
$(VENV)/bin/python:
	@for python in $(PYTHON) python3.13 python3.12 python3.11; do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "Creating $(VENV) with $$("$$python" --version)"; \
	    exec "$$python" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo "make: rnnjax needs Python 3.11 or newer with its venv module, and none of $(PYTHON), python3.13, python3.12," \
	  "python3.11 is one that runs; install one, or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)." >&2; exit 1

$(VENV)/.installed-lm: pyproject.toml $(VENV)/bin/python
	@echo "Installing rnnjax[lm] into $(VENV); the first time takes a few minutes"
	@$(VENV)/bin/python $(PIP_INSTALL) -e '.[lm]'
	@touch $@

# The test extra contains the lm extra, hence both stamps.
$(VENV)/.installed-test: pyproject.toml $(VENV)/bin/python
	@echo "Installing rnnjax[test] into $(VENV); the first time takes a few minutes"
	@$(VENV)/bin/python $(PIP_INSTALL) -e '.[test]'
	@touch $(VENV)/.installed-lm $@

$(VENV)/.installed-bench: pyproject.toml $(VENV)/.installed-test
	@echo "Installing rnnjax[bench] into $(VENV); the first time takes a few minutes"
	@$(VENV)/bin/python $(PIP_INSTALL) -e '.[bench]'
	@touch $@

$(VENV)/.installed-docs: pyproject.toml $(VENV)/bin/python
	@echo "Installing rnnjax[docs] into $(VENV); the first time takes a few minutes"
	@$(VENV)/bin/python $(PIP_INSTALL) -e '.[docs]'
	@touch $@

$(NEWEST)/bin/python:
	@test -n "$(NEWEST_PYTHON)" || \
	  { echo "make: test-newest needs a Python 3.12 or newer: make test-newest NEWEST_PYTHON=/path/to/python3" >&2; exit 1; }
	"$(NEWEST_PYTHON)" -m venv --clear $(NEWEST)

$(NEWEST)/.installed: pyproject.toml $(NEWEST)/bin/python
	@echo "Installing rnnjax[test] with the newest jax into $(NEWEST); the first time takes a few minutes"
	@$(NEWEST)/bin/python $(PIP_INSTALL) --upgrade -e '.[test]' jax jaxlib
	@touch $@
