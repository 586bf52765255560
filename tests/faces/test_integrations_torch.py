"""The torch optimizers: torch's numbers, schedulers, state, autograd's bookkeeping."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fastopt import optim  # noqa: E402
from fastopt.errors import (  # noqa: E402
    ArrayError,
    DTypeError,
    FormatError,
    OptionError,
    UnsupportedError,
)
from fastopt.integrations import torch as fast  # noqa: E402
from tests.optim.test_optim import CASES, ids  # noqa: E402


def tensors(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g, dtype=dtype).requires_grad_() for s in [(8, 5), (33,), ()]]


def steps(opt, params, n, seed=0, schedule=None):
    g = torch.Generator().manual_seed(seed)
    for _ in range(n):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype) + 0.1 * p.detach()
        opt.step()
        if schedule is not None:
            schedule.step()


@pytest.fixture(autouse=True)
def float64_default():
    torch.set_default_dtype(torch.float64)  # torch keeps NAdam's product in the default dtype
    yield
    torch.set_default_dtype(torch.float32)


def close(a, b):
    for x, y in zip(a, b):
        np.testing.assert_allclose(x.detach().numpy(), y.detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "options"), CASES, ids=ids[: len(CASES)])
def test_step_for_step_and_state_both_ways(name, options):
    """50 steps with a scheduler in torch = 20 here, 10 in torch, 20 here."""
    make = torch.optim.lr_scheduler.ExponentialLR
    whole = tensors()
    opt = getattr(torch.optim, name)(whole, foreach=False, **options)
    steps(opt, whole, 20, 1, make(opt, 0.95))
    steps(opt, whole, 10, 2)
    steps(opt, whole, 20, 3)

    mine = tensors()
    ours = getattr(fast, name)(mine, foreach=False, **options)
    assert isinstance(ours, torch.optim.Optimizer)
    steps(ours, mine, 20, 1, make(ours, 0.95))
    theirs = getattr(torch.optim, name)(mine, lr=9.0, foreach=False)
    theirs.load_state_dict(ours.state_dict())
    steps(theirs, mine, 10, 2)
    again = getattr(fast, name)(mine, lr=9.0)
    again.load_state_dict(theirs.state_dict())
    steps(again, mine, 20, 3)
    close(mine, whole)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Lion", "LAMB", "NAdam"])
@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_copies_go_on_bit_for_bit(name, way):
    params = tensors(torch.float32)
    opt = getattr(fast, name)(params, **({"lr": 0.1, "momentum": 0.9} if name == "SGD" else {}))
    steps(opt, params, 3)
    if way == "pickle":
        buffer = io.BytesIO()
        torch.save((params, opt), buffer)
        buffer.seek(0)
        others, other = torch.load(buffer, weights_only=False)
    else:
        others, other = copy.deepcopy((params, opt))
    steps(opt, params, 3, 1)
    steps(other, others, 3, 1)
    for a, b in zip(params, others):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()


def test_autograd_sees_the_write():
    """A graph that saved a weight refuses to run backward after a step."""
    w = torch.ones(3, requires_grad=True)
    opt = fast.SGD([w], lr=0.1)
    loss = (w * w).sum()
    w.grad = torch.ones(3)
    version = w._version
    opt.step()
    assert w._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_closure_groups_none_and_strided_gradients():
    a, b = torch.zeros(2, 3, requires_grad=True), torch.zeros(4, requires_grad=True)
    opt = fast.SGD([{"params": [a]}, {"params": [b], "lr": 2.0}], lr=1.0)
    a.grad = torch.ones(3, 2).T
    opt.step()
    assert (a == -1).all()
    assert (b == 0).all()
    opt.param_groups[1]["lr"] = 3.0

    def closure():
        opt.zero_grad()
        loss = b.sum()
        loss.backward()
        return loss

    assert opt.step(closure) == 0
    assert (b == -3).all()
    assert (a == -1).all()
    c = torch.zeros(1, requires_grad=True)
    opt.add_param_group({"params": [c], "lr": 5.0})
    c.grad = torch.ones(1)
    opt.step()
    assert c == -5


def test_int8_state_round_trip():
    params = [torch.randn(1000, dtype=torch.float32).requires_grad_()]
    opt = fast.AdamW(params, state_dtype="int8")
    steps(opt, params, 2)
    others = [p.detach().clone().requires_grad_() for p in params]
    other = fast.AdamW(others, state_dtype="int8")
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    steps(opt, params, 2, 5)
    steps(other, others, 2, 5)
    assert torch.equal(params[0], others[0])


def test_refusals():
    w = torch.zeros(3, requires_grad=True)
    for bad, error in (
        ([torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)], DTypeError),
        ([torch.zeros(3, requires_grad=True, device="meta")], DTypeError),
    ):
        with pytest.raises(error, match="params"):
            fast.Adam(bad)
    with pytest.raises(UnsupportedError, match="capturable"):
        fast.Adam([w], capturable=True)
    with pytest.raises(OptionError, match="lr"):
        fast.Adam([w], lr=-1)
    with pytest.raises(OptionError, match="AdamW"):
        fast.AdamW([w], 1e-3, (0.9, 0.99), 1e-8, 0.1, False, 7, 8)
    opt = fast.Adam([w])
    w.grad = torch.ones(3).to_sparse()
    with pytest.raises(DTypeError, match="grad"):
        opt.step()
    assert (w == 0).all()


def test_small_transformer_trains_to_the_same_loss():
    torch.set_default_dtype(torch.float32)
    ends = []
    for factory in (torch.optim.AdamW, fast.AdamW):
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        model = torch.nn.Sequential(torch.nn.Embedding(11, 16), layer, torch.nn.Linear(16, 11))
        opt = factory(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 40)
        tokens = torch.randint(0, 11, (16, 12))
        for _ in range(40):
            opt.zero_grad()
            out = model(tokens)
            loss = torch.nn.functional.cross_entropy(
                out.flatten(0, 1), (tokens.flatten() * 3) % 11
            )
            loss.backward()
            opt.step()
            schedule.step()
        ends.append(loss.item())
    assert ends[0] < 0.5
    assert abs(ends[1] - ends[0]) < 1e-3 * ends[0]


def test_averages_and_counters_travel():
    params = tensors(torch.float32)
    opt = fast.Adam(params, ema_decay=0.5, on_nonfinite="skip")
    steps(opt, params, 3)
    params[0].grad = torch.full_like(params[0], np.nan)
    opt.step()
    assert opt._fast.n_skipped == 1
    others = [p.detach().clone().requires_grad_() for p in params]
    other = fast.Adam(others, ema_decay=0.5, on_nonfinite="skip")
    buffer = io.BytesIO()
    torch.save(opt.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer))
    assert (other._fast.n_steps, other._fast.n_skipped) == (3, 1)
    steps(opt, params, 2, 1)
    steps(other, others, 2, 1)
    for a, b in zip([*opt.ema, *params], [*other.ema, *others]):
        assert torch.equal(a, b)


def test_tensors_that_move_are_followed():
    """``p.data = ...`` gives a parameter other memory; the state goes on there."""
    params = tensors()
    same = [p.detach().clone().requires_grad_() for p in params]
    opt, other = fast.AdamW(params, ema_decay=0.9), fast.AdamW(same, ema_decay=0.9)
    steps(opt, params, 3)
    steps(other, same, 3)
    params[0].data = params[0].data.clone()
    old = params[1].data
    params[1].data = old.clone()
    steps(opt, params, 3, 1)
    steps(other, same, 3, 1)
    for a, b in zip([*params, *opt.ema], [*same, *other.ema]):
        assert torch.equal(a, b)
    assert not torch.equal(old, params[1])


def test_gradients_of_other_kinds_are_refused_or_taken():
    """The memory is read through DLPack's table: shape, dtype and layout are checked there."""
    w = np.ones((2, 3), "f4")
    opt = optim.SGD(w, lr=1.0)
    for bad, error in (
        (torch.ones(3, 2, dtype=torch.float32), ArrayError),
        (torch.ones(6, dtype=torch.float32), ArrayError),
        (torch.ones(2, 3, dtype=torch.float64), DTypeError),
        (torch.ones(2, 3, dtype=torch.int32), DTypeError),
        (torch.ones(2, 3, dtype=torch.float32, device="meta"), DTypeError),
        (torch.ones(2, 3, dtype=torch.float32).to_sparse(), DTypeError),
        (torch.from_numpy(w), ArrayError),
    ):
        with pytest.raises(error, match=r"grads\[0\]"):
            opt.step([bad])
    assert (w == 1).all()
    for good in (
        torch.ones(2, 3, dtype=torch.float32, requires_grad=True),
        torch.ones(2, 3, dtype=torch.float16),
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.ones(3, 2, dtype=torch.float32).T,
        torch.ones(2, 6, dtype=torch.float32)[:, ::2],
        torch.ones(1, 3, dtype=torch.float32).expand(2, 3),
    ):
        before = w.copy()
        opt.step([good])
        assert (w == before - 1).all()
    strided = torch.ones(3, 2, dtype=torch.float32).T
    zeroing = optim.SGD(w, lr=1.0, zero_grads=True)
    with pytest.raises(ArrayError, match=r"grads\[0\]"):
        zeroing.step([strided])
    p = torch.zeros(2, 3, dtype=torch.float32, requires_grad=True)
    p.grad = strided
    fast.SGD([p], lr=1.0, zero_grads=True).step()
    assert not p.grad.any()
    assert (p == -1).all()


