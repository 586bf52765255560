"""Adafactor: the twin over shapes, levels and threads; what the factors do at the edges."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt import optim
from tests import reference
from tests.conftest import THREADS, Guarded, kernel, sample

# tails of vectors, of a tile (64 x 2048), of a unit (256); stacks; nothing; one row or column
SHAPES = [(n,) for n in (0, 1, 17, 255, 256, 257, 1000)]
SHAPES += [(), (1, 1), (1, 300), (300, 1), (3, 3), (7, 31), (8, 32), (9, 33), (64, 64)]
SHAPES += [(65, 129), (70, 257), (2, 2049), (130, 4100)]
SHAPES += [(5, 3, 3), (2, 3, 4, 70), (300, 2, 2), (0, 3), (3, 0), (0, 2, 2)]
OPTIONS = (1e-2, -0.8, -1.0, 1e-3, 1.0)  # lr, beta2_decay, eps1, eps2, d
STEPS = 4


def arrays_for(shape, dtype):
    """Guarded state of one array: (row means, column means) or (variance,)."""
    if len(shape) < 2:
        return [Guarded(np.zeros(shape, dtype))]
    rows, columns = (*shape[:-1], 1), (*shape[:-2], 1, shape[-1])
    return [Guarded(np.zeros(rows, dtype)), Guarded(np.zeros(columns, dtype))]


def run(level, dtype, threads, special=False):
    params = [
        Guarded(sample(int(np.prod(s)), dtype, seed=1, special=special and k % 2 == 0).reshape(s))
        for k, s in enumerate(SHAPES)
    ]
    states = [arrays_for(s, dtype) for s in SHAPES]
    plan = kernel("update", level).Plan(
        ["adafactor"], [p.array for p in params],
        [tuple(s.array for s in ss) for ss in states], [0] * len(SHAPES),
    )  # fmt: skip
    lr, tau, eps1, eps2, d = OPTIONS
    plan.set_options(0, (lr, -1.0, 0.0, 0.1, tau, eps1, eps2, d))
    for t in range(STEPS):
        grads = [
            sample(int(np.prod(s)), dtype, seed=10 * t, special=special and k % 3 == 0).reshape(s)
            for k, s in enumerate(SHAPES)
        ]
        plan.step(tuple(grads), 0.5, 0.0, False, threads)
    for guarded in [*params, *(s for ss in states for s in ss)]:
        guarded.check()
    return [p.array for p in params], [[s.array for s in ss] for ss in states]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", THREADS)
def test_twin(level, dtype, threads):
    params, states = run(level, dtype, threads)
    tolerance = 1e-12 if dtype == "float64" else 3e-6
    for k, (shape, p, state) in enumerate(zip(SHAPES, params, states)):
        if p.size == 0:
            continue
        n, wanted = p.size, [s.array for s in arrays_for(shape, dtype)]
        want = sample(n, dtype, seed=1).reshape(shape)
        row, col, v = (*wanted, None) if len(wanted) == 2 else (None, None, *wanted)
        lr, tau, _, eps2, d = OPTIONS
        for t in range(STEPS):
            g = sample(n, dtype, seed=10 * t).reshape(shape)
            eps1 = np.finfo(dtype).eps
            reference.adafactor(
                want, g, row, col, v, t + 1, lr, tau, eps1, eps2, d, 0.1, scale=-0.5
            )
        np.testing.assert_allclose(p, want, rtol=tolerance, atol=tolerance, err_msg=str(shape))
        for a, b in zip(state, wanted):
            np.testing.assert_allclose(a, b, rtol=tolerance, err_msg=f"{k} {shape}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("special", [False, True])
def test_bits_do_not_depend_on_level_or_threads(dtype, special):
    from fastopt._kernels import levels

    found = set()
    for level in levels():
        for threads in (1, 2, 3):
            params, states = run(level, dtype, threads, special)
            found.add(
                b"".join(np.nan_to_num(a, nan=7.0).tobytes() for a in params)
                + b"".join(np.nan_to_num(a, nan=7.0).tobytes() for s in states for a in s)
            )
    assert len(found) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(40, 50), (2000,), (3, 30, 20)])
def test_zero_tiny_and_special_gradients_are_torchs(shape, dtype):
    """Empty rows and columns, gradients whose squares vanish, large ones, NaN and infinity."""
    torch = pytest.importorskip("torch")
    n = int(np.prod(shape))
    rng = np.random.default_rng(0)
    for kind in ("zero", "part", "tiny", "huge", "nan", "inf"):
        p = sample(n, dtype).reshape(shape)
        t = torch.tensor(p.copy(), requires_grad=True)
        ours, theirs = optim.Adafactor(p), torch.optim.Adafactor([t], foreach=False)
        for _ in range(3):
            g = rng.standard_normal(shape).astype(dtype)
            g *= {"zero": 0, "tiny": 1e-30, "huge": 1e9}.get(kind, 1)
            if kind == "part":
                g[..., :7] = 0
                g[3:9] = 0
            elif kind in ("nan", "inf"):
                g[0] = float(kind)
            t.grad = torch.tensor(g)
            ours.step(g)
            theirs.step()
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(
                p, t.detach().numpy(), rtol=1e-10 if dtype == "float64" else 2e-5, atol=1e-6,
                err_msg=kind,
            )  # fmt: skip


def test_state_is_small_and_threads_share_stacks():
    w = np.ones((300, 200), "f4")
    opt = optim.Adafactor(w)
    opt.step(w.copy())
    assert sum(a.nbytes for a in opt._state[0].values()) == 500 * 4
    stacks = [np.ones((500, 3, 3), "f4"), np.ones((64, 1024), "f4"), np.ones((4, 4), "f4")]
    ends = set()
    for threads in (1, 2):
        p = [a.copy() for a in stacks]
        opt = optim.Adafactor(p, threads=threads, lr=0.3)
        for k in range(3):
            opt.step([sample(a.size, "float32", seed=k).reshape(a.shape) for a in p])
            opt.step([None, sample(p[1].size, "float32").reshape(p[1].shape), None])
        ends.add(b"".join(a.tobytes() for a in p))
    assert len(ends) == 1
