"""Tiles: where a result goes first (an L1 buffer or its place), and how it is flushed."""

from libc.stdint cimport uintptr_t


cdef extern from *:
    void prefetch "__builtin_prefetch" (const void* p) noexcept nogil

cdef extern from "stream.h":
    void stream "fo_stream" (void* target, const void* source, size_t n) noexcept nogil
    void stream_fence "fo_stream_fence" () noexcept nogil


cdef inline Py_ssize_t tile_end(
    const void* target, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t item, Py_ssize_t tile
) noexcept nogil:
    """End of the tile that begins at element ``start``, on a cache line of ``target``."""
    cdef Py_ssize_t over = ((<uintptr_t> target + <uintptr_t> (start * item)) & 63) // item
    cdef Py_ssize_t end = start + tile - over
    return end if end < stop else stop
