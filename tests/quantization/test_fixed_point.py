"""Fixed point: every rounding and overflow rule against the twin and apytypes."""

from __future__ import annotations

import numpy as np
import pytest

import fastopt
from fastopt.errors import ArrayError, OptionError
from fastopt.quantization import FixedPoint
from fastopt.quantization.codes import ROUNDINGS
from fastopt.quantization.layout import layout_of
from tests import reference
from tests.conftest import SIZES, Guarded, kernel, sample

KEY = 0x1234567890ABCDEF


JOINS = [(0, False), (0, True), (1, True), (2, True)]


def run(level, out, mask, x, scale, zero, lay, rule, key=KEY, streamed=False, threads=1):
    """The kernel's encode, or fake where ``out`` holds floats; the words and codes of the twin."""
    k = kernel("quantize", level)
    low, high, mode, join, times, wrap = rule
    place = (lay.rows, lay.depth, lay.width, lay.group, low, high, mode, join, times)
    if out.dtype.kind == "f":
        return k.fake(out, mask, x, scale, zero, *place, True, key, streamed, threads)
    return k.encode(out, x, scale, zero, *place, wrap, True, key, False, streamed, threads)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("mode", range(5))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_size(level, dtype, mode, wrap):
    for code, low, high in [
        ("int8", -128, 127),
        ("int16", -32768, 32767),
        ("uint16", 0, 4095),
        ("int32", -(2**30), 2**30 - 1),
    ]:
        wide = "float64" if code == "int32" else dtype
        scale = np.asarray(0.25 if code == "int16" else 0.3, wide)
        for n in SIZES if code in ("int8", "int16") else SIZES[::9]:
            with np.errstate(over="ignore"):
                x = sample(n, dtype, special=True) * np.asarray(50, dtype)
            x[1::3] = np.round(x[1::3]) / 8  # ties
            x[np.abs(x) > 2.0**50] = np.inf
            lay = layout_of((n,), None, None)
            for zero in (0, 3):
                zero = np.asarray(zero, wide)
                for streamed in (False, True):
                    rule = (low, high, mode, 0, False, wrap)
                    out = Guarded(np.zeros(n, code))
                    odd = run(level, out.array, None, x, scale, zero, lay, rule, KEY, streamed)
                    words = reference.noise16(KEY, n)
                    _, wanted = reference.encode(x, scale, zero, low, high, *rule[2:], words)
                    np.testing.assert_array_equal(out.array, wanted)
                    assert odd == np.isnan(x).any()
                    out.check()


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fake_and_the_other_orders_of_every_size(level, dtype, join):
    for n in SIZES:
        x = sample(n, dtype, special=True)
        scale, zero = np.asarray(0.013, dtype), np.asarray(5, dtype)
        lay = layout_of((n,), None, None)
        for mode in (0, 2, 4) if join[0] == 0 else (0,):
            rule = (-128, 127, mode, *join, False)
            words = reference.noise16(KEY, n)
            v, codes = reference.encode(x, scale, zero, *rule, words)
            out, mask = Guarded(np.zeros(n, dtype)), Guarded(np.zeros(n, bool))
            whole = Guarded(np.zeros(n, "i1"))
            run(level, out.array, mask.array, x, scale, zero, lay, rule, streamed=n % 2 == 1)
            run(level, whole.array, None, x, scale, zero, lay, rule)
            np.testing.assert_array_equal(whole.array, codes)
            wanted = (codes.astype(dtype) - zero) * scale
            np.testing.assert_array_equal(out.array, wanted)
            np.testing.assert_array_equal(np.signbit(out.array), np.signbit(wanted))
            np.testing.assert_array_equal(mask.array, (v >= -128) & (v <= 127))
            out.check(), mask.check(), whole.check()


