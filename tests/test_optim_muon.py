"""Muon: the iteration in float64, torch's bfloat16 run, and the shared contract."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from fastopt import optim
from fastopt.errors import ArrayError, DivergedError, OptionError
from tests.conftest import sample


def matrices(dtype="float64"):
    return [sample(30, dtype).reshape(5, 6), sample(48, dtype, seed=2).reshape(12, 4)]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
def test_formula_and_torch(nesterov, adjust):
    """20 steps: the formula to rtol 1e-12; torch, whose iteration is in bfloat16, to 2 %."""
    p = matrices()
    want, start = [a.copy() for a in p], [a.copy() for a in p]
    options = {"lr": 0.02, "nesterov": nesterov, "adjust_lr_fn": adjust}
    opt = optim.Muon(p, **options)
    buffers = [np.zeros_like(a) for a in p]
    rng = np.random.default_rng(0)
    grads = [[rng.standard_normal(a.shape) for a in p] for _ in range(20)]
    for step in grads:
        opt.step(step)
        for w, m, g in zip(want, buffers, step):
            m[...] = 0.95 * m + 0.05 * g
            u = 0.05 * g + 0.95 * m if nesterov else m
            x = u / np.linalg.norm(u)
            for _ in range(5):
                s = x @ x.T
                x = 3.4445 * x - 4.775 * s @ x + 2.0315 * s @ s @ x
            rows, columns = w.shape
            ratio = max(1, rows / columns) ** 0.5 if adjust is None else 0.2 * max(w.shape) ** 0.5
            w[...] = (1 - 0.02 * 0.1) * w - 0.02 * ratio * x
    for a, b in zip(p, want):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(a, requires_grad=True) for a in start]
    theirs = torch.optim.Muon(tensors, **options)
    for step in grads:
        for t, g in zip(tensors, step):
            t.grad = torch.tensor(g)
        theirs.step()
    for a, t, s in zip(p, tensors, start):
        assert np.abs(a - t.detach().numpy()).max() < 0.02 * np.abs(a - s).max()
    ours = optim.Muon([a.copy() for a in p])
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["lr"] == 0.02


def test_contract():
    p = matrices("float32")
    half = [np.zeros(a.shape, "f2") for a in p]
    opt = optim.Muon(p, ema_decay=0.5, copy_out=half, max_grad_norm=1.0, zero_grads=True)
    g = [a + 1 for a in p]
    opt.step(g)
    assert not g[0].any()
    assert (half[1] == p[1].astype("f2")).all()
    opt.step([None, p[1] + 1])
    others = [pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt)]
    loaded = optim.Muon([a.copy() for a in p], ema_decay=0.5, max_grad_norm=1.0)
    loaded.load_state_dict(opt.state_dict())
    g = [a + 1 for a in p]
    for other in [*others, loaded]:
        other.step([a.copy() for a in g])
    opt.step(g)
    for other in [*others, loaded]:
        for a, b in zip(p, other.param_groups[0]["params"]):
            assert a.tobytes() == b.tobytes()
        assert other.ema[0].tobytes() == opt.ema[0].tobytes()


def test_refusals():
    with pytest.raises(ArrayError, match="matrices"):
        optim.Muon(np.zeros(3))
    with pytest.raises(OptionError, match="ns_steps"):
        optim.Muon(np.zeros((2, 2)), ns_steps=100)
    with pytest.raises(OptionError, match="adjust_lr_fn"):
        optim.Muon(np.zeros((2, 2)), adjust_lr_fn="none")
    p = np.ones((2, 2))
    opt = optim.Muon(p, on_nonfinite="raise")
    with pytest.raises(DivergedError):
        opt.step(np.full((2, 2), np.nan))
    with pytest.raises(ArrayError, match="shape"):
        opt.step(np.ones((2, 3)))
    assert (p == 1).all()
    assert not opt._state[0]["momentum_buffer"].any()
