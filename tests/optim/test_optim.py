"""The optimisers as users meet them: torch's numbers, groups, state, refusals, contracts."""

from __future__ import annotations

import copy
import doctest
import importlib
import pickle

import numpy as np
import pytest

from fastopt import optim
from fastopt.errors import ArrayError, DTypeError, FormatError, OptionError
from tests.conftest import sample

# (class name, options): every option of each family, alone and together
CASES = [
    ("SGD", {"lr": 0.02}),
    ("SGD", {"lr": 0.02, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.02, "momentum": 0.9}),
    ("SGD", {"lr": 0.02, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.2, "amsgrad": True, "maximize": True}),
    ("NAdam", {}),
    ("NAdam", {"weight_decay": 0.1, "momentum_decay": 0.02, "maximize": True}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.01}),
    ("RAdam", {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1, "maximize": True}),
    ("RAdam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adamax", {}),
    ("Adamax", {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 0.001, "momentum": 0.9, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.001, "centered": True, "eps": 1e-3, "maximize": True}),
    ("RMSprop", {"lr": 0.001, "centered": True, "eps": 1e-3, "momentum": 0.5}),
    ("Adagrad", {}),
    ("Adagrad", {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5}),
    ("Adagrad", {"lr": 0.1, "maximize": True}),
    ("Adadelta", {}),
    ("Adadelta", {"lr": 0.5, "rho": 0.8, "weight_decay": 0.1, "maximize": True}),
    ("Adafactor", {}),
    ("Adafactor", {"lr": 0.02, "weight_decay": 0.1, "maximize": True}),
    ("Adafactor", {"beta2_decay": -0.5, "d": 2.0, "eps": (1e-2, 0.1)}),
]
NOT_IN_TORCH = [
    ("Lion", {"lr": 0.01, "weight_decay": 0.1}),
    ("Lion", {"lr": 0.01, "betas": (0.8, 0.9), "maximize": True}),
    ("LAMB", {"lr": 0.01, "weight_decay": 0.1}),
    ("LAMB", {"lr": 0.01, "maximize": True}),
]
ALL = CASES + NOT_IN_TORCH
NAMES = sorted({name for name, _ in ALL})
ids = [f"{n} {','.join(f'{k}={v}' for k, v in o.items())}" for n, o in ALL]


@pytest.fixture
def torch64():
    """torch with float64 as its default: NAdam keeps its product of momenta in the default."""
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(before)


def make(name: str, params: object, options: dict) -> optim.Optimizer:
    return getattr(optim, name)(params, **options)


def run(opt: optim.Optimizer, params: list[np.ndarray], steps: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        opt.step([rng.standard_normal(p.shape).astype(p.dtype) + 0.1 * p for p in params])


@pytest.mark.parametrize(("name", "options"), CASES, ids=ids[: len(CASES)])
def test_torch_step_for_step(name, options, torch64):
    """200 steps: float64 to rtol 1e-12, float32 to 2e-6 and no worse than torch's own float32."""
    torch = torch64
    shapes = [(40, 50), (50,), (), (2, 3, 4, 5), (70, 2100) if name == "Adafactor" else (3,)]
    start = [sample(int(np.prod(s)), "float64", seed=k).reshape(s) for k, s in enumerate(shapes)]
    result = {}
    for dtype in ("float64", "float32"):
        ours = [np.array(a, dtype) for a in start]
        theirs = [torch.tensor(np.array(a, dtype), requires_grad=True) for a in start]
        a = make(name, ours, options)
        b = getattr(torch.optim, name)(theirs, foreach=False, **options)
        rng = np.random.default_rng(5)
        for _ in range(200):
            grads = [np.array(rng.standard_normal(s), dtype) for s in shapes]
            for t, g in zip(theirs, grads):
                t.grad = torch.tensor(g)
            a.step(grads)
            b.step()
        result[dtype] = ours, [t.detach().numpy() for t in theirs]
    for x, y in zip(*result["float64"]):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)
    error = [0.0, 0.0]
    for x, y, exact in zip(*result["float32"], result["float64"][0]):
        close = 4e-6 if name == "NAdam" else 2e-6  # torch's NAdam rounds the weights twice a step
        assert (np.abs(x - y) <= close * np.maximum(1, np.abs(y))).all()
        error[0] += np.abs(x - exact).sum()
        error[1] += np.abs(y - exact).sum()
    assert error[0] <= 1.1 * error[1]


