"""GPTQ: the kernel against its twin, the method against the published formula and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastopt.calibration import Gram
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.quantization import gptq, output_error, quantize
from fastopt.quantization.clipping import RangeRule
from fastopt.quantization.formats import FORMATS
from fastopt.quantization.gptq import _panels
from fastopt.quantization.qparams import qparams_from_range
from tests import reference
from tests.conftest import THREADS, Guarded, kernel


def layer(rng, n_out=24, n_in=48, rows=400):
    """A weight and inputs with strong correlations, as layers have."""
    x = rng.standard_normal((rows, n_in // 3)) @ rng.standard_normal((n_in // 3, n_in))
    x += 0.1 * rng.standard_normal(x.shape)
    x *= 10.0 ** rng.uniform(-1, 1, n_in)
    return rng.standard_normal((n_out, n_in)).astype("f4"), x


# -------------------------------------------------------------------- the kernel
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("name", "symmetric"), [("int4", False), ("uint4", True), ("int8", True)])
def test_kernel_twin(level, threads, name, symmetric):
    k = kernel("gptq", level)
    parts, near, *rule = RangeRule.of(FORMATS[name], symmetric=symmetric)

    def choose(x, cost):
        ends = x.min(initial=0).astype("f8"), x.max(initial=0).astype("f8")
        low, high = reference.best_range(x, cost, *ends, parts, near, *rule)
        return qparams_from_range(np.float32(low), np.float32(high), name, symmetric=symmetric)

    for n in (1, 2, 8, 9, 33, 70):
        for rows, size, early in itertools.product((1, 35), {1, 5, 16, n}, (False, True)):
            if size == 1 and n > 9:
                continue
            rng = np.random.default_rng(n * rows)
            w = rng.standard_normal((rows, n)).astype("f4")
            w[0] = 0.0
            a = np.triu(rng.standard_normal((n, n)) / n, 1).astype("f4")
            cost = rng.uniform(0, 1, n).astype("f4")
            order = rng.permutation(n) if early else np.arange(n)
            code = Guarded(np.zeros((rows, n), "i4"))
            scale, zero = (Guarded(np.zeros((rows, -(-n // size)), "f4")) for _ in range(2))
            made = (code, scale, zero)
            k.feedback(
                *(guarded.array for guarded in made), w, _panels(a + np.eye(n)), order, cost,
                rows, n, size, early, parts, near, *rule, threads,
            )  # fmt: skip
            want = reference.gptq_feedback(w, a, order, cost, size, early, choose, *rule[-2:])
            for guarded, twin in zip(made, want, strict=True):
                np.testing.assert_array_equal(guarded.array, twin)
                guarded.check()


def test_kernel_survives_nan_and_refuses_bad_doors(level):
    k = kernel("gptq", level)
    parts, near, *rule = RangeRule.of(FORMATS["int4"], symmetric=False)
    w = np.full((1, 4), np.nan, "f4")
    w[0, 1] = np.inf
    code, one, order = np.zeros((1, 4), "i4"), np.zeros((1, 1), "f4"), np.arange(4)
    args = [code, one, one.copy(), w, np.zeros((1, 4, 8), "f4"), order, np.ones(4, "f4")]
    args += [1, 4, 4, False, parts, near, *rule, 1]
    k.feedback(*args)
    assert set(np.unique(code)) <= {-8, 7}
    for at, bad, error in [
        (0, code.astype("i8"), DTypeError),
        (1, np.ones(2, "f4"), ArrayError),
        (4, np.zeros((1, 3, 8), "f4"), ArrayError),
        (5, order + 1, IndexError),
        (5, order - 1, IndexError),
        (6, np.ones(3, "f4"), ArrayError),
        (9, 0, IndexError),
    ]:
        with pytest.raises(error):
            k.feedback(*[bad if i == at else v for i, v in enumerate(args)])
    groups = [one.repeat(2), one.repeat(2)]
    with pytest.raises(IndexError, match="order"):  # not group by group
        k.feedback(code, *groups, w, args[4], order[::-1].copy(), *args[6:9], 2, *args[10:])


# -------------------------------------------------------------------- the method
def published(w, second, scale, zero, low, high, damp):
    """GPTQ as in the paper: the Cholesky factor of the inverse of H, float64."""
    h = second + damp * np.mean(np.diag(second)) * np.eye(len(second))
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    w, codes = w.astype("f8").copy(), np.zeros(w.shape)
    for k in range(w.shape[1]):
        codes[:, k] = np.clip(np.rint(w[:, k] / scale) + zero, low, high)
        error = (w[:, k] - scale * (codes[:, k] - zero)) / upper[k, k]
        w[:, k + 1 :] -= np.outer(error, upper[k, k + 1 :])
    return codes


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_those_of_the_published_algorithm(symmetric, rng):
    w, x = layer(rng, 40, 90)
    gram = Gram(90).update(x)
    q = gptq(w, gram, "int4", method="minmax", symmetric=symmetric)
    s, z = qparams_from_range(w.min(1), w.max(1), "int4", symmetric=symmetric)
    low = -7 if symmetric else -8
    want = published(w, gram.second / gram.count, s.astype("f8"), z.astype("f8"), low, 7, 0.01)
    assert (
        q.unpacked() == want
    ).mean() > 0.999  # float32 here, so a near tie may fall the other way
    np.testing.assert_array_equal(q.scale, s)
    np.testing.assert_array_equal(q.zero_point, z)


def test_identity_gram_is_rounding_to_nearest(rng):
    w = rng.standard_normal((5, 30)).astype("f4")
    q = gptq(w, np.eye(30), "int8", method="minmax")
    np.testing.assert_array_equal(q.codes, quantize(w, "int8", axis=0).codes)
    grouped = gptq(w, np.eye(30), "int8", method="minmax", group_size=10)
    np.testing.assert_array_equal(grouped.codes, quantize(w, "int8", axis=1, group_size=10).codes)


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_of_any_magnitude_are_those_of_a_range(symmetric, rng):
    w = rng.uniform(-1, 1, (90, 16)).astype("f4")
    w[:, :2] = [-0.9, 1.0]
    w *= np.float32(2.0) ** np.linspace(-149, 128, 90, dtype="f4")[:, None].clip(-149, 127)
    w[:9] *= rng.uniform(0, 2, (9, 1)).astype("f4")
    w = np.concatenate([w, np.abs(w), -np.abs(w), w[:1] * 0])
    for dtype in ("int4", "uint8", "int16"):
        q = gptq(w, np.eye(16), dtype, method="minmax", symmetric=symmetric)
        want = qparams_from_range(w.min(1), w.max(1), dtype, symmetric=symmetric)
        np.testing.assert_array_equal(q.scale, want.scale)
        np.testing.assert_array_equal(q.zero_point, want.zero_point)


def test_close_to_the_best_codes_of_all(rng):
    """Brute force over all 15^3 codes of a row: GPTQ stays within 30 % of the optimum's error."""
    grid = np.array(list(itertools.product(range(-7, 8), repeat=3)))
    ours = best = plain = 0.0
    for _ in range(40):
        x = rng.standard_normal((50, 3)) @ rng.standard_normal((3, 3))
        w = rng.standard_normal((1, 3)).astype("f4")
        gram = Gram(3).update(x)
        q = gptq(w, gram, "int4", method="minmax", damp=0.0)
        h = gram.second
        loss = lambda d, h=h: np.einsum("ij,jk,ik->i", d, h, d)  # noqa: E731
        best += loss(w - grid * q.scale[0]).min()
        ours += loss(w - q.dequantize()).sum()
        plain += loss(w - quantize(w, "int4", axis=0).dequantize()).sum()
    assert best <= ours <= 1.3 * best
    assert ours < 0.9 * plain


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 16, 20])
def test_halves_the_output_error(dtype, symmetric, group_size, rng):
    w, x = layer(rng, 33, 64)
    gram = Gram(64).update(x)
    axis = 0 if group_size is None else 1
    plain = quantize(w, dtype, axis=axis, group_size=group_size, symmetric=symmetric)
    for act_order in (False, True):
        q = gptq(w, gram, dtype, group_size=group_size, symmetric=symmetric, act_order=act_order)
        assert output_error(w, q, gram) < 0.6 * output_error(w, plain, gram)
        assert q.scale.shape == plain.scale.shape
        assert q.zero_point.dtype == plain.zero_point.dtype == q.unpacked().dtype
        assert q.codes.shape == plain.codes.shape
        assert (q.axis, q.group_size, q.symmetric) == (axis, group_size, symmetric)
        low = q.format.qmin + symmetric
        assert q.unpacked().min() >= low
        assert q.unpacked().max() <= q.format.qmax


