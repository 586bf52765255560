"""Four-bit codes from a table of 16 values, under scales: NF4 and MXFP4.

Encode: code = number of bounds below x * (1 / scale), of |x| with a sign bit on top where the
table is one of magnitudes. Decode: value[code] * scale. Codes stand two to a byte, the first in
the low half (ONNX's order). Where a part that shares a scale is a run of neighbours, its scale can
be derived in the same pass: max|x| / peak, or the power of two below max|x| over peak.

Sources: Dettmers et al., "QLoRA" (2023), appendix E (NF4); OCP Microscaling Formats v1.0, sections
5.3 and 6.3 (MXFP4). The layout (``rows``, ``depth``, ``width``, ``group``): _layout.pxd.
"""

from fastopt._kernels cimport _numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.stdint cimport uint8_t, uint32_t, uintptr_t
from libc.string cimport memcpy

from fastopt._kernels._args cimport data_of
from fastopt._kernels._layout cimport Layout, Place, place_of, scales_of, take
from fastopt._kernels._stream cimport prefetch, stream, stream_fence

cnp.import_array()


cdef extern from "codebook.h":
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
    TILE = 2048  # of the decoder
    AHEAD = 1024  # elements between a read and its prefetch
    CHUNK = 65536  # elements a thread takes at a time
    STEP = 1 << 25  # elements between two looks for Ctrl-C
    INFINITE = 0x7F800000
    TINY = 0x00800000  # bits of the smallest normal float32


cdef struct Rule:  # of a derived scale
    bint derive
    bint power
    float unit  # 1 / peak


cdef inline float scale_of(uint32_t top, Rule rule) noexcept nogil:
    """Scale of a part whose largest magnitude has the bits ``top``: 1 for zeros, never denormal."""
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


cdef uint32_t encode_span(
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


cdef void decode_span(
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
                    memcpy(&pad[0], q + start // 2, (min(<Py_ssize_t> BLOCK, stop - start) + 1) // 2)
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


cdef void encode_chunk(
    uint8_t* out, float* scale, const float* x, Py_ssize_t start, Py_ssize_t stop, Layout lay,
    Rule rule, const Table* t, uint32_t* largest,
) noexcept nogil:
    cdef uint32_t top = encode_span(out + start // 2, scale, x, start, stop, lay, rule, t)
    if top >= INFINITE:
        largest[0] = top  # any thread may say so


cdef void decode_chunk(
    float* out, const uint8_t* q, const float* scale, Py_ssize_t start, Py_ssize_t stop,
    Layout lay, const Table* t, bint streamed,
) noexcept nogil:
    """A chunk; ``streamed`` sends whole cache lines past the caches, the rest waits in the tile."""
    cdef float[TILE + 16] tile
    cdef Py_ssize_t end, n, carry = 0, whole
    cdef float* out_at
    if not streamed:
        decode_span(out + start, q, scale, start, stop, lay, t)
        return
    while start < stop:
        end = min(stop, start + TILE)
        decode_span(&tile[carry], q, scale, start, end, lay, t)
        n = carry + end - start
        out_at = out + start - carry
        whole = n if end == stop else n - ((<uintptr_t> (out_at + n)) & 63) // sizeof(float)
        stream(out_at, &tile[0], whole * sizeof(float))
        carry = n - whole
        memcpy(&tile[0], &tile[whole], carry * sizeof(float))
        start = end
    stream_fence()


cdef int table_of(Table* t, cnp.ndarray bound, cnp.ndarray value, bint sign) except -1:
    """The tables of 15 ascending bounds and 16 values."""
    fill(
        t, <const float*> data_of(bound, cnp.NPY_FLOAT32, 15, False, "bound"),
        <const float*> data_of(value, cnp.NPY_FLOAT32, 16, False, "value"), sign,
    )
    return 0


def encode(
    cnp.ndarray out not None, cnp.ndarray scale not None, cnp.ndarray x not None,
    cnp.ndarray bound not None, cnp.ndarray value not None, bint sign,
    bint rows, Py_ssize_t depth, Py_ssize_t width, Py_ssize_t group,
    bint deriving, bint power, float peak, int threads,
):
    """out (uint8) = codes of x (float32), two to a byte; with ``deriving`` scale is written too.

    Returns whether all that the scales were derived from is finite. To derive needs runs that meet
    each scale once (``group``, or one outer block)."""
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x), unit, begin, end, step, k
    cdef Layout lay = Layout(rows, depth, width, group)
    cdef Rule rule = Rule(deriving, power, <float> 1.0 / peak)
    cdef Table t
    cdef uint32_t largest = 0
    cdef const float* a = <const float*> data_of(x, cnp.NPY_FLOAT32, n, False, "x")
    cdef uint8_t* o = <uint8_t*> data_of(out, cnp.NPY_UINT8, (n + 1) // 2, True, "out")
    cdef float* s = <float*> data_of(
        scale, cnp.NPY_FLOAT32, scales_of(n, lay), deriving, "scale"
    )
    table_of(&t, bound, value, sign)
    if deriving and (rows or (group == 0 and n != depth)):
        from fastopt.errors import ArrayError

        raise ArrayError("layout: scales can be derived only from runs that meet each one once")
    unit = 2
    if deriving:  # a thread takes whole runs and whole bytes
        unit = width if depth % width == 0 else depth
        unit *= 1 + unit % 2
    step = max(<Py_ssize_t> 1, CHUNK // unit) * unit
    begin = 0
    while begin < n:
        end = min(n, begin + max(<Py_ssize_t> 1, STEP // step) * step)
        with nogil:
            if threads == 1:
                encode_chunk(o, s, a, begin, end, lay, rule, &t, &largest)
            else:
                for k in prange(
                    (end - begin + step - 1) // step, num_threads=threads, schedule="dynamic"
                ):
                    encode_chunk(
                        o, s, a, begin + k * step, min(end, begin + (k + 1) * step), lay, rule,
                        &t, &largest,
                    )
        begin = end
        PyErr_CheckSignals()
    return largest < INFINITE


def decode(
    cnp.ndarray out not None, cnp.ndarray codes not None, cnp.ndarray scale not None,
    cnp.ndarray bound not None, cnp.ndarray value not None, bint sign,
    bint rows, Py_ssize_t depth, Py_ssize_t width, Py_ssize_t group, bint streamed, int threads,
):
    """out (float32) = value[code] * scale of the packed codes (uint8)."""
    cdef Py_ssize_t n = cnp.PyArray_SIZE(out), begin = 0, end, k
    cdef Layout lay = Layout(rows, depth, width, group)
    cdef Table t
    cdef float* o = <float*> data_of(out, cnp.NPY_FLOAT32, n, True, "out")
    cdef const uint8_t* q = <const uint8_t*> data_of(
        codes, cnp.NPY_UINT8, (n + 1) // 2, False, "codes"
    )
    cdef const float* s = <const float*> data_of(
        scale, cnp.NPY_FLOAT32, scales_of(n, lay), False, "scale"
    )
    table_of(&t, bound, value, sign)
    while begin < n:
        end = min(n, begin + STEP)
        with nogil:
            if threads == 1:
                decode_chunk(o, q, s, begin, end, lay, &t, streamed)
            else:
                for k in prange(
                    (end - begin + CHUNK - 1) // CHUNK, num_threads=threads, schedule="dynamic"
                ):
                    decode_chunk(
                        o, q, s, begin + k * CHUNK, min(end, begin + (k + 1) * CHUNK), lay, &t,
                        streamed,
                    )
        begin = end
        PyErr_CheckSignals()
