"""The optimiser kernels against their twins: every rule, tail, level, thread count and value."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from fastopt.errors import ArrayError, ConcurrentUseError, DTypeError
from tests import reference
from tests.conftest import SIZES, THREADS, Guarded, kernel, sample

DTYPES = ("float32", "float64")
STEPS = 7  # RAdam rectifies from the sixth on

# name -> (rule, options for the kernel, options for the twin)
SGD = {
    "plain": ((0.1, 1, 0, 0, 0, 0, 0), {"lr": 0.1}),
    "decay, maximize": ((0.1, -1, 0.3, 0, 0, 0, 0), {"lr": 0.1, "weight_decay": 0.3, "scale": -1}),
    "momentum": ((0.1, 1, 0, 0, 0.9, 0, 0), {"lr": 0.1, "momentum": 0.9}),
    "dampening": (
        (0.1, 1, 0.2, 0, 0.9, 0.4, 0),
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.2},
    ),
    "nesterov": ((0.1, 1, 0, 0, 0.9, 0, 1), {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "nesterov, decay": (
        (0.1, 1, 0.2, 0, 0.9, 0, 1),
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.2},
    ),
}
ADAM = {
    "plain": ((1e-2, 1, 0, 0, 0.9, 0.999, 1e-8), {}),
    "coupled": ((1e-2, 1, 0.3, 0, 0.9, 0.999, 1e-8), {"coupled": 0.3}),
    "decoupled, maximize": (
        (1e-2, -1, 0, 0.3, 0.9, 0.999, 1e-8),
        {"decoupled": 0.3, "scale": -1},
    ),
}


def same(a: np.ndarray | list, b: np.ndarray | list) -> None:
    """Equal bit for bit; any NaN equals any NaN. Lists of arrays are compared in one go."""
    if isinstance(a, list):
        a, b = np.concatenate(a), np.concatenate(b)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.signbit(a) & ~np.isnan(a), np.signbit(b) & ~np.isnan(b))


def sgd_case(options: dict) -> tuple[str, int, object]:
    rule = "sgd_momentum" if options.get("momentum") else "sgd"

    def twin(p, g, state, t):
        reference.sgd(p, g, state[0] if state else None, t, **options)

    return rule, len(rule) > 3, twin


def adam_case(options: dict, amsgrad: bool) -> tuple[str, int, object]:
    def twin(p, g, state, t):
        top = state[2] if amsgrad else None
        reference.adam(p, g, *state[:2], top, t, 1e-2, 0.9, 0.999, 1e-8, **options)

    return "adam_amsgrad" if amsgrad else "adam", 2 + amsgrad, twin


def other(twin, n_states: int, *options, takes_t: bool = True, slots=None, **more):
    """A twin of the form twin(p, g, *state, [t], *options); ``slots`` puts None where no state."""

    def call(p, g, state, t):
        full = state if slots is None else [None if k is None else state[k] for k in slots]
        twin(p, g, *full, *([t] if takes_t else []), *options, **more)

    return n_states, call


def rms(centered: bool, momentum: bool):
    slots = (0, 1 if centered else None, (2 if centered else 1) if momentum else None)
    return other(
        reference.rmsprop, 1 + centered + momentum, 1e-2, 0.9, 1e-6, 0.8 * momentum, 0.2,
        takes_t=False, slots=slots,
    )  # fmt: skip


M = (0.9, 0.999, 1e-8)
OTHERS = {
    "nadam": ((1e-2, 1, 0.1, 0, *M, 4e-3), other(reference.nadam, 2, 1e-2, *M, 4e-3, 0.1)),
    "nadam ": ((1e-2, 1, 0, 0.1, *M, 4e-3), other(reference.nadam, 2, 1e-2, *M, 4e-3, 0, 0.1)),
    "radam": ((1e-2, 1, 0.1, 0, *M), other(reference.radam, 2, 1e-2, *M, 0.1)),
    "radam ": ((1e-2, 1, 0, 0.1, *M), other(reference.radam, 2, 1e-2, *M, 0, 0.1)),
    "adamax": ((1e-2, 1, 0.1, 0, *M), other(reference.adamax, 2, 1e-2, *M, 0.1)),
    "rmsprop": ((1e-2, 1, 0.2, 0, 0.9, 1e-6, 0), rms(False, False)),
    "rmsprop_momentum": ((1e-2, 1, 0.2, 0, 0.9, 1e-6, 0.8), rms(False, True)),
    "rmsprop_centered": ((1e-2, 1, 0.2, 0, 0.9, 1e-6, 0), rms(True, False)),
    "rmsprop_centered_momentum": ((1e-2, 1, 0.2, 0, 0.9, 1e-6, 0.8), rms(True, True)),
    "adagrad": ((0.1, 1, 0.2, 0, 0.3, 1e-10), other(reference.adagrad, 1, 0.1, 0.3, 1e-10, 0.2)),
    "adadelta": (
        (0.5, 1, 0.2, 0, 0.9, 1e-6),
        other(reference.adadelta, 2, 0.5, 0.9, 1e-6, 0.2, takes_t=False),
    ),
    "lion": (
        (1e-2, -1, 0, 0.1, 0.9, 0.99),
        other(reference.lion, 1, 1e-2, 0.9, 0.99, 0.1, -1, takes_t=False),
    ),
    "lamb": ((1e-2, 1, 0, 0.1, *M), other(reference.lamb, 2, 1e-2, *M, 0.1)),
}

CASES = [
    *[pytest.param(values, *sgd_case(o), id=f"sgd {k}") for k, (values, o) in SGD.items()],
    *[
        pytest.param(values, *adam_case(o, ams), id=f"adam {k}{' amsgrad' * ams}")
        for k, (values, o) in ADAM.items()
        for ams in (False, True)
    ],
    *[pytest.param(v, name.strip(), *case, id=name) for name, (v, case) in OTHERS.items()],
]


@pytest.mark.parametrize(("values", "rule", "n_states", "twin"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_twin(level, dtype, threads, values, rule, n_states, twin):
    """Steps over arrays of every length at once, special values in p and g, guarded."""
    params = [Guarded(sample(n, dtype, seed=1)) for n in SIZES]
    for k, guarded in enumerate(params):
        if k % 3 == 0:
            guarded.array[...] = sample(guarded.array.size, dtype, seed=2, special=True)
    states = [[Guarded(np.zeros(n, dtype)) for _ in range(n_states)] for n in SIZES]
    want = [
        (p.array.copy(), [np.zeros(p.array.size, dtype) for _ in s])
        for p, s in zip(params, states)
    ]
    plan = kernel("update", level).Plan(
        [rule],
        [p.array for p in params],
        [tuple(s.array for s in ss) for ss in states],
        [0] * len(SIZES),
    )
    plan.set_options(0, values)
    for t in range(1, 1 + STEPS):
        grads = [sample(n, dtype, seed=10 * t, special=n % 2 == 1) for n in SIZES]
        before = [g.copy() for g in grads]
        plan.step(tuple(grads), 1.0, 0.0, False, threads)
        same(grads, before)
        for (p, s), g in zip(want, grads):
            twin(p, g, s, t)
    same([p.array for p in params], [p for p, _ in want])
    for k in range(n_states):
        same([s[k].array for s in states], [s[k] for _, s in want])
    for guarded in [*params, *(s for ss in states for s in ss)]:
        guarded.check()
    assert [t for t, _ in plan.counts] == [STEPS] * len(SIZES)


@pytest.mark.parametrize("dtype", DTYPES)
def test_split_and_threads_do_not_change_bits(level, dtype):
    """One array of 100,003 = many arrays = any thread count, at any offset in memory."""
    n = 100_003
    cuts = [0, 1, 17, 5000, 21_384, 60_000, n]
    base, grad = sample(n, dtype, seed=3), sample(n, dtype, seed=4)
    results = []
    for threads in (1, 2, 3):
        for pieces in ([0, n], cuts):
            p = np.empty(n + 1, dtype)[1:]
            p[...] = base
            parts = [p[a:b] for a, b in itertools.pairwise(pieces)]
            states = [tuple(np.zeros(b.size, dtype) for _ in range(2)) for b in parts]
            plan = kernel("update", level).Plan(["adam"], parts, states, [0] * len(parts))
            plan.set_options(0, (1e-2, 1, 0, 0.01, 0.9, 0.999, 1e-8))
            for _ in range(3):
                plan.step(
                    tuple(grad[a:b] for a, b in itertools.pairwise(pieces)),
                    1.0,
                    0.0,
                    False,
                    threads,
                )
            results.append(p.tobytes())
    assert len(set(results)) == 1


def test_levels_give_the_same_bits():
    from fastopt._kernels import levels

    found = set()
    for one in levels():
        p, g = sample(1000, "float32"), sample(1000, "float32", seed=5)
        m, v = np.zeros_like(p), np.zeros_like(p)
        plan = kernel("update", one).Plan(["adam"], [p], [(m, v)], [0])
        plan.set_options(0, (1e-2, 1, 0.01, 0, 0.9, 0.999, 1e-8))
        for _ in range(5):
            plan.step((g,), 1.0, 0.0, False, 1)
        found.add((p.tobytes(), m.tobytes(), v.tobytes()))
    assert len(found) == 1


def test_none_and_groups(level):
    """An array without a gradient keeps its bits and its step count; groups have own options."""
    p = [sample(300, "float32", seed=k) for k in range(3)]
    want = [a.copy() for a in p]
    state = [(np.zeros(300, "f4"), np.zeros(300, "f4")) for _ in p]
    plan = kernel("update", level).Plan(["adam", "adam"], p, state, [0, 0, 1])
    plan.set_options(0, (1e-2, 1, 0, 0, 0.9, 0.999, 1e-8))
    plan.set_options(1, (1e-1, 1, 0, 0, 0.5, 0.9, 1e-3))
    g = sample(300, "float32", seed=9)
    plan.step((g, None, g), 1.0, 0.0, False, 1)
    plan.step((g, g, None), 1.0, 0.0, False, 1)
    assert [t for t, _ in plan.counts] == [2, 1, 1]
    zeros = [[np.zeros(300, "f4"), np.zeros(300, "f4")] for _ in p]
    first, second = (1e-2, 0.9, 0.999, 1e-8), (1e-1, 0.5, 0.9, 1e-3)
    reference.adam(want[0], g, *zeros[0], None, 1, *first)
    reference.adam(want[0], g, *zeros[0], None, 2, *first)
    reference.adam(want[1], g, *zeros[1], None, 1, *first)
    reference.adam(want[2], g, *zeros[2], None, 1, *second)
    for a, b in zip(p, want):
        same(a, b)


def test_scale_multiplies_the_gradient(level):
    p, q, g = sample(100, "float64"), sample(100, "float64"), sample(100, "float64", seed=2)
    for array, grad, scale in ((p, g, 0.25), (q, 0.25 * g, 1.0)):
        plan = kernel("update", level).Plan(["sgd"], [array], [()], [0])
        plan.set_options(0, (0.1, 1, 0, 0, 0, 0, 0))
        plan.step((grad,), scale, 0.0, False, 1)
    same(p, q)


def bad_gradients() -> dict[str, tuple[object, type[Exception]]]:
    frozen = np.zeros((5, 8), "f4")
    raw = np.zeros(4 * 20 + 1, np.uint8)
    return {
        "dtype": (np.zeros(20), DTypeError),
        "byte order": (np.zeros(20, ">f4"), DTypeError),
        "integers": (np.zeros(20, "i4"), DTypeError),
        "list": ([0.0] * 20, DTypeError),
        "shape": (np.zeros((4, 5), "f4"), ArrayError),
        "size": (np.zeros(21, "f4"), ArrayError),
        "strided": (np.zeros(40, "f4")[::2], ArrayError),
        "misaligned": (raw[1:].view("f4"), ArrayError),
        "transposed": (frozen.T[:4, :5].reshape(20)[::-1], ArrayError),
    }


@pytest.mark.parametrize("fault", bad_gradients())
def test_refused_gradient_writes_nothing(fault):
    from fastopt._kernels import update

    p = [sample(20, "float32"), sample(20, "float32", seed=1)]
    before = [a.copy() for a in p]
    state = [(np.zeros(20, "f4"), np.zeros(20, "f4")) for _ in p]
    plan = update.Plan(["adam"], p, state, [0, 0])
    plan.set_options(0, (1e-2, 1, 0, 0, 0.9, 0.999, 1e-8))
    bad, error = bad_gradients()[fault]
    with pytest.raises(error, match=r"grads\[1\]"):
        plan.step((np.ones(20, "f4"), bad), 1.0, 0.0, False, 1)
    with pytest.raises(ArrayError, match="expected 2 gradients"):
        plan.step((np.ones(20, "f4"),), 1.0, 0.0, False, 1)
    for a, b in zip(p, before):
        same(a, b)
    assert plan.counts == [(0, 1.0)] * 2
    assert not any(a.any() for pair in state for a in pair)


def test_refuses_gradients_inside_parameters():
    from fastopt._kernels import update

    block = np.zeros(100, "f4")
    p = [block[60:80], block[10:30], block[0:0]]
    plan = update.Plan(["sgd"], p, [(), (), ()], [0, 0, 0])
    plan.set_options(0, (1e-2, 1, 0, 0, 0, 0, 0))
    fine = np.zeros(20, "f4")
    for start in range(81):
        overlaps = (start > 40 and start < 80) or (start < 30 and start + 20 > 10)
        grads = (fine, block[start : start + 20], np.zeros(0, "f4"))
        if overlaps:
            with pytest.raises(ArrayError, match=r"grads\[1\]: shares memory"):
                plan.step(grads, 1.0, 0.0, False, 1)
        else:
            plan.step(grads, 1.0, 0.0, False, 1)


def test_refuses_parameters_that_changed():
    from fastopt._kernels import update

    p = np.zeros(20, "f4")
    plan = update.Plan(["sgd"], [p], [()], [0])
    plan.set_options(0, (1e-2, 1, 0, 0, 0, 0, 0))
    p.flags.writeable = False
    with pytest.raises(ArrayError, match=r"params\[0\]: was resized or made read-only"):
        plan.step((np.ones(20, "f4"),), 1.0, 0.0, False, 1)
    for bad, error in (
        (np.zeros(20, "f2"), DTypeError),
        (p, ArrayError),
        (np.zeros(40, "f4")[::2], ArrayError),
    ):
        with pytest.raises(error, match=r"params\[0\]"):
            update.Plan(["sgd"], [bad], [()], [0])


def test_refuses_concurrent_steps():
    """Two threads hammer one plan: each call either takes a whole step or raises."""
    from fastopt._kernels import update

    p = np.zeros(400_000, "f4")
    plan = update.Plan(["sgd"], [p], [()], [0])
    plan.set_options(0, (1.0, -1, 0, 0, 0, 0, 0))
    g = np.ones_like(p)
    taken, refused = [0, 0], [0, 0]
    start = threading.Barrier(2)

    def work(k):
        start.wait()
        for _ in range(100):
            try:
                plan.step((g,), 1.0, 0.0, False, 1)
                taken[k] += 1
            except ConcurrentUseError:
                refused[k] += 1

    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sum(taken) + sum(refused) == 200
    assert sum(refused) > 0
    assert (p == sum(taken)).all()


def test_entries_name_what_an_optimizer_needs():
    """The states are torch.optim's; the options are those of the Python classes."""
    from fastopt._kernels import update

    assert update.RULES["adam"] == (
        (("exp_avg", True), ("exp_avg_sq", False)),
        ("beta1", "beta2", "eps"),
    )
    assert len(update.RULES) == 16
    for states, options in update.RULES.values():
        assert len(states) <= 3
        assert len(set(options)) == len(options)
