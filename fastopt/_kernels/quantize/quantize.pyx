"""Quantise to integers, fixed point and narrow floats, per tensor, axis or group; or there and
back.

code = overflow(round(x / scale) + zero_point), and for ``fake`` (code - zero_point) * scale: no
array of codes in between. The layout (``rows``, ``depth``, ``width``, ``group``) is explained in
layout.pxd.

Arithmetic has the dtype of ``scale``, which is float64 where x is or where codes have 32 bits.
Rounding: half to even (ONNX QuantizeLinear), half away from zero, down, toward zero, or up with
the probability of the fraction, from 16 random bits of the element's index: that probability is
exact to 2**-17. Overflow saturates in floating point, before the conversion, or wraps modulo the
codes' range. ``join`` tells when the zero point comes in: 0 after rounding; 1 before it; 2 before
it in one rounding with the product (torch, whose quotient is x * (1 / scale): ``times``).
NaN gives ``low`` (``high`` with join > 0), or 0 where it wraps, as infinities do there.

Narrow floats (float16, bfloat16, float8) round half to even (IEEE 754) or at random; what is too
large becomes the largest finite value, infinity or NaN, as the format's spec says. float64 goes
through float32 rounded to odd, so the result is rounded once.

Scales are given or, where parts are runs that follow one another, made in the same pass:
max|x| / reach.
"""

from fastopt._kernels.shared cimport numpy as cnp
from libc.float cimport FLT_MAX
from libc.math cimport frexp
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport mark, marked, run_polled
from fastopt._kernels.quantize.layout cimport Layout, scales_of
from fastopt._kernels.shared.narrow cimport spec_of
from fastopt._kernels.shared.stream cimport Window, close, prefetch, stream_fence, took, window_on
from fastopt._kernels.quantize.block cimport Plan, block_of
from fastopt._kernels.quantize.scales cimport AHEAD, Walk, meet, spread, walk_from
from fastopt._kernels.quantize.steps cimport (
    BLOCK, EVEN, RANDOM, Rule, any_nan, packed_block, real
)

cnp.import_array()

cdef enum:
    ROOM = 8192  # bytes of a window on the result: at least three blocks
    CHUNK = 32768  # elements per chunk: 10 to 20 us, and 100,000 elements make even parts

cdef int convert_chunk(
    Plan* plan, real* scale, const real* zero, Py_ssize_t start, Py_ssize_t stop, bint streamed
) noexcept nogil:
    """Elements [start, stop); start is a multiple of BLOCK, or with ``reach`` the beginning of a
    run. With rule.check: is there a NaN? With ``reach``: is something not finite?"""
    cdef char[ROOM + 128] room
    cdef real[BLOCK] s
    cdef real[BLOCK] z
    cdef real[BLOCK] inverse
    cdef float[BLOCK] one
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
    cdef Walk walk = walk_from(start, lay, plan.centred, rule.times, plan.reach, plan.cap)
    cdef Py_ssize_t n, k, taken, ahead = AHEAD
    cdef int size = 8 if plan.wide else 4, odd = 0
    if plan.reach:  # the next run, which is read as a whole
        ahead = max(ahead, lay.width)
    spread(&s[0], <real> 1, BLOCK)
    spread(&z[0], <real> 0, BLOCK)
    spread(&one[0], 1, BLOCK)
    spread(&inverse[0], <real> 1, BLOCK)
    while start < stop:
        n = min(<Py_ssize_t> BLOCK, stop - start)
        x = <const char*> plan.x + start * size
        by = meet(&walk, &s[0], &z[0], &inverse[0], scale, zero, x, n, stop - start)
        add = &z[0]
        if by == NULL:
            by = &s[0]
        elif not plan.centred:
            add = zero + (by - scale)
        if rule.times and lay.rows:
            for k in range(BLOCK):
                inverse[k] = <real> 1 / by[k]
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
                prefetch(x + ahead * size + 64 * k)
        if rule.check:
            odd |= any_nan(x, plan.wide)
        block_of(o, plan, rule, x, by, &inverse[0], add, &one[0], mask, start)
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
    return odd | walk.odd


