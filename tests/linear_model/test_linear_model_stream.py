"""Rows that stay in their file: memory maps and block sources in fit, and under a memory cap."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fastopt.errors import ArrayError, DTypeError
from fastopt.linear_model import (
    LinearRegression,
    LogisticRegression,
    Ridge,
    SGDClassifier,
    SGDRegressor,
    _rows,
)


class Source:
    """The least that a file-like source of rows has."""

    def __init__(self, a):
        self.a, self.shape, self.dtype = a, a.shape, a.dtype
        self.largest = 0

    def __len__(self):
        return len(self.a)

    def __getitem__(self, rows):
        self.largest = max(self.largest, len(self.a[rows]))
        return self.a[rows]


@pytest.fixture
def blocks(monkeypatch):
    """Every map is streamed, in blocks of 4 KB."""
    monkeypatch.setattr(_rows, "MAPPED_FROM", 0)
    monkeypatch.setattr(_rows, "BLOCK_BYTES", 4096)


@pytest.fixture
def mapped(tmp_path, blocks):
    """(map, the same in memory, y): 1003 rows of 9 columns on disk."""

    def make(dtype="float32", mode="r"):
        rng = np.random.default_rng(0)
        x = (rng.standard_normal((1003, 9)) * 20).astype(dtype)
        x.tofile(tmp_path / "x.bin")
        y = x.astype(float) @ np.linspace(-0.1, 0.1, 9) + 1 + rng.standard_normal(1003) * 0.1
        return np.memmap(tmp_path / "x.bin", dtype, mode, shape=x.shape), x, y

    return make


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint16"])
@pytest.mark.parametrize("kind", ["map", "source"])
def test_full_passes_by_blocks_equal_one_pass(mapped, dtype, kind):
    x, memory, y = mapped(dtype)
    if kind == "source":
        x = Source(memory)
    weights = np.random.default_rng(1).random(len(y))
    atol = 1e-4 if dtype == "float32" else 1e-6
    for model, target in (
        (Ridge(alpha=2.0), y),
        (LinearRegression(solver="lbfgs", tol=1e-8), y),
        (LogisticRegression(C=0.1, tol=1e-7), y > 1),
        (LogisticRegression(C=0.1, tol=1e-3, solver="gd", max_iter=20, lr=1e-3), y > 1),
    ):
        with pytest.warns() if model.max_iter == 20 else _nothing():
            want = model.fit(memory.astype(float), target, weights).coef_.copy()
        with pytest.warns() if model.max_iter == 20 else _nothing():
            model.fit(x, target, weights)
        np.testing.assert_allclose(model.coef_, want, atol=atol)
        np.testing.assert_allclose(model.predict(x), model.predict(memory), rtol=1e-3)
        assert model.score(x, target) > 0.8
    if kind == "source":
        assert x.largest <= 4096 // (9 * 8 if dtype == "float64" else 9 * 4)


def _nothing():
    import contextlib

    return contextlib.nullcontext()


@pytest.mark.parametrize("estimator", [SGDRegressor, SGDClassifier])
def test_mini_batches_by_blocks_learn_and_depend_on_the_seed_alone(mapped, estimator):
    x, memory, y = mapped()
    target = y > 1 if estimator is SGDClassifier else y
    options = {"random_state": 0, "local_workers": 3, "max_iter": 40, "tol": None}
    fits = [estimator(threads=t, **options).fit(x, target) for t in (1, 2)]
    assert fits[0].score(memory, target) > 0.95
    assert fits[0].coef_.tobytes() == fits[1].coef_.tobytes()
    other = estimator(**(options | {"random_state": 1})).fit(x, target)
    assert other.coef_.tobytes() != fits[0].coef_.tobytes()
    stopped = estimator(early_stopping=True, random_state=0).fit(x, target)
    assert stopped.score(memory, target) > 0.95
    source = estimator(**options).fit(Source(memory), target)
    assert source.coef_.tobytes() == fits[0].coef_.tobytes()


def test_an_epoch_reads_every_row_once(mapped):
    x, memory, y = mapped("float64")
    model = SGDRegressor(batch_size=1, shuffle=False, max_iter=1, tol=None, eta0=1e-6)
    plain = SGDRegressor(**model.get_params()).fit(memory, y)
    np.testing.assert_allclose(model.fit(x, y).coef_, plain.coef_, rtol=1e-12)
    assert model.t_ == plain.t_
    shuffled = SGDRegressor(max_iter=1, tol=None, eta0=1e-9, random_state=0).fit(x, y)
    assert shuffled.loss_curve_[0] == pytest.approx(np.mean(y**2) / 2, rel=1e-3)


def test_slices_and_private_maps_keep_their_values(mapped):
    x, memory, y = mapped("float64", mode="c")
    x[:] = memory * 2  # changes that live in the pages of this process alone
    model = Ridge().fit(x, y)
    np.testing.assert_allclose(model.coef_, Ridge().fit(memory * 2, y).coef_, atol=1e-10)
    assert np.array_equal(x, memory * 2)
    x, memory, y = mapped("float64")
    for rows in (slice(13, 700), slice(None, None, 3), slice(None, None, -1)):
        want = Ridge().fit(memory[rows], y[rows]).coef_
        np.testing.assert_allclose(Ridge().fit(x[rows], y[rows]).coef_, want, atol=1e-10)
    want = Ridge().fit(memory[:, 2:5], y).coef_
    np.testing.assert_allclose(Ridge().fit(x[:, 2:5], y).coef_, want, atol=1e-10)
    x, memory, y = mapped("float64", mode="r+")
    x[5] = 7.0
    Ridge().fit(x, y)
    assert (x[5] == 7.0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_value_in_the_last_block_is_refused(mapped, value):
    x, _, y = mapped("float32", mode="c")
    good = Ridge().fit(np.array(x), y)
    x[1001, 3] = value
    for model in (Ridge(), LinearRegression(solver="lbfgs"), SGDRegressor(), SGDClassifier()):
        with pytest.raises(ArrayError, match="X"):
            model.fit(x, y > 0)
        assert not hasattr(model, "coef_")
    with pytest.raises(ArrayError, match="X"):
        good.predict(x)


CAPPED = """
import resource, sys
import numpy as np
from fastopt.linear_model import LogisticRegression, Ridge, SGDClassifier, SGDRegressor

