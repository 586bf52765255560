"""Fixed point: every rounding and overflow rule against the twin and apytypes."""

from __future__ import annotations

import numpy as np
import pytest

import fastopt
from fastopt.errors import ArrayError, OptionError
from fastopt.quantization import FixedPoint
from fastopt.quantization.convert import ROUNDINGS
from fastopt.quantization.layout import layout_of
from tests import reference
from tests.conftest import SIZES, Guarded, kernel, sample

KEY = 0x1234567890ABCDEF


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("mode", range(5))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_size(level, dtype, mode, wrap):
    k = kernel("quantize_round", level)
    scale, zero = np.asarray(0.25, dtype), np.zeros((), "i8")
    for code, low, high in [
        ("int8", -128, 127),
        ("uint16", 0, 4095),
        ("int32", -(2**30), 2**30 - 1),
    ]:
        for n in SIZES:
            with np.errstate(over="ignore"):
                x = sample(n, dtype, special=True) * np.asarray(50, dtype)
            x[1::3] = np.round(x[1::3]) / 8  # ties
            x[np.abs(x) > 2.0**50] = np.inf
            out = Guarded(np.zeros(n, code))
            k.encode_rounded(
                out.array,
                x,
                scale,
                zero,
                False,
                max(n, 1),
                max(n, 1),
                0,
                low,
                high,
                mode,
                wrap,
                KEY,
                1,
            )
            words = reference.noise(KEY, n)
            wanted = reference.encode_rounded(x, scale, zero, low, high, mode, wrap, words)
            np.testing.assert_array_equal(out.array, wanted)
            out.check()


@pytest.mark.parametrize("mode", range(5))
@pytest.mark.parametrize(
    ("shape", "axis", "group"),
    [
        ((301, 333), None, None),
        ((301, 333), 0, None),
        ((301, 333), 1, None),
        ((301, 333), 1, 32),
        ((301, 333), 0, 32),
        ((7, 5, 3), 1, None),
    ],
)
def test_layouts_and_threads(level, shape, axis, group, mode, rng):
    k, lay = kernel("quantize_round", level), layout_of(shape, axis, group)
    x = sample(int(np.prod(shape)), "float32").reshape(shape)
    scale = np.exp(rng.standard_normal(lay.scale_shape) - 3).astype("f4")
    scale, zero = np.asarray(scale), np.asarray(rng.integers(-9, 9, lay.scale_shape))
    s, z = (reference.spread(a, shape, axis, group) for a in (scale, zero))
    words = reference.noise(KEY, x.size)
    wanted = reference.encode_rounded(x, s, z, -128, 127, mode, False, words)
    for threads in (1, 2, 3):
        out = np.zeros(shape, "i1")
        k.encode_rounded(
            out,
            x,
            scale,
            zero,
            lay.rows,
            lay.depth,
            lay.width,
            lay.group,
            -128,
            127,
            mode,
            False,
            KEY,
            threads,
        )
        np.testing.assert_array_equal(out, wanted)


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
