"""N of M, blocks, and pruning with data."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

import fastopt
from fastopt.calibration import Gram
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.pruning import obs
from tests import reference as twin
from tests.conftest import SIZES, THREADS, Guarded, kernel, sample

DTYPES = ("float32", "float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", THREADS)
def test_keep_n_of_m_matches_its_twin(level: str, dtype: str, threads: int) -> None:
    k = kernel("prune", level)
    for groups in (*SIZES[:: 1 if threads == 1 else 10], 20_000):
        for n, m, inner in ((2, 4, 1), (1, 4, 1), (3, 4, 1), (0, 4, 1), (4, 4, 1), (3, 7, 1),
                            (2, 4, 5), (1, 2, 70)):  # fmt: skip
            if groups > 1000 and inner > 1:
                continue
            x = np.round(sample(groups * m * inner, dtype, special=True) * 4) / 4
            wanted, keep = twin.keep_n_of_m(x, inner, n, m)
            out, mask = Guarded(np.full_like(x, 7)), Guarded(np.zeros(x.size, bool))
            top = k.keep_n_of_m(out.array, mask.array, x, inner, n, m, False, threads)
            assert top == twin.magnitude_bits(x[~keep]).max(initial=0)
            place, past = Guarded(x), Guarded(np.full_like(x, 7))
            k.keep_n_of_m(place.array, None, place.array, inner, n, m, True, threads)
            k.keep_n_of_m(past.array, None, x, inner, n, m, True, threads)
            for got in (out, place, past):
                assert got.array.tobytes() == wanted.tobytes()
                got.check()
            assert (mask.array == keep).all()
            mask.check()


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "3:5"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_each_group_keeps_its_largest(pattern: str, axis: int) -> None:
    n, m = map(int, pattern.split(":"))
    x = sample(40 * 80, "float32").reshape(40, 80)
    p = fastopt.prune(x, pattern=pattern, axis=axis)
    groups = np.moveaxis(p.masks, axis, -1).reshape(-1, m)
    assert (groups.sum(1) == n).all()
    values = np.abs(np.moveaxis(x, axis, -1).reshape(-1, m))
    assert (np.where(groups, values, np.inf).min(1) >= np.where(groups, 0, values).max(1)).all()
    assert (p.arrays == np.where(p.masks, x, 0)).all()
    assert p.sparsity == pytest.approx(1 - n / m)
    assert p.threshold == np.abs(x[~p.masks]).max()


def test_two_of_four_is_torchs_choice() -> None:
    torch = pytest.importorskip("torch")
    x = sample(4096, "float32").reshape(32, 128)
    t = torch.from_numpy(x).reshape(-1, 4)
    mask = torch.zeros_like(t).scatter_(1, t.abs().topk(2, dim=1).indices, 1).bool()
    assert (fastopt.prune(x, pattern="2:4").masks == mask.reshape(32, 128).numpy()).all()


@pytest.mark.parametrize("pattern", ["4x1", "1x8", "2x3"])
def test_blocks_go_whole_and_the_weakest_first(pattern: str) -> None:
    r, c = map(int, pattern.split("x"))
    x = sample(24 * 24, "float64").reshape(24, 24)
    p = fastopt.prune(x, 0.75, pattern=pattern)
    blocks = p.masks.reshape(24 // r, r, 24 // c, c).transpose(0, 2, 1, 3).reshape(-1, r * c)
    assert (blocks.all(1) | ~blocks.any(1)).all()
    assert blocks.all(1).sum() == round(0.25 * len(blocks))
    power = (x.reshape(24 // r, r, 24 // c, c) ** 2).mean((1, 3)).ravel()
    assert power[blocks.all(1)].min() >= power[~blocks.all(1)].max()
    assert p.sparsity == pytest.approx(0.75)
    odd = fastopt.prune(sample(35, "float32").reshape(7, 5), 0.5, pattern="4x2")
    assert odd.arrays.shape == (7, 5)
    pair = fastopt.prune([x, 100 * x], 0.5, pattern=pattern)
    assert not pair.masks[0].any()
    assert pair.masks[1].all()


def test_nan_is_kept_or_refused() -> None:
    x = sample(64, "float32").reshape(8, 8)
    x[0, :2] = np.nan
    assert fastopt.prune(x, pattern="2:4").masks[0, :2].all()
    assert fastopt.prune(x, 0.5, pattern="4x1").masks[0, 0]
    before = x.copy()
    for options in ({"pattern": "1:4"}, {"pattern": "4x1", "sparsity": 1.0}):
        with pytest.raises(ArrayError, match="NaN"):
            fastopt.prune(x, out=x, **options)
        assert x.tobytes() == before.tobytes()


def layer(n: int = 6, m: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Gram]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((300, n)) @ rng.standard_normal((n, n)) + 0.5
    return x, rng.standard_normal((m, n)), Gram(n).update(x)


def loss(x: np.ndarray, w: np.ndarray, v: np.ndarray) -> float:
    return float(((x @ (w - v).T) ** 2).sum() / ((x @ w.T) ** 2).sum())


@pytest.mark.parametrize("seed", range(6))
def test_one_weight_less_is_the_best_of_all(seed: int) -> None:
    x, w, g = layer(seed=seed)
    p = fastopt.prune(w, 1 / 6, gram=g, damp=0)
    every = []
    for kept in combinations(range(6), 5):
        v = np.zeros_like(w)
        v[:, list(kept)] = np.linalg.lstsq(x[:, kept], x @ w.T, rcond=None)[0].T
        every.append(loss(x, w, v))
    assert loss(x, w, p.arrays) == pytest.approx(min(every), rel=1e-5)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x1"])
def test_data_beats_magnitudes(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, g = layer(32, 16)
    blind = fastopt.prune(w, 0.5, pattern=pattern)
    for limit in (512, 4):  # weight by weight, then alternating directions
        monkeypatch.setattr(obs, "EXACT", limit)
        seen = fastopt.prune(w, 0.5, pattern=pattern, gram=g)
        assert seen.sparsity == pytest.approx(0.5)
        assert (seen.arrays[~seen.masks] == 0).all()
        assert loss(x, w, seen.arrays) < 0.7 * loss(x, w, blind.arrays)
        if pattern == "2:4":
            assert (seen.masks.reshape(16, 8, 4).sum(2) == 2).all()


def test_eliminate_matches_its_twin(level: str) -> None:
    k = kernel("obs", level)
    for n, rows in ((1, 3), (2, 1), (7, 5), (30, 4)):
        _, w, g = layer(n, rows)
        h = np.linalg.inv(obs.moment(g, 1e-3))
        h = (h + h.T) / 2
        wanted = [twin.eliminate(h, row) for row in w]
        for threads in THREADS:
            order = Guarded(np.zeros((rows, n), np.int64))
            costs = Guarded(np.zeros((rows, n)))
            k.eliminate(order.array, costs.array, h, w, threads)
            assert order.array.tolist() == [o for o, _ in wanted]
            np.testing.assert_allclose(costs.array, [c for _, c in wanted], rtol=1e-6)
            order.check()
            costs.check()


def test_grams_of_several_layers_share_the_budget() -> None:
    _, w, g = layer(20, 8)
    _, v, h = layer(20, 8, seed=1)
    easy = v * 0.01
    p = fastopt.prune({"a": w, "b": easy}, 0.6, gram={"a": g, "b": h})
    assert p.sparsity == pytest.approx(0.6)
    assert 0.2 < 1 - p.masks["b"].mean() < 0.9  # relative losses: a small scale is no reason
    q = fastopt.prune({"a": w, "b": easy}, 0.6, gram={"a": g, "b": h}, scope="local")
    assert all(1 - m.mean() == pytest.approx(0.6) for m in q.masks.values())


def test_refusals() -> None:
    x, w, g = layer(8, 4)
    for options, kind, word in (
        ({"pattern": "5:4"}, OptionError, "pattern"), ({"pattern": "0x4"}, OptionError, "pattern"),
        ({"pattern": "2:64"}, OptionError, "pattern"), ({"pattern": 4}, DTypeError, "pattern"),
        ({"pattern": "3:5"}, ArrayError, "multiple"),
        ({"axis": 2, "pattern": "2:4"}, OptionError, "axis"),
        ({"gram": x}, DTypeError, "gram"), ({"gram": Gram(8)}, ArrayError, "no rows"),
        ({"gram": Gram(8).update(w), "w": w.T}, ArrayError, "one column per input"),
        ({"gram": [g, g]}, DTypeError, "one Gram"),
        ({"gram": g, "damp": -1}, OptionError, "damp"),
        ({"w": w * np.nan, "gram": g}, ArrayError, "NaN"),
        ({"w": w[:, 0], "pattern": "2x1"}, ArrayError, "2 dimensions"),
    ):  # fmt: skip
        with pytest.raises(kind, match=word):
            fastopt.prune(**{"w": w, **options})
