"""GPTQ: weights rounded column by column, each making up for the errors of those before it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array, check_finite
from fastopt._kernels import gptq as kernel
from fastopt._options import choice, integer, number
from fastopt.errors import ArrayError, OptionError
from fastopt.quantization.array import QuantizedArray
from fastopt.quantization.clipping import mse_range, second_moment
from fastopt.quantization.formats import Format, format_of
from fastopt.quantization.packing import pack_int4
from fastopt.quantization.qparams import qparams_from_range

__all__ = ["gptq", "output_error"]

_SERIAL_BELOW = 1 << 20  # multiply-adds


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
    gram : Gram of n_in features, or (n_in, n_in) array X^T X
        Second moments of the layer's input.
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
    factorisation of H in float64 (LAPACK) and n_out n_in^2 / 2 multiply-adds in float32.

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
    check_finite(a, "w")
    fmt = format_of(dtype)
    if fmt.kind != "int":
        raise OptionError(f"dtype: GPTQ needs an integer format, got {fmt.name}")
    choice(method, "method", ("mse", "minmax"))
    ridge = number(damp, "damp", low=0.0)
    n_out, n = a.shape
    size = n if group_size is None else min(integer(group_size, "group_size", low=1), max(n, 1))
    second = second_moment(gram, n)
    order = np.argsort(-second.diagonal(), kind="stable") if act_order else np.arange(n)
    factor = _factor(second[np.ix_(order, order)], ridge)
    cost = factor.diagonal() ** 2

    tiles = -(-n_out // kernel.ROWS)
    weight = _tiled(a[:, order].astype(np.float32), tiles)
    panels = _panels(factor)
    code = np.zeros(weight.shape, np.int32)
    error = np.zeros_like(weight)
    target = weight.copy()
    groups = max(1, -(-n // size))
    group = order // size
    scale = np.ones((tiles, groups, kernel.ROWS), np.float32)
    zero = np.zeros_like(scale)
    low, high = fmt.limits(symmetric)
    used = _threads.resolve(threads, n_out * n * n // 2, _SERIAL_BELOW)

    def choose(g: int, columns: Array, importance: Array) -> None:
        """Scale and zero point of group g from its columns (n_out, columns)."""
        ends = (columns.min(axis=1, initial=0.0), columns.max(axis=1, initial=0.0))
        if method == "mse":
            ends = mse_range(
                columns,
                importance[None],
                *ends,
                fmt,
                symmetric=symmetric,
                wide=False,
                threads=threads,
            )
        ends32 = (ends[0].astype(np.float32), ends[1].astype(np.float32))
        chosen = qparams_from_range(*ends32, fmt, symmetric=symmetric)
        scale[:, g] = _tiled(chosen.scale[:, None], tiles, fill=1.0)[:, 0]
        zero[:, g] = _tiled(chosen.zero_point[:, None].astype(np.float32), tiles)[:, 0]

    if act_order:
        place = np.empty(n)
        place[order] = cost
        for g in range(groups):
            columns = slice(g * size, (g + 1) * size)
            choose(g, np.ascontiguousarray(a[:, columns], np.float32), place[columns])
        bounds = [(0, n)]
    else:
        bounds = [(k, min(k + size, n)) for k in range(0, n, size)]
    for k0, k1 in bounds:
        if k0:
            kernel.target(target, error, weight, panels, tiles, n, k0, k1, used)
        if not act_order:
            choose(k0 // size, _untiled(target[:, k0:k1], n_out), cost[k0:k1])
        kernel.round_columns(
            code,
            error,
            target,
            weight,
            panels,
            scale,
            zero,
            group,
            tiles,
            n,
            k0,
            k1,
            low,
            high,
            used,
        )

    codes = np.empty((n_out, n), fmt.storage)
    codes[:, order] = _untiled(code, n_out)
    if fmt.packed:
        codes = pack_int4(codes, threads=threads)
    scales = _untiled(scale, n_out).astype(a.dtype)
    zeros = _untiled(zero, n_out).astype(fmt.storage)
    if group_size is None:
        return QuantizedArray(
            codes, scales[:, 0].copy(), zeros[:, 0].copy(), fmt.name, a.shape, 0, None, symmetric
        )
    return QuantizedArray(codes, scales, zeros, fmt.name, a.shape, 1, size, symmetric)


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
    """
    a = as_array(w, "w", ndim=2, cast="float64").astype(np.float64)
    b = np.asarray(q, dtype=np.float64)
    if a.shape != b.shape:
        raise ArrayError(f"q: expected shape {a.shape}, got {b.shape}")
    second = second_moment(gram, a.shape[1])

    def energy(m: Array) -> float:
        return max(float(np.einsum("ij,ij->", m @ second, m)), 0.0)

    whole, lost = energy(a), energy(a - b)
    if whole == 0.0:
        return 0.0 if lost == 0.0 else float("inf")
    return float(np.sqrt(lost / whole))


def _factor(second: Array, damp: float) -> Array:
    """R, upper triangular with H + ridge = R R^T: the Cholesky factor of H read backwards."""
    n = len(second)
    level = float(second.diagonal().mean()) if n else 1.0
    # a dead input (no variance) costs nothing; the 1e-8 only keeps the factor invertible
    ridge = (level if level > 0 else 1.0) * max(damp, 1e-8)
    backwards = second[::-1, ::-1].copy()
    backwards[np.diag_indices(n)] += ridge
    try:
        lower = np.linalg.cholesky(backwards)
    except np.linalg.LinAlgError:
        raise ArrayError("gram: is not positive definite; raise damp or pass more data") from None
    return lower[::-1, ::-1]


def _panels(factor: Array) -> Array:
    """R_ik / R_kk above the diagonal, in panels of 8 columns."""
    n = len(factor)
    count = -(-n // kernel.COLS)
    unit = np.zeros((n, count * kernel.COLS), np.float32)
    np.divide(factor, factor.diagonal(), out=unit[:, :n], casting="same_kind")
    np.fill_diagonal(unit, 0.0)
    return np.ascontiguousarray(unit.reshape(n, count, kernel.COLS).transpose(1, 0, 2))


def _tiled(a: Array, tiles: int, fill: float = 0.0) -> Array:
    """(rows, n) as (tiles, n, ROWS), the last tile filled up."""
    padded = np.full((tiles * kernel.ROWS, a.shape[1]), fill, np.float32)
    padded[: len(a)] = a
    return np.ascontiguousarray(padded.reshape(tiles, kernel.ROWS, a.shape[1]).transpose(0, 2, 1))


def _untiled(a: Array, rows: int) -> Array:
    """The inverse of _tiled."""
    tiles, n, lanes = a.shape
    return np.ascontiguousarray(a.transpose(0, 2, 1).reshape(tiles * lanes, n)[:rows])
