"""Pack 4-bit codes two to a byte, and back.

Order "onnx" (onnx.proto, INT4): elements 2i and 2i + 1 are the low and the high nibble of byte i;
an odd end leaves the last high nibble 0. Order "gguf" (Q4_0 of ggml): in each block of 32
elements, byte j holds element j low and element j + 16 high; the length is a multiple of 32.
"""

from fastopt._kernels.shared cimport numpy as cnp
from libc.stdint cimport uint8_t

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run

cnp.import_array()

cdef enum:
    BLOCK = 64  # elements of the innermost loop
    CHUNK = 131072  # elements a thread takes at a time; a multiple of BLOCK


cdef void pack_span(
    uint8_t* out, const uint8_t* q, Py_ssize_t start, Py_ssize_t stop, bint gguf
) noexcept nogil:
    """Elements [start, stop) to the bytes they belong to; start is a multiple of 64."""
    cdef uint8_t[BLOCK] part
    cdef uint8_t[32] made
    cdef Py_ssize_t k, n
    while start < stop:
        n = min(<Py_ssize_t> BLOCK, stop - start)
        if n == BLOCK:
            for k in range(BLOCK):
                part[k] = q[start + k] & 15
        else:
            for k in range(BLOCK):
                part[k] = 0
            for k in range(n):
                part[k] = q[start + k] & 15
        if gguf:
            for k in range(16):
                made[k] = part[k] | (part[k + 16] << 4)
            for k in range(16):
                made[k + 16] = part[k + 32] | (part[k + 48] << 4)
        else:
            for k in range(32):
                made[k] = part[2 * k] | (part[2 * k + 1] << 4)
        if n == BLOCK:
            for k in range(32):
                out[start // 2 + k] = made[k]
        else:
            for k in range((n + 1) // 2):
                out[start // 2 + k] = made[k]
        start += BLOCK


cdef void unpack_span(
    uint8_t* out, const uint8_t* p, Py_ssize_t start, Py_ssize_t stop, bint gguf, uint8_t sign
) noexcept nogil:
    """Elements [start, stop); ``sign`` is 8 for signed nibbles, (c ^ 8) - 8, and 0 otherwise."""
    cdef uint8_t[BLOCK] part
    cdef uint8_t[32] given
    cdef Py_ssize_t k, n
    while start < stop:
        n = min(<Py_ssize_t> BLOCK, stop - start)
        if n == BLOCK:
            for k in range(32):
                given[k] = p[start // 2 + k]
        else:
            for k in range(32):
                given[k] = 0
            for k in range((n + 1) // 2):
                given[k] = p[start // 2 + k]
        if gguf:
            for k in range(16):
                part[k] = ((given[k] & 15) ^ sign) - sign
                part[k + 16] = ((given[k] >> 4) ^ sign) - sign
            for k in range(16):
                part[k + 32] = ((given[k + 16] & 15) ^ sign) - sign
                part[k + 48] = ((given[k + 16] >> 4) ^ sign) - sign
        else:
            for k in range(32):
                part[2 * k] = ((given[k] & 15) ^ sign) - sign
                part[2 * k + 1] = ((given[k] >> 4) ^ sign) - sign
        if n == BLOCK:
            for k in range(BLOCK):
                out[start + k] = part[k]
        else:
            for k in range(n):
                out[start + k] = part[k]
        start += BLOCK


cdef struct Work:
    uint8_t* out
    const uint8_t* x
    Py_ssize_t n
    bint gguf
    uint8_t sign


cdef void pack_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Work* w = <Work*> context
    pack_span(w.out, w.x, k * CHUNK, min(w.n, (k + 1) * CHUNK), w.gguf)


cdef void unpack_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Work* w = <Work*> context
    unpack_span(w.out, w.x, k * CHUNK, min(w.n, (k + 1) * CHUNK), w.gguf, w.sign)


def pack_nibbles(
    cnp.ndarray out not None, cnp.ndarray codes not None, bint gguf, int threads
):
    """out (uint8) = codes (int8 or uint8, low four bits), two to a byte."""
    cdef int kind = cnp.NPY_INT8 if cnp.PyArray_TYPE(codes) == cnp.NPY_INT8 else cnp.NPY_UINT8
    cdef Py_ssize_t n = cnp.PyArray_SIZE(codes)
    cdef const uint8_t* q = <const uint8_t*> data_of(codes, kind, n, False, "codes")
    cdef uint8_t* o = <uint8_t*> data_of(out, cnp.NPY_UINT8, (n + 1) // 2, True, "out")
    if gguf and n % 32:
        from fastopt.errors import ArrayError

        raise ArrayError(f"codes: gguf order needs a multiple of 32 elements, got {n}")
    cdef Work w = Work(o, q, n, gguf, 0)
    with nogil:
        run(pack_chunk, &w, (n + CHUNK - 1) // CHUNK, threads)


def unpack_nibbles(
    cnp.ndarray out not None, cnp.ndarray packed not None, bint gguf, int threads
):
    """out (int8: sign-extended, uint8: not) = the nibbles of packed (uint8)."""
    cdef int kind = cnp.NPY_INT8 if cnp.PyArray_TYPE(out) == cnp.NPY_INT8 else cnp.NPY_UINT8
    cdef Py_ssize_t n = cnp.PyArray_SIZE(out)
    cdef uint8_t sign = 8 if kind == cnp.NPY_INT8 else 0
    cdef uint8_t* o = <uint8_t*> data_of(out, kind, n, True, "out")
    cdef const uint8_t* p = <const uint8_t*> data_of(
        packed, cnp.NPY_UINT8, (n + 1) // 2, False, "packed"
    )
    if gguf and n % 32:
        from fastopt.errors import ArrayError

        raise ArrayError(f"packed: gguf order needs a multiple of 32 elements, got {n}")
    cdef Work w = Work(o, p, n, gguf, sign)
    with nogil:
        run(unpack_chunk, &w, (n + CHUNK - 1) // CHUNK, threads)
