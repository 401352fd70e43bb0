# humpback.h itself needs no building: include it, as its first page says. This file builds what stands
# around it, all of it under build/: the command line, the examples and the tests. `make help` lists the
# targets. CC, CXX, CPPFLAGS, CFLAGS and LDFLAGS are yours; what you give comes after our own flags.

OPT       = -O2 -g
STD       = -std=c11
WARNINGS  = -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wdouble-promotion \
            -Wundef -Wcast-qual -Wpointer-arith -Wwrite-strings -Wvla -Wswitch-enum -Wmissing-prototypes \
            -Wstrict-prototypes
PREFIX    = /usr/local
DEMO      = --out build/demo
REPRODUCE = --out build/reproduce$(if $(QUICK),-quick --quick)

# The reference implementations; VENV=DIR takes an environment that has them. llama-cpp-python compiles for a
# long time: SKIP_LLAMA_CPP=1 does without, and without it a comparison that lacks it is a failure.
VENV           = build/venv
SKIP_LLAMA_CPP =
PEERS_FLAGS    =
PEERS          = build/venv/ready $(if $(SKIP_LLAMA_CPP),,build/venv/llama-cpp)
export SKIP_LLAMA_CPP

# Two threads on two cores that something else uses too would spin for each other; waiting asleep costs a
# fifth of the speed on an idle machine and gains a factor of four on a busy one.
export OMP_WAIT_POLICY ?= passive

# Where the libraries are is asked when the first program is compiled, after they were installed; each
# answer replaces its question.
SETTINGS  = CC='$(CC)' CXX='$(CXX)' CPPFLAGS='$(CPPFLAGS)' CFLAGS='$(CFLAGS)' LDFLAGS='$(LDFLAGS)'
DEPS      = $(SETTINGS) tools/install-deps
INCLUDES  = $(eval INCLUDES := $$(shell $$(DEPS) --cflags))$(INCLUDES)
OPENMP    = $(eval OPENMP := $$(shell $$(DEPS) --openmp))$(OPENMP)
LIBS      = $(eval LIBS := $$(shell $$(DEPS) --libs))$(LIBS)

# One program from one C file: $(call build,FILE.c,LIBRARIES). `make -n` shows the whole command.
define build
@mkdir -p $(@D)
@echo '$(CC) $1 -> $@'
@$(CC) $(STD) $(OPT) $(OPENMP) $(WARNINGS) $(EXTRA) -I. $(INCLUDES) $(CPPFLAGS) $(CFLAGS) -o $@ $1 \
    $(LDFLAGS) $2 $(LIBS)
endef

