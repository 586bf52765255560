"""What a rule runs over: a stretch of one array, its storage, and the scalars of a step."""

from libc.stdint cimport uint64_t

from fastopt._kernels.shared.restrict cimport f32, f64, reals

cdef extern from *:
    """
    #if defined(__AVX2__) /* asks for the line as its owner; a processor without it does nothing */
    #define fo_prefetch_write(p) \\
        __asm__ volatile("prefetchw %0" : : "m"(*(const char *)(p)))
    #else
    #define fo_prefetch_write(p) __builtin_prefetch(p, 1)
    #endif
    """
    void prefetch "__builtin_prefetch" (const void* p) noexcept nogil
    void prefetch_write "fo_prefetch_write" (const void* p) noexcept nogil

ctypedef fused real:
    float
    double

cdef enum:
    LINE = 16
    UNIT = 256  # elements: threads never split one; 8-bit state has a scale for each
    STATES = 3  # arrays of state at most
    AHEAD = 2048  # bytes: pages of 4 KiB end the processor's own prefetching

cdef enum Storage:  # how an array's numbers are stored
    SAME  # as the parameter's
    HALF  # float16
    BFLOAT  # bfloat16
    CODES  # 8 bits and a scale for each unit

cdef enum Sign:  # of a state array
    ABSENT  # the rule has no such state
    SIGNED
    POSITIVE  # never negative: stored without a sign, and stochastically rounded

cdef struct Scalars64:  # of one step: what the options of a group come to
    double scale  # multiplies every gradient: sign, loss scale, clipping
    double coupled  # weight decay that is added to the gradient
    double left  # what decoupled weight decay leaves of the weight
    double lr, step, grad_step
    double beta1, take1, beta2, take2  # take = 1 - beta, of what is new
    double momentum, take, ahead
    double eps, root_scale, eps1, eps2, d
    double decay, correction
    double trust  # what an array's norms make of its step
    double product  # NAdam: of the momenta so far
    bint nesterov, rectified

cdef struct Scalars32:  # the same rounded, for the formulas of float32 arrays
    float scale, coupled, left, lr, step, grad_step
    float beta1, take1, beta2, take2, momentum, take, ahead
    float eps, root_scale, eps1, eps2, d, decay, correction, trust
    bint nesterov, rectified

ctypedef fused scalars:  # of the same precision as ``real`` wherever both are used
    Scalars32
    Scalars64

cdef struct Stretch:  # of one array, for one call of a rule
    const void* g
    void* state[STATES]
    float* scales[STATES]  # CODES only
    Py_ssize_t n
    Py_ssize_t first  # where it begins in the array
    uint64_t key  # random bits of the array
    uint64_t turn  # the number of its step
    int storage  # of the state
    bint far  # the arrays lie in memory rather than in a cache

ctypedef void (*Formula32)(
    float* w, float x, float* a, float* b, float* c, const Scalars32* s
) noexcept nogil
ctypedef void (*Formula64)(
    double* w, double x, double* a, double* b, double* c, const Scalars64* s
) noexcept nogil