@pytest.mark.parametrize("mode", range(5))
@pytest.mark.parametrize(
    ("shape", "axis", "group"),
    [
        ((301, 333), None, None),
        ((301, 333), 0, None),
        ((301, 333), 1, None),
        ((301, 333), 1, 32),
        ((301, 333), 0, 32),
        ((301, 256), 1, 128),
        ((7, 5, 3), 1, None),
        ((3, 5, 130), 2, None),
    ],
)
def test_layouts_and_threads(level, shape, axis, group, mode, rng):
    lay = layout_of(shape, axis, group)
    x = sample(int(np.prod(shape)), "float32").reshape(shape)
    scale = np.asarray(np.exp(rng.standard_normal(lay.scale_shape) - 3).astype("f4"))
    for centred in (False, True):
        zero = np.asarray(rng.integers(-9, 9, lay.scale_shape), "f4") * np.float32(not centred)
        zero = np.asarray(zero)
        s, z = (reference.spread(a, shape, axis, group) for a in (scale, zero))
        words = reference.noise16(KEY, x.size)
        rule = (-128, 127, mode, 0, False, False)
        v, wanted = reference.encode(x, s, z, *rule, words)
        for threads in (1, 2, 3):
            for streamed in (False, True):
                out, y, mask = np.zeros(shape, "i1"), np.zeros(shape, "f4"), np.zeros(shape, bool)
                run(level, out, None, x, scale, zero, lay, rule, KEY, streamed, threads)
                run(level, y, mask, x, scale, zero, lay, rule, KEY, streamed, threads)
                np.testing.assert_array_equal(out, wanted)
                np.testing.assert_array_equal(y, (wanted.astype("f4") - z) * s)
                np.testing.assert_array_equal(mask, (v >= -128) & (v <= 127))


MODES = {
    "nearest": "TIES_EVEN",
    "nearest_away": "TIES_AWAY",
    "floor": "TO_NEG",
    "trunc": "TO_ZERO",
}


@pytest.mark.parametrize("overflow", ["saturate", "wrap"])
@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize(("int_bits", "frac_bits"), [(3, 12), (0, 7), (7, 0), (5, 20)])
def test_apytypes_agrees(int_bits, frac_bits, rounding, overflow, rng):
    apy = pytest.importorskip("apytypes")
    x = rng.standard_normal(2000) * 2.0**int_bits
    x[:200] = (rng.integers(-60, 60, 200) + 0.5) * 2.0**-frac_bits  # ties
    x = np.round(x * 2.0**40) / 2.0**40  # what the source below holds exactly
    made = apy.APyFixedArray.from_float(x, int_bits=20, frac_bits=40).cast(
        int_bits=int_bits + 1,
        frac_bits=frac_bits,
        quantization=getattr(apy.QuantizationMode, MODES[rounding]),
        overflow=apy.OverflowMode.SAT if overflow == "saturate" else apy.OverflowMode.WRAP,
    )
    q = FixedPoint(int_bits, frac_bits).quantize(x, rounding=rounding, overflow=overflow)
    np.testing.assert_array_equal(q.dequantize(), made.to_numpy())


def test_stochastic_is_unbiased_and_reproducible():
    x = np.full(200_000, 0.3 * 2.0**-12, "f4")
    q = FixedPoint(3, 12)
    a = q.quantize(x, rounding="stochastic", seed=1, threads=1)
    b = q.quantize(x, rounding="stochastic", seed=1, threads=2)
    np.testing.assert_array_equal(a.codes, b.codes)
    assert set(np.unique(a.codes)) == {0, 1}
    assert abs(a.codes.mean() - 0.3) < 5 * np.sqrt(0.21 / x.size)
    assert (q.quantize(x, rounding="stochastic", seed=2).codes != a.codes).any()


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_quantize_takes_every_rounding(rounding, rng):
    w = rng.standard_normal((30, 40)).astype("f4")
    for options in ({"axis": 0}, {"group_size": 8}, {"symmetric": False}):
        q = fastopt.quantize(w, "int8", rounding=rounding, seed=3, **options)
        step = reference.spread(q.scale, w.shape, q.axis, q.group_size)
        assert (np.abs(q.dequantize() - w) <= step * 1.51).all()


def test_names_ranges_and_bare_codes():
    q = FixedPoint(4, 4, signed=False)
    assert (q.name, q.low, q.high, q.step) == ("uq4.4", 0.0, 15.9375, 0.0625)
    x = np.array([0.5, 20.0, -1.0], "f4")
    codes = q.quantize(x).codes
    assert codes.tolist() == [8, 255, 0]
    assert q.dequantize(codes).tolist() == [0.5, 15.9375, 0.0]
    np.testing.assert_array_equal(fastopt.quantize(x, "uq4.4").codes, codes)
    assert FixedPoint(3, 12).quantize(np.array([8.0]), overflow="wrap").codes.tolist() == [-32768]


def test_wrong_input_is_refused():
    for call, error, text in [
        (lambda: FixedPoint(-1, 3), OptionError, "int_bits"),
        (lambda: FixedPoint(20, 20), OptionError, "dtype"),
        (lambda: FixedPoint(3, 4).quantize([1.0], rounding="up"), OptionError, "rounding"),
        (lambda: FixedPoint(3, 4).quantize([1.0], overflow="trap"), OptionError, "overflow"),
        (lambda: FixedPoint(3, 4).quantize([np.nan]), ArrayError, "x"),
    ]:
        with pytest.raises(error, match=text):
            call()
