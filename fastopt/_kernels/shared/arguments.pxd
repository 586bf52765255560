"""The one check at a kernel's door: an ndarray in, a pointer out, or our typed error."""

from fastopt._kernels.shared cimport numpy as cnp


cdef inline void* data_of(
    cnp.ndarray a, int typenum, Py_ssize_t size, bint writable, str name
) except? NULL:
    """Data pointer of ``a`` if it is ``typenum``, native, aligned, C-contiguous, of ``size``
    elements (any if negative) and writable where asked; else ArrayError or DTypeError."""
    cdef int want = cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED
    if writable:
        want |= cnp.NPY_ARRAY_WRITEABLE
    if (
        cnp.PyArray_TYPE(a) != typenum
        or not cnp.PyArray_CHKFLAGS(a, want)
        or not cnp.PyArray_ISNOTSWAPPED(a)
        or (size >= 0 and cnp.PyArray_SIZE(a) != size)
    ):
        from fastopt.errors import refuse_array  # written once, not in every kernel

        refuse_array(a, cnp.PyArray_DescrFromType(typenum), size, name)
    return cnp.PyArray_DATA(a)
