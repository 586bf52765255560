"""SmoothQuant, AWQ and HQQ: the identities they keep and the errors they lower."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt.calibration import Gram
from fastopt.errors import ArrayError, OptionError
from fastopt.quantization import MinMaxObserver, awq, hqq, output_error, quantize, smoothquant


def outliers(rng, n_out=24, n_in=32, rows=300):
    x = rng.standard_normal((rows, n_in))
    x[:, ::8] *= 30
    return rng.standard_normal((n_out, n_in)).astype("f4"), x


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothquant_keeps_the_product_and_evens_the_input(alpha, rng):
    w, x = outliers(rng)
    top = np.abs(x).max(axis=0)
    weight, scale = smoothquant(w, top, alpha=alpha)
    np.testing.assert_allclose((x / scale) @ weight.T, x @ w.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scale, top**alpha / np.abs(w).max(0) ** (1 - alpha), rtol=1e-5)
    observer = MinMaxObserver(axis=1).partial_fit(x)
    np.testing.assert_allclose(smoothquant(w, observer, alpha=alpha).scale, scale, rtol=1e-6)
    if alpha == 0.5:
        spread = lambda a: np.abs(a).max(0).max() / np.abs(a).max(0).min()  # noqa: E731
        assert spread(x / scale) < 0.5 * spread(x)


def test_smoothquant_leaves_dead_inputs_alone(rng):
    w, x = outliers(rng)
    w[:, 1] = 0
    top = np.abs(x).max(axis=0)
    top[2] = 0
    weight, scale = smoothquant(w, top)
    assert scale[1] == scale[2] == 1
    assert np.isfinite(weight).all()


@pytest.mark.parametrize(("group_size", "symmetric"), [(None, True), (16, False)])
def test_awq_lowers_the_output_error(group_size, symmetric, rng):
    w, x = outliers(rng)
    gram = Gram(32).update(x)
    axis = 0 if group_size is None else 1
    plain = quantize(w, "int4", axis=axis, group_size=group_size, symmetric=symmetric)
    found = awq(w, gram, "int4", group_size=group_size, symmetric=symmetric)
    back = found.weight.dequantize() / found.scale
    np.testing.assert_allclose(output_error(w, back, gram), found.error, rtol=1e-4)
    assert found.error < 0.8 * output_error(w, plain, gram)
    assert awq(w, gram, "int4", steps=1).alpha == 0.0


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 64, 20])
def test_hqq_lowers_the_lp_error(symmetric, group_size, rng):
    w = rng.standard_t(4, (32, 128)).astype("f4")
    axis = 0 if group_size is None else 1
    plain = quantize(w, "uint4", axis=axis, group_size=group_size, symmetric=symmetric)
    q = hqq(w, "uint4", group_size=group_size, symmetric=symmetric)

    def lost(a):
        return (np.abs(w - a.dequantize()) ** 0.7).sum()

    assert lost(q) < 0.99 * lost(plain)
    assert q.scale.shape == plain.scale.shape
    assert (q.axis, q.group_size) == (plain.axis, plain.group_size)
    start = hqq(w, "uint4", group_size=group_size, symmetric=symmetric, steps=0)
    np.testing.assert_array_equal(start.unpacked(), plain.unpacked())


def test_hqq_of_zeros_and_nothing():
    assert not hqq(np.zeros((2, 8), "f4")).dequantize().any()
    assert hqq(np.zeros((0, 8), "f4")).unpacked().shape == (0, 8)


def test_refused(rng):
    w, x = outliers(rng)
    for bad, error, match in [
        (lambda: smoothquant(w, np.ones(3)), ArrayError, "act_absmax"),
        (lambda: smoothquant(w, -np.ones(32)), ArrayError, "act_absmax"),
        (lambda: smoothquant(w * np.nan, np.ones(32)), ArrayError, "w"),
        (lambda: smoothquant(w, np.ones(32), alpha=2), OptionError, "alpha"),
        (lambda: awq(w, np.eye(3)), ArrayError, "gram"),
        (lambda: awq(w, x.T @ x, steps=0), OptionError, "steps"),
        (lambda: hqq(w, "q3.12"), OptionError, "dtype"),
        (lambda: hqq(w, p=0), OptionError, "p"),
        (lambda: hqq(w[0]), ArrayError, "w"),
    ]:
        with pytest.raises(error, match=match):
            bad()
