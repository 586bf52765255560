"""What the kernels use of NumPy's C interface, and nothing else: Cython's own numpy.pxd makes each
of the compiled modules look up every type that it declares."""

cdef extern from "numpy/arrayobject.h":
    ctypedef class numpy.ndarray [object PyArrayObject, check_size ignore]:
        pass

    cdef enum:
        NPY_BOOL, NPY_INT8, NPY_UINT8, NPY_INT16, NPY_UINT16, NPY_INT32, NPY_UINT32
        NPY_INT64, NPY_UINT64, NPY_INTP, NPY_FLOAT16, NPY_FLOAT32, NPY_FLOAT64, NPY_FLOAT
        NPY_DOUBLE
        NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_ALIGNED, NPY_ARRAY_WRITEABLE

    int import_array "_import_array"() except -1
    void* PyArray_DATA(ndarray) noexcept nogil
    Py_ssize_t* PyArray_DIMS(ndarray) noexcept nogil
    Py_ssize_t PyArray_DIM(ndarray, int) noexcept nogil
    int PyArray_NDIM(ndarray) noexcept nogil
    Py_ssize_t PyArray_SIZE(ndarray) noexcept nogil
    Py_ssize_t PyArray_ITEMSIZE(ndarray) noexcept nogil
    int PyArray_TYPE(ndarray) noexcept nogil
    bint PyArray_CHKFLAGS(ndarray, int) noexcept nogil
    bint PyArray_ISNOTSWAPPED(ndarray) noexcept nogil
    bint PyArray_ISWRITEABLE(ndarray) noexcept nogil
    object PyArray_DescrFromType "(PyObject *) PyArray_DescrFromType"(int)
