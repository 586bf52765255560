"""What a plan checks and notes of an array: its state, a tensor's memory, what a step writes."""

from libc.stdlib cimport qsort
from libc.string cimport memcmp

from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.update.arrays cimport *
from fastopt._kernels.update.gradients cimport (
    BRAIN_FLOAT, FLOAT, Span, Tensor, by_address, is_dense, refuse_overlap, refuse_shape,
    refuse_type,
)


cdef inline int bind_states(Array* r, Py_ssize_t i, tuple states, tuple scales) except -1:
    """The state of array ``i``, whose signs are known, in its precision or narrower."""
    cdef int k, typenum = cnp.NPY_FLOAT64 if r.item == 8 else cnp.NPY_FLOAT32
    cdef Py_ssize_t size = r.n
    if len(states) != r.n_states:
        raise IndexError(f"states[{i}]: expected {r.n_states} arrays")
    for k in range(r.n_states):
        s = states[k]
        if s.dtype.itemsize != r.item and r.item == 4:
            typenum = cnp.NPY_UINT16
            r.storage = BFLOAT
            if s.dtype.itemsize == 1:
                typenum = cnp.NPY_INT8 if r.signs[k] == SIGNED else cnp.NPY_UINT8
                r.storage = CODES
                r.scales[k] = <float*> data_of(
                    scales[k], cnp.NPY_FLOAT32, (r.n + UNIT - 1) // UNIT, True, "scales"
                )
        if r.matrices != NULL:
            size = r.matrices.count * (r.matrices.cols if k else r.matrices.rows)
        r.state[k] = <char*> data_of(s, typenum, size, True, f"states[{i}][{k}]")
    return 0


cdef inline int bind_tensor(
    Array* r, Py_ssize_t i, cnp.ndarray a, object item, const Tensor* t
) except -1:
    """The gradient of array ``i``, parameter ``a``: ``item``, which shows its memory as ``t``."""
    if not is_dense(t):
        return refuse_type(i, item)
    if t.ndim != cnp.PyArray_NDIM(a) or memcmp(
        t.shape, cnp.PyArray_DIMS(a), t.ndim * sizeof(Py_ssize_t)
    ):
        return refuse_shape(i, a, item)
    if t.bits == 16 and r.item == 4 and (t.code == FLOAT or t.code == BRAIN_FLOAT):
        r.grad_storage = HALF if t.code == FLOAT else BFLOAT
    elif t.code != FLOAT or t.bits != 8 * r.item:
        return refuse_type(i, item)
    if t.data == NULL and r.n:  # a tensor that only describes itself
        return refuse_type(i, item)
    r.g = <char*> t.data + t.byte_offset
    return 0


cdef inline Py_ssize_t written(const Work* w, Span* spans) noexcept:
    """The memory that a step writes besides state, sorted; how many spans. The arrays are
    disjoint, so any gradient is to be looked at anew."""
    cdef Py_ssize_t i, k, m = 0
    cdef Array* r
    cdef char* lo
    for i in range(w.n_arrays):
        r = &w.arrays[i]
        r.apart_from = r.apart_to = NULL
        for k in range(3):
            lo = r.p if k == 0 else r.ema if k == 1 else r.copy
            if lo == NULL or r.n == 0:
                continue
            spans[m].lo, spans[m].hi = lo, lo + r.n * (2 if k == 2 else r.item)
            spans[m].array, spans[m].what = i, k
            m += 1
    qsort(spans, m, sizeof(Span), by_address)
    return m


cdef inline int refuse_shared(Span* spans, Py_ssize_t n) except -1:
    """Gradients that become zero must not share memory."""
    cdef Py_ssize_t i
    qsort(spans, n, sizeof(Span), by_address)
    for i in range(1, n):
        if spans[i].lo < spans[i - 1].hi:
            return refuse_overlap(-1, "another gradient, and zero_grads writes to it")
    return 0
