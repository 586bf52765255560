"""GPTQ: weights rounded column by column, each making up for the errors of those before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array, check_finite
from fastopt._kernels import gptq as kernel
from fastopt._options import choice, flag, integer, number
from fastopt.calibration import Gram
from fastopt.errors import ArrayError, OptionError
from fastopt.quantization.array import QuantizedArray
from fastopt.quantization.clipping import RangeRule, second_moment
from fastopt.quantization.formats import Format, format_of
from fastopt.quantization.packing import pack_int4

__all__ = ["Factor", "factor_of", "gptq", "output_error"]

_SERIAL_BELOW = 1 << 20  # multiply-adds
_BLOCK = 48  # columns of the factor at a time


@dataclass(frozen=True)
class Factor:
    """Second moments of an input, factorised for :func:`gptq`.

    Attributes
    ----------
    order : (n,) intp
        The inputs as they are rounded.
    panels : (n / 8, n, 8) float32
        R_ik / R_kk, see :func:`gptq`.
    pivots : (n,) float64
        R_kk^2 for each input: what a rounding error of it costs per row of X, once the later
        inputs have made up for it.
    """

    order: Array
    panels: Array
    pivots: Array

    @property
    def n(self) -> int:
        """Inputs."""
        return len(self.order)

    @property
    def cost(self) -> Array:
        """The pivots as shares of the largest, float32."""
        found: Array = (self.pivots / max(self.pivots.max(initial=0.0), 1e-300)).astype(np.float32)
        return found


def factor_of(gram: Any, *, act_order: bool = False, damp: float = 0.01) -> Factor:
    """Factorise H = R R^T once, for several calls of :func:`gptq` with the same input.

    Parameters
    ----------
    gram : Gram or (n, n) array X^T X
    act_order, damp
        As in :func:`gptq`.

    Returns
    -------
    Factor

    Raises
    ------
    ArrayError, OptionError
        As in :func:`gptq`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.calibration import Gram
    >>> from fastopt.quantization import factor_of, gptq
    >>> rng = np.random.default_rng(0)
    >>> factor = factor_of(Gram(8).update(rng.standard_normal((64, 8))))
    >>> [gptq(rng.standard_normal((4, 8)), factor, "int4").dtype for _ in range(2)]
    ['int4', 'int4']
    """
    n = gram.n if isinstance(gram, Gram) else len(as_array(gram, "gram", ndim=2))
    return _factored(second_moment(gram, n), act_order, number(damp, "damp", low=0.0))


def _factored(second: Array, act_order: bool, damp: float) -> Factor:
    n = len(second)
    order = np.argsort(-second.diagonal(), kind="stable") if act_order else np.arange(n)
    factor = _factor(second, order, damp)
    pivots = np.empty(n)
    pivots[order] = factor.diagonal() ** 2
    return Factor(order, _panels(factor), pivots)


def gptq(
    w: Any,
    gram: Any,
    dtype: str | Format = "int4",
    *,
    group_size: int | None = None,
    symmetric: bool = True,
    method: str = "mse",
    act_order: bool = False,
    damp: float = 0.01,
    threads: int | None = None,
) -> QuantizedArray:
    """Codes Q that nearly minimise ||(W - dequantise(Q)) X^T||^2: the change of the output.

    Parameters
    ----------
    w : (n_out, n_in) float32 or float64
        Weight of y = x w^T; finite.
    gram : Gram of n_in features, (n_in, n_in) array X^T X, or Factor
        Second moments of the layer's input; a :class:`Factor` of them serves several calls (its
        order and ridge then count).
    dtype : str
        An integer format: "int3", "int4", "uint4", "int8" ...
    group_size : int, optional
        One scale per row and this many inputs; default one scale per row (axis 0).
    symmetric : bool
        Symmetric or affine codes.
    method : {"mse", "minmax"}
        Scale from the range with the least error, each input weighed by what its error costs once
        the later columns have made up for it (the pivot R_kk^2 of H); or from the whole range.
    act_order : bool
        Inputs with the largest second moment first. Groups keep to neighbours in memory, their
        scales are then chosen before the rounding starts.
    damp : float
        Ridge on H as a fraction of its mean diagonal, >= 0.
    threads : int, optional
        Thread count; the codes do not depend on it.

    Returns
    -------
    QuantizedArray
        ``axis=0``, or ``axis=1`` with ``group_size``.

    Raises
    ------
    ArrayError
        NaN or infinity, shapes that do not fit, or H not positive definite (raise ``damp``).
    OptionError, DTypeError

    Notes
    -----
    Frantar et al., "GPTQ" (2022), in the form of LDLQ (Chee et al., 2023, theorem 6): with
    H = R R^T, R upper triangular, column k is rounded at
    w_k + sum_{i<k} (w_i - q_i) R_ik / R_kk. No inverse is formed. Cost: one Cholesky
    factorisation of H in float64 (BLAS) and n_out n_in^2 / 2 multiply-adds in float32. Rows are
    independent, so weights that meet the same input (query, key, value) may be stacked and share
    one factorisation.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.calibration import Gram
    >>> from fastopt.quantization import gptq, output_error, quantize
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((256, 4)) @ rng.standard_normal((4, 32))
    >>> w = rng.standard_normal((8, 32)).astype(np.float32)
    >>> gram = Gram(32).update(x)
    >>> plain = output_error(w, quantize(w, "int4", axis=0), gram)
    >>> output_error(w, gptq(w, gram, "int4"), gram) < 0.5 * plain
    True
    """
    a = as_array(w, "w", ndim=2, cast="float32")
    with np.errstate(over="ignore"):
        narrow = a.astype(np.float32, copy=False)  # the feedback is added up in float32
    check_finite(narrow, "w")
    fmt = format_of(dtype)
    if not fmt.affine:
        raise OptionError(f"dtype: GPTQ needs an integer format, got {fmt.name}")
    choice(method, "method", ("mse", "minmax"))
    ridge = number(damp, "damp", low=0.0)
    flag(symmetric, "symmetric")
    flag(act_order, "act_order")
    n_out, n = a.shape
    size = max(n, 1)
    if group_size is not None:
        size = min(integer(group_size, "group_size", low=1), size)
    if not isinstance(gram, Factor):
        gram = _factored(second_moment(gram, n), act_order, ridge)
    elif gram.n != n:
        raise ArrayError(f"gram: expected the factor of {n} features, got {gram.n}")
    order, panels, cost = gram.order, gram.panels, gram.cost
    rule = RangeRule.of(fmt, symmetric=symmetric)
    if method == "minmax":  # no narrower ranges are tried
        rule = rule._replace(wide=rule.wide[:0], near=rule.near[:0])
    scale = np.ones((n_out, max(1, -(-n // size))), np.float32)
    zero = np.zeros_like(scale)
    code = np.empty(a.shape, np.int32)
    used = _threads.resolve(threads, n_out * n * n // 2, _SERIAL_BELOW)
    kernel.feedback(
        code, scale, zero, narrow, panels, order, cost, n_out, n, size, act_order, *rule, used,
    )  # fmt: skip
    codes = code.astype(fmt.storage)
    if fmt.packed:
        codes = pack_int4(codes, threads=threads)
    scale, zeros = scale.astype(a.dtype, copy=False), zero.astype(fmt.storage)
    if group_size is None:
        rows = (scale.reshape(-1), zeros.reshape(-1))
        return QuantizedArray(codes, *rows, fmt.name, a.shape, 0, None, symmetric)
    return QuantizedArray(codes, scale, zeros, fmt.name, a.shape, 1, size, symmetric)


def output_error(w: Any, q: Any, gram: Any) -> float:
    """Relative change of the layer's output, ||(W - Q) X^T|| / ||W X^T||, from the Gram alone.

    Parameters
    ----------
    w : (n_out, n_in) array
        Weight.
    q : QuantizedArray or array of the same shape
        What stands in for it.
    gram : Gram or (n_in, n_in) array X^T X
        Second moments of the input.

    Returns
    -------
    float
        0 for an exact stand-in.

    Raises
    ------
    ArrayError, DTypeError
        Shapes do not fit, or the Gram has seen no rows.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.quantization import output_error
    >>> w = np.array([[1.0, 2.0]], np.float32)
    >>> output_error(w, w, np.eye(2)), output_error(w, 0 * w, np.eye(2))
    (0.0, 1.0)
    """
    a = as_array(w, "w", ndim=2, cast="float64").astype(np.float64)
    b = as_array(q, "q", ndim=2, cast="float64").astype(np.float64)
    if a.shape != b.shape:
        raise ArrayError(f"q: expected shape {a.shape}, got {b.shape}")
    second = second_moment(gram, a.shape[1])

    def energy(m: Array) -> float:  # tr(m S m^T); NumPy computes one triangle of m^T m
        return max(float(np.vdot(second, m.T @ m)), 0.0)

    whole, lost = energy(a), energy(a - b)
    if whole == 0.0:
        return 0.0 if lost == 0.0 else float("inf")
    return float(np.sqrt(lost / whole))


def _factor(second: Array, order: Array, damp: float) -> Array:
    """R, upper triangular with H + ridge = R R^T: the Cholesky factor of H read backwards.

    H is ``second`` in the given order. NumPy's factorisation runs at a fraction of its product's
    speed, so it gets the blocks on the diagonal only; what lies below their first row is undefined
    in R."""
    n = len(second)
    level = float(second.diagonal().mean()) if n else 1.0
    # a dead input (no variance) costs nothing; the 1e-8 only keeps the factor invertible
    ridge = (level if level > 0 else 1.0) * max(damp, 1e-8)
    back = order[::-1]
    in_order = bool((back[:-1] > back[1:]).all())
    lower = second[::-1, ::-1].copy() if in_order else second[np.ix_(back, back)]
    lower[np.diag_indices(n)] += ridge
    try:
        for k in range(0, n, _BLOCK):
            own, rest = slice(k, k + _BLOCK), slice(k + _BLOCK, None)
            lower[k:, own] -= lower[k:, :k] @ lower[own, :k].T
            lower[own, own] = np.linalg.cholesky(lower[own, own])
            lower[rest, own] = lower[rest, own] @ np.linalg.inv(lower[own, own]).T
    except np.linalg.LinAlgError:
        raise ArrayError("gram: is not positive definite; raise damp or pass more data") from None
    result: Array = lower[::-1, ::-1]
    return result


def _panels(factor: Array) -> Array:
    """R_ik / R_kk above the diagonal, in panels of 8 columns; the rest is undefined."""
    n, width = len(factor), kernel.COLS
    panels = np.empty((-(-n // width), n, width), np.float32)
    pivot = factor.diagonal()
    for k in range(0, n, width):
        stop = min(k + width, n)
        out = panels[k // width, :stop, : stop - k]
        np.divide(factor[:stop, k:stop], pivot[k:stop], out=out, casting="same_kind")
    return panels