path, n, d, cap = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
x = np.memmap(path, "float32", "r", shape=(n, d))
w = np.linspace(-1, 1, d).astype("float32")
y = np.empty(n, "float32")
for i in range(0, n, 8192):
    y[i : i + 8192] = x[i : i + 8192] @ w + 2
# Warm: thread stacks and BLAS buffers belong to the base, not to the fit.
Ridge(threads=2).fit(np.random.default_rng(0).random((4000, d)), np.arange(4000.0))
status = open("/proc/self/status").read()
base = int(status.split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (base + cap, base + cap))
try:
    np.array(x)
except MemoryError:
    print("a copy does not fit")
for model in (
    Ridge(alpha=0.0),
    Ridge(alpha=0.0, solver="lbfgs"),
    SGDRegressor(alpha=0, max_iter=4, tol=None, random_state=0),
):
    model.fit(x, y)
    print(type(model).__name__, float(abs(model.coef_ - w).max()),
          float(abs(np.ravel(model.intercept_)[0] - 2)))
labels = SGDClassifier("log_loss", max_iter=1, tol=None, random_state=0).fit(x, y > 2)
print("SGDClassifier", labels.score(x, y > 2))
resident = open("/proc/self/status").read().split("VmRSS:")[1].split()[0]
print("resident", int(resident) * 1024)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts maps on Linux"
)
def test_a_file_of_three_times_the_memory_cap(tmp_path):
    """RLIMIT_DATA counts private memory: heap, anonymous maps. Pages of a shared file map are not
    in it, since the kernel can drop them, as under a cgroup's limit; RLIMIT_AS would count the
    map itself, which takes addresses and no memory."""
    d, cap = 64, 64 << 20
    n = 3 * cap // (4 * d)
    chunk = np.random.default_rng(0).standard_normal((1 << 15, d)).astype("float32")
    with open(tmp_path / "x.bin", "wb") as file:
        for i in range(0, n, len(chunk)):
            file.write(chunk[: n - i].tobytes())
    command = [sys.executable, "-c", CAPPED, str(tmp_path / "x.bin"), str(n), str(d), str(cap)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, *models, labels, resident = done.stdout.splitlines()
    assert first == "a copy does not fit"
    assert len(models) == 3
    for line in models:
        name, slope, offset = line.split()
        assert float(slope) < (0.02 if name == "SGDRegressor" else 1e-4), line
        assert float(offset) < (0.02 if name == "SGDRegressor" else 1e-4), line
    assert float(labels.split()[1]) > 0.98
    # What was read leaves the process: far less than the file is ever resident.
    assert int(resident.split()[1]) < 3 * cap


@pytest.mark.parametrize("shape", [(600, 4), (500, 5)])
def test_a_source_that_gives_other_rows_than_its_shape_says(blocks, shape):
    source = Source(np.ones((500, 4)))
    source.shape = shape
    for model in (Ridge(), SGDRegressor(random_state=0)):
        with pytest.raises(ArrayError, match=r"^X: rows from "):
            model.fit(source, np.ones(shape[0]))
        assert not hasattr(model, "coef_")


@pytest.mark.parametrize("dtype", ["complex128", "U3", "object"])
def test_a_source_of_other_things_than_numbers(dtype):
    with pytest.raises(DTypeError, match=r"^X: "):
        Ridge().fit(Source(np.ones((500, 4)).astype(dtype)), np.ones(500))
