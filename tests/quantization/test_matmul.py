"""Exact integer products: kernels against int64 NumPy, ONNX's node tests, the saturation trap."""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import lru_cache

import numpy as np
import pytest

from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.quantization import PackedMatrix, matmul_integer, qlinear_matmul
from fastopt.quantization.matmul import SAFE_K
from fastopt.quantization.packed_matrix import aligned_bytes
from tests import reference
from tests.conftest import SIZES, THREADS, Guarded, kernel

DTYPES = ("int8", "uint8")
PACKED, ROWS_K, ROWS_N = 0, 1, 2


def codes(rng, dtype, *shape):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def right_operand(module, b, layout, threads):
    """b as the kernel wants it: (data, column sums, narrow)."""
    k, n = b.shape
    if layout == ROWS_K:
        return b, None, False
    if layout == ROWS_N:
        return np.ascontiguousarray(b.T), None, False
    panels = Guarded(aligned_bytes(module.packed_size(n, k, 0, 8, False)))
    colsum = Guarded(np.zeros(n, np.int32))
    args = (n, k, 0, 8)
    narrow = module.pack(panels.array, colsum.array, None, None, b, *args, False, threads)
    signed = b.astype(np.int16) - 128 * (b.dtype == np.uint8)
    assert narrow == bool(((signed >= -64) & (signed <= 63)).all())
    other = np.zeros_like(panels.array), np.zeros_like(colsum.array)
    module.pack(*other, None, None, np.ascontiguousarray(b.T), *args, True, threads)
    panels.check()
    colsum.check()
    assert (other[0] == panels.array).all()
    assert (other[1] == colsum.array).all()
    return panels.array, colsum.array, narrow


def check_kernel(module, a, b, layout, threads, rng, extreme=False):
    (m, k), n = a.shape, b.shape[1]
    za = codes(rng, a.dtype, m).astype(np.int32)
    zb = codes(rng, b.dtype, n).astype(np.int32)
    if extreme:
        za[:], zb[:] = np.iinfo(a.dtype).min, np.iinfo(b.dtype).min
    data, colsum, narrow = right_operand(module, b, layout, threads)
    moved = za + 128 * (a.dtype == np.int8), zb - 128 * (b.dtype == np.uint8)
    moved = [z.astype(np.int32) for z in moved]
    out = Guarded(np.full((m, n), -1, np.int32))
    module.multiply_i32(out.array, a, data, layout, colsum, narrow, *moved, m, n, k, threads)
    out.check()
    np.testing.assert_array_equal(out.array, reference.multiply_i32(a, b, za, zb))
    for dtype in DTYPES:
        scale = rng.uniform(1e-4, 1e-2, (m, n) if m % 2 else n)
        zero = int(codes(rng, dtype))
        q = Guarded(np.full((m, n), 77, dtype))
        module.multiply_q8(
            q.array, a, data, layout, colsum, narrow, *moved, scale, zero, m, n, k, threads
        )
        q.check()
        want = reference.multiply_q8(a, b, za, zb, scale, zero, dtype)
        np.testing.assert_array_equal(q.array, want)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("layout", [PACKED, ROWS_K, ROWS_N])
