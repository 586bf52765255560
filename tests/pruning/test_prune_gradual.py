"""Pruning during training: the schedule, masks that hold, rewinding."""

from __future__ import annotations

import numpy as np
import pytest

import fastopt
from fastopt import optim
from fastopt.errors import ArrayError, DTypeError, FormatError, OptionError
from fastopt.pruning import GradualPruning, cubic_sparsity


def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "first": rng.standard_normal((8, 12)).astype("f4"),
        "second": rng.standard_normal((4, 8)).astype("f4"),
    }


def test_the_share_of_zeros_follows_the_schedule(rng: np.random.Generator) -> None:
    w = weights(rng)
    opt = optim.Adam(w, lr=0.01)
    pruning = GradualPruning(w, 0.75, begin=2, end=10, every=4)
    total = sum(a.size for a in w.values())
    before = {name: np.zeros(a.shape, bool) for name, a in w.items()}
    for t in range(14):
        opt.step({name: rng.standard_normal(a.shape).astype("f4") for name, a in w.items()})
        pruning.step()
        last = max((s for s in (2, 6, 10) if s <= t), default=None)
        zeros = sum(int((a == 0).sum()) for a in w.values())
        if last is None:
            assert zeros == 0
        else:
            share = cubic_sparsity(last, begin=2, end=10, final=0.75)
            assert zeros == round(share * total) == round(pruning.sparsity * total)
        for name, a in w.items():
            assert (a == 0)[before[name]].all()  # what is pruned stays pruned
            before[name] = a == 0
            assert ((a != 0) == pruning.masks[name]).all()


def test_the_last_step_of_the_ramp_always_prunes() -> None:
    w = np.arange(1.0, 11.0)
    pruning = GradualPruning(w, 0.5, end=7, every=5)
    for _ in range(9):
        w += 1  # an update without an optimiser
        pruning.step()
    assert (w == 0).sum() == 5


def test_patterns_and_scopes_are_those_of_prune(rng: np.random.Generator) -> None:
    w = [rng.standard_normal((8, 8)), rng.standard_normal((4, 8))]
    wanted = [fastopt.prune(a, pattern="2:4").arrays for a in w]
    pruning = GradualPruning(w, end=1, pattern="2:4")
    pruning.step()
    assert all((a == b).all() for a, b in zip(w, wanted, strict=True))
    local = [rng.standard_normal(10), 100 * rng.standard_normal(10)]
    GradualPruning(local, 0.5, initial=0.5, end=1, scope="local").step()
    assert [(a == 0).sum() for a in local] == [5, 5]


def test_masks_hold_against_nan(rng: np.random.Generator) -> None:
    w = np.array([1.0, 2.0, 3.0, 4.0])
    pruning = GradualPruning(w, 0.5, initial=0.5, end=1)
    pruning.step()
    w[:] = [np.nan, np.inf, 5.0, np.nan]
    pruning.apply()
    np.testing.assert_array_equal(w, [0.0, 0.0, 5.0, np.nan])


def test_rewind_and_state(rng: np.random.Generator) -> None:
    w = weights(rng)
    start = {name: a.copy() for name, a in w.items()}
    pruning = GradualPruning(w, 0.5, initial=0.5, end=1)
    pruning.step()
    for a in w.values():
        a *= 3
    pruning.rewind(start)
    for name, a in w.items():
        assert (a == np.where(pruning.masks[name], start[name], 0)).all()
    again = GradualPruning(start, 0.5, initial=0.5, end=1)
    again.load_state_dict(pruning.state_dict())
    assert again.n_steps == 1
    assert all((again.masks[n] == pruning.masks[n]).all() for n in w)
    assert all((start[n] == w[n]).all() for n in w)


def test_refusals(rng: np.random.Generator) -> None:
    w = weights(rng)
    for bad, kind in (
        ({"final": 1.5}, OptionError), ({"end": 0}, OptionError), ({"every": 0}, OptionError),
        ({"pattern": "5:4"}, OptionError), ({"colour": 1}, TypeError),
    ):  # fmt: skip
        with pytest.raises(kind):
            GradualPruning(w, **{"end": 5, **bad})
    with pytest.raises(DTypeError, match="params"):
        GradualPruning(np.ones(3, int), end=5)
    pruning = GradualPruning(w, end=5)
    before = {name: a.copy() for name, a in w.items()}
    for bad in ({"first": w["first"]}, [w["first"], w["second"]],
                {"first": w["first"], "second": w["first"]}):  # fmt: skip
        with pytest.raises(ArrayError, match="values"):
            pruning.rewind(bad)
    for state in (None, {}, {"n_steps": -1, "masks": []}, {"n_steps": 1, "masks": [np.ones(3)]}):
        with pytest.raises(FormatError, match="state"):
            pruning.load_state_dict(state)
    assert all((w[n] == before[n]).all() for n in w)
