"""Narrow gradients and state, and what is fused into the step."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
import threading

import numpy as np
import pytest

from fastopt import optim
from fastopt._files import load_arrays, save_arrays
from fastopt.errors import (
    ArrayError,
    ConcurrentUseError,
    DivergedError,
    DTypeError,
    FormatError,
    OptionError,
)
from fastopt.optim import schedules
from tests import reference
from tests.conftest import THREADS, kernel, sample

FAMILIES = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta",
            "Lion", "LAMB", "Adafactor"]  # fmt: skip
NARROW = [f for f in FAMILIES if f != "Adafactor"]
OPTIONS = {"SGD": {"lr": 0.1, "momentum": 0.9}, "Adagrad": {"lr": 0.1}}


def make(name, params, **shared):
    return getattr(optim, name)(params, **OPTIONS.get(name, {}), **shared)


# -- 16-bit gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_narrow_gradients_are_widened_exactly(name, dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    for n in (1, 7, 255, 257, 1025, 5000):
        narrow = sample(n, "float32", seed=1).astype(kind)
        p, q = sample(n, "float32"), sample(n, "float32")
        make(name, p, max_grad_norm=1.0).step(narrow)
        make(name, q, max_grad_norm=1.0).step(narrow.astype(np.float32))
        assert p.tobytes() == q.tobytes()
    with pytest.raises(DTypeError, match=r"grads\[0\]"):
        make(name, np.zeros(3)).step(np.zeros(3, kind))


def test_every_half_and_bfloat_is_widened_and_narrowed_exactly(level):
    """All 65,536 patterns in as gradients; weights out to nearest-even, as NumPy and ml_dtypes."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    bits = np.arange(65_536, dtype=np.uint16)
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 1 << 32, 200_000, np.uint32).view("f4")
    weights[:65_536] = (bits.astype("u4") << 16 | 0x8000).view("f4")  # ties of bfloat16
    with np.errstate(invalid="ignore"):
        weights[65_536:131_072] = bits.view("f2").astype("f4") * np.float32(1 + 2**-11)
    for kind in (np.float16, ml_dtypes.bfloat16):
        p, g = np.zeros(65_536, "f4"), bits.view(kind)
        plan = kernel("update", level).Plan(["sgd"], [p], [()], [0])
        plan.set_options(0, (1.0, -1, 0, 0, 0, 0, 0))
        plan.step((g,), 1.0, 0.0, False, 1)
        np.testing.assert_array_equal(p, g.astype("f4"))
        out = np.zeros(weights.size, kind)
        w = weights.copy()
        plan = kernel("update", level).Plan(["sgd"], [w], [()], [0])
        plan.set_options(0, (0.0, 1, 0, 0, 0, 0, 0))
        plan.set_fused(None, 0.0, [out], False)
        plan.step((np.zeros_like(w),), 1.0, 0.0, False, 1)
        with np.errstate(all="ignore"):
            want = weights.astype(kind)
        nan = np.isnan(weights)
        np.testing.assert_array_equal(np.isnan(out.astype("f4")), nan)
        np.testing.assert_array_equal(out.view("u2")[~nan], want.view("u2")[~nan])


# -- narrow state ----------------------------------------------------------------------------


