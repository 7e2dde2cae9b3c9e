# Everything starts from a bare machine with Python 3.11 or newer, pip and make.
#
#   make chat          set up, fetch the default model, open the chat   (ARGS="--temp 0", MODEL=file.gguf)
#   make test          set up, run the tests                            (ARGS="-k tokenizer")
#   make check         ruff, mypy --strict, the architecture test
#   make bench         the table of speeds on this machine     (ARGS="--only smollm2", LLMRUN_TEST_MODELS=folder)
#   make check-large   memory and load time of an 8B-shaped model
#   make docs          write docs/cli.md from the commands' own help

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
MODEL ?=
BIN := $(VENV)/bin
# Debian's Python comes without ensurepip: there, the pip outside installs into the environment.
PIP = $$($(BIN)/python -m pip --version >/dev/null 2>&1 && echo $(BIN)/python -m pip || echo $(PYTHON) -m pip --python $(BIN)/python) \
	--disable-pip-version-check --no-input install --quiet

.PHONY: chat test check docs clean objects check-objects check-arm check-wheel

# pip and the compiler never see standard input: `echo Hi | make chat` keeps its text for the chat.
# What make itself has to say goes to standard error: standard output is the answers alone.
chat: $(VENV)/installed
	@exec $(BIN)/llmrun chat $(MODEL) $(ARGS)

# One process for each of two cores: the slowest tests wait for one thread. (ARGS="-n 0": all in one)
PYTEST = $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(VENV)/installed-dev
	$(PYTEST) $(ARGS)

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

docs: $(VENV)/installed-dev
	$(BIN)/python docs/make_cli.py --write

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@echo "setting up $(VENV)" >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llmrun needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")' </dev/null >&2
	@$(PYTHON) -m venv $(VENV) </dev/null >/dev/null 2>&1 || $(PYTHON) -m venv --clear --without-pip $(VENV) </dev/null >&2

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing llmrun and what it needs into $(VENV): a minute or two" >&2
	@$(PIP) --editable . </dev/null >&2
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing llmrun, what it needs and the development tools into $(VENV): a minute or two" >&2
	@$(PIP) --editable ".[dev]" </dev/null >&2
	@touch $@ $(VENV)/installed

# Kernels for other machines: all of them, twice over to see the same bytes, and the Arm ones run under qemu.

BUILD_OBJECTS = $(BIN)/python -m llmrun.runtime.simd.build_objects
AGAIN := avx2 neon-dotprod-macos

objects: $(VENV)/installed-dev
	$(BUILD_OBJECTS) build/objects

check-objects: objects
	rm -rf build/objects-again build/empty-cache
	LLMRUN_CACHE=build/empty-cache PYTHONHASHSEED=1 $(BUILD_OBJECTS) build/objects-again --targets $$(echo $(AGAIN) | tr ' ' ,)
	for target in $(AGAIN); do diff -r build/objects/*/$$target build/objects-again/*/$$target || exit 1; done

check-arm: $(VENV)/installed-dev
	@command -v qemu-aarch64-static >/dev/null || { echo "check-arm needs Debian's qemu-user-static: apt-get install qemu-user-static" >&2; exit 1; }
	$(BUILD_OBJECTS) build/objects --targets neon,neon-dotprod,neon-dotprod-macos
	$(BIN)/python tests/arm/arm_root.py build/arm build/objects
	LLMRUN_ARM=build/arm $(PYTEST) -q tests/arm $(ARGS)

# As pip install . builds it: with objects for this machine (LLMRUN_BUILD_OBJECTS=all: for all).
check-wheel: $(VENV)/installed-dev
	rm -rf build/wheel build/lib
	$(subst install,wheel,$(PIP)) --no-deps --wheel-dir build/wheel .
	LLMRUN_WHEEL=$$(ls build/wheel/*.whl) $(BIN)/python -m pytest -q tests/test_wheel.py

# Real models, against llama.cpp: tests/models/README.md. Those that the folder lacks are skipped.
.PHONY: check-models
check-models: $(VENV)/installed-dev
	@folder="$${LLMRUN_TEST_MODELS:-$$($(BIN)/python -c 'from llmrun.cli.models_folder import models_folder; print(models_folder())')}"; \
	ls "$$folder"/*.gguf >/dev/null 2>&1 || { echo "check-models: no model in $$folder. Fetch one with '$(BIN)/llmrun pull smollm2-135m'," \
		"or name a folder: make check-models LLMRUN_TEST_MODELS=folder (tests/models/README.md lists the files)" >&2; exit 1; }; \
	LLMRUN_TEST_MODELS="$$folder" $(BIN)/python -m pytest -q -m models tests/models tests/formats tests/runtime/tokenizer $(ARGS)

# A random 8B-shaped model (4.9 GB, kept in the folder): peak memory and load time. Wants a quiet machine.
LARGE ?= build/large
.PHONY: check-large
check-large: $(VENV)/installed-dev
	$(BIN)/python tests/large/check_large.py $(LARGE)

# The table of speeds, on a quiet machine: bench/results/<cpu>.json and the README's table from it. It compares with
# llama.cpp where llama-cpp-python is installed (pip install '.[peers]').
.PHONY: bench
bench: $(VENV)/installed-dev
	$(BIN)/python bench/table.py $(ARGS)
	$(BIN)/python bench/readme_table.py --write
