"""Conversion kernels against their twins; quantize, dequantize, QuantizedArray."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt import quantization as Q
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.quantization.layout import layout_of
from tests import reference
from tests.conftest import SIZES, THREADS, Guarded, kernel, sample

CODES = ("int8", "uint8", "int16", "uint16", "int32", "uint32")
LAYOUTS = [
    ((7, 5, 3), None, None),
    ((7, 5, 3), 0, None),
    ((7, 5, 3), 1, None),
    ((7, 5, 3), 2, None),
    ((7, 5, 3), 1, 2),
    ((7, 5, 3), -1, 2),
    ((7, 5, 3), 0, 3),
    ((4, 70), -1, 32),
    ((70, 4), 0, 32),
    ((33, 1), 1, None),
    ((1, 33), 1, None),
    ((33,), 0, None),
    ((33,), None, 7),
    ((2, 3, 1, 1), 1, None),
    ((), None, None),
    ((0, 4), 0, None),
    ((0, 4), 1, None),
    ((4, 0), 1, 2),
    ((1000,), None, None),
    ((129, 257), 1, None),
]


def parameters(shape, axis, group, dtype, code, seed=0):
    """Random scales and zero points in the layout's shape."""
    rng = np.random.default_rng(seed)
    scales = layout_of(shape, axis, group).scale_shape
    scale = np.exp(rng.standard_normal(scales) - 3).astype(dtype)
    span = np.iinfo(code)
    zero = rng.integers(max(span.min, -100), 100, scales).astype(code)
    return np.asarray(scale), np.asarray(zero, code)


def encode(k, out, x, scale, zero, lay, low, high, streamed=False, threads=1):
    wide = "f8" if x.dtype == "f8" or out.dtype.itemsize == 4 else "f4"
    assert not k.encode(
        out,
        x,
        scale.astype(wide),
        zero.astype(wide),
        lay.rows,
        lay.depth,
        lay.width,
        lay.group,
        low,
        high,
        0,
        0,
        False,
        False,
        False,
        0,
        False,
        streamed,
        threads,
    )


def decode(level, out, codes, scale, zero, lay, streamed=False, threads=1):
    kernel("dequantize", level).decode(
        out,
        codes,
        scale,
        zero,
        lay.rows,
        lay.depth,
        lay.width,
        lay.group,
        False,
        streamed,
        threads,
    )


# --- twins


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("code", CODES)
def test_every_size(level, dtype, code):
    k, info = kernel("quantize", level), np.iinfo(code)
    scale, zero = parameters((), None, None, dtype, code)
    for n in SIZES:
        x = sample(n, dtype, special=True)
        lay = layout_of((n,), None, None)
        for streamed in (False, True):
            out, back = Guarded(np.zeros(n, code)), Guarded(np.zeros(n, dtype))
            encode(k, out.array, x, scale, zero, lay, info.min, info.max, streamed)
            wanted = reference.encode_affine(x, scale, zero, info.min, info.max)
            np.testing.assert_array_equal(out.array, wanted)
            decode(level, back.array, out.array, scale, zero, lay, streamed)
            np.testing.assert_array_equal(back.array, reference.decode_affine(wanted, scale, zero))
            out.check(), back.check()


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "axis", "group"), LAYOUTS)
def test_every_layout(level, shape, axis, group, dtype, threads):
    k = kernel("quantize", level)
    n = int(np.prod(shape))
    x = sample(n, dtype, special=True).reshape(shape)
    lay = layout_of(shape, axis, group)
    for code in CODES:
        info = np.iinfo(code)
        scale, zero = parameters(shape, axis, group, dtype, code)
        s, z = (reference.spread(a, shape, axis, group) for a in (scale, zero))
        wanted = reference.encode_affine(x, s, z, info.min, info.max)
        values = reference.decode_affine(wanted, s, z)
        for streamed in (False, True):
            out, back = Guarded(np.zeros(shape, code)), Guarded(np.zeros(shape, dtype))
            encode(k, out.array, x, scale, zero, lay, info.min, info.max, streamed, threads)
            decode(level, back.array, out.array, scale, zero, lay, streamed, threads)
            np.testing.assert_array_equal(out.array, wanted)
            np.testing.assert_array_equal(back.array, values)
            out.check(), back.check()


