"""Optimiser steps over many arrays at once: pointers bound once, one parallel region per step.

A ``Plan`` binds parameters and their state, cuts them into units of 256 elements and numbers the
units of all arrays through. A step rebinds and checks the gradients (gradients.pxd), turns each
group's options into the scalars of this step (by its rule's entry, in double) and walks the units,
shared out to the threads (walk.pxd). The rules are element-wise: any thread count and any cut into
arrays gives the same bits. Norms are summed for each unit in a fixed order, then over the units.
"""

cimport cython
from fastopt._kernels.shared cimport numpy as cnp
from cpython.exc cimport PyErr_Clear
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.math cimport INFINITY, isfinite
from libc.stdint cimport uint64_t

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.update.adafactor cimport adafactor_rule, bind_matrices
from fastopt._kernels.update.arrays cimport *
from fastopt._kernels.update.binding cimport bind_states, bind_tensor, refuse_shared, written
from fastopt._kernels.update.entry cimport (
    ADAFACTOR_NORMS, NO_NORMS, RULES_OF_A_MODULE, Options, Rule,
)
from fastopt._kernels.update.gradients cimport (
    Borrow, Span, Tensor, borrow_of, is_dense, moved, overlapped, refuse_change, refuse_count,
    refuse_overlap, refuse_shape, refuse_type, same_shape, usable,
)
from fastopt._kernels.update.prepare cimport count_step, take_back
from fastopt._kernels.update.walk cimport STEP, go, grad_norm, overflows, step_all

from importlib import import_module

cnp.import_array()

cdef extern from "update/codes.h" nogil:
    uint64_t mixed "fo_mixed" (uint64_t x)

cdef enum:
    MOST_RULES = 64
    HOLDS_GIL_BELOW = 8192  # elements: shorter steps end before another thread could wake
    FETCHES_FROM = 1 << 19  # elements: with fewer, prefetching does not help

cdef double LARGE = 1e15  # norm of gradients above which a guarded step is tried on copies first

FAMILIES = ("rules_sgd", "rules_adam", "rules_rmsprop")  # modules of this level

cdef const Rule* TABLE[MOST_RULES]
cdef dict NUMBERS = {}  # name -> place in TABLE
cdef Rule[2] ADAFACTOR
ADAFACTOR[0] = adafactor_rule()

# name -> (the name of each state array and whether it has a sign, the names of the rule's own
# options)
RULES = {}


cdef int enter_rules(const Rule* rule) except -1:
    """The entries from ``rule`` to the empty one."""
    while rule.name != NULL:
        name, number = rule.name.decode(), len(NUMBERS)
        if number == MOST_RULES:
            raise IndexError(f"more than {MOST_RULES} rules")
        states = rule.states.decode().split()
        TABLE[number], NUMBERS[name] = rule, number
        RULES[name] = (
            tuple([(state.lstrip("+"), not state.startswith("+")) for state in states]),
            tuple(rule.options.decode().split()),
        )
        rule += 1
    return 0


cdef int enter_all() except -1:
    for family in FAMILIES:
        module = import_module(f"{__name__.rpartition('.')[0]}.{family}")
        enter_rules(<const Rule*> PyCapsule_GetPointer(module.RULES, RULES_OF_A_MODULE))
    enter_rules(ADAFACTOR)
    return 0


enter_all()


cdef int bfloat_typenum = -1  # of ml_dtypes, once seen


cdef int narrow_storage(cnp.ndarray g):
    """HALF or BFLOAT for a 16-bit float array, else SAME."""
    global bfloat_typenum
    if cnp.PyArray_TYPE(g) == cnp.NPY_FLOAT16:
        return HALF
    if cnp.PyArray_TYPE(g) == bfloat_typenum:
        return BFLOAT
    if cnp.PyArray_ITEMSIZE(g) == 2 and (<object> g).dtype.name == "bfloat16":
        bfloat_typenum = cnp.PyArray_TYPE(g)
        return BFLOAT
    return SAME


