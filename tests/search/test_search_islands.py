"""Islands: apart they are genetic searches, migrants are the neighbour's best, no batch waits."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt.errors import FormatError, OptionError
from fastopt.search import Choice, Float, Genetic, Int, Islands, Space, Vector, minimize

PLANE = Space(x=Vector(3, -5, 5))
MIXED = Space(x=Float(-2, 2), n=Int(1, 500), kind=Choice("a", "b", "c"))


def sphere(x):
    return ((x - 1.5) ** 2).sum(axis=1)


def steps(algo, rounds, k=6):
    for _ in range(rounds):
        x = algo.ask(k)
        algo.tell(x, sphere(x))
    return algo


def test_apart_they_are_genetic_searches():
    algo = Islands(PLANE, islands=3, migrate_every=1000, population=8, seed=4)
    alone = [
        Genetic(PLANE, population=8, seed=np.random.SeedSequence(algo.key, spawn_key=(i,)))
        for i in range(3)
    ]
    for turn in range(30):
        x = algo.ask(6)
        np.testing.assert_array_equal(x, alone[turn % 3].ask(6))
        algo.tell(x, sphere(x))
        alone[turn % 3].tell(x, sphere(x))
    assert len({island.key for island in algo.islands}) == 3


def test_every_so_often_the_best_of_the_island_before_arrive():
    algo = Islands(PLANE, islands=3, migrate_every=2, migrants=2, population=8, unique=True)
    for turn in range(24):
        before, best = algo.islands[turn % 3 - 1].best(2), algo.islands[turn % 3].best(1)[1]
        x = algo.ask(6)
        y = sphere(x)
        algo.tell(x, y)
        here, merits = algo.islands[turn % 3].best(8)
        arrived = [(here == row).all(axis=1).any() for row in before[0]]
        if turn // 3 % 2 == 1:  # its second, fourth ... generation
            worst = merits[-1] if len(merits) == 8 else np.inf
            assert all(a or m >= worst for a, m in zip(arrived, before[1]))
            assert merits[0] == min(*y, *best, *before[1])
        assert len(np.unique(here, axis=0)) == len(here)  # nobody twice
    assert algo.fun == min(island.fun for island in algo.islands)


@pytest.mark.parametrize("space", [PLANE, MIXED])
def test_the_same_trials_for_any_number_of_batches_under_way(space):
    def f(t):
        return float(((t["x"] - 1.0) ** 2).sum()) if space is PLANE else t["n"] + t["x"] ** 2

    runs = [
        minimize(f, space, method="islands", max_evals=300, seed=1, **options)
        for options in ({}, {"lookahead": 0}, {"lookahead": 2}, {"workers": 3})
    ]
    for run in runs[1:]:
        assert run.history.tobytes() == runs[0].history.tobytes()
    older = minimize(f, space, method="islands", max_evals=300, seed=1, lookahead=9)
    assert older.history.tobytes() != runs[0].history.tobytes()


def test_state_goes_on_with_trials_under_way():
    algo = steps(Islands(PLANE, islands=3, migrate_every=2, population=8, seed=2), 10)
    waiting = [algo.ask(6), algo.ask(6)]
    other = Islands(PLANE, islands=3, migrate_every=2, population=8, seed=9)
    other.load_state_dict(algo.state_dict())
    for x in reversed(waiting):  # in any order
        algo.tell(x, sphere(x))
        other.tell(x, sphere(x))
    for _ in range(10):
        x, same = algo.ask(6), other.ask(6)
        np.testing.assert_array_equal(x, same)
        algo.tell(x, sphere(x))
        other.tell(same, sphere(same))
    with pytest.raises(FormatError):
        Islands(PLANE, islands=2, population=8).load_state_dict(algo.state_dict())


def test_trials_that_nobody_asked_for_count():
    algo = steps(Islands(PLANE, islands=3, population=8, seed=2), 6)
    known = np.full((1, 3), 1.5)
    algo.tell(known, sphere(known))
    assert algo.fun == 0.0
    assert sum(island.fun == 0.0 for island in algo.islands) == 1


def test_first_trials_are_dealt_out():
    x0 = np.arange(15.0).reshape(5, 3) / 10
    algo = Islands(PLANE, islands=2, x0=x0, population=8)
    np.testing.assert_array_equal(algo.ask(6)[:3], x0[::2])
    np.testing.assert_array_equal(algo.ask(6)[:2], x0[1::2])


def test_options_are_checked():
    for bad in ({"islands": 1}, {"migrate_every": 0}, {"migrants": 0}, {"population": 1}):
        with pytest.raises(OptionError):
            Islands(PLANE, **bad)
