"""Four-bit codes from a table of 16 values, under scales: NF4 and MXFP4; ggml's blocks of 32.

Encode: code = number of bounds below x * (1 / scale), of |x| with a sign bit on top where the
table is one of magnitudes. Decode: value[code] * scale. Codes stand two to a byte, the first in
the low half (ONNX's order). Where a part that shares a scale is a run of neighbours, its scale can
be derived in the same pass: max|x| / peak, or the power of two below max|x| over peak.

Sources: Dettmers et al., "QLoRA" (2023), appendix E (NF4); OCP Microscaling Formats v1.0, sections
5.3 and 6.3 (MXFP4). The layout (``rows``, ``depth``, ``width``, ``group``): layout.pxd.
"""

from fastopt._kernels.shared cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.stdint cimport uint8_t, uint32_t, uintptr_t
from libc.string cimport memcpy

from fastopt._kernels.shared.arguments cimport data_of
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
    CHUNK = 65536  # elements a thread takes at a time
    STEP = 1 << 25  # elements between two looks for Ctrl-C
    INFINITE = 0x7F800000


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


def ggml(
    cnp.ndarray blocks not None, cnp.ndarray value not None, cnp.ndarray scale not None, int kind,
    int way, int threads,
):
    """ggml's blocks of 32 (uint8): Q8_0, Q4_0, MXFP4 for kind 0, 1, 2.

    way 0: made from value (float32); scale is not used. 1: from value, codes (int8; two a byte,
    uint8), and scale (float32), one a block. 2: to value and scale. Returns whether all is finite.
    """
    cdef Py_ssize_t width = 34 if kind == 0 else 18 if kind == 1 else 17
    cdef Py_ssize_t n = cnp.PyArray_SIZE(blocks) // width, part = CHUNK // 32, i, begin = 0, end
    cdef Py_ssize_t items = n * (32 if way == 0 or kind == 0 else 16)
    cdef int held = cnp.NPY_FLOAT32 if way == 0 else cnp.NPY_INT8 if kind == 0 else cnp.NPY_UINT8
    cdef uint8_t* b = <uint8_t*> data_of(blocks, cnp.NPY_UINT8, n * width, way < 2, "blocks")
    cdef void* v = data_of(value, held, items, way == 2, "value")
    cdef float* s = <float*> data_of(
        scale, cnp.NPY_FLOAT32, -1 if way == 0 else n, way == 2, "scale"
    )
    cdef bint good = True
    if not (0 <= kind <= 2 and 0 <= way <= 2):
        raise IndexError("kind, way")
    while begin < n:
        end = min(n, begin + STEP // 32)
        with nogil:
            if threads == 1:
                good &= ggml_span(b, v, s, begin, end, kind, way)
            else:
                for i in prange(
                    (end - begin + part - 1) // part, num_threads=threads, schedule="dynamic"
                ):
                    good &= ggml_span(
                        b, v, s, begin + i * part, min(end, begin + (i + 1) * part), kind, way
                    )
        begin = end
        PyErr_CheckSignals()
    return good