@pytest.mark.parametrize(("name", "options"), CASES, ids=ids[: len(CASES)])
def test_state_goes_to_torch_and_back(name, options, torch64):
    """30 steps in torch, 30 here, 30 in torch = 90 in torch."""
    torch = torch64

    def tensors(arrays):
        return [torch.tensor(a, requires_grad=True) for a in arrays]

    def torch_steps(opt, params, rng, steps):
        for _ in range(steps):
            for p in params:
                p.grad = torch.tensor(rng.standard_normal(tuple(p.shape)))
            opt.step()

    start = [sample(20, "float64"), sample(6, "float64").reshape(2, 3)]
    factory = getattr(torch.optim, name)
    whole, rng = tensors(start), np.random.default_rng(1)
    torch_steps(factory(whole, foreach=False, **options), whole, rng, 90)

    rng = np.random.default_rng(1)
    first = tensors(start)
    opt = factory(first, foreach=False, **options)
    torch_steps(opt, first, rng, 30)
    arrays = [p.detach().numpy().copy() for p in first]
    ours = make(name, arrays, {"lr": 9.0})  # options come with the state
    ours.load_state_dict(opt.state_dict())
    for _ in range(30):
        ours.step([rng.standard_normal(p.shape) for p in arrays])
    last = tensors(arrays)
    opt = factory(last, foreach=False, lr=9.0)
    state = ours.state_dict()
    for entry in state["state"].values():
        for key, value in entry.items():
            entry[key] = torch.tensor(value)
    opt.load_state_dict(state)
    torch_steps(opt, last, rng, 30)
    for a, b in zip(last, whole):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "options"), NOT_IN_TORCH, ids=ids[len(CASES) :])
def test_optax_step_for_step(name, options):
    """What torch lacks, against optax in float64: 100 steps to rtol 1e-12."""
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    with jax.enable_x64(True):
        shapes = [(7, 13), (50,)]
        start = [
            sample(int(np.prod(s)), "float64", seed=k).reshape(s) for k, s in enumerate(shapes)
        ]
        ours = [a.copy() for a in start]
        opt = make(name, ours, options)
        theirs = {k: v for k, v in options.items() if k not in ("lr", "betas", "maximize")}
        b1, b2 = options.get("betas", opt.param_groups[0]["betas"])
        rule = getattr(optax, name.lower())(
            options["lr"], b1=b1, b2=b2, **{"weight_decay": 0.0} | theirs
        )
        params = [jax.numpy.asarray(a) for a in start]
        state, rng = rule.init(params), np.random.default_rng(5)
        sign = -1.0 if options.get("maximize") else 1.0
        for _ in range(100):
            grads = [rng.standard_normal(s) for s in shapes]
            opt.step(grads)
            change, state = rule.update(
                [sign * jax.numpy.asarray(g) for g in grads], state, params
            )
            params = optax.apply_updates(params, change)
        for a, b in zip(ours, params):
            np.testing.assert_allclose(a, np.asarray(b), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "options"), ALL, ids=ids)
