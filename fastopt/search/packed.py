"""Rows of bits, 64 in a word: bit j of a row is bit j % 64 of its word j // 64."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from fastopt.search.layout import Matrix

__all__ = ["Words", "pack", "unpack", "words_of"]

Words = NDArray[np.uint64]
LITTLE = sys.byteorder == "little"


def words_of(d: int) -> int:
    """Words of a row of d bits."""
    return -(-d // 64)


def pack(values: Matrix | NDArray[np.uint8]) -> Words:
    """(n, words) of (n, d) numbers, of which any but 0 is a set bit; the tail is 0."""
    n, d = values.shape
    octets = np.zeros((n, 8 * words_of(d)), np.uint8)
    octets[:, : -(-d // 8)] = np.packbits(values != 0, axis=1, bitorder="little")
    words = octets.view(np.uint64)
    return words if LITTLE else words.byteswap()


def unpack(words: Words, d: int) -> NDArray[np.uint8]:
    """(n, d) of 0 and 1."""
    octets = (words if LITTLE else words.byteswap()).view(np.uint8)
    return np.unpackbits(octets, axis=1, count=d, bitorder="little")
