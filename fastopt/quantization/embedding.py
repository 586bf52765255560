"""Embeddings as 8-, 4- or 1-bit codes, and the nearest of them by integer arithmetic."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array, as_numbers, check_finite
from fastopt._kernels import topk as kernel
from fastopt._options import choice, integer, number
from fastopt.errors import ArrayError, OptionError
from fastopt.quantization.codes import encode
from fastopt.quantization.layout import layout_of
from fastopt.quantization.observers import MinMaxObserver

__all__ = ["EmbeddingQuantizer", "TopK"]

_LEVELS = {"int8": 254, "uint8": 255, "int4": 15}  # steps between the least and the largest code
_KINDS = (*_LEVELS, "binary")  # in the kernel's order
_ENOUGH = 256  # rows from which the range of each dimension can be estimated on its own
_BLOCK = 1 << 17  # elements encoded at once
_SERIAL_BELOW = 1 << 20  # bytes read


class TopK(NamedTuple):
    """The best rows for each query, best first.

    Attributes
    ----------
    indices : (queries, k) int64, or (k,) for a single query
        Rows.
    scores : float32 array of the same shape
        Inner product with the query (an estimate unless rescored with the original vectors).
    """

    indices: Array
    scores: Array


class EmbeddingQuantizer:
    """Embeddings x as codes: x_j = offset_j + scale_j code_j, or the signs of x; with search.

    A scikit-learn transformer (``fit``, ``transform``, ``inverse_transform``, ``get_params``)
    that does not import scikit-learn.

    Parameters
    ----------
    dtype : {"int8", "uint8", "int4", "binary"}
        int8: symmetric, -127..127. uint8 and int4: from the least to the largest value, int4 with
        two codes in a byte (the first in the low half). binary: bit 1 where x > 0, eight in a
        byte, the first in the highest bit.
    percentile : float
        In (0, 100]: the range of the calibration data that is kept; the rest is clipped.

    Attributes
    ----------
    scale_, offset_ : (d,) float32
        Step and zero of each dimension.
    codes_ : uint8 or int8 array
        Codes of what ``fit`` and ``add`` were given: the rows that ``top_k`` searches.
    dtype_, n_features_in_ : str, int
        The codes' format, and d.

    Notes
    -----
    Calibration: with 256 rows or more each dimension has its own range. With fewer, down to a
    single vector, all dimensions share the range of all values, since the range of a few numbers
    says nothing about the next ones. Values outside the range are clipped; NaN and infinity are
    refused. ``top_k`` is exact for the integer scores, and the same for every thread count.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import EmbeddingQuantizer
    >>> x = np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float32)
    >>> q = EmbeddingQuantizer("int8").fit(x)
    >>> q.codes_.nbytes, int(q.top_k(x[7], 3).indices[0])
    (64000, 7)
    """

    def __init__(self, dtype: str = "int8", *, percentile: float = 100.0) -> None:
        self.dtype = dtype
        self.percentile = percentile

    # ---------------------------------------------------------------- scikit-learn's protocol
    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The options by name."""
        return {"dtype": self.dtype, "percentile": self.percentile}

    def set_params(self, **params: Any) -> EmbeddingQuantizer:
        """In place: set options by name."""
        for name, value in params.items():
            choice(name, "params", self.get_params())
            setattr(self, name, value)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "codes_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="transformer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=[]),
            input_tags=InputTags(),
        )

    def __repr__(self) -> str:
        return f"EmbeddingQuantizer({self.dtype!r}, percentile={self.percentile!r})"

    # ---------------------------------------------------------------- codes
    def fit(self, X: Any, y: Any = None) -> EmbeddingQuantizer:
        """Learn the ranges from X, (n, d) with n >= 1, and keep its codes for ``top_k``."""
        kind = choice(self.dtype, "dtype", _KINDS)
        keep = number(self.percentile, "percentile", low=0.0, high=100.0, low_open=True)
        a = self._rows(X)
        part = a if len(a) >= _ENOUGH else a.reshape(-1, 1)
        if keep == 100.0:
            low, high = MinMaxObserver(axis=1).partial_fit(part).range(symmetric=kind == "int8")
        elif kind == "int8":
            high = np.percentile(np.abs(part), keep, axis=0)
            low = -high
        else:
            low, high = np.percentile(part, [(100 - keep) / 2, (100 + keep) / 2], axis=0)
        d = a.shape[1]
        steps = _LEVELS.get(kind, 2)
        scale = np.broadcast_to((high - low) / steps, (d,)).astype(np.float32)
        tiny = np.finfo(np.float32).tiny
        self.scale_ = np.where(scale > tiny, scale, np.float32(1.0))
        self.offset_ = np.zeros(d, np.float32)
        if kind in ("uint8", "int4"):
            self.offset_ += low.astype(np.float32)
        self.n_features_in_, self.dtype_ = d, kind
        self.codes_ = self._encode(a)
        return self

    def transform(self, X: Any) -> Array:
        """Codes of X, (n, d) float32 or float64: (n, d) int8 or uint8, or (n, bytes) packed."""
        self._check_fitted()
        return self._encode(self._rows(X, self.n_features_in_))

    def fit_transform(self, X: Any, y: Any = None) -> Array:
        """``fit(X).transform(X)``; works for a single row."""
        codes: Array = self.fit(X).codes_.copy()
        return codes

    def inverse_transform(self, codes: Any) -> Array:
        """Vectors (n, d) float32 that the codes stand for; signs / sqrt(d) for binary."""
        self._check_fitted()
        kind = "int8" if self.dtype_ == "int8" else "uint8"
        c = as_array(codes, "codes", dtypes=(kind,), shape=(None, self._width()))
        return self._decode(c)

    def add(self, X: Any) -> EmbeddingQuantizer:
        """In place: append the codes of X to those that ``top_k`` searches."""
        self.codes_ = np.concatenate([self.codes_, self.transform(X)])
        return self

    # ---------------------------------------------------------------- search
    def top_k(
        self, query: Any, k: int = 10, *, rescore: Any = 1, threads: int | None = None
    ) -> TopK:
        """The k rows of ``codes_`` with the largest inner product with each query.

        Parameters
        ----------
        query : (d,) or (queries, d) float32 or float64
            Query vectors; finite.
        k : int
            Rows wanted, at most the rows there are.
        rescore : int >= 1, or (n, d) array
            m > 1: take m k candidates by integer scores, then order them by the float query
            against the decoded rows. An array: the original vectors; 4 k candidates are ordered by
            the exact inner product with them.
        threads : int, optional
            Thread count; the result does not depend on it.

        Returns
        -------
        TopK
            (indices, scores).

        Raises
        ------
        ArrayError, OptionError
            Shapes that do not fit, NaN or infinity, k out of range.

        Notes
        -----
        The query times scale_ is rounded to int8 with a scale of its own (binary: its signs), so
        a row costs one integer dot product of d bytes (binary: d / 8 bytes and a bit count,
        score (d - 2 distance) / d). Ties: the lower row first.
        """
        self._check_fitted()
        given = as_numbers(query, "query")
        single = given.ndim == 1
        x = self._rows(given[None] if single else given, self.n_features_in_, "query")
        n, d = len(self.codes_), self.n_features_in_
        wanted = integer(k, "k", low=1, high=n)
        vectors, factor = None, 4
        if isinstance(rescore, (int, np.integer)):
            factor = integer(rescore, "rescore", low=1)
        else:
            vectors = as_array(rescore, "rescore", cast="float32", shape=(n, d))
        pool = min(n, wanted * factor)
        score, index = np.empty((len(x), pool), np.int32), np.empty((len(x), pool), np.int64)
        codes, kind = self.codes_, _KINDS.index(self.dtype_)
        used = _threads.resolve(threads, codes.nbytes * len(x), _SERIAL_BELOW)
        if self.dtype_ == "binary":
            bits = self._encode(x)
            kernel.search(score, index, bits, codes, len(x), n, codes.shape[1], pool, kind, used)
            value = (d + 2.0 * score) / d
        else:
            scaled = x * self.scale_
            step = np.abs(scaled).max(axis=1, keepdims=True) / np.float32(127)
            step[step == 0] = 1.0
            q8 = np.clip(np.rint(scaled / step), -127, 127).astype(np.int8)
            kernel.search(score, index, q8, codes, len(x), n, d, pool, kind, used)
            # a sum per row: BLAS adds in another order for one query than for many
            shift = (x * self.offset_).sum(axis=1, keepdims=True)
            value = score * step.astype(np.float64) + shift
        if factor > 1 or vectors is not None:
            for r, rows in enumerate(index):
                better = vectors[rows] if vectors is not None else self._decode(self.codes_[rows])
                value[r] = better @ x[r]
            order = np.lexsort((index, -value))
            index = np.take_along_axis(index, order, axis=1)
            value = np.take_along_axis(value, order, axis=1)
        index, result = index[:, :wanted], value[:, :wanted].astype(np.float32)
        return TopK(index[0], result[0]) if single else TopK(index.copy(), result)

    # ---------------------------------------------------------------- inside
    def _rows(self, X: Any, d: int | None = None, name: str = "X") -> Array:
        """Finite float32 rows; errors use the words that scikit-learn checks for."""
        if hasattr(X, "nnz"):
            raise ArrayError(f"{name}: sparse input is not supported; pass {name}.toarray()")
        a = as_array(as_numbers(X, name), name, cast="float32")
        if a.ndim != 2:
            raise ArrayError(
                f"{name}: expected 2 dimensions (rows, features), got shape {a.shape}. "
                "Reshape your data: a single vector v is v[None]"
            )
        for axis, what in enumerate(("sample", "feature")):
            if a.shape[axis] == 0 and d is None:
                raise ArrayError(
                    f"{name}: 0 {what}(s) (shape={a.shape}) while a minimum of 1 is required."
                )
        if d is not None and a.shape[1] != d:
            raise ArrayError(
                f"{name}: X has {a.shape[1]} features, but EmbeddingQuantizer is expecting {d} "
                "features as input"
            )
        a = a.astype(np.float32, copy=False)
        check_finite(a, name)
        return a

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise OptionError("EmbeddingQuantizer: not fitted yet; call fit first")

    def _width(self) -> int:
        """Bytes of a row of codes."""
        per_byte = {"binary": 8, "int4": 2}.get(self.dtype_, 1)
        return int(-(-self.n_features_in_ // per_byte))

    def _encode(self, a: Array) -> Array:
        codes: Array = np.empty((len(a), self._width()), "i1" if self.dtype_ == "int8" else "u1")
        low = -127 if self.dtype_ == "int8" else 0
        rows = max(1, _BLOCK // a.shape[1])
        for at in range(0, len(a), rows):  # blocks that stay in cache
            part, out = a[at : at + rows], codes[at : at + rows]
            if self.dtype_ == "binary":
                out[:] = np.packbits(part > 0, axis=1)
                continue
            if self.dtype_ != "int8":
                part = part - self.offset_
            into = out if self.dtype_ != "int4" else np.empty(part.shape, np.uint8)
            layout = layout_of(part.shape, 1, None)
            encode(
                into,
                part,
                self.scale_,
                np.zeros_like(self.scale_),
                layout,
                low,
                low + _LEVELS[self.dtype_],
                None,
            )
            if self.dtype_ == "int4":
                out[:] = into[:, ::2]
                out[:, : into.shape[1] // 2] |= into[:, 1::2] << 4
        return codes

    def _unpacked(self, codes: Array) -> Array:
        """One 4-bit code per byte."""
        both = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1)
        return np.ascontiguousarray(both[:, : self.n_features_in_])

    def _decode(self, codes: Array) -> Array:
        d = self.n_features_in_
        if self.dtype_ == "binary":
            bits = np.unpackbits(codes, axis=1, count=d).astype(np.float32)
            signs: Array = (2 * bits - 1) / np.float32(np.sqrt(d))
            return signs
        if self.dtype_ == "int4":
            codes = self._unpacked(codes)
        result: Array = codes * self.scale_ + self.offset_
        return result
