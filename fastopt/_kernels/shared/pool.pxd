"""Threads for every kernel: ``run`` hands chunks of work to the pool that pool.pyx owns.

A kernel puts what its chunks need into a struct, writes one function for chunk ``index``, and runs
it. Chunks should take some tens of microseconds; which thread takes which is not said, so a result
may depend on the index alone. ``worker`` (below ``threads``) is for scratch memory. ::

    cdef struct Work:
        float* out
        const float* x
        Py_ssize_t n

    cdef void chunk(void* context, Py_ssize_t index, int worker) noexcept nogil:
        cdef Work* w = <Work*> context
        cdef Py_ssize_t i
        for i in range(index * CHUNK, min(w.n, (index + 1) * CHUNK)):
            w.out[i] = 2 * w.x[i]

    with nogil:
        run(chunk, &w, (n + CHUNK - 1) // CHUNK, threads)

With one thread, one chunk, or inside another chunk it is a plain loop. Any number of Python
threads may call at once.
"""

ctypedef void (*Chunk)(void* context, Py_ssize_t index, int worker) noexcept nogil

# Whole: no signal is looked at, every chunk has run on return.
cdef void run(Chunk chunk, void* context, Py_ssize_t n_chunks, int threads) noexcept nogil

# The same, with a look at the signals about every 50 ms, between chunks. Ctrl-C leaves the rest
# out and raises; chunks that have begun are finished first.
cdef int run_polled(Chunk chunk, void* context, Py_ssize_t n_chunks, int threads) except -1 nogil

cdef extern from *:
    """
    #define fo_mark(flag) __atomic_store_n(flag, 1, __ATOMIC_RELAXED)
    #define fo_marked(flag) __atomic_load_n(flag, __ATOMIC_RELAXED)
    #define fo_next(count) __atomic_fetch_add(count, 1, __ATOMIC_RELAXED)
    """
    void mark "fo_mark" (int* flag) noexcept nogil  # = 1, from any thread
    bint marked "fo_marked" (const int* flag) noexcept nogil
    Py_ssize_t next_of "fo_next" (Py_ssize_t* count) noexcept nogil  # count++
