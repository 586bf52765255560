"""Runs and rows of codebook codes: encode and decode [start, stop), block by block of 32."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from fastopt._kernels.quantize.layout cimport Layout, Place, place_of, take
from fastopt._kernels.shared.stream cimport prefetch


cdef extern from "quantize/codebook.h":
    ctypedef struct Table "fo_codebook":
        pass
    void fill "fo_codebook_fill" (
        Table* t, const float* bound, const float* value, bint sign
    ) noexcept nogil
    uint32_t absmax "fo_absmax" (const float* x, Py_ssize_t n) noexcept nogil
    void encode_block "fo_codebook_encode" (
        uint8_t* out, const float* x, float inverse, const Table* t
    ) noexcept nogil
    void decode_block "fo_codebook_decode" (
        float* out, const uint8_t* p, float scale, const Table* t
    ) noexcept nogil


cdef enum:
    BLOCK = 32  # elements of the innermost routine
    BYTES = 16  # their codes
    AHEAD = 1024  # elements between a read and its prefetch
    INFINITE = 0x7F800000
    TINY = 0x00800000  # bits of the smallest normal float32


cdef struct Rule:  # of a derived scale
    bint derive
    bint power
    float unit  # 1 / peak


cdef inline float scale_of(uint32_t top, Rule rule) noexcept nogil:
    """Scale of a part whose largest magnitude has the bits ``top``: 1 for zeros, never
    denormal."""
    cdef float m, tiny
    cdef uint32_t least = TINY
    if top == 0:
        return 1.0
    if rule.power:
        top &= INFINITE
    memcpy(&m, &top, sizeof(m))
    memcpy(&tiny, &least, sizeof(tiny))
    m *= rule.unit
    return m if m > tiny else tiny


cdef inline Py_ssize_t next_run(Place* p, Layout lay, Py_ssize_t* s) noexcept nogil:
    """Length of the run at ``p``, which is a run's beginning but not the first; moves both on."""
    cdef Py_ssize_t n = min(lay.width, lay.depth - p.inside)
    s[0] = 0 if p.inside == 0 and not lay.group else s[0] + 1
    p.inside += n
    if p.inside == lay.depth:
        p.inside = 0
    return n


cdef inline uint32_t derive(float* scale, const float* x, Py_ssize_t n, Rule rule) noexcept nogil:
    """The scale of a run; the bits of its largest magnitude."""
    cdef uint32_t top = absmax(x, n)
    scale[0] = scale_of(top, rule)
    return top


cdef inline uint32_t encode_span(
    uint8_t* out, float* scale, const float* x, Py_ssize_t start, Py_ssize_t stop, Layout lay,
    Rule rule, const Table* given,
) noexcept nogil:
    """Elements [start, stop), start even, written to out[0:]; the bits of the largest magnitude
    where scales are derived (then start is the beginning of a run).

    A run is read for its scale while the one before is encoded, so that neither waits."""
    cdef Table t = given[0]  # a copy that no store can change
    cdef float[BLOCK] v
    cdef uint8_t[BYTES] made
    cdef Place p = place_of(start, lay)
    cdef Py_ssize_t left, ahead, n, s = 0, s_next, n_next = 0, filled = 0, k
    cdef uint32_t largest = 0
    cdef float inverse = 1.0
    left = take(&p, lay, stop - start, &s)
    ahead = start + left
    if rule.derive:
        largest = derive(scale + s, x + start, left, rule)
    while True:  # a run, or a row
        s_next = s
        if not lay.rows:
            inverse = <float> 1.0 / scale[s]
            if ahead < stop:
                n_next = min(next_run(&p, lay, &s_next), stop - ahead)
                if rule.derive:
                    largest = max(largest, derive(scale + s_next, x + ahead, n_next, rule))
        elif ahead < stop:
            n_next = take(&p, lay, stop - ahead, &s_next)
        k = 0
        while left:
            if filled == 0 and left >= BLOCK and not lay.rows:
                prefetch(x + start + AHEAD)
                prefetch(x + start + AHEAD + 16)
                encode_block(out, x + start, inverse, &t)
                n = BLOCK
                out += BYTES
            else:  # a block that meets several scales, gathered in v
                n = min(left, <Py_ssize_t> BLOCK - filled)
                gather(&v[filled], x + start, n, inverse, scale + s + k if lay.rows else NULL)
                filled += n
                if filled == BLOCK:
                    encode_block(out, &v[0], 1.0, &t)
                    out += BYTES
                    filled = 0
            start += n
            left -= n
            k += n
        if start == stop:
            break
        left, s = n_next, s_next
        ahead += n_next
    if filled:
        for k in range(filled, BLOCK):
            v[k] = 0
        encode_block(&made[0], &v[0], 1.0, &t)
        if filled % 2:
            made[filled // 2] &= 15
        memcpy(out, &made[0], (filled + 1) // 2)
    return largest


cdef inline void gather(
    float* v, const float* x, Py_ssize_t n, float inverse, const float* scale
) noexcept nogil:
    cdef Py_ssize_t k
    if scale == NULL:
        for k in range(n):
            v[k] = x[k] * inverse
    else:
        for k in range(n):
            v[k] = x[k] * (<float> 1.0 / scale[k])


cdef inline void decode_span(
    float* out, const uint8_t* q, const float* scale, Py_ssize_t start, Py_ssize_t stop,
    Layout lay, const Table* given,
) noexcept nogil:
    """Elements [start, stop), written to out[0:]; start is even."""
    cdef Table t = given[0]
    cdef float[BLOCK] v
    cdef uint8_t[BYTES] pad
    cdef Place p = place_of(start, lay)
    cdef Py_ssize_t left, n, s = 0, used = BLOCK, k
    left = take(&p, lay, stop - start, &s)
    while True:  # a run, or a row
        while left:
            if used == BLOCK and left >= BLOCK and not lay.rows:
                prefetch(q + start // 2 + AHEAD)
                decode_block(out, q + start // 2, scale[s], &t)
                n = BLOCK
            else:  # a block that meets several scales, decoded into v
                if used == BLOCK:
                    for k in range(BYTES):
                        pad[k] = 0
                    memcpy(
                        &pad[0], q + start // 2, (min(<Py_ssize_t> BLOCK, stop - start) + 1) // 2
                    )
                    decode_block(&v[0], &pad[0], 1.0, &t)
                    used = 0
                n = min(left, <Py_ssize_t> BLOCK - used)
                if lay.rows:
                    for k in range(n):
                        out[k] = v[used + k] * scale[s + k]
                    s += n
                else:
                    for k in range(n):
                        out[k] = v[used + k] * scale[s]
                used += n
            out += n
            start += n
            left -= n
        if start == stop:
            break
        if lay.rows:
            left = take(&p, lay, stop - start, &s)
        else:
            left = min(next_run(&p, lay, &s), stop - start)
