"""What the optimiser kernels share: the rules' numbers, an array's row, the sizes of the cuts."""

from libc.stdint cimport uint64_t

cdef enum:
    UNIT = 256  # elements: threads never split one; a block of int8 state
    CHUNK = 64  # units a thread takes at a time: 16 Ki elements, about 10 us of Adam
    TILE = 1024  # elements that are widened, updated and narrowed while they are in L1
    SCALARS = 13
    TRUST = 11  # where a row's own scalar goes: LAMB's ratio, Adafactor's step
    FAR = 12  # whether the arrays lie in memory rather than in a cache
    STATES = 3

cdef extern from "update/loops.h" nogil:
    enum:
        SGD_PLAIN
        SGD_MOMENTUM
        LION
        ADAM
        ADAM_AMSGRAD
        NADAM
        RADAM
        ADAMAX
        RMSPROP
        RMSPROP_MOMENTUM
        RMSPROP_CENTERED
        RMSPROP_CENTERED_MOMENTUM
        ADAGRAD
        ADADELTA
        LAMB  # the rules from here on scale each array's step by norms: a pass before it
        ADAFACTOR

cdef enum Kind:  # how an array's numbers are stored
    SAME  # as the parameter's
    HALF  # float16
    BFLOAT  # bfloat16; as state: stochastically rounded
    BYTE  # 8 bits, companded, a float32 scale for each unit

cdef struct Factors:  # of an array of two or more dimensions: a stack of matrices
    Py_ssize_t matrices, rows, cols
    Py_ssize_t blocks, strips  # tiles of a matrix, down and across
    Py_ssize_t tile, matrix  # the numbers of its first ones
    double* row_sums  # matrices x strips x rows
    double* col_sums  # matrices x blocks x columns
    char* left  # matrices x rows, then right: matrices x columns, in the parameter's precision
    char* right

cdef struct Row:
    char* p
    char* g  # NULL: no gradient this step
    char* s[STATES]
    float* scales[STATES]  # BYTE state only
    char* ema
    char* copy
    Py_ssize_t n
    Py_ssize_t unit  # the number of its first unit
    Py_ssize_t slot  # its scalars
    double product  # NAdam: of the momenta so far
    double trust  # LAMB: the layer's ratio; Adafactor: its step
    Factors* factors  # Adafactor: of a matrix
    uint64_t key  # random bits of this array
    long long step
    int group
    int rule
    int wide  # bytes of an element: 8 or 4
    int grad_kind
    int state_kind
    int n_states
    int copy_kind
    bint signs[STATES]  # whether that state has a sign