cdef bint exact_inverse(double scale) noexcept:
    """Is multiplying by 1 / scale the same as dividing? It is for powers of two."""
    cdef int power
    return frexp(scale, &power) == 0.5 and -120 < power < 120


cdef Py_ssize_t chunk_of(Plan* plan) noexcept:
    """Elements a thread takes at a time: whole blocks, or whole runs (and bytes) to be derived."""
    cdef Py_ssize_t unit = plan.lay.width
    if not plan.reach:
        return CHUNK
    if plan.lay.depth % unit:
        unit = plan.lay.depth
    unit <<= plan.packed and unit % 2
    return max(<Py_ssize_t> 1, CHUNK // unit) * unit


cdef struct Work:
    Plan* plan
    bint single  # arithmetic in float32
    void* scale
    const void* zero
    Py_ssize_t n, chunk
    bint streamed
    int odd


cdef void some_elements(void* context, Py_ssize_t k, int worker) noexcept nogil:
    """Chunk k of the elements."""
    cdef Work* w = <Work*> context
    cdef Py_ssize_t start = k * w.chunk, stop = min(w.n, start + w.chunk)
    cdef int odd
    if w.single:
        odd = convert_chunk(w.plan, <float*> w.scale, <const float*> w.zero, start, stop,
                            w.streamed)
    else:
        odd = convert_chunk(w.plan, <double*> w.scale, <const double*> w.zero, start, stop,
                            w.streamed)
    if odd:
        mark(&w.odd)


cdef int convert_all(
    Plan* plan, real* scale, const real* zero, Py_ssize_t n, Py_ssize_t parts, bint streamed,
    int threads,
) except -1:
    cdef Py_ssize_t k, chunk = chunk_of(plan)
    cdef Rule* rule = &plan.rule
    cdef Work w = Work(plan, sizeof(real) == 4, scale, zero, n, chunk, streamed, 0)
    plan.centred = True
    if zero != NULL:
        for k in range(parts):
            plan.centred &= zero[k] == 0
    if parts == 1 and not plan.reach:
        rule.times |= exact_inverse(scale[0])
    plan.brief = sizeof(real) == 4 and (
        rule.mode == RANDOM and plan.centred and not rule.wrap and plan.item != 0
        and rule.low >= -32768 and rule.high <= 32767
    )
    plan.bare = sizeof(real) == 4 and parts == 1 and not plan.reach and scale[0] == 1
    with nogil:
        run_polled(some_elements, &w, (n + chunk - 1) // chunk, threads)
    return marked(&w.odd)


cdef int convert(
    Plan* plan, cnp.ndarray x, cnp.ndarray scale, cnp.ndarray zero, Py_ssize_t n, bint streamed,
    int threads,
) except -1:
    """Check what is read (and derived scales), pick the arithmetic and run."""
    cdef int kind = cnp.NPY_FLOAT32
    cdef Py_ssize_t parts = scales_of(n, plan.lay) if n else cnp.PyArray_SIZE(scale)
    cdef void* s
    cdef void* z = NULL
    if n == 0:
        return 0
    if plan.reach and (plan.lay.rows or not plan.lay.group and n > plan.lay.depth):
        from fastopt.errors import ArrayError

        raise ArrayError(f"layout: {plan.lay} has no runs that follow one another")
    plan.wide = not plan.reach and cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT64
    plan.x = data_of(x, cnp.NPY_FLOAT64 if plan.wide else kind, n, False, "x")
    if plan.wide or not plan.reach and (
        plan.item == 4 or cnp.PyArray_TYPE(scale) == cnp.NPY_FLOAT64
    ):
        kind = cnp.NPY_FLOAT64
    s = data_of(scale, kind, parts, plan.reach != 0, "scale")
    if zero is not None:
        z = data_of(zero, kind, parts, False, "zero_point")
    if kind == cnp.NPY_FLOAT64:
        return convert_all(plan, <double*> s, <double*> z, n, parts, streamed, threads)
    return convert_all(plan, <float*> s, <float*> z, n, parts, streamed, threads)


cdef int codes_to(Plan* plan, cnp.ndarray out, Py_ssize_t n, bint packed) except -1:
    """The place for n codes: any integer of 1, 2 or 4 bytes, or two to a byte (uint8)."""
    cdef int made = cnp.PyArray_TYPE(out)
    if packed:
        made = cnp.NPY_UINT8
    elif made not in CODES or (plan.reach and CODES[made] > 2):
        made = cnp.NPY_INT8  # refused just below, with the wanted dtype named
    plan.out = <char*> data_of(out, made, (n + 1) // 2 if packed else n, True, "out")
    plan.item = plan.size = CODES[made]
    plan.packed = packed
    return 0


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
    memset(&plan, 0, sizeof(plan))
    plan.lay = Layout(rows, depth, width, group)
    plan.rule = Rule(mode, join, times, wrap, check, low, high, key)
    codes_to(&plan, out, n, packed)
    return convert(&plan, x, scale, zero_point, n, streamed, threads) != 0


def encode_derived(
    cnp.ndarray out not None, cnp.ndarray scale not None, cnp.ndarray x not None, bint rows,
    Py_ssize_t depth, Py_ssize_t width, Py_ssize_t group, double reach, double cap, double low,
    double high, bint packed, bint streamed, int threads,
):
    """scale = max|x| / reach of each run, at most cap, and out = the codes that ``encode`` makes,
    half to even, of one or two bytes; is something in x not finite?"""
    cdef Plan plan
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    memset(&plan, 0, sizeof(plan))
    plan.lay = Layout(rows, depth, width, group)
    plan.rule = Rule(EVEN, 0, False, False, False, low, high, 0)
    plan.reach = reach
    plan.cap = cap
    codes_to(&plan, out, n, packed)
    return convert(&plan, x, scale, None, n, streamed, threads) != 0


def narrow(
    cnp.ndarray out not None, cnp.ndarray scale not None, cnp.ndarray x not None, bint rows,
    Py_ssize_t depth, Py_ssize_t width, Py_ssize_t group, double reach, int bits, int man,
    int bias, uint32_t max_code, uint32_t over, uint32_t nan, bint random, uint64_t key,
    bint streamed, int threads,
):
    """out = codes of x / scale: uint16 for formats of 9 to 16 bits, else uint8, one per element;
    with reach > 0 scale = max|x| / reach of each run: is something in x not finite?"""
    cdef Plan plan
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    memset(&plan, 0, sizeof(plan))
    plan.lay = Layout(rows, depth, width, group)
    plan.rule = Rule(RANDOM if random else EVEN, 0, False, False, False, 0, 0, key)
    plan.spec = spec_of(bits, man, bias, max_code, over, nan)
    plan.narrow = True
    plan.reach = reach
    plan.cap = FLT_MAX
    plan.item = plan.size = 2 if bits > 8 else 1
    plan.out = <char*> data_of(
        out, cnp.NPY_UINT16 if bits > 8 else cnp.NPY_UINT8, n, True, "out"
    )
    return convert(&plan, x, scale, None, n, streamed, threads) != 0


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
    memset(&plan, 0, sizeof(plan))
    plan.lay = Layout(rows, depth, width, group)
    plan.rule = Rule(mode, join, times, False, check, low, high, key)
    plan.size = 8 if wide else 4
    plan.out = <char*> data_of(
        out, cnp.NPY_FLOAT64 if wide else cnp.NPY_FLOAT32, n, True, "out"
    )
    if mask is not None:
        plan.mask = <uint8_t*> data_of(mask, cnp.NPY_BOOL, n, True, "mask")
    return convert(&plan, x, scale, zero_point, n, streamed, threads) != 0


CODES = {
    cnp.NPY_INT8: 1, cnp.NPY_UINT8: 1, cnp.NPY_INT16: 2, cnp.NPY_UINT16: 2, cnp.NPY_INT32: 4,
    cnp.NPY_UINT32: 4,
}
