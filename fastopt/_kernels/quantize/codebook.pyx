"""Four-bit codes from a table of 16 values, under scales: NF4 and MXFP4; ggml's blocks of 32.

Encode: code = number of bounds below x * (1 / scale), of |x| with a sign bit on top where the
table is one of magnitudes. Decode: value[code] * scale. Codes stand two to a byte, the first in
the low half (ONNX's order). Where a part that shares a scale is a run of neighbours, its scale can
be derived in the same pass: max|x| / peak, or the power of two below max|x| over peak.

Sources: Dettmers et al., "QLoRA" (2023), appendix E (NF4); OCP Microscaling Formats v1.0, sections
5.3 and 6.3 (MXFP4). The layout (``rows``, ``depth``, ``width``, ``group``): layout.pxd.
"""

from fastopt._kernels.shared cimport numpy as cnp
from libc.stdint cimport uint8_t, uintptr_t
from libc.string cimport memcpy

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport mark, marked, run_polled
from fastopt._kernels.quantize.layout cimport Layout, scales_of
from fastopt._kernels.shared.stream cimport stream, stream_fence
from fastopt._kernels.quantize.codebook_spans cimport Rule, Table, decode_span, encode_span, fill

cnp.import_array()

cdef extern from "quantize/ggml.h":
    bint ggml_span "fo_ggml_span" (
        uint8_t* block, void* value, float* scale, Py_ssize_t first, Py_ssize_t last, int kind,
        int way,
    ) noexcept nogil

cdef enum:
    TILE = 2048  # of the decoder
    CHUNK = 32768  # elements per chunk: 10 to 20 us, and 100,000 elements make even parts
    INFINITE = 0x7F800000


cdef struct Encoding:
    uint8_t* out
    float* scale
    const float* x
    Py_ssize_t n, step  # elements in all, per chunk
    Layout lay
    Rule rule
    Table t
    int infinite  # something that a scale was derived from is not finite

cdef struct Decoding:
    float* out
    const uint8_t* codes
    const float* scale
    Py_ssize_t n
    Layout lay
    Table t
    bint streamed

cdef struct Blocks:
    uint8_t* blocks
    void* value
    float* scale
    Py_ssize_t n
    int kind, way
    int infinite


cdef void encode_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Encoding* e = <Encoding*> context
    cdef Py_ssize_t start = k * e.step, stop = min(e.n, start + e.step)
    if encode_span(e.out + start // 2, e.scale, e.x, start, stop, e.lay, e.rule, &e.t) >= INFINITE:
        mark(&e.infinite)


cdef void decode_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    """``streamed`` sends whole cache lines past the caches, the rest waits in the tile."""
    cdef Decoding* d = <Decoding*> context
    cdef float[TILE + 16] tile
    cdef Py_ssize_t start = k * CHUNK, stop = min(d.n, start + CHUNK), end, n, carry = 0, whole
    cdef float* out_at
    if not d.streamed:
        decode_span(d.out + start, d.codes, d.scale, start, stop, d.lay, &d.t)
        return
    while start < stop:
        end = min(stop, start + TILE)
        decode_span(&tile[carry], d.codes, d.scale, start, end, d.lay, &d.t)
        n = carry + end - start
        out_at = d.out + start - carry
        whole = n if end == stop else n - ((<uintptr_t> (out_at + n)) & 63) // sizeof(float)
        stream(out_at, &tile[0], whole * sizeof(float))
        carry = n - whole
        memcpy(&tile[0], &tile[whole], carry * sizeof(float))
        start = end
    stream_fence()


cdef void ggml_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Blocks* b = <Blocks*> context
    cdef Py_ssize_t first = k * (CHUNK // 32), last = min(b.n, first + CHUNK // 32)
    if not ggml_span(b.blocks, b.value, b.scale, first, last, b.kind, b.way):
        mark(&b.infinite)


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
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x), unit = 2
    cdef Encoding e
    e.n, e.lay, e.infinite = n, Layout(rows, depth, width, group), 0
    e.rule = Rule(deriving, power, <float> 1.0 / peak)
    e.x = <const float*> data_of(x, cnp.NPY_FLOAT32, n, False, "x")
    e.out = <uint8_t*> data_of(out, cnp.NPY_UINT8, (n + 1) // 2, True, "out")
    e.scale = <float*> data_of(
        scale, cnp.NPY_FLOAT32, scales_of(n, e.lay), deriving, "scale"
    )
    table_of(&e.t, bound, value, sign)
    if deriving and (rows or (group == 0 and n != depth)):
        from fastopt.errors import ArrayError

        raise ArrayError("layout: scales can be derived only from runs that meet each one once")
    if deriving:  # a thread takes whole runs and whole bytes
        unit = width if depth % width == 0 else depth
        unit *= 1 + unit % 2
    e.step = max(<Py_ssize_t> 1, CHUNK // unit) * unit
    with nogil:
        run_polled(encode_chunk, &e, (n + e.step - 1) // e.step, threads)
    return not marked(&e.infinite)


def decode(
    cnp.ndarray out not None, cnp.ndarray codes not None, cnp.ndarray scale not None,
    cnp.ndarray bound not None, cnp.ndarray value not None, bint sign,
    bint rows, Py_ssize_t depth, Py_ssize_t width, Py_ssize_t group, bint streamed, int threads,
):
    """out (float32) = value[code] * scale of the packed codes (uint8)."""
    cdef Decoding d
    d.n, d.lay, d.streamed = cnp.PyArray_SIZE(out), Layout(rows, depth, width, group), streamed
    d.out = <float*> data_of(out, cnp.NPY_FLOAT32, d.n, True, "out")
    d.codes = <const uint8_t*> data_of(codes, cnp.NPY_UINT8, (d.n + 1) // 2, False, "codes")
    d.scale = <const float*> data_of(
        scale, cnp.NPY_FLOAT32, scales_of(d.n, d.lay), False, "scale"
    )
    table_of(&d.t, bound, value, sign)
    with nogil:
        run_polled(decode_chunk, &d, (d.n + CHUNK - 1) // CHUNK, threads)


def ggml(
    cnp.ndarray blocks not None, cnp.ndarray value not None, cnp.ndarray scale not None, int kind,
    int way, int threads,
):
    """ggml's blocks of 32 (uint8): Q8_0, Q4_0, MXFP4 for kind 0, 1, 2.

    way 0: made from value (float32); scale is not used. 1: from value, codes (int8; two per byte,
    uint8), and scale (float32), one per block. 2: to value and scale. Returns whether all is
    finite.
    """
    cdef Py_ssize_t width = 34 if kind == 0 else 18 if kind == 1 else 17
    cdef Py_ssize_t n = cnp.PyArray_SIZE(blocks) // width
    cdef Py_ssize_t items = n * (32 if way == 0 or kind == 0 else 16)
    cdef int held = cnp.NPY_FLOAT32 if way == 0 else cnp.NPY_INT8 if kind == 0 else cnp.NPY_UINT8
    cdef Blocks b = Blocks(
        <uint8_t*> data_of(blocks, cnp.NPY_UINT8, n * width, way < 2, "blocks"),
        data_of(value, held, items, way == 2, "value"),
        <float*> data_of(scale, cnp.NPY_FLOAT32, -1 if way == 0 else n, way == 2, "scale"),
        n, kind, way, 0,
    )
    if not (0 <= kind <= 2 and 0 <= way <= 2):
        raise IndexError("kind, way")
    with nogil:
        run_polled(ggml_chunk, &b, (n + CHUNK // 32 - 1) // (CHUNK // 32), threads)
    return not marked(&b.infinite)