@cython.final
cdef class Tally:
    """What the steps of an optimiser come to; counted by the step itself, so that no Ctrl-C comes
    in between. ``grad_norm``: of the last step that was asked for it, or None."""

    cdef public long long n_steps, n_skipped
    cdef public object grad_norm
    cdef public bint skipped  # the last step


@cython.final
cdef class Plan:
    """Parameters and state of one optimiser, each group bound to one of ``RULES``.

    ``rules``: the rule of each group; ``groups``: for each array the number of its group;
    ``params``: writable C-contiguous float32 or float64 arrays; ``states``: for each one a tuple
    of arrays of its size, of its dtype or (float32 only) uint16 = bfloat16 bits, or int8 and uint8
    codes; ``scales``: for 8-bit state a tuple of float32 arrays, one number for each 256 values.
    The caller has made sure that none of the arrays share memory; the Plan keeps them alive.
    """

    cdef Work work
    cdef Options* options  # of each group
    cdef Span* spans  # what a step writes besides state, sorted
    cdef Py_ssize_t n_spans
    cdef Span* grad_spans  # room to sort the gradients'
    cdef readonly Py_ssize_t size
    cdef readonly Py_ssize_t n_missing  # gradients that were None at the last step
    cdef uint64_t seed
    cdef bint busy, scaled  # scaled: its rules need a pass for norms
    cdef tuple rules, params, held, emas, copies
    cdef readonly Tally tally
    cdef type kind  # of the last tensor, and how to look at its like
    cdef Borrow borrow

    def __cinit__(self, list rules not None, list params not None, list states not None,
                  list groups not None, list scales=None, uint64_t seed=0, Tally tally=None):
        cdef Py_ssize_t i, n = len(params)
        cdef Matrices* f
        self.seed = seed
        self.tally = Tally() if tally is None else tally
        self.rules = tuple(rules)
        self.params = tuple(params)
        self.held = (tuple(states), None if scales is None else tuple(scales))
        self.work.arrays = <Array*> PyMem_Calloc(n + 1, sizeof(Array))
        self.work.scalars = <Scalars64*> PyMem_Calloc(n + 1, sizeof(Scalars64))
        self.work.scalars32 = <Scalars32*> PyMem_Calloc(n + 1, sizeof(Scalars32))
        self.options = <Options*> PyMem_Calloc(len(rules) + 1, sizeof(Options))
        self.spans = <Span*> PyMem_Calloc(3 * n + 1, sizeof(Span))
        self.grad_spans = <Span*> PyMem_Calloc(n + 1, sizeof(Span))
        if not (
            self.work.arrays and self.work.scalars and self.work.scalars32 and self.options
            and self.spans and self.grad_spans
        ):
            raise MemoryError
        if "adafactor" in rules:
            self.work.matrices = <Matrices*> PyMem_Calloc(n + 1, sizeof(Matrices))
            if self.work.matrices == NULL:
                raise MemoryError
        self.work.n_arrays = n
        for i in range(n):
            self.bind_array(i, groups[i], states[i], () if scales is None else scales[i])
            if self.work.matrices != NULL:
                f = &self.work.matrices[i]
                f[1].first_tile = f.first_tile + f.count * f.blocks * f.strips
                f[1].first_matrix = f.first_matrix + (f.count if self.work.arrays[i].n else 0)
        self.work.far = self.size >= FETCHES_FROM
        self.n_spans = written(&self.work, self.spans)

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.work.n_arrays if self.work.matrices != NULL else 0):
            PyMem_Free(self.work.matrices[i].row_sums)
        PyMem_Free(self.work.matrices)
        PyMem_Free(self.work.arrays)
        PyMem_Free(self.work.scalars)
        PyMem_Free(self.work.scalars32)
        PyMem_Free(self.work.sums)
        PyMem_Free(self.options)
        PyMem_Free(self.spans)
        PyMem_Free(self.grad_spans)

    cdef int bind_array(self, Py_ssize_t i, int group, tuple states, tuple scales) except -1:
        cdef Array* r = &self.work.arrays[i]
        cdef cnp.ndarray a = self.params[i]
        cdef int k, typenum = cnp.NPY_FLOAT32
        if cnp.PyArray_TYPE(a) == cnp.NPY_FLOAT64:
            typenum = cnp.NPY_FLOAT64
        r.p = <char*> data_of(a, typenum, -1, True, f"params[{i}]")
        r.n = cnp.PyArray_SIZE(a)
        r.item = 8 if typenum == cnp.NPY_FLOAT64 else 4
        r.group, r.product = group, 1.0
        r.rule = TABLE[<Py_ssize_t> NUMBERS[self.rules[group]]]
        signs = [SIGNED if signed else POSITIVE for _, signed in RULES[self.rules[group]][0]]
        self.scaled = self.scaled or r.rule.norms != NO_NORMS
        if r.rule.norms == ADAFACTOR_NORMS and cnp.PyArray_NDIM(a) > 1:
            r.matrices = &self.work.matrices[i]
            bind_matrices(r.matrices, a)
            signs = [POSITIVE, POSITIVE]  # means over rows and over columns
        r.n_states = len(signs)
        r.key = mixed(self.seed ^ mixed(<uint64_t> i))
        for k in range(r.n_states):
            r.signs[k] = signs[k]
        bind_states(r, i, states, scales)
        r.unit = self.work.units
        self.work.units += (r.n + UNIT - 1) // UNIT
        self.size += r.n
        return 0

    def set_options(self, Py_ssize_t group, tuple values not None):
        """Give a group its options: lr, sign of the gradient, coupled decay, decoupled decay, then
        the rule's own in the order that ``RULES`` names them."""
        names = ("lr", "sign", "coupled", "decoupled", *RULES[self.rules[group]][1])
        if len(values) != len(names):
            raise IndexError(f"options of group {group}: expected {names}")
        cdef dict named = self.options[group]
        named.update(zip(names, values))
        self.options[group] = named

    def set_fused(self, list emas, double ema_share, list copies, bint zero_grads):
        """What a step does besides: ``emas`` (None or arrays like params) move by ``ema_share``
        towards the weights; ``copies`` (None, or for each float32 array None, a float16 or a
        bfloat16 array) get the weights; gradients become zero."""
        cdef Py_ssize_t i
        cdef Array* r
        cdef cnp.ndarray a
        self.emas = None if emas is None else tuple(emas)  # the caller's list may change
        self.copies = None if copies is None else tuple(copies)
        for i in range(self.work.n_arrays):
            r = &self.work.arrays[i]
            r.ema, r.copy, r.copy_storage = NULL, NULL, SAME
            if emas is not None:
                a = self.emas[i]
                r.ema = <char*> data_of(
                    a, cnp.PyArray_TYPE(<cnp.ndarray> self.params[i]), r.n, True, f"emas[{i}]"
                )
            if copies is not None and self.copies[i] is not None and r.item == 4:
                a = self.copies[i]
                r.copy_storage = narrow_storage(a)
                r.copy = <char*> data_of(
                    a, cnp.PyArray_TYPE(a) if r.copy_storage != SAME else cnp.NPY_FLOAT16, r.n,
                    True, f"copies[{i}]",
                )
        self.work.ema_share, self.work.zero_grads = ema_share, zero_grads
        self.n_spans = written(&self.work, self.spans)

    @property
    def counts(self):
        """For each array the steps taken and NAdam's product of momenta."""
        return [
            (self.work.arrays[i].step, self.work.arrays[i].product)
            for i in range(self.work.n_arrays)
        ]

    def show_counts(self, cnp.ndarray out not None):
        """``counts`` into the two rows of ``out``, float64; how many have taken a step."""
        cdef Py_ssize_t i, n = self.work.n_arrays, begun = 0
        cdef double* to = <double*> data_of(out, cnp.NPY_FLOAT64, 2 * n, True, "out")
        for i in range(n):
            to[i], to[n + i] = self.work.arrays[i].step, self.work.arrays[i].product
            begun += self.work.arrays[i].step > 0
        return begun

    @counts.setter
    def counts(self, values):
        for i in range(self.work.n_arrays):
            self.work.arrays[i].step, self.work.arrays[i].product = values[i]

    cdef int look(self, object item, Tensor* t) except -1:
        """1 and ``t`` where ``item`` shows its memory through DLPack's table, else 0."""
        if type(item) is not self.kind:
            self.kind, self.borrow = type(item), borrow_of(type(item))
        if self.borrow == NULL:
            return 0
        if self.borrow(<void*> item, t) != 0:
            PyErr_Clear()
            return 0
        return 1

    def holds(self, tuple tensors not None):
        """Whether each parameter's memory is that of the tensor in its place."""
        cdef Py_ssize_t i
        cdef Tensor t
        cdef Array* r
        for i in range(self.work.n_arrays):
            r = &self.work.arrays[i]
            if (
                not self.look(tensors[i], &t) or not is_dense(&t)
                or (<char*> t.data + t.byte_offset != r.p and r.n) or t.bits != 8 * r.item
            ):
                return False
        return True

    cdef int bind(self, tuple grads) except -1:
        """Check every gradient and take its pointer; nothing is written to any array."""
        cdef Py_ssize_t i, n = self.work.n_arrays, m = 0
        cdef cnp.ndarray a, g
        cdef Array* r
        cdef int typenum
        cdef bint writes = self.work.zero_grads
        cdef const Span* met
        cdef Tensor t
        if PyTuple_GET_SIZE(grads) != n:
            return refuse_count(n, len(grads))
        self.n_missing = 0
        for i in range(n):
            r = &self.work.arrays[i]
            item = <object> PyTuple_GET_ITEM(grads, i)
            if item is None:
                r.g = NULL
                self.n_missing += 1
                continue
            a = <cnp.ndarray> PyTuple_GET_ITEM(self.params, i)
            if moved(a, r.p, r.n):
                return refuse_change(f"params[{i}]")
            if r.ema != NULL and moved(<cnp.ndarray> self.emas[i], r.ema, r.n):
                return refuse_change(f"ema[{i}]")
            if r.copy != NULL and moved(<cnp.ndarray> self.copies[i], r.copy, r.n):
                return refuse_change(f"copy_out[{i}]")
            r.grad_storage = SAME
            if type(item) is cnp.ndarray:  # a subclass may hide some of its values
                g = <cnp.ndarray> item
                if not same_shape(a, g):
                    return refuse_shape(i, a, g)
                typenum = cnp.PyArray_TYPE(a)
                if cnp.PyArray_TYPE(g) != typenum and r.item == 4:
                    r.grad_storage = narrow_storage(g)
                    if r.grad_storage != SAME:
                        typenum = cnp.PyArray_TYPE(g)
                if not usable(g, typenum, writes):
                    data_of(g, typenum, r.n, writes, f"grads[{i}]")  # raises
                r.g = <char*> cnp.PyArray_DATA(g)
            else:
                if not self.look(item, &t):
                    return refuse_type(i, item)
                bind_tensor(r, i, a, item, &t)
            if r.n == 0:
                continue
            self.grad_spans[m].lo = r.g
            self.grad_spans[m].hi = r.g + r.n * (2 if r.grad_storage != SAME else r.item)
            m += 1
            if r.apart_from == r.g and r.apart_to == self.grad_spans[m - 1].hi:
                continue  # the same memory as at the last step
            met = overlapped(self.spans, self.n_spans, self.grad_spans[m - 1])
            if met != NULL:
                return refuse_overlap(
                    i, f"{('params', 'ema', 'copy_out')[met.what]}[{met.array}]"
                )
            r.apart_from, r.apart_to = r.g, self.grad_spans[m - 1].hi
        if writes:
            refuse_shared(self.grad_spans, m)
        return 0

    def step(self, tuple grads not None, double scale, double max_norm, bint guard, int threads,
             bint moves=True):
        """One step for every array whose gradient is not None; gradients count ``scale`` times.

        Returns the norm of the scaled gradients, or -1.0 where nobody asked for it. Asked for are
        ``max_norm`` > 0, above which they are scaled down to it, and ``guard``: nothing is done
        and the norm (NaN or infinite) returned where a gradient is not finite, and infinity where
        the step would leave a weight or state that is not. ``moves`` False
        leaves the arrays where they are and holds the plan, for ``step_into`` and ``release``.
        """
        cdef double norm = -1.0
        cdef bint held = False
        self.enter()
        try:
            self.bind(grads)
            if max_norm > 0 or guard or self.scaled:
                self.make_room()
            if max_norm > 0 or guard:
                with nogil:
                    norm = grad_norm(&self.work, threads) * abs(scale)
                if guard and not isfinite(norm):
                    return norm
                if max_norm > 0:  # as torch.nn.utils.clip_grad_norm_
                    scale *= min(1.0, max_norm / (norm + 1e-6)) if norm == norm else norm
            count_step(&self.work, self.options, scale)
            if guard and norm > LARGE and self.would_overflow(norm, threads):
                return INFINITY
            if not moves:
                held = True
                return norm
            if self.size < HOLDS_GIL_BELOW:
                step_all(&self.work, self.scaled, 1)
            else:
                with nogil:
                    step_all(&self.work, self.scaled, threads)
            self.count(norm)
            return norm
        finally:
            self.busy = held

    cpdef count(self, double norm):
        """A step has been taken, by gradients of this norm (-1: nobody asked)."""
        if norm != -1.0:
            self.tally.grad_norm = norm
        self.tally.skipped = False
        self.tally.n_steps += 1

    def step_into(self, Py_ssize_t i, cnp.ndarray out not None, int threads):
        """The step of array ``i`` taken by ``out``, like it, instead: of what belongs to the
        array only the state moves. The gradient is that of the last ``step``, not None."""
        cdef Array* r = &self.work.arrays[i]
        cdef Array kept = r[0]
        cdef bint zero_grads = self.work.zero_grads
        cdef int typenum = cnp.NPY_FLOAT64 if r.item == 8 else cnp.NPY_FLOAT32
        cdef char* p = <char*> data_of(out, typenum, r.n, True, "out")
        r.p, r.ema, r.copy_storage, self.work.zero_grads = p, NULL, SAME, False
        with nogil:
            go(&self.work, r.unit, r.unit + (r.n + UNIT - 1) // UNIT, STEP, threads)
        r[0], self.work.zero_grads = kept, zero_grads

    def hold(self):
        """Refuse steps, and other holders, until ``release``."""
        self.enter()

    def release(self):
        self.busy = False

    cdef int enter(self) except -1:
        if self.busy:
            from fastopt.errors import ConcurrentUseError
            raise ConcurrentUseError("this optimizer is at work in another thread")
        self.busy = True
        return 0

    cdef int make_room(self) except -1:
        """Two sums for each unit, the first time that a norm is asked for."""
        if self.work.sums == NULL:
            self.work.sums = <double*> PyMem_Calloc(2 * self.work.units + 2, sizeof(double))
            if self.work.sums == NULL:
                raise MemoryError
        return 0

    cdef bint would_overflow(self, double norm, int threads) noexcept:
        """Whether the step that has been prepared would; its count is taken back then."""
        cdef bint found
        with nogil:
            found = overflows(&self.work, norm, threads)
        if found:
            take_back(&self.work)
        return found
