"""CMA-ES: updates against ``cmaes``, the box, margins, restarts, results out of order."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt.errors import OptionError
from fastopt.search import CMA, Bool, Choice, Float, Int, Space, Vector
from fastopt.search.cma import EDGE, boxed, rates_of, unboxed
from fastopt.search.margin import Categories


def run(algo, f, budget):
    while algo.n_told < budget:
        values = algo.propose(min(algo.wants(), budget - algo.n_told))
        algo.learn(values, np.array([f(v) for v in values]))
    return algo


@pytest.mark.parametrize(("d", "n"), [(2, 6), (5, 8), (10, 10), (20, 50)])
def test_rates_are_those_of_the_tutorial(d, n):
    r = rates_of(d, n, False)
    w = r.weights
    assert w[: r.mu].sum() == pytest.approx(1)
    assert (np.diff(w) < 0).all()
    assert r.mu_eff == pytest.approx(1 / (w[: r.mu] ** 2).sum())
    # C stays positive definite: the worst weights can shrink no direction below 0 (eq. 52).
    assert r.c_1 + r.c_mu <= 1
    assert d * r.c_mu * -w[w < 0].sum() <= 1 - r.c_1 - r.c_mu + 1e-12


@pytest.mark.parametrize("d", [3, 8])
def test_updates_match_cmaes(d):
    cmaes = pytest.importorskip("cmaes")
    n = 12
    rng = np.random.default_rng(0)
    algo = CMA(Space(x=Vector(d, -5, 5)), population=n, restarts="none", seed=0)
    algo.tell(np.zeros((n, d)), np.arange(float(n)))  # the opening: the mean is the middle
    twin = cmaes.CMA(mean=np.full(d, 0.5), sigma=algo.sigma, population_size=n)
    r = rates_of(d, n, False)
    twin._weights, twin._cmu, twin._c1, twin._mu_eff = r.weights, r.c_mu, r.c_1, r.mu_eff
    assert (twin._cc, twin._c_sigma, twin._d_sigma) == pytest.approx((r.c_c, r.c_sigma, r.d_sigma))
    for _ in range(12):
        x = rng.normal(0.5, 0.05, (n, d))  # near the middle, where the box changes nothing
        y = ((x - 0.47) ** 2 * 10.0 ** np.arange(d)).sum(axis=1)
        algo._update(x.copy(), y)
        algo._decompose()
        twin.tell(list(zip(x, y)))
        assert algo._mean == pytest.approx(twin._mean, rel=1e-6)
        assert algo._sigma == pytest.approx(twin._sigma, rel=1e-6)
        assert algo._c == pytest.approx(twin._C, abs=1e-6)  # it adds 1e-8 to lengths
        assert algo._path_c == pytest.approx(twin._pc, abs=1e-6)


def test_the_rounded_box():
    x = np.linspace(-7, 7, 20_001)
    v = boxed(x)
    assert v.min() >= 0
    assert v.max() <= 1
    assert np.abs(np.diff(v)).max() <= (x[1] - x[0]) * (1 + 1e-9)  # slope at most 1, no jump
    inside = (x > EDGE) & (x < 1 - EDGE)
    assert np.array_equal(v[inside], x[inside])
    u = np.linspace(0, 1, 1001)
    assert boxed(unboxed(u)) == pytest.approx(u, abs=1e-12)
    assert boxed(unboxed(np.array([0.0, 1.0]))).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("separable", [False, True])
def test_samples_follow_the_distribution(separable):
    d, k = 3, 40_000
    algo = CMA(Space(x=Vector(d, 0, 1)), sigma=0.05, separable=separable, seed=4)
    if not separable:
        a = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -0.4], [0.2, 0.0, 1.0]])
        algo._c = a @ a.T
        algo._decompose()
    x = algo._sample(0, k)
    wanted = 0.05**2 * (algo._c if not separable else np.diag(algo._c))
    assert x.mean(axis=0) == pytest.approx(np.full(d, 0.5), abs=5 * 0.08 / np.sqrt(k))
    assert np.cov(x.T) == pytest.approx(wanted, abs=5 * 0.05**2 * 2 / np.sqrt(k))
    white = ((x - 0.5) / 0.05 @ algo._basis / algo._axes) if not separable else (x - 0.5) / 0.05
    stats = pytest.importorskip("scipy.stats")
    assert stats.kstest(white.ravel(), "norm").pvalue > 1e-4


def ellipsoid(d, rotated):
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((d, d)))[0] if rotated else np.eye(d)
    scale = 10.0 ** (6 * np.arange(d) / (d - 1))
    return lambda x: float(((x - 0.7) @ q) ** 2 @ scale)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("restarts", ["ipop", "bipop"])
def test_ill_conditioned_functions_are_solved(rotated, restarts):
    space = Space(x=Vector(6, -5, 5))
    algo = run(CMA(space, restarts=restarts, seed=1), ellipsoid(6, rotated), 5000)
    assert algo.fun < 1e-9


def test_the_separable_form_in_many_dimensions():
    d = 300
    algo = CMA(Space(x=Vector(d, -5, 5)), seed=0)
    assert algo.separable
    scale = np.linspace(1, 30, d)
    start = float((scale * 9.0).sum())
    run(algo, lambda x: float(scale @ (x - 1) ** 2), 20_000)
    assert algo.fun < 1e-3 * start


def test_an_optimum_in_a_corner():
    algo = run(CMA(Space(x=Vector(5, -5, 5)), seed=0), lambda x: float(-x.sum()), 1500)
    assert algo.fun == pytest.approx(-25, abs=1e-9)


def test_integers_do_not_freeze():
    space = Space(**{f"n{i}": Int(-50, 50) for i in range(4)}, x=Float(-5, 5))
    target = np.array([40, -33, 17, 3, 1.25])
    hits = 0
    for seed in range(5):
        algo = CMA(space, restarts="none", seed=seed)
        run(algo, lambda v: float((np.array([1, 10, 100, 1, 10]) * (v - target) ** 2).sum()), 3000)
        hits += algo.fun < 1e-6
    assert hits == 5


def test_margins_keep_their_probability():
    space = Space(a=Int(0, 9), b=Int(1, 1000, log=True), x=Float(0, 1))
    algo = CMA(space, population=10, restarts="none", seed=0)
    run(algo, lambda v: float(abs(v[0] - 4) + abs(np.log(v[1] / 30)) + v[2] ** 2), 1500)
    algo._told_y = algo._told_y[:0]
    sample = space.values_of(space.low + boxed(algo._sample(10_000, 20_000)) * algo._width)
    alpha = 1 / (10 * 3)
    for column in (0, 1):
        values, counts = np.unique(sample[:, column], return_counts=True)
        common = values[counts.argmax()]
        for side in (sample[:, column] < common, sample[:, column] > common):
            assert side.mean() > 0.35 * alpha / 2


def test_options_are_learnt_and_keep_a_margin():
    space = Space(kind=Choice(*"abcdefgh"), on=Bool(), x=Vector(3, -5, 5))

    def f(v):
        return float((v[0] != 5) + 2 * (v[1] != 1) + ((v[2:] - 1) ** 2).sum())

    for seed in range(4):
        algo = run(CMA(space, seed=seed, restarts="none"), f, 1500)
        assert algo.fun < 1e-6
        odds = algo._odds[:, :8]
        assert odds.sum(axis=1) == pytest.approx([1, 1])
        inside = Categories(space).inside
        assert (odds[inside] > 0).all()
        assert (odds[~inside] == 0).all()
        assert odds[0].argmax() == 5
        assert odds[1].argmax() == 1


def test_option_draws_have_their_probabilities():
    space = Space(kind=Choice(*"abc"), x=Float(0, 1))
    categories = Categories(space)
    odds = categories.uniform()
    odds[0, :3] = (0.6, 0.1, 0.3)
    genomes = np.empty((30_000, 2))
    categories.draw(genomes, odds, np.random.default_rng(0).random((30_000, 2)))
    share = np.bincount((genomes[:, 0] * 3).astype(int)) / 30_000
    assert share == pytest.approx([0.6, 0.1, 0.3], abs=0.012)


def test_restarts_double_the_population():
    algo = CMA(Space(x=Vector(2, -5, 5)), seed=0, population=6)
    sizes = set()
    while algo.n_told < 4000:
        x = algo.propose(algo.wants())
        algo.learn(x, (x**2).sum(axis=1))
        sizes.add(algo._size)
    assert algo.converged >= 2
    assert {6, 12, 24} <= sizes
    flat = run(CMA(Space(x=Vector(2, -5, 5)), seed=0), lambda x: 1.0, 1000)
    assert flat.converged >= 1  # a flat objective ends a run


def test_results_in_any_order_and_failed_ones():
    space = Space(x=Vector(4, -5, 5))
    algo = CMA(space, seed=0)
    waiting = [algo.propose(1) for _ in range(9)]
    rng = np.random.default_rng(0)
    while algo.n_told < 2500:  # nine workers, each result at a random time
        x = waiting.pop(int(rng.integers(len(waiting))))
        failed = rng.random() < 0.1
        algo.learn(x, np.array([np.nan if failed else float(((x - 1) ** 2).sum())]))
        waiting.append(algo.propose(1))
    assert algo.fun < 1e-10
    assert len(algo._waiting) == 9


def test_trials_that_were_not_asked_help():
    f = ellipsoid(8, True)
    plain = run(CMA(Space(x=Vector(8, -5, 5)), seed=3), f, 400).fun
    algo = run(CMA(Space(x=Vector(8, -5, 5)), seed=3), f, 200)
    algo.learn(np.full((4, 8), 0.7001), np.full(4, f(np.full(8, 0.7001))))
    assert run(algo, f, 400).fun < plain
    started = CMA(Space(x=Vector(8, -5, 5)), x0=np.full((1, 8), 0.7), sigma=1e-3, seed=3)
    assert run(started, f, 1).fun == pytest.approx(0)


def test_constraints_by_debs_rules():
    algo = CMA(Space(x=Vector(3, -5, 5)), seed=0)
    while algo.n_told < 2000:
        x = algo.ask(algo.wants())
        algo.tell(x, (x**2).sum(axis=1), (1 - x[:, :1]))  # x0 >= 1
    assert algo.feasible
    assert algo.fun == pytest.approx(1, abs=1e-3)


def test_options_are_checked():
    space = Space(x=Float(0, 1))
    for bad in ({"sigma": 0}, {"population": 1}, {"restarts": "often"}):
        with pytest.raises(OptionError):
            CMA(space, **bad)