def encode(module, x, signed, key):
    codes = np.zeros(x.size, "i1" if signed else "u1")
    scales = np.zeros(-(-x.size // 256), "f4")
    module.encode_state(codes, scales, x, key)
    return codes, scales


def test_all_codes_survive_any_noise(level):
    module = kernel("update_state", level)
    for signed, codes in ((True, np.arange(-127, 128)), (False, np.arange(256))):
        codes = codes.astype("i1" if signed else "u1")
        for scale in (1e-30, 3.7e-9, 1.0, 1e30):
            x = np.zeros(codes.size, "f4")
            module.decode_state(x, codes, np.array([scale], "f4"))
            value = scale * reference.companded(codes, signed)
            np.testing.assert_allclose(x, value, rtol=1e-5, atol=1e-38)
            for key in range(50):
                again, scales = encode(module, x, signed, key)
                np.testing.assert_array_equal(again, codes)
                np.testing.assert_allclose(scales, [scale], rtol=2e-7)


def test_state_codes_by_level_and_special_blocks():
    from fastopt._kernels import levels

    x = np.abs(sample(1000, "float32", seed=3)) ** 8
    x[256:512] = 0
    x[600], x[800] = np.nan, np.inf
    found = set()
    for one in levels():
        module = kernel("update_state", one)
        for signed in (True, False):
            codes, scales = encode(module, x, signed, 7)
            out = np.ones(1000, "f4")
            module.decode_state(out, codes, scales)
            assert not out[256:512].any()
            assert np.isnan(out[512:]).all()
            assert np.isfinite(out[:256]).all()
            if not signed:
                assert (codes[:256] > 0).all()
            found.add((signed, codes.tobytes(), scales.tobytes()))
    assert len(found) == 2


def test_stochastic_rounding_is_unbiased():
    from fastopt._kernels import update_state

    n = 1_000_000
    x = np.full(n, 1 + 0.3 * 2**-7, "f4")  # 0.3 of the way between two bfloat16 numbers
    codes, out = np.zeros(n, "u2"), np.zeros(n, "f4")
    update_state.encode_state(codes, None, x, 5)
    update_state.decode_state(out, codes, None)
    up = (out > 1).mean()
    assert set(np.unique(out)) == {1.0, np.float32(1 + 2**-7)}
    assert abs(up - 0.3) < 4 * (0.3 * 0.7 / n) ** 0.5
    for signed in (True, False):  # unbiased in the companded number
        x = np.full(n, reference.companded(np.array([20.3]), signed)[0], "f4")
        x[::256] = 1.0
        codes, _ = encode(update_state, x, signed, 9)
        inner = np.delete(codes, np.s_[::256])
        assert set(np.unique(inner)) == {20, 21}
        assert abs((inner == 21).mean() - 0.3) < 4 * (0.21 / n) ** 0.5 + 3e-4


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_second_moment_decays_without_gradient(state_dtype):
    """v falls by beta2 a step although that is less than half a step of its number format."""
    p = np.zeros(20_000, "f4")
    opt = optim.Adam(p, state_dtype=state_dtype, betas=(0.9, 0.999))
    g = np.ones(20_000, "f4")
    g[1::2] = 0.5
    opt.step(g)
    g[1::2] = 0.0
    for _ in range(700):
        opt.step(g)
    v = optim.state.full(opt._state[0], "exp_avg_sq")[1::2]
    want = 0.001 * 0.25 * 0.999**700
    assert abs(v.mean() / want - 1) < (0.002 if state_dtype == "bfloat16" else 0.02)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", NARROW)
def test_narrow_state_follows_full_state(name, state_dtype):
    """50 steps on a noisy bowl: the weights end about where full state ends."""
    ends = {}
    for kind in ("float32", state_dtype):
        p = sample(3000, "float32")
        opt = make(name, p, state_dtype=kind)
        rng = np.random.default_rng(0)
        for _ in range(50):
            opt.step(p + 0.1 * rng.standard_normal(3000).astype("f4"))
        ends[kind] = p
    moved = np.abs(ends["float32"] - sample(3000, "float32")).mean()
    # one rounding in 127 steps of a root is 1.6 %; sign steps (Lion) flip where they are near 0
    assert (
        np.abs(ends[state_dtype] - ends["float32"]).mean()
        < (0.2 if name == "Lion" else 0.1) * moved
    )


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_narrow_state_contract(state_dtype):
    """Bits do not depend on threads or level; pickle, deepcopy and state dict resume; small."""
    from fastopt._kernels import levels

    ends = set()
    for threads in (1, 2, 3):
        p = sample(70_001, "float32")
        opt = optim.AdamW(p, state_dtype=state_dtype, threads=threads, seed=3)
        for k in range(3):
            opt.step(sample(70_001, "float32", seed=k))
        ends.add(p.tobytes())
    assert len(ends) == 1
    own = sum(a.nbytes for a in opt._state[0].values()) / p.size
    assert own <= (4.0 if state_dtype == "bfloat16" else 2.1)
    other = optim.AdamW(p.copy(), state_dtype=state_dtype, seed=3)
    other.load_state_dict(opt.state_dict())
    twins = [pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt), other]
    g = sample(70_001, "float32", seed=9)
    opt.step(g)
    for twin in twins:
        twin.step(g)
        assert twin.param_groups[0]["params"][0].tobytes() == p.tobytes()

    ends = set()
    for one in levels():
        plan_of, p = kernel("update", one).Plan, sample(1000, "float32")
        codes = ("u2", "u2") if state_dtype == "bfloat16" else ("i1", "u1")
        state = tuple(np.zeros(1000, c) for c in codes)
        scales = () if state_dtype == "bfloat16" else (np.zeros(4, "f4"), np.zeros(4, "f4"))
        plan = plan_of(["adam"], [p], [state], [0], [scales], 11)
        plan.set_options(0, (1e-2, 1, 0, 0.01, 0.9, 0.999, 1e-8))
        for k in range(5):
            plan.step((sample(1000, "float32", seed=k),), 1.0, 0.0, False, 1)
        ends.add((p.tobytes(), state[0].tobytes(), state[1].tobytes()))
    assert len(ends) == 1


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_narrow_state_from_and_to_full(state_dtype):
    p = sample(1000, "float32")
    full = optim.Adam(p)
    full.step(sample(1000, "float32", seed=1))
    narrow = optim.Adam(p.copy(), state_dtype=state_dtype)
    narrow.load_state_dict(full.state_dict())
    back = optim.Adam(p.copy())
    back.load_state_dict(narrow.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        a, b = full._state[0][name], back._state[0][name]
        assert np.abs(a - b).max() < 0.02 * np.abs(a).max()
    bad = narrow.state_dict()
    if state_dtype == "int8":
        bad["state"][0]["exp_avg_scale"] = np.zeros(3, "f4")
        with pytest.raises(FormatError, match="exp_avg_scale"):
            back.load_state_dict(bad)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", NARROW)
def test_narrow_state_dict_resumes_bit_for_bit(name, state_dtype):
    """Also the noise of its rounding, which depends on the step."""
    p = sample(1000, "float32")
    opt = make(name, p, state_dtype=state_dtype)
    for k in range(3):
        opt.step(sample(1000, "float32", seed=k))
    other = make(name, p.copy(), state_dtype=state_dtype)
    other.load_state_dict(opt.state_dict())
    for o in (opt, other):
        o.step(np.ones(1000, "f4"))
    for array, twin in zip(opt._state[0].values(), other._state[0].values()):
        assert array.tobytes() == twin.tobytes()


@pytest.mark.parametrize("tag", [None, "int8/1"])
def test_codes_of_another_meaning_are_refused(tag, tmp_path):
    """By state dict, pickle and safetensors, and nothing has changed then."""
    p = sample(1000, "float32")
    opt = optim.AdamW(p, state_dtype="int8")
    opt.step(sample(1000, "float32", seed=1))
    other = {"state_format": tag, "n_steps": 1} if tag else {}
    old = {**opt.state_dict(), "fastopt": other}
    for kind in ("int8", "bfloat16", "float32"):
        q = p.copy()
        new = optim.AdamW(q, state_dtype=kind)
        new.step(p)
        before = [a.tobytes() for a in (q, *new._state[0].values())]
        with pytest.raises(FormatError, match=r'\["state_format"\]: expected'):
            new.load_state_dict(old)
        assert before == [a.tobytes() for a in (q, *new._state[0].values())]
        assert new.n_steps == 1
    saved = opt.__getstate__()
    with pytest.raises(FormatError, match="state_format"):
        optim.AdamW.__new__(optim.AdamW).__setstate__({**saved, "state_dict": old})
    if pytest.importorskip("safetensors"):
        optim.save(opt, tmp_path / "then")
        config, arrays = load_arrays(tmp_path / "then", "fastopt.optim/2")
        assert config["rest"]["fastopt"]["state_format"] == "int8/2"
        config["rest"]["fastopt"] = other
        save_arrays(tmp_path / "then", "fastopt.optim/2", config, arrays)
        before = opt._state[0]["exp_avg"].tobytes()
        with pytest.raises(FormatError, match="state_format"):
            optim.load(opt, tmp_path / "then")
        assert opt._state[0]["exp_avg"].tobytes() == before


def test_narrow_state_trains_a_network():
    """scikit-learn's digits: the loss (mean of 4 seeds) within 1 % of float32 state's."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = (digits.data / 16).astype("f4"), digits.target
    losses = dict.fromkeys(("float32", "bfloat16", "int8"), 0.0)
    for seed, kind in itertools.product(range(4), losses):
        rng = np.random.default_rng(seed)
        w = {
            "w1": rng.standard_normal((64, 64)).astype("f4") * 0.1, "b1": np.zeros(64, "f4"),
            "w2": rng.standard_normal((64, 10)).astype("f4") * 0.1, "b2": np.zeros(10, "f4"),
        }  # fmt: skip
        opt = optim.AdamW(w, lr=3e-3, weight_decay=0.5, state_dtype=kind)
        for _ in range(400):
            batch = rng.integers(0, len(x), 64)
            loss_of(w, x[batch], y[batch], opt)
        losses[kind] += loss_of(w, x, y, None) / 4
    assert losses["float32"] < 0.2
    assert losses["bfloat16"] < 1.01 * losses["float32"]
    assert losses["int8"] < 1.01 * losses["float32"]


def loss_of(w, x, y, opt):
    hidden = np.maximum(x @ w["w1"] + w["b1"], 0)
    scores = hidden @ w["w2"] + w["b2"]
    scores -= scores.max(1, keepdims=True)
    share = np.exp(scores)
    share /= share.sum(1, keepdims=True)
    loss = -np.log(share[np.arange(len(y)), y]).mean()
    if opt is not None:
        d = share
        d[np.arange(len(y)), y] -= 1
        d /= len(y)
        back = (d @ w["w2"].T) * (hidden > 0)
        opt.step({"w1": x.T @ back, "b1": back.sum(0), "w2": hidden.T @ d, "b2": d.sum(0)})
    return loss


# -- fused extras ----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping_is_torchs(limit, threads):
    torch = pytest.importorskip("torch")
    shapes = [(33, 7), (1000,), (3,)]
    p = [sample(int(np.prod(s)), "float64", seed=k).reshape(s) for k, s in enumerate(shapes)]
    t = [torch.tensor(a, requires_grad=True) for a in p]
    ours = optim.Adam(p, max_grad_norm=limit, threads=threads)
    theirs = torch.optim.Adam(t, foreach=False)
    for k in range(5):
        grads = [sample(a.size, "float64", seed=k + 9).reshape(a.shape) for a in p]
        for a, g in zip(t, grads):
            a.grad = torch.tensor(g)
        norm = torch.nn.utils.clip_grad_norm_(t, limit)
        theirs.step()
        ours.step(grads)
        np.testing.assert_allclose(ours.grad_norm, norm.item(), rtol=1e-13)
    for a, b in zip(p, t):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_nonfinite_gradients(bad, dtype):
    p = sample(1000, "float32")
    before, g = p.copy(), np.ones(1000, dtype)
    g[777] = bad
    opt = optim.Adam(p, on_nonfinite="raise")
    with pytest.raises(DivergedError, match="grads"):
        opt.step(g)
    assert p.tobytes() == before.tobytes()
    assert opt.state_dict()["state"] == {}
    opt = optim.Adam(p, on_nonfinite="skip", zero_grads=True)
    opt.step(g)
    assert p.tobytes() == before.tobytes()
    assert (opt.skipped, opt.n_skipped, opt.n_steps) == (True, 1, 0)
    g[777] = 1
    opt.step(g)
    assert (opt.skipped, opt.n_skipped, opt.n_steps) == (False, 1, 1)
    assert not g.any()
    g[777] = bad
    optim.SGD(p, lr=1.0).step(g)
    assert not np.isfinite(p[777])
    assert np.isfinite(np.delete(p, 777)).all()


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop"])
@pytest.mark.parametrize("size", [2e19, 1e20, 5e20])
def test_large_gradients_move_as_in_torch(name, size):
    """The square of 2e19 is beyond float32, (1 - beta2) of it is not."""
    torch = pytest.importorskip("torch")
    p = np.ones(20, "f4")
    q = torch.ones(20, requires_grad=True)
    q.grad = torch.full((20,), size)
    options = {"alpha": 0.999} if name == "RMSprop" else {}
    ours, theirs = (getattr(m, name) for m in (optim, torch.optim))
    opt, other = ours(p, lr=0.01, on_nonfinite="raise", **options), theirs([q], lr=0.01, **options)
    for _ in range(1 if size == 5e20 else 3):
        opt.step(np.full(20, size, "f4"))
        other.step()
    np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-6)
    assert (p != 1).all()


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("name", "state_dtype"), [
    *((name, state) for name in ("Adam", "NAdam", "LAMB", "RMSprop", "Adagrad")
      for state in ("float32", "bfloat16", "int8")),
    ("Adafactor", "float32"),  # its state is never narrow
])  # fmt: skip
def test_a_step_that_would_overflow_is_not_silent(name, state_dtype, threads):
    """One gradient of 1e30 in two arrays: nothing moves, not even a count."""
    p = [sample(700, "float32"), sample(30_000, "float32", seed=1)]
    g = [sample(700, "float32", seed=2), sample(30_000, "float32", seed=3)]
    opt = getattr(optim, name)(
        p, on_nonfinite="skip", zero_grads=True, state_dtype=state_dtype, threads=threads
    )
    opt.step([x.copy() for x in g])
    before, state = [x.copy() for x in p], opt.state_dict()
    g[1][29_999] = 1e30
    opt.step([x.copy() for x in g])
    assert opt.skipped
    assert opt.n_skipped == 1
    after = opt.state_dict()
    for a, b in zip(p, before):
        np.testing.assert_array_equal(a, b)
    for k, entry in state["state"].items():
        for key, value in entry.items():
            np.testing.assert_array_equal(value, after["state"][k][key])
    opt.step([g[0], None])  # the other array still moves
    assert not opt.skipped
    assert (p[0] != before[0]).any()
    raising = getattr(optim, name)(p, on_nonfinite="raise", state_dtype=state_dtype)
    with pytest.raises(DivergedError, match="overflow"):
        raising.step(g)


def test_loss_scale():
    p, q, g = sample(500, "float32"), sample(500, "float32"), sample(500, "float32", seed=2)
    optim.Adam(p).step(g * np.float32(1024), loss_scale=1024)
    optim.Adam(q).step(g)
    assert p.tobytes() == q.tobytes()
    with pytest.raises(OptionError, match="loss_scale"):
        optim.Adam(p).step(g, loss_scale=0)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_average_zeroing_and_copies(name, dtype):
    """Fused = one after the other, bit for bit, over several tiles."""
    p = [sample(n, dtype, seed=n) for n in (1, 300, 5000)]
    plain = [a.copy() for a in p]
    copies = [np.zeros(a.size, "f2") for a in p] if dtype == "float32" else None
    opt = make(name, p, ema_decay=0.75, zero_grads=True, copy_out=copies)
    other = make(name, plain)
    ema = [a.copy() for a in p]
    for k in range(3):
        grads = [sample(a.size, dtype, seed=k) for a in p]
        other.step([g.copy() for g in grads])
        opt.step(grads)
        assert not any(g.any() for g in grads)
        ema = [e + p[0].dtype.type(0.25) * (a - e) for e, a in zip(ema, plain)]
    for k in range(3):
        assert p[k].tobytes() == plain[k].tobytes()
        assert opt.ema[k].tobytes() == ema[k].tobytes()
        if copies:
            assert copies[k].tobytes() == p[k].astype("f2").tobytes()
    again = pickle.loads(pickle.dumps(opt))
    assert [e.tobytes() for e in again.ema] == [e.tobytes() for e in ema]


def test_copies_into_torch_bfloat16():
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    p, model = sample(100, "float32"), torch.zeros(100, dtype=torch.bfloat16)
    opt = optim.AdamW(p, copy_out=model)
    assert torch.equal(model, torch.from_numpy(p).bfloat16())
    opt.step(sample(100, "float32", seed=1))
    assert torch.equal(model, torch.from_numpy(p).bfloat16())


def test_refused_extras():
    p = np.zeros(8, "f4")
    half = np.zeros(8, "f2")
    for options, error, match in (
        ({"state_dtype": "int4"}, OptionError, "state_dtype"),
        ({"max_grad_norm": 0}, OptionError, "max_grad_norm"),
        ({"on_nonfinite": "stop"}, OptionError, "on_nonfinite"),
        ({"ema_decay": 1.5}, OptionError, "ema_decay"),
        ({"copy_out": np.zeros(8, "f4")}, DTypeError, "copy_out"),
        ({"copy_out": half[:4]}, ArrayError, "copy_out"),
        ({"copy_out": p.view("f2")[:8]}, ArrayError, "shares memory"),
        ({"schedule": 3}, DTypeError, "schedule"),
    ):
        with pytest.raises(error, match=match):
            optim.Adam(p, **options)
    with pytest.raises(OptionError, match="state_dtype"):
        optim.Adafactor(p, state_dtype="int8")
    frozen = np.ones(8, "f4")
    frozen.flags.writeable = False
    with pytest.raises(ArrayError, match="read-only"):
        optim.Adam(p, zero_grads=True).step(frozen)
    g = np.ones(8, "f4")
    with pytest.raises(ArrayError, match="another gradient"):
        optim.Adam([p, np.zeros(8, "f4")], zero_grads=True).step([g, g])
    assert g.all()
    assert not p.any()
    opt = optim.Adam([np.zeros(3, "f4"), p], ema_decay=0.5, copy_out=[None, half.view("f2")])
    for bad, what in (
        (opt.ema[1], "ema\\[1\\]"),
        (half.view("f2"), "copy_out\\[1\\]"),
        (p, "params\\[1\\]"),
    ):
        with pytest.raises(ArrayError, match=rf"grads\[1\]: shares memory with {what}"):
            opt.step([np.ones(3, "f4"), bad])
    with pytest.raises(ArrayError, match=r"ema\[1\]"):
        opt.add_param_group({"params": [opt.ema[1]]})
    assert not p.any()
    assert not opt.param_groups[0]["params"][0].any()


# -- schedules and files ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (schedules.Step(3, 0.5), "StepLR", {"step_size": 3, "gamma": 0.5}),
        (schedules.Exponential(0.9), "ExponentialLR", {"gamma": 0.9}),
        (schedules.Polynomial(20, 2.0), "PolynomialLR", {"total_iters": 20, "power": 2.0}),
        (schedules.Cosine(30), "CosineAnnealingLR", {"T_max": 30}),
        (schedules.Cosine(5, 0.1, True, 2), "CosineAnnealingWarmRestarts",
         {"T_0": 5, "T_mult": 2, "eta_min": 0.05}),
        (schedules.Cosine(5, 0.0, True), "CosineAnnealingWarmRestarts", {"T_0": 5}),
        (schedules.OneCycle(30), "OneCycleLR", {"max_lr": 0.5, "total_steps": 30}),
        (schedules.Warmup(4), "LinearLR", {"start_factor": 0.25, "total_iters": 3}),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_schedules_are_torchs(ours, theirs, options):
    torch = pytest.importorskip("torch")
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedule = getattr(torch.optim.lr_scheduler, theirs)(opt, **options)
    for t in range(30):
        np.testing.assert_allclose(0.5 * ours(t), opt.param_groups[0]["lr"], rtol=1e-9, atol=1e-12)
        if t < 29:
            opt.step()
            schedule.step()


def test_schedule_drives_the_step_and_resumes():
    p = np.zeros(1)
    opt = optim.SGD(p, lr=2.0, schedule=schedules.Warmup(2, schedules.Step(1, 0.5)))
    seen = []
    for _ in range(5):
        before = p[0]
        opt.step(np.ones(1))
        seen.append(before - p[0])
    assert seen == [1.0, 2.0, 2.0, 1.0, 0.5]
    assert opt.param_groups[0]["lr"] == 2.0
    again = pickle.loads(pickle.dumps(opt))
    opt.step(np.ones(1))
    again.step(np.ones(1))
    assert again.param_groups[0]["params"][0] == p


def test_plateau_is_torchs_and_resumes():
    torch = pytest.importorskip("torch")
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=2, cooldown=1)
    ours = schedules.ReduceOnPlateau(0.5, 2, cooldown=1)
    rng = np.random.default_rng(0)
    for k in range(60):
        loss = 1 / (k + 1) if k < 10 else 0.1 + 0.01 * rng.random()
        theirs.step(loss)
        ours.observe(loss)
        np.testing.assert_allclose(ours(k), opt.param_groups[0]["lr"])
    other = schedules.ReduceOnPlateau(0.5, 2, cooldown=1)
    other.load_state_dict(ours.state_dict())
    for loss in (1.0, np.nan, 1.0, 1.0):
        ours.observe(loss)
        other.observe(loss)
    assert ours.state_dict() == other.state_dict()
    with pytest.raises(FormatError):
        other.load_state_dict({"best": 1})


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
def test_safetensors(tmp_path, state_dtype):
    pytest.importorskip("safetensors")
    p = {"w": sample(600, "float32").reshape(20, 30), "b": sample(5, "float64")}
    shared = {"state_dtype": state_dtype, "ema_decay": 0.9, "seed": 1}
    opt = optim.NAdam(p, **shared)
    for k in range(3):
        opt.step(
            {"w": sample(600, "float32", seed=k).reshape(20, 30), "b": None if k else np.ones(5)}
        )
    path = tmp_path / "state.safetensors"
    optim.save(opt, path)
    other = optim.NAdam({k: v.copy() for k, v in p.items()}, lr=9.0, **shared)
    optim.load(other, path)
    assert pickle.dumps(other.state_dict()) == pickle.dumps(opt.state_dict())
    assert [f.name for f in tmp_path.iterdir()] == ["state.safetensors"]
    with pytest.raises(FormatError, match="NAdam"):
        optim.load(optim.Adam({k: v.copy() for k, v in p.items()}), path)
    data = path.read_bytes()
    for broken in (b"", data[:100], data[:-10], b"x" * 200):
        path.write_bytes(broken)
        with pytest.raises(FormatError, match=r"state\.safetensors"):
            optim.load(other, path)
    assert pickle.dumps(other.state_dict()) == pickle.dumps(opt.state_dict())


@pytest.mark.parametrize("bad", [[np.ones(4, "f4")], [np.ones(4, "f4"), np.ones(3, "f4")]])
def test_averages_that_do_not_fit_change_nothing(bad: list[np.ndarray]) -> None:
    opt = optim.Adam([np.zeros(4, "f4"), np.zeros(2, "f4")], ema_decay=0.5)
    opt.step([np.ones(4, "f4"), np.ones(2, "f4")])
    before = pickle.dumps(opt.state_dict())
    state = opt.state_dict()
    state["fastopt"]["ema"] = bad
    with pytest.raises(FormatError, match="average"):
        opt.load_state_dict(state)
    assert pickle.dumps(opt.state_dict()) == before


@pytest.mark.parametrize("value", [1e25, 1e-25, 3e18])
def test_norm_beyond_the_squares_of_its_dtype(value):
    """A finite gradient has a finite norm, also where its squares leave float32's range."""
    p = np.zeros(1000, "f4")
    opt = optim.SGD(p, lr=1.0, max_grad_norm=1.0, on_nonfinite="raise")
    opt.step(np.full(1000, value, "f4"))
    np.testing.assert_allclose(opt.grad_norm, value * 1000**0.5, rtol=1e-6)
    assert np.isfinite(p).all()


@pytest.mark.parametrize("name", ["AdamW", "Muon"])
def test_nothing_is_read_or_changed_while_a_step_runs(name):
    """Gradients as large as a step takes long: what comes meanwhile is refused, never torn."""
    p = np.ones((1024, 1024) if name == "AdamW" else (256, 256), "f4")
    opt, g = make(name, [p]), p * np.float32(0.1)
    opt.step([g])

    def step():
        for _ in range(10):
            with contextlib.suppress(ConcurrentUseError):
                opt.step([g])

    worker = threading.Thread(target=step)
    worker.start()
    while worker.is_alive():
        try:
            state = opt.state_dict()["state"][0]
        except ConcurrentUseError:
            continue
        m = state["exp_avg" if name == "AdamW" else "momentum_buffer"]
        assert (m == m[0]).all()
    worker.join()
    calls = (
        lambda: opt.step([g]),
        opt.state_dict,
        lambda: copy.deepcopy(opt),
        lambda: opt.add_param_group({"params": [np.ones((2, 2))]}),
        lambda: opt.load_state_dict(state_dict),
    )
    state_dict = opt.state_dict()
    opt._plan.hold()
    for call in calls:
        with pytest.raises(ConcurrentUseError):
            call()
    opt._plan.release()
    np.testing.assert_equal(opt.state_dict(), state_dict)


def test_odd_gradients_and_parameters_are_refused():
    p = np.ones(4)
    opt = optim.SGD([p], lr=1.0)
    with pytest.raises(DTypeError, match=r"grads\[0\]: masked"):
        opt.step([np.ma.masked_array(np.ones(4), [0, 1, 0, 0])])
    assert (p == 1).all()
    opt.step([np.ones(4).view(type("Mine", (np.ndarray,), {}))])
    assert (p == 0).all()
    with pytest.raises(DTypeError, match="zero_grads"):
        optim.SGD([p], lr=1.0, zero_grads="x")
    owned = np.ones(8)
    opt = optim.SGD([owned], lr=1.0)
    owned.resize(4, refcheck=False)
    with pytest.raises(ArrayError, match=r"params\[0\]"):
        opt.step([np.ones(4)])
    assert (owned == 1).all()


@pytest.mark.parametrize("where", [
    *[("state", 0, "step", v) for v in ("x", None, [1, 2], 1e300, 2**70, -1, 0, np.nan)],
    ("state", 0, [1]), ("state", []), ("state", 7, {}), ("param_groups", None),
    ("param_groups", 0, "params", [[0]]), ("param_groups", 0, "params", 3), ("fastopt", None),
    ("fastopt", "n_steps", "x"), ("fastopt", "n_steps", np.nan), ("fastopt", "n_skipped", -4),
    ("fastopt", "ema", 3), ("state", 0, "exp_avg", "x"),
], ids=str)  # fmt: skip
def test_malformed_state_dicts_change_nothing(where):
    p = np.ones(3)
    opt = optim.Adam([p], lr=0.1, ema_decay=0.5)
    opt.step([np.ones(3)])
    before = opt.state_dict()
    bad = copy.deepcopy(before)
    *path, key, value = where
    inner = bad
    for k in path:
        inner = inner[k]
    inner[key] = value
    with pytest.raises(FormatError, match="state"):
        opt.load_state_dict(bad)
    after = opt.state_dict()
    np.testing.assert_equal(after, before)


# -- averages and copies that change hands between steps ---------------------------------------


def test_an_average_put_into_the_list_is_the_one_that_moves():
    opt = optim.SGD(np.zeros(1000, "f4"), lr=0.1, ema_decay=0.5)
    first = opt.ema[0]
    opt.ema[0] = np.full(1000, 4, "f4")
    opt.step(np.ones(1000, "f4"))
    np.testing.assert_allclose(opt.ema[0], 0.5 * 4 + 0.5 * -0.1, rtol=1e-6)
    assert (first == 0).all()
    assert (opt.state_dict()["fastopt"]["ema"][0] == opt.ema[0]).all()


@pytest.mark.parametrize("change", [
    lambda o: o.ema.clear(), lambda o: o.ema.append(np.zeros(4, "f4")),
    lambda o: o.ema.__setitem__(0, np.zeros(3, "f4")), lambda o: setattr(o, "ema", None),
    lambda o: o.ema.__setitem__(0, np.zeros(4)), lambda o: o.ema.__setitem__(0, o.ema[1]),
    lambda o: o.ema.__setitem__(0, o.param_groups[0]["params"][0]),
    lambda o: o.ema[0].resize(2, refcheck=False), lambda o: o.ema[1].setflags(write=False),
])  # fmt: skip
def test_averages_that_do_not_fit_are_refused_before_a_step(change):
    p, q = np.zeros(4, "f4"), np.zeros(4, "f4")
    opt = optim.Adam([p, q], lr=0.1, ema_decay=0.5)
    change(opt)
    for call in (
        lambda: opt.step([np.ones(4, "f4")] * 2),
        lambda: opt.step([np.ones(4, "f4")] * 2),
    ):
        with pytest.raises((ArrayError, DTypeError), match="ema"):
            call()
    assert not p.any()
    assert not q.any()
    assert opt.n_steps == 0


def test_a_resized_copy_is_refused():
    p, half = np.zeros(4, "f4"), np.zeros(4, "f2")
    opt = optim.SGD([p], lr=0.1, copy_out=[half])
    half.resize(400, refcheck=False)
    with pytest.raises(ArrayError, match=r"copy_out\[0\]: was resized"):
        opt.step([np.ones(4, "f4")])
    assert not p.any()
    assert not half.any()


# -- names -------------------------------------------------------------------------------------


def test_state_goes_by_name_where_names_are_known(tmp_path):
    def made(names):
        return optim.Adam({n: np.ones(3) for n in names}, lr=0.1, ema_decay=0.5)

    a = made("wb")
    a.step({"w": np.ones(3), "b": 5 * np.ones(3)})
    b = made("bw")
    b.load_state_dict(a.state_dict())
    np.testing.assert_allclose(b.state_dict()["state"][0]["exp_avg"], 0.5)
    np.testing.assert_allclose(b.state_dict()["state"][1]["exp_avg"], 0.1)
    np.testing.assert_array_equal(b.ema[0], a.ema[1])
    pytest.importorskip("safetensors")
    optim.save(a, tmp_path / "a")
    optim.load(made("bw"), tmp_path / "a")
    for names in ("wx", "wbx"):
        with pytest.raises(FormatError, match="param"):
            made(names).load_state_dict(a.state_dict())
    plain = optim.Adam([np.ones(3), np.ones(3)], lr=0.1)  # no names: by place
    plain.load_state_dict(a.state_dict())
    np.testing.assert_allclose(plain.state_dict()["state"][0]["exp_avg"], 0.1)
    assert "param_names" not in plain.state_dict()["param_groups"][0]


def test_names_of_torchs_state_are_taken():
    torch = pytest.importorskip("torch")
    p = {n: torch.ones(3, requires_grad=True) for n in "wb"}
    theirs = torch.optim.Adam(p.items(), lr=0.1)
    p["w"].grad, p["b"].grad = torch.ones(3), 5 * torch.ones(3)
    theirs.step()
    ours = optim.Adam({n: np.ones(3, "f4") for n in "bw"}, lr=0.1)
    ours.load_state_dict(theirs.state_dict())
    np.testing.assert_allclose(ours.state_dict()["state"][0]["exp_avg"], 0.5, rtol=1e-6)
