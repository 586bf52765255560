"""4-bit codes: packing, QuantizedArray of int4 and uint4, ggml's blocks byte for byte."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import fastopt
from fastopt import quantization as Q
from fastopt.errors import ArrayError, DTypeError, OptionError
from tests import reference
from tests.conftest import SIZES, THREADS, Guarded, kernel, sample


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("gguf", [True, False])
def test_every_size(level, gguf, signed, threads, rng):
    k = kernel("pack", level)
    for n in [*SIZES, 32 * 7, 300_000]:
        if gguf and n % 32:
            continue
        low = -8 if signed else 0
        codes = rng.integers(low, low + 16, n).astype("i1" if signed else "u1")
        out = Guarded(np.zeros((n + 1) // 2, "u1"))
        back = Guarded(np.zeros(n, codes.dtype))
        k.pack_nibbles(out.array, codes, gguf, threads)
        np.testing.assert_array_equal(out.array, reference.pack_nibbles(codes, gguf))
        k.unpack_nibbles(back.array, out.array, gguf, threads)
        np.testing.assert_array_equal(back.array, codes)
        out.check(), back.check()


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("code", ["int8", "uint8"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_packed_on_the_way(level, dtype, code, threads, rng):
    """The conversion kernels write and read nibbles themselves."""
    low, high = (-8, 7) if code == "int8" else (0, 15)
    q, d = kernel("quantize", level), kernel("dequantize", level)
    for n in (*SIZES, 200_003):
        x = sample(n, dtype, special=n < 2000)
        scale, zero = np.asarray(0.2, dtype), np.asarray(3, code)
        place = (False, max(n, 1), max(n, 1), 0)
        wanted = reference.encode_affine(x, scale, zero, low, high)
        values = reference.decode_affine(wanted, scale, zero)
        for streamed in (False, True):
            out, back = Guarded(np.full((n + 1) // 2, 7, "u1")), Guarded(np.zeros(n + 1, dtype))
            rest = (low, high, 0, 0, False, False, False, 0, True, streamed, threads)
            q.encode(out.array, x, scale, zero.astype(dtype), *place, *rest)
            np.testing.assert_array_equal(out.array, reference.pack_nibbles(wanted, False))
            made = back.array[n % 2 :][:n]  # on an odd element as well
            d.decode(made, out.array, scale, zero, *place, True, streamed, threads)
            np.testing.assert_array_equal(made, values)
            out.check(), back.check()


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", ["int4", "int8", "int16"])
@pytest.mark.parametrize("width", [1, 2, 16, 32, 64, 128, 256, 1024, 65536])
def test_scales_and_codes_in_one_pass(level, width, name, threads):
    fmt = Q.format_of(name)
    k, reach, tiny = kernel("quantize", level), fmt.symmetric_range, np.finfo("f4").tiny
    for n in (0, width, 5 * width, 3 * max(width, 65536) + width):
        x = sample(n, "f4").reshape(-1, width)
        x[::5] *= np.float32(1e-38)
        x[1::7] = 0
        x[3::9, :1] = np.finfo("f4").max
        cap = np.nextafter(np.float32(float(np.finfo("f4").max) / reach), np.float32(0))
        top = np.abs(x).max(1, initial=0).astype("f8") / reach
        step = np.where(top == 0, 1, np.clip(top, tiny, float(cap))).astype("f4")
        wanted = reference.encode_affine(
            x, step[:, None], np.zeros((len(x), 1), fmt.storage), -reach, reach
        )
        if fmt.packed:
            wanted = reference.pack_nibbles(wanted.ravel(), False)
        for streamed in (False, True):
            out = Guarded(np.zeros(wanted.size, wanted.dtype))
            scale = Guarded(np.zeros(len(x), "f4"))
            lay = (False, max(n, 1), width, 1)
            rest = (*lay, reach, cap, -reach, reach, fmt.packed, streamed, threads)
            assert not k.encode_derived(out.array, scale.array, x, *rest)
            np.testing.assert_array_equal(scale.array, step)
            np.testing.assert_array_equal(out.array, wanted.ravel())
            out.check(), scale.check()
            for bad in (np.nan, np.inf, -np.inf):
                if n:
                    y = x.copy()
                    y[-1, -1] = bad
                    assert k.encode_derived(out.array, scale.array, y, *rest)


@pytest.mark.parametrize("name", ["int4", "int8", "int16"])
@pytest.mark.parametrize(
    "layout", [{}, {"axis": 0}, {"group_size": 32}, {"group_size": 256}, {"axis": 1}]
)
def test_one_pass_gives_the_bits_of_two(layout, name, rng):
    w = rng.standard_normal((64, 256)).astype("f4")
    q = fastopt.quantize(w, name, **layout)
    scale, zero = Q.choose_qparams(w, name, **layout)
    np.testing.assert_array_equal(q.scale, scale)
    np.testing.assert_array_equal(q.zero_point, zero)
    assert (q.scale.dtype, q.zero_point.dtype) == (scale.dtype, zero.dtype)
    given = fastopt.quantize(w, name, scale=scale, **layout)
    np.testing.assert_array_equal(q.codes, given.codes)
    assert q.codes.dtype == given.codes.dtype
    w[3, 5] = np.inf
    with pytest.raises(ArrayError, match="x: holds NaN or infinity"):
        fastopt.quantize(w, name, **layout)


def test_parts_that_do_not_follow_one_another_are_refused(level):
    k, x = kernel("quantize", level), np.zeros(96, "f4")
    out, scale = np.full(96, 7, "i1"), np.zeros(32, "f4")
    spec = Q.formats.FLOAT_SPECS["float8_e4m3fn"]
    for lay in ((True, 3, 32, 3), (False, 48, 16, 0), (False, 96, 0, 1), (False, 90, 3, 1)):
        with pytest.raises(ArrayError):
            k.encode_derived(out, scale, x, *lay, 127, 1, -127, 127, False, False, 1)
        with pytest.raises(ArrayError):
            k.narrow(out.view("u1"), scale, x, *lay, 448, *spec, False, 0, False, 1)
    with pytest.raises(ArrayError, match="scale"):
        k.encode_derived(out, scale, x, False, 96, 32, 1, 127, 1, -127, 127, False, False, 1)
    with pytest.raises(DTypeError, match="out"):
        k.encode_derived(
            np.zeros(96, "i4"), scale, x, False, 96, 3, 1, 127, 1, -127, 127, False, False, 1
        )
    assert (out == 7).all()


@pytest.mark.parametrize("name", ["int4", "uint4"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "layout", [{}, {"axis": 0}, {"axis": 1}, {"group_size": 16}, {"axis": 0, "group_size": 5}]
)
def test_four_bit_arrays(layout, symmetric, name, rng, monkeypatch):
    monkeypatch.setattr("fastopt.quantization.array._BLOCK", 700)  # several blocks
    w = rng.standard_normal((41, 33)).astype("f4")
    q = fastopt.quantize(w, name, symmetric=symmetric, **layout)
    assert q.codes.shape == ((w.size + 1) // 2,)
    codes = q.unpacked()
    s, z = (reference.spread(a, w.shape, q.axis, q.group_size) for a in (q.scale, q.zero_point))
    low, high = Q.format_of(name).qmin, Q.format_of(name).qmax
    if symmetric:
        low += 1
    np.testing.assert_array_equal(codes, reference.encode_affine(w, s, z, low, high))
    np.testing.assert_array_equal(q.dequantize(), reference.decode_affine(codes, s, z))
    np.testing.assert_allclose(q @ w.T, q.dequantize() @ w.T, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(q)).codes, q.codes)
    assert q.nbytes == q.codes.nbytes + q.scale.nbytes + (0 if symmetric else q.zero_point.nbytes)
    np.testing.assert_array_equal(
        fastopt.fake_quantize(w, name, symmetric=symmetric, **layout), q.dequantize()
    )


def test_onnx_reads_our_bytes(rng):
    onnx = pytest.importorskip("onnx")
    codes = rng.integers(-8, 8, (5, 7)).astype("i1")
    tensor = onnx.helper.make_tensor(
        "t", onnx.TensorProto.INT4, codes.shape, Q.pack_int4(codes).tobytes(), raw=True
    )
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype("i1"), codes)


def test_ggml_blocks_byte_for_byte(rng):
    """Q8_0 and Q4_0 made with our functions equal gguf-py's."""
    gguf = pytest.importorskip("gguf")
    w = rng.standard_normal((8, 128)).astype("f4")
    blocks = w.reshape(-1, 32)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    kinds = gguf.GGMLQuantizationType

    def both(scale, codes):
        return np.hstack([scale.astype("f2").view("u1").reshape(len(blocks), 2), codes.view("u1")])

    scale = np.abs(peak) / np.float32(127)
    codes = Q.quantize_linear(blocks, scale, np.zeros(scale.shape, "i1"), block_size=32)
    theirs = gguf.quants.quantize(w, kinds.Q8_0).reshape(len(blocks), -1)
    close = both(scale, codes) == theirs  # ggml multiplies by 1 / scale and rounds ties away
    assert close.mean() > 0.999
    scale = peak / np.float32(-8)
    shifted = np.trunc(blocks * (np.float32(1) / scale) + np.float32(8.5)).clip(0, 15).astype("u1")
    packed = Q.pack_int4(shifted, order="gguf").reshape(len(blocks), 16)
    np.testing.assert_array_equal(
        both(scale, packed), gguf.quants.quantize(w, kinds.Q4_0).reshape(len(blocks), -1)
    )
    values = gguf.quants.dequantize(both(scale, packed).reshape(8, -1), kinds.Q4_0)
    half = scale.astype("f2").astype("f4")
    codes = Q.unpack_int4(packed.ravel(), blocks.shape, signed=False, order="gguf")
    ours = Q.dequantize_linear(codes, half, np.full(half.shape, 8, "u1"), block_size=32)
    np.testing.assert_array_equal(ours.reshape(w.shape), values)


