"""Scales before and beyond rounding: SmoothQuant, AWQ and half-quadratic quantisation (HQQ)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastopt._arrays import Array, as_array, check_finite
from fastopt._options import choice, flag, integer, number
from fastopt.errors import ArrayError, OptionError
from fastopt.quantization.array import QuantizedArray
from fastopt.quantization.clipping import second_moment
from fastopt.quantization.feedback import output_error
from fastopt.quantization.formats import Format, format_of
from fastopt.quantization.functions import quantize
from fastopt.quantization.packing import pack_int4
from fastopt.quantization.qparams import METHODS, choose_qparams

__all__ = ["AWQ", "Smoothed", "awq", "hqq", "smoothquant"]

_PIECE = 1 << 16  # elements of a temporary of HQQ, which stays in the cache
_SAMPLE = 128  # outputs by which AWQ ranks its exponents


class Smoothed(NamedTuple):
    """A weight whose inputs are rescaled: x W^T = (x / scale) weight^T.

    Attributes
    ----------
    weight : (n_out, n_in) array
        W times scale.
    scale : (n_in,) array
        What the layer's input is divided by (fold it into the layer before).
    """

    weight: Array
    scale: Array


class AWQ(NamedTuple):
    """A quantised weight whose inputs are rescaled: x W^T ~ (x / scale) weight^T.

    Attributes
    ----------
    weight : QuantizedArray
        Codes of W times scale.
    scale : (n_in,) array
        What the layer's input is divided by.
    alpha : float
        The exponent chosen.
    error : float
        Relative change of the layer's output.
    """

    weight: QuantizedArray
    scale: Array
    alpha: float
    error: float


def smoothquant(w: Any, act_absmax: Any, *, alpha: float = 0.5) -> Smoothed:
    """Move the difficulty from activations to weights: s_j = max|x_j|^a / max_i|w_ij|^(1-a).

    Parameters
    ----------
    w : (n_out, n_in) float32 or float64
        Weight of y = x w^T.
    act_absmax : (n_in,) array, or an observer with one range per input feature
        Largest magnitude of each input.
    alpha : float
        In [0, 1]: 0 leaves the weights' ranges equal, 1 the activations'.

    Returns
    -------
    Smoothed
        (weight, scale), in w's dtype. An input that is always zero, or whose weights are, keeps
        scale 1.

    Notes
    -----
    Xiao et al., "SmoothQuant" (2022), equation 4. The product is unchanged up to rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import smoothquant
    >>> weight, scale = smoothquant(np.array([[1.0, 1.0]]), np.array([16.0, 1.0]))
    >>> scale.tolist(), weight.tolist()
    ([4.0, 1.0], [[4.0, 1.0]])
    """
    a = as_array(w, "w", ndim=2, cast="float32")
    check_finite(a, "w")
    if hasattr(act_absmax, "min_") and hasattr(act_absmax, "max_"):
        act_absmax = np.maximum(-act_absmax.min_, act_absmax.max_)
    top = as_array(act_absmax, "act_absmax", cast="float64", shape=(a.shape[1],))
    check_finite(top, "act_absmax")
    if (top < 0).any():
        raise ArrayError("act_absmax: holds negative values; a magnitude is >= 0")
    power = number(alpha, "alpha", low=0.0, high=1.0)
    ours = np.abs(a).max(axis=0, initial=0.0).astype(np.float64)
    live = (top > 0) & (ours > 0)
    scale = np.ones(a.shape[1])
    scale[live] = top[live] ** power / ours[live] ** (1.0 - power)
    scale = np.clip(scale, 1e-5, 1e5).astype(a.dtype)
    return Smoothed(a * scale, scale)


def awq(
    w: Any,
    gram: Any,
    dtype: str | Format = "int4",
    *,
    group_size: int | None = None,
    symmetric: bool = True,
    method: str = "minmax",
    steps: int = 20,
    threads: int | None = None,
) -> AWQ:
    """Scale of each input that protects the weights it meets: s_j = rms(x_j)^a, a searched.

    Parameters
    ----------
    w : (n_out, n_in) float32 or float64
        Weight of y = x w^T; finite.
    gram : Gram of n_in features, or (n_in, n_in) array X^T X
        Second moments of the layer's input.
    dtype, group_size, symmetric, method, threads
        As in :func:`fastopt.quantize` (one scale per row without ``group_size``).
    steps : int
        Exponents tried: 0, 1 / steps, ... below 1.

    Returns
    -------
    AWQ
        (weight, scale, alpha, error); a = 0 is plain rounding, so the error is never larger.

    Notes
    -----
    Lin et al., "AWQ" (2023), equations 4 and 5, with two changes that the Gram allows: the root
    mean square stands for the mean magnitude, and the loss is the output error
    tr((W - Q) X^T X (W - Q)^T) over all inputs, of about 128 outputs; the exponent that wins there
    is compared with a = 0 on all outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.calibration import Gram
    >>> from fastopt.quantization import awq
    >>> rng = np.random.default_rng(0)
    >>> gram = Gram(8).update(rng.standard_normal((99, 8)) * [20, 1, 1, 1, 1, 1, 1, 1])
    >>> awq(rng.standard_normal((4, 8)), gram).alpha > 0
    True
    """
    a = as_array(w, "w", ndim=2, cast="float32")
    check_finite(a, "w")
    second = second_moment(gram, a.shape[1])
    count = integer(steps, "steps", low=1)
    flag(symmetric, "symmetric")
    choice(method, "method", METHODS)
    rms = np.sqrt(second.diagonal())
    live = rms > 0
    axis = 0 if group_size is None else 1
    options: dict[str, Any] = {"symmetric": symmetric, "method": method, "threads": threads}

    def scale_of(alpha: float) -> Array:
        scale = np.ones(a.shape[1])
        scale[live] = rms[live] ** alpha
        if live.any():
            scale[live] /= np.sqrt(scale[live].max() * scale[live].min())
        return np.clip(scale, 1e-4, 1e4).astype(a.dtype)

    def rounded(rows: Array, scale: Array) -> tuple[QuantizedArray, Array]:
        """Codes of the rows times scale, and the values that they stand for."""
        q = quantize(rows * scale, dtype, axis=axis, group_size=group_size, **options)
        return q, q.dequantize(threads=threads) / scale

    # rank by a sample of the outputs, all in one product: threads of the rounding and threads of
    # the BLAS that take turns would wait for each other
    sample = a[:: max(1, len(a) // _SAMPLE)]
    lost = np.empty((count, *sample.shape), np.float32)
    for i in range(count):
        lost[i] = sample - rounded(sample, scale_of(i / count))[1]
    flat = lost.reshape(-1, a.shape[1])
    weighed = flat @ second.astype(np.float32)
    errors = np.einsum("ij,ij->i", weighed, flat).reshape(count, -1).sum(axis=1, dtype=np.float64)
    found = []
    for i in sorted({0, int(errors.argmin())}):
        scale = scale_of(i / count)
        q, values = rounded(a, scale)
        found.append(AWQ(q, scale, i / count, output_error(a, values, second)))
    return min(found, key=lambda each: each.error)


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
    if fmt.kind != "int":
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
