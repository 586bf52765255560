"""Optimiser steps over many arrays at once: pointers bound once, one parallel region a step.

A ``Plan`` binds parameters and their state, cuts them into units of 256 elements and numbers the
units of all arrays through. A step rebinds and checks the gradients, turns each group's options
into the scalars of this step (bias corrections in double), and walks the units, split over the
threads. The rules are element-wise: any thread count and any cut into arrays gives the same bits.

Rules (update_rules.pxd): ``sgd`` (Polyak 1964; Sutskever et al. 2013 for nesterov), ``adam``
(Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019 for decoupled decay; Reddi et al. 2018
for amsgrad), in the form and order of torch.optim's loops.
"""

cimport cython
cimport numpy as cnp
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.ref cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cython.parallel cimport prange
from libc.math cimport pow, sqrt

from fastopt._kernels._args cimport data_of
from fastopt._kernels.update_rules cimport adam, adam_amsgrad, sgd_momentum, sgd_plain

cnp.import_array()

cdef extern from *:
    """
    /* Divisions and roots of 512 bits take three times as long as those of 256 on Ice Lake. */
    #if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
    #pragma GCC target("prefer-vector-width=256")
    #endif
    """

cdef enum:
    UNIT = 256  # elements; threads never split one
    CHUNK = 64  # units a thread takes at a time: 16 Ki elements, about 10 us of Adam
    SCALARS = 12
    STATES = 3
    HOLDS_GIL_BELOW = 8192  # elements: shorter steps end before another thread could wake


cdef enum Rule:
    SGD_PLAIN
    SGD_MOMENTUM
    ADAM
    ADAM_AMSGRAD

RULES = {  # name -> (rule, state arrays, options a group)
    "sgd": (SGD_PLAIN, 0, 6),
    "sgd_momentum": (SGD_MOMENTUM, 1, 6),
    "adam": (ADAM, 2, 7),
    "adam_amsgrad": (ADAM_AMSGRAD, 3, 7),
}

cdef struct Row:
    char* p
    const char* g  # NULL: no gradient this step
    char* s[STATES]
    Py_ssize_t n
    Py_ssize_t unit  # number of its first unit
    Py_ssize_t slot  # its scalars
    long long step
    int group
    int rule
    int wide  # 8 where float64, else 4


cdef struct Span:
    const char* lo
    const char* hi


cdef void prepare(int rule, const double* o, double scale, long long t, double* h) noexcept nogil:
    """Options of a group ``o`` -> scalars ``h`` of step ``t`` (from 1); o[0] is lr, o[1] the
    gradient's sign."""
    cdef double c1, c2
    h[0] = scale * o[1]
    if rule == SGD_PLAIN or rule == SGD_MOMENTUM:
        # o: lr, sign, weight_decay, momentum, dampening, nesterov
        h[1] = o[0]
        h[2] = o[2]
        h[3] = 0.0 if t == 1 else o[3]
        h[4] = 1.0 if t == 1 else 1.0 - o[4]
        h[5] = o[3]
        h[6] = o[5]
    else:
        # o: lr, sign, beta1, beta2, eps, coupled decay, decoupled decay
        c1 = 1.0 - pow(o[2], <double> t)
        c2 = 1.0 - pow(o[3], <double> t)
        h[1] = 1.0 - o[2]
        h[2] = o[3]
        h[3] = 1.0 - o[3]
        h[4] = 1.0 / sqrt(c2)
        h[5] = o[4]
        h[6] = -(o[0] / c1)
        h[7] = 1.0 - o[0] * o[6]
        h[8] = o[5]


cdef void apply_f32(Row* r, Py_ssize_t at, Py_ssize_t n, const double* h) noexcept nogil:
    cdef float* p = <float*> r.p + at
    cdef const float* g = <const float*> r.g + at
    cdef float* a = <float*> r.s[0] + at
    cdef float* b = <float*> r.s[1] + at
    cdef float* c = <float*> r.s[2] + at
    if r.rule == SGD_PLAIN:
        sgd_plain(p, g, n, h)
    elif r.rule == SGD_MOMENTUM:
        sgd_momentum(p, g, a, n, h)
    elif r.rule == ADAM:
        adam(p, g, a, b, n, h)
    elif r.rule == ADAM_AMSGRAD:
        adam_amsgrad(p, g, a, b, c, n, h)


cdef void apply_f64(Row* r, Py_ssize_t at, Py_ssize_t n, const double* h) noexcept nogil:
    cdef double* p = <double*> r.p + at
    cdef const double* g = <const double*> r.g + at
    cdef double* a = <double*> r.s[0] + at
    cdef double* b = <double*> r.s[1] + at
    cdef double* c = <double*> r.s[2] + at
    if r.rule == SGD_PLAIN:
        sgd_plain(p, g, n, h)
    elif r.rule == SGD_MOMENTUM:
        sgd_momentum(p, g, a, n, h)
    elif r.rule == ADAM:
        adam(p, g, a, b, n, h)
    elif r.rule == ADAM_AMSGRAD:
        adam_amsgrad(p, g, a, b, c, n, h)