@pytest.mark.parametrize("way", ["pickle", "deepcopy", "state_dict"])
def test_resumes_bit_for_bit(name, options, way):
    params = [sample(100, "float32"), sample(30, "float64").reshape(5, 6)]
    opt = make(name, params, options)
    opt.step([None, params[1].copy()])  # step counts differ between the parameters
    run(opt, params, 5)
    if way == "pickle":
        other = pickle.loads(pickle.dumps(opt))
    elif way == "deepcopy":
        other = copy.deepcopy(opt)
    else:
        other = make(name, [p.copy() for p in params], options)
        other.load_state_dict(opt.state_dict())
    copies = [p for g in other.param_groups for p in g["params"]]
    for p, q in zip(params, copies):
        assert not np.shares_memory(p, q)
    run(opt, params, 5, seed=1)
    run(other, copies, 5, seed=1)
    for p, q in zip(params, copies):
        assert p.tobytes() == q.tobytes()
    assert pickle.dumps(opt.state_dict()) == pickle.dumps(other.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_ways_to_pass_parameters(name):
    """An array, a list, a dict, pairs and groups all give the same bits."""
    results = []
    for form in ("list", "tuple", "dict", "pairs", "groups", "groups of dicts"):
        w, b = sample(40, "float32").reshape(8, 5), sample(5, "float32", seed=1)
        gw, gb = sample(40, "float32", seed=2).reshape(8, 5), sample(5, "float32", seed=3)
        params = {
            "list": [w, b],
            "tuple": (w, b),
            "dict": {"w": w, "b": b},
            "pairs": [("w", w), ("b", b)],
            "groups": [{"params": [w]}, {"params": b}],
            "groups of dicts": [{"params": {"w": w}}, {"params": {"b": b}}],
        }[form]
        opt = make(name, params, {"lr": 0.1})
        named = form in ("dict", "pairs", "groups of dicts")
        for grads in ([gw, gb], (gw, gb), {"b": gb, "w": gw} if named else [gw, gb]):
            opt.step(grads)
        opt.step({"b": gb} if named else [None, gb])
        results.append(w.tobytes() + b.tobytes())
    assert len(set(results)) == 1
    single = sample(40, "float32").reshape(8, 5)
    listed = single.copy()
    make(name, single, {"lr": 0.1}).step(gw)
    make(name, [listed], {"lr": 0.1}).step([gw])
    assert single.tobytes() == listed.tobytes()


def test_torch_tensors_as_parameters_and_gradients():
    torch = pytest.importorskip("torch")
    w = torch.ones(10)
    opt = optim.SGD([w], lr=0.5)
    opt.step([torch.ones(10)])
    assert (w == 0.5).all()
    g = torch.ones(10, requires_grad=True)
    opt.step([g])
    assert (w == 0).all()


def test_groups_and_changes_between_steps():
    a, b, c = np.zeros(3), np.zeros(3), np.zeros(3)
    opt = optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.25)
    one = np.ones(3)
    opt.step([one, one])
    assert a[0] == -0.25
    assert b[0] == -0.5
    opt.param_groups[0]["lr"] = 2.0
    opt.param_groups[1].update(maximize=True)
    opt.step([one, one])
    assert a[0] == -2.25
    assert b[0] == 0.0
    opt.add_param_group({"params": [c], "lr": 1.0})
    opt.step([None, None, one])
    assert (a[0], b[0], c[0]) == (-2.25, 0.0, -1.0)
    opt.param_groups[0]["momentum"] = 0.5  # state appears
    opt.step([one, None, None])
    opt.step([one, None, None])
    assert a[0] == -2.25 - 2 - 3


def test_adding_a_group_keeps_the_state():
    params = [sample(50, "float32")]
    alone = [params[0].copy()]
    opt, other = optim.Adam(params), optim.Adam(alone)
    run(opt, params, 3)
    run(other, alone, 3)
    opt.add_param_group({"params": [np.zeros(4, "f4")]})
    opt.step([np.ones(50, "f4"), None])
    other.step([np.ones(50, "f4")])
    assert params[0].tobytes() == alone[0].tobytes()
    assert opt.state_dict()["state"][0]["step"] == 4
    before = opt.state_dict()
    with pytest.raises(ArrayError, match="shares memory"):
        opt.add_param_group({"params": [params[0]]})
    with pytest.raises(OptionError, match="lr"):
        opt.add_param_group({"params": [np.zeros(4)], "lr": -1})
    assert pickle.dumps(opt.state_dict()) == pickle.dumps(before)
    opt.step([np.ones(50, "f4"), None])


BAD_OPTIONS = [
    ("SGD", {"lr": -1.0}, OptionError, "lr"),
    ("SGD", {"lr": float("nan")}, OptionError, "lr"),
    ("SGD", {"lr": "big"}, DTypeError, "lr"),
    ("SGD", {"momentum": -0.1}, OptionError, "momentum"),
    ("SGD", {"nesterov": True}, OptionError, "nesterov"),
    ("SGD", {"nesterov": 1}, DTypeError, "nesterov"),
    ("Adam", {"betas": (0.9, 1.0)}, OptionError, r"betas\[1\]"),
    ("Adam", {"betas": 0.9}, DTypeError, "betas"),
    ("Adam", {"eps": -1e-8}, OptionError, "eps"),
    ("AdamW", {"weight_decay": -1}, OptionError, "weight_decay"),
    ("AdamW", {"threads": 0}, OptionError, "threads"),
    ("Adafactor", {"beta2_decay": 0.1}, OptionError, "beta2_decay"),
    ("Adafactor", {"eps": 1e-3}, DTypeError, "eps"),
    ("Adafactor", {"eps": (None, -1.0)}, OptionError, r"eps\[1\]"),
    ("Adafactor", {"d": 0.5}, OptionError, "d: "),
]


