"""Folding a normalisation, and the sparsity schedule."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.merging import fold_batch_norm
from fastopt.pruning import cubic_sparsity


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("affine", [False, True])
def test_dense_layer_and_norm_equal_the_folded_layer(
    dtype: str, affine: bool, rng: np.random.Generator
) -> None:
    w, b = rng.standard_normal((4, 7)).astype(dtype), rng.standard_normal(4).astype(dtype)
    mean, var = rng.standard_normal(4).astype(dtype), rng.random(4).astype(dtype)
    gamma, beta = rng.standard_normal((2, 4)).astype(dtype) if affine else (None, None)
    x = rng.standard_normal((20, 7))
    for bias in (b, None):
        y = (x @ w.T + (0 if bias is None else bias) - mean) / np.sqrt(var + 1e-5)
        y = y * gamma + beta if affine else y
        before = w.copy()
        new_w, new_b = fold_batch_norm(w, bias, mean, var, gamma, beta)
        assert new_w.dtype == new_b.dtype == dtype
        np.testing.assert_allclose(x @ new_w.T + new_b, y, atol=1e-4, rtol=1e-4)
        assert (w == before).all()


def test_convolution_as_torch_does_it() -> None:
    torch = pytest.importorskip("torch")
    conv, norm = torch.nn.Conv2d(3, 5, 3).eval(), torch.nn.BatchNorm2d(5).eval()
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.normal_()
        norm.bias.normal_()
    fused = torch.nn.utils.fuse_conv_bn_eval(conv, norm)
    w, b = fold_batch_norm(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias,
        eps=norm.eps,
    )  # fmt: skip
    np.testing.assert_allclose(w, fused.weight.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(b, fused.bias.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_refusals() -> None:
    w, one = np.ones((3, 2)), np.ones(3)
    for args, options, kind, word in (
        ((w, None, one[:2], one), {}, ArrayError, "mean"),
        ((w, None, one, -one), {}, ArrayError, "var"),
        ((w, None, one, one), {"axis": 2}, OptionError, "axis"),
        ((w, None, None, one), {}, DTypeError, "mean"),
        ((w, None, one, 0 * one), {"eps": 0}, ArrayError, "var"),
        ((w, np.nan * one, one, one), {}, ArrayError, "b"),
    ):  # fmt: skip
        with pytest.raises(kind, match=word):
            fold_batch_norm(*args, **options)


def test_the_cubic_schedule() -> None:
    values = [cubic_sparsity(t, begin=10, end=50, final=0.9, initial=0.1) for t in range(80)]
    assert values[:11] == [pytest.approx(0.1)] * 11
    assert values[50:] == [pytest.approx(0.9)] * 30
    assert (np.diff(values[10:51]) > 0).all()
    assert values[30] == pytest.approx(0.9 - 0.8 / 8)
    with pytest.raises(OptionError, match="end"):
        cubic_sparsity(0, begin=5, end=5)
    with pytest.raises(OptionError, match="final"):
        cubic_sparsity(0, end=5, final=2)
