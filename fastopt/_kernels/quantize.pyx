"""Quantise to integers and fixed point, per tensor, axis or group; or there and back in one pass.

code = overflow(round(x / scale) + zero_point), and for ``fake`` (code - zero_point) * scale: no
array of codes in between. The layout (``rows``, ``depth``, ``width``, ``group``) is explained in
_layout.pxd.

Arithmetic has the dtype of ``scale``, which is float64 where x is or where codes have 32 bits.
Rounding: half to even (ONNX QuantizeLinear), half away from zero, down, toward zero, or up with
the probability of the fraction, from 16 random bits of the element's index: that probability is
exact to 2**-17. Overflow saturates in floating point, before the conversion, or wraps modulo the
codes' range. ``join`` tells when the zero point comes in: 0 after rounding; 1 before it; 2 before
it in one rounding with the product (torch, whose quotient is x * (1 / scale): ``times``).
NaN gives ``low`` (``high`` with join > 0), or 0 where it wraps, as infinities do there.
"""

from fastopt._kernels cimport _numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.math cimport NAN, frexp
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastopt._kernels._args cimport data_of
from fastopt._kernels._layout cimport Layout, Place, place_of, scales_of, take
from fastopt._kernels._noise cimport noise
from fastopt._kernels._stream cimport Window, close, prefetch, stream_fence, took, window_on
from fastopt._kernels.quantize_steps cimport (
    BLOCK, EVEN, HALF, RANDOM, Rule, any_nan, at_once, at_random, derived, limited, packed_block,
    quotients, real, rounded, spread, stored
)

cnp.import_array()

cdef enum:
    AHEAD = 1024  # elements between a read and its prefetch (the hardware's comes too late: 1.25x)
    ROOM = 4096  # bytes of a window on the result: at least three blocks
    CHUNK = 65536  # elements a thread takes at a time
    STEP = 1 << 25  # elements between two looks for Ctrl-C

cdef struct Plan:  # pointers and kinds of one call
    char* out
    uint8_t* mask  # NULL, or whether an element was in range
    const void* x
    bint wide  # x is float64
    int item  # bytes of a code; 0: values come back, in x's dtype
    int size  # bytes of an element of out
    bint packed  # two codes of one byte share one, the first one low
    double reach  # scales are made on the way, max|x| / reach; 0: they are given
    double cap
    bint centred  # every zero point is 0
    bint brief  # random rounding whose steps of 2**-16 fit 32 bits
    Layout lay
    Rule rule


