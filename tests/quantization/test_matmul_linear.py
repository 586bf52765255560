"""QuantizedLinear: the kernel against its twin, accuracy, bad input, contract."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from fastopt import quantize
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.quantization import QuantizedLinear
from fastopt.quantization.linear import LONGEST, SCHEMES, _kernel_group
from fastopt.quantization.packed_matrix import aligned_bytes
from tests import reference
from tests.conftest import SIZES, THREADS, Guarded, kernel, sample

BITS = list(SCHEMES.values())


def run_kernel(module, x, codes, zb, scale, bias, activation, group, bits, bits_a, threads):
    (m, k), n = x.shape, len(codes)
    panels = Guarded(aligned_bytes(module.packed_size(n, k, group, bits, True)))
    narrow = module.pack(
        panels.array, None, scale, zb, codes, n, k, group, bits, True, threads
    )  # fmt: skip
    back = Guarded(np.zeros((n, k), np.int8))
    module.unpack(back.array, panels.array, n, k, group, bits, True)
    np.testing.assert_array_equal(back.array, codes)
    out = Guarded(np.full((m, n), np.nan, np.float32))
    finite = module.linear(
        out.array, x, panels.array, narrow, bias, activation, m, n, k, group, bits, bits_a, threads
    )
    for guarded in (panels, back, out):
        guarded.check()
    return out.array, finite


def layer_data(rng, n, k, group, bits):
    groups = max(1, -(-k // group)) if group else 1
    low = -(1 << (bits - 1))
    codes = rng.integers(low, -low, (n, k)).astype(np.int8)
    zb = rng.integers(low, -low, (groups, n)).astype(np.int32)
    scale = rng.uniform(1e-3, 1e-2, (groups, n)).astype(np.float32)
    return codes, zb, scale, rng.standard_normal(n).astype(np.float32)


def check(module, m, n, k, group, bits, bits_a, threads, rng, activation=0):
    codes, zb, scale, bias = layer_data(rng, n, k, group, bits)
    x = rng.standard_normal((m, k)).astype(np.float32)
    got, finite = run_kernel(
        module, x, codes, zb, scale, bias, activation, group, bits, bits_a, threads
    )
    assert finite
    want = reference.linear(x, codes, zb, scale, bias, activation, group or max(1, k), bits_a)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("bits", "bits_a"), BITS)
def test_kernel_sizes(level, bits, bits_a, threads, rng):
    module = kernel("matmul", level)
    for size in SIZES:
        check(module, 3, 5, size, 0 if size < 200 else 256, bits, bits_a, threads, rng)
        check(module, 2, 4, size, 8, bits, bits_a, threads, rng)
    for size in SIZES[::7]:
        check(module, size, 5, 20, 8, bits, bits_a, threads, rng)
        check(module, 3, size, 20, 16, bits, bits_a, threads, rng)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("bits", "bits_a"), BITS)
@pytest.mark.parametrize("group", [32, 248])
def test_kernel_many_blocks(level, group, bits, bits_a, threads, rng):
    """Groups that end inside and outside slices of k, several panels of rows and columns."""
    check(kernel("matmul", level), 29, 101, 1301, group, bits, bits_a, threads, rng, 1)


@pytest.mark.parametrize("activation", [0, 1, 2])
def test_kernel_activations(level, activation, rng):
    module = kernel("matmul", level)
    check(module, 9, 75, 64, 0, 8, 8, 1, rng, activation)
    codes, zb, scale, bias = layer_data(rng, 70, 8, 0, 8)
    scale[:], bias = 0.5, np.linspace(-9, 9, 70, dtype=np.float32)
    x = np.zeros((1, 8), np.float32)
    got, _ = run_kernel(module, x, codes, zb, scale, bias, activation, 0, 8, 8, 1)
    np.testing.assert_array_equal(
        got[0], [bias, np.maximum(bias, 0), reference.gelu(bias)][activation]
    )


@pytest.mark.parametrize("bits_a", [7, 8, 16])
def test_kernel_rows_of_special_values(level, bits_a, rng):
    """Denormal, huge, constant and zero rows get a usable scale; NaN and infinity are refused."""
    module = kernel("matmul", level)
    codes, zb, scale, bias = layer_data(rng, 20, 40, 0, 8)
    zb[:] = 0
    x = np.zeros((9, 40), np.float32)
    top = np.finfo(np.float32).max
    x[1], x[2], x[3, 5], x[4, ::2] = 3.0, -3.0, np.finfo(np.float32).smallest_subnormal, -0.0
    x[5, 0], x[5, 1], x[6, 3] = top, -top, -top
    x[7] = sample(40, "float32") * 1e-38
    x[8] = sample(40, "float32") * 1e30
    scale *= 1e-9
    got, finite = run_kernel(module, x, codes, zb, scale, bias, 0, 0, 8, bits_a, 1)
    assert finite
    want = reference.linear(x, codes, zb, scale, bias, 0, 40, bits_a)
    np.testing.assert_array_equal(got, want)
    for bad in (np.nan, np.inf, -np.inf):
        for place in (0, 17, 39):
            x[:] = 1.0
            x[6, place] = bad
            got, finite = run_kernel(module, x, codes, zb, scale, bias, 0, 0, 8, bits_a, 1)
            assert not finite
            assert np.isnan(got).all()  # as it was before the call


@pytest.mark.parametrize(("bits", "bits_a"), BITS)
def test_kernel_extremes_do_not_overflow(level, bits, bits_a, rng):
    """The longest group that the layer uses, every code at the far end."""
    module = kernel("matmul", level)
    k = min(LONGEST[bits, bits_a], 40_000)
    low = -(1 << (bits - 1))
    codes = np.full((3, k), -low - 1, np.int8)
    codes[1] = low
    zb = np.array([[low, -low - 1, 0]], np.int32)
    x = np.ones((2, k), np.float32)
    x[1] = -1.0
    scale, bias = np.full((1, 3), 1e-3, np.float32), np.zeros(3, np.float32)
    got, _ = run_kernel(module, x, codes, zb, scale, bias, 0, 0, bits, bits_a, 1)
    np.testing.assert_array_equal(got, reference.linear(x, codes, zb, scale, bias, 0, k, bits_a))
    assert got[0, 0] > 0 > got[0, 1]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("group_size", [None, 32, 72, 1000])
@pytest.mark.parametrize("symmetric", [False, True])
def test_layer_is_its_dequantised_weight(scheme, group_size, symmetric, rng):
    w = rng.standard_normal((50, 700)).astype(np.float32)
    x, bias = rng.standard_normal((2, 3, 700)).astype(np.float32), rng.standard_normal(50)
    layer = QuantizedLinear(w, bias, scheme=scheme, group_size=group_size, symmetric=symmetric)
    used = layer.dequantize()
    bits, bits_a = SCHEMES[scheme]
    step = np.abs(w).max() / (127 if bits == 8 else 7)
    assert np.abs(used - w).max() <= step * 0.51
    if symmetric:
        assert not layer.zero_point.any()
    want = x.astype(np.float64) @ used.T.astype(np.float64) + bias
    relative = np.linalg.norm(layer(x) - want) / np.linalg.norm(want - bias)
    assert relative < {7: 0.02, 8: 0.01, 16: 5e-5}[bits_a]
    assert layer(x).shape == (2, 3, 50)
    np.testing.assert_array_equal(layer(x[1, 2]), layer(x)[1, 2])
    out = np.empty((2, 3, 50), np.float32)
    assert layer(x, out) is out
    np.testing.assert_array_equal(out, layer(x, threads=2))


def test_many_rows_are_as_one_by_one(rng):
    """Real weights by the instruction that saturates, what it would lose apart, and widened."""
    w, bias = rng.standard_normal((70, 801)).astype(np.float32), rng.standard_normal(70)
    x = rng.standard_normal((77, 801)).astype(np.float32)
    layer = QuantizedLinear(w, bias, activation="relu")
    np.testing.assert_array_equal(layer(x), [layer(row) for row in x])
    np.testing.assert_array_equal(layer(x), layer(x, threads=3))


def test_activations_match_torch(rng):
    torch = pytest.importorskip("torch")
    w = rng.standard_normal((40, 64)).astype(np.float32)
    x = rng.standard_normal((30, 64)).astype(np.float32)
    y = torch.from_numpy(QuantizedLinear(w)(x))
    for name, function in (("relu", torch.relu), ("gelu", torch.nn.functional.gelu)):
        got = QuantizedLinear(w, activation=name)(x)
        np.testing.assert_allclose(got, function(y).numpy(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_quantised_weight_is_taken_as_it_is(dtype, rng):
    w = rng.standard_normal((20, 64)).astype(np.float32)
    x = rng.standard_normal((5, 64)).astype(np.float32)
    for options in ({}, {"axis": 0}, {"axis": 1, "group_size": 16}):
        for symmetric in (True, False):
            q = quantize(w, dtype, symmetric=symmetric, **options)
            layer = QuantizedLinear(q, scheme="w8a16")
            np.testing.assert_allclose(layer.dequantize(), q.dequantize(), rtol=1e-6, atol=1e-7)
            want = x @ q.dequantize().T
            np.testing.assert_allclose(layer(x), want, atol=3e-3)
    with pytest.raises(ArrayError, match="w:"):
        QuantizedLinear(quantize(w, dtype, axis=1))
    with pytest.raises(DTypeError, match="w:"):
        QuantizedLinear(quantize(w, dtype, axis=0), scheme="w4a8")
    with pytest.raises(OptionError, match="group_size:"):
        QuantizedLinear(quantize(w, dtype, axis=1, group_size=16), group_size=32)


def test_long_k_is_cut(rng):
    """More terms than int32 holds: cut into groups that share a scale."""
    k = LONGEST[8, 8] + 1000
    w = np.ones((2, k), np.float32)
    w[1] = -1.0
    layer = QuantizedLinear(w)
    np.testing.assert_allclose(
        layer(np.full((1, k), 2.0, np.float32)), [[2 * k, -2 * k]], rtol=1e-5
    )
    for bits, bits_a in BITS:
        for size in (0, 8, 64, 536, 40_000, 80_000 - 8):
            group = _kernel_group(80_000, size, LONGEST[bits, bits_a])
            assert group == 0 or (group % 8 == 0 and group <= LONGEST[bits, bits_a])
            assert not size or size % group == 0


def test_refusals(rng):
    w = rng.standard_normal((6, 16)).astype(np.float32)
    for options, error, match in [
        ({"scheme": "w2a8"}, OptionError, "scheme:"),
        ({"group_size": 12}, OptionError, "group_size:"),
        ({"group_size": 4}, OptionError, "group_size:"),
        ({"activation": "tanh"}, OptionError, "activation:"),
        ({"bias": np.zeros(5, np.float32)}, ArrayError, "bias:"),
        ({"bias": np.full(6, np.nan, np.float32)}, ArrayError, "bias:"),
    ]:
        with pytest.raises(error, match=match):
            QuantizedLinear(w, **options)
    with pytest.raises(ArrayError, match="NaN"):
        QuantizedLinear(np.full((2, 8), np.inf, np.float32))
    with pytest.raises(ArrayError, match="w:"):
        QuantizedLinear(w[0])
    layer = QuantizedLinear(w)
    x = rng.standard_normal((4, 16)).astype(np.float32)
    out = np.full((4, 6), 7.0, np.float32)
    bad = x.copy()
    bad[3, 15] = np.nan
    raw = np.zeros(64 + 24, np.float32)
    read_only = out.copy()
    read_only.flags.writeable = False
    for args, error, match in [
        ((x[:, :15], out), ArrayError, "x:"),
        ((np.float32(1), out), ArrayError, "x:"),
        ((bad, out), ArrayError, "x:"),
        ((x.astype(complex), out), DTypeError, "x:"),
        ((x, out.astype(np.float64)), DTypeError, "out:"),
        ((x, out[:3]), ArrayError, "out:"),
        ((x, read_only), ArrayError, "out:"),
        ((raw[:64].reshape(4, 16), raw[60:84].reshape(4, 6)), ArrayError, "shares memory"),
    ]:
        with pytest.raises(error, match=match):
            layer(*args)
    assert (out == 7.0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pickle_and_copy(scheme, rng):
    w = rng.standard_normal((21, 40)).astype(np.float32)
    x = rng.standard_normal((5, 40)).astype(np.float32)
    layer = QuantizedLinear(w, np.ones(21), scheme=scheme, group_size=16, activation="gelu")
    state = pickle.dumps(layer)
    w[:] = 0
    for twin in (pickle.loads(state), copy.deepcopy(layer)):
        assert repr(twin) == repr(layer)
        assert twin.nbytes == layer.nbytes
        np.testing.assert_array_equal(twin.codes, layer.codes)
        np.testing.assert_array_equal(twin(x), layer(x))


def test_empty_and_single():
    layer = QuantizedLinear(np.full((1, 1), 2.0, np.float32))
    np.testing.assert_allclose(
        layer(np.array([[3.0], [-3.0]], np.float32)), [[6.0], [-6.0]], rtol=1e-6
    )
    assert layer(np.empty((0, 1), np.float32)).shape == (0, 1)
    np.testing.assert_array_equal(layer(np.zeros(1, np.float32)), [0.0])


def test_a_layer_without_outputs_and_a_weight_that_is_not_finite() -> None:
    layer = QuantizedLinear(np.zeros((0, 4), "f4"))
    assert layer(np.ones((2, 4), "f4")).shape == (2, 0)
    for bad in (np.nan, np.inf):
        with pytest.raises(ArrayError, match=r"^w: "):
            QuantizedLinear(np.full((2, 4), bad, "f4"))


def test_weights_without_inputs_and_scales_beyond_float32():
    for size in (None, 8):
        w = quantize(
            np.zeros((4, 0), "f4"), "int8", axis=0 if size is None else 1, group_size=size
        )
        assert (
            QuantizedLinear(w, np.arange(4.0))(np.zeros((2, 0), "f4")).tolist()
            == [[0, 1, 2, 3]] * 2
        )
    with pytest.raises(ArrayError, match="w"):
        QuantizedLinear(quantize(np.full((4, 3), 1e100), "int8", axis=0))
