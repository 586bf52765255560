"""Tiles: where a result goes first (an L1 buffer or its place), and how it is flushed."""

from libc.stdint cimport uintptr_t


cdef extern from *:
    void prefetch "__builtin_prefetch" (const void* p) noexcept nogil

cdef extern from "shared/stream.h":
    void stream "fo_stream" (void* target, const void* source, size_t n) noexcept nogil
    ctypedef struct Window "fo_window":
        char* line
        char* window
        size_t lead
        size_t done
        size_t fill
    void took "fo_took" (Window* w, size_t n, size_t room) noexcept nogil
    void close "fo_close" (Window* w) noexcept nogil
    void stream_fence "fo_stream_fence" () noexcept nogil


cdef inline Py_ssize_t tile_end(
    const void* target, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t item, Py_ssize_t tile
) noexcept nogil:
    """End of the tile that begins at element ``start``, on a cache line of ``target``."""
    cdef Py_ssize_t over = ((<uintptr_t> target + <uintptr_t> (start * item)) & 63) // item
    cdef Py_ssize_t end = start + tile - over
    return end if end < stop else stop


cdef inline Window window_on(char* out, char* room) noexcept nogil:
    """An empty window in ``room``, which has 64 bytes to spare in front and behind."""
    cdef Window w
    w.window = room + (-<uintptr_t> room & 63)
    w.lead = w.fill = <uintptr_t> out & 63
    w.line = out - w.lead
    w.done = 0
    return w
