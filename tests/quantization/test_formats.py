"""NF4, MXFP4, narrow floats under scales, 3 bits: kernels, functions, oracles."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import fastopt
from fastopt import quantization as Q
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.quantization.codebooks import CODEBOOKS
from fastopt.quantization.formats import FORMATS
from fastopt.quantization.layout import layout_of
from tests import reference
from tests.conftest import SIZES, THREADS, Guarded, kernel, sample

BOOKS = tuple(CODEBOOKS)
NARROW = ("nf4", "mxfp4", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
WAYS = ({}, {"axis": 0}, {"axis": 1}, {"group_size": 7}, {"group_size": 4, "axis": 0})


def packed(codes):
    even = np.append(codes.ravel(), np.zeros(codes.size % 2, np.uint8))
    return even[::2] | even[1::2] << 4


def encoded(k, x, name, scale, way, *, derive=False, threads=1):
    """Codes and scales of a kernel, with guards on both."""
    book, layout = CODEBOOKS[name], layout_of(x.shape, *way)
    out = Guarded(np.full((x.size + 1) // 2, 0x5A, np.uint8))
    steps = Guarded(scale)
    finite = k.encode(
        out.array, steps.array, x, *book[:3], layout.rows, layout.depth, layout.width,
        layout.group, derive, book.power, book.unit, threads,
    )  # fmt: skip
    out.check(), steps.check()
    return out.array, steps.array, finite


def decoded(k, codes, name, scale, shape, way, *, streamed=False, threads=1):
    book, layout = CODEBOOKS[name], layout_of(shape, *way)
    out = Guarded(np.zeros(shape, np.float32))
    k.decode(
        out.array, codes, scale, *book[:3], layout.rows, layout.depth, layout.width,
        layout.group, streamed, threads,
    )  # fmt: skip
    out.check()
    return out.array


# --- twins


@pytest.mark.parametrize("name", BOOKS)
def test_every_size(level, name):
    k, book = kernel("codebook", level), CODEBOOKS[name]
    for n in SIZES:
        x, scale = sample(n, "float32", special=True), np.array(0.75, np.float32)
        wanted = reference.codebook_encode(x, scale, book.bound, book.sign)
        got, _, _ = encoded(k, x, name, scale, (None, None))
        np.testing.assert_array_equal(got, packed(wanted))
        for streamed in (False, True):
            back = decoded(k, got, name, scale, x.shape, (None, None), streamed=streamed)
            np.testing.assert_array_equal(back, book.value[wanted] * scale)
            np.testing.assert_array_equal(np.signbit(back), np.signbit(book.value[wanted]))


@pytest.mark.parametrize("name", BOOKS)
@pytest.mark.parametrize("group", [1, 2, 3, 16, 31, 32, 33, 64, 100])
def test_scales_derived_in_the_same_pass(level, name, group):
    k, book = kernel("codebook", level), CODEBOOKS[name]
    x = sample(13 * 3 * group, "float32").reshape(13, -1)
    x[4] = 0
    x[5] *= np.float32(1e-42)
    x[6] *= np.float32(1e37)
    rows = x.reshape(-1, group)
    scale = reference.codebook_scale(rows, np.float32(book.unit), book.power)
    wanted = reference.codebook_encode(rows, scale[:, None], book.bound, book.sign)
    for threads in THREADS:
        empty = np.zeros((13, 3), np.float32)
        got, steps, finite = encoded(k, x, name, empty, (1, group), derive=True, threads=threads)
        assert finite
        np.testing.assert_array_equal(steps.ravel(), scale)
        np.testing.assert_array_equal(got, packed(wanted))
        back = decoded(k, got, name, steps, x.shape, (1, group), threads=threads)
        np.testing.assert_array_equal(
            back.reshape(rows.shape), book.value[wanted] * scale[:, None]
        )


@pytest.mark.parametrize("name", BOOKS)
@pytest.mark.parametrize(
    ("shape", "axis", "group"),
    [
        ((5, 7, 9), 0, None),
        ((5, 7, 9), 1, None),
        ((5, 7, 9), 2, None),
        ((70, 33), 0, 8),
        ((6, 50), 1, 8),
        ((3, 5, 40), 1, 2),
        ((1, 65), 0, None),
        ((65, 1), 0, 3),
        ((2, 0), 1, None),
    ],
)
def test_every_layout(level, name, shape, axis, group, rng):
    k, book = kernel("codebook", level), CODEBOOKS[name]
    x = sample(int(np.prod(shape)), "float32").reshape(shape)
    scale = rng.uniform(0.5, 2, layout_of(shape, axis, group).scale_shape).astype("f4")
    wide = reference.spread(scale, shape, axis, group)
    wanted = reference.codebook_encode(x, wide, book.bound, book.sign)
    for threads in THREADS:
        got, _, _ = encoded(k, x, name, scale, (axis, group), threads=threads)
        np.testing.assert_array_equal(got, packed(wanted))
        for streamed in (False, True):
            back = decoded(
                k, got, name, scale, shape, (axis, group), streamed=streamed, threads=threads
            )
            np.testing.assert_array_equal(back, book.value[wanted] * wide)


@pytest.mark.parametrize("name", BOOKS)
@pytest.mark.parametrize("group", [None, 63, 64])
def test_threads_and_offsets_give_the_same_bits(level, name, group, rng):
    k, n = kernel("codebook", level), 63 * 64 * 50
    raw = np.empty(n + 16, np.float32)
    x = rng.standard_normal(n).astype("f4").reshape(1, n)
    scale = np.ones(layout_of(x.shape, 1, group).scale_shape if group else (), np.float32)
    way, derive = (1 if group else None, group), group is not None
    first, steps, _ = encoded(k, x, name, scale, way, derive=derive)
    again, steps2, _ = encoded(k, x, name, scale, way, derive=derive, threads=2)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(steps, steps2)
    wanted = decoded(k, first, name, steps, x.shape, way)
    book, layout = CODEBOOKS[name], layout_of(x.shape, *way)
    for offset in range(16):  # the streamed stores begin anywhere in a cache line
        out = raw[offset : offset + n]
        for threads in THREADS:
            out[:] = 0
            k.decode(
                out, first, steps, *book[:3], layout.rows, layout.depth, layout.width,
                layout.group, True, threads,
            )  # fmt: skip
            np.testing.assert_array_equal(out, wanted[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_seen_wherever_it_is(level, bad):
    k = kernel("codebook", level)
    for n in (1, 15, 16, 17, 64, 100):
        for at in {0, n // 2, n - 1}:
            x = np.ones((1, n), np.float32)
            x[0, at] = bad
            assert not encoded(k, x, "nf4", np.zeros((1, 1), "f4"), (1, n), derive=True)[2]


def test_the_door_refuses_what_does_not_fit(level):
    k, book = kernel("codebook", level), CODEBOOKS["nf4"]
    x, out, one = np.zeros((4, 8), "f4"), np.zeros(16, np.uint8), np.ones((), "f4")
    tail = (False, 32, 32, 0)
    with pytest.raises(ArrayError, match="out"):
        k.encode(out[:-1], one, x, *book[:3], *tail, False, False, 1.0, 1)
    with pytest.raises(DTypeError, match="x"):
        k.encode(out, one, x.astype("f8"), *book[:3], *tail, False, False, 1.0, 1)
    with pytest.raises(ArrayError, match="bound"):
        k.encode(out, one, x, book.bound[:3], book.value, False, *tail, False, False, 1.0, 1)
    with pytest.raises(ArrayError, match="layout"):  # scales by column: no runs
        k.encode(out, np.ones(8, "f4"), x, *book[:3], True, 4, 8, 4, True, False, 1.0, 1)
    with pytest.raises(ArrayError, match="codes"):
        k.decode(x, out[1:], one, *book[:3], *tail, False, 1)
    with pytest.raises(ArrayError, match="scale"):
        k.decode(x, out, np.ones(3, "f4"), *book[:3], *tail, False, 1)
    assert not x.any()
    assert not out.any()


# --- functions


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NARROW)
def test_methods_of_the_array_agree(name, dtype, rng):
    x = rng.standard_normal((9, 26)).astype(dtype)
    right, left = rng.standard_normal((26, 3)), rng.standard_normal((4, 9))
    for way in WAYS:
        q = fastopt.quantize(x, name, **way)
        y = q.dequantize()
        assert q.error(x) < 0.25
        assert y.dtype == q.scale.dtype == ("float32" if name in BOOKS else dtype)
        np.testing.assert_array_equal(fastopt.fake_quantize(x, name, **way), y)
        np.testing.assert_array_equal(np.asarray(q), y)
        np.testing.assert_allclose(q @ right.astype(y.dtype), y @ right, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(left.astype(y.dtype) @ q, left @ y, rtol=1e-5, atol=1e-5)
        assert q.unpacked().shape == x.shape
        twin = pickle.loads(pickle.dumps(copy.deepcopy(q)))
        np.testing.assert_array_equal(twin.dequantize(), y)
        out = np.empty_like(y)
        assert q.dequantize(out) is out
        np.testing.assert_array_equal(out, y)


@pytest.mark.parametrize("name", [*FORMATS, "q3.12"])
def test_empty_and_single(name):
    for x in (np.zeros((0, 5), "f4"), np.float32(0.75), np.zeros(3), np.ones((2, 3, 4), "f4")):
        q = fastopt.quantize(x, name)
        assert q.dequantize().shape == np.shape(x)
        np.testing.assert_allclose(q.dequantize(), x, rtol=0.07)


def test_scale_maps_the_largest_to_the_formats_peak(rng):
    x = rng.standard_normal((6, 40)).astype("f4")
    for name, peak in (("float8_e4m3fn", 448), ("float8_e5m2", 57344)):
        q = fastopt.quantize(x, name, axis=0)
        np.testing.assert_array_equal(q.scale, np.abs(x).max(1) / np.float32(peak))
        again = Q.cast(x / q.scale[:, None], "float32")
        codes = np.empty(x.shape, np.uint8)
        Q.cast(again, name, out=codes)
        np.testing.assert_array_equal(q.codes, codes)
        np.testing.assert_array_equal(np.abs(q.dequantize()).max(1), q.scale * np.float32(peak))


def test_sixteen_bits_keep_scale_one_and_specials():
    x = np.array([[1.5, np.inf, -np.inf, np.nan, 1e9, -0.0]], "f4")
    for name in ("float16", "bfloat16"):
        q = fastopt.quantize(x, name, axis=0)
        assert q.scale.shape == ()
        assert q.scale == 1
        assert q.nbytes == 2 * x.size + 4
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(
            fastopt.quantize(x, "float16").codes.view("f2"), x.astype("f2")
        )
    scaled = fastopt.quantize(x[:, :1], "float16", axis=0, scale=[0.5])
    assert scaled.codes.view("f2")[0, 0] == 3
    assert scaled.dequantize()[0, 0] == 1.5


def test_saturate_is_a_choice_for_float8():
    x = np.array([1e9, -1e9, 1.0], "f4")
    assert fastopt.quantize(x, "float8_e5m2", scale=1.0).dequantize().tolist() == [
        57344,
        -57344,
        1,
    ]
    loose = fastopt.quantize(x, "float8_e5m2", scale=1.0, saturate=False).dequantize()
    assert loose.tolist() == [np.inf, -np.inf, 1]


def test_a_given_scale():
    x = np.array([[1.0, 2.0], [3.0, 4.0]], "f4")
    q = fastopt.quantize(x, "int8", axis=0, scale=np.array([0.5, 2.0]))
    assert q.codes.tolist() == [[2, 4], [2, 2]]
    assert q.zero_point.tolist() == [0, 0]
    assert fastopt.quantize(x, "uint8", scale=0.5).codes.tolist() == [[130, 132], [134, 136]]
    assert fastopt.quantize(x, "mxfp4", axis=1, scale=[1.0, 2.0]).dequantize().tolist() == [
        [1.0, 2.0],
        [3.0, 4.0],
    ]
    for options, error, words in (
        ({"scale": [1.0]}, ArrayError, "scale"),
        ({"scale": -1.0}, ArrayError, "positive"),
        ({"scale": np.inf}, ArrayError, "finite"),
        ({"scale": 1e-60}, ArrayError, "positive"),
        ({"scale": 1.0, "symmetric": False}, OptionError, "zero point"),
        ({"scale": 0.75, "dtype": "mxfp4"}, ArrayError, "powers of two"),
    ):
        with pytest.raises(error, match=words):
            fastopt.quantize(x, **options)
    for name in ("int8", "nf4", "q3.12"):
        with pytest.raises(ArrayError, match="NaN"):
            fastopt.quantize(np.array([np.nan, 1], "f4"), name, scale=1.0)


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "uint16", "int4", "uint4", "int3"])
@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_every_method_from_the_top(name, method, rng):
    x = rng.standard_normal((4, 5000)).astype("f4")
    x[:, 0] = 30
    for symmetric in (True, False):
        q = fastopt.quantize(x, name, axis=0, method=method, symmetric=symmetric, percentile=99)
        scale, zero = Q.choose_qparams(
            x, name, axis=0, method=method, symmetric=symmetric, percentile=99
        )
        np.testing.assert_array_equal(q.scale, scale)
        np.testing.assert_array_equal(q.zero_point, zero)
        if method == "percentile":
            assert np.abs(q.dequantize()).max() < 4


def test_mse_weighs_by_a_gram(rng):
    x = rng.standard_normal((8, 64)).astype("f4")
    gram = np.diag(np.where(np.arange(64) < 8, 1e4, 1e-4))
    for name in ("int4", "nf4", "float8_e4m3fn"):
        plain = fastopt.quantize(x, name, axis=0, method="mse")
        heavy = fastopt.quantize(x, name, axis=0, method="mse", gram=gram)
        assert Q.output_error(x, heavy, gram) < Q.output_error(x, plain, gram)
    with pytest.raises(OptionError, match="gram"):
        fastopt.quantize(x, "int4", gram=gram)


@pytest.mark.parametrize("name", ["nf4", "mxfp4", "float8_e4m3fn", "float8_e5m2"])
def test_mse_is_never_worse(name, rng):
    x = rng.standard_t(3, (16, 96)).astype("f4")
    for way in WAYS:
        plain, best = (fastopt.quantize(x, name, method=m, **way) for m in ("minmax", "mse"))
        assert best.error(x) <= plain.error(x) * (1 + 1e-6)


def test_what_is_refused():
    x = np.ones((2, 64), "f4")
    for name in ("nf4", "mxfp4", "float8_e5m2"):
        with pytest.raises(OptionError, match="entropy"):
            fastopt.quantize(x, name, method="entropy")
        with pytest.raises(OptionError, match="rounding"):
            fastopt.quantize(x, name, rounding="floor")
        for bad in (np.nan, np.inf):
            for way in WAYS:
                with pytest.raises(ArrayError, match="NaN or infinity"):
                    fastopt.quantize(np.full((4, 64), bad, "f4"), name, **way)
    with pytest.raises(OptionError, match="rounding"):
        fastopt.quantize(x, "nf4", rounding="stochastic")
    with pytest.raises(OptionError, match="integer"):
        Q.gptq(x, np.eye(64), "nf4")


def test_stochastic_float8(rng):
    x = np.full(20_000, 1.03, "f4")
    codes = [
        fastopt.quantize(
            x, "float8_e4m3fn", scale=1.0, rounding="stochastic", seed=seed, threads=threads
        ).codes
        for seed, threads in ((1, 1), (1, 2), (2, 1))
    ]
    np.testing.assert_array_equal(codes[0], codes[1])
    assert (codes[0] != codes[2]).any()
    q = fastopt.quantize(x, "float8_e4m3fn", scale=1.0, rounding="stochastic", seed=1)
    assert abs(q.dequantize().mean() - 1.03) < 0.002


def test_bytes_to_keep():
    x = np.ones((4, 128), "f4")
    assert fastopt.quantize(x, "nf4").nbytes == 256 + 8 * 4
    assert fastopt.quantize(x, "mxfp4").nbytes == 256 + 16
    assert fastopt.quantize(x, "int3").nbytes == 512 + 4
    assert fastopt.quantize(x, "float8_e4m3fn").nbytes == 512 + 4


def test_three_bits(rng):
    x = rng.standard_normal((16, 64)).astype("f4")
    q = fastopt.quantize(x, "int3", axis=0)
    assert q.codes.dtype == np.int8
    assert q.codes.min() >= -3
    assert q.codes.max() == 3
    u = fastopt.quantize(x, "uint3", axis=0, symmetric=False)
    assert u.codes.dtype == np.uint8
    assert u.codes.max() == 7
    for better in (
        fastopt.quantize(x, "int3", axis=0, method="mse"),
        Q.hqq(x, "uint3", group_size=16),
    ):
        assert better.error(x) < q.error(x)
    assert Q.gptq(x, np.eye(64), "int3").error(x) < q.error(x)


# --- oracles


@pytest.mark.parametrize("block", [64, 128, 256, 4096])
def test_nf4_is_bitsandbytes(block, rng):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    x = rng.standard_normal((32, 4096)).astype("f4")
    x[3] *= 1e30
    x[4] *= 1e-30
    middle = CODEBOOKS["nf4"].bound
    x[5, :15], x[5, 15:30], x[5, 63::64] = middle, np.nextafter(middle, np.float32(1)), 1
    codes, state = functional.quantize_4bit(
        torch.from_numpy(x.copy()), blocksize=block, quant_type="nf4"
    )
    q = fastopt.quantize(x, "nf4", group_size=block)
    np.testing.assert_array_equal(q.codes >> 4 | q.codes << 4, codes.numpy().ravel())
    np.testing.assert_array_equal(q.scale.ravel(), state.absmax.numpy())
    np.testing.assert_array_equal(q.dequantize(), functional.dequantize_4bit(codes, state).numpy())


def test_mxfp4_elements_are_ml_dtypes(rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = rng.uniform(-7, 7, 100_000).astype("f4")
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, 7, 0.0, 1e-30], "f4")
    x = np.concatenate([x, ties, -ties, np.nextafter(ties, 9), np.nextafter(ties, 0)]).astype("f4")
    q = fastopt.quantize(x, "mxfp4", scale=1.0)
    wanted = np.clip(x, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    np.testing.assert_array_equal(q.unpacked(), wanted)


def test_mxfp4_values_are_gguf(rng):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.MXFP4
    x = rng.standard_normal((64, 256)).astype("f4")
    wanted = gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
    np.testing.assert_array_equal(fastopt.quantize(x, "mxfp4").dequantize(), wanted)


KINDS = {"Q8_0": 34, "Q4_0": 18, "MXFP4": 17}


@pytest.mark.parametrize("kind", KINDS)
def test_ggml_kernel_twin(level, kind):
    k, width, at = kernel("codebook", level), KINDS[kind], list(KINDS).index(kind)
    for n in (0, 1, 2, 15, 16, 17, 33, 4100):
        x = sample(32 * n, "float32", n).reshape(n, 32)
        x[1::5] = np.ldexp(x[1::5], np.resize(np.arange(-149, 122, 7), len(x[1::5]))[:, None])
        x[2::7, 3], x[2::7, 9] = 9, -9
        x[3::7, 3], x[3::7, 9] = -9, 9
        x[4::7] = np.rint(x[4::7] * 8) / 2
        x[5::7] = 0
        head, unit = reference.ggml_head(x, kind)
        codes = reference.ggml_codes(x, unit, kind)
        want = np.concatenate([head, reference.ggml_body(codes, kind)], axis=1)
        for threads in THREADS:
            out = Guarded(np.full((n, width), 0x5A, np.uint8))
            assert k.ggml(out.array, x, np.empty(0, "f4"), at, 0, threads)
            out.check()
            np.testing.assert_array_equal(out.array, want)
            flat = codes.ravel() ^ (8 if kind == "Q4_0" else 0)
            held = flat.view(np.int8) if kind == "Q8_0" else packed(flat)
            value, scale = Guarded(np.zeros_like(held)), Guarded(np.zeros(n, "f4"))
            k.ggml(want, value.array, scale.array, at, 2, threads)
            value.check(), scale.check()
            np.testing.assert_array_equal(value.array, held)
            values = want[:, :2].copy().view("<f2").astype("f4").ravel()
            if kind == "MXFP4":
                values = np.ldexp(
                    np.float32(1), np.where(head, head.astype("i4") - 127, 0)
                ).ravel()
            np.testing.assert_array_equal(scale.array, values)
            out = Guarded(np.full((n, width), 0x5A, np.uint8))
            assert k.ggml(out.array, held, scale.array, at, 1, threads)
            out.check()
            lost = (values == 1) & (kind == "MXFP4")  # there 2**0 stands for an empty block's
            np.testing.assert_array_equal(out.array[~lost], want[~lost])


def test_ggml_kernel_doors(level):
    k, x, scale = kernel("codebook", level), np.ones(64, "f4"), np.ones(2, "f4")
    out = np.full(68, 7, np.uint8)
    for bad in (np.nan, np.inf, -np.inf):
        for at, width in enumerate(KINDS.values()):
            y = x.copy()
            y[40] = bad
            assert not k.ggml(out[: 2 * width], y, scale, at, 0, 1)
            assert k.ggml(out[: 2 * width].copy(), x, scale, at, 0, 1)
    assert (out == 7).all()  # nothing of 16 blocks is written where one is not finite
    for args, error in (
        ((out, x[:32], scale, 0, 0), ArrayError),
        ((out, x.astype("f8"), scale, 0, 0), DTypeError),
        ((out, x.astype("i1"), scale[:1], 0, 1), ArrayError),
        ((out, x.astype("u1"), scale, 0, 2), DTypeError),
        ((out, x, scale, 3, 0), (IndexError, ArrayError)),
        ((out, x, scale, 0, 3), (IndexError, DTypeError)),
    ):
        with pytest.raises(error):
            k.ggml(*args, 1)
    every = np.arange(1 << 16, dtype="<u2")
    data = np.zeros((1 << 16, 34), np.uint8)
    data[:, :2] = every.view(np.uint8).reshape(-1, 2)
    codes, scale = np.zeros((1 << 16, 32), np.int8), np.zeros(1 << 16, "f4")
    assert k.ggml(data, codes, scale, 0, 2, 1)
    np.testing.assert_array_equal(scale, every.view("<f2").astype("f4"))
    finite = np.isfinite(scale)
    again = np.zeros_like(data[finite])
    k.ggml(again, codes[finite], scale[finite], 0, 1, 1)
    np.testing.assert_array_equal(again, data[finite])


def blocks(rng):
    halves = rng.integers(-254, 255, (64, 64)).astype("f4") / 2
    halves[:, ::32] = 127
    yield rng.standard_normal((40, 256)).astype("f4")
    yield rng.standard_normal((2, 3, 32)).astype("f4")
    yield np.zeros((2, 64), "f4")
    yield halves
    yield rng.integers(-16, 17, (64, 64)).astype("f4") / 2
    yield (rng.standard_normal((8, 64)) * 1e30).astype("f4")
    yield (rng.standard_normal((8, 64)) * 1e-30).astype("f4")
    yield np.tile(np.array([[1, -1]], "f4"), (3, 32))
    yield rng.standard_normal((3000, 64))  # float64, more than one piece


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "MXFP4"])
def test_gguf_byte_for_byte(kind, rng):
    gguf = pytest.importorskip("gguf")
    code = gguf.GGMLQuantizationType[kind]
    for x in blocks(rng):
        with np.errstate(all="ignore"):
            wanted = gguf.quants.quantize(x.astype("f4"), code)
            values = gguf.quants.dequantize(wanted, code)
        np.testing.assert_array_equal(Q.to_gguf(x, kind), wanted)
        q = Q.from_gguf(wanted, kind)
        np.testing.assert_array_equal(q.dequantize(), values)
        if kind != "MXFP4" or x.any():  # there an all-zero block has scale 1, not 2**-127
            np.testing.assert_array_equal(q.to_gguf(kind), wanted)


def test_gguf_keeps_the_codes_of_an_array(rng):
    x = rng.standard_normal((8, 96)).astype("f4")
    for name, kind in (("int8", "Q8_0"), ("int4", "Q4_0"), ("mxfp4", "MXFP4")):
        q = fastopt.quantize(x, name, group_size=32, method="mse")
        again = fastopt.QuantizedArray.from_gguf(q.to_gguf(kind), kind)
        np.testing.assert_array_equal(again.unpacked(), q.unpacked())
        scale = q.scale if kind == "MXFP4" else q.scale.astype("f2").astype("f4")
        np.testing.assert_array_equal(again.scale, scale)


def test_gguf_refuses(rng):
    x = rng.standard_normal((4, 64)).astype("f4")
    for bad in (x[:, :33], np.full((2, 32), np.nan), np.float32(1)):
        with pytest.raises(ArrayError):
            Q.to_gguf(bad)
    cases = [("int8", {"axis": 0}), ("int4", {"group_size": 32}), ("int8", {"group_size": 16})]
    for name, way in cases:
        with pytest.raises(DTypeError, match="groups of 32"):
            Q.to_gguf(fastopt.quantize(x, name, **way), "Q8_0")
    with pytest.raises(OptionError, match="kind"):
        Q.to_gguf(x, "Q5_0")
    with pytest.raises(ArrayError, match="34-byte"):
        Q.from_gguf(np.zeros(33, np.uint8))
    with pytest.raises(DTypeError):
        Q.from_gguf(np.zeros(34, np.float32))
    with pytest.raises(ArrayError, match="NaN"):
        Q.from_gguf(np.full(17, 255, np.uint8), "MXFP4")


@pytest.mark.parametrize("name", ["nf4", "mxfp4"])
@pytest.mark.parametrize("how", [{}, {"axis": 0}, {"axis": 1}, {"group_size": 8}], ids=str)
def test_empty_arrays(name, how):
    for shape in ((4, 0), (0, 4)):
        assert fastopt.quantize(np.zeros(shape, "f4"), name, **how).dequantize().shape == shape
