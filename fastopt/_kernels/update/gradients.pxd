"""What every gradient is asked at every step: that it fits, and that it lies apart; how a tensor
shows its memory; and the messages of what is refused.

Tensors of other libraries are read through DLPack's table of C functions (version 1.3), which
takes tens of ns. A class of tensors shows the table as ``__dlpack_c_exchange_api__``, a capsule.
Only what is read here is declared; the layout is dlpack.h's.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int32_t, int64_t

from fastopt._kernels.shared cimport numpy as cnp

cdef extern from *:
    """
    typedef struct {
        void* data;
        int32_t device_type, device_id, ndim;
        uint8_t code, bits;
        uint16_t lanes;
        int64_t *shape, *strides;
        uint64_t byte_offset;
    } fo_tensor;
    typedef int (*fo_borrow)(void* object, fo_tensor* out);
    typedef struct fo_exchange {
        uint32_t major, minor;
        struct fo_exchange* before; /* a table of an older version */
        void *allocate, *managed_from_object, *object_from_managed;
        fo_borrow borrow; /* may be NULL */
        void* stream;
    } fo_exchange;
    """
    ctypedef struct Tensor "fo_tensor":
        void* data
        int32_t device_type
        int32_t ndim
        unsigned char code
        unsigned char bits
        unsigned short lanes
        int64_t* shape
        int64_t* strides
        unsigned long long byte_offset
    ctypedef int (*Borrow "fo_borrow")(void*, Tensor*) noexcept
    ctypedef struct Exchange "fo_exchange":
        unsigned int major
        Exchange* before
        Borrow borrow

cdef enum:
    CPU = 1  # device_type
    FLOAT = 2  # code
    BRAIN_FLOAT = 4


cdef inline Borrow borrow_of(type kind):
    """How to look at an object of this class; NULL where the class does not say."""
    cdef Exchange* table
    capsule = getattr(kind, "__dlpack_c_exchange_api__", None)
    if not PyCapsule_IsValid(capsule, "dlpack_exchange_api"):
        return NULL
    table = <Exchange*> PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
    while table != NULL and table.major != 1:
        table = table.before
    return NULL if table == NULL else table.borrow


cdef inline bint is_dense(const Tensor* t) noexcept:
    """On the CPU, in C order, aligned."""
    cdef int64_t apart = 1
    cdef int k
    if t.device_type != CPU or t.lanes != 1 or (<size_t> t.data + t.byte_offset) % (t.bits // 8):
        return False
    for k in range(t.ndim - 1, -1, -1):
        if t.strides != NULL and t.shape[k] != 1 and t.strides[k] != apart:
            return False
        apart *= t.shape[k]
    return True


cdef struct Span:
    const char* lo
    const char* hi
    Py_ssize_t array
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


cdef inline int refuse_count(Py_ssize_t wanted, Py_ssize_t found) except -1:
    from fastopt.errors import ArrayError
    raise ArrayError(
        f"grads: expected {wanted} gradients, one for each parameter, got {found}"
    )


cdef inline int refuse_type(Py_ssize_t i, object item) except -1:
    from fastopt.errors import DTypeError
    raise DTypeError(
        f"grads[{i}]: expected an array, a dense CPU tensor or None, got {type(item).__name__}"
    )


cdef inline int refuse_shape(Py_ssize_t i, cnp.ndarray param, object grad) except -1:
    from fastopt.errors import ArrayError
    raise ArrayError(
        f"grads[{i}]: expected shape {(<object> param).shape}, got {tuple(grad.shape)}"
    )


cdef inline int refuse_change(str name) except -1:
    from fastopt.errors import ArrayError
    raise ArrayError(f"{name}: was resized or made read-only since the optimizer was built")


cdef inline int refuse_overlap(Py_ssize_t i, str other) except -1:
    from fastopt.errors import ArrayError
    which = "grads: one" if i < 0 else f"grads[{i}]:"
    raise ArrayError(f"{which} shares memory with {other}; pass separate arrays")
