# Two words for a fresh clone: `make test` and `make demo`. Each makes its own .venv.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: test demo bench build lint asan tsan clean

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch is an optional peer of the tests: exactly this release, the CPU build.
.venv/.test: pyproject.toml setup.py $(wildcard $(foreach s,pyx pxd h,fastopt/_kernels/*/*.$s)) | .venv/bin/python
	$(PY) -m pip install -q -e '.[test]'
	touch $@

.venv/.demo: pyproject.toml setup.py $(wildcard $(foreach s,pyx pxd h,fastopt/_kernels/*/*.$s)) | .venv/bin/python
	$(PY) -m pip install -q -e '.[demo]'
	touch $@

test: .venv/.test
	$(PY) -m pytest

demo: .venv/.demo
	$(PY) -m fastopt demo

# Rebuild the kernels in place after an edit (needs cython, numpy and setuptools in .venv).
build: | .venv/bin/python
	$(PY) setup.py -q build_ext --inplace

bench: .venv/.test
	$(PY) -m benchmarks

lint:
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && PATH="$(CURDIR)/.venv/bin:$$PATH" cython-lint fastopt/_kernels

# The kernels under gcc's sanitizers, one level in a copy of the tree: kernel tests and damaged
# calls. LEVEL=v2 for another level, CALLS=20000 for more calls.
LEVEL ?= v3
CALLS ?= 3000
CC_LIB = $$(gcc -print-file-name=lib$1.so)
sanitized = rm -rf build/$1 && mkdir -p build/$1 && cp -r fastopt tests setup.py pyproject.toml build/$1 && \
	rm -f build/$1/fastopt/_kernels/*/*.so && cd build/$1 && \
	FASTOPT_LEVELS=$(LEVEL) FASTOPT_SANITIZE=$2 $(abspath $(PY)) setup.py -q build_ext --inplace && \
	FASTOPT_ISA=$(LEVEL) PYTHONPATH=. PYTHONMALLOC=malloc OPENBLAS_NUM_THREADS=1
KERNEL_TESTS = $(addprefix tests/,kernels/test_update.py kernels/test_linear_kernels.py \
	quantization/test_quantize.py quantization/test_matmul.py quantization/test_gptq.py \
	pruning/test_prune.py pruning/test_prune_sparse.py merging/test_merging_codebook.py \
	models/test_forest.py search/test_genetic.py search/test_search_kernels.py)

asan: | .venv/bin/python
	$(call sanitized,asan,address$(comma)undefined) ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	LD_PRELOAD="$(call CC_LIB,asan):$(call CC_LIB,ubsan)" sh -c '\
	$(abspath $(PY)) -m tests.damage --only calls --calls $(CALLS) && \
	$(abspath $(PY)) -m pytest -q -x -p no:cacheprovider $(KERNEL_TESTS)'

# The sanitizer does not follow threads into a forked child, so tests that fork are left out.
tsan: | .venv/bin/python
	$(call sanitized,tsan,thread) TSAN_OPTIONS=exitcode=66 \
	LD_PRELOAD="$(call CC_LIB,tsan)" setarch -R \
	$(abspath $(PY)) -m pytest -q -x -p no:cacheprovider -k "not fork" tests/kernels/test_pool.py tests/kernels/test_update.py

comma := ,

clean:
	rm -rf build dist *.egg-info fastopt/_kernels/*/*.so
