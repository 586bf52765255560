"""A formula along an array: lines of 16 elements that the compiler turns into vectors.

``each`` is the one loop of all optimiser rules. It loads a line of weights, gradients and state,
hands every element to the formula and stores what it has made of them. The formula is a constant
function pointer and every function here is inlined (CYTHON_INLINE, setup.py), so each rule becomes
a loop of its own; restrict pointers spare it checks for overlap.

Narrow state (``codes.h`` says what its numbers mean) is decoded a line at a time in front of the
formula and encoded behind it. The codes of a block need its largest value first: a block is encoded
while the next one takes its step, so that the instructions of both fill each other's gaps.
"""

from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

cdef extern from *:
    """
    typedef float *__restrict fo_f32;
    typedef double *__restrict fo_f64;
    #if defined(__AVX2__) /* asks for the line as its owner; a processor without it does nothing */
    #define fo_prefetch_write(p) \\
        __asm__ volatile("prefetchw %0" : : "m"(*(const char *)(p)))
    #else
    #define fo_prefetch_write(p) __builtin_prefetch(p, 1)
    #endif
    """
    ctypedef float* f32 "fo_f32"
    ctypedef double* f64 "fo_f64"
    void prefetch "__builtin_prefetch" (const void* p) noexcept nogil
    void prefetch_write "fo_prefetch_write" (const void* p) noexcept nogil

ctypedef fused real:
    float
    double

ctypedef fused reals:  # of the same precision as ``real`` wherever both are used
    f32
    f64

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

cdef struct Scalars:  # of one step: what the options of a group come to, by rules.pxd
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
    float* w, float x, float* a, float* b, float* c, const Scalars* s
) noexcept nogil
ctypedef void (*Formula64)(
    double* w, double x, double* a, double* b, double* c, const Scalars* s
) noexcept nogil

cdef extern from "update/codes.h" nogil:
    void decode_codes "fo_decode_codes" (float* line, const void* codes, float unit, bint signed_)
    void encode_codes "fo_encode_codes" (
        void* codes, const float* line, float inverse, uint32_t noise, bint signed_
    )
    void decode_words "fo_decode_words" (float* line, const void* words)
    void encode_words "fo_encode_words" (void* words, const float* line)
    void encode_words_noisy "fo_encode_words_noisy" (
        void* words, const float* line, uint32_t noise
    )
    ctypedef struct Tops "fo_tops":
        pass
    void clear_tops "fo_clear_tops" (Tops* tops)
    void raise_tops "fo_raise_tops" (Tops* tops, const float* line)
    float scale_of "fo_scale_of" (const Tops* tops)
    float inverse_of "fo_inverse_of" (float scale)
    float unit_of "fo_unit_of" (float scale)
    uint32_t phase_of "fo_phase_of" (
        uint64_t key, uint64_t turn, uint64_t block, int state, bint signed_
    )
    uint32_t GOLDEN "FO_GOLDEN"


cdef inline void same_lines(
    void* formula, int sign0, int sign1, int sign2, bint decays, reals p, reals g, reals a, reals b,
    reals c, Py_ssize_t n, bint far, const Scalars* scalars, real zero,
) noexcept nogil:
    """n elements, whole lines, with state in the parameter's own precision."""
    cdef Scalars s = scalars[0]
    cdef real scale = <real> s.scale, coupled = <real> s.coupled
    cdef real w, x, s0 = zero, s1 = zero, s2 = zero
    cdef Py_ssize_t i = 0, j
    while i < n:
        if far:
            prefetch(<const char*> (g + i) + AHEAD)
            prefetch_write(<const char*> (p + i) + AHEAD)
            if sign0:
                prefetch_write(<const char*> (a + i) + AHEAD)
            if sign1:
                prefetch_write(<const char*> (b + i) + AHEAD)
            if sign2:
                prefetch_write(<const char*> (c + i) + AHEAD)
        for j in range(LINE):
            w = p[i + j]
            x = scale * g[i + j]
            if decays:
                x = x + coupled * w
            if sign0:
                s0 = a[i + j]
            if sign1:
                s1 = b[i + j]
            if sign2:
                s2 = c[i + j]
            if real is float:
                (<Formula32> formula)(&w, x, &s0, &s1, &s2, &s)
            else:
                (<Formula64> formula)(&w, x, &s0, &s1, &s2, &s)
            p[i + j] = w
            if sign0:
                a[i + j] = s0
            if sign1:
                b[i + j] = s1
            if sign2:
                c[i + j] = s2
        i += LINE


