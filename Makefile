# Two words for a fresh clone: `make test` and `make demo`. Each makes its own .venv.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: test demo bench build lint clean

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
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && .venv/bin/cython-lint fastopt/_kernels

clean:
	rm -rf build dist *.egg-info fastopt/_kernels/*/*.so
