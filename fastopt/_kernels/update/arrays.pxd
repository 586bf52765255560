"""What a plan binds: one array of parameters with its gradient and state, and all of them."""

from libc.stdint cimport uint64_t

from fastopt._kernels.update.stretch cimport *
from fastopt._kernels.update.entry cimport Rule

cdef struct Matrices:  # Adafactor's view of an array of two dimensions or more: a stack
    Py_ssize_t count, rows, cols
    Py_ssize_t blocks, strips  # tiles of a matrix, down and across
    Py_ssize_t first_tile, first_matrix  # their numbers in the plan
    double* row_sums  # count x strips x rows
    double* col_sums  # count x blocks x columns
    char* left  # count x rows, then right: count x columns, in the parameter's precision
    char* right

cdef struct Array:
    char* p
    char* g  # NULL: no gradient this step
    const char* apart_from  # where the last gradient that was found to overlap nothing begins,
    const char* apart_to  # and ends
    char* state[STATES]
    float* scales[STATES]  # CODES only
    char* ema
    char* copy
    Py_ssize_t n
    Py_ssize_t unit  # the number of its first unit
    const Scalars64* scalars  # of this step, shared by the arrays of a group that have come as far
    const Scalars32* scalars32
    double product, old_product  # NAdam: of the momenta so far, and before this step
    double trust  # what its norms make of its step
    Matrices* matrices  # Adafactor: of two or more dimensions
    uint64_t key  # random bits of this array
    long long step
    const Rule* rule
    int group
    int item  # bytes of an element: 8 or 4
    int grad_storage, storage, copy_storage
    int n_states
    int signs[STATES]

cdef struct Work:
    Array* arrays
    Matrices* matrices  # one more than arrays, where a rule needs them
    Scalars64* scalars
    Scalars32* scalars32
    double* sums  # two for each unit
    Py_ssize_t n_arrays, units
    double ema_share
    bint zero_grads
    bint far
