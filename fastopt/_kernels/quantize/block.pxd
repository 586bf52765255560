"""What one call of the encoder does to a block: which steps, in which order."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastopt._kernels.quantize.layout cimport Layout
from fastopt._kernels.quantize.floats cimport narrowed
from fastopt._kernels.quantize.steps cimport (
    BLOCK, EVEN, HALF, RANDOM, Rule, at_once, at_random, limited, quotients, real, rounded, stored
)
from fastopt._kernels.shared.narrow cimport Spec, to_odd
from fastopt._kernels.shared.philox cimport TILE, philox_tile

cdef struct Plan:  # pointers and kinds of one call
    char* out
    uint8_t* mask  # NULL, or whether an element was in range
    const void* x
    bint wide  # x is float64
    int item  # bytes of a code; 0: values come back, in x's dtype
    int size  # bytes of an element of out
    bint packed  # two codes of one byte share one, the first one low
    bint narrow  # codes are those of ``spec``
    bint centred  # every zero point is 0
    bint brief  # random rounding whose steps of 2**-16 fit 32 bits
    bint bare  # the one scale is 1
    double reach  # scales are made on the way, max|x| / reach; 0: they are given
    double cap
    Layout lay
    Rule rule
    Spec spec


cdef inline void block_of(
    char* out, Plan* plan, Rule rule, const char* x, const real* scale, const real* inverse,
    const real* zero, float* one, uint8_t* mask, Py_ssize_t start,
) noexcept nogil:
    """BLOCK codes or values, and the mask, of the elements from ``start`` on; ``one`` holds
    ones."""
    cdef real[BLOCK] v
    cdef float[BLOCK] odd
    cdef uint32_t[HALF] word
    cdef const float* f = &odd[0]
    cdef const float* over = NULL
    cdef Py_ssize_t k
    cdef bint plain = sizeof(real) == 4 and (plan.item == 1 or plan.item == 2) and not (
        rule.wrap or rule.join or plan.narrow
    )
    if rule.mode == RANDOM:
        for k in range(HALF // TILE):  # 16 counters for every 64 elements of a word each
            philox_tile(&word[k * TILE], rule.key, <uint64_t> (start // 8 + 16 * k), 0, 0, 7)
    if plan.narrow:
        if real is float:
            f = &v[0]
            if plan.item == 1 and not rule.times and rule.mode == EVEN:
                over = scale
            if plan.bare or over != NULL:
                f = <const float*> x
        if f != <const float*> x:
            quotients(&v[0], x, plan.wide, scale, inverse, zero, rule)
        if real is double:
            for k in range(BLOCK):
                odd[k] = to_odd(v[k])
        narrowed(out, f, over, &word[0] if rule.mode == RANDOM else NULL, plan.item, plan.spec)
        return
    if real is float:
        if plain and rule.mode == EVEN:
            at_once(out, <const float*> x, scale, inverse, zero, plan.item, rule.times, rule)
            return
    quotients(&v[0], x, plan.wide, scale, inverse, zero, rule)
    if real is float:
        if plain and plan.brief:
            at_random(out, &v[0], &word[0], plan.item, rule)
            return
    rounded(&v[0], &word[0], rule)
    if real is float:
        if plain:
            at_once(out, &v[0], one, one, zero, plan.item, True, rule)
            return
    limited(&v[0], zero, mask, rule)
    stored(out, &v[0], scale, zero, plan.item, plan.wide)
