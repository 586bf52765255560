"""The genetic kernels: twins, levels, threads, guard bytes, refusals, distributions."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt._kernels import levels
from fastopt.errors import ArrayError, DTypeError, FastoptError, OptionError
from fastopt.search import tournament, variation
from tests import reference
from tests.conftest import SIZES, THREADS, Guarded, kernel

KEY = 0x9D3F_21C4_7A55_E08B
LENGTHS = (0, 1, 2, 3, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 70, 129, 1000)
KINDS = {"none": 0, "uniform": 1, "one_point": 2, "two_point": 3, "sbx": 4}


def population(n, d, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(-3, -1, d).astype(dtype)
    high = rng.uniform(1, 3, d).astype(dtype)
    return (low + rng.random((n, d)) * (high - low)).astype(dtype), low, high


def breed(
    level,
    parents,
    mates,
    low,
    high,
    kind="none",
    rate=1.0,
    gene_rate=0.5,
    eta=5.0,
    mutation=0,
    mutation_rate=0.0,
    scale=20.0,
    generation=3,
    threads=1,
):
    child = Guarded(np.zeros((len(mates), parents.shape[1]), parents.dtype))
    kernel("genetic", level).breed(
        child.array,
        parents,
        mates,
        low,
        high,
        KINDS[kind],
        rate,
        gene_rate,
        eta,
        mutation,
        mutation_rate,
        scale,
        KEY,
        generation,
        threads,
    )
    child.check()
    return child.array


@pytest.mark.parametrize("threads", THREADS)
def test_uniform_twin(level, threads):
    for shape in [(n, 7) for n in (0, 1, 17, 70)] + [(3, n) for n in SIZES]:
        x = Guarded(np.zeros(shape))
        kernel("genetic_select", level).uniform(x.array, 11, KEY, 5, threads)
        x.check()
        assert np.array_equal(x.array, reference.uniform_rows(*shape, 11, KEY, 5))


def test_uniform_is_uniform(level):
    x = np.empty((400, 500))
    kernel("genetic_select", level).uniform(x, 0, KEY, 0, 1)
    assert x.min() >= 0
    assert x.max() < 1
    assert ks_distance(x.ravel(), lambda v: v) < 1.95 / np.sqrt(x.size)
    assert abs(np.corrcoef(x[:, :-1].ravel(), x[:, 1:].ravel())[0, 1]) < 5 / np.sqrt(x.size)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_tournament_twin(level, size, threads):
    for n, m in ((1, 5), (7, 0), (7, 1), (50, 16), (50, 70), (1000, 1000)):
        fitness = np.random.default_rng(n).standard_normal(n).round(1)
        fitness[::3] = np.resize([np.nan, np.inf, -np.inf, 0.0, -0.0], fitness[::3].shape)
        winners = Guarded(np.zeros(m, np.intp))
        kernel("genetic_select", level).tournament(winners.array, fitness, size, KEY, 2, threads)
        winners.check()
        assert np.array_equal(winners.array, reference.tournament(fitness, m, size, KEY, 2))


def test_tournament_probabilities():
    n, m = 10, 200_000
    for size in (1, 2, 3, 6):
        share = (
            np.bincount(tournament(np.arange(n, dtype=float), m, size=size, seed=4), minlength=n)
            / m
        )
        r = np.arange(n)
        exact = ((n - r) ** size - (n - r - 1) ** size) / n**size
        assert np.abs(share - exact).max() < 4 / np.sqrt(m)


def test_tournament_nan_never_beats_a_number():
    fitness = np.array([np.nan, 5.0, np.nan, np.inf])
    winners = tournament(fitness, 1000, size=40)
    assert (winners == 1).all()
    assert set(tournament(fitness[[0, 2, 3]], 1000, size=40)) == {2}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["none", "uniform", "one_point", "two_point"])
def test_exchange_twin(level, kind, dtype):
    for d in LENGTHS:
        parents, low, high = population(9, d, dtype)
        if d:
            parents.flat[::5] = np.resize([np.nan, np.inf, -0.0, 5e-324], parents.flat[::5].shape)
        mates = np.random.default_rng(d).integers(0, 9, 70).astype(np.intp)
        a, b = parents[mates[0::2]], parents[mates[1::2]]
        swap = np.zeros_like(a, bool)
        for p in range(len(a)):
            if kind != "none":
                swap[p] = reference.exchanged(d, p, kind, 0.3, KEY, 3)
        for threads in THREADS if d in (17, 70) else (1,):
            got = breed(level, parents, mates, low, high, kind, gene_rate=0.3, threads=threads)
            assert got[0::2].tobytes() == np.where(swap, b, a).tobytes()
            assert got[1::2].tobytes() == np.where(swap, a, b).tobytes()


def test_rate_of_pairs(level):
    parents, low, high = population(40, 30)
    mates = np.arange(40, dtype=np.intp)
    got = breed(level, parents, mates, low, high, "uniform", rate=0.4)
    crossed = (got != parents).any(axis=1)[::2]
    w = reference.philox(KEY, np.arange(20), 0, 2, 3)[0]
    assert np.array_equal(crossed, (w + 0.5) / 2**32 < 0.4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("eta", "gene_rate"), [(0.0, 0.5), (2.0, 0.5), (15.0, 0.5), (2.5, 0.3)])
def test_sbx_twin(level, eta, gene_rate, dtype):
    for d in LENGTHS:
        parents, low, high = population(6, d, dtype)
        parents[3] = parents[2]  # equal parents
        if d:
            parents[4, 0], parents[5, -1] = low[0], high[-1]  # on the bounds
        mates = np.array([0, 1, 2, 3, 4, 5, 1, 0], np.intp)
        got = breed(level, parents, mates, low, high, "sbx", eta=eta, gene_rate=gene_rate)
        f8 = [v.astype(float) for v in (parents, low, high)]
        for p in range(4):
            a, b = f8[0][mates[2 * p]], f8[0][mates[2 * p + 1]]
            want = reference.sbx(a, b, f8[1], f8[2], eta, gene_rate, p, KEY, 3)
            np.testing.assert_allclose(got[2 * p : 2 * p + 2], want, rtol=0, atol=3e-6)
        assert np.array_equal(got[2:4], parents[2:4])
        assert (got >= low).all()
        assert (got <= high).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mutation", [1, 2])
@pytest.mark.parametrize("rate", [0.0, 0.02, 0.125, 0.3, 1.0])
def test_mutation_twin(level, rate, mutation, dtype):
    scale = {1: 0.2, 2: 20.0}[mutation]
    for d in LENGTHS:
        x, low, high = population(18, d, dtype)
        if d > 2:
            high[1] = low[1] - 1  # an empty interval: the gene stays
        want = x.astype(float)
        lo, hi = low.astype(float), high.astype(float)
        for i in range(len(x)):
            at, word, turn = reference.mutations(d, i, rate, KEY, 3)
            at, word, turn = (v[hi[at] > lo[at]] for v in (at, word, turn))
            args = (want[i, at], lo[at], hi[at], scale, word)
            want[i, at] = (
                reference.polynomial(*args) if mutation == 2 else reference.gaussian(*args, turn)
            )
        for threads in THREADS if d in (17, 70) else (1,):
            got = Guarded(x)
            kernel("genetic", level).mutate(
                got.array, low, high, mutation, rate, scale, KEY, 3, threads
            )
            got.check()
            np.testing.assert_allclose(
                got.array, want, rtol=0, atol=1e-6 if dtype[5:] == "32" else 1e-11
            )
        mates = np.array([*range(18)], np.intp)  # fused: child i is mutated as row i
        child = breed(
            level, x, mates, low, high, mutation=mutation, mutation_rate=rate, scale=scale
        )
        assert np.array_equal(child, got.array)


@pytest.mark.parametrize("threads", THREADS)
def test_bits_twin(level, threads):
    bits = kernel("genetic_bits", level)
    for d in LENGTHS if threads == 1 else (17, 65):
        parents = np.random.default_rng(d).integers(0, 2, (9, d)).astype(np.uint8)
        mates = np.random.default_rng(d).integers(0, 9, 38).astype(np.intp)
        for kind in ("none", "uniform", "one_point", "two_point"):
            for rate in (0.0, 0.03, 1.0) if d < 100 else (0.03,):
                child = Guarded(np.zeros((38, d), np.uint8))
                bits.breed_bits(
                    child.array, parents, mates, d, KINDS[kind], 1.0, 0.5, rate, KEY, 3, threads
                )
                child.check()
                want = parents[mates]
                for p in range(19 if kind != "none" else 0):
                    swap = reference.exchanged(d, p, kind, 0.5, KEY, 3)
                    pair = want[2 * p : 2 * p + 2]
                    pair[:, swap] = pair[::-1, swap]
                for i in range(38 if rate else 0):
                    want[i, reference.flips(d, i, rate, KEY, 3)] ^= 1
                assert np.array_equal(child.array, want)
                again = parents[mates]
                if kind == "none":
                    bits.flip(again, d, rate, KEY, 3, threads)
                    assert np.array_equal(again, want)


def packed(bits):
    """Rows of 0 and 1 as uint64, 64 genes a word."""
    room = np.zeros((len(bits), -(-bits.shape[1] // 64) * 64), np.uint8)
    room[:, : bits.shape[1]] = bits
    return np.packbits(room, axis=1, bitorder="little").view("<u8").astype(np.uint64)


@pytest.mark.parametrize("threads", THREADS)
def test_packed_twin(level, threads):
    kernels = kernel("genetic_bits", level)
    for d in (*LENGTHS, 2048, 4500) if threads == 1 else (17, 65, 4500):
        rng = np.random.default_rng(d)
        parents = rng.integers(0, 2, (9, d)).astype(np.uint8)
        mates = rng.integers(0, 9, 38).astype(np.intp)
        for kind, gene_rate, rate in (
            *((k, 0.5, r) for k in ("none", "one_point", "two_point") for r in (0.0, 0.03)),
            *(("uniform", r, 0.01) for r in (0.0, 0.3, 0.5, 0.625, 1.0)),
        ):
            child = Guarded(np.zeros((38, -(-d // 64)), np.uint64))
            args = (d, KINDS[kind], 1.0, gene_rate, rate, KEY, 3, threads)
            kernels.breed_bits(child.array, packed(parents), mates, *args)
            child.check()
            want = parents[mates]
            for p in range(19 if kind != "none" else 0):
                swap = (
                    reference.packed_mask(d, p, gene_rate, KEY, 3)
                    if kind == "uniform"
                    else reference.exchanged(d, p, kind, 0.5, KEY, 3)
                )
                pair = want[2 * p : 2 * p + 2]
                pair[:, swap] = pair[::-1, swap]
            for i in range(38 if rate else 0):
                want[i, reference.flips(d, i, rate, KEY, 3)] ^= 1
            assert np.array_equal(child.array, packed(want))
            again, count = packed(parents[mates]), np.empty(38, np.int64)
            kernels.distances(count, child.array, again, threads)
            assert np.array_equal(count, (want != parents[mates]).sum(axis=1))
            kernels.distances(count, child.array, again[:1], threads)
            assert np.array_equal(count, (want != parents[mates[0]]).sum(axis=1))
            if kind == "none":
                kernels.flip(again, d, rate, KEY, 3, threads)
                assert np.array_equal(again, packed(want))


def test_packed_uniform_exchange_is_fair():
    """Every gene changes sides with the gene rate, neighbours on their own."""
    kernels, n, d = kernel("genetic_bits", levels()[0]), 4000, 200
    parents = np.array([[0] * 4, [2**64 - 1] * 3 + [2 ** (d - 192) - 1]], np.uint64)
    child = np.empty((2 * n, 4), np.uint64)
    for gene_rate in (0.5, 0.3):
        mates = np.tile(np.arange(2, dtype=np.intp), n)
        kernels.breed_bits(child, parents, mates, d, 1, 1.0, gene_rate, 0.0, KEY, 0, 1)
        assert np.array_equal(child[::2] ^ child[1::2], np.tile(parents[1], (n, 1)))
        bits = np.unpackbits(child[::2].view(np.uint8), axis=1, bitorder="little")
        assert bits[:, d:].sum() == 0
        x = (bits[:, :d] - gene_rate) / np.sqrt(gene_rate * (1 - gene_rate))
        assert np.abs(x.mean(axis=0)).max() < 5 / np.sqrt(n)
        assert np.abs((x[:, 1:] * x[:, :-1]).mean(axis=0)).max() < 5 / np.sqrt(n)


def test_packed_refusals_write_nothing():
    kernels = kernel("genetic_bits", levels()[0])
    x, mates = np.arange(8, dtype=np.uint64).reshape(4, 2), np.arange(4)
    before, child = x.copy(), np.zeros((4, 2), np.uint64)
    for error, args in (
        (ArrayError, (child, x, mates, 64, 1)),
        (ArrayError, (child, x[:, :1], mates, 128, 1)),
        (ArrayError, (child[:3], x, mates, 128, 1)),
        (ArrayError, (child, x, mates + 1, 128, 1)),
        (ArrayError, (child, x, mates, 128, KINDS["sbx"])),
        (OptionError, (child, x, mates, -1, 1)),
        (FastoptError, (child.view(np.int64), x, mates, 128, 1)),
        (FastoptError, (child[:, ::-1], x, mates, 128, 1)),
    ):
        with pytest.raises(error):
            kernels.breed_bits(*args, 1.0, 0.5, 0.5, KEY, 0, 1)
        assert not child.any()
    with pytest.raises(ArrayError, match="x: expected shape"):
        kernels.flip(x, 200, 0.5, KEY, 0, 1)
    with pytest.raises(ArrayError, match="y: expected 1 row"):
        kernels.distances(np.zeros(4, np.int64), x, x[:2], 1)
    assert np.array_equal(x, before)


def test_same_bits_on_every_level_and_thread_count():
    parents, low, high = population(64, 333)
    parents[5, 7] = np.nan
    mates = np.random.default_rng(1).integers(0, 64, 500).astype(np.intp)
    for dtype in ("float32", "float64"):
        args = [v.astype(dtype) for v in (parents, low, high)]
        for kind, mutation, rate in (
            ("sbx", 2, 0.01),
            ("sbx", 2, 0.5),
            ("uniform", 1, 0.01),
            ("two_point", 1, 1.0),
        ):
            seen = {
                breed(
                    level,
                    args[0],
                    mates,
                    *args[1:],
                    kind,
                    0.9,
                    mutation=mutation,
                    mutation_rate=rate,
                    scale=0.3,
                    threads=threads,
                ).tobytes()
                for level in levels()
                for threads in (1, 2, 3)
            }
            assert len(seen) == 1


def test_a_child_does_not_depend_on_its_siblings(level):
    parents, low, high = population(64, 100)
    mates = np.random.default_rng(1).integers(0, 64, 200).astype(np.intp)
    whole = breed(level, parents, mates, low, high, "sbx", 0.9, mutation=2, mutation_rate=0.01)
    part = breed(level, parents, mates[:34], low, high, "sbx", 0.9, mutation=2, mutation_rate=0.01)
    assert np.array_equal(whole[:34], part)


# --- distributions against the closed forms


def ks_distance(sample, cdf):
    s = np.sort(sample)
    f, n = cdf(s), len(s)
    return max((np.arange(1, n + 1) / n - f).max(), (f - np.arange(n) / n).max())


@pytest.mark.parametrize("eta", [0.0, 3.0, 15.0])
@pytest.mark.parametrize("width", [1.5, 1e6])
def test_sbx_spread(eta, width):
    n = 100_000
    parents = np.repeat([[0.0], [1.0]], n, axis=1)
    low, high = np.full(n, 0.5 - width), np.full(n, 0.5 + width)
    child = variation(
        parents, np.array([0, 1]), low, high, rate=1, gene_rate=1, eta=eta, mutation="none", seed=3
    )
    np.testing.assert_allclose(child.sum(axis=0), 1.0, atol=1e-6 * width)  # the mean is kept
    beta = np.abs(child[1] - child[0])
    largest = 2 * width

    def plain(b):
        return np.where(b < 1, 0.5 * b ** (eta + 1), 1 - 0.5 * np.maximum(b, 1) ** -(eta + 1))

    assert beta.max() <= largest * (1 + 1e-6)
    assert ks_distance(beta, lambda b: plain(b) / plain(largest)) < 1.95 / np.sqrt(n)
    assert abs((child[0] < 0.5).mean() - 0.5) < 4 / np.sqrt(n)  # sides are shared evenly


@pytest.mark.parametrize("rate", [0.1, 1.0])
@pytest.mark.parametrize("x0", [0.0, 0.3, 1.0])
def test_polynomial_spread(x0, rate):
    n, eta = 200_000, 20.0
    x = np.full((2, n // 2), x0)
    got = variation(
        x,
        np.array([0, 1]),
        0.0,
        1.0,
        crossover="none",
        mutation_rate=rate,
        mutation_scale=eta,
        seed=5,
    ).ravel()
    moved = got[got != x0] - x0
    if 0 < x0 < 1:
        assert abs(len(moved) / n - rate) < 4 * np.sqrt(rate / n)

    def cdf(delta):  # inverse of Deb & Agrawal's bounded delta(u)
        u = np.empty_like(delta)
        down = delta < 0
        s = (1 - x0) ** (eta + 1)
        u[down] = ((1 + delta[down]) ** (eta + 1) - s) / (2 - 2 * s) if s < 1 else 0
        s = x0 ** (eta + 1)
        u[~down] = 1 - ((1 - delta[~down]) ** (eta + 1) - s) / (2 - 2 * s) if s < 1 else 1
        return u

    if x0 == 0.3:
        assert ks_distance(moved, cdf) < 1.95 / np.sqrt(len(moved))
    else:  # on a bound half of the draws move inside
        inside = moved[moved != 0]
        assert ((inside > 0) == (x0 == 0)).all()


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_gaussian_spread(rate):
    from math import erf

    n = 200_000
    x = np.zeros((2, n // 2))
    got = variation(
        x,
        np.array([0, 1]),
        -50.0,
        50.0,
        crossover="none",
        mutation="gaussian",
        mutation_rate=rate,
        mutation_scale=0.01,
        seed=5,
    ).ravel()
    moved = got[got != 0]
    assert abs(len(moved) / n - rate) < 4 * np.sqrt(rate / n) + 1e-12
    assert ks_distance(moved, np.vectorize(lambda v: 0.5 + 0.5 * erf(v / np.sqrt(2)))) < (
        1.95 / np.sqrt(len(moved))
    )


@pytest.mark.parametrize("rate", [0.001, 0.05])
def test_flip_count_is_binomial(rate):
    bits = kernel("genetic_bits", levels()[0])
    n, d = 4000, 997
    x = np.zeros((n, d), np.uint8)
    bits.flip(x, d, rate, KEY, 0, 1)
    count = x.sum(axis=1)
    assert abs(count.mean() - d * rate) < 5 * np.sqrt(d * rate / n)
    assert abs(count.var() / (d * rate * (1 - rate)) - 1) < 0.15
    assert np.abs(x.mean(axis=0) - rate).max() < 6 * np.sqrt(rate / n)  # no gene is favoured


# --- refusals


def test_refused_calls_write_nothing():
    parents, low, high = population(4, 6)
    mates = np.arange(4)
    before = parents.copy()
    frozen = parents.copy()
    frozen.flags.writeable = False
    crooked = np.zeros(4 * 6 * 8 + 1, np.uint8)[1:].view(np.float64).reshape(4, 6)
    for error, changes in (
        (ArrayError, {"mates": np.array([0, 1, 2])}),
        (ArrayError, {"mates": np.array([0, 4])}),
        (ArrayError, {"mates": np.array([0, -1])}),
        (ArrayError, {"low": np.zeros(5)}),
        (ArrayError, {"out": parents}),
        (ArrayError, {"out": parents[1:3]}),
        (ArrayError, {"out": frozen}),
        (ArrayError, {"out": crooked}),
        (ArrayError, {"out": np.zeros((4, 5))}),
        (DTypeError, {"out": np.zeros((4, 6), np.float32)}),
        (DTypeError, {"parents": parents.astype(np.int64)}),
        (DTypeError, {"parents": parents.astype(">f8")}),
        (ArrayError, {"parents": parents[0]}),
        (OptionError, {"crossover": "blend"}),
        (OptionError, {"mutation": "cauchy"}),
        (OptionError, {"rate": 1.5}),
        (OptionError, {"mutation_rate": float("nan")}),
        (OptionError, {"eta": -1.0}),
        (OptionError, {"threads": 0}),
    ):
        args = {"parents": parents, "mates": mates, "low": low, "high": high, **changes}
        with pytest.raises(error) as caught:
            variation(
                args.pop("parents"), args.pop("mates"), args.pop("low"), args.pop("high"), **args
            )
        assert isinstance(caught.value, FastoptError)
        assert np.array_equal(parents, before)
    for wrong in ({"fitness": np.empty(0)}, {"k": -1}, {"size": 0}):
        args = {"fitness": np.ones(3), "k": 2, **wrong}
        with pytest.raises(FastoptError):
            tournament(args.pop("fitness"), args.pop("k"), **args)


def test_kernel_doors_refuse():
    genetic = kernel("genetic", levels()[0])
    parents, low, high = population(4, 6)
    mates = np.arange(4)
    tail = (4, 1.0, 0.5, 5.0, 0, 0.0, 1.0, KEY, 0, 1)
    child = np.zeros((4, 6))
    for wrong in (
        (child[:, ::2], parents, mates, low, high),
        (child[:3], parents, mates, low, high),
        (child, parents.astype("f4"), mates, low, high),
        (child, parents, mates.astype("i4"), low, high),
        (child, parents, mates + 1, low, high),
        (child, parents, mates, low[:5], high),
        (child, parents, mates, low, high.astype("f4")),
        (child.astype("i8"), parents, mates, low, high),
    ):
        with pytest.raises(FastoptError):
            genetic.breed(*wrong, *tail)
        assert not child.any()


@pytest.mark.parametrize("rate", [1e-9, 9e-10, 1e-16, 1e-17, 1e-30, 1e-300, 5e-324])
def test_rates_that_vanish_beside_one_change_almost_nothing(rate):
    parents = np.linspace(-1, 1, 120).reshape(20, 6)
    mates = np.arange(20)
    found = variation(parents, mates, -1.0, 1.0, crossover="none", mutation_rate=rate, seed=0)
    np.testing.assert_array_equal(found, parents)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gene_outside_its_bounds_is_seen(level, dtype):
    outside = kernel("genetic", level).outside
    for d in (1, 7, 64, 70):
        x, low, high = population(40, d, dtype)
        x[3, d // 2] = np.nan  # NaN is not outside
        assert not outside(x, low, high, 1)
        for row, column, value in ((0, 0, low[0] - 1), (39, d - 1, np.inf), (17, d // 2, -np.inf)):
            bad = x.copy()
            bad[row, column] = value
            assert all(outside(bad, low, high, threads) for threads in THREADS)
        for rows in range(8):  # several are looked at together, the rest one by one
            for row in range(rows):
                bad = x[:rows].copy()
                assert not outside(bad, low, high, 1)
                bad[row, row % d] = high[row % d] + 1
                assert outside(bad, low, high, 1), (rows, row)


@pytest.mark.parametrize("eta", [0.5, 15.0, 1000.0])
def test_spread_by_squaring_is_the_power(eta):
    """A whole eta + 1 takes another path than one that is not: the children agree."""
    parents, low, high = population(20, 64)
    mates = np.arange(20, dtype=np.intp)
    a = breed(levels()[0], parents, mates, low, high, "sbx", eta=eta)
    b = breed(levels()[0], parents, mates, low, high, "sbx", eta=eta * (1 + 1e-7))
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
