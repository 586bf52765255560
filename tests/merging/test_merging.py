"""Merging neurons: lossless where it can be, close where it cannot, refusals."""

from __future__ import annotations

import numpy as np
import pytest

import fastopt
from fastopt.calibration import Gram
from fastopt.errors import ArrayError, DTypeError, OptionError


def network(n: int = 12, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((300, 6)), rng.standard_normal((n, 6)), rng.standard_normal(n),
        rng.standard_normal((4, n)),
    )  # fmt: skip


def run(x: np.ndarray, w: np.ndarray, b: np.ndarray, out: np.ndarray, act=np.tanh) -> np.ndarray:
    return act(x @ w.T + b) @ out.T


def error(y: np.ndarray, z: np.ndarray) -> float:
    return float(((y - z) ** 2).sum() / ((y - y.mean(0)) ** 2).sum())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("data", [False, True])
def test_exact_duplicates_merge_without_loss(dtype: str, data: bool) -> None:
    x, w, b, _ = (a.astype(dtype) for a in network(6))
    rng = np.random.default_rng(1)
    copies = rng.permutation(np.repeat(np.arange(6), 3))
    wide, bias = w[copies], b[copies]
    second = rng.standard_normal((4, 18)).astype(dtype)
    gram = Gram(18).update(np.tanh(x @ wide.T + bias)) if data else None
    m = fastopt.merge_neurons(wide, bias, second, 6, gram=gram, damp=1e-9)
    assert (m.w_in.dtype, m.w_out.dtype, m.bias_shift.dtype) == (dtype,) * 3
    for unit in range(6):
        assert len(set(m.labels[copies == unit])) == 1
    assert (wide[m.index] == m.w_in).all()  # equal units keep their bits
    assert (bias[m.index] == m.b_in).all()
    y = run(x, wide, bias, second)
    z = run(x, m.w_in, m.b_in, m.w_out) + m.bias_shift
    assert error(y, z) < 1e-8
    if not data:
        assert not m.bias_shift.any()


def test_labels_and_index_describe_the_merge() -> None:
    x, w, b, out = network(20)
    before = [a.copy() for a in (w, b, out)]
    for gram in (None, Gram(20).update(np.tanh(x @ w.T + b))):
        for keep in (20, 13, 5, 1):
            m = fastopt.merge_neurons(w, b, out, keep, gram=gram)
            assert m.w_in.shape == (keep, 6)
            assert m.b_in.shape == (keep,)
            assert m.w_out.shape == (4, keep)
            assert sorted(set(m.labels.tolist())) == list(range(keep))
            assert (m.labels[m.index] == np.arange(keep)).all()
            if gram is None:
                total = np.zeros((keep, 4))
                np.add.at(total, m.labels, out.T)
                np.testing.assert_allclose(m.w_out, total.T, atol=1e-12)
    assert all((a == c).all() for a, c in zip((w, b, out), before))
    whole = fastopt.merge_neurons(w, b, out, 20)
    assert (whole.w_in == w).all()
    assert (whole.w_out == out).all()


def test_without_data_near_copies_merge_at_their_centre_of_mass() -> None:
    w = np.array([[1.0], [1.2], [9.0]])
    out = np.array([[3.0, 1.0, 1.0]])
    m = fastopt.merge_neurons(w, None, out, 2)
    np.testing.assert_allclose(m.w_in, [[(9 * 1.0 + 1 * 1.2) / 10], [9.0]])
    assert m.w_out.tolist() == [[4.0, 1.0]]
    assert m.b_in is None


def test_ward_merges_the_cheapest_pair_each_time() -> None:
    """The bookkeeping of nearest neighbours against a search over all pairs."""
    _, w, b, out = network(25, seed=3)
    v, mass = np.column_stack([w, b]), (out**2).sum(0)
    groups = [[i] for i in range(25)]
    centres, masses = [x.copy() for x in v], list(mass)
    while len(groups) > 7:
        costs = {}
        for i in range(len(groups)):
            for j in range(i):
                weight = masses[i] * masses[j] / (masses[i] + masses[j])
                costs[i, j] = weight * ((centres[i] - centres[j]) ** 2).sum()
        i, j = min(costs, key=costs.__getitem__)
        total = masses[i] + masses[j]
        centres[j] = (masses[i] * centres[i] + masses[j] * centres[j]) / total
        masses[j] = total
        groups[j] += groups[i]
        del groups[i], centres[i], masses[i]
    m = fastopt.merge_neurons(w, b, out, 7)
    found = {frozenset(np.flatnonzero(m.labels == c).tolist()) for c in range(7)}
    assert found == {frozenset(g) for g in groups}


def test_data_beats_no_data_and_the_refit_beats_the_sum() -> None:
    x, w, b, out = network(40, seed=2)
    a = np.maximum(x @ w.T + b, 0)
    y = a @ out.T
    for keep in (30, 20, 10):
        blind = fastopt.merge_neurons(w, b, out, keep)
        seen = fastopt.merge_neurons(w, b, out, keep, gram=Gram(40).update(a))
        relu = lambda v: np.maximum(v, 0)  # noqa: E731
        z_blind = run(x, blind.w_in, blind.b_in, blind.w_out, relu)
        z_seen = run(x, seen.w_in, seen.b_in, seen.w_out, relu) + seen.bias_shift
        assert error(y, z_seen) < error(y, z_blind)


def test_scaled_relu_units_merge_without_loss_on_data() -> None:
    x, w, b, out = network(5)
    w, b = np.vstack([w, 3 * w]), np.concatenate([b, 3 * b])
    out = np.hstack([out, -out[:, ::-1]])
    a = np.maximum(x @ w.T + b, 0)
    m = fastopt.merge_neurons(w, b, out, 5, gram=Gram(10).update(a), damp=1e-9)
    assert sorted((m.index % 5).tolist()) == list(range(5))
    z = np.maximum(x @ m.w_in.T + m.b_in, 0) @ m.w_out.T + m.bias_shift
    assert error(a @ out.T, z) < 1e-10


def test_dead_and_unread_units_merge_first() -> None:
    x, w, b, out = network(10)
    out[:, 3] = 0
    a = np.tanh(x @ w.T + b)
    a[:, 7] = 0.5
    seen = fastopt.merge_neurons(w, b, out, 8, gram=Gram(10).update(a))
    assert set(range(10)) - set(seen.index.tolist()) == {3, 7}
    blind = fastopt.merge_neurons(w, b, out, 9)
    other = (blind.labels == blind.labels[3]).nonzero()[0]
    assert 3 in other
    assert len(other) == 2


def test_refusals() -> None:
    _, w, b, out = network()
    broken = out.copy()
    broken[0, 0] = np.inf
    for args, options, kind, word in (
        ((w.T, b, out, 3), {}, ArrayError, "b_in"), ((w, b, out.T, 3), {}, ArrayError, "w_out"),
        ((w, b, out, 0), {}, OptionError, "n_keep"), ((w, b, out, 13), {}, OptionError, "n_keep"),
        ((w, b[:3], out, 3), {}, ArrayError, "b_in"), ((w, b, broken, 3), {}, ArrayError, "w_out"),
        ((w, b, out.astype("f4"), 3), {}, DTypeError, "w_out"),
        ((w, b, out, 3), {"gram": out}, DTypeError, "gram"),
        ((w, b, out, 3), {"gram": Gram(12)}, ArrayError, "gram"),
        ((w, b, out, 3), {"gram": Gram(3).update(np.eye(3))}, ArrayError, "gram"),
    ):  # fmt: skip
        with pytest.raises(kind, match=word):
            fastopt.merge_neurons(*args, **options)
