"""Spaces, engines and the driver: contracts, budgets, failures, and what they find."""

from __future__ import annotations

import copy
import math
import pickle
import time

import numpy as np
import pytest

from fastopt.errors import (
    ArrayError,
    ConcurrentUseError,
    DTypeError,
    FastoptError,
    FormatError,
    OptionError,
    TrialError,
)
from fastopt.search import (
    CMA,
    DE,
    GP,
    TPE,
    Bool,
    Choice,
    Float,
    Genetic,
    Greedy,
    Int,
    Permutation,
    Random,
    Space,
    Vector,
    crowding,
    fronts,
    hypervolume,
    minimize,
)

MIXED = Space(
    lr=Float(1e-5, 1, log=True),
    width=Int(8, 512, log=True),
    act=Choice("relu", "tanh", None),
    drop=Float(0, 0.5, step=0.1),
    depth=Int(1, 6),
    norm=Bool(),
    order=Permutation(4),
    mix=Vector(3, -1, 1),
)
PLANE = Space(w=Float(-2, 2), b=Float(-2, 2))
ENGINES = {
    "random": lambda space, **k: Random(space, **k),
    "greedy": lambda space, **k: Greedy(space, **k),
    "cma": lambda space, **k: CMA(space, **k),
    "de": lambda space, **k: DE(space, population=12, budget=400, **k),
    "gp": lambda space, **k: GP(space, **k),
    "tpe": lambda space, **k: TPE(space, **k),
    "genetic": lambda space, **k: Genetic(space, population=12, unique=True, **k),
}


def cost(trial):
    return (
        abs(math.log10(trial["lr"]) + 2)
        + abs(math.log2(trial["width"] / 90)) / 2
        + (trial["act"] is not None)
        + abs(trial["depth"] - 3) / 4
        + trial["drop"] * (2 - trial["norm"])
        + abs(trial["order"] - np.arange(4)).sum() / 8
        + abs(trial["mix"] - 0.3).sum()
    )


def line():
    """The worked example: y = x^2 on 100 points, its least-squares line and loss."""
    x = np.random.default_rng(0).random((100, 1))
    y = x**2
    design = np.hstack([x, np.ones_like(x)])
    best = np.linalg.lstsq(design, y, rcond=None)[0]

    def loss(v):
        return ((v[:, :1] * x.T + v[:, 1:] - y.T) ** 2).mean(axis=1)

    return loss, float(((design @ best - y) ** 2).mean())


