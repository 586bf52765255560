"""Stoppers: rungs, brackets, medians, the signed-rank test; pickling and state."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from fastopt.errors import FormatError, OptionError
from fastopt.search.stopping import (
    STOPPERS,
    Hyperband,
    Median,
    SuccessiveHalving,
    Wilcoxon,
    signed_rank_p,
    stopper_of,
)


def curves(n, steps, seed=0):
    rng = np.random.default_rng(seed)
    level = rng.random(n)
    noise = 0.02 * rng.standard_normal((n, steps))
    return level, [
        [(s + 1, level[i] + 1 / (s + 1) + noise[i, s]) for s in range(steps)] for i in range(n)
    ]


def simulate(stopper, n=81, steps=27, seed=0):
    level, all_reports = curves(n, steps, seed)
    spent, finished = 0, []
    for i, reports in enumerate(all_reports):
        rule = pickle.loads(pickle.dumps(stopper.rule()))
        for t in range(1, steps + 1):
            if rule(reports[:t]):
                stopper.tell(reports[:t], reports[t - 1][1], True)
                break
        else:
            stopper.tell(reports, reports[-1][1], False)
            finished.append(i)
        spent += t
    return spent / (n * steps), finished, level


@pytest.mark.parametrize("name", ["halving", "asha", "hyperband", "median"])
def test_they_save_steps_and_keep_good_trials(name):
    make = {"hyperband": lambda: Hyperband(max_steps=27)}.get(name, lambda: stopper_of(name))
    shares = []
    for seed in range(4):
        share, finished, level = simulate(make(), seed=seed)
        assert min(level[finished]) <= np.sort(level)[4]
        shares.append(share)
    assert np.mean(shares) < (0.9 if name == "hyperband" else 0.6)


def test_rungs_keep_the_best_third():
    stopper = SuccessiveHalving(min_steps=2, reduction=3)
    for i in range(9):
        stopper.tell([(1, 5.0), (2, float(i)), (5, float(i)), (6, -1.0)], 0.0)
    assert sorted(stopper.seen) == [2, 6]
    rule = stopper.rule()
    assert not rule([(1, 99.0)])
    for value in range(-1, 9):  # 10 trials with the new one: 3 go on
        assert rule([(1, 0.0), (2, value - 0.5)]) == (value - 0.5 > 2)
    assert not rule([(2, 0.0), (3, 99.0)])  # between rungs
    assert rule([(2, math.nan)])
    assert not SuccessiveHalving().rule()([(1, 99.0)])  # the first of all


def test_brackets_have_the_published_sizes():
    stopper = Hyperband(max_steps=81, reduction=3)
    assert stopper.shares == [81, 34, 15, 8, 5]
    assert [b.min_steps for b in stopper.brackets] == [1, 3, 9, 27, 81]
    order = [stopper.bracket_of(i) for i in range(143)]
    assert np.bincount(order).tolist() == stopper.shares
    assert order == sorted(order)


def test_the_signed_rank_test_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for n in range(3, 60, 4):
        gaps = rng.normal(0.2, 1, n)
        exact = stats.wilcoxon(gaps, alternative="greater", method="exact").pvalue
        if n <= 50:
            assert signed_rank_p(gaps) == pytest.approx(exact, rel=1e-9)
        rough = rng.integers(-3, 5, n).astype(float)
        if (rough != 0).any() and n > 10:
            theirs = stats.wilcoxon(
                rough, alternative="greater", method="approx", zero_method="zsplit"
            ).pvalue
            assert signed_rank_p(rough) == pytest.approx(theirs, rel=0.1)


def test_wilcoxon_ends_losers_alone():
    rng = np.random.default_rng(0)
    folds = rng.normal(0, 1, 12)
    stopper = Wilcoxon(p=0.05, patience=4)
    assert not stopper.rule()([(0, 9.0)])
    stopper.tell(list(enumerate(folds)), float(folds.mean()))
    rule = stopper.rule()
    worse = list(enumerate(folds + 0.5 + 0.1 * rng.random(12)))
    better = list(enumerate(folds - 0.5))
    assert not rule(worse[:3])
    assert rule(worse[:8])
    assert not rule(better)
    stopper.tell(worse, -99.0, True)  # a stopped trial does not become the best
    assert stopper.seen["y"] == pytest.approx(folds.mean())


def test_median_waits_for_trials_and_reports():
    stopper = Median(trials=3, patience=1)
    for v in (1.0, 2.0, 3.0):
        assert not stopper.rule()([(1, 99.0), (2, 99.0)])
        stopper.tell([(1, v), (2, v + 1)], v)
    rule = stopper.rule()
    assert not rule([(1, 99.0)])
    assert rule([(1, 99.0), (2, 2.5)])
    assert not rule([(1, 1.5), (2, 9.0)])  # its best is what counts
    assert not rule([(1, 99.0), (3, 99.0)])  # a step that nobody reported


@pytest.mark.parametrize("name", STOPPERS)
def test_state_continues_and_foreign_state_is_refused(name):
    a, b = stopper_of(name), stopper_of(name)
    _, reports = curves(20, 9)
    for r in reports[:12]:
        a.tell(r, r[-1][1])
    b.load_state_dict(a.state_dict())
    for r in reports[12:]:
        assert [a.rule()(r[:t]) for t in range(1, 10)] == [b.rule()(r[:t]) for t in range(1, 10)]
        a.tell(r, r[-1][1])
        b.tell(r, r[-1][1])
    with pytest.raises(FormatError):
        a.load_state_dict({"name": "other", "seen": {}})


BY_STEP = (None, 3, [], {"1": [0.5]}, {-1: [0.5]}, {True: [0.5]}, {1: 0.5}, {1: [math.nan]})
DAMAGED = {
    "halving": (*BY_STEP, {1: ["x"]}, {1: [0.5, 0.1]}),
    "hyperband": (
        {},
        {"told": 3, "brackets": {}},
        {"told": 3, "brackets": [{}]},
        {"told": 3, "brackets": [{}] * 4 + [{1: None}]},
        {"told": -3, "brackets": [{}] * 5},
        {"told": 1.5, "brackets": [{}] * 5},
    ),
    "median": (*BY_STEP, {1: [None]}),
    "wilcoxon": (
        {"y": 0.5},
        {"y": None, "best": []},
        {"y": math.nan, "best": []},
        {"y": 0.5, "best": 3},
        {"y": 0.5, "best": [(1,)]},
        {"y": 0.5, "best": [(1, "x")]},
        {"y": 0.5, "best": [("x", 1.0)]},
        {"y": 0.5, "best": ["ab"]},
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_state_is_refused_and_changes_nothing(name):
    stopper = stopper_of(name)
    for r in curves(5, 9)[1]:
        stopper.tell(r, r[-1][1])
    before = stopper.state_dict()
    for state in [None, [], {}, *({"name": name, "seen": seen} for seen in DAMAGED[name])]:
        with pytest.raises(FormatError, match="state"):
            stopper.load_state_dict(state)
        assert stopper.state_dict() == before
    stopper.load_state_dict(before)


def test_options_are_checked():
    for bad in (lambda: stopper_of("sometimes"), lambda: stopper_of(3)):
        with pytest.raises(OptionError):
            bad()
    with pytest.raises(OptionError):
        SuccessiveHalving(reduction=1)
    with pytest.raises(OptionError):
        Wilcoxon(p=2)
