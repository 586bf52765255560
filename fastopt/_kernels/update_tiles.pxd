"""A stretch of one array through a step: straight from memory, or tile by tile where gradients
or state are stored narrow, or where more is done with the new weights while they are in L1."""

from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastopt._kernels.update_rules cimport apply, lamb_norms, real
from fastopt._kernels.update_types cimport *

cdef extern from "update_bits.h" nogil:
    void widen_all "fo_widen" (float* out, const uint16_t* x, Py_ssize_t n, int half)
    uint16_t to_bfloat "fo_to_bfloat" (float x)
    uint16_t to_bfloat_noisy "fo_to_bfloat_noisy" (float x, uint32_t noise)
    uint16_t to_half "fo_to_half" (float x)
    uint32_t noise_of "fo_noise" (uint32_t key, uint32_t index)

cdef extern from "update_bytes.h" nogil:
    void decode_signed "fo_decode_signed" (
        float* out, const int8_t* codes, float scale, Py_ssize_t n
    )
    void decode_unsigned "fo_decode_unsigned" (
        float* out, const uint8_t* codes, float scale, Py_ssize_t n
    )
    float encode_signed "fo_encode_signed" (
        int8_t* codes, const float* x, Py_ssize_t n, uint32_t key, uint32_t first, int shift
    )
    float encode_unsigned "fo_encode_unsigned" (
        uint8_t* codes, const float* x, Py_ssize_t n, uint32_t key, uint32_t first, int shift
    )


cdef inline void widen(float* out, const uint16_t* x, Py_ssize_t n, int kind) noexcept nogil:
    widen_all(out, x, n, kind == HALF)


cdef inline void narrow(uint16_t* out, const float* x, Py_ssize_t n, int kind) noexcept nogil:
    cdef Py_ssize_t i
    if kind == HALF:
        for i in range(n):
            out[i] = to_half(x[i])
    else:
        for i in range(n):
            out[i] = to_bfloat(x[i])


cdef inline void blend(real* ema, const real* p, Py_ssize_t n, double share) noexcept nogil:
    """ema <- ema + share (p - ema)."""
    cdef real w = <real> share
    cdef Py_ssize_t i
    for i in range(n):
        ema[i] = ema[i] + w * (p[i] - ema[i])


cdef inline uint64_t mixed(uint64_t x) noexcept nogil:
    """64 well-mixed bits of a counter (splitmix64, Steele et al. 2014)."""
    x = x + <uint64_t> 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t> 0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline uint32_t tile_key(const Row* r, Py_ssize_t at, int pair) noexcept nogil:
    """Key of the noise of the tile at ``at``; ``pair`` keeps a third state's draws apart."""
    return <uint32_t> (r.key >> (32 * pair)) + <uint32_t> (<uint64_t> at >> 32) * 0x85EBCA6BU


