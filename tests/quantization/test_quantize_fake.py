"""fake_quantize in one pass, its straight-through mask, and torch's order of rounding."""

from __future__ import annotations

import numpy as np
import pytest

import fastopt
from fastopt import quantization as Q
from fastopt.errors import ArrayError, DTypeError, OptionError
from tests.conftest import sample

# torch's quantised tensors, the oracle here, say that they will go
pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")

INTEGERS = ("int8", "uint8", "int16", "uint16", "int4", "uint4")
FIXED = ("q3.12", "q0.7", "uq4.4", "uq0.16", "q4.20", "q1.30")
LAYOUTS = [{}, {"axis": 0}, {"axis": 1}, {"group_size": 16}, {"axis": 0, "group_size": 5}]


def ties(scale, n=40_000):
    """Halves of steps and their neighbours, and random numbers."""
    rng = np.random.default_rng(0)
    x = (np.arange(-300, 300) + 0.5).astype("f4") * np.float32(scale)
    x = np.concatenate([x, (rng.standard_normal(n) * 60 * scale).astype("f4")])
    return np.concatenate([x, np.nextafter(x, np.float32(9e9)), np.nextafter(x, np.float32(-9e9))])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rounding", ["nearest", "nearest_away", "floor", "stochastic"])
@pytest.mark.parametrize("name", INTEGERS + FIXED)
def test_equals_two_passes(name, rounding, dtype, rng):
    x = (rng.standard_normal((40, 37)) * 3).astype(dtype)
    for layout in LAYOUTS if name in INTEGERS else [{}]:
        for symmetric in (True, False):
            options = {"rounding": rounding, "symmetric": symmetric, "seed": 5, **layout}
            q = fastopt.quantize(x, name, **options)
            wanted = q.dequantize().astype(dtype)
            got, mask = fastopt.fake_quantize(x, name, return_mask=True, **options)
            assert got.dtype == dtype
            assert got.tobytes() == wanted.tobytes()
            fmt = Q.format_of(name)
            if fmt.kind == "fixed" and rounding == "nearest":
                v = np.rint(x.astype("f8") * 2.0**fmt.frac_bits)
                np.testing.assert_array_equal(mask, (v >= fmt.qmin) & (v <= fmt.qmax))


def test_out_may_be_the_input_and_threads_agree():
    x = sample(300_000, "float32")
    wanted = fastopt.fake_quantize(x, rounding="stochastic", seed=1, threads=1)
    for threads in (1, 2, 3):
        y = x.copy()
        back = fastopt.fake_quantize(y, rounding="stochastic", seed=1, threads=threads, out=y)
        assert back is y
        np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float16", "nf4"])
def test_narrow_formats_go_through_their_codes(name, rng):
    x = rng.standard_normal((8, 64)).astype("f4")
    y, mask = fastopt.fake_quantize(x, name, return_mask=True)
    np.testing.assert_array_equal(y, fastopt.quantize(x, name).dequantize())
    assert mask.all()
    if name == "float8_e4m3fn":
        x[0, :2] = [5000, -5000]
        _, mask = fastopt.fake_quantize(x, name, scale=1.0, return_mask=True)
        np.testing.assert_array_equal(mask, np.abs(x) <= 448)


@pytest.mark.parametrize("zero", [0, 1, 5, -128, 127])
@pytest.mark.parametrize("scale", [0.1, 0.013, 0.25])
def test_torch_per_tensor(scale, zero):
    torch = pytest.importorskip("torch")
    x = ties(scale)
    x[:4] = [np.inf, -np.inf, 1e30, -1e30]
    t = torch.from_numpy(x).requires_grad_()
    step = np.float32(scale)
    for kind, name, shift in [(torch.qint8, "int8", 0), (torch.quint8, "uint8", 128)]:
        wanted = torch.quantize_per_tensor(t.detach(), float(step), zero + shift, kind).int_repr()
        point = np.asarray(zero + shift, name)
        got = Q.quantize_linear(x, step, point, parity="torch")
        np.testing.assert_array_equal(got, wanted.numpy())
        info = np.iinfo(name)
        values = torch.fake_quantize_per_tensor_affine(
            t, float(step), zero + shift, info.min, info.max
        )
        (gradient,) = torch.autograd.grad(values.sum(), t)
        y, mask = fastopt.fake_quantize(
            x, name, scale=step, zero_point=point, parity="torch", return_mask=True
        )
        assert y.tobytes() == values.detach().numpy().tobytes()
        np.testing.assert_array_equal(mask, gradient.numpy() == 1)


