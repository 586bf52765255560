"""The scales and zero points that a block of elements meets, given or derived on the way."""

from libc.math cimport NAN
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from fastopt._kernels.quantize.layout cimport Layout, Place, place_of, take
from fastopt._kernels.shared.stream cimport prefetch
from fastopt._kernels.quantize.steps cimport BLOCK, real

cdef enum:
    AHEAD = 1024  # elements between a read and its prefetch (the hardware's comes too late: 1.25x)

cdef struct Walk:  # through the parts of an array, block by block
    Layout lay
    Place place
    bint even  # short runs, one after the other, that fill blocks
    bint centred  # every zero point is 0
    bint times  # 1 / scale is asked for
    double reach  # scales are made here, max|x| / reach; 0: they are given
    double cap
    Py_ssize_t part  # of the next element
    Py_ssize_t left  # elements of its run or row
    Py_ssize_t whole  # the run whose scale fills the block; -1: there is none
    double base  # the zero point that fills the block; NaN: there is none
    int odd  # something was not finite


cdef inline Walk walk_from(
    Py_ssize_t start, Layout lay, bint centred, bint times, double reach, double cap
) noexcept nogil:
    cdef Walk w
    w.lay = lay
    w.place = place_of(start, lay)
    w.centred = centred
    w.times = times
    w.reach = reach
    w.cap = cap
    w.left = w.odd = 0
    w.whole = -1
    w.base = 0
    w.part = start // lay.width
    w.even = (
        not lay.rows and lay.group != 0 and lay.width < BLOCK and BLOCK % lay.width == 0
        and lay.depth % lay.width == 0
    )
    return w


cdef inline void spread(real* to, real value, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    while n >= 16:
        for k in range(16):
            to[k] = value
        to += 16
        n -= 16
    for k in range(n):
        to[k] = value


cdef inline int derived(
    float* scale, const float* x, Py_ssize_t n, double reach, double cap
) noexcept nogil:
    """scale = max|x| / reach, not denormal, at most ``cap``, 1 for zeros. Is something not finite?

    Magnitudes compare as their bits do, and those of infinity and NaN are the largest.
    """
    cdef uint32_t[32] top
    cdef const uint32_t* u = <const uint32_t*> x
    cdef uint32_t b, most = 0
    cdef float f
    cdef double wide
    cdef Py_ssize_t j = 0, k
    for k in range(32):
        top[k] = 0
    while j + 32 <= n:
        for k in range(32):
            b = u[j + k] & 0x7FFFFFFF
            top[k] = b if b > top[k] else top[k]
        j += 32
    for k in range(j, n):
        b = u[k] & 0x7FFFFFFF
        most = b if b > most else most
    for k in range(32):
        most = top[k] if top[k] > most else most
    memcpy(&f, &most, 4)
    wide = f / reach
    wide = wide if wide < cap else cap
    wide = wide if wide > 1.1754943508222875e-38 else 1.1754943508222875e-38
    scale[0] = <float> (1.0 if most == 0 else wide)
    return most >= 0x7F800000


cdef inline const real* meet(
    Walk* w, real* s, real* z, real* inverse, real* scale, const real* zero, const void* x,
    Py_ssize_t n, Py_ssize_t rest,
) noexcept nogil:
    """Scales, zero points and inverses of the next n <= BLOCK elements, with x the ``rest`` of the
    array. NULL: they are in s, z and inverse; else the scales stand where this points to, and the
    zero points likewise."""
    cdef Py_ssize_t j = 0, m
    while j < n:
        if w.left == 0:
            if w.even:
                w.left = w.lay.width
            else:
                w.left = take(&w.place, w.lay, rest - j, &w.part)
            if real is float:
                if w.reach:
                    w.odd |= derived(
                        scale + w.part, <const float*> x + j, w.left, w.reach, w.cap
                    )
        m = min(w.left, n - j)
        if w.lay.rows:
            w.left -= m
            w.part += m
            if m == BLOCK:
                return scale + w.part - m
            memcpy(s + j, scale + w.part - m, m * sizeof(real))
            if not w.centred:
                memcpy(z + j, zero + w.part - m, m * sizeof(real))
        else:
            if w.part != w.whole or m < n:
                spread(s + j, scale[w.part], m)
                if w.times:
                    spread(inverse + j, <real> 1 / scale[w.part], m)
                if not w.centred and zero[w.part] != w.base:
                    w.base = zero[w.part] if m == n else NAN
                    spread(z if m == n else z + j, zero[w.part], BLOCK if m == n else m)
            w.whole = w.part if m == n else -1
            w.left -= m
            w.part += w.even
        j += m
    return NULL