@pytest.mark.parametrize(
    ("method", "budget"),
    [("random", 100_000), ("greedy", 2000), ("genetic", 10_000), ("auto", 10_000)],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reaches_the_least_squares_line(method, budget, seed):
    loss, least = line()
    res = minimize(loss, PLANE, method=method, max_evals=budget, vectorized=True, seed=seed)
    assert least * (1 - 1e-12) <= res.fun <= 1.01 * least
    assert res.n_evals == budget == len(res.history)
    assert res.fun == np.nanmin(res.history) == loss(np.array([[res.x["w"], res.x["b"]]]))[0]


@pytest.mark.parametrize("method", ENGINES)
def test_trials_are_inside_a_mixed_space(method):
    algo = ENGINES[method](MIXED, seed=3)
    for _ in range(12):
        columns = algo.ask(9)
        trials = MIXED.dicts_of(MIXED.parse(columns))
        for t in trials:
            assert list(t) == list(MIXED.names)
            assert type(t["lr"]) is float
            assert 1e-5 <= t["lr"] <= 1
            assert type(t["width"]) is int
            assert 8 <= t["width"] <= 512
            assert t["act"] in ("relu", "tanh", None)
            assert min(abs(t["drop"] - 0.1 * i) for i in range(6)) < 1e-12
            assert type(t["norm"]) is bool
            assert sorted(t["order"]) == [0, 1, 2, 3]
            assert t["order"].dtype == np.int64
            assert t["mix"].shape == (3,)
            assert abs(t["mix"]).max() <= 1
        algo.tell(columns, [cost(t) for t in trials])
    assert algo.n_told == 108
    assert algo.fun == cost(algo.x)


def test_mixed_space_is_searched_well():
    median = {
        m: np.median(
            [minimize(cost, MIXED, method=m, max_evals=200, seed=s).fun for s in range(7)]
        )
        for m in ("random", "greedy", "genetic")
    }
    assert median["greedy"] < 0.6 * median["random"]
    assert median["genetic"] < 0.75 * median["random"]


def test_columns_of_a_mixed_space():
    seen = []

    def f(columns):
        seen.append({k: (v.shape, v.dtype.kind) for k, v in columns.items()})
        return columns["lr"] + columns["mix"].sum(axis=1)

    res = minimize(f, MIXED, method="random", max_evals=5, vectorized=True)
    assert res.n_evals == 5
    assert seen[0] == {
        "lr": ((5,), "f"),
        "width": ((5,), "i"),
        "act": ((5,), "O"),
        "drop": ((5,), "f"),
        "depth": ((5,), "i"),
        "norm": ((5,), "b"),
        "order": ((5, 4), "i"),
        "mix": ((5, 3), "f"),
    }


def test_numeric_space_gives_a_matrix():
    space = Space(a=Float(0, 1), n=Int(2, 4), v=Vector(3, 5, 6))
    x = Random(space).ask(50)
    assert x.shape == (50, 5)
    assert x.dtype == np.float64
    assert set(x[:, 1]) == {2.0, 3.0, 4.0}
    assert (x[:, 2:] >= 5).all()


def test_random_draws_are_uniform_on_their_scale():
    x = Random(MIXED, seed=1).ask(40_000)
    log = np.log(x["lr"])
    for sample, low, high in ((log, math.log(1e-5), 0.0), (x["mix"][:, 1], -1, 1)):
        u = np.sort((sample - low) / (high - low))
        assert abs(u - (np.arange(len(u)) + 0.5) / len(u)).max() < 1.95 / math.sqrt(len(u))
    for name, n in (("depth", 6), ("drop", 6), ("norm", 2)):
        share = np.unique(x[name], return_counts=True)[1] / 40_000
        assert len(share) == n
        assert abs(share - 1 / n).max() < 0.01
    first = np.unique(x["order"][:, 0], return_counts=True)[1] / 40_000
    assert abs(first - 0.25).max() < 0.01


@pytest.mark.parametrize("method", ["random", "greedy", "genetic", "auto"])
def test_same_seed_same_trials(method):
    runs = [minimize(cost, MIXED, method=method, max_evals=90, seed=s) for s in (5, 5, 6)]
    assert runs[0].history.tobytes() == runs[1].history.tobytes()
    assert runs[0].history.tobytes() != runs[2].history.tobytes()


def test_random_does_not_depend_on_how_it_is_asked():
    whole = Random(PLANE, seed=1).ask(30)
    algo = Random(PLANE, seed=1)
    parts = [algo.ask(k) for k in (1, 7, 22)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_two_asks_without_a_tell_give_different_children():
    algo = Genetic(PLANE, population=4, seed=0)
    x = algo.ask(4)
    algo.tell(x, x[:, 0])
    twin = copy.deepcopy(algo)
    assert np.array_equal(np.concatenate([algo.ask(3), algo.ask(4)]), twin.ask(7))


@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
@pytest.mark.parametrize("method", ENGINES)
def test_state_round_trip_continues_bit_for_bit(method, how):
    algo = ENGINES[method](MIXED, seed=3)

    def step(a, k=6):
        x = a.ask(k)
        a.tell(x, [cost(t) for t in MIXED.dicts_of(MIXED.parse(x))])
        return {n: list(map(str, v)) for n, v in x.items()}

    for _ in range(6):
        step(algo)
    if how == "state_dict":
        other = ENGINES[method](MIXED, seed=99)
        other.load_state_dict(algo.state_dict())
    else:
        other = pickle.loads(pickle.dumps(algo)) if how == "pickle" else copy.deepcopy(algo)
    for _ in range(6):
        assert step(algo) == step(other)
    assert algo.fun == other.fun


def test_bad_state_changes_nothing():
    algo = Genetic(PLANE, population=4, seed=0)
    algo.tell(algo.ask(4), np.arange(4.0))
    good = algo.state_dict()
    for damage in (
        lambda s: s.pop("fitness"),
        lambda s: s.update(extra=1),
        lambda s: s.update(version=99),
        lambda s: s.update(method="random"),
        lambda s: s.update(space="Space()"),
        lambda s: s.update(genomes=np.zeros((3, 5))),
        lambda s: s.update(genomes=np.array(["a"])),
        lambda s: s.update(generation="1"),
        lambda s: s.update(generation=-1),
        lambda s: s.update(fitness=s["fitness"] - 1e-9),
        lambda s: s.pop("digest"),
    ):
        bad = dict(good)
        damage(bad)
        with pytest.raises(FormatError):
            algo.load_state_dict(bad)
        assert np.array_equal(algo.state_dict()["genomes"], good["genomes"])


def test_budgets():
    calls = []
    res = minimize(lambda t: calls.append(1) or 1.0, PLANE, method="random", max_evals=37)
    assert len(calls) == res.n_evals == 37
    assert "max_evals" in res.message
    start = time.monotonic()
    res = minimize(lambda t: 1.0, PLANE, method="random", max_evals=None, max_time=0.05)
    assert 0.05 <= time.monotonic() - start < 5
    assert "max_time" in res.message
    assert res.n_evals > 0
    none = minimize(lambda t: 1.0, PLANE, max_time=0)
    assert none.n_evals == 0
    assert none.x is None
    assert math.isnan(none.fun)


def test_call_styles():
    def by_name(w, b):
        return w + b

    def by_name_with_default(w, b, scale=1.0):
        return w + b

    def anything(**trial):
        return trial["w"] + trial["b"]

    def by_dict(trial):
        return trial["w"] + trial["b"]

    def one_named(w):
        return w["w"] + w["b"]

    results = {
        minimize(f, PLANE, method="random", max_evals=20).fun
        for f in (by_name, by_name_with_default, anything, by_dict, one_named)
    }
    assert len(results) == 1
    assert minimize(lambda x: x**2, Space(x=Float(-1, 1)), max_evals=50).fun < 0.01


@pytest.mark.parametrize("bad", [None, "3", 1j, [1.0], [1.0, 2.0], np.ones(1), object()])
def test_what_is_not_a_number_is_recorded_then_raised(bad):
    with pytest.raises(TrialError):
        minimize(lambda t: bad, PLANE, max_evals=5)
    res = minimize(lambda t: bad, PLANE, method="random", max_evals=5, on_error="skip")
    assert res.n_failed == res.n_evals == 5
    assert res.x is None
    assert sorted(res.errors) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("good", [1, True, np.float32(1), np.array(1), np.int8(1)])
def test_numbers_of_any_kind_are_taken(good):
    assert minimize(lambda t: good, PLANE, max_evals=3).fun == 1.0


@pytest.mark.parametrize("method", ["random", "greedy", "genetic"])
def test_failed_trials_are_never_best(method):
    def f(w, b):
        if w < 0:
            raise ZeroDivisionError("no negative w")
        return math.nan if b < 0 else -math.inf if b < 0.2 else w + b

    with pytest.raises(ZeroDivisionError):
        minimize(f, PLANE, method=method, max_evals=100)
    res = minimize(f, PLANE, method=method, max_evals=300, on_error="skip")
    assert res.n_failed == np.isnan(res.history).sum() > 10
    assert res.x["w"] >= 0
    assert res.x["b"] >= 0.2
    assert any("ZeroDivisionError: no negative w" in e for e in res.errors.values())


def test_infinity_is_a_value_ranked_last():
    res = minimize(lambda w, b: math.inf if w < 0 else w, PLANE, method="greedy", max_evals=80)
    assert res.n_failed == 0
    assert 0 <= res.fun < 0.5


@pytest.mark.parametrize("method", ["random", "greedy", "genetic"])
def test_every_trial_failing(method):
    res = minimize(lambda w, b: math.nan, PLANE, method=method, max_evals=60)
    assert res.n_failed == res.n_evals == 60
    assert res.x is None
    assert math.isnan(res.fun)


@pytest.mark.parametrize(
    "bad",
    [
        lambda x: x[:, 0][:-1],
        lambda x: None,
        lambda x: 1.0,
        lambda x: x[:, :1],
        lambda x: x[:, 0].astype(complex),
        lambda x: ["a"] * len(x),
    ],
)
def test_vectorised_objective_of_the_wrong_shape(bad):
    with pytest.raises(TrialError):
        minimize(bad, PLANE, vectorized=True, max_evals=10)


def test_the_objective_cannot_damage_the_search():
    def f(x):
        y = x[:, 0] ** 2
        x[:] = np.nan
        return y

    a = minimize(f, PLANE, method="genetic", vectorized=True, max_evals=500)
    b = minimize(lambda x: x[:, 0] ** 2, PLANE, method="genetic", vectorized=True, max_evals=500)
    assert a.history.tobytes() == b.history.tobytes()


def test_interrupt_returns_the_best_so_far():
    calls = []

    def f(w, b):
        calls.append(w)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return w

    res = minimize(f, PLANE, method="genetic", max_evals=100)
    assert res.message == "interrupted"
    assert res.n_evals == 29
    assert res.fun == min(calls[:29])


def test_callback_sees_progress_and_can_stop():
    seen = []

    def callback(p):
        seen.append(p)
        return p.n_evals >= 12

    res = minimize(lambda w, b: w, PLANE, method="random", max_evals=100, callback=callback)
    assert res.n_evals == 12
    assert [p.n_evals for p in seen] == list(range(1, 13))
    assert seen[-1].fun == res.fun
    assert seen[-1].x == res.x
    assert "callback" in res.message


@pytest.mark.parametrize("method", ["greedy", "genetic", "auto"])
def test_first_trials_can_be_given(method):
    x0 = [{"w": 0.5, "b": -0.25}, {"w": -1.0, "b": 1.0}]
    asked = []
    minimize(lambda t: asked.append(t) or t["w"], PLANE, method=method, max_evals=20, x0=x0)
    assert asked[:2] == x0
    res = minimize(lambda w, b: abs(w - 0.5), PLANE, method=method, max_evals=1, x0=x0[0])
    assert res.fun == 0
    with pytest.raises(ArrayError):
        minimize(lambda w, b: w, PLANE, method=method, x0={"w": 9.0, "b": 0.0})


def test_nothing_is_tried_twice_in_a_finite_space():
    space = Space(a=Int(0, 4), b=Choice(*"xyz"), c=Bool())
    for method in ("greedy", "genetic"):
        tried: list[tuple] = []
        minimize(
            lambda t, tried=tried: tried.append(tuple(t.values())) or len(tried),
            space,
            method=method,
            max_evals=30,
            batch_size=1,
        )
        assert len(set(tried)) == 30
    assert space.size == 30


def test_tell_takes_trials_that_were_not_asked():
    for make in ENGINES.values():
        algo = make(PLANE, seed=0)
        algo.tell([[0.1, 0.2]], [3.0])
        algo.tell([{"w": 1.0, "b": 1.0}], [1.0])
        algo.tell({"w": [1.5], "b": [1.0]}, [np.nan])
        assert algo.x == {"w": 1.0, "b": 1.0}
        for bad in ([[5.0, 0.0]], [[0.0]], [{"w": 1.0}], {"w": [1.0], "b": [1.0], "c": [1]}):
            with pytest.raises(ArrayError):
                algo.tell(bad, [1.0])
        with pytest.raises(ArrayError):
            algo.tell([[0.1, 0.2]], [1.0, 2.0])
        assert algo.n_told == 3
        assert algo.ask(3).shape == (3, 2)


def test_concurrent_use_is_refused():
    algo = Random(PLANE)
    algo._busy = True
    for call in (lambda: algo.ask(1), lambda: algo.tell([[0, 0]], [1]), algo.state_dict):
        with pytest.raises(ConcurrentUseError):
            call()


def test_result_columns():
    res = minimize(cost, MIXED, method="random", max_evals=7)
    assert list(res.trials) == ["trial", *MIXED.names, "fun"]
    assert np.array_equal(res.best, np.minimum.accumulate(res.history))
    slim = minimize(cost, MIXED, method="random", max_evals=7, keep_trials=False)
    assert slim.fun == res.fun
    with pytest.raises(OptionError):
        _ = slim.trials
    pandas = pytest.importorskip("pandas")
    frame = res.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.shape == (7, 9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Float(1, 0),
        lambda: Float(0, 1, log=True),
        lambda: Float(0, 1, step=0),
        lambda: Float(1, 2, log=True, step=0.1),
        lambda: Float(0, math.inf),
        lambda: Int(3, 2),
        lambda: Float(math.nan, 1),
        lambda: Int(0, 5, log=True),
        lambda: Int(0.5, 2),
        lambda: Choice(),
        lambda: Permutation(0),
        lambda: Vector(0, 0, 1),
        lambda: Vector(2, 1, 0),
        lambda: Space(),
        lambda: Space(x=3),
        lambda: Float("0", 1),
    ],
)
def test_bad_variables(make):
    with pytest.raises(FastoptError):
        make()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_evals": 0},
        {"max_evals": None},
        {"max_time": -1},
        {"method": "magic"},
        {"batch_size": 0},
        {"seed": -1},
        {"seed": "a"},
        {"on_error": "ignore"},
        {"space": 3},
        {"f": 3},
        {"method": Random(Space(z=Bool()))},
        {"method": "random", "x0": {"w": 0.0, "b": 0.0}},
    ],
)
def test_bad_arguments(wrong):
    args = {"f": lambda w, b: w, "space": PLANE, **wrong}
    with pytest.raises(FastoptError):
        minimize(args.pop("f"), args.pop("space"), **args)


