"""Observers, the histogram kernel under them, and the ranges they choose."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import threading

import numpy as np
import pytest

from fastopt.errors import (
    ArrayError,
    ConcurrentUseError,
    DTypeError,
    FastoptError,
    FormatError,
    OptionError,
)
from fastopt.quantization import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PercentileObserver,
)
from fastopt.quantization.clipping import entropy_range, mse_range, percentile_range
from fastopt.quantization.qparams import qparams_from_range
from tests import reference
from tests.conftest import SIZES, THREADS, Guarded, kernel, sample, special_values

ALL = [
    lambda **k: MinMaxObserver(**k),
    lambda **k: MovingAverageMinMaxObserver(0.25, **k),
    lambda **k: HistogramObserver("mse", bins=256, **k),
    lambda **k: HistogramObserver("entropy", bins=1024, **k),
    lambda **k: PercentileObserver(99.0, bins=512, **k),
]
MERGED = [ALL[0], *ALL[2:]]  # state depends on the values alone
everyone = pytest.mark.parametrize("make", ALL, ids=range(len(ALL)))


def state(observer):
    return json.dumps(observer.to_dict(), sort_keys=True)


# -------------------------------------------------------------------- kernels against their twins
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extent_twin(dtype, threads):
    for n in SIZES[1:]:
        for shape in [(1, 1, n), (n, 3, 1), (2, n, 1), (2, 3, n), (1, n, 2)]:
            x = sample(int(np.prod(shape)), dtype, n)
            x[:: max(1, n // 3)] = np.array([0.0, -0.0, 1e-45, 3e38], dtype)[n % 4]
            observer = MinMaxObserver(1 if shape[1] > 1 else None)
            observer.partial_fit(x.reshape(shape), threads=threads)
            lo, hi = reference.extent(x, *shape)
            np.testing.assert_array_equal(observer.min_, lo)
            np.testing.assert_array_equal(observer.max_, hi)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_non_finite_value_is_seen(dtype, bad):
    for n in (1, 7, 32, 33, 70):
        for at in range(n):
            for shape, axis in [((n,), None), ((n, 1), 1), ((1, n), 1), ((1, 2, n), 1)]:
                x = np.ones(shape, dtype)
                x.reshape(-1)[at] = bad
                with pytest.raises(ArrayError, match="NaN or infinity"):
                    MinMaxObserver(axis).partial_fit(x)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_count_twin(level, dtype, threads):
    k = kernel("histogram", level)
    bins = 64
    for n in SIZES[1:]:
        for outer, channels, inner in [(1, 1, n), (n, 3, 1), (2, n, 1), (2, 3, n), (1, n, 2)]:
            x = sample(outer * channels * inner, dtype, n)
            x[::3] = np.resize(special_values(dtype)[3:], x[::3].shape)
            inv = np.ldexp(1.0, np.arange(channels) % 7 - 2)
            counts = Guarded(np.full((channels, bins), 5, np.int64))
            k.count(counts.array, x, inv, outer, channels, inner, threads)
            twin = reference.histogram_count(x, inv, bins, outer, channels, inner)
            np.testing.assert_array_equal(counts.array, twin + 5)
            counts.check()


def test_count_never_leaves_the_table_on_nan(level):
    counts = Guarded(np.zeros((1, 64), np.int64))
    x = np.array([np.nan, np.inf, -np.inf, -np.nan] * 20, np.float32)
    kernel("histogram", level).count(counts.array, x, np.ones(1), 1, 1, 80, 1)
    counts.check()
    assert counts.array.sum() == 80


def test_kernels_same_bits_on_every_level_and_thread_count():
    from fastopt._kernels import levels

    x = sample(50_000, "float32")
    results = []
    for lv in levels():
        for threads in (1, 2, 3):
            counts = np.zeros((4, 256), np.int64)
            kernel("histogram", lv).count(counts, x, np.full(4, 16.0), 12500, 4, 1, threads)
            whole = np.zeros((1, 256), np.int64)
            kernel("histogram", lv).count(whole, x, np.full(1, 16.0), 1, 1, x.size, threads)
            results.append(counts.tobytes() + whole.tobytes())
    assert len(set(results)) == 1


def test_kernel_doors_refuse():
    k, x = kernel("histogram", "v2"), np.ones(4, np.float32)
    counts = np.zeros((1, 64), np.int64)
    with pytest.raises(DTypeError, match="counts"):
        k.count(counts.astype("i4"), x, np.ones(1), 1, 1, 4, 1)
    with pytest.raises(ArrayError, match="inv"):
        k.count(counts, x, np.ones(2), 1, 1, 4, 1)
    with pytest.raises(ArrayError, match="x"):
        k.count(counts, x[::2], np.ones(1), 1, 1, 2, 1)
    with pytest.raises(DTypeError, match="x"):
        k.count(counts, x.astype("f2"), np.ones(1), 1, 1, 4, 1)
    assert not counts.any()


# -------------------------------------------------------------------- streaming and merging
@pytest.mark.parametrize("make", MERGED, ids=range(len(MERGED)))
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_state_depends_on_the_values_alone(make, axis, dtype, rng):
    scale = 10.0 ** rng.integers(-6, 6, (6, 1, 1))
    batches = (rng.standard_normal((6, 4, 5)) * scale).astype(dtype)
    batches[2] = 0.0
    batches[3, 1] = -1e-45
    forward, backward = make(axis=axis), make(axis=axis)
    for b in batches:
        forward.partial_fit(b, threads=1)
    for b in batches[::-1]:
        backward.partial_fit(b, threads=2)
    merged = sum(make(axis=axis).partial_fit(b) for b in batches)
    left = make(axis=axis) + (make(axis=axis).partial_fit(batches[0]) + make(axis=axis))
    right = sum((make(axis=axis).partial_fit(b) for b in batches[:0:-1]), make(axis=axis))
    assert state(forward) == state(backward) == state(merged) == state(left + right)


def test_moving_average_is_the_recurrence_and_merges_as_a_stream(rng):
    batches = rng.standard_normal((7, 3, 5)).astype("f4")
    one = MovingAverageMinMaxObserver(0.25, axis=0)
    low = None
    for b in batches:
        one.partial_fit(b)
        now = b.min(axis=1).astype("f8")
        low = now if low is None else low + 0.25 * (now - low)
    np.testing.assert_allclose(one.min_, low, rtol=1e-12)
    for cut in range(8):
        a, b = (MovingAverageMinMaxObserver(0.25, axis=0) for _ in range(2))
        for x in batches[:cut]:
            a.partial_fit(x)
        for x in batches[cut:]:
            b.partial_fit(x)
        both = a + b
        np.testing.assert_allclose(both.min_, one.min_, rtol=1e-12)
        np.testing.assert_allclose(both.max_, one.max_, rtol=1e-12)
        assert both.count == 7
    three = [MovingAverageMinMaxObserver(0.25, axis=0).partial_fit(x) for x in batches[:3]]
    left, right = (three[0] + three[1]) + three[2], three[0] + (three[1] + three[2])
    np.testing.assert_allclose(left.min_, right.min_, rtol=1e-12)


def test_histogram_counts_are_exact(rng):
    o = HistogramObserver(bins=256)
    x = rng.standard_normal(10_000).astype("f4")
    for part in np.split(x, [1, 10, 500, 5000]):
        o.partial_fit(part)
    width = float(o.width_[0])
    assert 64 <= max(-o.min_[0], o.max_[0]) / width < 128
    edges = (np.arange(257) - 128) * width
    numpy_counts, _ = np.histogram(x, edges)  # no value of x is exactly an edge below zero
    np.testing.assert_array_equal(o.counts_[0], numpy_counts)


def test_channels_are_independent(rng):
    x = rng.standard_normal((4, 3, 7)).astype("f4") * np.array([1, 100, 1e-5], "f4")[:, None]
    for make in ALL:
        many = make(axis=1).partial_fit(x).partial_fit(2 * x)
        for c in range(3):
            alone = make().partial_fit(x[:, c]).partial_fit(2 * x[:, c])
            for symmetric in (True, False):
                np.testing.assert_array_equal(
                    many.range("int4", symmetric=symmetric)[1][c],
                    alone.range("int4", symmetric=symmetric)[1],
                )


# -------------------------------------------------------------------- ranges
def test_minmax_matches_torch(rng):
    torch = pytest.importorskip("torch")
    from torch.ao.quantization import observer as peers

    batches = rng.standard_normal((5, 6, 8)).astype("f4")
    pairs = [
        (MinMaxObserver(), peers.MinMaxObserver(quant_max=255, quant_min=0)),
        (
            MovingAverageMinMaxObserver(0.01),
            peers.MovingAverageMinMaxObserver(averaging_constant=0.01),
        ),
    ]
    for ours, theirs in pairs:
        for b in batches:
            ours.partial_fit(b)
            theirs(torch.from_numpy(b.copy()))
        np.testing.assert_allclose(float(ours.min_[0]), float(theirs.min_val), rtol=1e-6)
        scale, zero = ours.qparams("uint8", symmetric=False)
        their_scale, their_zero = theirs.calculate_qparams()
        np.testing.assert_allclose(float(scale), float(their_scale), rtol=1e-6)
        assert int(zero) == int(their_zero)
    ours = MinMaxObserver(axis=1)
    theirs = peers.PerChannelMinMaxObserver(ch_axis=1)
    for b in batches:
        ours.partial_fit(b)
        theirs(torch.from_numpy(b.copy()))
    np.testing.assert_array_equal(ours.max_.astype("f4"), theirs.max_val.numpy())


def test_percentile_is_within_a_bin_of_numpy(rng):
    x = rng.standard_t(3, 50_000).astype("f4")
    for p in (50.0, 90.0, 99.0, 99.9, 100.0):
        o = PercentileObserver(p, bins=65536).partial_fit(x)
        width = float(o.width_[0])
        low, high = o.range(symmetric=False)
        cut = (100 - p) / 2
        expected = np.percentile(x, [cut, 100 - cut])
        # between two order statistics NumPy interpolates over their gap, so allow that gap
        gap = np.ptp(np.sort(x)[[-2, -1]]) if p > 99.99 else 0.05
        assert abs(low - expected[0]) <= width + gap
        assert abs(high - expected[1]) <= width + gap
        _, top = o.range(symmetric=True)
        assert abs(top - np.percentile(np.abs(x), p)) <= width + gap
    low, high = PercentileObserver(100).partial_fit(x).range(symmetric=False)
    assert (low, high) == (x.min(), x.max())


def brute_mse(x, weight, fmt_low, fmt_high, symmetric, ratios):
    """Least weighted error over plain joint shrinking, in float64."""
    best = np.inf
    for r in ratios:
        low, high = min(x.min(), 0) * r, max(x.max(), 0) * r
        if symmetric:
            s, z = max(-low, high) / fmt_high, 0
        else:
            s = (high - low) / (fmt_high - fmt_low)
            z = np.clip(np.rint(fmt_low - low / s), fmt_low, fmt_high)
        q = np.clip(np.rint(x / s) + z, fmt_low, fmt_high)
        best = min(best, float((weight * (x - s * (q - z)) ** 2).sum()))
    return best


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_range_is_as_good_as_brute_force(symmetric, rng):
    x = rng.standard_normal((6, 96)).astype("f4") + 0.3
    weight = rng.uniform(0, 2, (6, 96)) ** 3
    low, high = mse_range(x, weight, x.min(1), x.max(1), "int4", symmetric=symmetric)
    ratios = np.linspace(1, 0.38, 32)
    low_code = -7 if symmetric else -8
    for r in range(6):
        q = qparams_from_range(low[r], high[r], "int4", symmetric=symmetric)
        z = int(q.zero_point)
        codes = np.clip(np.rint(x[r] / q.scale) + z, -7 if symmetric else -8, 7)
        ours = (weight[r] * (x[r] - q.scale * (codes - z)) ** 2).sum()
        assert (
            ours
            <= brute_mse(x[r].astype("f8"), weight[r], low_code, 7, symmetric, ratios) * 1.0001
        )


def test_mse_range_does_not_depend_on_scale_or_threads(rng):
    x = rng.standard_normal((40, 64)).astype("f4")
    low, high = mse_range(x, None, x.min(1), x.max(1), "uint4", symmetric=False, threads=1)
    for factor in (2.0**-140, 2.0**-60, 2.0**100):
        y = x.astype("f8") * factor
        lo, hi = mse_range(y, None, y.min(1), y.max(1), "uint4", symmetric=False, threads=2)
        np.testing.assert_array_equal(lo / factor, low)
        np.testing.assert_array_equal(hi / factor, high)


def test_mse_range_shares_weight_rows_in_turn(rng):
    x = rng.standard_normal((6, 16)).astype("f4")
    weight = rng.uniform(0, 1, (2, 16))
    once = mse_range(x, weight, x.min(1), x.max(1), "int4", symmetric=True)
    spread = mse_range(x, np.tile(weight, (3, 1)), x.min(1), x.max(1), "int4", symmetric=True)
    np.testing.assert_array_equal(once[1], spread[1])


def test_mse_histogram_is_close_to_mse_of_the_values(rng):
    x = rng.laplace(size=20_000).astype("f4")
    for dtype in ("int4", "int8"):
        rows = x[None]
        _, direct = mse_range(rows, None, rows.min(1), rows.max(1), dtype, symmetric=True)
        _, streamed = HistogramObserver("mse").partial_fit(x).range(dtype)
        assert abs(float(streamed) / float(direct[0]) - 1) < 0.05


def brute_entropy(counts, levels):
    """The divergence of every candidate end, spelled out bin by bin."""
    n = len(counts)
    results = {}
    for length in range(levels, n + 1):
        inside = counts[:length].astype("f8")
        p = inside.copy()
        p[-1] += counts[length:].sum()
        q = np.zeros(length)
        for a, b in itertools.pairwise(np.arange(levels + 1) * length // levels):
            filled = p[a:b] > 0
            if filled.any():
                q[a:b][filled] = inside[a:b].sum() / filled.sum()
        if ((p > 0) & (q == 0)).any():
            results[length] = np.inf
            continue
        p, q = p / p.sum(), q / q.sum()
        use = p > 0
        results[length] = (p[use] * np.log(p[use] / q[use])).sum()
    return results


def test_entropy_range_is_brute_force(rng):
    for seed in range(8):
        r = np.random.default_rng(seed)
        counts = np.zeros((1, 256), np.int64)
        counts[0, 128:248] = r.poisson(3000 * np.exp(-np.arange(120) / r.uniform(8, 30)))
        counts[0, 240] += 5  # outliers
        full = 128 - np.argmax(counts[0, :127:-1] > 0)
        kl = brute_entropy(counts[0, 128 : 128 + full], 8)
        low, high = entropy_range(
            counts, np.ones(1), np.zeros(1), np.array([float(full)]), "int4", symmetric=True
        )
        assert low[0] == -high[0]
        assert kl[int(high[0])] <= min(kl.values()) + 1e-9


def test_entropy_clips_an_outlier_and_keeps_what_has_few_bins(rng):
    x = rng.standard_normal(100_000).astype("f4")
    x[:3] = 30.0
    for symmetric in (True, False):
        low, high = HistogramObserver("entropy").partial_fit(x).range("int8", symmetric=symmetric)
        assert 2.5 < high < 12
    few = np.array([-1.0, 0.0, 1.0], "f4")
    low, high = HistogramObserver("entropy", bins=64).partial_fit(few).range("int8")
    assert (low, high) == (-1.0, 1.0)


@everyone
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4", "uint4", "int16"])
def test_qparams_are_those_of_the_range(make, dtype, rng):
    o = make(axis=0).partial_fit(rng.standard_normal((3, 500)).astype("f4"))
    for symmetric in (True, False):
        low, high = o.range(dtype, symmetric=symmetric)
        got = o.qparams(dtype, symmetric)
        want = qparams_from_range(low.astype("f4"), high.astype("f4"), dtype, symmetric=symmetric)
        np.testing.assert_array_equal(got.scale, want.scale)
        np.testing.assert_array_equal(got.zero_point, want.zero_point)
        assert got.scale.dtype == np.float32


@everyone
@pytest.mark.parametrize("value", [0.0, -0.0, 3.0, -3.0, 1e-45, 3e38])
def test_constant_data_has_a_finite_positive_scale(make, value):
    o = make().partial_fit(np.full(10, value, np.float32))
    for dtype in ("int8", "uint8", "int4"):
        for symmetric in (True, False):
            scale, zero = o.qparams(dtype, symmetric)
            assert np.isfinite(scale)
            assert scale > 0
            assert scale.shape == zero.shape == ()


def test_percentile_range_is_numpy(rng):
    x = rng.standard_normal((3, 101))
    low, _high = percentile_range(x, x.min(1), x.max(1), 98.0, symmetric=False)
    np.testing.assert_array_equal(low, np.quantile(x, (1 - 0.98) / 2, axis=1))
    _, top = percentile_range(x, x.min(1), x.max(1), 98.0, symmetric=True)
    np.testing.assert_array_equal(top, np.quantile(np.abs(x), 0.98, axis=1))


# -------------------------------------------------------------------- wrong input, contract
@everyone
def test_a_refused_batch_changes_nothing(make, rng):
    good = rng.standard_normal((4, 3)).astype("f4")
    o = make(axis=1).partial_fit(good)
    before = state(o)
    for bad in (np.nan, np.inf, -np.inf):
        x = good.copy()
        x[3, 2] = bad
        with pytest.raises(ArrayError, match="x: holds NaN"):
            o.partial_fit(x)
    with pytest.raises(ArrayError, match="channels"):
        o.partial_fit(good[:, :2])
    with pytest.raises(ArrayError, match="axis"):
        o.partial_fit(good[0])
    with pytest.raises(DTypeError):
        o.partial_fit(np.array(["a"]))
    assert state(o) == before
    assert state(o.partial_fit(np.zeros((0, 3), "f4"))) == before


def test_wrong_options():
    with pytest.raises(OptionError, match="bins"):
        HistogramObserver(bins=100)
    with pytest.raises(OptionError, match="bins"):
        HistogramObserver(bins=32)
    with pytest.raises(OptionError, match="method"):
        HistogramObserver("kl2")
    with pytest.raises(OptionError, match="percentile"):
        PercentileObserver(0)
    with pytest.raises(OptionError, match="averaging_constant"):
        MovingAverageMinMaxObserver(1.5)
    with pytest.raises(OptionError, match="no data"):
        MinMaxObserver().qparams()
    with pytest.raises(OptionError, match="bins"):
        HistogramObserver(bins=64).partial_fit([1.0]) + HistogramObserver(bins=128)
    with pytest.raises(TypeError):
        MinMaxObserver() + PercentileObserver()
    with pytest.raises(ArrayError, match="channels"):
        MinMaxObserver(0).partial_fit([1.0]) + MinMaxObserver(0).partial_fit([1.0, 2.0])
    with pytest.raises(OptionError, match="integer format"):
        HistogramObserver().partial_fit([1.0, 2.0]).qparams("q3.12")


@everyone
def test_pickle_copy_and_json_keep_every_bit(make, rng):
    o = make(axis=1).partial_fit(rng.standard_normal((4, 3)).astype("f4"))
    cls = type(o)
    for twin in (
        pickle.loads(pickle.dumps(o)),
        copy.deepcopy(o),
        o.copy(),
        cls.from_dict(json.loads(json.dumps(o.to_dict()))),
    ):
        assert state(twin) == state(o)
        assert repr(twin) == repr(o)
        twin.partial_fit(rng.standard_normal((2, 3)))
        assert state(twin) != state(o)


@everyone
def test_a_broken_state_is_refused(make):
    o = make().partial_fit([1.0, -2.0])
    good = o.to_dict()
    for key in good:
        with pytest.raises(FormatError):
            type(o).from_dict({k: v for k, v in good.items() if k != key})
        with pytest.raises(FastoptError):
            type(o).from_dict({**good, key: "nonsense"})
    with pytest.raises(FormatError):
        type(o).from_dict({**good, "min_": [1.0, 2.0]})
    with pytest.raises(FormatError):
        type(o).from_dict({**good, "max_": [float("nan")]})


@everyone
def test_concurrent_use_is_refused(make):
    o = make()
    o._busy.acquire()
    caught = []

    def other() -> None:
        try:
            o.partial_fit([1.0])
        except ConcurrentUseError as error:
            caught.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    o._busy.release()
    assert len(caught) == 1
    assert o.partial_fit([1.0]).count == 1


def test_memory_is_the_bins(rng):
    o = HistogramObserver(bins=1024, axis=1)
    for _ in range(3):
        o.partial_fit(rng.standard_normal((500, 4)).astype("f4"))
    assert o.counts_.shape == (4, 1024)
    assert o.counts_.sum() == 3 * 2000


@pytest.mark.parametrize("make", MERGED, ids=range(len(MERGED)))
@pytest.mark.parametrize("seed", range(12))
def test_any_cut_and_any_tree_of_merges_is_one_fit(make, seed):
    """merge(a, b) == fit(a and b), bit for bit: random magnitudes, cuts, order and grouping."""
    rng = np.random.default_rng(seed)
    axis = [None, 1][seed % 2]
    n = int(rng.integers(2, 400))
    x = rng.standard_normal((n, 3)).astype(["f4", "f8"][seed % 3 % 2])
    x *= np.exp2(rng.integers(-60, 60, (n, 1))).astype(x.dtype)
    x[rng.random(x.shape) < 0.1] = rng.choice([0.0, -0.0, 1e-45, 3e38])
    whole = make(axis=axis).partial_fit(x)
    cuts = np.sort(rng.integers(0, n + 1, rng.integers(1, 8)))
    parts = [make(axis=axis).partial_fit(p) for p in np.split(x, cuts)]
    while len(parts) > 1:
        i, j = rng.choice(len(parts), 2, replace=False)
        both = parts[i] + parts[j]
        parts = [p for k, p in enumerate(parts) if k not in (i, j)] + [both]
    made, wanted = parts[0].to_dict(), whole.to_dict()
    assert made.pop("count") == len(cuts) + 1 - sum(len(p) == 0 for p in np.split(x, cuts))
    wanted.pop("count")
    assert json.dumps(made) == json.dumps(wanted)
    for symmetric in (True, False):
        for a, b in zip(
            parts[0].range("int4", symmetric=symmetric), whole.range("int4", symmetric=symmetric)
        ):
            np.testing.assert_array_equal(a, b)
