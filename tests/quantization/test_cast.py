"""Casts to narrow floating point: exhaustive against ml_dtypes, NumPy and torch."""

from __future__ import annotations

import numpy as np
import pytest

import fastopt
from fastopt import quantization as Q
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.quantization.formats import FLOAT_SPECS, format_of
from fastopt.quantization.layout import layout_of
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


SCALED = [
    ((5, 333), 0, None),
    ((5, 333), 1, None),
    ((7, 5, 3), 1, None),
    ((70, 4), 0, 32),
    ((9, 100), 1, 32),
    ((40, 64), 1, 16),
    ((1001,), None, None),
    ((3, 70_001), 0, None),
    ((), None, None),
    ((0, 4), 0, None),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shape", "axis", "group"), SCALED)
def test_under_scales(level, shape, axis, group, name, dtype, rng):
    spec, lay = FLOAT_SPECS[name], layout_of(shape, axis, group)
    k, d = kernel("quantize", level), kernel("dequantize", level)
    x = sample(int(np.prod(shape)), dtype, special=True).reshape(shape)
    scale = np.asarray(np.exp(rng.standard_normal(lay.scale_shape)), dtype)
    s = reference.spread(scale, shape, axis, group)
    with np.errstate(all="ignore"):
        wanted = reference.narrow(np.asarray(x / s, dtype), spec)
        values = reference.widen(wanted, spec).astype(dtype) * s
    for threads in THREADS:
        for streamed in (False, True):
            out, back = Guarded(np.zeros(shape, storage(name))), Guarded(np.zeros(shape, dtype))
            rest = (*spec, False, 0, streamed, threads)
            assert not k.narrow(out.array, scale, x, *lay.loops, 0, *rest)
            np.testing.assert_array_equal(out.array, wanted)
            d.widen(back.array, out.array, scale, *lay.loops, *spec, streamed, threads)
            np.testing.assert_array_equal(back.array, values)
            out.check(), back.check()


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize(
    ("shape", "axis", "group"),
    [s for s in SCALED if layout_of(*s).is_chain(int(np.prod(s[0]))) and np.prod(s[0])]
    + [((300_000, 1), None, 1), ((33, 4097), 0, None)],
)
def test_scales_made_in_the_same_pass(level, shape, axis, group, name):
    spec, lay = FLOAT_SPECS[name], layout_of(shape, axis, group)
    k, peak = kernel("quantize", level), format_of(name).peak
    x = sample(int(np.prod(shape)), "f4").reshape(shape)
    x.ravel()[:3] *= np.float32(1e-38)
    low, high = reference.min_max(x, axis, group)
    top = np.maximum(-low, high).reshape(lay.scale_shape).astype("f8") / peak
    step = np.where(top == 0, 1, np.maximum(top, np.finfo("f4").tiny)).astype("f4")
    wanted = reference.narrow(x / reference.spread(step, shape, axis, group), spec)
    for threads in THREADS:
        for streamed in (False, True):
            out, scale = Guarded(np.zeros(shape, "u1")), Guarded(np.zeros(lay.scale_shape, "f4"))
            rest = (*spec, False, 0, streamed, threads)
            assert not k.narrow(out.array, scale.array, x, *lay.loops, peak, *rest)
            np.testing.assert_array_equal(scale.array, step)
            np.testing.assert_array_equal(out.array, wanted)
            out.check(), scale.check()
    for bad in (np.nan, np.inf, -np.inf):
        y = x.copy()
        y.ravel()[-1] = bad
        assert k.narrow(out.array, scale.array, y, *lay.loops, peak, *rest)


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


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"axis": 0}, {"axis": 1}, {"group_size": 20}])
def test_one_pass_gives_the_bits_of_two(options, dtype, name, rng):
    x = rng.standard_normal((30, 70)).astype(dtype)
    q = fastopt.quantize(x, name, **options)
    scale, _ = Q.choose_qparams(x, name, **options)
    np.testing.assert_array_equal(q.scale, scale)
    np.testing.assert_array_equal(q.codes, fastopt.quantize(x, name, scale=scale, **options).codes)
    s = reference.spread(scale, x.shape, q.axis, q.group_size)
    np.testing.assert_array_equal(q.codes, bits(Q.cast(x / s, name)))
    got = q.dequantize()
    np.testing.assert_array_equal(got, Q.cast(q.codes, "float32", source=name).astype(dtype) * s)
    x[3, 5] = np.nan
    with pytest.raises(ArrayError, match="x: holds NaN or infinity"):
        fastopt.quantize(x, name, **options)


def test_out_that_shares_memory_is_refused():
    raw = np.ones(64, "f4")
    q = fastopt.quantize(raw, "float8_e4m3fn", group_size=8)
    rest = (q.zero_point, q.dtype, q.shape, q.axis, q.group_size)
    with pytest.raises(ArrayError, match="out: shares memory with scale"):
        type(q)(q.codes, raw[:8], *rest).dequantize(raw)
    with pytest.raises(ArrayError, match="out: shares memory with codes"):
        type(q)(raw.view("u1")[:64], q.scale, *rest).dequantize(raw)
    with pytest.raises(ArrayError, match="out: shares memory with x"):
        Q.cast(raw.view("u1")[:8], "float32", source="float8_e4m3fn", out=raw[:8])
    with pytest.raises(ArrayError, match="out: shares memory with scale"):
        Q.dequantize_linear(np.ones(64, "i1"), raw, np.zeros(64, "i1"), axis=0, out=raw)
    assert (raw == 1).all()


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