@pytest.mark.parametrize("axis", [0, 1])
def test_torch_per_channel(axis, rng):
    torch = pytest.importorskip("torch")
    x = np.stack([ties(0.1), ties(0.013), ties(0.25)])
    x = np.ascontiguousarray(x if axis == 0 else x.T)
    t = torch.from_numpy(x).requires_grad_()
    scale = np.array([0.1, 0.013, 0.25], "f4")
    for _ in range(4):
        zero = rng.integers(-100, 100, 3)
        s, z = torch.from_numpy(scale), torch.from_numpy(zero)
        wanted = torch.quantize_per_channel(t.detach(), s, z, axis, torch.qint8).int_repr()
        got = Q.quantize_linear(x, scale, zero.astype("i1"), axis=axis, parity="torch")
        np.testing.assert_array_equal(got, wanted.numpy())
        values = torch.fake_quantize_per_channel_affine(t, s, z.int(), axis, -128, 127)
        (gradient,) = torch.autograd.grad(values.sum(), t)
        y, mask = fastopt.fake_quantize(
            x, "int8", axis=axis, scale=scale, zero_point=zero, parity="torch", return_mask=True
        )
        assert y.tobytes() == values.detach().numpy().tobytes()
        np.testing.assert_array_equal(mask, gradient.numpy() == 1)


def test_quantize_takes_the_parity(rng):
    torch = pytest.importorskip("torch")
    w = rng.standard_normal((30, 40)).astype("f4")
    q = fastopt.quantize(w, "uint8", symmetric=False, parity="torch")
    wanted = torch.quantize_per_tensor(
        torch.from_numpy(w), float(q.scale), int(q.zero_point), torch.quint8
    )
    np.testing.assert_array_equal(q.codes, wanted.int_repr().numpy())
    x = np.array([0.5, 1.5, 2.5], "f4")
    onnx = Q.quantize_linear(x, 1.0, np.int8(1))
    assert (onnx.tolist(), Q.quantize_linear(x, 1.0, np.int8(1), parity="torch").tolist()) == (
        [1, 3, 3],
        [2, 2, 4],
    )


def test_nan():
    torch = pytest.importorskip("torch")
    x = np.array([np.nan, 1.0], "f4")
    assert Q.quantize_linear(x, 1.0, np.int8(0)).tolist() == [-128, 1]
    assert Q.quantize_linear(x, 1.0, np.int8(0), parity="torch").tolist() == [127, 1]
    y, mask = fastopt.fake_quantize(x, scale=1.0, zero_point=0, parity="torch", return_mask=True)
    wanted = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), 1.0, 0, -128, 127)
    assert y.tolist() == wanted.tolist()
    assert mask.tolist() == [False, True]


def test_wrong_input_is_refused_before_the_first_write():
    x, out = np.array([1.0, np.nan], "f4"), np.full(2, 7, "f4")
    codes = np.full(2, 7, "i2")
    good = np.ones(2, "f4")
    raw = np.zeros(3, "f4")
    for call, error, text in [
        (lambda: fastopt.fake_quantize(x, "q3.12", out=out), ArrayError, "NaN"),
        (lambda: fastopt.fake_quantize(x, scale=1.0, out=out), ArrayError, "NaN"),
        (lambda: fastopt.fake_quantize(x, out=out), ArrayError, "NaN"),
        (lambda: fastopt.fake_quantize(x, "q3.12"), ArrayError, "NaN"),
        (lambda: fastopt.quantize(x, "q3.12"), ArrayError, "NaN"),
        (lambda: fastopt.quantize(x, scale=1.0), ArrayError, "NaN"),
        (lambda: Q.FixedPoint(3, 12).quantize(x), ArrayError, "NaN"),
        (lambda: Q.FixedPoint(3, 12).quantize(x, out=codes), ArrayError, "NaN"),
        (lambda: Q.FixedPoint(3, 12).quantize(good, out=codes[:1]), ArrayError, "out"),
        (lambda: Q.FixedPoint(3, 12).quantize(good, out=out), DTypeError, "out"),
        (lambda: fastopt.fake_quantize(good, scale=0.0, out=out), ArrayError, "scale"),
        (lambda: fastopt.fake_quantize(good, zero_point=1, out=out), OptionError, "zero_point"),
        (lambda: fastopt.fake_quantize(good, scale=1, zero_point=200), ArrayError, "zero_point"),
        (lambda: fastopt.fake_quantize(good, scale=1, zero_point=0.5), DTypeError, "zero_point"),
        (lambda: fastopt.fake_quantize(good, parity="tf"), OptionError, "parity"),
        (lambda: fastopt.fake_quantize(good, "nf4", parity="torch"), OptionError, "parity"),
        (lambda: fastopt.quantize(good, "float16", parity="torch"), OptionError, "parity"),
        (
            lambda: fastopt.quantize(good, parity="torch", rounding="floor"),
            OptionError,
            "parity",
        ),
        (lambda: Q.quantize_linear(good, 1.0, np.int8(0), parity="x"), OptionError, "parity"),
        (lambda: fastopt.fake_quantize(raw[:2], out=raw[1:]), ArrayError, "shares memory"),
    ]:
        with pytest.raises(error, match=text):
            call()
    assert (out == 7).all()
    assert (codes == 7).all()
    assert (raw == 0).all()
    made = Q.FixedPoint(3, 12).quantize(np.array([np.inf, 0.5], "f4"), out=codes)
    assert made.codes is codes
    assert codes.tolist() == [32767, 2048]
