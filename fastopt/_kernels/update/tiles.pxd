"""A stretch of one array through a step: straight from memory, or tile by tile where gradients
or state are stored narrow, or where more is done with the new weights while they are in L1."""

from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastopt._kernels.update.rules cimport apply, lamb_norms, real
from fastopt._kernels.update.types cimport *

cdef extern from "update/bits.h" nogil:
    void widen_all "fo_widen" (float* out, const uint16_t* x, Py_ssize_t n, int half)
    uint16_t to_bfloat "fo_to_bfloat" (float x)
    uint16_t to_half "fo_to_half" (float x)
    uint64_t mixed "fo_mixed" (uint64_t x)

cdef extern from "update/bytes.h" nogil:
    void load_bytes "fo_load_bytes" (
        float* x, const void* codes, const float* scales, Py_ssize_t n, bint has_sign
    )
    void store_bytes "fo_store_bytes" (
        void* codes, float* scales, const float* x, Py_ssize_t n, bint has_sign, uint64_t key,
        uint64_t turn, uint64_t first, int state,
    )
    void store_words "fo_store_words" (
        uint16_t* words, const float* x, Py_ssize_t n, uint64_t key, uint64_t turn,
        uint64_t first, int state,
    )

cdef extern from "update/adam.h" nogil:
    void adam_bytes "fo_adam_bytes" (
        float* p, const float* g, int8_t* m, uint8_t* v, float* m_scales, float* v_scales,
        Py_ssize_t n, const double* h, uint64_t key, uint64_t turn, uint64_t first,
    )
    void adam_words "fo_adam_words" (
        float* p, const float* g, uint16_t* m, uint16_t* v, Py_ssize_t n, const double* h,
        uint64_t key, uint64_t turn, uint64_t first,
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


cdef inline void load_state(
    float* out, const Row* r, int k, Py_ssize_t at, Py_ssize_t n
) noexcept nogil:
    if r.state_kind == BFLOAT:
        widen(out, <const uint16_t*> r.s[k] + at, n, BFLOAT)
    else:
        load_bytes(out, r.s[k] + at, r.scales[k] + at // UNIT, n, r.signs[k])


cdef inline void store_state(
    const float* x, Row* r, int k, Py_ssize_t at, Py_ssize_t n
) noexcept nogil:
    if r.state_kind == BYTE:
        store_bytes(
            r.s[k] + at, r.scales[k] + at // UNIT, x, n, r.signs[k], r.key, r.step, at // UNIT, k
        )
    elif r.signs[k]:
        narrow(<uint16_t*> r.s[k] + at, x, n, BFLOAT)
    else:
        store_words(<uint16_t*> r.s[k] + at, x, n, r.key, r.step, at // UNIT, k)


cdef inline bint in_one_go(const Row* r, const double* h) noexcept nogil:
    """Adam on narrow state has loops of its own, without tiles."""
    return r.state_kind != SAME and (r.rule == ADAM or (r.rule == RADAM and h[9] != 0))


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
    """A tile with 16-bit gradients or narrow state: widen, update, narrow. Longer than TILE only
    where nothing is put down in between."""
    cdef float grad[TILE], state[STATES][TILE]
    cdef float* s[STATES]
    cdef const float* g = <const float*> r.g + at
    cdef float* p = <float*> r.p + at
    cdef int k
    if r.grad_kind != SAME:
        widen(grad, <const uint16_t*> r.g + at, n, r.grad_kind)
        g = grad
    if in_one_go(r, h):
        if r.state_kind == BFLOAT:
            adam_words(
                p, g, <uint16_t*> r.s[0] + at, <uint16_t*> r.s[1] + at, n, h, r.key, r.step,
                at // UNIT,
            )
        else:
            adam_bytes(
                p, g, <int8_t*> r.s[0] + at, <uint8_t*> r.s[1] + at, r.scales[0] + at // UNIT,
                r.scales[1] + at // UNIT, n, h, r.key, r.step, at // UNIT,
            )
        return
    for k in range(STATES):
        s[k] = <float*> r.s[k] + at
        if r.state_kind != SAME and k < n_states:
            load_state(state[k], r, k, at, n)
            s[k] = state[k]
    apply(r.rule, p, g, s[0], s[1], s[2], n, h)
    if r.state_kind != SAME:
        for k in range(n_states):
            store_state(state[k], r, k, at, n)


cdef inline void stretch(
    Row* r, real* p, int n_states, Py_ssize_t at, Py_ssize_t n, const double* h,
    double ema_share, bint zero_grads,
) noexcept nogil:
    """Elements at..at+n of one array; ``p`` is its parameter's base."""
    cdef Py_ssize_t end = at + n, m, tile = TILE
    cdef bint narrow = r.grad_kind != SAME or r.state_kind != SAME
    if r.ema == NULL and r.copy_kind == SAME and not zero_grads and (
        not narrow or (r.grad_kind == SAME and in_one_go(r, h))
    ):
        tile = n
    while at < end:
        m = min(tile, end - at)
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
