"""Casts to narrow floating point: exhaustive against ml_dtypes, NumPy and torch."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt import quantization as Q
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.quantization.formats import FLOAT_SPECS
from tests import reference
from tests.conftest import SIZES, THREADS, Guarded, kernel, sample

NAMES = tuple(FLOAT_SPECS)


def storage(name):
    return "uint16" if FLOAT_SPECS[name].bits > 8 else "uint8"


def real_dtype(name):
    if name == "float16":
        return np.dtype("float16")
    return np.dtype(getattr(pytest.importorskip("ml_dtypes"), name))


def bits(a):
    return np.asarray(a).view(f"uint{8 * np.asarray(a).dtype.itemsize}")


def all_codes(name):
    width = FLOAT_SPECS[name].bits
    return np.arange(1 << width, dtype=f"uint{width}")


# --- twins


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_every_size(level, name, dtype):
    spec, whole = FLOAT_SPECS[name], lambda n: (False, max(n, 1), max(n, 1), 0)
    k, d = kernel("quantize", level), kernel("dequantize", level)
    for n in SIZES:
        x = sample(n, dtype, special=True)
        wanted, one = reference.narrow(x, spec), np.ones((), dtype)
        for streamed in (False, True):
            out, back = Guarded(np.zeros(n, storage(name))), Guarded(np.zeros(n, "f4"))
            k.narrow(out.array, one, x, *whole(n), 0, *spec, False, 0, streamed, 1)
            np.testing.assert_array_equal(out.array, wanted)
            unit = np.ones((), "f4")
            d.widen(back.array, out.array, unit, *whole(n), *spec, streamed, 1)
            np.testing.assert_array_equal(back.array, reference.widen(wanted, spec))
            np.testing.assert_array_equal(np.signbit(back.array), np.signbit(x))
            out.check(), back.check()


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_threads_and_levels_give_the_same_bits(level, name, random):
    spec, n, one = FLOAT_SPECS[name], 200_001, np.ones((), "f4")
    whole = (False, n, n, 0)
    x = sample(n, "float32", special=True)
    wanted = None
    for other in (level, "v2"):
        for threads in (1, 2, 3):
            for streamed in (False, True):
                out = np.zeros(n, storage(name))
                kernel("quantize", other).narrow(
                    out, one, x, *whole, 0, *spec, random, 77, streamed, threads
                )
                wanted = out if wanted is None else wanted
                np.testing.assert_array_equal(out, wanted)
    if random:
        words = reference.noise16(77, n) << 16 | 0x8000
        np.testing.assert_array_equal(wanted, reference.narrow_random(x, words, spec))
    back = [np.zeros(n, "f4") for _ in THREADS]
    for threads, b in zip(THREADS, back, strict=True):
        kernel("dequantize", level).widen(b, wanted, one, *whole, *spec, True, threads)
    np.testing.assert_array_equal(*back)


# --- oracles


@pytest.mark.parametrize("name", NAMES)
def test_every_code_widens_as_its_own_type_says(name):
    codes = all_codes(name)
    wanted = codes.view(real_dtype(name)).astype("f4")
    got = Q.cast(codes, "float32", source=name)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(wanted))


@pytest.mark.parametrize("name", NAMES)
def test_every_code_midpoint_and_neighbour_narrows_to_the_nearest(name):
    real = real_dtype(name)
    with np.errstate(invalid="ignore"):
        values = all_codes(name).view(real).astype("f8")
    values = np.unique(values[np.isfinite(values)])
    middle = ((values[1:] + values[:-1]) / 2).astype("f4")  # exact: one bit more than a code
    x = np.concatenate([values.astype("f4"), middle])
    x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, -np.inf)])
    with np.errstate(all="ignore"):
        wanted = x.astype(real)
    np.testing.assert_array_equal(bits(Q.cast(x, name, saturate=False)), bits(wanted))


@pytest.mark.parametrize("name", NAMES)
def test_random_bit_patterns(name, rng):
    real = real_dtype(name)
    x = rng.integers(0, 2**32, 1_000_000, dtype=np.uint32).view("f4")
    if name == "float16":
        x = x[~np.isnan(x)]  # NumPy keeps a NaN's payload, we keep its sign
    with np.errstate(all="ignore"):
        wanted = bits(x.astype(real))
    np.testing.assert_array_equal(bits(Q.cast(x, name, saturate=False)), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_rounded_once(name, rng):
    x = rng.standard_normal(200_000) * np.exp(rng.uniform(-20, 20, 200_000))
    tie = 1 + 2.0 ** -(FLOAT_SPECS[name].man + 1)
    x[:3] = [tie + 2.0**-40, tie - 2.0**-40, tie]  # float32 would make all three the tie
    got = bits(Q.cast(x, name, saturate=False))
    np.testing.assert_array_equal(got, reference.narrow(x, FLOAT_SPECS[name]))
    if name == "float16":
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(got, bits(x.astype("f2")))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_saturating_matches_torch_where_it_saturates(name, rng):
    torch = pytest.importorskip("torch")
    x = rng.integers(0, 2**32, 300_000, dtype=np.uint32).view("f4")
    x = x[np.isfinite(x)]
    got = Q.cast(x, name).astype("f4")
    peak = float(torch.finfo(getattr(torch, name)).max)
    assert np.abs(got).max() == peak
    inside = np.abs(x) <= peak
    theirs = torch.from_numpy(x).to(getattr(torch, name)).float().numpy()
    np.testing.assert_array_equal(got[inside], theirs[inside])
    np.testing.assert_array_equal(got[~inside], np.sign(x[~inside]) * np.float32(peak))


@pytest.mark.parametrize("name", NAMES)
def test_stochastic_rounding_is_unbiased_and_between_the_neighbours(name):
    pytest.importorskip("ml_dtypes")  # the codes as numbers
    tiny = FLOAT_SPECS[name]
    step = 2.0**-tiny.man
    points = [1 + 0.3 * step, -1 - 0.7 * step, 3 + 0.9 * step]
    if tiny.bias != 127:
        points.append(0.25 * 2.0 ** (1 - tiny.bias - tiny.man))  # below the smallest subnormal
    for seed, value in enumerate(points):
        x = np.full(200_000, value, "f4")
        got = Q.cast(x, name, rounding="stochastic", seed=seed).astype("f8")
        near = np.unique(got)
        assert len(near) == 2
        assert near[0] < np.float32(value) < near[1]
        share = (np.float32(value) - near[0]) / (near[1] - near[0])
        sigma = np.sqrt(share * (1 - share) / x.size)
        assert abs((got == near[1]).mean() - share) < 5 * sigma
    exact = np.array([0.0, -0.0, 1.0, -2.0, np.inf, -np.inf], "f4")
    got = Q.cast(exact, name, rounding="stochastic", saturate=False, seed=1)
    np.testing.assert_array_equal(bits(got), bits(Q.cast(exact, name, saturate=False)))
    assert np.isnan(Q.cast(np.array([np.nan], "f4"), name, rounding="stochastic").astype("f4"))


def test_seed_makes_the_result_and_another_seed_another(rng):
    x = rng.standard_normal(1000).astype("f4")
    a, b, c = (bits(Q.cast(x, "bfloat16", rounding="stochastic", seed=s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


# --- contract


@pytest.mark.parametrize("name", NAMES)
def test_out_takes_the_dtype_or_the_bare_codes(name, rng):
    x = rng.standard_normal((5, 7)).astype("f4")
    wanted = Q.cast(x, name)
    assert wanted.dtype == real_dtype(name)
    bare = np.zeros((5, 7), storage(name))
    assert Q.cast(x, name, out=bare) is bare
    np.testing.assert_array_equal(bare, bits(wanted))
    typed = np.zeros((5, 7), wanted.dtype)
    assert Q.cast(x, name, out=typed) is typed
    np.testing.assert_array_equal(bits(typed), bare)
    for again in (Q.cast(wanted, "float32"), Q.cast(bare, "float32", source=name)):
        np.testing.assert_array_equal(again, wanted.astype("f4"))
    np.testing.assert_array_equal(
        bits(Q.cast(Q.cast(x, "float16"), name)), bits(Q.cast(x.astype("f2").astype("f4"), name))
    )


def test_torch_bfloat16_comes_in():
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    t = torch.linspace(-3, 3, 50).to(torch.bfloat16)
    np.testing.assert_array_equal(Q.cast(t, "float32"), t.float().numpy())


def test_wrong_input_is_refused():
    x = np.ones(4, "f4")
    locked = np.zeros(4, "f2")
    locked.flags.writeable = False
    for call, error, text in [
        (lambda: Q.cast(x, "float7"), OptionError, "dtype"),
        (lambda: Q.cast(x, "float16", rounding="up"), OptionError, "rounding"),
        (lambda: Q.cast(x, "float16", source="int8"), OptionError, "source"),
        (lambda: Q.cast(x, "float32", source="float16"), DTypeError, "x"),
        (lambda: Q.cast(np.ones(4, "i4"), "float16"), DTypeError, "x"),
        (lambda: Q.cast(x, "float16", out=locked), ArrayError, "read-only"),
        (lambda: Q.cast(x, "float16", out=np.zeros(3, "f2")), ArrayError, "out"),
        (lambda: Q.cast(x, "float16", out=np.zeros(4, "f4")), DTypeError, "out"),
        (lambda: Q.cast(x, "float16", out=x.view("f2")[:4]), ArrayError, "shares memory"),
    ]:
        with pytest.raises(error, match=text):
            call()
    assert (x == 1).all()
    assert (locked == 0).all()


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_torch_tensors_of_narrow_floats(name: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    x = torch.tensor([0.5, -3.0, 448.0])
    given = x.to(getattr(torch, name))
    assert np.array_equal(Q.cast(given, "float32"), given.float().numpy())
