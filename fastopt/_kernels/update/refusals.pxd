"""Why a gradient is refused: the messages, away from the loop that checks them."""

from fastopt._kernels.shared cimport numpy as cnp


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