@pytest.mark.parametrize("axis", ["m", "n", "k"])
def test_kernel_sizes(level, axis, layout, threads, rng):
    module = kernel("matmul", level)
    for size in SIZES:
        dims = {"m": 3, "n": 5, "k": 9, axis: size}
        a = codes(rng, DTYPES[size % 2], dims["m"], dims["k"])
        b = codes(rng, DTYPES[size // 2 % 2], dims["k"], dims["n"])
        check_kernel(module, a, b, layout, threads, rng)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("layout", [PACKED, ROWS_K, ROWS_N])
def test_kernel_many_blocks(level, layout, threads, rng):
    """Several chunks of rows, panels, and slices of k, none of them full."""
    module = kernel("matmul", level)
    a, b = codes(rng, "uint8", 301, 1301), codes(rng, "int8", 1301, 131)
    check_kernel(module, a, b, layout, threads, rng)


@pytest.mark.parametrize("layout", [PACKED, ROWS_K])
def test_kernel_extremes(level, layout, rng):
    """All codes at the far end of their range, zero points at the other end."""
    module = kernel("matmul", level)
    for left in DTYPES:
        for right in DTYPES:
            a = np.full((7, 768), np.iinfo(left).max, left)
            b = np.full((768, 50), np.iinfo(right).max, right)
            check_kernel(module, a, b, layout, 1, rng, extreme=True)


def test_kernel_narrow(level, rng):
    """Weights of seven bits take the 8-bit instructions where wider ones would saturate."""
    module = kernel("matmul", level)
    b = rng.integers(-64, 64, (301, 40), np.int8)
    b[:, 0], b[:, 1] = 63, -64
    assert right_operand(module, b, PACKED, 1)[2]
    check_kernel(module, np.full((7, 301), 255, np.uint8), b, PACKED, 1, rng)
    check_kernel(module, codes(rng, "int8", 9, 301), b, PACKED, 2, rng)


def excess_of(module, packed, b, threads):
    """(start, row, value) of a packed b as the kernel tells it, checked against its twin."""
    k, n = b.shape
    count = Guarded(np.zeros(n, np.int32))
    module.excess(count.array, None, None, None, packed, n, k, False, threads)
    start = np.zeros(n + 1, np.int32)
    np.cumsum((count.array + 3) // 4, out=start[1:])
    row = Guarded(np.full(4 * start[-1], 9, np.uint16))
    value = Guarded(np.full(4 * start[-1], 9, np.int8))
    module.excess(count.array, start, row.array, value.array, packed, n, k, False, threads)
    for guarded in (count, row, value):
        guarded.check()
    dense = np.zeros((k + 1, n), np.int64)
    column = np.repeat(np.arange(n), 4 * np.diff(start))
    np.add.at(dense, (row.array, column), value.array)
    np.testing.assert_array_equal(dense[:k], reference.excess(b))
    assert np.abs(value.array.astype(int)).max(initial=0) <= 64
    return start, row.array, value.array


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 40, 1301])
def test_kernel_with_the_excess_apart(level, k, threads, rng):
    """Pairs of weights at which the fast 8-bit instruction of AVX2 saturates."""
    module = kernel("matmul", level)
    for m, n in ((15, 16), (16, 1), (17, 7), (31, 8), (33, 17), (70, 50), (600, 24)):
        b = np.clip(np.rint(rng.standard_normal((k, n)) * 60), -128, 127).astype(np.int8)
        b[:, 0] = 127
        b[:, -1] = -128
        a = codes(rng, "uint8", m, k)
        a[0] = 255
        packed, colsum, narrow = right_operand(module, b, PACKED, threads)
        apart = excess_of(module, packed, b, threads)
        zero = np.zeros(m, np.int32), np.zeros(n, np.int32)
        for left, za in ((a, zero[0]), ((a ^ 128).view(np.int8), zero[0] + 128)):
            want = left.astype(np.int64) @ b.astype(np.int64)
            out = Guarded(np.zeros((m, n), np.int32))
            args = (left, packed, PACKED, colsum, narrow, za.astype(np.int32), zero[1])
            module.multiply_i32(out.array, *args, m, n, k, threads, apart)
            out.check()
            np.testing.assert_array_equal(out.array, want)
            out = np.zeros((m, n), np.int8)
            scale = np.full(n, 1e-3)
            module.multiply_q8(out, *args, scale, 3, m, n, k, threads, apart)
            np.testing.assert_array_equal(
                out, np.clip(np.rint(want * 1e-3) + 3, -128, 127).astype(np.int8)
            )


@pytest.mark.parametrize("rows", [1, 32])
def test_saturation_trap(rows):
    a, b = np.full((rows, 768), 255, np.uint8), np.full((768, 64), 127, np.int8)
    assert (matmul_integer(a, b) == 24_871_680).all()
    assert (matmul_integer(a, PackedMatrix(b)) == 24_871_680).all()


@lru_cache(maxsize=1)
def node_tests():
    loader = pytest.importorskip("onnx.backend.test.loader")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = loader.load_model_tests(kind="node")
    return cases


def run_node(case, function):
    for inputs, outputs in case.data_sets:
        node = case.model.graph.node[0]
        given = dict(zip((i.name for i in case.model.graph.input), inputs, strict=True))
        result = function(*(given.get(name) for name in node.input))
        assert result.dtype == outputs[0].dtype
        np.testing.assert_array_equal(result, outputs[0])


def test_onnx_nodes():
    cases = [case for case in node_tests() if case.name.startswith("test_matmulinteger")]
    assert len(cases) == 1
    for case in cases:
        run_node(case, matmul_integer)
    cases = [case for case in node_tests() if case.name.startswith("test_qlinearmatmul")]
    assert len(cases) == 8
    for case in cases:
        run_node(case, qlinear_matmul)


@pytest.mark.parametrize("left", DTYPES)
@pytest.mark.parametrize("right", DTYPES)
def test_shapes_of_numpy_matmul(left, right, rng):
    shapes = [
        ((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)),
        ((2, 3, 4), (2, 4, 5)), ((2, 1, 3, 4), (7, 4, 5)), ((3, 4), (2, 4, 5)), ((0, 4), (4, 5)),
        ((3, 0), (0, 5)), ((2, 3, 4), (4,)), ((0, 3, 4), (4, 2)), ((300, 4), (2, 4, 3)),
    ]  # fmt: skip
    for one, two in shapes:
        a, b = codes(rng, left, *one), codes(rng, right, *two)
        want = a.astype(np.int64) @ b.astype(np.int64)
        got = matmul_integer(a, b)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, want, strict=False)
        assert got.shape == want.shape
        out = np.empty(want.shape, np.int64)
        assert matmul_integer(a, b, out=out) is out
        np.testing.assert_array_equal(out, want)
        if len(two) == 2:
            np.testing.assert_array_equal(matmul_integer(a, PackedMatrix(b)), want)