def test_mse_scales_beat_minmax_at_four_bits(rng):
    w, x = layer(rng, 64, 96)
    w[:, 5] *= 6
    gram = Gram(96).update(x)
    errors = [output_error(w, gptq(w, gram, "int4", method=m), gram) for m in ("mse", "minmax")]
    assert errors[0] < errors[1]


def test_same_codes_for_threads_and_matrix_or_gram(rng):
    w, x = layer(rng, 50, 64)
    gram = Gram(64).update(x)
    results = [
        gptq(w, g, "int4", group_size=32, symmetric=False, threads=t).unpacked()
        for g, t in [(gram, 1), (gram, 2), (gram, 3), (gram.second, 1)]
    ]
    for other in results[1:3]:
        np.testing.assert_array_equal(results[0], other)
    assert (results[0] == results[3]).mean() > 0.99  # scaled by the rows, so only rounding differs


def test_output_error_is_the_change_of_the_output(rng):
    w, x = layer(rng)
    q = quantize(w, "int4", axis=0)
    direct = np.linalg.norm(x @ (w - q.dequantize()).T) / np.linalg.norm(x @ w.T)
    np.testing.assert_allclose(output_error(w, q, Gram(48).update(x)), direct, rtol=1e-5)
    assert output_error(w, w, x.T @ x) == 0.0
    assert output_error(0 * w, w, x.T @ x) == np.inf
    assert output_error(0 * w, 0 * w, x.T @ x) == 0.0


