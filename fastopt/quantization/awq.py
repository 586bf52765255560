"""AWQ: inputs that are large on average get finer weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastopt._arrays import Array, as_array, check_finite
from fastopt._options import choice, flag, integer
from fastopt.quantization.array import QuantizedArray
from fastopt.quantization.choose_qparams import METHODS
from fastopt.quantization.clipping import second_moment
from fastopt.quantization.formats import Format
from fastopt.quantization.gptq import output_error
from fastopt.quantization.quantize import quantize

__all__ = ["AWQ", "awq"]

_SAMPLE = 128  # outputs by which the exponents are ranked


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

    # Rank by a sample of the outputs in one product: alternating between the threads of the
    # rounding and those of BLAS would make them wait for each other.
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