def test_zero_point_shapes(rng):
    a, b = codes(rng, "uint8", 2, 3, 4), codes(rng, "int8", 2, 4, 5)
    wide_a, wide_b = a.astype(np.int64), b.astype(np.int64)
    for za in (np.uint8(7), np.array([7], np.uint8), codes(rng, "uint8", 3),
               codes(rng, "uint8", 2, 3, 1), codes(rng, "uint8", 1, 3, 1), 7):  # fmt: skip
        for zb in (np.int8(-7), codes(rng, "int8", 5), codes(rng, "int8", 2, 1, 5), -7, None):
            left = np.asarray(za, np.int64)
            left = left[:, None] if left.ndim == 1 and left.size > 1 else left
            right = np.asarray(0 if zb is None else zb, np.int64)
            want = (wide_a - left) @ (wide_b - right)
            np.testing.assert_array_equal(matmul_integer(a, b, za, zb), want)
    one = b[0]
    want = (wide_a - 5) @ (one.astype(np.int64) - 3)
    np.testing.assert_array_equal(matmul_integer(a, one, np.uint8(5), np.int8(3)), want)
    za = codes(rng, "uint8", 2, 3, 1)
    want = (wide_a - za.astype(np.int64)) @ one.astype(np.int64)
    np.testing.assert_array_equal(matmul_integer(a, one, za), want)