cdef int convert_chunk(
    Plan* plan, const real* scale, const real* zero, Py_ssize_t start, Py_ssize_t stop,
    bint streamed,
) noexcept nogil:
    """Elements [start, stop); start is a multiple of BLOCK. With rule.check: is there a NaN?"""
    cdef char[ROOM + 128] room
    cdef real[BLOCK] s
    cdef real[BLOCK] z
    cdef real[BLOCK] inverse
    cdef real[BLOCK] v
    cdef float[BLOCK] one
    cdef uint32_t[BLOCK] word
    cdef double[BLOCK] given  # the last block: its elements and zeros
    cdef double[BLOCK] made
    cdef uint8_t[BLOCK] inside
    cdef const real* by
    cdef const real* add
    cdef const char* x
    cdef uint8_t[BLOCK] nibble
    cdef char* out = plan.out + (start * plan.size >> plan.packed)
    cdef char* place
    cdef char* o
    cdef uint8_t* mask
    cdef Window w = window_on(out, &room[0])
    cdef Rule rule = plan.rule
    cdef Layout lay = plan.lay
    cdef Place p = place_of(start, lay)
    cdef real base = 0
    cdef Py_ssize_t n, j, k, m, taken, part = 0, left = 0, have = -1
    cdef int size = 8 if plan.wide else 4, odd = 0
    cdef bint plain = plan.item == 1 or plan.item == 2
    cdef bint even = (
        not lay.rows and lay.group != 0 and lay.width < BLOCK and BLOCK % lay.width == 0
        and lay.depth % lay.width == 0
    )
    if even:
        part = start // lay.width
    plain = sizeof(real) == 4 and plain and not (rule.wrap or rule.join)
    spread(&s[0], <real> 1, BLOCK)
    spread(&z[0], <real> 0, BLOCK)
    spread(&one[0], 1, BLOCK)
    spread(&inverse[0], <real> 1, BLOCK)
    while start < stop:
        n = min(<Py_ssize_t> BLOCK, stop - start)
        by = &s[0]
        add = &z[0]
        j = 0
        while even and j < n:  # short runs that fill blocks, their scales one after the other
            if real is float:
                if plan.reach:
                    odd |= derived(
                        <float*> scale + part, <const float*> plan.x + start + j, lay.width,
                        plan.reach, plan.cap,
                    )
            spread(&s[j], scale[part], lay.width)
            if rule.times:
                spread(&inverse[j], <real> 1 / scale[part], lay.width)
            if not plan.centred:
                spread(&z[j], zero[part], lay.width)
            part += 1
            j += lay.width
        while j < n:
            if left == 0:
                left = take(&p, lay, stop - start - j, &part)
                if real is float:
                    if plan.reach:
                        odd |= derived(
                            <float*> scale + part, <const float*> plan.x + start + j, left,
                            plan.reach, plan.cap,
                        )
            m = min(left, n - j)
            if not lay.rows:
                if part != have or m < n:
                    spread(&s[j], scale[part], m)
                    if rule.times:
                        spread(&inverse[j], <real> 1 / scale[part], m)
                    if not plan.centred and zero[part] != base:  # base is NaN where z does not hold one number
                        base = zero[part] if m == n else <real> NAN
                        spread(&z[0] if m == n else &z[j], zero[part], BLOCK if m == n else m)
                have = part if m == n else -1
            else:
                if m == BLOCK:  # the scales where they stand
                    by = scale + part
                    add = &z[0] if plan.centred else zero + part
                else:
                    memcpy(&s[j], scale + part, m * sizeof(real))
                    if not plan.centred:
                        memcpy(&z[j], zero + part, m * sizeof(real))
                part += m
            left -= m
            j += m
        if rule.times and lay.rows:
            for k in range(BLOCK):
                inverse[k] = <real> 1 / by[k]
        x = <const char*> plan.x + start * size
        place = w.window + w.fill if streamed else out
        taken = (n * plan.size + plan.packed) >> plan.packed
        o = <char*> &nibble[0] if plan.packed else place
        mask = plan.mask + start if plan.mask != NULL else NULL
        if n < BLOCK:
            memset(&given[0], 0, sizeof(given))
            memcpy(&given[0], x, n * size)
            x = <const char*> &given[0]
            o = <char*> &nibble[0] if plan.packed else <char*> &made[0]
            mask = &inside[0] if mask != NULL else NULL
        else:
            for k in range(<Py_ssize_t> (BLOCK * sizeof(real) // 64)):
                prefetch(x + AHEAD * size + 64 * k)
        if rule.check:
            odd |= any_nan(x, plan.wide)
        if real is float:
            if plain and rule.mode == EVEN:
                at_once(
                    o, <const float*> x, by, &inverse[0], add, plan.item, rule.times, rule
                )
        if rule.mode != EVEN or not plain:
            quotients(&v[0], x, plan.wide, by, &inverse[0], add, rule)
            if rule.mode == RANDOM and start // BLOCK % 2 == 0:
                noise(&word[0], rule.key, <uint64_t> (start // BLOCK))
            if real is float:
                if plain and plan.brief:
                    at_random(o, &v[0], &word[start // BLOCK % 2 * HALF], plan.item, rule)
            if not plan.brief:
                rounded(&v[0], &word[start // BLOCK % 2 * HALF], rule)
                if real is float:
                    if plain:
                        at_once(o, &v[0], &one[0], &one[0], add, plan.item, True, rule)
        if not plain:
            limited(&v[0], add, mask, rule)
            stored(o, &v[0], by, add, plan.item, plan.wide)
        if plan.packed:
            packed_block(<uint8_t*> &made[0], <const uint8_t*> o, n)
            memcpy(place, &made[0], taken)
        elif n < BLOCK:
            memcpy(place, o, taken)
        if n < BLOCK and mask != NULL:
            memcpy(plan.mask + start, mask, n)
        if streamed:
            took(&w, taken, ROOM)
        out += taken
        start += n
    if streamed:
        close(&w)
        stream_fence()
    return odd


cdef bint exact_inverse(double scale) noexcept:
    """Is multiplying by 1 / scale the same as dividing? It is for powers of two."""
    cdef int power
    return frexp(scale, &power) == 0.5 and -120 < power < 120


cdef int convert_all(
    Plan* plan, const real* scale, const real* zero, Py_ssize_t n, Py_ssize_t parts,
    bint streamed, int threads,
) except -1:
    cdef Py_ssize_t begin = 0, end, k
    cdef Rule* rule = &plan.rule
    cdef int odd = 0
    plan.centred = True
    for k in range(parts):
        plan.centred &= zero[k] == 0
    if parts == 1:
        rule.times |= exact_inverse(scale[0])
    plan.brief = sizeof(real) == 4 and (
        rule.mode == RANDOM and plan.centred and not rule.wrap and plan.item != 0
        and rule.low >= -32768 and rule.high <= 32767
    )
    while begin < n:
        end = min(n, begin + STEP)
        with nogil:
            if threads == 1:
                odd |= convert_chunk(plan, scale, zero, begin, end, streamed)
            else:
                for k in prange(
                    (end - begin + CHUNK - 1) // CHUNK, num_threads=threads, schedule="dynamic"
                ):
                    odd |= convert_chunk(
                        plan, scale, zero, begin + k * CHUNK,
                        min(end, begin + (k + 1) * CHUNK), streamed,
                    )
        begin = end
        PyErr_CheckSignals()
    return odd


cdef int convert(
    Plan* plan, cnp.ndarray x, cnp.ndarray scale, cnp.ndarray zero, Py_ssize_t n, bint streamed,
    int threads,
) except -1:
    """Check what is read, pick the arithmetic and run."""
    cdef int kind = cnp.NPY_FLOAT32
    cdef Py_ssize_t parts = scales_of(n, plan.lay) if n else cnp.PyArray_SIZE(scale)
    cdef void* s
    cdef void* z
    plan.reach = 0
    plan.wide = cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT64
    plan.x = data_of(x, cnp.NPY_FLOAT64 if plan.wide else kind, n, False, "x")
    if plan.wide or plan.item == 4 or cnp.PyArray_TYPE(scale) == cnp.NPY_FLOAT64:
        kind = cnp.NPY_FLOAT64
    s = data_of(scale, kind, parts, False, "scale")
    z = data_of(zero, kind, parts, False, "zero_point")
    if kind == cnp.NPY_FLOAT64:
        return convert_all(plan, <double*> s, <double*> z, n, parts, streamed, threads)
    return convert_all(plan, <float*> s, <float*> z, n, parts, streamed, threads)


def encode(
    cnp.ndarray out not None, cnp.ndarray x not None, cnp.ndarray scale not None,
    cnp.ndarray zero_point not None, bint rows, Py_ssize_t depth, Py_ssize_t width,
    Py_ssize_t group, double low, double high, int mode, int join, bint times, bint wrap,
    bint check, uint64_t key, bint packed, bint streamed, int threads,
):
    """out = codes of x under the layout, any integer of 1, 2 or 4 bytes, or ``packed`` two to a
    byte (uint8); with check: holds x a NaN?"""
    cdef Plan plan
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef int made = cnp.PyArray_TYPE(out)
    if made not in CODES:
        made = cnp.NPY_INT8  # refused just below, with the wanted dtype named
    plan.lay = Layout(rows, depth, width, group)
    plan.rule = Rule(mode, join, times, wrap, check, low, high, key)
    if packed:
        made = cnp.NPY_UINT8
    plan.out = <char*> data_of(out, made, (n + 1) // 2 if packed else n, True, "out")
    plan.mask = NULL
    plan.item = plan.size = CODES[made]
    plan.packed = packed
    return convert(&plan, x, scale, zero_point, n, streamed, threads) != 0


def encode_groups(
    cnp.ndarray out not None, cnp.ndarray scale not None, cnp.ndarray x not None,
    Py_ssize_t width, double reach, double cap, double low, double high, bint packed,
    bint streamed, int threads,
):
    """scale = max|x| / reach of each ``width`` elements (a power of two, at most CHUNK), and out =
    their codes, half to even, as ``encode`` makes them; is something in x not finite?"""
    cdef Plan plan
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef int made = cnp.PyArray_TYPE(out)
    if width < 1 or CHUNK % width or n % width:
        from fastopt.errors import ArrayError

        raise ArrayError(f"x: {n} elements are no whole groups of {width} that a chunk holds")
    if packed:
        made = cnp.NPY_UINT8
    elif made not in CODES or CODES[made] > 2:
        made = cnp.NPY_INT8  # refused just below, with the wanted dtype named
    plan.lay = Layout(False, max(n, 1), width, 1)
    plan.rule = Rule(EVEN, 0, False, False, False, low, high, 0)
    plan.out = <char*> data_of(out, made, (n + 1) // 2 if packed else n, True, "out")
    plan.x = data_of(x, cnp.NPY_FLOAT32, n, False, "x")
    plan.mask = NULL
    plan.item = plan.size = CODES[made]
    plan.packed = packed
    plan.wide = False
    plan.reach = reach
    plan.cap = cap
    return convert_all(
        &plan, <float*> data_of(scale, cnp.NPY_FLOAT32, n // width, True, "scale"), <float*> NULL,
        n, 0, streamed, threads,
    ) != 0


def fake(
    cnp.ndarray out not None, cnp.ndarray mask, cnp.ndarray x not None,
    cnp.ndarray scale not None, cnp.ndarray zero_point not None, bint rows, Py_ssize_t depth,
    Py_ssize_t width, Py_ssize_t group, double low, double high, int mode, int join, bint times,
    bint check, uint64_t key, bint streamed, int threads,
):
    """out = (codes of x - zero_point) * scale, and mask (bool or None) = the codes were in range
    before they saturated; with check: holds x a NaN?"""
    cdef Plan plan
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef bint wide = cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT64
    plan.lay = Layout(rows, depth, width, group)
    plan.rule = Rule(mode, join, times, False, check, low, high, key)
    plan.out = <char*> data_of(
        out, cnp.NPY_FLOAT64 if wide else cnp.NPY_FLOAT32, n, True, "out"
    )
    plan.mask = NULL
    if mask is not None:
        plan.mask = <uint8_t*> data_of(mask, cnp.NPY_BOOL, n, True, "mask")
    plan.item = 0
    plan.packed = False
    plan.size = 8 if wide else 4
    return convert(&plan, x, scale, zero_point, n, streamed, threads) != 0


CODES = {
    cnp.NPY_INT8: 1, cnp.NPY_UINT8: 1, cnp.NPY_INT16: 2, cnp.NPY_UINT16: 2, cnp.NPY_INT32: 4,
    cnp.NPY_UINT32: 4,
}
