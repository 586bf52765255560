"""The search kernels: twins, levels, threads, guard bytes, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt._kernels import levels
from fastopt.errors import FastoptError
from fastopt.search.cma import rates_of
from tests import reference
from tests.conftest import THREADS, Guarded, kernel


def model_of(level, n, p, threads=1, m=70, seed=0):
    """What ``fit`` and ``gain`` make of random data, and the twin's gain."""
    gp = kernel("gp", level)
    rng = np.random.default_rng(seed)
    x, t, points = rng.random((n, p)), rng.standard_normal(n), rng.random((m, p))
    weights, noise = rng.uniform(0.5, 5, p), 0.01
    inverse, alpha, rows = (Guarded(np.zeros(s)) for s in ((n, n), n, (p, n)))
    work = Guarded(np.empty(2 * n * n))
    assert gp.fit(inverse.array, alpha.array, rows.array, x, t, weights, noise, work.array)
    out = Guarded(np.zeros(m))
    model = (rows.array, weights, inverse.array, alpha.array, 1.3, float(t.min()))
    gp.gain(out.array, points, *model, threads)
    for a in (inverse, alpha, rows, work, out):
        a.check()
    twin = reference.gain(points, x, t, weights, noise, 1.3, t.min())
    return out.array, twin, inverse.array


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize(("n", "p"), [(1, 1), (2, 1), (3, 4), (7, 2), (33, 5), (70, 3)])
def test_gaussian_process_twin(level, n, p):
    found, twin, _ = model_of(level, n, p)
    assert found == pytest.approx(twin, rel=1e-8, abs=1e-8)
    rng = np.random.default_rng(n)
    x, t, weights = rng.random((n, p)), rng.standard_normal(n), rng.uniform(0.5, 5, p)
    gradient, work = Guarded(np.zeros(p + 1)), Guarded(np.empty(4 * n * n + (2 * p + 3) * n))
    gp = kernel("gp", level)
    value = gp.likelihood(gradient.array, x, t, weights, np.arange(p), 0.01, work.array)
    gradient.check()
    work.check()
    assert value == pytest.approx(reference.likelihood(x, t, weights, 0.01), rel=1e-9)
    for i in range(p + 1):  # by log length scales and log noise
        step = np.exp(1e-5 * (np.arange(p + 1) == i))
        up = reference.likelihood(x, t, weights / step[:p], 0.01 * step[p])
        down = reference.likelihood(x, t, weights * step[:p], 0.01 / step[p])
        assert gradient.array[i] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-6)


def test_features_can_share_a_length_scale():
    gp = kernel("gp", levels()[0])
    rng = np.random.default_rng(0)
    x, t = rng.random((9, 3)), rng.standard_normal(9)
    work = np.empty(4 * 81 + 9 * 9)
    apart, shared = np.empty(4), np.empty(3)
    gp.likelihood(apart, x, t, np.ones(3), np.arange(3), 0.1, work)
    gp.likelihood(shared, x, t, np.ones(3), np.array([0, 1, 1]), 0.1, work)
    assert shared == pytest.approx([apart[0], apart[1] + apart[2], apart[3]])


