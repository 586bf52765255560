"""The guarded door to OpenMP: the index of this thread inside a parallel region, 0 without OpenMP."""

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define fo_thread_index omp_get_thread_num
    #else
    static inline int fo_thread_index(void) { return 0; }
    #endif
    """
    int thread_index "fo_thread_index" () noexcept nogil
