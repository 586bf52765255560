"""The clip kernel, and choose_qparams with clipped ranges, part by part against it."""

from __future__ import annotations

import numpy as np
import pytest

import fastopt
from fastopt.calibration import Gram
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.quantization import HistogramObserver, choose_qparams
from fastopt.quantization.choose_qparams import METHODS
from fastopt.quantization.clipping import RangeRule, mse_range, percentile_range
from fastopt.quantization.formats import FORMATS
from fastopt.quantization.qparams import qparams_from_range
from tests import reference
from tests.conftest import SIZES, THREADS, Guarded, kernel, sample


def part(x, index, axis, group_size):
    """The elements that share scale ``index``."""
    if axis is None and group_size is None:
        return x.ravel()
    if group_size is None:
        return np.take(x, index[0], axis=axis).ravel()
    at = axis % x.ndim
    start = index[at] * group_size
    group = np.take(x, np.arange(start, min(start + group_size, x.shape[at])), axis=at)
    keep = tuple(slice(None) if i == at else index[i] for i in range(x.ndim))
    return group[keep].ravel()


@pytest.mark.parametrize("name", ["int4", "uint4", "int16"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_kernel_twin(level, name, symmetric):
    k = kernel("clip", level)
    for n in (*SIZES, 256, 257, 600):
        x = sample(4 * n, "float32", n).reshape(4, n)
        x[1:3] *= np.array([[1e-44], [3e37]], "f4")
        x[3] = 0.0
        low, high = x.min(1, initial=0).astype("f8"), x.max(1, initial=0).astype("f8")
        wide, near, *rule = RangeRule.of(FORMATS[name], symmetric=symmetric, wide=n % 2 == 1)
        several = np.abs(sample(2 * n, "float32", 1)).reshape(2, n)
        for weight in (None, several[:1], several):
            for parts in ((wide, near), (wide[:5], near[:0]), (wide[:0], near[:0])):
                shared = 0 if weight is None else len(weight)
                ones = np.ones((1, n), "f4") if weight is None else weight
                want = [
                    reference.best_range(x[r], ones[r % len(ones)], low[r], high[r], *parts, *rule)
                    for r in range(4)
                ]
                for threads in THREADS:
                    ends = Guarded(low.copy()), Guarded(high.copy())
                    arrays = [end.array for end in ends]
                    k.best_range(*arrays, x, weight, 4, n, shared, *parts, *rule, threads)
                    np.testing.assert_array_equal(np.transpose(arrays), want)
                    for end in ends:
                        end.check()


def test_kernel_keeps_the_range_of_nan_and_refuses(level):
    k = kernel("clip", level)
    wide, near, *rule = RangeRule.of(FORMATS["int4"], symmetric=False)
    args = [np.full(1, -1.0), np.ones(1), np.full((1, 3), np.nan, "f4"), None, 1, 3, 0, wide, near]
    k.best_range(*args, *rule, 1)
    assert (args[0], args[1]) == (-1.0, 1.0)
    for at, bad in ((0, np.ones(2)), (2, np.ones((1, 3))), (7, wide.astype("f4"))):
        with pytest.raises((ArrayError, DTypeError)):
            k.best_range(*[bad if i == at else v for i, v in enumerate(args)], *rule, 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("axis", "group_size"),
    [(None, None), (0, None), (1, None), (-1, None), (-1, 4), (0, 2), (1, 3)],
)
def test_each_part_is_its_own_problem(method, symmetric, axis, group_size, rng):
    x = rng.standard_t(3, (3, 5, 6)).astype("f4")
    got = choose_qparams(
        x, "int4", axis=axis, group_size=group_size, symmetric=symmetric, method=method,
        percentile=90.0,
    )  # fmt: skip
    for index in np.ndindex(got.scale.shape):
        row = part(x, index, axis, group_size)[None]
        low, high = row.min(1), row.max(1)
        if method == "mse":
            low, high = mse_range(row, None, low, high, "int4", symmetric=symmetric, wide=False)
        elif method == "percentile":
            low, high = percentile_range(row, low, high, 90.0, symmetric=symmetric)
        elif method == "entropy":
            seen = HistogramObserver("entropy", axis=0).partial_fit(row)
            low, high = seen.range("int4", symmetric=symmetric)
        want = qparams_from_range(low.astype("f4"), high.astype("f4"), "int4", symmetric=symmetric)
        assert got.scale[index] == want.scale[0]
        assert got.zero_point[index] == want.zero_point[0]


def test_mse_clips_and_helps(rng):
    x = rng.standard_normal((8, 512)).astype("f4")
    x[:, 0] = 12.0
    errors = {m: fastopt.quantize(x, "uint4", axis=0, method=m).error(x) for m in METHODS}
    assert errors["mse"] < errors["minmax"]


def test_gram_weighs_the_features(rng):
    scale = 10.0 ** rng.uniform(-2, 1, 64)
    gram = Gram(64).update(rng.standard_normal((500, 64)) * scale)
    w = rng.standard_t(2, (16, 64)).astype("f4")
    moments = gram.second.diagonal()

    def loss(chosen, group):
        s = np.repeat(chosen.scale, group, axis=-1)
        q = np.clip(np.rint(w / s), -7, 7)
        return (moments * (w - s * q) ** 2).sum()

    for axis, group in ((0, None), (1, 16)):
        plain = choose_qparams(w, "int4", axis=axis, group_size=group, method="mse")
        weighed = choose_qparams(w, "int4", axis=axis, group_size=group, method="mse", gram=gram)
        if group is None:
            plain, weighed = (type(plain)(c.scale[:, None], None) for c in (plain, weighed))
        assert loss(weighed, group or 64) < loss(plain, group or 64)


def test_refused(rng):
    w = rng.standard_normal((4, 6)).astype("f4")
    with pytest.raises(OptionError, match="method"):
        choose_qparams(w, method="best")
    with pytest.raises(OptionError, match="gram"):
        choose_qparams(w, method="minmax", gram=np.eye(6))
    with pytest.raises(ArrayError, match="gram"):
        choose_qparams(w, method="mse", gram=np.eye(4))
    with pytest.raises(OptionError, match="percentile"):
        choose_qparams(w, method="percentile", percentile=0)
    with pytest.raises(ArrayError, match="NaN"):
        choose_qparams(w * np.nan, method="mse")


@pytest.mark.parametrize("method", METHODS)
def test_empty_and_constant(method):
    assert choose_qparams(np.zeros((0, 3), "f4"), axis=1, method=method).scale.shape == (3,)
    scale, zero = choose_qparams(np.zeros((2, 3), "f4"), axis=0, method=method)
    assert scale.tolist() == [1, 1]
    assert zero.tolist() == [0, 0]