def test_strided_and_transposed_inputs(rng):
    a, b = codes(rng, "int8", 6, 20), codes(rng, "uint8", 7, 20)
    want = a.astype(np.int64) @ b.T.astype(np.int64)
    np.testing.assert_array_equal(matmul_integer(a, b.T), want)
    np.testing.assert_array_equal(matmul_integer(a, PackedMatrix(b.T)), want)
    np.testing.assert_array_equal(
        matmul_integer(a[:, ::2], b.T[::2]),
        a[:, ::2].astype(np.int64) @ b.T[::2].astype(np.int64),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_k(dtype):
    """Past 33,025 terms int32 may overflow: refused, or exact in int64."""
    k = 2 * SAFE_K + 5
    top = np.iinfo(dtype).max
    a = np.full((2, k), 255, np.uint8)
    b = np.full((k, 3), top, dtype)
    b[:, 1] = 1
    want = a.astype(np.int64) @ b.astype(np.int64)
    out32 = np.full((2, 3), 5, np.int32)
    for right in (b, PackedMatrix(b)):
        out = np.empty((2, 3), np.int64)
        np.testing.assert_array_equal(matmul_integer(a, right, out=out), want)
        if want.max() >= 2**31:
            with pytest.raises(ArrayError, match="does not fit in int32"):
                matmul_integer(a, right, out=out32)
            assert (out32 == 5).all()
    np.testing.assert_array_equal(matmul_integer(a, b[:, 1:2]), want[:, 1:2])
    one = np.float32(1e-7)
    got = qlinear_matmul(a, one, np.uint8(0), b, np.float32(1), None, np.float32(1), np.uint8(3))
    want = np.clip(np.rint(want * np.float64(one)) + 3, 0, 255)
    np.testing.assert_array_equal(got, want)


def test_qlinear_scales_per_row_and_column(rng):
    a, b = codes(rng, "int8", 2, 3, 40), codes(rng, "int8", 2, 40, 5)
    c = a.astype(np.int64) @ b.astype(np.int64)
    rows, columns = rng.uniform(0.01, 0.1, 3), rng.uniform(0.01, 0.1, 5)
    rows, columns = rows.astype(np.float32), columns.astype(np.float32)
    for sa, row in ((rows, rows[:, None]), (np.float32(0.05), np.float32(0.05))):
        for sb in (columns, np.float32(0.02)):
            factor = np.asarray(row * sb / np.float32(0.3))
            assert factor.dtype == np.float32
            want = np.clip(np.rint(c * factor.astype(np.float64)) - 3, -128, 127)
            got = qlinear_matmul(a, sa, None, b, sb, None, np.float32(0.3), np.int8(-3))
            np.testing.assert_array_equal(got, want.astype(np.int8), strict=True)
            got = qlinear_matmul(a[0], sa, None, b[0], sb, None, np.float32(0.3), np.int8(-3))
            np.testing.assert_array_equal(got, want[0].astype(np.int8), strict=True)
    sa = rng.uniform(0.01, 0.1, (2, 3, 1)).astype(np.float32)
    factor = (sa * columns / np.float32(0.3)).astype(np.float64)
    got = qlinear_matmul(a, sa, None, b[0], columns, None, np.float32(0.3), np.uint8(9))
    want = np.clip(np.rint((a.astype(np.int64) @ b[0].astype(np.int64)) * factor) + 9, 0, 255)
    np.testing.assert_array_equal(got, want)


def test_refusals_write_nothing(rng):
    a, b = codes(rng, "uint8", 3, 4), codes(rng, "int8", 4, 5)
    out = np.full((3, 5), 9, np.int32)
    read_only = out.copy()
    read_only.flags.writeable = False
    wrong = [
        ((a.astype(np.int32), b), {}, DTypeError, "a:"),
        ((a, b.astype(np.float32)), {}, DTypeError, "b:"),
        ((a, b[:3]), {}, ArrayError, "b:"),
        ((a, codes(rng, "int8", 2, 4, 5)), {}, ArrayError, "out:"),
        ((a[None].repeat(2, 0), codes(rng, "int8", 3, 4, 5)), {}, ArrayError, "b:"),
        ((a, b, np.int8(1)), {}, DTypeError, "a_zero_point:"),
        ((a, b, 256), {}, ArrayError, "a_zero_point:"),
        ((a, b, np.zeros(2, np.uint8)), {}, ArrayError, "a_zero_point:"),
        ((a, b, None, np.zeros((5, 1), np.int8)), {}, ArrayError, "b_zero_point:"),
        ((a, b), {"out": out.astype(np.int16)}, DTypeError, "out:"),
        ((a, b), {"out": out[:, :4]}, ArrayError, "out:"),
        ((a, b), {"out": read_only}, ArrayError, "out:"),
        ((a, b), {"out": np.zeros((5, 3), np.int32).T}, ArrayError, "out:"),
        ((a, b), {"threads": 0}, OptionError, "threads:"),
        ((np.uint8(3), b), {}, ArrayError, "a:"),
    ]
    for args, options, error, match in wrong:
        with pytest.raises(error, match=match):
            matmul_integer(*args, **{"out": out, **options})
    assert (out == 9).all()
    raw = np.zeros(60, np.uint8)
    overlapping = raw.view(np.int32).reshape(3, 5)
    with pytest.raises(ArrayError, match="shares memory"):
        matmul_integer(raw[:12].reshape(3, 4), b, out=overlapping)
    for scales in ((0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, np.nan), (1.0, np.inf, 1.0)):
        with pytest.raises(ArrayError, match="scale"):
            qlinear_matmul(a, scales[0], None, b, scales[1], None, scales[2], None)
    with pytest.raises(DTypeError, match="y_zero_point"):
        qlinear_matmul(a, 1.0, None, b, 1.0, None, 1.0, np.int32(1))
    with pytest.raises(DTypeError, match="b_scale"):
        qlinear_matmul(a, 1.0, None, b, np.int32(1), None, 1.0, None)


def test_kernel_doors_refuse(level, rng):
    module = kernel("matmul", level)
    a, b = codes(rng, "uint8", 3, 4), codes(rng, "int8", 4, 5)
    za, zb, out = np.zeros(3, np.int32), np.zeros(5, np.int32), np.zeros((3, 5), np.int32)
    with pytest.raises(ArrayError, match="za"):
        module.multiply_i32(out, a, b, ROWS_K, None, False, zb, zb, 3, 5, 4, 1)
    with pytest.raises(DTypeError, match="a"):
        module.multiply_i32(out, a.astype(np.int16), b, ROWS_K, None, False, za, zb, 3, 5, 4, 1)
    with pytest.raises(ArrayError, match="out"):
        module.multiply_i32(out[:2], a, b, ROWS_K, None, False, za, zb, 3, 5, 4, 1)


def test_packed_matrix_pickles_and_copies(rng):
    b = codes(rng, "uint8", 33, 21)
    a = codes(rng, "int8", 4, 33)
    for plain in (b, codes(rng, "uint8", 21, 33).T):
        packed = PackedMatrix(plain)
        assert packed.shape == (33, 21)
        for twin in (pickle.loads(pickle.dumps(packed)), copy.deepcopy(packed)):
            assert twin.shape == packed.shape
            assert twin.dtype == packed.dtype
            np.testing.assert_array_equal(twin.unpack(), plain)
            np.testing.assert_array_equal(matmul_integer(a, twin), matmul_integer(a, plain))
        assert packed.nbytes >= plain.nbytes
        kept = plain.copy()
        plain[:] = 0
        np.testing.assert_array_equal(packed.unpack(), kept)


def test_random_products_match_int64(rng):
    for _ in range(60):
        m, n, k = rng.integers(1, 90, 3)
        a = codes(rng, DTYPES[rng.integers(2)], m, k)
        b = codes(rng, DTYPES[rng.integers(2)], k, n)
        za, zb = codes(rng, a.dtype, m), codes(rng, b.dtype, n)
        want = reference.multiply_i32(a, b, za.astype(np.int64), zb.astype(np.int64))
        np.testing.assert_array_equal(matmul_integer(a, b, za, zb), want)


@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, 0), (0, 0)])
def test_empty_products_take_empty_zero_points(m: int, n: int) -> None:
    a, b = np.ones((m, 5), np.uint8), np.ones((5, n), np.int8)
    za, zb = np.zeros(m, np.uint8), np.zeros(n, np.int8)
    assert matmul_integer(a, b, za, zb).shape == (m, n)
    assert matmul_integer(a, PackedMatrix(b), za, zb).shape == (m, n)
