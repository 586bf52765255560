"""What data says about the input of a layer, and the least squares that follow from it.

Wanda, OBS, SparseGPT, GPTQ, least-squares compensation, activation-aware SVD and merging all need
the same three things of a layer's input X: the row count, the mean and X^T X.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, as_ndarray
from fastopt._interrupts import interruptible
from fastopt._options import integer, number
from fastopt.errors import ArrayError, ConcurrentUseError, DTypeError, FormatError

__all__ = ["Gram", "check_gram", "inverse", "refit", "solve"]

# Bytes of one float64 chunk: large enough for BLAS to run at full speed, small enough that the
# extra memory does not depend on the data.
_CHUNK_BYTES = 4 << 20


class Gram:
    """Streaming second moments of a layer's input: count, mean and X^T X, all in float64.

    Rows are added with :meth:`update`; two objects add up with ``+``, so a pass over data can be
    split over files, processes or machines: ``Gram(n).update(a) + Gram(n).update(b)`` has the same
    bits as ``Gram(n).update(a).update(b)``.

    Parameters
    ----------
    n : int
        Number of features (the length of a row).

    Attributes
    ----------
    n : int
        Number of features.
    count : int
        Rows seen.

    Notes
    -----
    Memory is 2 n^2 float64 and does not depend on the data. Time is one symmetric product (syrk)
    per chunk of about 4 MiB. Kept are the mean and the *centred* scatter
    S = sum (x - mean)(x - mean)^T, merged with the pairwise formula of Chan, Golub and LeVeque,
    "Updating formulae and a pairwise algorithm for computing sample variances" (1979), eq. 2.1, so
    a large mean costs no digits of the covariance. The products run in BLAS: equal calls give
    equal bits on one machine with one BLAS thread count.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.calibration import Gram
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])
    >>> g = Gram(2).update(x[:1]) + Gram(2).update(x[1:])
    >>> g.count, g.mean.tolist()
    (3, [3.0, 5.0])
    >>> bool(np.allclose(g.second, x.T @ x))
    True
    """

    def __init__(self, n: int) -> None:
        self.n = integer(n, "n", low=1, high=1 << 28)
        self.count = 0
        self._mean: Array = np.zeros(self.n)
        self._scatter: Array = np.zeros((self.n, self.n))
        self._busy = threading.Lock()

    def __repr__(self) -> str:
        return f"Gram(n={self.n}, count={self.count})"

    # ---------------------------------------------------------------- adding data
    def update(self, X: Any) -> Gram:
        """In place: add the rows of ``X``; S += sum (x - mean)(x - mean)^T over them.

        Parameters
        ----------
        X : (..., n) float32 or float64 (float16, bfloat16 and integers are converted)
            Activations; all leading axes count as rows. Not kept, not changed.

        Returns
        -------
        Gram
            Itself, so calls chain.

        Raises
        ------
        ArrayError
            The last axis is not ``n``, or a value is NaN, infinite or has a square that overflows
            float64; nothing was added.
        ConcurrentUseError
            Another thread is inside a call of this object.
        """
        a = as_array(X, "X", cast="float64")
        if a.ndim < 2 or a.shape[-1] != self.n:
            raise ArrayError(f"X: expected shape (rows, {self.n}), got {a.shape}")
        rows = a.reshape(-1, self.n)
        if not self._busy.acquire(blocking=False):
            raise ConcurrentUseError("Gram: another thread is updating this object")
        try:
            count, mean, scatter = 0, np.zeros(self.n), np.zeros((self.n, self.n))
            step = max(1, _CHUNK_BYTES // (8 * self.n))
            with np.errstate(invalid="ignore", over="ignore"):
                for start in range(0, len(rows), step):
                    chunk = rows[start : start + step].astype(np.float64)
                    chunk_mean = chunk.mean(axis=0)
                    chunk -= chunk_mean
                    # the same array on both sides: NumPy calls syrk, half the work of gemm
                    product = chunk.T @ chunk
                    count = _merge(count, mean, scatter, len(chunk), chunk_mean, product)
            if not (np.isfinite(mean).all() and np.isfinite(scatter).all()):
                raise ArrayError("X: holds NaN, infinity or values whose squares overflow")
            self.count = _merge(self.count, self._mean, self._scatter, count, mean, scatter)
        finally:
            self._busy.release()
        return self

    def __add__(self, other: Gram) -> Gram:
        """The Gram of both objects' rows; neither is changed."""
        if not isinstance(other, Gram):
            return NotImplemented
        if other.n != self.n:
            raise ArrayError(f"other: expected a Gram of {self.n} features, got {other.n}")
        result = self.copy()
        result.count = _merge(
            result.count, result._mean, result._scatter, other.count, other._mean, other._scatter
        )
        return result

    def __radd__(self, other: Any) -> Gram:
        """``sum(grams)`` starts from the integer 0."""
        if isinstance(other, int) and other == 0:
            return self.copy()
        return NotImplemented

    # ---------------------------------------------------------------- reading
    @property
    def mean(self) -> Array:
        """Mean row, (n,) float64; zeros while ``count`` is 0. A copy."""
        result: Array = self._mean.copy()
        return result

    @property
    def second(self) -> Array:
        """X^T X, (n, n) float64, not centred and not divided by the count. A new array."""
        result: Array = np.multiply.outer(self._mean, self._mean)
        result *= self.count
        result += self._scatter
        return result

    @property
    def variance(self) -> Array:
        """Variance of each feature, (n,) float64 (divided by ``count``)."""
        result: Array = self._scatter.diagonal() / max(1, self.count)
        return result

    def covariance(self, damp: float = 0.0) -> Array:
        """S / count + damp * mean(diag(S / count)) * I: the centred, damped second moment.

        Parameters
        ----------
        damp : float
            Ridge as a fraction of the mean variance, >= 0. 1e-3 to 1e-4 makes the matrix safely
            invertible when units are dead, duplicated or more than the rows.

        Returns
        -------
        (n, n) float64
            A new array. Where the variance is 0 for every feature, the ridge is ``damp`` itself.
        """
        ridge = number(damp, "damp", low=0.0)
        result: Array = self._scatter / max(1, self.count)
        if ridge:
            level = float(result.diagonal().mean())
            result[np.diag_indices(self.n)] += ridge * (level if level > 0 else 1.0)
        return result

    def take(self, index: Any) -> Gram:
        """The Gram of the features ``index`` only, in that order (after units were removed)."""
        given = as_ndarray(index, "index")
        if given.size and given.dtype.kind not in "iu":  # a mask is not an index
            raise DTypeError(f"index: expected integers, got {given.dtype}")
        wanted = as_array(given, "index", dtypes=("int64",), cast="int64", ndim=1)
        if wanted.size == 0 or wanted.min() < 0 or wanted.max() >= self.n:
            raise ArrayError(f"index: expected one or more values in 0..{self.n - 1}")
        result = Gram(wanted.size)
        result.count = self.count
        result._mean[:] = self._mean[wanted]
        result._scatter[:] = self._scatter[np.ix_(wanted, wanted)]
        return result

    # ---------------------------------------------------------------- plain data
    def copy(self) -> Gram:
        """An independent object of the same state."""
        result = Gram.__new__(Gram)
        result.__setstate__(self.__getstate__())
        return result

    def to_dict(self) -> dict[str, Any]:
        """The state as plain data: n, count, mean and scatter (NumPy float64 arrays, copies)."""
        return {
            "n": self.n,
            "count": self.count,
            "mean": self._mean.copy(),
            "scatter": self._scatter.copy(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Gram:
        """The object that :meth:`to_dict` came from, bit for bit.

        Raises
        ------
        FormatError
            A key is missing or a value has the wrong kind, shape or content.
        """
        if not isinstance(state, Mapping):
            raise DTypeError(f"state: expected a dict, got {type(state).__name__}")
        try:
            result = cls(state["n"])
            result.count = integer(state["count"], "count", low=0)
            n = result.n
            result._mean = as_array(state["mean"], "mean", cast="float64", shape=(n,)).astype(
                np.float64
            )
            result._scatter = as_array(
                state["scatter"], "scatter", cast="float64", shape=(n, n)
            ).astype(np.float64)
        except KeyError as error:
            raise FormatError(f"Gram state: key {error.args[0]!r} is missing") from None
        except (TypeError, ValueError) as error:
            raise FormatError(f"Gram state: {error}") from None
        if not (np.isfinite(result._mean).all() and np.isfinite(result._scatter).all()):
            raise FormatError("Gram state: holds NaN or infinity")
        if not np.allclose(result._scatter, result._scatter.T, rtol=1e-9):
            raise FormatError("Gram state: scatter is not symmetric")
        return result

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.n = state["n"]
        self.count = state["count"]
        self._mean = state["mean"]
        self._scatter = state["scatter"]
        self._busy = threading.Lock()


def check_gram(gram: Any, n: int | None = None, name: str = "gram") -> Gram:
    """``gram``, a Gram (of ``n`` features) that has seen data; else a typed error.

    Parameters
    ----------
    gram : Gram
        What is checked.
    n : int, optional
        The number of features wanted.
    name : str
        The argument's name in messages.

    Returns
    -------
    Gram

    Raises
    ------
    DTypeError
        Not a Gram.
    ArrayError
        Another number of features, or no rows seen.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.calibration import Gram, check_gram
    >>> check_gram(Gram(2).update(np.ones((3, 2))), n=2).count
    3
    """
    if not isinstance(gram, Gram):
        raise DTypeError(f"{name}: expected a fastopt.Gram, got {type(gram).__name__}")
    if n is not None and gram.n != n:
        raise ArrayError(f"{name}: expected a Gram of {n} features, got {gram!r}")
    if gram.count == 0:
        raise ArrayError(f"{name}: holds no rows; call gram.update(activations) first")
    return gram


def _merge(count: int, mean: Array, scatter: Array, more: int, mean_b: Array, add: Array) -> int:
    """In place: (count, mean, scatter) += (more, mean_b, add); returns the new count."""
    if more == 0:
        return count
    if count == 0:  # exactly the other side, so that adding chunks and adding Grams agree in bits
        mean[:], scatter[:] = mean_b, add
        return more
    total = count + more
    delta = mean_b - mean
    mean += delta * (more / total)
    scatter += add
    scatter += np.multiply.outer(delta, delta * (count * (more / total)))
    return total


def refit(gram: Gram, s: Array, w: Array, kept: Array) -> tuple[Array, Array, float]:
    """(w', bias shift, lost share of the output variance) with only the inputs ``kept``.

    Parameters
    ----------
    gram : Gram
        Second moments of the input.
    s : (n_in, n_in) float64
        Its covariance, usually damped.
    w : (n_out, n_in) float64
        The layer's weight.
    kept : (n_keep,) intp
        The inputs that stay.

    Returns
    -------
    fitted : (n_out, n_keep) float64
        W S_:K S_KK^-1.
    shift : (n_out,) float64
        To add to the bias: the mean output that the other inputs gave.
    lost : float
        0..1.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.calibration import Gram, refit
    >>> x = np.random.default_rng(0).standard_normal((50, 2))
    >>> x = np.column_stack([x, x[:, 0]])  # the third input repeats the first
    >>> gram = Gram(3).update(x)
    >>> fitted, shift, lost = refit(gram, gram.covariance(), np.ones((1, 3)), np.array([0, 1]))
    >>> fitted.round(6).tolist(), round(lost, 6)
    ([[2.0, 1.0]], 0.0)
    """
    fitted = solve(s[np.ix_(kept, kept)], s[kept] @ w.T).T
    mean = gram.mean
    shift = w @ mean - fitted @ mean[kept]
    change = w.copy()
    change[:, kept] -= fitted
    plain = gram.covariance()
    whole = float(np.einsum("ij,ij->", w, w @ plain))
    lost = float(np.einsum("ij,ij->", change, change @ plain))
    return fitted, shift, min(1.0, max(0.0, lost / whole)) if whole > 0 else 0.0


def solve(a: Array, b: Array) -> Array:
    """a^-1 b for a symmetric a >= 0; the least-norm answer where a is singular.

    Parameters
    ----------
    a : (n, n) float64
    b : (n, k) float64

    Returns
    -------
    (n, k) float64

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.calibration import solve
    >>> solve(np.ones((2, 2)), np.array([[2.0], [2.0]])).round(6).tolist()
    [[1.0], [1.0]]
    """
    work = float(len(a)) ** 2 * (len(a) + 2 * b.size / max(1, len(b)))
    try:  # LU alone would return rubbish for a singular matrix
        interruptible(work, np.linalg.cholesky, a)
        return interruptible(work, np.linalg.solve, a, b)
    except np.linalg.LinAlgError:
        return interruptible(20 * work, np.linalg.lstsq, a, b, None)[0]


def inverse(s: Array) -> Array:
    """s^-1 for a symmetric s >= 0, with a last ridge of rounding size where it is singular.

    Parameters
    ----------
    s : (n, n) float64

    Returns
    -------
    (n, n) float64, symmetric

    Raises
    ------
    ArrayError
        Not positive, even with a ridge of 1e-4 of its mean diagonal.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.calibration import inverse
    >>> inverse(np.diag([2.0, 4.0])).tolist()
    [[0.5, 0.0], [0.0, 0.25]]
    """
    level = float(s.diagonal().mean()) or 1.0
    work = float(len(s)) ** 3
    for ridge in (0.0, 1e-10, 1e-7, 1e-4):
        try:
            damped = s if ridge == 0 else s + ridge * level * np.eye(len(s))
            interruptible(work, np.linalg.cholesky, damped)
            result: Array = interruptible(2 * work, np.linalg.inv, damped)
        except np.linalg.LinAlgError:
            continue
        result += result.T.copy()
        result *= 0.5
        return result
    raise ArrayError("gram: its covariance is not positive; raise damp")


def __getattr__(name: str) -> Any:
    """The observers, which were here before version 0.2 and are in fastopt.quantization."""
    if name.endswith("Observer"):
        return getattr(importlib.import_module("fastopt.quantization"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
