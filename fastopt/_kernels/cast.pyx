"""Casts between float32 and narrow floating point: float16, bfloat16, float8, float4.

Rounds half to even (IEEE 754) or stochastically: up with the probability of the fraction, from
Philox words that depend on the seed and the element's index alone. What is too large becomes the
largest finite value, infinity or NaN, as the format's spec says. float64 goes through float32
rounded to odd, so the result is rounded once.
"""

from fastopt._kernels cimport _numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.math cimport ldexp
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastopt._kernels._args cimport data_of
from fastopt._kernels._noise cimport noise
from fastopt._kernels._stream cimport (
    Window, close, prefetch, stream, stream_fence, tile_end, took, window_on
)

cnp.import_array()


cdef extern from "narrow.h":
    ctypedef struct Spec "fo_narrow_spec":
        uint32_t shift
        uint32_t sign
        uint32_t rebias
        uint32_t min_normal
        uint32_t max_code
        uint32_t over
        uint32_t nan
        float magic
        float step
        float inverse
    uint32_t fo_bits(float x) noexcept nogil
    uint32_t narrow_one "fo_narrow" (float x, Spec s) noexcept nogil
    uint32_t narrow_random "fo_narrow_random" (float x, uint32_t w, Spec s) noexcept nogil
    float widen_one "fo_widen" (uint32_t code, Spec s) noexcept nogil
    float to_odd "fo_odd" (double x) noexcept nogil


ctypedef fused code:
    uint8_t
    uint16_t

ctypedef fused real:
    float
    double

cdef enum:
    BLOCK = 128  # elements of the innermost loop and of one block of noise
    ROOM = 4096  # bytes of a window on the result
    AHEAD = 1024  # elements between a read and its prefetch
    TILE = 1024
    CHUNK = 65536  # elements a thread takes at a time; a multiple of TILE
    STEP = 1 << 25  # elements between two looks for Ctrl-C


cdef Spec spec_of(
    int bits, int man, int bias, uint32_t max_code, uint32_t over, uint32_t nan
) noexcept:
    cdef Spec s
    s.shift = 23 - man
    s.sign = bits - 1
    s.rebias = <uint32_t> (127 - bias) << man
    s.min_normal = 0 if bias == 127 else <uint32_t> (128 - bias) << 23
    s.max_code = max_code
    s.over = over
    s.nan = nan
    s.step = <float> (0.0 if bias == 127 else ldexp(1.0, 1 - bias - man))
    s.magic = <float> (0.0 if bias == 127 else ldexp(1.0, 24 - bias - man))
    s.inverse = <float> (0.0 if bias == 127 else ldexp(1.0, bias + man - 1))
    return s