cdef inline void wide_line(
    void* formula, int sign0, int sign1, int sign2, bint decays, f32 p, f32 g, float* a, float* b,
    float* c, float* new_a, float* new_b, float* new_c, const Scalars* s,
) noexcept nogil:
    """One line whose state has been decoded; the new state goes to lines of its own."""
    cdef float scale = <float> s.scale, coupled = <float> s.coupled
    cdef float w, x, s0 = 0, s1 = 0, s2 = 0
    cdef int j
    for j in range(LINE):
        w = p[j]
        x = scale * g[j]
        if decays:
            x = x + coupled * w
        if sign0:
            s0 = a[j]
        if sign1:
            s1 = b[j]
        if sign2:
            s2 = c[j]
        (<Formula32> formula)(&w, x, &s0, &s1, &s2, s)
        p[j] = w
        if sign0:
            new_a[j] = s0
        if sign1:
            new_b[j] = s1
        if sign2:
            new_c[j] = s2


cdef inline void word_lines(
    void* formula, int sign0, int sign1, int sign2, bint decays, f32 p, f32 g,
    const Stretch* a, const Scalars* scalars,
) noexcept nogil:
    """Whole lines with bfloat16 state."""
    cdef Scalars s = scalars[0]
    cdef uint16_t* words[STATES]
    cdef uint32_t noise[STATES]
    cdef float old[STATES][LINE]
    cdef float new[STATES][LINE]
    cdef int sign[STATES]
    cdef int k
    cdef Py_ssize_t i = 0, at
    sign[0], sign[1], sign[2] = sign0, sign1, sign2
    for k in range(STATES):
        words[k] = <uint16_t*> a.state[k]
        noise[k] = 0
    while i < a.n:
        at = a.first + i
        prefetch(<const char*> (g + i) + AHEAD)
        prefetch_write(<const char*> (p + i) + AHEAD)
        for k in range(STATES):
            if sign[k]:
                if i % (2 * LINE) == 0:
                    prefetch_write(<const char*> (words[k] + i) + AHEAD // 2)
                if sign[k] == POSITIVE and (at % UNIT == 0 or i == 0):
                    noise[k] = phase_of(a.key, a.turn, at // UNIT, k, False) + (
                        <uint32_t> (at % UNIT) * GOLDEN
                    )
                decode_words(old[k], words[k] + i)
        wide_line(
            formula, sign0, sign1, sign2, decays, p + i, g + i, old[0], old[1], old[2],
            new[0], new[1], new[2], &s,
        )
        for k in range(STATES):
            if sign[k] == SIGNED:
                encode_words(words[k] + i, new[k])
            elif sign[k] == POSITIVE:
                encode_words_noisy(words[k] + i, new[k], noise[k])
                noise[k] += LINE * GOLDEN
        i += LINE


cdef inline void code_step(
    void* formula, int sign0, int sign1, int sign2, bint decays, f32 p, f32 g,
    const Stretch* a, Py_ssize_t at, float moments[STATES][UNIT], const float* unit, Tops* tops,
    const Scalars* s,
) noexcept nogil:
    """The line at ``at``: codes -> values -> step -> the block's moments, with their largest."""
    cdef float old[STATES][LINE]
    cdef int sign[STATES]
    cdef int k
    cdef Py_ssize_t i = at % UNIT
    sign[0], sign[1], sign[2] = sign0, sign1, sign2
    prefetch(<const char*> (g + at) + AHEAD)
    prefetch_write(<const char*> (p + at) + AHEAD)
    for k in range(STATES):
        if sign[k]:
            if i % (4 * LINE) == 0:
                prefetch_write(<const char*> a.state[k] + at + AHEAD // 4)
            decode_codes(old[k], <const char*> a.state[k] + at, unit[k], sign[k] == SIGNED)
    wide_line(
        formula, sign0, sign1, sign2, decays, p + at, g + at, old[0], old[1], old[2],
        &moments[0][i], &moments[1][i], &moments[2][i], s,
    )
    for k in range(STATES):
        if sign[k]:
            raise_tops(tops + k, &moments[k][i])


cdef inline void code_encode(
    int sign0, int sign1, int sign2, const Stretch* a, Py_ssize_t at,
    float moments[STATES][UNIT], const float* inverse, const uint32_t* noise,
) noexcept nogil:
    cdef int sign[STATES]
    cdef int k
    cdef Py_ssize_t i = at % UNIT
    sign[0], sign[1], sign[2] = sign0, sign1, sign2
    for k in range(STATES):
        if sign[k]:
            encode_codes(
                <char*> a.state[k] + at, &moments[k][i], inverse[k],
                noise[k] + <uint32_t> i * GOLDEN, sign[k] == SIGNED,
            )


cdef inline void code_lines(
    void* formula, int sign0, int sign1, int sign2, bint decays, f32 p, f32 g,
    const Stretch* a, const Scalars* scalars,
) noexcept nogil:
    """Whole units with 8-bit state."""
    cdef Scalars s = scalars[0]
    cdef float moments[2][STATES][UNIT]
    cdef float unit[STATES]
    cdef float inverse[STATES]
    cdef uint32_t noise[STATES]
    cdef Tops tops[STATES]
    cdef int sign[STATES]
    cdef int k
    cdef Py_ssize_t b = 0, blocks = a.n // UNIT, i
    sign[0], sign[1], sign[2] = sign0, sign1, sign2
    while b <= blocks:
        for k in range(STATES):
            if sign[k]:
                if b > 0:
                    a.scales[k][b - 1] = scale_of(tops + k)
                    inverse[k] = inverse_of(a.scales[k][b - 1])
                    noise[k] = phase_of(
                        a.key, a.turn, a.first // UNIT + b - 1, k, sign[k] == SIGNED
                    )
                if b < blocks:
                    unit[k] = unit_of(a.scales[k][b])
                    clear_tops(tops + k)
        i = b * UNIT
        if b == 0:
            while i < UNIT:
                code_step(
                    formula, sign0, sign1, sign2, decays, p, g, a, i, moments[0], unit, tops, &s
                )
                i += LINE
        elif b < blocks:
            while i < (b + 1) * UNIT:
                code_step(
                    formula, sign0, sign1, sign2, decays, p, g, a, i, moments[b & 1], unit, tops,
                    &s,
                )
                code_encode(
                    sign0, sign1, sign2, a, i - UNIT, moments[~b & 1], inverse, noise
                )
                i += LINE
        else:
            while i < (b + 1) * UNIT:
                code_encode(
                    sign0, sign1, sign2, a, i - UNIT, moments[~b & 1], inverse, noise
                )
                i += LINE
        b += 1


cdef inline void each(
    void* formula, int sign0, int sign1, int sign2, real* p, const Stretch* a, const Scalars* s
) noexcept nogil:
    """The formula along a stretch of whole lines (8-bit state: whole units)."""
    if real is double:
        if s.coupled != 0:
            same_lines(
                formula, sign0, sign1, sign2, True, <f64> p, <f64> a.g, <f64> a.state[0],
                <f64> a.state[1], <f64> a.state[2], a.n, a.far, s, <double> 0,
            )
        else:
            same_lines(
                formula, sign0, sign1, sign2, False, <f64> p, <f64> a.g, <f64> a.state[0],
                <f64> a.state[1], <f64> a.state[2], a.n, a.far, s, <double> 0,
            )
    elif a.storage == BFLOAT:
        word_lines(formula, sign0, sign1, sign2, s.coupled != 0, <f32> p, <f32> a.g, a, s)
    elif a.storage == CODES:
        code_lines(formula, sign0, sign1, sign2, s.coupled != 0, <f32> p, <f32> a.g, a, s)
    elif s.coupled != 0:
        same_lines(
            formula, sign0, sign1, sign2, True, <f32> p, <f32> a.g, <f32> a.state[0],
            <f32> a.state[1], <f32> a.state[2], a.n, a.far, s, <float> 0,
        )
    else:
        same_lines(
            formula, sign0, sign1, sign2, False, <f32> p, <f32> a.g, <f32> a.state[0],
            <f32> a.state[1], <f32> a.state[2], a.n, a.far, s, <float> 0,
        )
