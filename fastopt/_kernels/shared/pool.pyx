"""The one pool of threads of the process (pool.h); built once, shared by the kernels of all
levels."""

from cpython.exc cimport PyErr_CheckSignals

cdef extern from *:
    """
    /* by which threadpoolctl knows this file */
    __attribute__((visibility("default"))) const int fastopt_pool = 1;
    """

cdef extern from "shared/pool.h" nogil:
    enum:
        FO_MOST
    int fo_prepare() noexcept
    int fo_cpus() noexcept
    int fo_run(
        Chunk chunk, void* context, Py_ssize_t n, int threads, int (*poll)() except -1
    ) noexcept

MOST = FO_MOST


cdef int look() except -1 with gil:
    PyErr_CheckSignals()
    return 0


cdef void run(Chunk chunk, void* context, Py_ssize_t n_chunks, int threads) noexcept nogil:
    fo_run(chunk, context, n_chunks, threads, NULL)


cdef int run_polled(Chunk chunk, void* context, Py_ssize_t n_chunks, int threads) except -1 nogil:
    return fo_run(chunk, context, n_chunks, threads, look)


def cpus():
    """Processors that this thread may run on."""
    return fo_cpus()


if fo_prepare():
    raise MemoryError("fastopt: no memory for the fork handler")
