"""gp and tpe: likelihood, posterior, improvement and densities against plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastopt.errors import TrialError
from fastopt.search import GP, TPE, Choice, Float, Int, Permutation, Space, minimize
from fastopt.search.engine import INFEASIBLE
from fastopt.search.gaussian_process import (
    LENGTH,
    NOISE,
    Features,
    Model,
    negative_log_posterior,
    squashed,
)
from fastopt.search.tpe import Mixture, groups_of, truncated
from tests.reference import log_improvement, matern

SPACE = Space(
    lr=Float(1e-5, 1, log=True), mix=Float(0, 1), n=Int(1, 50), kind=Choice("a", "b", "c")
)


def f(t):
    gap = (math.log10(t["lr"]) + 2) ** 2 + 4 * (t["mix"] - 0.3) ** 2 + abs(t["n"] - 20) / 20
    return gap + (t["kind"] != "b")


def run(algo, budget, k=1):
    while algo.n_told < budget:
        values = algo.propose(min(k, budget - algo.n_told))
        algo.learn(values, np.array([f(t) for t in algo.space.dicts_of(values)]))
    return algo


def test_the_posterior_of_the_parameters_and_its_gradient():
    rng = np.random.default_rng(0)
    x, t = rng.random((15, 3)), rng.standard_normal(15)
    of, work = np.arange(3), np.empty(4 * 15 * 15 + 9 * 15)
    theta = np.array([-1.0, -0.5, 0.2, -4.0])
    value, gradient = negative_log_posterior(theta, x, t, of, work)
    z = x / np.exp(theta[:3])
    k = matern(z, z) + (math.exp(-4) + 1e-8) * np.eye(15)
    variance = t @ np.linalg.solve(k, t) / 15
    plain = 0.5 * 15 * math.log(variance) + 0.5 * np.linalg.slogdet(k)[1]
    away = (theta - np.array([LENGTH[0]] * 3 + [NOISE[0]])) / ([LENGTH[1]] * 3 + [NOISE[1]])
    assert value == pytest.approx(plain + 0.5 * (away**2).sum())
    for i in range(4):
        step = 1e-5 * np.eye(4)[i]
        up, down = (negative_log_posterior(theta + s, x, t, of, work)[0] for s in (step, -step))
        assert gradient[i] == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-5)


def test_the_posterior_is_that_of_sklearn():
    kernels = pytest.importorskip("sklearn.gaussian_process.kernels")
    process = pytest.importorskip("sklearn.gaussian_process")
    rng = np.random.default_rng(1)
    a, b = rng.random((7, 3)), rng.random((5, 3))
    assert matern(a, b) == pytest.approx(kernels.Matern(nu=2.5)(a, b), rel=1e-6, abs=1e-7)
    space = Space(x=Float(0, 1), y=Float(0, 1))
    x, t = rng.random((12, 2)), rng.standard_normal(12)
    theta = np.array([-1.0, 0.0, -6.0])
    model = Model(Features(space), x, t, theta)
    noise = math.exp(-6) + 1e-8
    kernel = kernels.Matern(length_scale=np.exp(theta[:2]), nu=2.5)
    twin = process.GaussianProcessRegressor(kernel, alpha=noise, optimizer=None).fit(x, t)
    points = rng.random((9, 2))
    mean, deviation = twin.predict(points, return_std=True)
    deviation = deviation * math.sqrt(model.variance)
    wanted = log_improvement((model.best - mean) / deviation) + np.log(deviation)
    assert model.gain(points) == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_a_matrix_without_a_factor_gets_more_noise():
    space = Space(x=Float(0, 1))
    x = np.full((30, 1), 0.5)
    model = Model(Features(space), x, np.linspace(-1, 1, 30), np.array([0.0, -40.0]))
    assert np.isfinite(model.gain(np.linspace(0, 1, 5)[:, None])).all()


@pytest.mark.parametrize("form", [0, 1])
def test_values_for_the_model(form):
    y = np.array([1.0, 2.0, 3.0, 4.0, 1e9, np.nan, np.inf, INFEASIBLE * 10])
    t = squashed(y, form)
    assert np.isfinite(t).all()
    assert (np.diff(t[:4]) > 0).all()
    assert len(set(t[4:])) == 1  # clipped alike
    assert t.mean() == pytest.approx(0, abs=1e-12)
    only = squashed(np.array([1e150, 1e180, np.nan]), form)
    assert only[0] < only[1] <= only[2]
    assert not squashed(np.ones(5), form).any()


def test_a_valley_among_bad_values_is_seen_by_rank():
    y = np.concatenate([np.linspace(1, 1.01, 20), [5.0, 4.0, 3.0, 2.0]])
    assert len(set(squashed(y, 0)[20:])) == 1
    assert (np.diff(squashed(y, 1)[20:]) < 0).all()


@pytest.mark.parametrize(("engine", "budget", "level"), [(GP, 40, 0.05), (TPE, 120, 0.35)])
def test_they_find_a_mixed_optimum(engine, budget, level):
    found = [run(engine(SPACE, seed=s), budget).fun for s in range(3)]
    random = [minimize(f, SPACE, method="random", max_evals=budget, seed=s).fun for s in range(3)]
    assert max(found) < level < np.median(random)


@pytest.mark.parametrize("engine", [GP, TPE])
def test_pending_trials_are_not_proposed_again(engine):
    space = Space(n=Int(0, 5), c=Choice("a", "b"))
    algo = engine(space, seed=0, n_start=3)
    seen = set()
    for _ in range(4):
        values = algo.propose(3)
        seen |= {tuple(v) for v in values}
        algo.learn(values[:2], values[:2].sum(axis=1))  # one in three is never told
    assert len(seen) == 12
    algo.propose(5)  # every point is out: no error
    spread = engine(SPACE, seed=0)
    run(spread, 15)
    batch = spread.propose(4)
    assert len({tuple(v) for v in batch}) == 4
    assert len(spread._waiting) == 4


@pytest.mark.parametrize("engine", [GP, TPE])
def test_odd_objectives(engine):
    space = Space(x=Float(0, 1), o=Permutation(4))
    for y in (np.nan, 1.0, np.inf, 1e150):
        algo = engine(space, seed=0, n_start=4)
        for _ in range(8):
            algo.learn(algo.propose(1), np.array([y]))


def test_groups_follow_conditions():
    space = Space(
        opt=Choice("sgd", "adam"),
        lr=Float(0, 1),
        momentum=Float(0, 1, when={"opt": "sgd"}),
        beta=Float(0, 1, when={"opt": "adam"}),
        decay=Float(0, 1, when={"opt": "adam"}),
    )
    assert [g.tolist() for g in groups_of(space)] == [[0, 1], [2], [3, 4]]

    def cost(t):
        if t["opt"] == "sgd":
            return 1 + t["lr"] + abs(t["momentum"] - 0.5)
        return abs(t["lr"] - 0.2) + abs(t["beta"] - 0.7) + abs(t["decay"] - 0.1)

    res = minimize(cost, space, max_evals=150)
    assert res.method == "tpe"
    assert res.x["opt"] == "adam"
    assert res.fun < 0.2


def test_truncated_normals_and_mixtures():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    u = rng.random(5000)
    for a, b in ((-1.0, 0.5), (2.0, 3.0), (-6.0, 6.0)):
        x = truncated(np.full(5000, a), np.full(5000, b), u)
        assert stats.kstest(x, stats.truncnorm(a, b).cdf).pvalue > 1e-3
    space = Space(x=Float(0, 1), c=Choice("a", "b", "c"))
    genomes = np.array([[0.2, 0.0], [0.9, 2.0]])
    mixture = Mixture(space, np.arange(2), genomes)
    grid = (np.arange(2000) + 0.5) / 2000
    total = 0.0
    for option in range(3):
        points = np.column_stack([grid, np.full(2000, float(option))])
        total += np.exp(mixture.log_density(points)).mean() / 3
    assert total == pytest.approx(1, abs=2e-3)  # a density over the box
    draws = mixture.draw(TPE(space, seed=3), 0, 0, 4000)
    share = np.bincount(np.rint(draws[:, 1]).astype(int), minlength=3) / 4000
    wanted = [
        np.exp(mixture.log_density(np.column_stack([grid, np.full(2000, float(o))]))).mean() / 3
        for o in range(3)
    ]
    assert share == pytest.approx(wanted, abs=0.03)


def test_one_objective_is_refused_by_nsga2_with_advice() -> None:
    with pytest.raises(TrialError, match='another method than "nsga2"'):
        minimize(lambda p: p["x"], Space(x=Float(0, 1)), method="nsga2", max_evals=10)
