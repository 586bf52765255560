"""Dequantise integers, fixed point and narrow floats, per tensor, axis or group.

x = (code - zero_point) * scale (ONNX DequantizeLinear); 32-bit codes go through float64. Codes of
narrow floats become float32, which is exact, times the scale. The layout (``rows``, ``depth``,
``width``, ``group``) is explained in layout.pxd.
"""

from fastopt._kernels.shared cimport numpy as cnp
from cython cimport floating
from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run_polled
from fastopt._kernels.quantize.layout cimport Layout, Place, place_of, scales_of, take
from fastopt._kernels.shared.stream cimport prefetch, stream, stream_fence, tile_end
from fastopt._kernels.quantize.floats cimport widen_run
from fastopt._kernels.shared.narrow cimport Spec, spec_of

cnp.import_array()

ctypedef fused code:
    int8_t
    uint8_t
    int16_t
    uint16_t
    int32_t
    uint32_t

cdef enum:
    BLOCK = 32  # elements of the innermost loop
    AHEAD = 1024  # elements between a read and its prefetch
    TILE = 1024  # elements of one tile: at most 12 KiB of L1 with its source
    CHUNK = 32768  # elements per chunk: 10 to 20 us, and 100,000 elements make even parts

cdef inline floating value_of(code q, floating scale, code zero) noexcept nogil:
    """One element."""
    if code is int32_t or code is uint32_t:
        return <floating> ((<double> q - <double> zero) * <double> scale)
    else:
        return <floating> (<int32_t> q - <int32_t> zero) * scale


cdef inline void decode_run(
    floating* out, const code* q, Py_ssize_t n, floating scale, code zero
) noexcept nogil:
    """n elements under one scale, in blocks of fixed length that the compiler unrolls.

    A block is built in a local array, so that no check for overlap is needed, and asks for the
    line AHEAD, which the hardware's prefetcher fetches too late (bench_quantize: 1.25x).
    """
    cdef floating[BLOCK] made
    cdef code[BLOCK] pad
    cdef Py_ssize_t j = 0, k
    while j + BLOCK <= n:
        prefetch(q + j + AHEAD)
        for k in range(BLOCK):
            made[k] = value_of(q[j + k], scale, zero)
        memcpy(out + j, &made[0], sizeof(made))
        j += BLOCK
    if j < n:
        for k in range(BLOCK):
            pad[k] = 0
        memcpy(&pad[0], q + j, (n - j) * sizeof(code))
        for k in range(BLOCK):
            made[k] = value_of(pad[k], scale, zero)
        memcpy(out + j, &made[0], (n - j) * sizeof(floating))


cdef inline void decode_row(
    floating* out, const code* q, Py_ssize_t n, const floating* scale, const code* zero
) noexcept nogil:
    """n elements, each under its own scale."""
    cdef floating[BLOCK] made
    cdef floating[BLOCK] pad_scale
    cdef code[BLOCK] pad
    cdef code[BLOCK] pad_zero
    cdef Py_ssize_t j = 0, k
    while j + BLOCK <= n:
        prefetch(q + j + AHEAD)
        for k in range(BLOCK):
            made[k] = value_of(q[j + k], scale[j + k], zero[j + k])
        memcpy(out + j, &made[0], sizeof(made))
        j += BLOCK
    if j < n:
        for k in range(BLOCK):
            pad[k] = 0
            pad_scale[k] = 1
            pad_zero[k] = 0
        memcpy(&pad[0], q + j, (n - j) * sizeof(code))
        memcpy(&pad_scale[0], scale + j, (n - j) * sizeof(floating))
        memcpy(&pad_zero[0], zero + j, (n - j) * sizeof(code))
        for k in range(BLOCK):
            made[k] = value_of(pad[k], pad_scale[k], pad_zero[k])
        memcpy(out + j, &made[0], (n - j) * sizeof(floating))


cdef void decode_span(
    floating* out, const code* q, const floating* scale, const code* zero,
    Py_ssize_t start, Py_ssize_t stop, Layout lay,
) noexcept nogil:
    """Elements [start, stop), written to out[0:]."""
    cdef Place p = place_of(start, lay)
    cdef Py_ssize_t n, s
    while start < stop:
        n = take(&p, lay, stop - start, &s)
        if lay.rows:
            decode_row(out, q + start, n, scale + s, zero + s)
        else:
            decode_run(out, q + start, n, scale[s], zero[s])
        out += n
        start += n