def test_wrong_input_is_refused():
    codes = np.zeros(33, "i1")
    for call, error, text in [
        (lambda: Q.pack_int4(codes, order="gguf"), ArrayError, "codes"),
        (lambda: Q.pack_int4(codes, order="awq"), OptionError, "order"),
        (lambda: Q.pack_int4(codes.astype("i4")), DTypeError, "codes"),
        (lambda: Q.pack_int4(codes, out=np.zeros(16, "u1")), ArrayError, "out"),
        (lambda: Q.unpack_int4(np.zeros(16, "u1"), 33), ArrayError, "packed"),
        (lambda: Q.unpack_int4(np.zeros(17, "u1"), 33, order="gguf"), ArrayError, "packed"),
        (lambda: Q.unpack_int4(np.zeros(17, "i1"), 33), DTypeError, "packed"),
    ]:
        with pytest.raises(error, match=text):
            call()


def test_a_shape_is_made_of_sizes() -> None:
    packed = Q.pack_int4(np.array([1, -1, 7], "i1"))
    assert Q.unpack_int4(packed, np.int64(3)).tolist() == [1, -1, 7]
    for bad, error in ((-3, OptionError), ((-1, -3), OptionError), (3.5, DTypeError)):
        with pytest.raises(error, match=r"^shape: "):
            Q.unpack_int4(packed, bad)
    with pytest.raises(DTypeError, match=r"^shape: "):
        Q.unpack_int4(packed, "three")
