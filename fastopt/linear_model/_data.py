"""What an estimator is given, checked once: X, y, sample weights, feature names."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from fastopt._arrays import Array, as_array, check_finite
from fastopt.errors import ArrayError, DTypeError

__all__ = [
    "CSR",
    "check_weights",
    "check_x",
    "check_y",
    "feature_names",
    "is_source",
    "matmul",
    "take_rows",
]


class CSR(NamedTuple):
    """A compressed sparse row matrix as plain arrays."""

    data: Array
    indices: Array
    indptr: Array
    shape: tuple[int, int]

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    def __len__(self) -> int:
        return self.shape[0]


def is_source(x: Any) -> bool:
    """Whether ``x`` is a file-like block source: rows by slice, but not an array."""
    return (
        not isinstance(x, np.ndarray)
        and hasattr(x, "shape")
        and hasattr(x, "dtype")
        and hasattr(x, "__getitem__")
        and not hasattr(x, "__array__")
        and not hasattr(x, "__dlpack__")
        and not hasattr(x, "nnz")
        and len(x.shape) == 2
    )


def feature_names(x: Any) -> Array | None:
    """Column names of a data frame, if all are strings."""
    columns = getattr(x, "columns", None)
    if columns is None:
        return None
    names = np.asarray(columns, dtype=object)
    if all(isinstance(name, str) for name in names):
        return names if len(names) else None
    if any(isinstance(name, str) for name in names):
        raise DTypeError(
            "X: Feature names are only supported if all input features have string names, but "
            "got some of another type; rename them with X.columns = X.columns.astype(str)"
        )
    return None


def check_x(x: Any, name: str = "X", *, finite: bool = True, sparse: bool = True) -> Array | CSR:
    """``x`` as a C-contiguous float32 or float64 matrix, or as CSR.

    Parameters
    ----------
    x : array-like (n, d), scipy sparse matrix or array
        float32 and float64 stay; other real numbers become float64.
    finite : bool
        Refuse NaN and infinity here (otherwise the kernel's own check does).
    """
    if hasattr(x, "nnz") and hasattr(x, "tocsr"):
        if not sparse:
            raise DTypeError(f"{name}: sparse input is not taken here; pass {name}.toarray()")
        return _csr(x, name, finite)
    if isinstance(x, np.matrix):
        raise DTypeError(f"{name}: numpy.matrix is not taken; pass numpy.asarray({name})")
    if not isinstance(x, np.ndarray) and not hasattr(x, "__dlpack__"):
        try:
            x = np.asarray(x)
        except ValueError as error:
            raise ArrayError(f"{name}: cannot be read as a matrix: {error}") from None
    if isinstance(x, np.ndarray):
        if x.dtype.kind == "c":
            raise ArrayError(f"{name}: Complex data not supported; got dtype {x.dtype}")
        if x.dtype == object:
            x = _from_object(x, name)
        if x.dtype.kind in "US":
            raise ArrayError(f"{name}: expected numbers, got dtype {x.dtype}; convert it first")
    a = as_array(x, name, cast="float64")
    if a.ndim != 2:
        raise ArrayError(
            f"{name}: Expected 2D array, got {a.ndim}D array instead (shape {a.shape}). Reshape "
            f"your data with {name}.reshape(-1, 1) for one feature or (1, -1) for one sample"
        )
    _check_size(a.shape, name)
    if finite:
        _finite(a, name)
    return a


def _from_object(x: Array, name: str) -> Array:
    """An object array of numbers as float64."""
    try:
        return x.astype(np.float64)
    except TypeError as error:
        raise DTypeError(f"{name}: argument must be numbers: {error}") from None
    except ValueError as error:
        raise ArrayError(f"{name}: expected numbers: {error}") from None


def _check_size(shape: tuple[int, ...], name: str) -> None:
    if shape[0] == 0:
        raise ArrayError(
            f"{name}: Found array with 0 sample(s) (shape={shape}) while a minimum of 1 is "
            "required."
        )
    if shape[1] == 0:
        raise ArrayError(
            f"{name}: Found array with 0 feature(s) (shape={shape}) while a minimum of 1 is "
            "required."
        )


def _finite(a: Array, name: str) -> None:
    # One pass of sums finds nearly every array clean; only a doubtful one is looked at closely.
    with np.errstate(over="ignore", invalid="ignore"):
        clean = np.isfinite(np.sum(a, dtype=np.float64))
    if not clean:
        check_finite(a, name)


def _csr(x: Any, name: str, finite: bool) -> CSR:
    if getattr(x, "ndim", 2) != 2:
        raise ArrayError(f"{name}: expected 2 dimensions, got shape {x.shape}")
    m = x.tocsr()
    if m.dtype.kind == "c":
        raise ArrayError(f"{name}: Complex data not supported; got dtype {m.dtype}")
    if not m.has_canonical_format:
        m = m.copy()
        m.sum_duplicates()
    _check_size(m.shape, name)
    wide = np.int64 if m.nnz >= 2**31 or m.shape[1] >= 2**31 else np.int32
    csr = CSR(
        as_array(m.data, name, cast="float64"),
        as_array(m.indices, f"{name}.indices", dtypes=("int32", "int64")).astype(wide, copy=False),
        np.ascontiguousarray(m.indptr, np.int64),
        (int(m.shape[0]), int(m.shape[1])),
    )
    if len(csr.indptr) != csr.shape[0] + 1 or len(csr.indices) != len(csr.data):
        raise ArrayError(f"{name}: the sparse matrix' arrays do not fit its shape {csr.shape}")
    if finite:
        _finite(csr.data, name)
    return csr


def check_y(y: Any, n: int, name: str = "y", *, multi: bool = False) -> Array:
    """A regression target as float64, (n,) or with ``multi`` also (n, k)."""
    if y is None:
        raise ArrayError(
            f"{name}: requires y to be passed, but the target y is None; give the targets"
        )
    a = np.asarray(y)
    if a.dtype.kind == "c":
        raise ArrayError(f"{name}: Complex data not supported; got dtype {a.dtype}")
    if a.dtype == object:
        a = _from_object(a, name)
    if a.dtype.kind in "US":
        raise ArrayError(f"{name}: expected numbers, got dtype {a.dtype}")
    a = as_array(a, name, cast="float64", ndim=(1, 2))
    if a.ndim == 2 and not multi:
        a = _column(a, name)
    if len(a) != n:
        raise ArrayError(f"{name}: expected {n} targets, one a row of X, got {len(a)}")
    check_finite(a, name)
    return a


def _column(a: Array, name: str) -> Array:
    """(n, 1) as (n,), with the warning that scikit-learn gives; anything wider is refused."""
    if a.shape[1] != 1:
        raise ArrayError(f"{name}: expected one target a row, got shape {a.shape}")
    import warnings

    category: type[Warning] = UserWarning
    if "sklearn" in sys.modules:
        from sklearn import exceptions

        category = exceptions.DataConversionWarning
    warnings.warn(
        "A column-vector y was passed when a 1d array was expected. Please change the shape of "
        "y to (n_samples,), for example using ravel().",
        category,
        stacklevel=5,
    )
    return a.ravel()


def check_weights(weights: Any, n: int, dtype: Any) -> tuple[Array | None, float]:
    """Sample weights (n,), finite, not negative, divided by their mean (None where all agree),
    and their sum."""
    if weights is None:
        return None, float(n)
    a = np.asarray(weights)
    if a.dtype.kind == "c":
        raise ArrayError(f"sample_weight: Complex data not supported; got dtype {a.dtype}")
    if a.ndim == 0:
        a = np.full(n, a)
    if a.ndim != 1:
        raise ArrayError(
            f"sample_weight: Sample weights must be 1D array or scalar, got {a.ndim}D"
        )
    a = as_array(a, "sample_weight", cast="float64")
    if a.shape != (n,):
        raise ArrayError(f"sample_weight.shape == {a.shape}, expected ({n},)!")
    check_finite(a, "sample_weight")
    if (a < 0).any():
        raise ArrayError("sample_weight: expected weights >= 0")
    total = float(np.sum(a, dtype=np.float64))
    if total <= 0:
        raise ArrayError("sample_weight: every weight is zero; expected at least one above zero")
    if (a == a[0]).all():
        return None, total
    return (a * (n / total)).astype(dtype), total


def matmul(x: Array | CSR, coef: Array) -> Array:
    """X @ coef.T for dense X or CSR; (n,) for coef (d,), (n, k) for (k, d)."""
    if isinstance(x, CSR):
        from fastopt._kernels import linear_sparse

        w = np.ascontiguousarray(np.atleast_2d(coef), x.data.dtype)
        out = np.empty((len(w), x.shape[0]), x.data.dtype)
        for k in range(len(w)):
            linear_sparse.margins(out[k], x.data, x.indices, x.indptr, w[k])
        return out[0] if coef.ndim == 1 else np.ascontiguousarray(out.T)
    product: Array = x @ coef.T
    return product


def take_rows(x: Array | CSR, rows: Array) -> Array | CSR:
    """The rows of those numbers, in that order, as a copy."""
    if not isinstance(x, CSR):
        return x[rows]
    lengths = x.indptr[rows + 1] - x.indptr[rows]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    entries = np.arange(indptr[-1]) + np.repeat(x.indptr[rows] - indptr[:-1], lengths)
    return CSR(x.data[entries], x.indices[entries], indptr, (len(rows), x.shape[1]))