cdef inline void narrow_block(
    code* out, const real* x, Spec s, bint random, uint64_t key, Py_ssize_t index
) noexcept nogil:
    """BLOCK elements; ``index`` is that of the first, a multiple of BLOCK where it matters."""
    cdef float[BLOCK] v
    cdef code[BLOCK] made
    cdef uint32_t[BLOCK] word
    cdef Py_ssize_t k
    for k in range(BLOCK):
        if real is float:
            v[k] = x[k]
        else:
            v[k] = to_odd(x[k])
    if random:
        noise(&word[0], key, <uint64_t> (index // 64))
        for k in range(BLOCK):
            made[k] = <code> narrow_random(v[k], word[k], s)
    else:
        for k in range(BLOCK):
            made[k] = <code> narrow_one(v[k], s)
    memcpy(out, &made[0], sizeof(made))


cdef void widen_span(
    float* out, const code* q, Py_ssize_t start, Py_ssize_t stop, Spec s
) noexcept nogil:
    """Elements [start, stop), written to out[0:]."""
    cdef float[BLOCK] made
    cdef code[BLOCK] pad
    cdef Py_ssize_t k
    while start + BLOCK <= stop:
        prefetch(q + start + AHEAD)
        for k in range(BLOCK):
            made[k] = widen_one(q[start + k], s)
        memcpy(out, &made[0], sizeof(made))
        out += BLOCK
        start += BLOCK
    if start < stop:
        for k in range(BLOCK):
            pad[k] = 0
        memcpy(&pad[0], q + start, (stop - start) * sizeof(code))
        for k in range(BLOCK):
            made[k] = widen_one(pad[k], s)
        memcpy(out, &made[0], (stop - start) * sizeof(float))


cdef void narrow_chunk(
    code* out, const real* x, Py_ssize_t start, Py_ssize_t stop, Spec s, bint random,
    uint64_t key, bint streamed,
) noexcept nogil:
    """Elements [start, stop); start is a multiple of BLOCK. ``streamed`` passes the caches."""
    cdef char[ROOM + 128] room
    cdef real[BLOCK] pad
    cdef code[BLOCK] made
    cdef Window w = window_on(<char*> (out + start), &room[0])
    cdef Py_ssize_t k, n
    while start < stop:
        n = min(<Py_ssize_t> BLOCK, stop - start)
        if n == BLOCK:
            for k in range(<Py_ssize_t> (BLOCK * sizeof(real) // 64)):
                prefetch(<const char*> (x + start + AHEAD) + 64 * k)
            narrow_block(
                <code*> (w.window + w.fill) if streamed else out + start, x + start, s, random,
                key, start,
            )
        else:
            for k in range(BLOCK):
                pad[k] = 0
            memcpy(&pad[0], x + start, n * sizeof(real))
            narrow_block(&made[0], &pad[0], s, random, key, start)
            memcpy(
                <code*> (w.window + w.fill) if streamed else out + start, &made[0],
                n * sizeof(code),
            )
        if streamed:
            took(&w, n * sizeof(code), ROOM)
        start += n
    if streamed:
        close(&w)
        stream_fence()


cdef void widen_chunk(
    float* out, const code* q, Py_ssize_t start, Py_ssize_t stop, Spec s, bint streamed
) noexcept nogil:
    cdef float[TILE] tile
    cdef Py_ssize_t end
    if not streamed:
        widen_span(out + start, q, start, stop, s)
        return
    while start < stop:
        end = tile_end(out, start, stop, sizeof(float), TILE)
        widen_span(&tile[0], q, start, end, s)
        stream(out + start, &tile[0], (end - start) * sizeof(float))
        start = end
    stream_fence()


cdef int narrow_all(
    code* out, const real* x, Py_ssize_t n, Spec s, bint random, uint64_t key, bint streamed,
    int threads,
) except -1:
    cdef Py_ssize_t begin = 0, end, k
    while begin < n:
        end = min(n, begin + STEP)
        with nogil:
            if threads == 1:
                narrow_chunk(out, x, begin, end, s, random, key, streamed)
            else:
                for k in prange(
                    (end - begin + CHUNK - 1) // CHUNK, num_threads=threads, schedule="dynamic"
                ):
                    narrow_chunk(
                        out, x, begin + k * CHUNK, min(end, begin + (k + 1) * CHUNK), s, random,
                        key, streamed,
                    )
        begin = end
        PyErr_CheckSignals()
    return 0


cdef int widen_all(
    float* out, const code* q, Py_ssize_t n, Spec s, bint streamed, int threads
) except -1:
    cdef Py_ssize_t begin = 0, end, k
    while begin < n:
        end = min(n, begin + STEP)
        with nogil:
            if threads == 1:
                widen_chunk(out, q, begin, end, s, streamed)
            else:
                for k in prange(
                    (end - begin + CHUNK - 1) // CHUNK, num_threads=threads, schedule="dynamic"
                ):
                    widen_chunk(
                        out, q, begin + k * CHUNK, min(end, begin + (k + 1) * CHUNK), s, streamed
                    )
        begin = end
        PyErr_CheckSignals()
    return 0


def narrow(
    cnp.ndarray out not None, cnp.ndarray x not None, int bits, int man, int bias,
    uint32_t max_code, uint32_t over, uint32_t nan, bint random, uint64_t key, bint streamed,
    int threads,
):
    """out = codes of x: uint16 for formats of 9 to 16 bits, else uint8, one code an element."""
    cdef Spec s = spec_of(bits, man, bias, max_code, over, nan)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef int kind = cnp.NPY_UINT16 if bits > 8 else cnp.NPY_UINT8
    cdef void* o = data_of(out, kind, n, True, "out")
    cdef void* a
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT64:
        a = data_of(x, cnp.NPY_FLOAT64, n, False, "x")
        if bits > 8:
            narrow_all(<uint16_t*> o, <double*> a, n, s, random, key, streamed, threads)
        else:
            narrow_all(<uint8_t*> o, <double*> a, n, s, random, key, streamed, threads)
    else:
        a = data_of(x, cnp.NPY_FLOAT32, n, False, "x")
        if bits > 8:
            narrow_all(<uint16_t*> o, <float*> a, n, s, random, key, streamed, threads)
        else:
            narrow_all(<uint8_t*> o, <float*> a, n, s, random, key, streamed, threads)


def widen(
    cnp.ndarray out not None, cnp.ndarray codes not None, int bits, int man, int bias,
    uint32_t max_code, uint32_t over, uint32_t nan, bint streamed, int threads,
):
    """out = float32 values of codes; exact."""
    cdef Spec s = spec_of(bits, man, bias, max_code, over, nan)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(codes)
    cdef int kind = cnp.NPY_UINT16 if bits > 8 else cnp.NPY_UINT8
    cdef void* o = data_of(out, cnp.NPY_FLOAT32, n, True, "out")
    cdef void* q = data_of(codes, kind, n, False, "codes")
    if bits > 8:
        widen_all(<float*> o, <uint16_t*> q, n, s, streamed, threads)
    else:
        widen_all(<float*> o, <uint8_t*> q, n, s, streamed, threads)