cdef inline void load_state(
    float* out, const Row* r, int k, Py_ssize_t at, Py_ssize_t n
) noexcept nogil:
    cdef Py_ssize_t b, j
    if r.state_kind == BFLOAT:
        widen(out, <const uint16_t*> r.s[k] + at, n, BFLOAT)
        return
    for j in range((n + UNIT - 1) // UNIT):
        b = j * UNIT
        if r.signs[k]:
            decode_signed(
                out + b, <const int8_t*> r.s[k] + at + b, r.scales[k][(at + b) // UNIT],
                min(UNIT, n - b),
            )
        else:
            decode_unsigned(
                out + b, <const uint8_t*> r.s[k] + at + b, r.scales[k][(at + b) // UNIT],
                min(UNIT, n - b),
            )


cdef inline void store_state(
    const float* x, Row* r, int k, Py_ssize_t at, Py_ssize_t n
) noexcept nogil:
    cdef uint32_t key = tile_key(r, at, k // 2)
    cdef int shift = 16 * (k % 2)
    cdef uint16_t* wide = <uint16_t*> r.s[k] + at
    cdef Py_ssize_t b, i, j
    if r.state_kind == BFLOAT:
        # a second moment moves by less than half a step of bfloat16: rounded to nearest it stalls
        if r.signs[k]:
            narrow(wide, x, n, BFLOAT)
            return
        for i in range(n):
            wide[i] = to_bfloat_noisy(x[i], (noise_of(key, <uint32_t> (at + i)) >> shift) & 0xFFFF)
        return
    for j in range((n + UNIT - 1) // UNIT):
        b = j * UNIT
        if r.signs[k]:
            r.scales[k][(at + b) // UNIT] = encode_signed(
                <int8_t*> r.s[k] + at + b, x + b, min(UNIT, n - b), key, <uint32_t> (at + b), shift
            )
        else:
            r.scales[k][(at + b) // UNIT] = encode_unsigned(
                <uint8_t*> r.s[k] + at + b, x + b, min(UNIT, n - b), key, <uint32_t> (at + b),
                shift,
            )


cdef inline void after(
    Row* r, real* p, Py_ssize_t at, Py_ssize_t n, double ema_share, bint zero_grads
) noexcept nogil:
    """What follows the update of a stretch: average, narrow copy, gradients back to zero."""
    cdef int size = sizeof(real)
    if r.ema != NULL:
        blend(<real*> r.ema + at, <const real*> p, n, ema_share)
    if real is float:
        if r.copy_kind != SAME:
            narrow(<uint16_t*> r.copy + at, <const float*> p, n, r.copy_kind)
    if zero_grads:
        if r.grad_kind != SAME:
            size = 2
        memset(r.g + at * size, 0, n * size)


cdef inline void narrow_tile(
    Row* r, int n_states, Py_ssize_t at, Py_ssize_t n, const double* h
) noexcept nogil:
    """A tile with 16-bit gradients or narrow state: widen, update, narrow."""
    cdef float grad[TILE], state[STATES][TILE]
    cdef float* s[STATES]
    cdef const float* g = <const float*> r.g + at
    cdef int k
    if r.grad_kind != SAME:
        widen(grad, <const uint16_t*> r.g + at, n, r.grad_kind)
        g = grad
    for k in range(STATES):
        s[k] = <float*> r.s[k] + at
        if r.state_kind != SAME and k < n_states:
            load_state(state[k], r, k, at, n)
            s[k] = state[k]
    apply(r.rule, <float*> r.p + at, g, s[0], s[1], s[2], n, h)
    if r.state_kind != SAME:
        for k in range(n_states):
            store_state(state[k], r, k, at, n)


cdef inline void stretch(
    Row* r, real* p, int n_states, Py_ssize_t at, Py_ssize_t n, const double* h,
    double ema_share, bint zero_grads,
) noexcept nogil:
    """Elements at..at+n of one array; ``p`` is its parameter's base."""
    cdef Py_ssize_t end = at + n, m
    cdef bint narrow = r.grad_kind != SAME or r.state_kind != SAME
    if not narrow and r.ema == NULL and r.copy_kind == SAME and not zero_grads:
        apply(
            r.rule, p + at, <const real*> r.g + at, <real*> r.s[0] + at, <real*> r.s[1] + at,
            <real*> r.s[2] + at, n, h,
        )
        return
    while at < end:
        m = min(TILE, end - at)
        if real is float:
            if narrow:
                narrow_tile(r, n_states, at, m, h)
        if not narrow:
            apply(
                r.rule, p + at, <const real*> r.g + at, <real*> r.s[0] + at,
                <real*> r.s[1] + at, <real*> r.s[2] + at, m, h,
            )
        after(r, p + at, at, m, ema_share, zero_grads)
        at += m


cdef inline void lamb_first(
    Row* r, const real* p, Py_ssize_t at, Py_ssize_t n, const double* h, double* sums
) noexcept nogil:
    """LAMB's first pass, unit by unit, which only reads; ``sums`` has two numbers for each unit
    of the plan."""
    cdef float grad[UNIT]
    cdef float state[2][UNIT]
    cdef const real* g
    cdef const real* m
    cdef const real* v
    cdef Py_ssize_t end = at + n, count
    while at < end:
        count = min(UNIT, end - at)
        g, m, v = <const real*> r.g + at, <const real*> r.s[0] + at, <const real*> r.s[1] + at
        if real is float:
            if r.grad_kind != SAME:
                widen(grad, <const uint16_t*> r.g + at, count, r.grad_kind)
                g = grad
            if r.state_kind != SAME:
                load_state(state[0], r, 0, at, count)
                load_state(state[1], r, 1, at, count)
                m, v = state[0], state[1]
        lamb_norms(p + at, g, m, v, count, h, sums + 2 * (r.unit + at // UNIT))
        at += count
