"""Orders, fronts and the engines that use them: operators, clones, NSGA-II, L-SHADE."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastopt.errors import ArrayError, OptionError
from fastopt.search import (
    DE,
    NSGA2,
    Bool,
    Choice,
    Float,
    Genetic,
    Int,
    Permutation,
    Space,
    Subset,
    Vector,
    crowding,
    fronts,
    hypervolume,
    minimize,
    variation,
)
from fastopt.search.orders import CROSSOVERS, cut, moved, order_crossover, pmx, reversed_part
from fastopt.search.pareto import thinned


@pytest.mark.parametrize("operator", [*CROSSOVERS, "reversed", "moved"])
def test_permutations_stay_permutations(operator):
    rng = np.random.default_rng(0)
    changed = 0
    for _ in range(400):
        n = int(rng.integers(1, 12))
        a, b, u = rng.permutation(n), rng.permutation(n), rng.random(4)
        before = a.copy(), b.copy()
        if operator in CROSSOVERS:
            child = CROSSOVERS[operator](a, b, u)
        else:
            child = (reversed_part if operator == "reversed" else moved)(a, u)
        assert sorted(child.tolist()) == list(range(n))
        assert np.array_equal(a, before[0])
        assert np.array_equal(b, before[1])
        changed += not np.array_equal(child, a)
    assert changed > 100


def test_crossovers_do_what_their_papers_say():
    a, b = np.arange(9), np.array([8, 2, 6, 7, 1, 5, 4, 0, 3])
    u = np.array([3.5 / 10, 5.5 / 9, 0.0])  # cuts at 3 and 6
    assert cut(u[0], u[1], 9) == (3, 6)
    child = order_crossover(a, b, u)
    assert child[3:6].tolist() == [3, 4, 5]
    assert child.tolist() == [6, 7, 1, 3, 4, 5, 0, 8, 2]  # b from the second cut: 0 8 2 6 7 1
    child = pmx(a, b, u)
    assert child[3:6].tolist() == [3, 4, 5]
    assert child.tolist() == [8, 2, 6, 3, 4, 5, 1, 0, 7]
    # Edge recombination of two readings of one round trip keeps all its edges.
    turned = np.roll(a, 4)[::-1]
    child = CROSSOVERS["edge"](a, turned, np.array([0.4, 0, 0]))
    gaps = np.abs(np.diff(np.append(child, child[0])))
    assert set(gaps.tolist()) <= {1, 8}


def test_cuts_are_equally_likely():
    n, draws = 5, 60_000
    u = np.random.default_rng(0).random((draws, 2))
    pairs = [cut(a, b, n) for a, b in u]
    wanted = list(itertools.combinations(range(n + 1), 2))
    counts = np.array([pairs.count(p) for p in wanted])
    assert counts.sum() == draws
    assert counts / draws == pytest.approx(np.full(15, 1 / 15), abs=0.006)


def test_a_tour_is_found():
    points = np.exp(2j * np.pi * np.random.default_rng(1).permutation(16) / 16)

    def length(order):
        return float(np.abs(points[order] - points[np.roll(order, -1)]).sum())

    best = 16 * abs(1 - np.exp(2j * np.pi / 16))
    for operator in CROSSOVERS:
        algo = Genetic(
            Space(order=Permutation(16)), population=10, order_crossover=operator, seed=0
        )
        while algo.n_told < 4000:
            trials = algo.ask(4)
            algo.tell(trials, [length(o) for o in trials["order"]])
        assert algo.fun == pytest.approx(best)
    res = minimize(lambda order: length(order), {"order": Permutation(16)}, max_evals=4000)
    assert res.method == "genetic"
    assert res.fun == pytest.approx(best)


def test_no_clones_of_the_population_or_of_waiting_trials():
    space = Space(**{f"b{i}": Bool() for i in range(20)}, c=Choice("a", "b"), n=Int(0, 9))
    algo = Genetic(space, population=10, unique=True, seed=0)
    waiting = np.empty((0, space.n_columns))
    for _ in range(40):
        present = np.concatenate([space.values_of(algo._genomes), waiting])
        values = algo.propose(6)
        both = np.concatenate([present, values])
        assert len(np.unique(both, axis=0)) == len(np.unique(present, axis=0)) + 6
        algo.learn(values[:5], -values[:5].sum(axis=1))
        waiting = np.concatenate([waiting, values[5:]])
        assert np.array_equal(algo._waiting, waiting)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_fronts_against_their_definition(m):
    rng = np.random.default_rng(m)
    for n in (0, 1, 2, 30, 120):
        for y in (rng.random((n, m)), rng.integers(0, 4, (n, m)).astype(float)):
            rank = np.full(n, -1)
            left, front = np.ones(n, bool), 0
            less = (y[:, None] <= y).all(axis=2) & (y[:, None] < y).any(axis=2)
            while left.any():
                first = left & ~less[left].any(axis=0)
                rank[first] = front
                left &= ~first
                front += 1
            assert np.array_equal(fronts(y), rank)
    assert fronts([[1.0, np.nan], [1, 2], [2, 3]]).tolist() == [2, 0, 1]
    with pytest.raises(ArrayError):
        fronts(np.zeros(3))


@pytest.mark.parametrize("m", [2, 3])
def test_fronts_and_hypervolume_are_those_of_moocore(m):
    moocore = pytest.importorskip("moocore")
    rng = np.random.default_rng(0)
    y = np.round(rng.random((500, m)), 2)
    assert np.array_equal(fronts(y), moocore.pareto_rank(y))
    reference = np.full(m, 0.9)
    assert hypervolume(y, reference) == pytest.approx(moocore.hypervolume(y, ref=reference))
    assert hypervolume(y + 2, reference) == 0
    with pytest.raises(ArrayError):
        hypervolume(np.zeros((3, 4)), np.ones(4))


def test_crowding_by_hand():
    y = np.array([[0.0, 10], [1, 6], [4, 5], [10, 0]])
    assert crowding(y).tolist() == [np.inf, 0.4 + 0.5, 0.9 + 0.6, np.inf]
    assert crowding(np.ones((3, 2))).tolist() == [0, 0, 0]


def zdt(x, which):
    g = 1 + 9 * x[:, 1:].mean(axis=1)
    ratio = x[:, 0] / g
    h = {1: 1 - np.sqrt(ratio), 2: 1 - ratio**2}.get(which)
    if h is None:
        h = 1 - np.sqrt(ratio) - ratio * np.sin(10 * np.pi * x[:, 0])
    return np.column_stack([x[:, 0], g * h])


def test_thinning_is_crowding_again_and_again():
    rng = np.random.default_rng(0)
    for m in (2, 3):
        for y in (rng.random((40, m)), rng.integers(0, 3, (30, m)).astype(float), np.ones((4, m))):
            left = np.arange(len(y))
            for n in range(len(y) - 1, m * 2, -1):
                spread = crowding(y[left])
                if not np.isfinite(spread).any():
                    break
                stay = thinned(y, n)
                gone = np.setdiff1d(left, stay)
                assert len(gone) == 1
                own = spread[np.flatnonzero(left == gone[0])[0]]
                assert own == pytest.approx(spread.min(), abs=1e-9)
                left = stay
    assert thinned(np.ones((3, 2)), 5).tolist() == [0, 1, 2]
    assert len(thinned(np.full((5, 2), np.inf), 2)) == 2
    for seed in range(40):  # many equal points, of which only ends are left before n is reached
        y = np.random.default_rng(seed).integers(0, 4, (12, 2))
        assert [len(thinned(y, n)) for n in range(1, 13)] == list(range(1, 13))


@pytest.mark.parametrize(("which", "level"), [(1, 0.84), (2, 0.50), (3, 1.26)])
def test_nsga2_reaches_the_fronts(which, level):
    algo = NSGA2(Space(x=Vector(10, 0, 1)), population=60, seed=0)
    while algo.n_told < 6000:
        x = algo.propose(60)
        algo.learn(x, zdt(x, which))
    _, y = algo.pareto
    assert hypervolume(y, [1.1, 1.1]) > level
    other = NSGA2(Space(x=Vector(10, 0, 1)), population=60, seed=5)
    other.load_state_dict(algo.state_dict())
    assert other.propose(7).tobytes() == algo.propose(7).tobytes()


def test_nsga2_keeps_constraints():
    # of 60 seeds two leave a point further away than 0.04 by the end
    algo = NSGA2(Space(x=Vector(2, 0, 1)), population=30, seed=1)
    for _ in range(200):
        x = algo.ask(30)
        algo.tell(x, x, 0.5 - x.sum(axis=1, keepdims=True))  # x0 + x1 >= 0.5
    _, y = algo.pareto
    assert y.sum(axis=1) == pytest.approx(np.full(len(y), 0.5), abs=0.04)
    assert len(y) > 10
    with pytest.raises(ArrayError, match=r"\(30, 2\)"):
        algo.tell(algo.ask(30), np.zeros(30))


def test_de_shrinks_and_converges():
    def rosenbrock(x):
        return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(axis=1)

    algo = DE(Space(x=Vector(4, -5, 5)), budget=8000, seed=0)
    start = None
    while algo.n_told < 8000:
        x = algo.propose(min(algo.wants(), 8000 - algo.n_told))
        algo.learn(x, rosenbrock(x))
        start = start or len(algo._genomes)
    assert algo.fun < 1e-6
    assert start == 72
    assert len(algo._genomes) <= 6
    res = minimize(
        lambda t: (t["x"] - 1) ** 2 + (t["n"] - 4) ** 2,
        {"x": Float(-9, 9), "n": Int(0, 9)},
        method="de",
        max_evals=600,
    )
    assert res.fun < 1e-3


@pytest.mark.parametrize("strategy", ["forward", "backward"])
@pytest.mark.parametrize("beam", [1, 3])
def test_selection_of_subsets_level_by_level(strategy, beam):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 7))
    target = x[:, 1] - 2 * x[:, 4] + 0.5 * x[:, 6] + 0.1 * rng.standard_normal(60)

    def score(taken):
        chosen = x[:, taken.astype(bool)]
        rest = target - chosen @ np.linalg.lstsq(chosen, target, rcond=None)[0]
        return float(rest @ rest + 0.5 * taken.sum())

    space = Space(**{f"b{i}": Bool() for i in range(7)})
    algo = Subset(space, strategy=strategy, beam=beam)
    sizes = []
    for _ in range(8):
        values = algo.propose(algo.wants())
        sizes.append((len(values), int(values[0].sum())))
        assert len(np.unique(values, axis=0)) == len(values)
        algo.learn(values, np.array([score(v) for v in values]))
    levels = [size for _, size in sizes]
    assert levels == sorted(range(8), reverse=strategy == "backward")
    assert sizes[1][0] == 7
    assert sizes[2][0] == (6 if beam == 1 else sizes[2][0])
    assert algo.x == {f"b{i}": i in (1, 4, 6) for i in range(7)}
    other = Subset(space, strategy=strategy, beam=beam)
    other.load_state_dict(algo.state_dict())
    assert other.propose(4).tobytes() == algo.propose(4).tobytes()
    with pytest.raises(OptionError, match="Bool"):
        Subset({"x": Float(0, 1)})


def test_greedy_takes_all_flips_that_help_at_once():
    space = Space(**{f"b{i}": Bool() for i in range(300)})

    def left(columns):
        return 300 - sum(np.asarray(c, float) for c in columns.values())

    res = minimize(left, space, method="greedy", vectorized=True, max_evals=4000)
    assert res.fun == 0


def test_options_are_checked():
    with pytest.raises(OptionError):
        Genetic({"o": Permutation(3)}, order_crossover="cycle")
    with pytest.raises(OptionError):
        NSGA2({"x": Float(0, 1)}, objectives=1)
    with pytest.raises(OptionError):
        DE({"x": Float(0, 1)}, population=3)


def test_variation_of_bits():
    rng = np.random.default_rng(0)
    parents, mates = rng.random((6, 4000)) < 0.5, np.array([0, 1, 2, 3, 4, 4])
    args = {"crossover": "uniform", "rate": 1.0, "seed": 3}
    child = variation(parents, mates, 0, 1, mutation="none", **args)
    assert child.dtype == bool
    for p in range(3):  # siblings share out what their parents have
        a, b = parents[mates[2 * p]], parents[mates[2 * p + 1]]
        pair = child[2 * p : 2 * p + 2]
        assert np.array_equal(np.sort(pair, axis=0), np.sort([a, b], axis=0))
    taken = (child[0] == parents[0])[parents[0] != parents[1]].mean()
    assert taken == pytest.approx(0.5, abs=0.05)
    flipped = variation(parents, mates, 0, 1, mutation="flip", mutation_rate=0.01, **args)
    assert (flipped != child).mean() == pytest.approx(0.01, abs=0.003)
    twice = variation(parents, mates, 0, 1, mutation="flip", mutation_rate=0.01, threads=2, **args)
    assert np.array_equal(twice, flipped)
    for wrong in (
        {"crossover": "sbx", "mutation": "flip"},
        {"crossover": "uniform", "mutation": "gaussian"},
    ):
        with pytest.raises(OptionError, match="bool"):
            variation(parents, mates, 0, 1, **wrong)
    with pytest.raises(ArrayError, match="low, high"):
        variation(parents, mates, 0, 2, crossover="uniform", mutation="flip")
    with pytest.raises(OptionError, match="flip"):
        variation(np.zeros((2, 3)), mates[:2] % 2, 0, 1, mutation="flip")


def test_genetic_search_of_bits_alone():
    space = Space(**{f"b{i}": Bool() for i in range(60)})
    algo = Genetic(space, population=20, unique=True, seed=0)
    while algo.n_told < 3000 and algo.fun > 0:
        x = algo.propose(20)
        assert set(np.unique(x)) <= {0.0, 1.0}
        algo.learn(x, 60 - x.sum(axis=1))
    assert algo.fun == 0
    one, two = (Genetic(space, seed=1, threads=t) for t in (1, 2))
    for a in (one, two):
        for _ in range(4):
            x = a.propose(50)
            a.learn(x, x[:, 0])
    assert one.propose(50).tobytes() == two.propose(50).tobytes()
