"""DLPack's table of C functions (version 1.3): a tensor's memory, shape and dtype in tens of ns.

A class of tensors shows the table as ``__dlpack_c_exchange_api__``, a capsule. Only what is read
here is declared; the layout is dlpack.h's.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int32_t, int64_t

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