cdef void walk(
    Row* rows, Py_ssize_t n_rows, double* slots, Py_ssize_t lo, Py_ssize_t hi
) noexcept nogil:
    """Update the units lo..hi, which may begin and end inside an array."""
    cdef Py_ssize_t i = 0, above = n_rows, middle, start, stop
    cdef Row* r
    while above - i > 1:  # the last row that begins at or before lo
        middle = (i + above) // 2
        if rows[middle].unit <= lo:
            i = middle
        else:
            above = middle
    while lo < hi:
        r = &rows[i]
        start = (lo - r.unit) * UNIT
        stop = min((hi - r.unit) * UNIT, r.n)
        if r.g != NULL and stop > start:
            if r.wide == 8:
                apply_f64(r, start, stop - start, slots + r.slot * SCALARS)
            else:
                apply_f32(r, start, stop - start, slots + r.slot * SCALARS)
        lo = r.unit + (r.n + UNIT - 1) // UNIT
        i += 1


cdef void run(
    Row* rows, Py_ssize_t n_rows, double* slots, Py_ssize_t units, int threads
) noexcept nogil:
    cdef Py_ssize_t k
    if threads == 1:
        walk(rows, n_rows, slots, 0, units)
    else:
        for k in prange(
            (units + CHUNK - 1) // CHUNK, num_threads=threads, schedule="dynamic", chunksize=1
        ):
            walk(rows, n_rows, slots, k * CHUNK, min(units, (k + 1) * CHUNK))