def test_bounds_are_never_crossed():
    space = Space(
        a=Float(0.1, 0.3, log=True),
        b=Float(-1e300, 1e300 / 2),
        c=Float(2, 2),
        d=Int(7, 7),
        e=Float(0, 1, step=0.3),
        f=Int(1, 2**53, log=True),
    )
    for make in ENGINES.values():
        algo = make(space, seed=0)
        for _ in range(20):
            x = algo.ask(10)
            algo.tell(x, x[:, 0] + x[:, 4])  # tell checks the bounds
    assert {round(v, 9) for v in Random(space).ask(500)[:, 4]} == {0.0, 0.3, 0.6, 0.9}


def test_options_keep_their_type():
    space = Space(a=Choice(1, True, 1.0, "1", None, (1, 2)))
    for option in space.variables["a"].options:
        got = space.dicts_of(space.parse([{"a": option}]))[0]["a"]
        assert got == option
        assert type(got) is type(option)
    with pytest.raises(ArrayError):
        space.parse([{"a": "2"}])


def test_docstrings_run():
    import doctest

    from fastopt.search import driver, engine, genetic, greedy, operators, space

    for module in (driver, engine, genetic, greedy, operators, space):
        assert doctest.testmod(module).failed == 0


def test_dtype_errors():
    with pytest.raises(DTypeError):
        Random(MIXED).tell(np.zeros((1, MIXED.n_columns)), [1.0])
    with pytest.raises(DTypeError):
        Random(PLANE).tell([["a", "b"]], [1.0])
    with pytest.raises(DTypeError):
        Random(PLANE).tell([[0, 0]], ["x"])