cdef inline const code* unpacked(
    code* room, const code* q, Py_ssize_t start, Py_ssize_t stop
) noexcept nogil:
    """Codes of [start, stop), at most TILE, from two to a byte, the first one low; what comes back
    is indexed as an array of whole codes would be."""
    cdef const uint8_t* p = <const uint8_t*> q + start // 2
    cdef Py_ssize_t k, n = (stop + 1) // 2 - start // 2
    for k in range(n):
        if code is int8_t:
            room[2 * k] = ((p[k] & 15) ^ 8) - 8
            room[2 * k + 1] = ((p[k] >> 4) ^ 8) - 8
        elif code is uint8_t:
            room[2 * k] = p[k] & 15
            room[2 * k + 1] = p[k] >> 4
    return room - start // 2 * 2


cdef void decode_chunk(
    floating* out, const code* q, const floating* scale, const code* zero,
    Py_ssize_t start, Py_ssize_t stop, Layout lay, bint packed, bint streamed,
) noexcept nogil:
    """A chunk, tile by tile; ``streamed`` sends each tile past the caches."""
    cdef floating[TILE] tile
    cdef code[TILE + 2] part
    cdef Py_ssize_t i = start, end
    if not streamed and not packed:
        decode_span(out + start, q, scale, zero, start, stop, lay)
        return
    while i < stop:
        end = tile_end(out, i, stop, sizeof(floating), TILE)
        decode_span(
            &tile[0] if streamed else out + i, unpacked(&part[0], q, i, end) if packed else q,
            scale, zero, i, end, lay,
        )
        if streamed:
            stream(out + i, &tile[0], (end - i) * sizeof(floating))
        i = end
    if streamed:
        stream_fence()


cdef struct Decoding:
    bint single
    int kind  # of the codes
    void* out
    const void* codes
    const void* scale
    const void* zero
    Py_ssize_t n
    Layout lay
    bint packed, streamed


cdef inline void decode_kind(
    const Decoding* d, floating* out, const floating* scale, Py_ssize_t start, Py_ssize_t stop
) noexcept nogil:
    """Pick the codes' dtype."""
    cdef const void* c = d.codes
    cdef const void* z = d.zero
    if d.kind == cnp.NPY_INT8:
        decode_chunk(out, <const int8_t*> c, scale, <const int8_t*> z, start, stop, d.lay,
                     d.packed, d.streamed)
    elif d.kind == cnp.NPY_UINT8:
        decode_chunk(out, <const uint8_t*> c, scale, <const uint8_t*> z, start, stop, d.lay,
                     d.packed, d.streamed)
    elif d.kind == cnp.NPY_INT16:
        decode_chunk(out, <const int16_t*> c, scale, <const int16_t*> z, start, stop, d.lay,
                     d.packed, d.streamed)
    elif d.kind == cnp.NPY_UINT16:
        decode_chunk(out, <const uint16_t*> c, scale, <const uint16_t*> z, start, stop, d.lay,
                     d.packed, d.streamed)
    elif d.kind == cnp.NPY_INT32:
        decode_chunk(out, <const int32_t*> c, scale, <const int32_t*> z, start, stop, d.lay,
                     d.packed, d.streamed)
    else:
        decode_chunk(out, <const uint32_t*> c, scale, <const uint32_t*> z, start, stop, d.lay,
                     d.packed, d.streamed)


cdef void decode_some(void* context, Py_ssize_t k, int worker) noexcept nogil:
    """Chunk k of the elements."""
    cdef Decoding* d = <Decoding*> context
    cdef Py_ssize_t start = k * CHUNK, stop = min(d.n, start + CHUNK)
    if d.single:
        decode_kind(d, <float*> d.out, <const float*> d.scale, start, stop)
    else:
        decode_kind(d, <double*> d.out, <const double*> d.scale, start, stop)


CODES = frozenset((
    cnp.NPY_INT8, cnp.NPY_UINT8, cnp.NPY_INT16, cnp.NPY_UINT16, cnp.NPY_INT32, cnp.NPY_UINT32
))