@pytest.mark.parametrize(("name", "options", "error", "match"), BAD_OPTIONS)
def test_refused_options(name, options, error, match):
    with pytest.raises(error, match=match):
        make(name, [np.zeros(3)], options)
    if "threads" not in options:
        opt = make(name, [np.zeros(3)], {"lr": 0.1})
        before = dict(opt.param_groups[0])
        key, value = next(iter(options.items()))
        if options != {"nesterov": True}:  # a combination is seen at the next step
            with pytest.raises(error, match=match):
                opt.param_groups[0][key] = value
            assert dict(opt.param_groups[0]) == before


def test_refused_parameters():
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    block = np.zeros(10)
    for bad, error, match in (
        ([], ArrayError, "at least one"),
        ([np.zeros(3, "i4")], DTypeError, r"params\[0\]"),
        ([frozen], ArrayError, "read-only"),
        ([np.zeros((3, 4)).T], ArrayError, "C-contiguous"),
        ([[1.0, 2.0]], DTypeError, r"params\[0\]"),
        ([block[:6], block[5:]], ArrayError, r"params\[0\]: shares memory with params\[1\]"),
        ([{"lr": 0.1}], DTypeError, '"params"'),
        ([{"params": [np.zeros(3)], "learning_rate": 1}], OptionError, "learning_rate"),
        (7, DTypeError, "params"),
    ):
        with pytest.raises(error, match=match):
            optim.Adam(bad)


def test_refused_gradients_and_group_changes():
    w = np.ones(3)
    opt = optim.SGD({"w": w}, lr=1.0)
    for bad, error, match in (
        ({"v": np.ones(3)}, ArrayError, "no parameter is named 'v'"),
        ([np.ones(3), np.ones(3)], ArrayError, "expected 1 gradient"),
        ([np.ones(4)], ArrayError, "shape"),
        ([np.ones(3, "f4")], DTypeError, "dtype"),
        ([[1.0, 2.0, 3.0]], None, None),
        (None, ArrayError, "grads"),
        ([w], ArrayError, "shares memory"),
    ):
        if error is not None:
            with pytest.raises(error, match=match):
                opt.step(bad)
            assert (w == 1).all()
    group = opt.param_groups[0]
    for refused in (
        lambda: group.__setitem__("params", []),
        lambda: group.pop("lr"),
        lambda: group.__delitem__("lr"),
        group.clear,
        group.popitem,
        lambda: group.update(beta=1),
    ):
        with pytest.raises(OptionError):
            refused()
    assert group["lr"] == 1.0


def test_refused_state():
    p = [sample(6, "float32").reshape(2, 3), sample(4, "float32")]
    opt = optim.Adam(p)
    run(opt, p, 2)
    good = opt.state_dict()

    def without(key):
        return {k: v for k, v in good.items() if k != key}

    def with_entry(**changes):
        bad = copy.deepcopy(good)
        bad["state"][0].update(changes)
        return bad

    fewer = copy.deepcopy(good)
    fewer["param_groups"][0]["params"] = [0]
    lacking = copy.deepcopy(good)
    del lacking["state"][1]["exp_avg"]
    for bad, match in (
        (None, "state_dict"),
        (without("state"), "state"),
        (fewer, "expected groups of"),
        (lacking, "lacks 'exp_avg'"),
        (with_entry(exp_avg=np.zeros(6)), "exp_avg"),
        (with_entry(exp_avg=np.zeros((3, 2))), "exp_avg"),
        (with_entry(step=1.5), "step"),
        (with_entry(step=-1), "step"),
        ({**good, "state": {7: {}}}, "unknown parameters"),
    ):
        with pytest.raises(FormatError, match=match):
            opt.load_state_dict(bad)
    assert pickle.dumps(opt.state_dict()) == pickle.dumps(good)


def test_threads_do_not_change_bits():
    results = set()
    for threads in (None, 1, 2, 3):
        params = [sample(70_000, "float32"), sample(11, "float32")]
        opt = optim.AdamW(params, threads=threads)
        run(opt, params, 3)
        results.add(params[0].tobytes() + params[1].tobytes())
    assert len(results) == 1


def test_doctests():
    for name in (
        "adafactor",
        "adam",
        "adaptive",
        "descent",
        "lion",
        "moments",
        "muon",
        "schedules",
        "sgd",
    ):
        module = importlib.import_module(f"fastopt.optim.{name}")
        found = doctest.testmod(module)
        assert found.attempted
        assert not found.failed