@pytest.mark.parametrize("objective", [lambda w, b: w * w + b, lambda w, b: math.nan])
def test_plot_is_well_formed(objective):
    from xml.etree import ElementTree

    for n in (1, 50):
        res = minimize(objective, PLANE, method="random", max_evals=n)
        svg = ElementTree.fromstring(res.plot())
        dots = svg.findall(".//{*}circle")
        assert len(dots) == int(np.isfinite(res.history).sum())


@pytest.mark.parametrize("trial", [{"x": 0.5}, {"x": "abc"}, {"x": {1, 2}}, {"x": None}])
def test_columns_that_are_no_columns_are_refused(trial) -> None:
    engine = Genetic(Space(x=Float(0, 1)), seed=0)
    with pytest.raises(FastoptError, match=r"X\.x: "):
        engine.tell(trial, 1.0)
    assert engine.n_told == 0
    engine.tell({"x": [0.5]}, 1.0)
    assert engine.n_told == 1


@pytest.mark.parametrize("state", [None, 3, "x", [("version", 2)], {3: 1, "x": 2}])
def test_a_state_that_is_none_is_refused(state) -> None:
    engine = Genetic(Space(x=Float(0, 1)), seed=0)
    with pytest.raises(FormatError, match="state: "):
        engine.load_state_dict(state)
    right = engine.state_dict()
    for key in ("version", "method", "space"):
        with pytest.raises(FormatError, match=f"state: {key}"):
            engine.load_state_dict({**right, key: np.ones(3)})
    engine.load_state_dict(right)


@pytest.mark.parametrize("bad", [
    np.ma.masked_array([[1.0, 2.0]], [[1, 0]]), [[1j, 2]], [["1", "2"]], [[1.0], [2.0, 3.0]], None,
])  # fmt: skip
def test_objectives_enter_through_the_gate(bad) -> None:
    for call in (
        lambda: fronts(bad),
        lambda: crowding(bad),
        lambda: hypervolume(bad, [3.0, 3.0]),
    ):
        with pytest.raises(FastoptError, match="y: "):
            call()