def test_muon_is_torchs():
    """torch iterates in bfloat16, so both agree to a few per cent of the way."""
    g = torch.Generator().manual_seed(0)
    start = torch.randn((12, 5), generator=g, dtype=torch.float32)
    ends = []
    for factory in (torch.optim.Muon, fast.Muon):
        p = start.clone().requires_grad_()
        opt = factory([p], lr=0.02)
        schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
        steps(opt, [p], 10, schedule=schedule)
        ends.append(p.detach())
    assert (ends[0] - ends[1]).abs().max() < 0.05 * (ends[0] - start).abs().max()


def test_hooks_and_profiles_see_the_step():
    w = torch.zeros(3, requires_grad=True)
    opt, seen = fast.SGD([w], lr=1.0), []
    w.grad = torch.ones(3)
    before = opt.register_step_pre_hook(lambda *_: seen.append("before"))
    after = opt.register_step_post_hook(lambda *_: seen.append("after"))
    opt.step()
    before.remove()
    after.remove()
    opt.step()
    from torch.optim.optimizer import register_optimizer_step_post_hook

    every = register_optimizer_step_post_hook(lambda *_: seen.append("all"))
    opt.step()
    every.remove()
    assert seen == ["before", "after", "all"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.step()
    assert any("Optimizer.step#SGD.step" in e.key for e in profile.key_averages())
    assert (w == -4).all()


def test_state_tells_the_steps_taken():
    params = tensors()
    opt = fast.NAdam(params)
    theirs = torch.optim.NAdam([p.detach().clone().requires_grad_() for p in params])
    steps(opt, params, 5)
    steps(theirs, theirs.param_groups[0]["params"], 5)
    for p, q in zip(params, theirs.param_groups[0]["params"]):
        assert opt.state[p]["step"] == theirs.state[q]["step"] == 5
        assert opt.state[p]["mu_product"] == theirs.state[q]["mu_product"]


def test_a_late_gradient_shows_its_state():
    a, b = tensors()[:2]
    opt = fast.Adam([a, b])
    a.grad = torch.ones_like(a)
    opt.step()
    a.grad, b.grad = None, torch.ones_like(b)
    opt.step()
    assert opt.state[b]["step"] == 1
    opt.step()
    assert (opt.state[a]["step"], opt.state[b]["step"]) == (1, 2)


@pytest.mark.parametrize("way", ["replace", "append", "group", "remove"])
def test_groups_that_change_are_followed(way):
    """Tensors put into a group, as torch's own optimizers take them; the rest keep their state."""
    ends = []
    for factory in (torch.optim.Adam, fast.Adam):
        params = tensors()
        opt = factory(params, lr=0.1)
        steps(opt, params, 3)
        new = torch.ones(3, requires_grad=True)
        if way == "replace":
            opt.param_groups[0]["params"][1] = new
            now = [params[0], new, params[2]]
        elif way == "append":
            opt.param_groups[0]["params"].append(new)
            now = [*params, new]
        elif way == "group":
            opt.add_param_group({"params": [new], "lr": 0.5})
            now = [*params, new]
        else:
            del opt.param_groups[0]["params"][0]
            now = params[1:]
        steps(opt, now, 3, 1)
        ends.append([*params, new])
    close(*ends)


@pytest.mark.parametrize("way", ["clear", "new", "one"])
def test_state_that_is_taken_away_begins_anew(way):
    from collections import defaultdict

    ends = []
    for factory in (torch.optim.AdamW, fast.AdamW):
        params = tensors()
        opt = factory(params, lr=0.1)
        steps(opt, params, 3)
        if way == "clear":
            opt.state.clear()
        elif way == "new":
            opt.state = defaultdict(dict)
        else:
            del opt.state[params[1]]
        steps(opt, params, 3, 1)
        ends.append(params)
    close(*ends)


@pytest.mark.parametrize("state_dtype", ["int8", "bfloat16"])
def test_codes_are_not_numbers_to_torch(state_dtype):
    p = torch.ones(300, dtype=torch.float32, requires_grad=True)
    opt = fast.AdamW([p], state_dtype=state_dtype)
    steps(opt, [p], 2)
    theirs = torch.optim.AdamW([p])
    theirs.load_state_dict(opt.state_dict())
    with pytest.raises(KeyError):
        theirs.step()
    other = fast.AdamW([p])
    other.load_state_dict(opt.state_dict())
    assert other.state[p]["exp_avg"].dtype == torch.float32


def test_versions_of_zeroed_gradients_and_odd_gradients():
    p = torch.ones(3, requires_grad=True)
    opt = fast.SGD([p], lr=1.0, zero_grads=True)
    p.grad = torch.ones(3)
    version = p.grad._version
    opt.step()
    assert p.grad._version > version
    w = np.ones(3)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.ones(3))
    with pytest.raises(DTypeError, match=r"grads\[0\]"):
        optim.SGD(w, lr=1.0).step([fake])
    assert (w == 1).all()


