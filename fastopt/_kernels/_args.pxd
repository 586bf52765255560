"""The one check at a kernel's door: an ndarray in, a pointer out, or our typed error."""

cimport numpy as cnp


cdef inline int refuse(
    cnp.ndarray a, int typenum, Py_ssize_t size, bint writable, str name
) except -1:
    """Raise the error that says which argument, what was found and what is wanted."""
    from fastopt.errors import ArrayError, DTypeError

    wanted = cnp.PyArray_DescrFromType(typenum)
    if cnp.PyArray_TYPE(a) != typenum:
        raise DTypeError(f"{name}: expected dtype {wanted}, got {a.dtype}")
    if not cnp.PyArray_ISNOTSWAPPED(a):
        raise DTypeError(
            f"{name}: expected native byte order, got {a.dtype.str}; "
            f"convert with .astype('{wanted.str}')"
        )
    if size >= 0 and cnp.PyArray_SIZE(a) != size:
        raise ArrayError(f"{name}: expected {size} elements, got {cnp.PyArray_SIZE(a)}")
    if not cnp.PyArray_IS_C_CONTIGUOUS(a):
        raise ArrayError(f"{name}: expected a C-contiguous array; use numpy.ascontiguousarray")
    if not cnp.PyArray_CHKFLAGS(a, cnp.NPY_ARRAY_ALIGNED):
        raise ArrayError(f"{name}: expected aligned memory, got a misaligned array; copy it first")
    raise ArrayError(f"{name}: is written in place but is read-only")


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
        refuse(a, typenum, size, writable, name)
    return cnp.PyArray_DATA(a)