def test_dead_and_duplicated_inputs(rng):
    w, x = layer(rng)
    x[:, 3] = 0.0
    x[:, 9] = x[:, 8]
    for gram in (Gram(48).update(x), Gram(48).update(x[:5]), np.zeros((48, 48))):
        for damp in (0.01, 0.0) if isinstance(gram, Gram) and gram.count > 48 else (0.01,):
            q = gptq(w, gram, "int8", damp=damp)
            assert q.error(w) < 0.2


def test_empty_and_tiny(rng):
    assert gptq(np.zeros((0, 3), "f4"), np.eye(3), "int8").codes.shape == (0, 3)
    assert gptq(np.ones((2, 1), "f4"), np.eye(1), "int8").codes.tolist() == [[127], [127]]
    zero = gptq(np.zeros((2, 3), "f4"), np.eye(3), "int4", group_size=2)
    assert not zero.dequantize().any()


def test_refused():
    w, eye = np.ones((2, 3), "f4"), np.eye(3)
    before = w.copy()
    for bad, error, match in [
        (lambda: gptq(w[0], eye), ArrayError, "w"),
        (lambda: gptq(w * np.nan, eye), ArrayError, "w: holds NaN"),
        (lambda: gptq(w, np.eye(2)), ArrayError, "gram"),
        (lambda: gptq(w, np.full((3, 3), np.inf)), ArrayError, "gram"),
        (lambda: gptq(w, Gram(3)), ArrayError, "no rows"),
        (lambda: gptq(w, Gram(4)), ArrayError, "features"),
        (lambda: gptq(w, -eye), ArrayError, "positive definite"),
        (lambda: gptq(w, eye, "float16"), OptionError, "dtype"),
        (lambda: gptq(w, eye, "q3.12"), OptionError, "dtype"),
        (lambda: gptq(w, eye, group_size=0), OptionError, "group_size"),
        (lambda: gptq(w, eye, method="best"), OptionError, "method"),
        (lambda: gptq(w, eye, damp=-1), OptionError, "damp"),
        (lambda: output_error(w, w[:1], eye), ArrayError, "q"),
    ]:
        with pytest.raises(error, match=match):
            bad()
    np.testing.assert_array_equal(w, before)


def test_weights_beyond_float32_are_refused():
    gram = Gram(4).update(np.eye(4))
    with pytest.raises(ArrayError, match="w"):
        gptq(np.full((2, 4), 1e100), gram, "int4")
    with pytest.raises(DTypeError, match="q"):
        output_error(np.ones((2, 4)), np.ones((2, 4), complex), gram)