@cython.final
cdef class Plan:
    """Parameters and state of one optimiser, each group bound to one of ``RULES``.

    ``rules``: the rule of each group; ``params``: writable C-contiguous float32 or float64 arrays;
    ``states``: for each one a tuple of arrays of its dtype and size; ``groups``: for each one the
    number of its group. The caller has made sure that none of the arrays share memory. The Plan
    keeps references to all of them.
    """

    cdef Row* rows
    cdef double* slots
    cdef double* options
    cdef Span* spans  # the parameters' memory, sorted
    cdef Py_ssize_t n_rows, units
    cdef readonly Py_ssize_t size
    cdef bint busy
    cdef tuple rules, params, states

    def __cinit__(self, list rules not None, list params not None, list states not None,
                  list groups not None):
        cdef Py_ssize_t i, k, n_states, n_groups = len(rules)
        cdef cnp.ndarray a, s
        cdef Row* r
        cdef int typenum
        self.n_rows = len(params)
        self.rules = tuple(rules)
        self.params = tuple(params)
        self.states = tuple(states)
        self.rows = <Row*> PyMem_Calloc(self.n_rows + 1, sizeof(Row))
        self.slots = <double*> PyMem_Calloc(self.n_rows + 1, SCALARS * sizeof(double))
        self.options = <double*> PyMem_Calloc(n_groups + 1, SCALARS * sizeof(double))
        self.spans = <Span*> PyMem_Calloc(self.n_rows + 1, sizeof(Span))
        if not (self.rows and self.slots and self.options and self.spans):
            raise MemoryError
        for i in range(self.n_rows):
            a = params[i]
            r = &self.rows[i]
            typenum = cnp.NPY_FLOAT64 if cnp.PyArray_TYPE(a) == cnp.NPY_FLOAT64 else cnp.NPY_FLOAT32
            r.p = <char*> data_of(a, typenum, -1, True, f"params[{i}]")
            r.n = cnp.PyArray_SIZE(a)
            r.wide = 8 if typenum == cnp.NPY_FLOAT64 else 4
            r.group = groups[i]
            if r.group < 0 or r.group >= n_groups:
                raise IndexError(f"groups[{i}]")
            r.rule, n_states = RULES[rules[r.group]][:2]
            if len(states[i]) != n_states:
                raise IndexError(f"states[{i}]: expected {n_states} arrays")
            for k in range(n_states):
                s = states[i][k]
                r.s[k] = <char*> data_of(s, typenum, r.n, True, f"states[{i}][{k}]")
            r.unit = self.units
            self.units += (r.n + UNIT - 1) // UNIT
            self.size += r.n
        order = sorted(range(self.n_rows), key=self._address)
        for k in range(self.n_rows):
            i = order[k]
            self.spans[k].lo = self.rows[i].p
            self.spans[k].hi = self.rows[i].p + self.rows[i].n * self.rows[i].wide

    def __dealloc__(self):
        PyMem_Free(self.rows)
        PyMem_Free(self.slots)
        PyMem_Free(self.options)
        PyMem_Free(self.spans)

    def _address(self, Py_ssize_t i):
        return <size_t> self.rows[i].p

    def set_options(self, Py_ssize_t group, tuple values not None):
        """Give a group its options, as floats in the order that ``prepare`` reads them."""
        cdef Py_ssize_t k
        if len(values) != RULES[self.rules[group]][2]:
            raise IndexError(f"options of group {group}: wrong count")
        for k in range(len(values)):
            self.options[group * SCALARS + k] = values[k]

    @property
    def steps(self):
        """Steps taken, for each array."""
        return [self.rows[i].step for i in range(self.n_rows)]

    @steps.setter
    def steps(self, values):
        for i in range(self.n_rows):
            self.rows[i].step = values[i]

    cdef int bind(self, tuple grads) except -1:
        """Check every gradient and take its pointer; nothing is written to any array."""
        cdef Py_ssize_t i, k, low, high, middle
        cdef cnp.ndarray a, g
        cdef Row* r
        cdef const char* end
        if PyTuple_GET_SIZE(grads) != self.n_rows:
            from fastopt.errors import ArrayError
            raise ArrayError(
                f"grads: expected {self.n_rows} gradients, one for each parameter, "
                f"got {len(grads)}"
            )
        for i in range(self.n_rows):
            r = &self.rows[i]
            item = <object> PyTuple_GET_ITEM(grads, i)
            if item is None:
                r.g = NULL
                continue
            if not isinstance(item, cnp.ndarray):
                from fastopt.errors import DTypeError
                raise DTypeError(
                    f"grads[{i}]: expected a NumPy array or None, got {type(item).__name__}"
                )
            g = <cnp.ndarray> item
            a = <cnp.ndarray> PyTuple_GET_ITEM(self.params, i)
            if cnp.PyArray_NDIM(g) != cnp.PyArray_NDIM(a) or not same_shape(a, g):
                from fastopt.errors import ArrayError
                raise ArrayError(
                    f"grads[{i}]: expected shape {(<object> a).shape}, got {(<object> g).shape}"
                )
            if <char*> cnp.PyArray_DATA(a) != r.p or not cnp.PyArray_ISWRITEABLE(a):
                from fastopt.errors import ArrayError
                raise ArrayError(
                    f"params[{i}]: was resized or made read-only since the optimizer was built"
                )
            if not usable(g, cnp.PyArray_TYPE(a)):
                data_of(g, cnp.PyArray_TYPE(a), r.n, False, f"grads[{i}]")  # raises
            r.g = <const char*> cnp.PyArray_DATA(g)
            if r.n == 0:
                continue
            end = r.g + r.n * r.wide
            low, high = 0, self.n_rows  # the first parameter that ends after the gradient begins
            while low < high:
                middle = (low + high) // 2
                if self.spans[middle].hi <= r.g:
                    low = middle + 1
                else:
                    high = middle
            if low < self.n_rows and self.spans[low].lo < end:
                from fastopt.errors import ArrayError
                raise ArrayError(
                    f"grads[{i}]: shares memory with a parameter; pass separate arrays"
                )
        return 0

    def step(self, tuple grads not None, double scale, int threads):
        """One step for every array whose gradient is not None; gradients count ``scale`` times."""
        cdef Py_ssize_t i, slot = -1
        cdef int group = -1
        cdef long long t = -1
        cdef Row* r
        if self.busy:
            from fastopt.errors import ConcurrentUseError
            raise ConcurrentUseError("this optimizer is taking a step in another thread")
        self.busy = True
        try:
            self.bind(grads)
            for i in range(self.n_rows):
                r = &self.rows[i]
                if r.g == NULL:
                    continue
                r.step += 1
                if r.group != group or r.step != t:
                    slot += 1
                    group, t = r.group, r.step
                    prepare(
                        r.rule, self.options + group * SCALARS, scale, t,
                        self.slots + slot * SCALARS,
                    )
                r.slot = slot
            if self.size < HOLDS_GIL_BELOW:
                run(self.rows, self.n_rows, self.slots, self.units, 1)
            else:
                with nogil:
                    run(self.rows, self.n_rows, self.slots, self.units, threads)
        finally:
            self.busy = False


cdef inline bint usable(cnp.ndarray g, int typenum) noexcept:
    """What ``data_of`` checks, without the cost of an argument's name."""
    return (
        cnp.PyArray_TYPE(g) == typenum
        and cnp.PyArray_CHKFLAGS(g, cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED)
        and cnp.PyArray_ISNOTSWAPPED(g)
    )


cdef inline bint same_shape(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef int k
    for k in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIMS(a)[k] != cnp.PyArray_DIMS(b)[k]:
            return False
    return True
