"""Scores, budgets over layers and SparseGPT, each against its formula."""

from __future__ import annotations

import numpy as np
import pytest

import fastopt
from fastopt.calibration import Gram
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.pruning import obs, saliency


def data(n: int = 24, m: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Gram]:
    rng = np.random.default_rng(seed)
    mix = np.eye(n) + rng.standard_normal((n, n)) / n**0.5
    x = rng.standard_normal((4 * n, n)) @ mix * np.geomspace(0.1, 3, n)
    return x, rng.standard_normal((m, n)), Gram(n).update(x)


def lost(x: np.ndarray, w: np.ndarray, v: np.ndarray) -> float:
    return float(((x @ (w - v).T) ** 2).sum() / ((x @ w.T) ** 2).sum())


def test_random_is_uniform_and_follows_the_seed(rng: np.random.Generator) -> None:
    w = rng.standard_normal((200, 100))
    one = fastopt.prune(w, 0.3, method="random", seed=1)
    assert one.sparsity == pytest.approx(0.3)
    assert (one.arrays == fastopt.prune(w, 0.3, method="random", seed=1).arrays).all()
    assert (one.masks != fastopt.prune(w, 0.3, method="random", seed=2).masks).any()
    gone = np.abs(w[~one.masks]).mean() / np.abs(w).mean()
    assert gone == pytest.approx(1, abs=0.05)  # sizes do not matter
    w[0, 0] = np.nan
    assert fastopt.prune(w, 0.9, method="random", seed=1).masks[0, 0]


def test_wanda_keeps_the_same_share_of_each_output() -> None:
    x, w, g = data()
    p = fastopt.prune(w, 0.5, method="wanda", gram=g)
    score = np.abs(w) * np.linalg.norm(x, axis=0)
    assert (p.masks.sum(1) == 12).all()
    for row, mask in zip(score, p.masks):
        assert row[mask].min() >= row[~mask].max()
    assert (p.arrays[p.masks] == w[p.masks]).all()
    two = fastopt.prune(w, pattern="2:4", method="wanda", gram=g)
    grouped, kept = score.reshape(-1, 4), two.masks.reshape(-1, 4)
    assert all(s[k].min() >= s[~k].max() for s, k in zip(grouped, kept))
    assert lost(x, w, two.arrays) < lost(x, w, fastopt.prune(w, pattern="2:4").arrays)


def test_movement_removes_what_training_shrinks() -> None:
    w = np.array([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]])
    grads = np.array([[2.0, 1.0, -1.0], [-1.0, 0.0, 3.0]])  # -w g: -2 2 3 / -4 0 18
    p = fastopt.prune({"a": w}, 0.5, method="movement", grads={"a": grads})
    assert p.masks["a"].tolist() == [[False, True, True], [False, False, True]]


def test_lamp_scores_and_its_budget(rng: np.random.Generator) -> None:
    w = rng.standard_normal(40)
    score = saliency.lamp(np.abs(w))
    for value, found in zip(w, score):
        assert found == pytest.approx(value**2 / (w[np.abs(w) >= abs(value)] ** 2).sum())
    big, small = rng.standard_normal((50, 50)), rng.standard_normal((5, 50)) * 1e-3
    p = fastopt.prune([big, small], 0.9, scope="lamp")
    assert p.sparsity == pytest.approx(0.9, abs=1e-3)
    assert p.masks[1].any()  # a layer of small numbers is not emptied
    assert not fastopt.prune([big, small], 0.9).masks[1].any()


def test_erk_fills_the_budget_and_spares_thin_layers() -> None:
    shapes = [(300, 784), (100, 300), (10, 100)]
    for fraction in (0.0, 0.5, 0.9, 0.99, 1.0):
        shares = saliency.erk_fractions(shapes, fraction)
        sizes = [a * b for a, b in shapes]
        assert np.dot(shares, sizes) == pytest.approx(fraction * sum(sizes))
        assert all(0 <= s <= 1 for s in shares)
    density = [1 - s for s in saliency.erk_fractions(shapes, 0.99)]
    ratio = [d / (sum(s) / np.prod(s)) for d, s in zip(density, shapes)]
    assert ratio[0] == pytest.approx(ratio[1])
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in shapes]
    p = fastopt.prune(arrays, 0.9, scope="erk")
    assert p.sparsity == pytest.approx(0.9, abs=1e-4)
    assert p.masks[2].all()
    assert len(p.threshold) == 3


def sequential(s: np.ndarray, w: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """SparseGPT's weights for given masks, by inverses of S's trailing blocks."""
    w = w.copy()
    n = w.shape[1]
    for j in range(n):
        h = np.linalg.inv(s[j:, j:])
        error = np.where(masks[:, j], 0, w[:, j]) / h[0, 0]
        w[:, j:] -= np.multiply.outer(error, h[0])
    return np.where(masks, w, 0)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1x4", "2x1"])
@pytest.mark.parametrize("n", [24, 300])
def test_sparsegpt_is_the_sequential_elimination(pattern: str, n: int) -> None:
    x, w, g = data(n)
    p = fastopt.prune(w, 0.5, pattern=pattern, method="sparsegpt", gram=g)
    assert p.sparsity == pytest.approx(0.5, abs=0.01)
    np.testing.assert_allclose(p.arrays, sequential(obs.moment(g, 1e-3), w, p.masks), atol=1e-6)
    plain = fastopt.prune(w, 0.5, pattern=pattern)
    assert lost(x, w, p.arrays) < lost(x, w, plain.arrays)
    best = fastopt.prune(w, 0.5, pattern=pattern, gram=g)
    assert lost(x, w, best.arrays) < 1.1 * lost(x, w, p.arrays)
    if pattern == "2:4":
        assert (p.masks.reshape(-1, 4).sum(1) == 2).all()


def test_refusals() -> None:
    _, w, g = data()
    for options, kind, word in (
        ({"method": "best"}, OptionError, "method"), ({"scope": "all"}, OptionError, "scope"),
        ({"method": "wanda"}, OptionError, "gram: method='wanda' needs"),
        ({"method": "magnitude", "gram": g}, OptionError, "does not use"),
        ({"method": "movement"}, OptionError, "grads"), ({"grads": w}, OptionError, "not use"),
        ({"method": "movement", "grads": w[:3]}, ArrayError, "grads"),
        ({"method": "movement", "grads": {"w": w}}, DTypeError, "grads"),
        ({"method": "random", "seed": -1}, OptionError, "seed"),
    ):  # fmt: skip
        with pytest.raises(kind, match=word):
            fastopt.prune(w, **options)
