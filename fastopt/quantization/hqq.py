"""HQQ: half-quadratic quantisation, scales and zero points fitted to a robust norm, no data."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastopt._arrays import Array, as_array, check_finite
from fastopt._options import flag, integer, number
from fastopt.errors import OptionError
from fastopt.quantization.array import QuantizedArray
from fastopt.quantization.choose_qparams import choose_qparams
from fastopt.quantization.formats import Format, format_of
from fastopt.quantization.packing import pack_int4

__all__ = ["hqq"]

_PIECE = 1 << 16  # elements of a temporary, which stays in the cache


def hqq(
    w: Any,
    dtype: str | Format = "uint4",
    *,
    group_size: int | None = 64,
    symmetric: bool = False,
    p: float = 0.7,
    steps: int = 20,
    threads: int | None = None,
) -> QuantizedArray:
    """Codes that minimise sum |w - dequantise(q)|^p, p < 1, without any data.

    Parameters
    ----------
    w : (n_out, n_in) float32 or float64
        Weight; finite.
    dtype : str
        An integer format.
    group_size : int, optional
        Weights of a row that share a scale; None: a whole row.
    symmetric : bool
        Symmetric codes, or affine ones.
    p : float
        In (0, 1]: the smaller, the more the few large errors are left out of account.
    steps : int
        Half-quadratic steps, >= 0.
    threads : int, optional
        Thread count of the first range search.

    Returns
    -------
    QuantizedArray

    Raises
    ------
    OptionError
        ``dtype`` is no integer format.

    Notes
    -----
    Badri and Shaji, "Half-Quadratic Quantization" (2023): alternate the proximal step of the l_p
    norm on the error, e = shrink(w - r), with a closed-form fit to w - e. There the fit moves a
    real zero point; here zero points are codes, so it moves the scale (least squares in each
    group) and the zero point is rounded. The best of all steps is kept: never worse in l_p than
    the start, the min-max range.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import hqq
    >>> w = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    >>> hqq(w).error(w) < 0.15
    True
    """
    a = as_array(w, "w", ndim=2, cast="float32")
    check_finite(a, "w")
    fmt = format_of(dtype)
    if not fmt.affine:
        raise OptionError(f"dtype: HQQ needs an integer format, got {fmt.name}")
    flag(symmetric, "symmetric")
    norm = number(p, "p", low=0.0, high=1.0, low_open=True)
    count = integer(steps, "steps", low=0)
    n = a.shape[1]
    size = n if group_size is None else integer(group_size, "group_size", low=1)
    size = max(1, min(size, max(n, 1)))
    start = choose_qparams(
        a, fmt, axis=1, group_size=size, symmetric=symmetric, method="minmax", threads=threads
    )
    groups = -(-n // size)
    codes = np.zeros((len(a), groups, size), fmt.storage)
    scale, zero = start.scale.copy(), start.zero_point.astype(a.dtype)
    real = (np.arange(groups * size) < n).reshape(groups, size)  # not the last group's padding
    fit = _Fit(real, fmt.limits(symmetric), None if symmetric else (fmt.qmin, fmt.qmax), norm)
    rows = max(1, _PIECE // max(1, groups * size))
    for first in range(0, len(a) if n else 0, rows):
        part = slice(first, first + rows)
        x = np.zeros((len(a[part]), groups * size), a.dtype)
        x[:, :n] = a[part]
        found = fit.run(x.reshape(-1, groups, size), scale[part], zero[part], count)
        codes[part], scale[part], zero[part] = found
    stored = np.ascontiguousarray(codes.reshape(len(a), groups * size)[:, :n])
    if fmt.packed:
        stored = pack_int4(stored, threads=threads)
    final = (stored, scale, zero.astype(fmt.storage))
    if group_size is None:
        rows = (final[0], final[1].reshape(-1), final[2].reshape(-1))
        return QuantizedArray(*rows, fmt.name, a.shape, 0, None, symmetric)
    return QuantizedArray(*final, fmt.name, a.shape, 1, size, symmetric)


class _Fit(NamedTuple):
    """Half-quadratic steps on rows cut into groups, (rows, groups, size)."""

    real: Array
    limits: tuple[int, int]
    zeros: tuple[int, int] | None  # range of the zero points, None where they are fixed
    norm: float

    def run(self, x: Array, scale: Array, zero: Array, steps: int) -> tuple[Array, Array, Array]:
        """Codes, scales and zero points, the best of all steps."""
        tiny, width = np.finfo(x.dtype).tiny, self.real.sum(axis=1)
        codes = self._codes(x, scale, zero)
        error, power, best = self._lost(x, scale, zero, codes)
        best_scale, best_zero, beta = scale, zero, 10.0
        for _ in range(steps):
            shrunk = np.maximum(np.abs(error) - power / beta, 0.0)
            target = x - scale[..., None] * np.copysign(shrunk, error)
            level = codes - zero[..., None]
            top = (level * target).sum(axis=2)
            bottom = (level * level).sum(axis=2)
            fits = (bottom > 0) & (top > 0)
            scale = np.maximum(np.where(fits, top / np.where(fits, bottom, 1), scale), tiny)
            codes = self._codes(x, scale, zero)
            if self.zeros is not None:
                middle = ((codes - target / scale[..., None]) * self.real).sum(axis=2) / width
                zero = np.clip(np.rint(middle), *self.zeros).astype(x.dtype)
                codes = self._codes(x, scale, zero)
            error, power, now = self._lost(x, scale, zero, codes)
            better = now < best
            best = np.where(better, now, best)
            best_scale = np.where(better, scale, best_scale)
            best_zero = np.where(better, zero, best_zero)
            beta *= 1.01
        return self._codes(x, best_scale, best_zero), best_scale, best_zero

    def _codes(self, x: Array, scale: Array, zero: Array) -> Array:
        codes = x / scale[..., None]
        np.rint(codes, out=codes)
        codes += zero[..., None]
        return np.clip(codes, *self.limits, out=codes)

    def _lost(
        self, x: Array, scale: Array, zero: Array, codes: Array
    ) -> tuple[Array, Array, Array]:
        """The errors e in steps, so that beta has no unit; |e|^(p - 1); the sums of |s e|^p."""
        error = x / scale[..., None] - (codes - zero[..., None])
        far = np.abs(error)
        power = np.maximum(far, 1e-12) ** (self.norm - 1.0)
        return error, power, (far * power * self.real).sum(axis=2) * scale**self.norm
