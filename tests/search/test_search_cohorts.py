"""Cohorts of trials that wait for each other: who goes on, who ends, wherever they run."""

from __future__ import annotations

import math
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fastopt.errors import FormatError
from fastopt.search import Float, Space, minimize
from fastopt.search.stopping import Hyperband, SuccessiveHalving

SPACE = Space(x=Float(0, 1))
STEPS = 20


def value(x, step):
    """Curves that cross: a good start is not always a good end."""
    return abs(x - 0.3) + math.cos(40 * x) / step


def train(x):
    for step in range(1, STEPS + 1):
        yield value(x, step)


def drawn(n):
    return minimize(lambda x: x, SPACE, method="random", max_evals=n).history


def search(f=train, n=27, stopper="halving", **options):
    return minimize(f, SPACE, method="random", max_evals=n, stopper=stopper, **options)


def halved(xs, first, reduction, last=math.inf):
    """Steps that each trial of a cohort makes, from the definition."""
    steps = np.full(len(xs), STEPS)
    alive, rung = list(range(len(xs))), first
    while len(alive) > 1 and rung < last:
        alive.sort(key=lambda i: value(xs[i], rung))
        keep = max(1, len(alive) // reduction)
        steps[alive[keep:]] = rung
        alive, rung = alive[:keep], rung * reduction
    return steps


def bits(res):
    return res.history.tobytes(), sorted(res.stopped), res.fun


def test_each_trial_makes_the_steps_of_successive_halving_once():
    made, begun, closed = {}, [], []

    def f(x):
        begun.append(x)
        try:
            for step in range(1, STEPS + 1):
                made.setdefault(x, []).append(step)
                yield value(x, step)
        finally:
            closed.append(x)

    for stopper, sizes in (
        ("halving", (9, 9, 9)),
        (SuccessiveHalving(cohort=27, min_steps=2, reduction=2), (27,)),
        (SuccessiveHalving(cohort=20, reduction=4), (20, 7)),
    ):
        made.clear(), begun.clear(), closed.clear()
        res = search(f, stopper=stopper)
        xs, steps = drawn(27), []
        rule = SuccessiveHalving() if stopper == "halving" else stopper
        for size in sizes:
            part = xs[len(steps) :][:size]
            steps += halved(part, rule.min_steps, rule.reduction).tolist()
        assert [made[x] for x in xs] == [list(range(1, n + 1)) for n in steps]
        assert sorted(begun) == sorted(closed) == sorted(xs)
        assert res.history.tolist() == [value(x, n) for x, n in zip(xs, steps)]
        assert sorted(res.stopped) == [i for i, n in enumerate(steps) if n < STEPS]
        assert res.fun == min(y for y, n in zip(res.history, steps) if n == STEPS)


def test_hyperbands_brackets_are_cohorts():
    stopper = Hyperband(max_steps=18, reduction=3)  # first rungs 2, 6, 18
    assert stopper.shares == [9, 5, 3]
    res = search(n=17, stopper=stopper)
    xs = drawn(17)
    parts = [(xs[:9], 2), (xs[9:14], 6), (xs[14:], 18)]
    steps = np.concatenate([halved(x, first, 3, last=18) for x, first in parts])
    assert res.history.tolist() == [value(x, n) for x, n in zip(xs, steps)]
    assert sorted(res.stopped) == [i for i, n in enumerate(steps) if n < STEPS]


@pytest.mark.parametrize("method", ["random", "auto", "genetic"])
@pytest.mark.parametrize("stopper", ["halving", "hyperband"])
def test_the_same_trials_wherever_they_run(method, stopper):
    here = minimize(train, SPACE, method=method, max_evals=30, stopper=stopper)
    for workers in (1, 2, 4):
        far = minimize(train, SPACE, method=method, max_evals=30, stopper=stopper, workers=workers)
        assert bits(far) == bits(here)
    for pool in (ThreadPoolExecutor(3), ProcessPoolExecutor(2)):
        with pool:
            far = minimize(
                train, SPACE, method=method, max_evals=30, stopper=stopper, executor=pool
            )
        assert bits(far) == bits(here)


def counted(x):
    """Notes in a file that it began."""
    with open(os.environ["FASTOPT_TEST_NOTES"], "a") as notes:
        notes.write(f"{x}\n")
    yield from train(x)


def test_a_trial_waits_in_its_process(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTOPT_TEST_NOTES", str(tmp_path / "notes"))
    assert bits(search(counted, workers=2)) == bits(search())
    assert len((tmp_path / "notes").read_text().split()) == 27


def mortal(x):
    """One process dies in the middle of the search, with all that waits in it."""
    mark = Path(os.environ["FASTOPT_TEST_NOTES"])
    for step, y in enumerate(train(x)):
        if step == 4 and not mark.exists():
            mark.touch()
            os._exit(1)
        yield y


def test_a_dead_worker_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTOPT_TEST_NOTES", str(tmp_path / "mark"))
    assert bits(search(mortal, workers=2)) == bits(search())
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("workers", [None, 2])
def test_a_search_goes_on_in_the_middle_of_a_cohort(tmp_path, workers):
    whole = search()
    for kept in range(1, 28, 5):
        path = tmp_path / f"{kept}.journal"
        search(storage=path, workers=workers)
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[: len(lines) - 27 + kept]))
        assert bits(search(storage=path, workers=workers)) == bits(whole)


def test_a_journal_of_another_rule_is_refused(tmp_path):
    path = tmp_path / "run.journal"
    search(storage=path, n=9)
    with pytest.raises(FormatError):
        search(storage=path, n=18, stopper="asha")


def test_trials_that_end_fail_or_report_nothing():
    xs = drawn(9)
    short, broken, nothing = sorted(xs)[:3]

    def f(x):
        for step in range(1, STEPS + 1):
            if x == short and step == 2:
                return -1.0
            if x == broken and step == 3:
                raise ValueError("no more")
            yield math.nan if x == nothing else (-5.0 if x == broken else value(x, step))

    res = search(f, n=9, on_error="skip", stopper=SuccessiveHalving(cohort=9, reduction=2))
    where = {x: i for i, x in enumerate(xs)}
    assert math.isnan(res.history[where[broken]])
    assert "no more" in res.errors[where[broken]]
    assert math.isnan(res.history[where[nothing]])
    assert where[nothing] in res.stopped
    assert res.n_evals == 9
    assert math.isfinite(res.fun)


def test_a_target_ends_a_cohort_and_closes_its_trials():
    open_ = set()

    def f(x):
        open_.add(x)
        try:
            yield from train(x)
        finally:
            open_.discard(x)

    best = search().fun
    res = search(f, n=1000, target=best)
    assert res.message == "target reached"
    assert res.n_evals <= 27
    assert not open_


def test_asha_judges_by_those_before():
    ladderless = search(stopper="asha")
    assert ladderless.n_evals == 27
    assert 0 not in ladderless.stopped  # the first at every rung
