"""The kernels of linear models against their plain NumPy twins."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt._kernels import levels
from fastopt.linear_model._problem import LOSSES
from fastopt.linear_model._stochastic import RULES
from tests import reference
from tests.conftest import SIZES, Guarded, kernel

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


class Case:
    """Random rows, targets and parameters in the kernels' layout."""

    def __init__(self, n, d, dtype, loss="squared_error", k=1, seed=0, weighted=False):
        rng = np.random.default_rng([seed, n, d])
        self.n, self.d, self.k, self.dtype, self.loss = n, d, k, np.dtype(dtype), loss
        lanes = 64 // self.dtype.itemsize
        self.pad = -(-d // lanes) * lanes
        self.length = k * self.pad + -(-k // lanes) * lanes
        self.x = rng.standard_normal((n, d)).astype(dtype)
        self.coef = rng.standard_normal((k, d)).astype(dtype) * 0.5
        self.b = rng.standard_normal(k).astype(dtype)
        margin_loss = list(LOSSES).index(loss) in range(4, 9)
        self.targets = int(k > 1 and margin_loss)
        if loss == "multinomial" or self.targets:
            self.y = rng.integers(0, k, n).astype(dtype)
        elif margin_loss:
            self.y = rng.choice([-1, 1], n).astype(dtype)
        else:
            self.y = rng.standard_normal((n, k)).astype(dtype)
        self.s = rng.random(n).astype(dtype) if weighted else None

    def pack(self, coef, b):
        flat = np.zeros(self.length, self.dtype)
        flat[: self.k * self.pad].reshape(self.k, self.pad)[:, : self.d] = coef
        flat[self.k * self.pad : self.k * self.pad + self.k] = b
        return flat

    def unpack(self, flat):
        m = self.k * self.pad
        return flat[:m].reshape(self.k, self.pad)[:, : self.d], flat[m : m + self.k]

    def twin(self, rows, coef, b, epsilon=0.3):
        """(sum of losses, gradient in W, gradient in b) in float64."""
        x, s = self.x[rows].astype(float), np.ones(len(rows))
        if self.s is not None:
            s = self.s[rows].astype(float)
        z = x @ coef.T + b
        if self.loss == "multinomial":
            value, e = reference.linear_softmax(z, self.y[rows].astype(int))
            value = value[:, None]
        else:
            t = self.y.reshape(self.n, -1)[rows].astype(float)
            if self.targets:
                t = np.where(t == np.arange(self.k), 1.0, -1.0)
            value, e = reference.linear_loss(self.loss, z, t, epsilon)
        e = e * s[:, None]
        return (value * s[:, None]).sum(), e.T @ x, e.sum(axis=0)

    def gradient(self, level, threads=1, chunks=3):
        grad = np.full((chunks, self.length), np.nan)
        out = kernel("linear", level).loss_gradient(
            grad, self.pack(self.coef, self.b), self.x, self.y, self.s, self.k,
            LOSSES[self.loss][0], self.targets, 0.3, True, threads,
        )  # fmt: skip
        return out, grad.sum(axis=0), grad

    def epoch(self, level, rule="sgd", threads=1, group=1, size=8, workers=1, sync=2, lr=0.01,
              l2=0.0, l1=0.0, average=False, order=None, slab=None, steps=None):  # fmt: skip
        if order is None:
            order = np.arange(-(-self.n // group), dtype=np.int64)
        if slab is None:
            slab = np.zeros((workers, 4, self.length), self.dtype)
            slab[:, 0] = self.pack(self.coef, self.b)
            steps = np.zeros((workers, 2), np.int64)
        rates = np.full(-(-len(order) // size), lr)
        out = kernel("linear", level).sgd_epoch(
            slab, steps, self.x, self.y, self.s, order, rates, self.k, group, size, sync,
            LOSSES[self.loss][0], self.targets, 0.3, True, RULES[rule], l2, l1, 0.9, 0.999, 1e-8,
            average, threads,
        )  # fmt: skip
        return out, slab


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradient_equals_twin_at_every_width(dtype, level):
    for d in SIZES[1:]:
        case = Case(37, d, dtype, weighted=d % 2 == 0)
        (loss, weight, bad), total, _ = case.gradient(level)
        want, w, b = case.twin(np.arange(37), case.coef.astype(float), case.b.astype(float))
        coef, intercept = case.unpack(total)
        scale = TOLERANCE[dtype] * (1 + np.abs(w).max())
        assert bad == 0
        assert weight == pytest.approx(37 if case.s is None else case.s.sum(), rel=1e-6)
        assert loss == pytest.approx(want, rel=50 * TOLERANCE[dtype])
        np.testing.assert_allclose(coef, w, atol=scale)
        np.testing.assert_allclose(intercept, b, atol=scale)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradient_equals_twin_at_every_number_of_rows(dtype, level):
    for n in SIZES[1:]:
        case = Case(n, 19, dtype, "log_loss")
        (loss, _, _), total, _ = case.gradient(level)
        want, w, b = case.twin(np.arange(n), case.coef.astype(float), case.b.astype(float))
        assert loss == pytest.approx(want, rel=50 * TOLERANCE[dtype])
        np.testing.assert_allclose(case.unpack(total)[0], w, atol=TOLERANCE[dtype] * (n + 1))
        np.testing.assert_allclose(case.unpack(total)[1], b, atol=TOLERANCE[dtype] * (n + 1))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_loss_equals_its_twin(dtype, loss, k, level):
    case = Case(203, 21, dtype, loss, k=k, weighted=True)
    (value, _, bad), total, _ = case.gradient(level)
    want, w, b = case.twin(np.arange(203), case.coef.astype(float), case.b.astype(float))
    assert bad == 0
    assert value == pytest.approx(want, rel=50 * TOLERANCE[dtype], abs=1e-6)
    np.testing.assert_allclose(case.unpack(total)[0], w, atol=TOLERANCE[dtype] * 200)
    np.testing.assert_allclose(case.unpack(total)[1], b, atol=TOLERANCE[dtype] * 200)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_epoch_equals_twin_step_by_step(dtype, rule, level):
    case = Case(53, 18, dtype, weighted=True)
    order = np.random.default_rng(1).permutation(53).astype(np.int64)
    _, slab = case.epoch(level, rule, order=order, size=10, l2=0.1, l1=0.02, average=True)
    w, b = case.coef.astype(float), case.b.astype(float)
    state_w, state_b = [w * 0, w * 0], [b * 0, b * 0]
    iterates = []
    for step, start in enumerate(range(0, 53, 10), 1):
        rows = order[start : start + 10]
        _, gw, gb = case.twin(rows, w, b)
        gw, gb = gw / len(rows) + 0.1 * w, gb / len(rows)
        w, *state_w = reference.linear_step(rule, w, *state_w, gw, 0.01, step)
        b, *state_b = reference.linear_step(rule, b, *state_b, gb, 0.01, step)
        w = np.sign(w) * np.maximum(np.abs(w) - 0.01 * 0.02, 0)
        iterates.append(w)
    coef, intercept = case.unpack(slab[0, 0])
    atol = 1e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(coef, w, atol=atol)
    np.testing.assert_allclose(intercept, b, atol=atol)
    np.testing.assert_allclose(case.unpack(slab[0, 3])[0], np.mean(iterates, axis=0), atol=atol)


def test_groups_are_the_rows_in_their_order(level):
    case = Case(75, 33, "float64")
    order = np.array([4, 0, 2, 3, 1], np.int64)  # groups of 16, the last of 11 rows
    rows = np.concatenate([np.arange(75)[16 * q : 16 * q + 16] for q in order])
    _, grouped = case.epoch(level, group=16, size=1, order=order)
    w, b = case.coef.astype(float), case.b.astype(float)
    for q in order:
        rows = np.arange(75)[16 * q : 16 * q + 16]
        _, gw, gb = case.twin(rows, w, b)
        w, b = w - 0.01 * gw / len(rows), b - 0.01 * gb / len(rows)
    np.testing.assert_allclose(case.unpack(grouped[0, 0])[0], w, atol=1e-13)
    np.testing.assert_allclose(case.unpack(grouped[0, 0])[1], b, atol=1e-13)


@pytest.mark.parametrize("loss", ["squared_error", "log_loss", "multinomial"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_same_bits_on_every_level_and_thread_count(dtype, loss):
    case = Case(4001, 29, dtype, loss, k=1 if loss != "multinomial" else 4)
    seen = set()
    for level in levels():
        for threads in (1, 2, 3):
            (value, weight, _), slab = case.epoch(
                level, "adam", threads=threads, group=8, size=2, workers=3, sync=4, average=True
            )
            (full, _, _), _, grad = case.gradient(level, threads=threads, chunks=7)
            seen.add((value, weight, full, slab[:, :4].tobytes(), grad.tobytes()))
    assert len(seen) == 1


def test_workers_are_averaged_by_their_batches(level):
    case = Case(40, 5, "float64")  # 5 batches of 8: worker 0 takes 0 1 and 4, worker 1 takes 2 3
    _, slab = case.epoch(level, size=8, workers=2, sync=2)

    def walk(w, b, batches):
        for q in batches:
            _, gw, gb = case.twin(np.arange(8 * q, 8 * q + 8), w, b)
            w, b = w - 0.01 * gw / 8, b - 0.01 * gb / 8
        return w, b

    start = case.coef.astype(float), case.b.astype(float)
    first, second = walk(*start, [0, 1]), walk(*start, [2, 3])
    w, b = walk((first[0] + second[0]) / 2, (first[1] + second[1]) / 2, [4])
    for worker in range(2):
        np.testing.assert_allclose(case.unpack(slab[worker, 0])[0], w, atol=1e-13)
        np.testing.assert_allclose(case.unpack(slab[worker, 0])[1], b, atol=1e-13)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_margin_that_is_not_finite_is_told(loss, value, level):
    case = Case(30, 7, "float32", loss, k=3)
    assert case.epoch(level)[0][2] == 0
    case.x[17, 6] = value
    assert case.epoch(level)[0][2] == 1
    assert case.gradient(level)[0][2] == 1


def test_denormals_and_signed_zeros_pass(level):
    case = Case(40, 20, "float32")
    case.x[::2] = np.finfo("float32").smallest_subnormal
    case.x[1::2] = -0.0
    (loss, _, bad), total, _ = case.gradient(level)
    want, w, _ = case.twin(np.arange(40), case.coef.astype(float), case.b.astype(float))
    assert bad == 0
    assert loss == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(case.unpack(total)[0], w, atol=1e-42)


def test_nothing_outside_the_outputs_is_written(level):
    for d in range(1, 40):
        case = Case(21, d, "float32")
        slab = Guarded(np.zeros((2, 4, case.length), "float32"))
        steps = Guarded(np.zeros((2, 2), np.int64))
        case.epoch(level, "adam", workers=2, slab=slab.array, steps=steps.array, average=True)
        slab.check()
        steps.check()


def test_shuffle_is_a_permutation_by_key_and_epoch(level):
    linear = kernel("linear", level)
    for n in SIZES:
        a = np.arange(n, dtype=np.int64)
        linear.shuffle(a, 7, 3)
        assert np.array_equal(np.sort(a), np.arange(n))
    first, again, other, later = (np.arange(1000, dtype=np.int64) for _ in range(4))
    linear.shuffle(first, 7, 0)
    linear.shuffle(again, 7, 0)
    linear.shuffle(other, 8, 0)
    linear.shuffle(later, 7, 1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, later)


def test_shuffle_is_uniform(level):
    counts = np.zeros((5, 5))
    a = np.empty(5, np.int64)
    for key in range(4000):
        a[:] = range(5)
        kernel("linear", level).shuffle(a, key, 0)
        counts[np.arange(5), a] += 1
    expected = 4000 / 5
    assert ((counts - expected) ** 2 / expected).sum() < 40  # 16 degrees of freedom, p < 0.001


def test_wrong_arguments_are_refused_with_nothing_written(level):
    linear = kernel("linear", level)
    case = Case(16, 3, "float64")

    def call(slab=None, x=case.x, y=case.y, s=None, order=None, lr=None, group=1, size=8):
        slab = np.zeros((1, 4, case.length)) if slab is None else slab
        order = np.arange(16, dtype=np.int64) if order is None else order
        lr = np.ones(2) if lr is None else lr
        linear.sgd_epoch(slab, np.zeros((1, 2), np.int64), x, y, s, order, lr, 1, group, size, 2,
                         0, 0, 0.1, True, 0, 0.0, 0.0, 0.9, 0.99, 1e-8, False, 1)  # fmt: skip
        return slab

    call()
    read_only = np.zeros((1, 4, case.length))
    read_only.flags.writeable = False
    for wrong in (
        {"x": case.x.astype(int)},
        {"x": np.asfortranarray(case.x)},
        {"x": case.x.astype(">f8")},
        {"y": case.y[:5]},
        {"y": case.y.astype("float32")},
        {"s": np.ones(3)},
        {"order": np.array([0, 16], np.int64)},
        {"order": np.array([0, -1], np.int64)},
        {"lr": np.ones(1)},
        {"group": 0},
        {"size": 0},
        {"slab": read_only},
        {"slab": np.zeros((1, 4, 2))},
        {"slab": np.zeros((1, 4, case.length), "float32")},
    ):
        given = wrong.get("slab", np.zeros((1, 4, case.length)))
        with pytest.raises((ValueError, TypeError, IndexError)):
            call(**{**wrong, "slab": given})
        assert not given.any()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_moments_equal_twin_and_their_bits_agree(dtype, weighted):
    rng = np.random.default_rng(0)
    for n, d, k in ((1, 1, 1), (63, 4, 2), (65, 13, 1), (700, 31, 3), (300, 70, 1)):
        x, y = rng.standard_normal((n, d)).astype(dtype), rng.standard_normal((n, k)).astype(dtype)
        s = rng.random(n).astype(dtype) if weighted else None
        shift = rng.standard_normal(d + k).astype(dtype)
        z = np.column_stack([np.column_stack([x, y]).astype(float) - shift, np.ones(n)])
        want = (z * (1.0 if s is None else s.astype(float)[:, None])).T @ z
        pad = (d + k + 4) // 4 * 4
        seen = set()
        for level in levels():
            for threads in (1, 2):
                out = np.full((3, pad, pad), np.nan)
                kernel("linear_gram", level).gram(out, x, y, s, shift, threads)
                upper = np.triu(out.sum(axis=0)[: d + k + 1, : d + k + 1])
                seen.add(upper.tobytes())
                atol = TOLERANCE[dtype] * (n + 1)
                np.testing.assert_allclose(upper, np.triu(want), atol=atol)
        assert len(seen) == 1


@pytest.mark.parametrize("loss", ["hinge", "log_loss", "multinomial"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_class_numbers_of_a_byte_give_the_same_bits(dtype, loss, level):
    for n, group in ((203, 1), (203, 48), (64, 16), (1, 1)):
        case = Case(n, 21, dtype, loss, k=3, weighted=n > 1)
        seen = []
        for kind in (dtype, "uint8"):
            case.y = case.y.astype(kind)
            seen.append((case.gradient(level), case.epoch(level, group=group, size=3)))
        for part, coded in zip(*(np.hstack([np.ravel(a) for a in (*g[0], g[2], *e[0], e[1])])
                                 for g, e in seen), strict=True):  # fmt: skip
            assert part == coded


def test_two_classes_are_the_targets_minus_one_and_one(level):
    case = Case(203, 21, "float32", "log_loss")
    plain = case.gradient(level), case.epoch(level)
    case.y, case.targets = (case.y > 0).astype(np.uint8), 2
    for real, coded in zip(plain, (case.gradient(level), case.epoch(level)), strict=True):
        assert real[0] == coded[0]
        np.testing.assert_array_equal(real[-1], coded[-1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("loss", list(LOSSES)[:4])
def test_a_target_that_is_not_finite_is_told(loss, value, level):
    case = Case(30, 7, "float32", loss, k=3)
    case.y[29, 2] = value
    assert case.epoch(level)[0][2] == 1
    assert case.gradient(level)[0][2] == 1


@pytest.mark.parametrize("dtype", ["int8", "bool", "int32", "float32", "int64", "float64"])
def test_two_labels_are_numbered(dtype, level):
    for n in (*(n for n in SIZES if n >= 16), 5000):
        labels = np.random.default_rng(n).integers(0, 2, n).astype(dtype)
        few = np.array([0, 1], dtype)
        for threads in (1, 2, 3):
            codes = Guarded(np.full(n, 9, np.uint8))
            assert kernel("linear", level).number_two(codes.array, labels, few, threads)
            np.testing.assert_array_equal(codes.array, labels == few[1])
            codes.check()
            if dtype != "bool":
                other = labels.copy()
                other[-1] = 5
                assert not kernel("linear", level).number_two(codes.array, other, few, threads)
    with pytest.raises(ValueError, match="labels"):
        kernel("linear", level).number_two(
            np.zeros(20, np.uint8), np.zeros(20, "int16"), np.zeros(2, "int16"), 1
        )
