# make demo · make test · make bench    on a fresh machine with python3 (3.10 to 3.13), a C++17 compiler and make
#
# Everything is installed into .venv; remove that folder to start afresh. VENV, PYTHON and TENSORFLOW choose others:
#   make test VENV=.venv-oldest TENSORFLOW="tensorflow==2.18.*"
# CUDA kernels are compiled for two architectures, and what comes after them by the driver; `pip install .` compiles for all.
PYTHON ?= python3
VENV ?= .venv
TENSORFLOW ?= $$($(BIN)/python build_tools/requirements.py tensorflow)
LSOFTMAX_CUDA_ARCHITECTURES ?= 75;90
export LSOFTMAX_CUDA_ARCHITECTURES
BIN := $(VENV)/bin
# Files of tests side by side, one a core: most tests keep one busy. In the order of tests/conftest.py, the longest first.
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
SOURCES := $(shell find cc build_tools -name '*.py' -o -name '*.h' -o -name '*.cc' -o -name '*.cmake' -o -name "*.in" -o -name "*.cu" -o -name "*.cuh") \
           CMakeLists.txt setup.py pyproject.toml lsoftmax_op/__init__.py lsoftmax_op/reference.pyx
CXX_FILES := $(shell find cc -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')

RELEASE_STEPS := lint test test-long docs sdist-check wheels matrix

.DEFAULT_GOAL := help
.PHONY: help build demo test test-long test-fast bench docs sdist sdist-check wheels matrix release-check gpu aarch64 sanitize lint format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: $(VENV)/built  ## install what it needs into .venv and compile the library

demo: build  ## train on handwritten digits with a large margin, and draw what was learned
	$(BIN)/python -m examples.digits

test: build  ## run the tests
	$(PYTEST) -m "not long"

test-long: build  ## run the longest: several workers, killed ones, a build in place
	$(PYTEST) -m long

test-fast: build  ## run all but the slow ones
	$(PYTEST) -m "not slow and not long"

bench: build  ## measure it beside its peers: tables; JSON and pictures in benchmarks/results
	$(BIN)/python -m benchmarks

docs: build  ## make a web site of the documentation: build/docs/index.html
	$(BIN)/python -m pip install --quiet $$($(BIN)/python build_tools/requirements.py docs)
	$(BIN)/python -m sphinx -W --keep-going --quiet -d build/doctrees docs build/docs
	@echo "Open build/docs/index.html"

sdist: $(VENV)/ready  ## pack the sources into dist/
	$(BIN)/python -m pip install --quiet $$($(BIN)/python build_tools/requirements.py release)
	rm -f dist/lsoftmax_op-*.tar.gz
	$(BIN)/python -m build --sdist --outdir dist

sdist-check: LSOFTMAX_CUDA_ARCHITECTURES =
sdist-check: sdist  ## install what sdist packs beside TensorFlow, as a user does, and run its checks
	rm -rf build/sdist-check && $(PYTHON) -m venv build/sdist-check
	build/sdist-check/bin/python -m pip install --quiet "$(TENSORFLOW)"
	LSOFTMAX_TF=ON LSOFTMAX_XLA=ON build/sdist-check/bin/python -m pip install --quiet --no-cache-dir dist/lsoftmax_op-*.tar.gz
	cd build/sdist-check && bin/python -m lsoftmax_op

# Of all architectures, unlike the other targets' CUDA kernels.
wheels: LSOFTMAX_CUDA_ARCHITECTURES =
wheels: $(VENV)/ready  ## build the wheel for every TensorFlow into dist/ (WHEELS="--python python3.12 ...": more of them)
	$(BIN)/python -m pip install --quiet $$($(BIN)/python build_tools/requirements.py release)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python build_tools/wheels.py $(WHEELS)

gpu:  ## on a machine with an NVIDIA GPU, CUDA and PyTorch: build, check and time the CUDA kernels there
	build_tools/gpu.sh $(PYTHON)

aarch64: $(VENV)/ready  ## cross-compile core, arrays and oracle for aarch64, and run their tests emulated (Debian 12 or later)
	PATH="$(abspath $(BIN)):$$PATH" build_tools/aarch64.sh $(BIN)/python

sanitize: build  ## run core, bindings and CUDA kernels (on the CPU) under the address and undefined-behaviour sanitizers
	PATH="$(abspath $(BIN)):$$PATH" build_tools/sanitize.sh $(BIN)/python

matrix: $(VENV)/ready  ## try the wheels of dist/ beside every TensorFlow and CPython; MATRIX has options, such as "--tests none"
	$(BIN)/python -m pip install --quiet $$($(BIN)/python build_tools/requirements.py release)
	$(BIN)/python build_tools/matrix.py $(MATRIX)

release-check: WHEELS = --every-python
release-check: MATRIX = --tests once
release-check:  ## all that a release must pass, in order, to the first that fails
	@$(MAKE) --no-print-directory wheels WHEELS="$(WHEELS) --dry-run"
	rm -rf dist
	@for step in $(RELEASE_STEPS); do echo "== make $$step" && $(MAKE) --no-print-directory WHEELS="$(WHEELS)" MATRIX="$(MATRIX)" $$step || exit 1; done

lint: $(VENV)/linters  ## judge the code: its style, and its types in Python
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy

format: $(VENV)/linters  ## rewrite the code in that style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:  ## remove what was built and brought: build/ with nvcc and TensorFlows, dist/ with its wheels (.venv stays)
	rm -rf build dist lsoftmax_op/*.so lsoftmax_op/tf-* lsoftmax_op/_build_info.json lsoftmax_op/reference.c $(VENV)/built

# The build is not isolated, so that a second one compiles only what changed: its tools are installed beforehand.
$(VENV)/ready: pyproject.toml
	@echo "Installing TensorFlow, the build tools and the test tools into $(VENV); this takes a minute or two ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TENSORFLOW)" $$($(BIN)/python build_tools/requirements.py build test)
	@touch $@

$(VENV)/linters: $(VENV)/ready
	$(BIN)/python -m pip install --quiet $$($(BIN)/python build_tools/requirements.py dev)
	@touch $@

# A clone holds what was built for one environment: for another one it is built anew.
ifneq ($(shell cat build/environment 2>/dev/null),$(VENV))
.PHONY: $(VENV)/built
endif
$(VENV)/built: $(VENV)/ready $(SOURCES)
	@echo "Compiling lsoftmax_op; this takes a few minutes ..."
	PATH="$(abspath $(BIN)):$$PATH" LSOFTMAX_TF=ON LSOFTMAX_TESTING=ON $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@mkdir -p build && echo $(VENV) >build/environment && touch $@
