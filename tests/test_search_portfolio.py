"""The portfolio for real spaces and its parts: sums, the box, noise, state, order of results."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt.errors import FormatError, OptionError
from fastopt.search import Choice, Float, Int, Portfolio, Space, Vector, minimize
from fastopt.search.axis_search import AxisSearch, is_sum, splits
from fastopt.search.quasi_newton import QuasiNewton, box_minimum


def run(algo, f, budget):
    while algo.n_told < budget:
        values = algo.propose(min(algo.wants(), budget - algo.n_told))
        algo.learn(values, np.array([f(v) for v in values]))
    return algo


def rosenbrock(x):
    return float((100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum())


def rastrigin(x):
    return float((x**2 - 10 * np.cos(2 * np.pi * x) + 10).sum())


def test_the_step_is_the_minimum_in_the_box():
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    for _ in range(60):
        d = int(rng.integers(1, 8))
        a = rng.standard_normal((d, d))
        h, g, x = a @ a.T + 0.01 * np.eye(d), 3 * rng.standard_normal(d), rng.random(d)
        x[rng.random(d) < 0.3] = rng.integers(2)
        p = box_minimum(x, g, h)
        assert ((x + p >= -1e-12) & (x + p <= 1 + 1e-12)).all()
        best = optimize.minimize(
            lambda s, g=g, h=h: g @ s + 0.5 * s @ h @ s,
            np.zeros(d),
            jac=lambda s, g=g, h=h: g + h @ s,
            bounds=list(zip(-x, 1 - x)),
            options={"ftol": 1e-15, "gtol": 1e-10},
        )
        assert g @ p + 0.5 * p @ h @ p <= best.fun + 1e-6 * (1 + abs(best.fun))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_quasi_newton_converges_whatever_the_scale(scale):
    for seed in range(3):
        climb = QuasiNewton()
        x = np.random.default_rng(seed).random(6)
        climb.start(x, scale * rosenbrock(4 * x - 2), 3000)
        used = 0
        while len(climb.request):
            used += len(climb.request)
            climb.advance(scale * np.array([rosenbrock(4 * v - 2) for v in climb.request]))
        assert climb.fx < scale * 1e-9 or climb.fx == pytest.approx(scale * 3.97, rel=0.01)
        assert used < 1500


def test_quasi_newton_ends_in_a_corner_and_where_there_is_no_slope():
    climb = QuasiNewton()
    climb.start(np.full(4, 0.3), 1.2, 10_000)
    while len(climb.request):
        climb.advance(climb.request.sum(axis=1))
    assert climb.fx == 0
    climb.start(np.full(4, 0.3), 1.0, 10_000)
    climb.advance(np.ones(4))
    assert not len(climb.request)
    climb.start(np.full(4, 0.3), 1.0, 10_000)
    climb.advance(np.full(4, np.inf))
    assert not len(climb.request)


def test_sums_are_told_from_other_objectives():
    rng = np.random.default_rng(0)
    points, u = rng.random((9, 5)), rng.random((9, 5))
    splits(points, u)
    assert is_sum(np.array([rastrigin(v) for v in points]))
    assert is_sum(1e9 + np.array([rastrigin(v) for v in points]) * 1e9)
    assert not is_sum(np.array([rosenbrock(v) for v in points]))
    assert not is_sum(np.array([rastrigin(v) for v in points]) + 1e-3 * rng.random(9))
    assert not is_sum(np.ones(9))
    assert not is_sum(np.full(9, np.nan))


def test_the_axis_search_finds_the_lowest_of_many_minima():
    centre = np.array([0.31, 0.77, 0.52, 0.12])

    def f(x):
        return float(rastrigin(20 * (x - centre)))

    search = AxisSearch()
    search.start(np.full(4, 0.5), f(np.full(4, 0.5)), 200)
    while len(search.request):
        search.advance(np.array([f(v) for v in search.request]))
    assert search.fx < 1e-10
    assert search.x == pytest.approx(centre, abs=1e-6)


def test_the_axis_search_leaves_what_is_no_sum():
    search = AxisSearch()
    x = np.full(3, 0.4)
    search.start(x, rosenbrock(4 * x - 2), 200)
    turns = 0
    while len(search.request):
        turns += 1
        search.advance(np.array([rosenbrock(4 * v - 2) for v in search.request]))
    assert turns < 10


def test_each_kind_of_objective_has_its_stage():
    space = Space(x=Vector(5, -5, 5))
    rng = np.random.default_rng(0)
    stages = {}
    for name, f in {
        "sum": rastrigin,
        "smooth": rosenbrock,
        "noisy": lambda x: rosenbrock(x) * (1 + 0.05 * rng.random()),
        "failing": lambda x: np.nan,
    }.items():
        algo = Portfolio(space, seed=0)
        stages[name] = []
        for _ in range(12):
            values = algo.propose(algo.wants())
            algo.learn(values, np.array([f(v) for v in values]))
            stages[name].append(algo._stage)
    assert "axes" in stages["sum"]
    assert "climb" in stages["smooth"]
    assert "axes" not in stages["smooth"]
    assert set(stages["noisy"]) == {"repeat", "cma"}
    assert set(stages["failing"]) == {"cma"}


@pytest.mark.parametrize(("f", "budget"), [(rastrigin, 2500), (rosenbrock, 2500)])
def test_it_solves_what_its_parts_are_for(f, budget):
    for seed in range(3):
        algo = run(Portfolio(Space(x=Vector(6, -5, 5)), seed=seed), lambda x: f(x - 0.3), budget)
        assert algo.fun < 1e-8


def test_log_variables_and_fixed_ones():
    space = Space(lr=Float(1e-6, 1, log=True), fixed=Float(2, 2), x=Vector(2, -1, 3))

    def f(v):
        return float((np.log10(v[0]) + 3) ** 2 + v[1] + ((v[2:] - 1) ** 2).sum())

    algo = run(Portfolio(space, seed=0), f, 300)
    assert algo.fun == pytest.approx(2, abs=1e-10)
    assert algo.x["lr"] == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("at", [5, 40, 130, 700, 1100])
def test_state_continues_bit_for_bit_in_every_stage(at):
    space = Space(x=Vector(4, -5, 5))

    def f(x):
        return rosenbrock(x - 0.5) + 3 * rastrigin(x[::-1] * x[0])

    algo = run(Portfolio(space, seed=2), f, at)
    other = Portfolio(space, seed=9)
    other.load_state_dict(algo.state_dict())
    a, b = run(algo, f, at + 300), run(other, f, at + 300)
    assert a.fun == b.fun
    assert a.propose(5).tobytes() == b.propose(5).tobytes()
    state = a.state_dict()
    state["climb"] = {}
    with pytest.raises(FormatError):
        a.load_state_dict(state)


def test_results_in_any_order():
    space = Space(x=Vector(4, -5, 5))
    algo = Portfolio(space, seed=0)
    rng = np.random.default_rng(0)
    waiting = [algo.propose(1) for _ in range(6)]
    while algo.n_told < 1500:
        x = waiting.pop(int(rng.integers(len(waiting))))
        algo.learn(x, np.array([rosenbrock(x[0])]))
        waiting.append(algo.propose(1))
    assert algo.fun < 1e-8


def test_auto_takes_it_for_real_spaces_alone():
    space = Space(x=Vector(3, -5, 5))
    res = minimize(lambda x: rosenbrock(x), space, max_evals=800)
    assert res.method == "portfolio"
    assert "real" in res.method_reason
    assert res.fun < 1e-8
    with pytest.raises(OptionError, match="Float"):
        Portfolio(Space(n=Int(0, 3), c=Choice("a", "b")))
    many = minimize(lambda x: float((x**2).sum()), {"x": Vector(300, -5, 5)}, max_evals=400)
    assert many.method == "cma"
    assert "finite differences" in many.method_reason
    started = minimize(lambda x: rosenbrock(x), space, x0={"x": [1.0, 1, 1]}, max_evals=5)
    assert started.fun == 0
