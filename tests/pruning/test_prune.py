"""Magnitude pruning: kernels against their twins, then `prune` itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.pruning import magnitude
from tests import reference as twin
from tests.conftest import SIZES, THREADS, Guarded, kernel, sample, special_values

DTYPES = ("float32", "float64")


def bits(value: float, dtype: str) -> int:
    return int(twin.magnitude_bits(np.array([value], dtype))[0])


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ------------------------------------------------------------------------------------ kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_compact_matches_its_twin(level: str, dtype: str) -> None:
    k = kernel("prune", level)
    for n in (*SIZES, 70_000):
        x = sample(n, dtype, special=True)
        for lo, hi in ((0.0, 0.01), (0.3, 1.0), (1.0, np.inf), (2.0, 2.0)):
            lo_bits, hi_bits = bits(lo, dtype), bits(hi, dtype)
            below, wanted = twin.compact(x, lo_bits, hi_bits)
            for threads in THREADS if lo == 0.3 else (1,):
                room = Guarded(np.zeros(3 * (n + 96), wanted.dtype))
                got = k.compact(room.array, x, lo_bits, hi_bits, threads)
                assert got == (below, len(wanted))
                got_inside = np.sort(room.array[: len(wanted)])
                assert (got_inside == np.sort(wanted)).all()
                room.check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_compact_says_when_there_is_no_room(level: str, dtype: str) -> None:
    x = sample(1000, dtype)
    for room in (0, 1, 31, 500):
        for threads in THREADS:
            buf = Guarded(np.zeros(room, f"u{x.itemsize}"))
            inside = kernel("prune", level).compact(buf.array, x, 0, bits(np.inf, dtype), threads)
            assert inside[1] == -1
            buf.check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_finds_and_histograms_match(level: str, dtype: str) -> None:
    k = kernel("prune", level)
    for n in (*SIZES, 5000):
        x = sample(n, dtype, special=True)
        magnitudes = twin.magnitude_bits(x)
        for limit in (0.0, 0.5, np.inf):
            wanted = int((magnitudes > bits(limit, dtype)).sum())
            assert all(k.count_above(x, bits(limit, dtype), t) == wanted for t in THREADS)
        for value in (0.0, 1.0, np.inf, 0.123):
            places = np.flatnonzero(magnitudes == bits(value, dtype))
            for nth in (0, 1, len(places) - 1, len(places)):
                at, left = k.find_equal(x, bits(value, dtype), max(nth, 0))
                if 0 <= nth < len(places):
                    assert at == places[nth]
                elif nth >= len(places):
                    assert (at, left) == (-1, nth - len(places))
        for shift, width in magnitude._WINDOWS[x.itemsize]:
            for prefix in {0, int(magnitudes[-1]) >> (shift + width) if n else 0}:
                counts = np.zeros(2048, np.int64)
                k.histogram(counts, x, shift, width, prefix, 2)
                assert (counts == twin.histogram_of_bits(x, shift, width, prefix)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", THREADS)
def test_zero_below_matches_its_twin(level: str, dtype: str, threads: int) -> None:
    k = kernel("prune", level)
    for n in (*SIZES, 70_000):
        x = sample(n, dtype, special=True)
        for limit, split, after in (
            (bits(0.5, dtype), n, 0), (bits(1.0, dtype) + 1, n // 2, bits(1.0, dtype)),
            (0, 0, bits(0.0, dtype) + 1), (bits(np.inf, dtype) + 1, n - 1, 0),
        ):  # fmt: skip
            if threads > 1 and split != n // 2:
                continue  # a region costs a thousand times such a call
            wanted, keep = twin.zero_below(x, limit, split, after)
            out, mask = Guarded(np.full_like(x, 7)), Guarded(np.zeros(n, bool))
            k.zero_below(out.array, mask.array, x, limit, split, after, False, threads)
            place, past = Guarded(x), Guarded(np.full_like(x, 7))
            k.zero_below(place.array, None, place.array, limit, split, after, True, threads)
            k.zero_below(past.array, None, x, limit, split, after, True, threads)
            for got in (out, place, past):
                assert same_bits(got.array, wanted)
                got.check()
            assert (mask.array == keep).all()
            mask.check()


# ------------------------------------------------------------------------------------ prune
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 70, 1000, 70_001])
def test_removes_exactly_the_smallest(dtype: str, n: int) -> None:
    x = sample(n, dtype)
    for sparsity in (0.0, 0.1, 0.5, 0.8, 0.999, 1.0):
        k = round(sparsity * n)
        p = fastopt.prune(x, sparsity=sparsity)
        assert same_bits(p.arrays, twin.prune_smallest([x.copy()], k)[0])
        assert (~p.masks).sum() == k
        assert (p.arrays[~p.masks] == 0).all()
        assert p.sparsity == (k / n if n else 0)
        magnitudes = np.sort(np.abs(x))
        assert p.threshold == (magnitudes[k - 1] if k else 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [500, 200_000])
def test_ties_go_in_order_whatever_the_path(dtype: str, n: int) -> None:
    rng = np.random.default_rng(5)
    for x in (
        np.ones(n), rng.integers(-3, 4, n) / 8, np.sort(rng.standard_normal(n)), np.zeros(n),
        np.where(rng.random(n) < 0.6, 0.0, rng.standard_normal(n)), np.tile([1e-310, -0.0, 2], n),
        np.where(rng.random(n) < 0.5, -1.0, 1.0) * 10.0 ** rng.integers(-300, 300, n),
    ):  # fmt: skip
        with np.errstate(over="ignore"):
            x = x.astype(dtype)
        for sparsity in (0.3, 0.5, 0.8):
            k = round(sparsity * x.size)
            wanted = twin.prune_smallest([x.copy()], k)[0]
            for threads in THREADS:
                p = fastopt.prune(x, sparsity=sparsity, threads=threads)
                assert same_bits(p.arrays, wanted)
                assert (~p.masks).sum() == k


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_selection_path_agrees(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [sample(n, dtype, seed=n) for n in (40_000, 0, 3, 90_000)]
    flat = np.concatenate([twin.magnitude_bits(a) for a in arrays])
    flat.sort()
    for k in (1, 2, 1000, 66_000, flat.size - 1, flat.size):
        wanted = int(flat[k - 1])
        assert magnitude.cut_at(arrays, k, 2).bits == wanted
        for room in (64, 10_000):
            found = magnitude._radix(arrays, k, room, 2)
            assert found == (wanted, (flat < wanted).sum(), (flat == wanted).sum())
    monkeypatch.setattr(magnitude, "_bracket", lambda *a: (0, 1, 10))  # a bracket that misses
    assert magnitude.cut_at(arrays, 66_000, 2).bits == int(flat[66_000 - 1])


def test_nan_is_never_removed() -> None:
    for n in (12, 100_000):
        x = sample(n, "float32", special=True)
        nans = np.isnan(x)
        p = fastopt.prune(x, sparsity=0.5)
        assert p.masks[nans].all()
        assert np.isnan(p.arrays[nans]).all()
        before = x.copy()
        with pytest.raises(ArrayError, match="NaN"):
            fastopt.prune(x, sparsity=1.0, out=x)
        assert same_bits(x, before)
    p = fastopt.prune(special_values("float64")[1:], sparsity=0.5)  # denormals before numbers
    assert p.arrays.tolist() == [np.inf, -np.inf, 0, 0, 0, 0, 0, *p.arrays[7:].tolist()]


@pytest.mark.parametrize("scope", ["global", "local"])
def test_structures_come_back(scope: str) -> None:
    a, b = sample(30, "float32").reshape(5, 6), 100 * sample(20, "float32", seed=3)
    whole = fastopt.prune([a, b], sparsity=0.5, scope=scope)
    assert isinstance(whole.arrays, list)
    assert [m.shape for m in whole.masks] == [(5, 6), (20,)]
    zeros = [int((x == 0).sum()) for x in whole.arrays]
    assert sum(zeros) == 25
    assert zeros == ([15, 10] if scope == "local" else [25, 0])
    assert isinstance(whole.threshold, list if scope == "local" else float)
    keyed = fastopt.prune({"a": a, "b": b}, sparsity=0.5, scope=scope)
    assert list(keyed.arrays) == list(keyed.masks) == ["a", "b"]
    assert same_bits(keyed.arrays["a"], whole.arrays[0])
    assert isinstance(fastopt.prune((a, b)).arrays, tuple)
    assert fastopt.prune([]).arrays == []
    assert fastopt.prune([[1.0, 2.0], [3.0, 4.0]], sparsity=0.5).arrays.tolist() == [
        [0, 0],
        [3, 4],
    ]


def test_out_and_in_place() -> None:
    a, b = sample(1000, "float32"), sample(64, "float32")
    wanted = fastopt.prune([a, b])
    a_before = a.copy()
    outs = [np.empty_like(a), np.empty_like(b)]
    p = fastopt.prune([a, b], out=outs)
    assert p.arrays[0] is outs[0]
    assert same_bits(outs[1], wanted.arrays[1])
    assert same_bits(a, a_before)
    fastopt.prune([a, b], out=[a, b])
    assert same_bits(a, wanted.arrays[0])
    keyed = {"x": b.copy()}
    fastopt.prune(keyed, out=keyed, sparsity=1.0)
    assert not keyed["x"].any()


def test_packed_masks_and_none() -> None:
    x = sample(77, "float64").reshape(7, 11)
    p, q = fastopt.prune(x), fastopt.prune(x, masks="packed")
    unpacked = np.unpackbits(q.masks, count=77, bitorder="little").astype(bool)
    assert (unpacked.reshape(7, 11) == p.masks).all()
    assert fastopt.prune(x, masks="none").masks is None


def test_refusals_write_nothing() -> None:
    x = sample(40, "float32")
    whole = np.zeros(100, "float32")
    locked = np.zeros(40, "float32")
    locked.flags.writeable = False
    odd = np.zeros(164, np.uint8)[1:161].view("float32")
    for bad, error, word in (
        ({"w": x.astype(int)}, DTypeError, "w"), ({"w": x.astype(">f4")}, DTypeError, "w"),
        ({"w": [x, x.astype("float64")]}, DTypeError, "share one threshold"),
        ({"sparsity": 1.5}, OptionError, "sparsity"), ({"sparsity": np.nan}, OptionError, "spars"),
        ({"pattern": "diagonal"}, OptionError, "pattern"), ({"scope": "x"}, OptionError, "scope"),
        ({"masks": "yes"}, OptionError, "masks"), ({"out": np.zeros(41, "f4")}, ArrayError, "out"),
        ({"out": np.zeros(40)}, DTypeError, "out"), ({"out": locked}, ArrayError, "read-only"),
        ({"out": odd}, ArrayError, "misaligned"), ({"threads": 0}, OptionError, "threads"),
        ({"out": [x, x]}, DTypeError, "out"),
        ({"w": [x, x], "out": [x, x]}, ArrayError, "shares memory"),
        ({"w": whole[:40], "out": whole[20:60]}, ArrayError, "shares memory"),
    ):  # fmt: skip
        before = x.copy()
        with pytest.raises(error, match=word):
            fastopt.prune(**{"w": x, **bad})
        assert same_bits(x, before)
        assert not whole.any()
        assert not locked.any()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(width=32), max_size=30), max_size=4),
    st.floats(0, 1),
)
def test_any_arrays(values: list[list[float]], sparsity: float) -> None:
    arrays = [np.array(v, "float32") for v in values]
    n = sum(a.size for a in arrays)
    k = round(sparsity * n)
    if k > sum((~np.isnan(a)).sum() for a in arrays):
        with pytest.raises(ArrayError):
            fastopt.prune(arrays, sparsity=sparsity)
        return
    p = fastopt.prune(arrays, sparsity=sparsity)
    if arrays:
        wanted = twin.prune_smallest([a.copy() for a in arrays], k)
        assert all(same_bits(a, b) for a, b in zip(p.arrays, wanted))
    assert n - sum(int(m.sum()) for m in p.masks) == k


def test_equals_torch_global_unstructured() -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune as torch_prune

    first, second = torch.nn.Linear(40, 30), torch.nn.Linear(30, 7)
    given = {"a": first.weight.detach().clone(), "b": second.weight.detach().clone()}
    torch_prune.global_unstructured(
        [(first, "weight"), (second, "weight")],
        pruning_method=torch_prune.L1Unstructured,
        amount=0.37,
    )
    p = fastopt.prune(given, sparsity=0.37)
    assert same_bits(p.arrays["a"], first.weight.detach().numpy() + 0)
    assert (p.masks["b"] == second.weight_mask.numpy().astype(bool)).all()
