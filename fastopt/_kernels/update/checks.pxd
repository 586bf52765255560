"""What is asked of every gradient at every step: that it fits, and that it lies apart."""

from fastopt._kernels.shared cimport numpy as cnp

cdef struct Span:
    const char* lo
    const char* hi
    Py_ssize_t row
    int what  # 0 parameter, 1 average, 2 narrow copy


cdef inline int by_address(const void* a, const void* b) noexcept nogil:
    return (1 if (<Span*> a).lo > (<Span*> b).lo else 0) - (
        1 if (<Span*> a).lo < (<Span*> b).lo else 0
    )


cdef inline const Span* overlapped(
    const Span* sorted_spans, Py_ssize_t n, Span s
) noexcept nogil:
    """The one of the n spans, sorted and disjoint, that ``s`` meets, or NULL."""
    cdef Py_ssize_t low = 0, high = n, middle
    while low < high:  # the first one that ends after s begins
        middle = (low + high) // 2
        if sorted_spans[middle].hi <= s.lo:
            low = middle + 1
        else:
            high = middle
    return sorted_spans + low if low < n and sorted_spans[low].lo < s.hi else NULL


cdef inline bint usable(cnp.ndarray g, int typenum, bint writable) noexcept:
    """What ``data_of`` checks, without the cost of an argument's name."""
    cdef int want = cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED
    if writable:
        want |= cnp.NPY_ARRAY_WRITEABLE
    return (
        cnp.PyArray_TYPE(g) == typenum
        and cnp.PyArray_CHKFLAGS(g, want)
        and cnp.PyArray_ISNOTSWAPPED(g)
    )


cdef inline bint same_shape(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef int k
    if cnp.PyArray_NDIM(a) != cnp.PyArray_NDIM(b):
        return False
    for k in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIMS(a)[k] != cnp.PyArray_DIMS(b)[k]:
            return False
    return True


cdef inline bint moved(cnp.ndarray a, const char* data, Py_ssize_t n) noexcept:
    """Whether an array that is held is no longer the memory that was bound (ndarray.resize), or
    may no longer be written."""
    return (
        <const char*> cnp.PyArray_DATA(a) != data or cnp.PyArray_SIZE(a) != n
        or not cnp.PyArray_ISWRITEABLE(a)
    )
