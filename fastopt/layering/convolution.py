"""One convolution as several thinner ones: Tucker-2, CP and depthwise-separable."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, check_finite
from fastopt._interrupts import interruptible
from fastopt._options import integer, number
from fastopt.errors import ArrayError, OptionError

__all__ = ["split_convolution", "split_cp", "split_depthwise"]

_SWEEPS = 10  # of Tucker's alternating least squares; the error rarely moves after five
_CP_SWEEPS = 500  # of CP's, which go on until the fit changes by less than _CP_CHANGE per sweep
_CP_CHANGE = 1e-10
_CP_RIDGE = 1e-10  # of the mean diagonal: keeps nearly parallel components solvable


def split_convolution(
    w: Any, ranks: tuple[int, int] | None = None, *, energy: float | None = None
) -> tuple[Array, Array, Array]:
    """w ~ core x_out U x_in V: a convolution as 1x1 (V), k x k (core), 1x1 (U).

    Parameters
    ----------
    w : (n_out, n_in, ...) float32 or float64
        The weight of a convolution with one group, any number of kernel axes. Not changed.
    ranks : (int, int), optional
        Channels (out, in) of the core, 1..n_out and 1..n_in.
    energy : float, optional
        Instead of ``ranks``: the smallest ranks that keep this share, 0..1, of the squared
        singular values of each of the two unfoldings.

    Returns
    -------
    first : (r_in, n_in, 1, ...) array
        Runs first.
    core : (r_out, r_in, ...) array
        Takes the stride, padding and dilation of the original.
    last : (n_out, r_out, 1, ...) array
        Takes the bias.

    Raises
    ------
    DTypeError, ArrayError, OptionError
        A bad argument, NaN or infinity in ``w``, both or neither of ranks and energy.

    Notes
    -----
    Tucker-2 by higher-order orthogonal iteration (Kim et al., "Compression of deep convolutional
    neural networks for fast and low power mobile applications", 2016; De Lathauwer, De Moor and
    Vandewalle, 2000, algorithm 4.2). Full ranks are lossless. Computed in float64.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.layering import split_convolution
    >>> w = np.random.default_rng(0).standard_normal((6, 4, 3, 3))
    >>> first, core, last = split_convolution(w, (6, 4))
    >>> back = np.einsum("oa,abhw,bi->oihw", last[:, :, 0, 0], core, first[:, :, 0, 0])
    >>> bool(np.allclose(back, w))
    True
    """
    weight = _kernel(w)
    n_out, n_in = weight.shape[:2]
    if (ranks is None) == (energy is None):
        raise OptionError("ranks: give either ranks or energy")
    wide = weight.astype(np.float64).reshape(n_out, n_in, -1)
    left = _leading(wide, 0)
    right = _leading(wide, 1)
    if ranks is None:
        share = number(energy, "energy", low=0.0, high=1.0)
        r_out, r_in = (_rank(values, share) for values, _ in (left, right))
    else:
        if not isinstance(ranks, (tuple, list)) or len(ranks) != 2:
            raise OptionError(f"ranks: expected two integers (out, in), got {ranks!r}")
        r_out = integer(ranks[0], "ranks[0]", low=1, high=n_out)
        r_in = integer(ranks[1], "ranks[1]", low=1, high=n_in)
    u, v = left[1][:, :r_out], right[1][:, :r_in]
    for _ in range(_SWEEPS):
        u = _leading(np.einsum("oik,ib->obk", wide, v), 0)[1][:, :r_out]
        v = _leading(np.einsum("oik,oa->aik", wide, u), 1)[1][:, :r_in]
    core = np.einsum("oik,oa,ib->abk", wide, u, v, optimize=True)
    ones = (1,) * (weight.ndim - 2)
    return (
        np.ascontiguousarray(v.T.reshape(r_in, n_in, *ones), weight.dtype),
        np.ascontiguousarray(core.reshape(r_out, r_in, *weight.shape[2:]), weight.dtype),
        np.ascontiguousarray(u.reshape(n_out, r_out, *ones), weight.dtype),
    )


def split_cp(w: Any, rank: int) -> tuple[Array, ...]:
    """w[o, i, a, b, ...] ~ sum_r last[o, r] A[r, a] B[r, b] ... first[r, i].

    A convolution as 1x1, one depthwise convolution per kernel axis (k x 1, then 1 x k), 1x1.

    Parameters
    ----------
    w : (n_out, n_in, ...) float32 or float64
        The weight of a convolution with one group, one or more kernel axes. Not changed.
    rank : int
        Channels between the parts, 1 or more.

    Returns
    -------
    first : (rank, n_in, 1, ...) array
        Runs first.
    *depths : (rank, 1, ...) arrays, one per kernel axis
        Convolutions with ``groups=rank``, each with the kernel size, stride, padding and dilation
        of its own axis and 1, 1, 0, 1 on the others.
    last : (n_out, rank, 1, ...) array
        Takes the bias.

    Raises
    ------
    DTypeError, ArrayError, OptionError
        A bad argument, or NaN or infinity in ``w``.

    Notes
    -----
    Alternating least squares (Kolda and Bader, "Tensor decompositions and applications", 2009,
    figure 3.3; Lebedev et al., "Speeding-up convolutional neural networks using fine-tuned
    CP-decomposition", 2015), begun at the leading vectors of each unfolding and extrapolated along
    each sweep (Bro, "Multi-way analysis in the food industry", 1998, section 4.5.1). The best
    rank-r approximation need not exist, so a result is a local optimum; the same ``w`` gives the
    same result. Computed in float64; a sweep costs about 2 rank * w.size operations per axis.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.layering import split_cp
    >>> w = np.einsum("o,i,a,b->oiab", *(np.arange(1.0, n) for n in (7, 5, 4, 4)))
    >>> first, rows, columns, last = split_cp(w, 1)
    >>> first.shape, rows.shape, columns.shape, last.shape
    ((1, 4, 1, 1), (1, 1, 3, 1), (1, 1, 1, 3), (6, 1, 1, 1))
    >>> back = np.einsum("or,ri,ra,rb->oiab", last[..., 0, 0], first[..., 0, 0],
    ...                  rows[:, 0, :, 0], columns[:, 0, 0])
    >>> bool(np.allclose(back, w))
    True
    """
    weight = _kernel(w)
    r = integer(rank, "rank", low=1, high=2**20)
    largest = float(np.abs(weight).max()) or 1.0
    whole = weight.astype(np.float64) / largest
    factors = interruptible(2.0 * r * whole.size * whole.ndim * _CP_SWEEPS, _polyadic, whole, r)
    left, right, *kernels = factors
    ones = (1,) * (weight.ndim - 2)
    depths = [
        k.T.reshape(r, 1, *ones[:axis], len(k), *ones[axis + 1 :])
        for axis, k in enumerate(kernels)
    ]
    parts = [
        right.T.reshape(r, -1, *ones),
        *depths,
        (left * largest).reshape(-1, r, *ones),
    ]
    return tuple(np.ascontiguousarray(p, weight.dtype) for p in parts)


def _polyadic(w: Array, r: int) -> list[Array]:
    """The factors (n_axis, r) of w, one per axis, by alternating least squares."""
    rng = np.random.default_rng(0)  # only fills up columns beyond an axis' length
    factors = []
    for axis in range(w.ndim):
        start = rng.standard_normal((w.shape[axis], r)) / np.sqrt(w.shape[axis])
        vectors = _leading(w, axis)[1][:, :r]
        start[:, : vectors.shape[1]] = vectors
        factors.append(start)
    axes = list(range(w.ndim))
    unfolded = [np.moveaxis(w, a, 0).reshape(w.shape[a], -1) for a in axes]
    square, least = float(np.square(w).sum()), np.inf
    kept = factors
    for sweep in range(_CP_SWEEPS):
        start = factors
        factors = list(factors)
        for axis in axes:
            others = [a for a in axes if a != axis]
            gram = np.ones((r, r))
            for a in others:
                gram *= factors[a].T @ factors[a]
            ridge = _CP_RIDGE * np.trace(gram) / r + np.finfo(float).tiny
            columns = factors[others[0]]  # the Khatri-Rao product of the other factors
            for a in others[1:]:
                columns = (columns[:, None] * factors[a]).reshape(-1, r)
            product = unfolded[axis] @ columns
            factors[axis] = np.linalg.solve(gram + ridge * np.eye(r), product.T).T
        last = factors[-1]
        # |w - fit|^2 = |w|^2 - 2 <w, fit> + |fit|^2
        error = square - 2 * float((product * last).sum()) + float((gram * (last.T @ last)).sum())
        if error > least:  # the extrapolation went too far
            factors = kept
            continue
        kept, settled, least = factors, least - error < _CP_CHANGE * square, error
        if settled:
            break
        stride = (sweep + 1) ** (1 / 3) - 1  # Bro, 1998, section 4.5.1
        factors = [f + stride * (f - g) for f, g in zip(factors, start, strict=True)]
    sizes = [np.linalg.norm(f, axis=0) for f in kept]
    whole = np.prod(sizes, axis=0)
    factors = [f / np.where(size > 0, size, 1.0) for f, size in zip(kept, sizes, strict=True)]
    for axis in (0, 1):  # the sizes of the components, shared by the first and the last part
        factors[axis] = factors[axis] * np.sqrt(whole)
    return factors


def split_depthwise(w: Any, multiplier: int = 1) -> tuple[Array, Array]:
    """w[o, i, :] ~ sum_m point[o, (i, m)] depth[(i, m), :]: depthwise, then 1x1.

    Parameters
    ----------
    w : (n_out, n_in, ...) float32 or float64
        The weight of a convolution with one group. Not changed.
    multiplier : int
        Depthwise kernels per input channel, 1..min(prod(kernel shape), n_out); the largest is
        lossless.

    Returns
    -------
    depth : (n_in * multiplier, 1, ...) array
        A convolution with ``groups=n_in``; runs first and takes stride, padding and dilation.
    point : (n_out, n_in * multiplier, 1, ...) array
        The 1x1 convolution that takes the bias.

    Raises
    ------
    DTypeError, ArrayError, OptionError
        A bad argument, or NaN or infinity in ``w``.

    Notes
    -----
    The least-squares answer: a singular value decomposition per input channel (Guo et al.,
    "Network decoupling: from regular to depthwise separable convolutions", 2018).

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.layering import split_depthwise
    >>> w = np.random.default_rng(0).standard_normal((6, 4, 3, 3))
    >>> depth, point = split_depthwise(w, 2)
    >>> depth.shape, point.shape
    ((8, 1, 3, 3), (6, 8, 1, 1))
    """
    weight = _kernel(w)
    n_out, n_in, *window = weight.shape
    taps = int(np.prod(window))
    m = integer(multiplier, "multiplier", low=1, high=max(1, min(taps, n_out)))
    planes = weight.astype(np.float64).reshape(n_out, n_in, taps).transpose(1, 0, 2)
    u, values, vt = np.linalg.svd(planes, full_matrices=False)
    root = np.sqrt(values[:, :m])
    depth = (vt[:, :m] * root[:, :, None]).reshape(n_in * m, 1, *window)
    point = (u[:, :, :m] * root[:, None, :]).transpose(1, 0, 2)
    point = point.reshape(n_out, n_in * m, *(1,) * len(window))
    return (
        np.ascontiguousarray(depth, weight.dtype),
        np.ascontiguousarray(point, weight.dtype),
    )


def _kernel(w: Any) -> Array:
    weight = as_array(w, "w")
    if weight.ndim < 3 or not weight.size:
        raise ArrayError(
            f"w: expected a convolution's weight (n_out, n_in, ...), got shape {weight.shape}"
        )
    check_finite(weight, "w")
    return weight


def _leading(w: Array, axis: int) -> tuple[Array, Array]:
    """(squared singular values descending, left vectors) of the unfolding along ``axis``."""
    unfolded = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
    values, vectors = interruptible(
        10.0 * len(unfolded) ** 3, np.linalg.eigh, unfolded @ unfolded.T
    )
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def _rank(power: Array, share: float) -> int:
    total = float(power.sum())
    return int(np.argmax(np.cumsum(power) >= share * total * (1 - 1e-12))) + 1 if total else 1