@pytest.mark.parametrize(
    ("shape", "axis", "group"),
    [
        ((300_001,), None, None),
        ((1001, 301), 0, None),
        ((1001, 301), 1, None),
        ((301, 1001), -1, 64),
        ((1001, 301), 0, 64),
    ],
)
def test_many_chunks_same_bits_on_two_threads(level, shape, axis, group):
    k = kernel("quantize", level)
    x = sample(int(np.prod(shape)), "float32", special=True).reshape(shape)
    scale, zero = parameters(shape, axis, group, "float32", "int8")
    lay = layout_of(shape, axis, group)
    s, z = (reference.spread(a, shape, axis, group) for a in (scale, zero))
    wanted = reference.encode_affine(x, s, z, -128, 127)
    values = reference.decode_affine(wanted, s, z)
    for threads in (1, 2, 3):
        for streamed in (False, True):
            out, back = np.zeros(shape, "int8"), np.zeros(shape, "float32")
            encode(k, out, x, scale, zero, lay, -128, 127, streamed, threads)
            decode(level, back, out, scale, zero, lay, streamed, threads)
            np.testing.assert_array_equal(out, wanted)
            np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "axis", "group"),
    [(s, a, g) for s, a, g in LAYOUTS if np.prod(s)]
    + [
        ((1001, 301), 0, None),
        ((1001, 301), 1, None),
        ((301, 1001), -1, 64),
        ((1001, 301), 0, 64),
        ((3, 101, 301), 1, 64),
        ((5, 7, 301), 1, None),
    ],
)
def test_min_max(level, shape, axis, group, dtype, threads):
    k = kernel("quantize_range", level)
    lay = layout_of(shape, axis, group)
    for special in (False, True):
        x = sample(int(np.prod(shape)), dtype).reshape(shape)
        if special:
            x.ravel()[:: max(1, x.size // 3)] = [np.nan, -np.inf, np.inf, -0.0][
                : len(x.ravel()[:: max(1, x.size // 3)])
            ]
        low, high = (Guarded(np.zeros(lay.scale_shape, dtype)) for _ in range(2))
        k.min_max(low.array, high.array, x, lay.rows, lay.depth, lay.width, lay.group, threads)
        wanted = reference.min_max(x, axis, group)
        for got, want in zip((low, high), wanted, strict=True):
            np.testing.assert_array_equal(got.array.ravel(), want.ravel())
            got.check()


def test_min_max_of_every_size(level):
    k = kernel("quantize_range", level)
    for n in SIZES[1:]:
        for where in (None, 0, n - 1, n // 2):
            x = sample(n, "float32")
            if where is not None:
                x[where] = np.nan
            low, high = np.zeros((), "f4"), np.zeros((), "f4")
            k.min_max(low, high, x, False, n, n, 0, 1)
            np.testing.assert_array_equal(low, x.min())
            np.testing.assert_array_equal(high, x.max())


def test_ties_need_a_true_division(level):
    """Multiplying by the reciprocal gets these near-ties wrong."""
    k = kernel("quantize", level)
    scale = np.asarray(np.float32(0.1))
    ties = (np.arange(-128, 128, dtype=np.float32) + np.float32(0.5)) * scale
    x = np.concatenate([ties, np.nextafter(ties, np.float32(9e9)), np.nextafter(ties, -ties)])
    zero = np.zeros((), "int8")
    out = np.zeros(x.shape, "int8")
    encode(k, out, x, scale, zero, layout_of(x.shape, None, None), -128, 127)
    np.testing.assert_array_equal(out, reference.encode_affine(x, scale, zero, -128, 127))
    with np.errstate(all="ignore"):
        by_reciprocal = np.clip(np.rint(x * (np.float32(1) / scale)), -128, 127)
    assert (by_reciprocal != out).any()


def test_kernel_refuses_what_does_not_fit(level):
    k = kernel("quantize", level)
    x, out = np.zeros(12, "f4"), np.full(12, 7, "i1")
    scale, zero = np.ones(3, "f4"), np.zeros(3, "f4")
    good, rest = (True, 4, 3, 4), (-128, 127, 0, 0, False, False, False, 0, False, False, 1)
    for args, error in [
        ((out[:6], x, scale, zero, *good), ArrayError),
        ((out, x, scale[:2], zero[:2], *good), ArrayError),
        ((out, x, scale, zero[:2], *good), ArrayError),
        ((out, x, scale.astype("f8"), zero, *good), DTypeError),
        ((out, x, scale, zero.astype("i2"), *good), DTypeError),
        ((out.astype("i8"), x, scale, zero, *good), DTypeError),
        ((out.astype("i4"), x, scale, zero, *good), DTypeError),
        ((out, x.astype("f2"), scale, zero, *good), DTypeError),
        ((out, x.astype("f8"), scale, zero, *good), DTypeError),
        ((out, x, scale, zero, True, 5, 3, 5), ArrayError),
        ((out, x, scale, zero, True, 4, 3, 0), ArrayError),
        ((out, x, scale, zero, False, 0, 3, 0), ArrayError),
    ]:
        with pytest.raises(error):
            k.encode(*args, *rest)
    assert (out == 7).all()
    y = np.full(12, 7, "f4")
    more = (*good, -128, 127, 0, 0, False, False, 0, False, 1)
    for args, error in [
        ((y[:6], None, x, scale, zero), ArrayError),
        ((y.astype("f8"), None, x, scale, zero), DTypeError),
        ((y, np.zeros(6, bool), x, scale, zero), ArrayError),
        ((y, np.zeros(12, "i1"), x, scale, zero), DTypeError),
    ]:
        with pytest.raises(error):
            k.fake(*args, *more)
    with pytest.raises(ArrayError):
        kernel("dequantize", level).decode(
            y, out, scale, zero.astype("i1"), True, 5, 3, 5, False, False, 1
        )
    assert (y == 7).all()


# --- quantize and QuantizedArray


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize(
    "layout",
    [{}, {"axis": 0}, {"axis": 1}, {"axis": -1}, {"group_size": 16}, {"axis": 0, "group_size": 5}],
)
def test_round_trip_is_within_half_a_step(layout, name, symmetric, rng):
    w = rng.standard_normal((40, 33)).astype("f4")
    q = fastopt.quantize(w, name, symmetric=symmetric, **layout)
    values = q.dequantize()
    assert (q.dtype, q.shape, values.dtype, q.codes.dtype) == (name, w.shape, "f4", name)
    axis = q.axis
    step = reference.spread(q.scale, w.shape, axis, q.group_size)
    bound = 0.5001 if symmetric else 1.0001  # an affine end may clip half a step more
    assert (np.abs(values - w) <= step * bound + np.abs(w) * 3e-7).all()
    zero = reference.spread(q.zero_point, w.shape, axis, q.group_size)
    np.testing.assert_array_equal(
        values, ((q.codes.astype("f4") - zero.astype("f4")) * step).astype("f4")
    )
    assert q.error(w) < 0.02
    assert q.error(w) == pytest.approx(np.linalg.norm(w - values) / np.linalg.norm(w), rel=1e-6)


def test_symmetric_codes_are_symmetric(rng):
    w = np.concatenate([[-3.0], rng.uniform(-1, 1, 50)]).astype("f4")
    for name, low, high in [("int8", -127, 127), ("uint8", 1, 255)]:
        a, b = fastopt.quantize(w, name), fastopt.quantize(-w, name)
        middle = a.zero_point.astype(int)
        np.testing.assert_array_equal(a.codes.astype(int) - middle, middle - b.codes.astype(int))
        assert a.codes.min() == low
        assert b.codes.max() == high


def test_affine_holds_zero_exactly():
    for data in ([3.0, 5.0], [-5.0, -3.0], [0.0, 0.0], [-1.0, 0.3]):
        q = fastopt.quantize(np.array([*data, 0.0], "f4"), "uint8", symmetric=False)
        assert q.dequantize()[-1] == 0.0


@pytest.mark.parametrize("name", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_extreme_ranges_have_a_usable_scale(name, symmetric):
    info = np.finfo("f4")
    for data in ([0.0], [info.smallest_subnormal], [info.max, info.min], [info.tiny, 0]):
        x = np.array(data, "f4")
        q = fastopt.quantize(x, name, symmetric=symmetric)
        assert np.isfinite(q.scale)
        assert q.scale >= info.tiny
        assert np.isfinite(q.dequantize()).all()


def test_parity_with_the_operator(rng):
    w = rng.standard_normal((20, 30)).astype("f4")
    for axis in (0, 1):
        q = fastopt.quantize(w, "int8", axis=axis)
        np.testing.assert_array_equal(
            q.codes, Q.quantize_linear(w, q.scale, q.zero_point, axis=axis)
        )
        np.testing.assert_array_equal(
            q.dequantize(), Q.dequantize_linear(q.codes, q.scale, q.zero_point, axis=axis)
        )


@pytest.mark.parametrize("name", ["q3.12", "q4.12", "q0.7", "q7.0", "uq4.4", "uq0.16", "q1.30"])
def test_fixed_point_is_exact_on_its_grid_and_saturates(name, rng):
    fmt = Q.format_of(name)
    x = (rng.standard_normal(2000) * 6).astype("f8")
    x[:4] = [np.inf, -np.inf, 1e30, -1e30]
    q = fastopt.quantize(x, name)
    wanted = np.clip(np.rint(x * 2.0**fmt.frac_bits), fmt.qmin, fmt.qmax)
    np.testing.assert_array_equal(q.codes, wanted)
    np.testing.assert_array_equal(q.dequantize(), wanted * 2.0**-fmt.frac_bits)
    again = fastopt.quantize(q.dequantize(), name)
    np.testing.assert_array_equal(again.codes, q.codes)
    assert q.nbytes == q.codes.nbytes


@pytest.mark.parametrize(
    "layout", [{}, {"axis": 0}, {"axis": 1}, {"group_size": 16}, {"axis": 0, "group_size": 16}]
)
def test_matmul_is_the_product_of_the_values(layout, rng, monkeypatch):
    monkeypatch.setattr("fastopt.quantization.array._BLOCK", 700)  # several blocks
    w = rng.standard_normal((50, 33)).astype("f4")
    q = fastopt.quantize(w, "int8", **layout)
    values = q.dequantize()
    for right in (rng.standard_normal(33), rng.standard_normal((33, 4))):
        right = right.astype("f4")
        np.testing.assert_allclose(q @ right, values @ right, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(q.matmul(right), values @ right, rtol=2e-5, atol=2e-5)
    for left in (rng.standard_normal(50), rng.standard_normal((4, 50))):
        left = left.astype("f4")
        np.testing.assert_allclose(left @ q, left @ values, rtol=2e-5, atol=2e-5)
    with pytest.raises(ArrayError, match="x: shape"):
        q @ np.zeros(50, "f4")


def test_out_is_used_or_refused(rng):
    w = rng.standard_normal((5, 6)).astype("f4")
    q = fastopt.quantize(w)
    out = np.zeros((5, 6), "f4")
    assert q.dequantize(out) is out
    np.testing.assert_array_equal(out, q.dequantize())
    assert fastopt.dequantize(q, out=out) is out
    bad = np.full((6, 5), 3, "f4")
    with pytest.raises(ArrayError, match="out"):
        q.dequantize(bad)
    with pytest.raises(DTypeError, match="out"):
        q.dequantize(np.zeros((5, 6), "f8"))
    locked = np.zeros((5, 6), "f4")
    locked.flags.writeable = False
    with pytest.raises(ArrayError, match="read-only"):
        q.dequantize(locked)
    assert (bad == 3).all()
    same = w.copy()
    assert fastopt.fake_quantize(same, out=same) is same
    np.testing.assert_array_equal(same, q.dequantize())


def test_pickle_and_copy_keep_every_bit(rng):
    q = fastopt.quantize(rng.standard_normal((5, 6)).astype("f4"), "uint8", axis=0)
    for other in (pickle.loads(pickle.dumps(q)), copy.deepcopy(q)):
        for name in ("codes", "scale", "zero_point"):
            np.testing.assert_array_equal(getattr(other, name), getattr(q, name))
        assert (other.dtype, other.shape, other.axis) == (q.dtype, q.shape, q.axis)
    np.testing.assert_array_equal(np.asarray(q), q.dequantize())


def test_wrong_input_is_refused():
    x = np.zeros((3, 4), "f4")
    for call, error, text in [
        (lambda: fastopt.quantize(x, "int17"), OptionError, "dtype"),
        (lambda: fastopt.quantize(x, "q20.20"), OptionError, "dtype"),
        (lambda: fastopt.quantize(x, axis=2), OptionError, "axis"),
        (lambda: fastopt.quantize(x, group_size=0), OptionError, "group_size"),
        (lambda: fastopt.quantize(x, method="magic"), OptionError, "method"),
        (lambda: fastopt.quantize(x, rounding="up"), OptionError, "rounding"),
        (lambda: fastopt.quantize(np.array([np.nan], "f4")), ArrayError, "x"),
        (lambda: fastopt.quantize(np.array([np.inf], "f4")), ArrayError, "x"),
        (lambda: fastopt.quantize(np.array([np.nan], "f4"), "q3.12"), ArrayError, "x"),
        (lambda: fastopt.quantize(np.array(["a"])), DTypeError, "x"),
        (lambda: fastopt.quantize(x.astype("c8")), DTypeError, "x"),
        (lambda: fastopt.dequantize(x), DTypeError, "q"),
        (lambda: Q.quantize_linear(x, np.ones(3, "f4")), ArrayError, "scale"),
        (lambda: Q.quantize_linear(x, np.ones((3, 3), "f4")), ArrayError, "scale"),
        (lambda: Q.quantize_linear(x, 1.0, np.zeros(2, "i1")), ArrayError, "zero_point"),
        (lambda: Q.quantize_linear(x, 1.0, 0.5), DTypeError, "zero_point"),
        (lambda: Q.quantize_linear(x, 1.0, output_dtype="int64"), OptionError, "output_dtype"),
        (lambda: Q.dequantize_linear(x, 1.0), DTypeError, "x"),
        (lambda: Q.qparams_from_range(1.0, 0.0), ArrayError, "low"),
        (lambda: Q.qparams_from_range(np.nan, 0.0), ArrayError, "low"),
    ]:
        with pytest.raises(error, match=text):
            call()


def test_overlapping_out_is_refused():
    raw = np.zeros(64, "f4")
    x = raw[:16]
    with pytest.raises(ArrayError, match="shares memory"):
        Q.quantize_linear(x, 1.0, np.int8(0), out=raw.view("i1")[:16])
    assert (raw == 0).all()


def test_inputs_other_than_float32(rng):
    w = rng.standard_normal((6, 5))
    assert fastopt.quantize(w).scale.dtype == np.float64
    np.testing.assert_array_equal(
        fastopt.quantize(w.astype("f2")).codes, fastopt.quantize(w.astype("f2").astype("f4")).codes
    )
    np.testing.assert_array_equal(
        fastopt.quantize(np.asfortranarray(w), axis=0).codes, fastopt.quantize(w, axis=0).codes
    )
    torch = pytest.importorskip("torch")
    codes = Q.quantize_linear(torch.from_numpy(w), 0.1, torch.tensor(3, dtype=torch.int8))
    np.testing.assert_array_equal(codes, Q.quantize_linear(w, 0.1, np.int8(3)))
    np.testing.assert_array_equal(
        Q.dequantize_linear(torch.from_numpy(codes), 0.1, np.int8(3)),
        Q.dequantize_linear(codes, 0.1, np.int8(3)),
    )
    np.testing.assert_array_equal(
        fastopt.quantize(torch.from_numpy(w)).codes, fastopt.quantize(w).codes
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50),
    st.sampled_from(["int8", "uint8", "int16"]),
    st.booleans(),
)
def test_quantising_its_own_values_changes_nothing(values, name, symmetric):
    x = np.array(values, "f4")
    q = fastopt.quantize(x, name, symmetric=symmetric)
    codes = Q.quantize_linear(q.dequantize(), q.scale, q.zero_point)
    np.testing.assert_array_equal(codes, q.codes)
    assert (np.diff(q.codes[np.argsort(x)].astype(int)) >= 0).all()


# --- oracles


@pytest.mark.parametrize("axis", [0, 1])
def test_onnxruntime_gives_the_same_codes(axis, rng):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    w = (rng.standard_normal((60, 50)) * 10).astype("f4")
    w[0, :4] = [np.inf, -np.inf, 1e30, np.nan]
    scale = np.exp(rng.standard_normal(w.shape[axis])).astype("f4")
    zero = rng.integers(-50, 50, w.shape[axis]).astype("i1")
    h = onnx.helper
    graph = h.make_graph(
        [h.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=axis)],
        "g",
        [h.make_tensor_value_info("x", onnx.TensorProto.FLOAT, w.shape)],
        [h.make_tensor_value_info("y", onnx.TensorProto.INT8, w.shape)],
        [onnx.numpy_helper.from_array(scale, "s"), onnx.numpy_helper.from_array(zero, "z")],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    wanted = session.run(None, {"x": w})[0]
    np.testing.assert_array_equal(Q.quantize_linear(w, scale, zero, axis=axis), wanted)


def test_config_is_json_whatever_integers_were_given() -> None:
    q = fastopt.quantize(np.ones((4, 8), "f4"), axis=np.int64(1), group_size=np.int32(2))
    assert json.loads(json.dumps(q.config())) == q.config()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint4"])
def test_an_affine_range_wider_than_the_largest_float(dtype: str) -> None:
    x = np.array([-3e38, 3e38, 1e38], "f4")
    q = fastopt.quantize(x, dtype, symmetric=False)
    assert np.abs(q.dequantize() - x.astype("f8")).max() <= 0.51 * float(q.scale)