def test_a_matrix_without_a_factor():
    gp = kernel("gp", levels()[0])
    x, t = np.zeros((3, 1)), np.ones(3)
    value = gp.likelihood(np.empty(2), x, t, np.ones(1), np.arange(1), 0.0, np.empty(51))
    assert value == np.inf
    memory = (np.empty((3, 3)), np.empty(3), np.empty((1, 3)))
    assert not gp.fit(*memory, x, t, np.ones(1), 0.0, np.empty(18))


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
def test_fronts_twin(level, m):
    rng = np.random.default_rng(m)
    for n in (0, 1, 2, 17, 64, 300):
        for y in (
            rng.standard_normal((n, m)),
            rng.integers(0, 4, (n, m)).astype(float),
            np.column_stack([np.zeros((n, m - 1)), rng.integers(0, 9, n)]),
            np.where(rng.random((n, m)) < 0.3, np.inf, -rng.random((n, m))),
        ):
            y[:: max(1, n // 3), 0] = -0.0  # the same as 0.0
            rank = Guarded(np.zeros(n, np.int32))
            kernel("fronts", level).fronts(rank.array, np.ascontiguousarray(y))
            rank.check()
            assert np.array_equal(rank.array, reference.fronts(y))


def state_of(d, n, full, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((d, d))
    c = a @ a.T + 0.1 * np.eye(d)
    values, basis = np.linalg.eigh(c)
    axes = np.sqrt(values) if full else np.sqrt(np.diag(c))
    c, basis = (c, basis) if full else (np.diag(c).copy(), np.empty((0, d)))
    mean, path_sigma, path_c, scale = rng.random((4, d))
    return c, mean, path_sigma, path_c, rng.standard_normal((n, d)), scale, axes, basis


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("d", [1, 2, 5, 10, 33])
def test_cma_twin(level, full, d):
    cma = kernel("cma", level)
    n = 12
    c, mean, path_sigma, path_c, steps, scale, axes, basis = state_of(d, n, full)
    r = rates_of(d, n, not full)
    rates = (r.mu, r.mu_eff, r.c_sigma, r.c_c, r.c_1, r.c_mu, r.chi)
    before = (c.copy(), mean.copy(), path_sigma.copy(), path_c.copy())
    wanted = reference.cma_update(*before, steps, r.weights, scale, axes, basis, rates, 0.7)
    work = Guarded(np.empty(2 * d))
    arrays = (c, mean, path_sigma, path_c)
    length = cma.update(*arrays, steps, r.weights, scale, axes, basis, work.array, *rates, 0.7)
    work.check()
    assert length == pytest.approx(np.linalg.norm(path_sigma))
    for found, twin in zip(arrays, wanted):
        assert found == pytest.approx(twin, rel=1e-9, abs=1e-12)
    if full:
        assert np.array_equal(c, c.T)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("d", [1, 2, 3, 4, 9, 40])
def test_eigenvectors(level, d):
    cma = kernel("cma", level)
    rng = np.random.default_rng(d)
    a = rng.standard_normal((d, d))
    scales = 10.0 ** rng.uniform(-6, 0, d)
    for c in (a @ a.T, np.eye(d), np.diag(scales), (a * scales) @ (a * scales).T, np.ones((d, d))):
        basis, axes = Guarded(np.zeros((d, d))), Guarded(np.zeros(d))
        work = Guarded(np.empty(2 * d * d + 3 * d))
        assert cma.decompose(basis.array, axes.array, np.ascontiguousarray(c), work.array)
        for g in (basis, axes, work):
            g.check()
        b = basis.array
        assert b.T @ b == pytest.approx(np.eye(d), abs=1e-13 * d)
        assert (b * axes.array**2) @ b.T == pytest.approx(c, abs=1e-13 * d * np.abs(c).max())


@pytest.mark.parametrize("d", [1, 4, 7])
def test_samples_twin(d):
    rng = np.random.default_rng(d)
    half = (d + 1) // 2
    u, scale, axes, basis = rng.random((9, 2 * half)), *rng.random((2, d)), rng.random((d, d))
    radius, angle = np.sqrt(-2 * np.log1p(-u[:, :half])), 2 * np.pi * u[:, half:]
    z = np.hstack([radius * np.cos(angle), radius * np.sin(angle)])[:, :d] * axes
    for b, twin in ((basis, z @ basis.T * scale), (np.empty((0, d)), z * scale)):
        x = Guarded(np.zeros((9, d)))
        kernel("cma", levels()[0]).sample(x.array, u, scale, axes, b, np.empty(d))
        x.check()
        assert x.array == pytest.approx(twin)


def test_same_bits_on_every_level_and_thread_count():
    found = [
        model_of(level, 50, 4, threads, m=500)[0] for level in levels() for threads in THREADS
    ]
    assert len({f.tobytes() for f in found}) == 1
    assert len({model_of(level, 50, 4)[2].tobytes() for level in levels()}) == 1
    states = []
    for level in levels():
        cma = kernel("cma", level)
        c, mean, path_sigma, path_c, steps, scale, axes, basis = state_of(13, 11, True)
        r = rates_of(13, 11, False)
        rates = (r.mu, r.mu_eff, r.c_sigma, r.c_c, r.c_1, r.c_mu, r.chi, 0.9)
        args = (steps, r.weights, scale, axes, basis, np.empty(26), *rates)
        cma.update(c, mean, path_sigma, path_c, *args)
        cma.decompose(basis, axes, c, np.empty(2 * 169 + 39))
        x = np.empty((20, 13))
        cma.sample(x, np.linspace(0, 0.99, 280).reshape(20, 14), scale, axes, basis, np.empty(13))
        states.append(b"".join(a.tobytes() for a in (c, mean, path_sigma, basis, axes, x)))
    assert len(set(states)) == 1


def test_refusals_write_nothing():
    gp, cma, sort = (kernel(k, levels()[0]) for k in ("gp", "cma", "fronts"))
    x, t, w, out = np.zeros((3, 2)), np.zeros(3), np.ones(2), np.zeros(4)
    for call in (
        lambda: gp.likelihood(np.zeros(3), x, t, w, np.array([0, 2]), 0.1, np.zeros(57)),
        lambda: gp.likelihood(np.zeros(3), x, t, w, np.arange(2), 0.1, np.zeros(5)),
        lambda: gp.likelihood(np.zeros(3), x[:, :1], t, w, np.arange(2), 0.1, np.zeros(57)),
        lambda: gp.fit(np.zeros((2, 2)), t, x.T.copy(), x, t, w, 0.1, np.zeros(18)),
        lambda: gp.gain(out, np.zeros((5, 2)), x.T.copy(), w, np.zeros((3, 3)), t, 1.0, 0.0, 1),
        lambda: sort.fronts(np.zeros(3, np.int64), x),
        lambda: sort.fronts(np.zeros(2, np.int32), x),
        lambda: sort.fronts(np.zeros(3, np.int32), t),
        lambda: cma.sample(out, np.zeros((2, 2)), w, w, np.zeros((1, 2)), w),
        lambda: cma.decompose(np.zeros((2, 2)), np.zeros(2), np.zeros((2, 2)), np.zeros(3)),
    ):
        with pytest.raises(FastoptError):
            call()
    assert not out.any()
