"""What an estimator is given, checked once: X, y, sample weights, feature names."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, as_ndarray, as_numbers, check_finite
from fastopt.errors import ArrayError, DTypeError
from fastopt.linear_model import _rows
from fastopt.linear_model._rows import CSR, Rows, Stream

__all__ = ["check_weights", "check_x", "check_y", "feature_names", "is_source", "plain_weights"]
__all__ += ["weights_of"]


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
    names = as_ndarray(columns, "X.columns").astype(object)
    if all(isinstance(name, str) for name in names):
        return names if len(names) else None
    if any(isinstance(name, str) for name in names):
        raise DTypeError(
            "X: Feature names are only supported if all input features have string names, but "
            "got some of another type; rename them with X.columns = X.columns.astype(str)"
        )
    return None


def check_x(x: Any, name: str = "X", *, finite: bool = True) -> Rows:
    """``x`` as a C-contiguous float32 or float64 matrix, as CSR, or as a stream of blocks.

    Parameters
    ----------
    x : array-like (n, d), scipy sparse matrix or array, large memory map, block source
        float32 and float64 stay; other real numbers become float64.
    finite : bool
        Refuse NaN and infinity here (otherwise the kernel's own check does).
    """
    if hasattr(x, "nnz") and hasattr(x, "tocsr"):
        return _csr(x, name, finite)
    if is_source(x) or (
        isinstance(x, np.memmap)
        and x.ndim == 2
        and x.nbytes >= _rows.MAPPED_FROM
        and x.dtype.kind in "fiub"
        and x.dtype.isnative
    ):
        _check_size(x.shape, name)
        return Stream(x)
    if isinstance(x, np.matrix):
        raise DTypeError(f"{name}: numpy.matrix is not taken; pass numpy.asarray({name})")
    a = as_array(as_numbers(x, name), name, cast="float64")
    if a.ndim != 2:
        raise ArrayError(
            f"{name}: Expected 2D array, got {a.ndim}D array instead (shape {a.shape}). Reshape "
            f"your data with {name}.reshape(-1, 1) for one feature or (1, -1) for one sample"
        )
    _check_size(a.shape, name)
    if finite:
        _finite(a, name)
    return a


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
    """A sparse matrix or array of scipy's, by its attributes alone, with every index checked."""
    if getattr(x, "ndim", 2) != 2:
        raise ArrayError(f"{name}: expected 2 dimensions, got shape {x.shape}")
    m = x if getattr(x, "format", "") == "csr" else x.tocsr()
    if m.dtype.kind == "c":
        raise ArrayError(f"{name}: Complex data not supported; got dtype {m.dtype}")
    n, d = int(m.shape[0]), int(m.shape[1])
    _check_size((n, d), name)
    if d >= 2**31:
        raise ArrayError(f"{name}: expected fewer than 2^31 columns, got {d}")
    indices = as_array(m.indices, f"{name}.indices", dtypes=("int32", "int64"), ndim=1)
    csr = CSR(
        as_array(m.data, f"{name}.data", cast="float64", ndim=1),
        indices,
        as_array(m.indptr, f"{name}.indptr", dtypes=("int32", "int64"), ndim=1).astype(
            np.int64, copy=False
        ),
        (n, d),
    )
    if len(csr.indptr) != n + 1 or len(csr.indices) != len(csr.data):
        raise ArrayError(
            f"{name}: the sparse matrix' arrays do not fit its shape {csr.shape}: "
            f"{len(csr.indptr)} row starts, {len(csr.indices)} columns, {len(csr.data)} values"
        )
    rising = csr.indptr[0] == 0 and (csr.indptr[1:] >= csr.indptr[:-1]).all()
    if not rising or csr.indptr[-1] != len(csr.data):
        raise ArrayError(
            f"{name}.indptr: expected row starts that rise from 0 to the {len(csr.data)} values"
        )
    # As unsigned numbers the negative ones are large: one pass finds both ends.
    if len(indices) and indices.view(indices.dtype.str.replace("i", "u")).max() >= d:
        raise ArrayError(f"{name}.indices: expected columns in 0..{d - 1}")
    if sys.byteorder == "big":  # the kernel reads the half that comes first
        csr = csr._replace(indices=indices.astype(np.int32))
    if finite:
        _finite(csr.data, name)
    return csr


def check_y(y: Any, n: int, name: str = "y", *, multi: bool = False, finite: bool = True) -> Array:
    """A regression target, (n,) or with ``multi`` also (n, k); ``finite`` as for check_x."""
    if y is None:
        raise ArrayError(
            f"{name}: requires y to be passed, but the target y is None; give the targets"
        )
    a = as_array(as_numbers(y, name), name, cast="float64", ndim=(1, 2))
    if a.ndim == 2 and not multi:
        a = _column(a, name)
    if len(a) != n:
        raise ArrayError(f"{name}: expected {n} targets, one per row of X, got {len(a)}")
    if finite:
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


def weights_of(weights: Any, n: int) -> Array | None:
    """Sample weights (n,) as given: finite, not negative, not all zero; None for none."""
    if weights is None:
        return None
    a = as_numbers(weights, "sample_weight")
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
    if not a.any():
        raise ArrayError("sample_weight: every weight is zero; expected at least one above zero")
    return a


def check_weights(weights: Any, n: int, dtype: Any) -> tuple[Array | None, float]:
    """Sample weights divided by their mean (None where all agree), and their sum."""
    a = weights_of(weights, n)
    if a is None:
        return None, float(n)
    with np.errstate(over="ignore"):
        total = float(np.sum(a, dtype=np.float64))
    if not np.isfinite(total):
        raise ArrayError("sample_weight: the sum of the weights overflows; scale them")
    if (a == a[0]).all():
        return None, total
    return (a * (n / total)).astype(dtype), total


def plain_weights(weights: Any, n: int, dtype: Any) -> Array | None:
    """Sample weights as factors on each row's gradient (scikit-learn's ``partial_fit``)."""
    a = weights_of(weights, n)
    if a is None or (a == 1).all():
        return None
    with np.errstate(over="ignore"):
        factors = a.astype(dtype)
    check_finite(factors, "sample_weight")
    return factors