@pytest.mark.parametrize("name", ["AdamW", "SGD", "LAMB"])
def test_channels_last_as_torch(name):
    """Weights whose axes lie in another order: gradients in any order, state as torch shows it."""
    torch.set_default_dtype(torch.float32)
    options = {"lr": 0.1, **({"momentum": 0.9} if name == "SGD" else {})}
    start = torch.randn(4, 3, 5, 5)
    ours = start.clone().to(memory_format=torch.channels_last).requires_grad_()
    plain = start.clone().requires_grad_()
    opt = getattr(fast, name)([ours], zero_grads=True, ema_decay=0.5, **options)
    other = getattr(fast, name)([plain], ema_decay=0.5, **options)
    for k in range(6):
        g = torch.randn(4, 3, 5, 5)
        plain.grad = g.clone()
        ours.grad = g.to(memory_format=torch.channels_last) if k % 2 else g.clone()
        opt.step()
        other.step()
        assert not ours.grad.any()
        if k == 2:
            buffer = io.BytesIO()
            torch.save((ours, opt), buffer)
            buffer.seek(0)
            ours, opt = torch.load(buffer, weights_only=False)
        if k == 3:
            again = getattr(fast, name)([ours], zero_grads=True, ema_decay=0.5, **options)
            again.load_state_dict(opt.state_dict())
            again.load_state_dict(other.state_dict())
            opt = again
    assert ours.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-6 if name == "LAMB" else 0  # its norms add up in the order of the memory
    np.testing.assert_allclose(ours.detach(), plain.detach(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(opt.ema[0], other.ema[0], rtol=tolerance, atol=tolerance)
    for key, value in other.state[plain].items():
        assert opt.state[ours][key].shape == value.shape
    with pytest.raises(ArrayError, match="C-contiguous"):
        fast.AdamW([ours], state_dtype="int8")


def test_copies_follow_new_tensors():
    p = torch.ones(3, dtype=torch.float32, requires_grad=True)
    half = torch.zeros(3, dtype=torch.float16)
    opt = fast.SGD([p], lr=1.0, copy_out=[half])
    q = torch.ones(2, dtype=torch.float32, requires_grad=True)
    opt.add_param_group({"params": [q]})
    for t in (p, q):
        t.grad = torch.ones_like(t)
    opt.step()
    assert (half == 0).all()
    assert (q == 0).all()


@pytest.mark.parametrize("bad", [None, {}, [], {"state": {}, "param_groups": None}])
def test_state_dicts_of_another_kind_are_refused(bad):
    with pytest.raises(FormatError, match="state_dict"):
        fast.Adam(tensors()).load_state_dict(bad)
