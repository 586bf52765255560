"""Rows of bits, 64 in a word: bit j of a row is bit j % 64 of its word j // 64."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels
from fastopt._arrays import as_array, as_numbers
from fastopt._options import integer
from fastopt._threads import resolve
from fastopt.errors import ArrayError

__all__ = ["count_bits", "pack_bits", "packed_rows", "unpack_bits", "words_of"]

LITTLE = sys.byteorder == "little"


def words_of(d: int) -> int:
    """Words of a row of d bits."""
    return -(-d // 64)


def pack_bits(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """Rows of numbers, of which any but 0 is a set bit, packed 64 in a word.

    Parameters
    ----------
    rows : (n, d) array of numbers or bool

    Returns
    -------
    (n, ceil(d / 64)) uint64; the bits after the last are 0.

    Raises
    ------
    ArrayError
        Not two-dimensional.

    Examples
    --------
    >>> pack_bits([[True, False, True]]).tolist()
    [[5]]
    """
    rows = as_numbers(rows, "rows")
    if rows.ndim != 2:
        raise ArrayError(f"rows: expected shape (n, d), got {rows.shape}")
    n, d = rows.shape
    octets = np.zeros((n, 8 * words_of(d)), np.uint8)
    octets[:, : -(-d // 8)] = np.packbits(rows != 0, axis=1, bitorder="little")
    words = octets.view(np.uint64)
    return words if LITTLE else words.byteswap()


def unpack_bits(words: NDArray[np.uint64], d: int) -> NDArray[np.uint8]:
    """The d bits of each row of packed words.

    Parameters
    ----------
    words : (n, ceil(d / 64)) uint64
    d : int

    Returns
    -------
    (n, d) uint8 of 0 and 1

    Raises
    ------
    ArrayError, DTypeError
        ``words`` is not of that shape or dtype.

    Examples
    --------
    >>> unpack_bits(np.array([[5]], np.uint64), 3).tolist()
    [[1, 0, 1]]
    """
    words, d = packed_rows(words, "words", d)
    octets = (words if LITTLE else words.byteswap()).view(np.uint8)
    return np.unpackbits(octets, axis=1, count=d, bitorder="little")


def count_bits(words: NDArray[np.uint64], *, threads: int | None = 1) -> NDArray[np.int64]:
    """How many bits of each row are set.

    Parameters
    ----------
    words : (n, w) uint64

    Returns
    -------
    (n,) int64

    Examples
    --------
    >>> count_bits(np.array([[5, 1]], np.uint64)).tolist()
    [3]
    """
    words = as_array(words, "words", dtypes=("uint64",), ndim=2)
    counts = np.empty(len(words), np.int64)
    zero = np.zeros((1, words.shape[1]), np.uint64)
    _kernels.genetic_bits.distances(counts, words, zero, resolve(threads, words.size))
    return counts


def packed_rows(words: Any, name: str, d: int) -> tuple[NDArray[np.uint64], int]:
    """Words as an array of rows of d bits, checked; and d."""
    d = integer(d, "d", low=0)
    words = as_array(words, name, dtypes=("uint64",), ndim=2)
    if words.shape[1] != words_of(d):
        raise ArrayError(f"{name}: expected {words_of(d)} words for {d} bits, got {words.shape}")
    return words, d