TOOL_HEADERS := $(wildcard tools/*.h)
TEST_FILES   := $(wildcard tests/*.c tests/*.h)
EXAMPLES     := $(patsubst examples/%.c,build/examples/%,$(wildcard examples/*.c))

## all         the command line build/humpback and the examples (plain `make`)
all: build/humpback examples

## demo        the whole loop on the built-in miniature world, from nothing, in minutes
demo: build/humpback
	build/humpback demo $(DEMO)

## reproduce   the paper's findings over five miniature worlds (QUICK=1: three, ten minutes)
reproduce: build/humpback
	build/humpback reproduce $(REPRODUCE)

## test        builds build/test, every chapter's tests, and runs it (one chapter: build/test 07)
test: build/test
	build/test

## examples    build/examples/NN_name from examples/NN_name.c
examples: $(EXAMPLES)

## bench       tokens per second, GFLOP/s and GB/s of training and generation on random weights
bench: build/humpback
	build/humpback bench

## bench-peers the same beside PyTorch and llama.cpp, as a table (Python; PEERS_FLAGS='--minutes 9', --help)
bench-peers: build/humpback build/conformance-tokenizers $(if $(filter build/venv,$(VENV)),$(PEERS))
	$(VENV)/bin/python tools/bench-peers $(PEERS_FLAGS)

## conformance logits, gradients, ids and files against transformers, PEFT, gguf and llama.cpp (Python)
conformance: build/humpback build/conformance-gradients build/conformance-tokenizers \
             $(if $(filter build/venv,$(VENV)),$(PEERS))
	$(VENV)/bin/python tests/conformance/run

## deps        installs what make demo and make test lack (they do so by themselves)
deps: deps-test

## style       the form of the sources: tools/check-style
style:
	tools/check-style

## install     humpback.h to PREFIX/include and humpback to PREFIX/bin
install: build/humpback
	mkdir -p $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/bin
	cp humpback.h $(DESTDIR)$(PREFIX)/include/
	cp build/humpback $(DESTDIR)$(PREFIX)/bin/

## clean       removes build/
clean:
	rm -rf build

## help        this list
help:
	@sed -n 's/^## /  /p' Makefile

build/humpback: tools/humpback.c $(TOOL_HEADERS) humpback.h | deps-header
	$(call build,$<)

build/examples/%: examples/%.c humpback.h | deps-header
	$(call build,$<)

# The same tests in other builds of the library; check-NAME runs build/test-NAME.
TESTS = build/test build/test-san build/test-double build/test-noblas build/test-serial build/test-plain \
        build/test-avx2 build/test-avx512
build/test-san:    OPT    = -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined \
                            -fno-sanitize-recover=all
build/test-double: EXTRA  = -DHBK_REAL_DOUBLE
build/test-noblas: EXTRA  = -DHBK_NO_BLAS
build/test-serial: OPENMP = -fopenmp-simd
build/test-plain:  EXTRA  = -DHBK__WIDEST=0
build/test-avx2:   EXTRA  = -DHBK__WIDEST=1
build/test-avx512: EXTRA  = -DHBK__WIDEST=2
$(TESTS): humpback.h $(TEST_FILES) $(TOOL_HEADERS) | deps-test
	$(call build,tests/test_main.c,-lcmocka)

# By the other compiler, with its own order of evaluation and its UBSan, which ends a test that it finds at
# fault (its messages need a library that clang's package does not bring); warnings are the matrix's.
HOST_CC := $(CC)
build/test-clang: override CC = clang
build/test-clang: WARNINGS = -w
build/test-clang: OPT      = -O1 -g -fsanitize=undefined -fsanitize-trap=undefined
build/test-clang: OPENMP   = -fopenmp-simd
build/test-clang: humpback.h $(TEST_FILES) $(TOOL_HEADERS) | deps-clang
	$(call build,tests/test_main.c,-lcmocka)

build/venv/ready: tests/conformance/requirements.txt
	python3 -m venv build/venv
	build/venv/bin/pip install -r $<
	touch $@
build/venv/llama-cpp: build/venv/ready
	build/venv/bin/pip install llama-cpp-python==0.3.36 && touch $@ || \
	    echo 'llama-cpp-python cannot be installed: what needs it is skipped, and counts as a failure'
build/conformance-%: tests/conformance/%.c humpback.h | deps-header
	$(call build,$<)

flags: # what the scripts under tests/ compile with
	@echo '$(WARNINGS)'

deps-header:
	@$(DEPS) header
deps-test:
	@$(DEPS) header test
deps-check:
	@$(DEPS) header test check
deps-clang: override CC = $(HOST_CC)
deps-clang:
	@$(DEPS) header test clang

# ---- make check: what is too slow for every day. Each piece prints one line and can be called alone -----

CHECKS = check-style check-examples check-readme check-matrix check-symbols check-double check-noblas \
         check-serial check-clang check-plain check-avx2 check-avx512 check-san check-bench \
         $(HOOKS:tests/%=check-%)
HOOKS  = $(wildcard tests/cli tests/kill-resume)
STEP   = @$(SETTINGS) tools/step

## check       the heavier tests: sanitizers, double, no BLAS, OpenMP or AVX, compilers, symbols, speed, style
check: $(CHECKS)

check-style:
	$(STEP) style tools/check-style
check-examples: $(EXAMPLES)
	$(STEP) examples tests/examples
check-readme: | deps-header
	$(STEP) readme tests/readme
check-matrix: | deps-check
	$(STEP) matrix tests/build-matrix
check-symbols: | deps-header
	$(STEP) symbols tests/symbols
check-double check-noblas check-serial check-clang: check-%: build/test-%
	$(STEP) $* build/test-$*
check-plain check-avx2 check-avx512: check-%: build/test-%
	$(STEP) $* build/test-$* 08 09 10 11 13
check-san: build/test-san
	$(STEP) san env OMP_NUM_THREADS=2 \
	    ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1:allocator_may_return_null=1 \
	    UBSAN_OPTIONS=print_stacktrace=1 build/test-san
check-bench: build/humpback
	$(STEP) bench build/humpback bench --rows lora --tokens 1x128 --repeats 5 --least 0.5
$(HOOKS:tests/%=check-%): check-%: build/humpback
	$(STEP) $* tests/$*

.PHONY: all demo reproduce test examples bench bench-peers conformance deps style install clean help check \
        $(CHECKS) flags deps-header deps-test deps-check deps-clang