def decode(
    cnp.ndarray out not None, cnp.ndarray codes not None, cnp.ndarray scale not None,
    cnp.ndarray zero_point not None, bint rows, Py_ssize_t depth, Py_ssize_t width,
    Py_ssize_t group, bint packed, bint streamed, int threads,
):
    """out = (codes - zero_point) * scale under the layout; ``packed`` codes lie two to a byte
    (uint8), signed where the zero point is."""
    cdef Layout lay = Layout(rows, depth, width, group)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(out)
    cdef Py_ssize_t parts = scales_of(n, lay) if n else cnp.PyArray_SIZE(scale)
    cdef Decoding d
    cdef int floats = cnp.PyArray_TYPE(out), size = 2 if packed else 1
    if floats != cnp.NPY_FLOAT64:
        floats = cnp.NPY_FLOAT32
    d.kind = cnp.PyArray_TYPE(zero_point if packed else codes)
    if d.kind not in CODES or (packed and d.kind != cnp.NPY_UINT8):
        d.kind = cnp.NPY_INT8  # refused just below, with the wanted dtype named
    d.single = floats == cnp.NPY_FLOAT32
    d.n, d.lay, d.packed, d.streamed = n, lay, packed, streamed
    d.out = data_of(out, floats, n, True, "out")
    d.scale = data_of(scale, floats, parts, False, "scale")
    d.codes = data_of(
        codes, cnp.NPY_UINT8 if packed else d.kind, (n + size - 1) // size, False, "codes"
    )
    d.zero = data_of(zero_point, d.kind, parts, False, "zero_point")
    with nogil:
        run_polled(decode_some, &d, (n + CHUNK - 1) // CHUNK, threads)


cdef void widen_chunk(
    floating* out, const char* q, const floating* scale, Py_ssize_t start, Py_ssize_t stop,
    Layout lay, int item, Spec s, bint streamed,
) noexcept nogil:
    """Elements [start, stop) of narrow floats, tile by tile."""
    cdef float[TILE] tile
    cdef floating[TILE] made
    cdef Place p = place_of(start, lay)
    cdef floating* to
    cdef Py_ssize_t end, n, j, k, part
    while start < stop:
        end = tile_end(out, start, stop, sizeof(floating), TILE)
        widen_run(&tile[0], q + start * item, end - start, item, s)
        to = &made[0] if streamed else out + start
        j = 0
        while j < end - start:
            n = take(&p, lay, end - start - j, &part)
            if lay.rows:
                for k in range(n):
                    to[j + k] = tile[j + k] * scale[part + k]
            else:
                for k in range(n):
                    to[j + k] = tile[j + k] * scale[part]
            j += n
        if streamed:
            stream(out + start, to, (end - start) * sizeof(floating))
        start = end
    if streamed:
        stream_fence()


cdef struct Widening:
    bint single
    void* out
    const char* codes
    const void* scale
    Py_ssize_t n
    Layout lay
    int item
    Spec spec
    bint streamed


cdef void widen_some(void* context, Py_ssize_t k, int worker) noexcept nogil:
    """Chunk k of the elements."""
    cdef Widening* w = <Widening*> context
    cdef Py_ssize_t start = k * CHUNK, stop = min(w.n, start + CHUNK)
    if w.single:
        widen_chunk(<float*> w.out, w.codes, <const float*> w.scale, start, stop, w.lay, w.item,
                    w.spec, w.streamed)
    else:
        widen_chunk(<double*> w.out, w.codes, <const double*> w.scale, start, stop, w.lay, w.item,
                    w.spec, w.streamed)


def widen(
    cnp.ndarray out not None, cnp.ndarray codes not None, cnp.ndarray scale not None, bint rows,
    Py_ssize_t depth, Py_ssize_t width, Py_ssize_t group, int bits, int man, int bias,
    uint32_t max_code, uint32_t over, uint32_t nan, bint streamed, int threads,
):
    """out = values of the codes of a narrow float * scale, in out's dtype."""
    cdef Layout lay = Layout(rows, depth, width, group)
    cdef Spec s = spec_of(bits, man, bias, max_code, over, nan)
    cdef int item = 2 if bits > 8 else 1
    cdef bint wide = cnp.PyArray_TYPE(out) == cnp.NPY_FLOAT64
    cdef int kind = cnp.NPY_FLOAT64 if wide else cnp.NPY_FLOAT32
    cdef Py_ssize_t n = cnp.PyArray_SIZE(out)
    cdef Py_ssize_t parts = scales_of(n, lay) if n else cnp.PyArray_SIZE(scale)
    cdef void* o = data_of(out, kind, n, True, "out")
    cdef const void* by = data_of(scale, kind, parts, False, "scale")
    cdef const char* q = <const char*> data_of(
        codes, cnp.NPY_UINT16 if bits > 8 else cnp.NPY_UINT8, n, False, "codes"
    )
    cdef Widening w = Widening(kind == cnp.NPY_FLOAT32, o, q, by, n, lay, item, s, streamed)
    with nogil:
        run_polled(widen_some, &w, (n + CHUNK - 1) // CHUNK, threads)
