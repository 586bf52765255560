"""Valid calls of the public functions of search, for tests/damage.py to damage."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

import fastopt as fo
from fastopt import search
from fastopt.search import Bool, Choice, Float, Int, Permutation, Space, Vector
from tests.array_calls import Call, Rng

MIXED = Space(x=Float(-1, 1), n=Int(1, 9), c=Choice("a", "b"), f=Bool())
NUMERIC = Space(x=Float(-1, 1), y=Float(-2, 2))
POINT = {"x": 0.5, "n": 3, "c": "a", "f": True}
ENOUGH = 400  # calls of an objective: budgets are damaged, too


class Objective:
    """The objective; ends the search by Ctrl-C's way where the budget does not."""

    def __init__(self, values: Callable[[Any], Any]) -> None:
        self.values, self.calls = values, 0

    def __call__(self, trial: Any) -> Any:
        self.calls += 1
        if self.calls > ENOUGH:
            raise KeyboardInterrupt
        return self.values(trial)


def _size(trial: Any) -> float:
    return float(len(repr(trial)) % 7)


def _yielding(values: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def objective(trial: Any) -> Any:
        yield values(trial)
        yield values(trial) / 2

    return objective


def minimized(
    values: Callable[[Any], Any] = _size, space: Any = MIXED, yields: bool = False, **options: Any
) -> Callable[[Rng], Call]:
    def make(rng: Rng) -> Call:
        def run(variables: Any, **given: Any) -> Any:
            objective = Objective(values)
            try:
                f = _yielding(objective) if yields else objective
                found = fo.minimize(f, variables, **given)
            except KeyboardInterrupt:  # the objective's own
                return None
            return found.importance() if found.history.ndim == 1 else found.pareto

        budget = {"max_evals": 20, "max_time": 0.5, "seed": 0}
        return Call(run, [space], {**budget, **options})

    return make


def told(family: str, space: Space = MIXED, **options: Any) -> Callable[[Rng], Call]:
    """An engine made, asked, told and asked again; what is told may be damaged."""

    def make(rng: Rng) -> Call:
        made = getattr(search, family)
        asked = made(space, **options).ask(4)

        def run(variables: Any, k: Any, X: Any, y: Any, constraints: Any, **given: Any) -> Any:
            engine = made(variables, **given)
            engine.ask(k)
            engine.tell(X, y, constraints)
            return engine.ask(2), engine.x

        y = rng.random((4, 2) if family == "NSGA2" else 4)
        limits = None if rng.random() < 0.5 else rng.random((4, 1))
        return Call(run, [space, 4, asked, y, limits], {"seed": 0, **options})

    return make


def engine(family: str, space: Space = MIXED, **options: Any) -> Callable[[Rng], Call]:
    """What one engine is told: a refused call leaves it as it was."""

    def make(rng: Rng) -> Call:
        made = getattr(search, family)(space, seed=0, **options)
        return Call(made.tell, [made.ask(5), rng.random(5)], {"constraints": rng.random((5, 1))})

    return make


def _space(low: Any, high: Any, step: Any, n: Any, option: Any, when: Any, length: Any) -> Any:
    space = Space(
        x=Float(low, high, step=step), n=Int(1, n), c=Choice(option, "b"),
        v=Vector(length, low, high), p=Permutation(length), w=Float(1e-3, 1, log=True, when=when),
    )  # fmt: skip
    found = search.Random(space, seed=0).ask(3)
    return space.parse(found), Space.from_dict(space.to_dict()).digest


def _loaded(path: Any, space: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        written = f"{folder}/journal"
        fo.minimize(_size, MIXED, method="random", max_evals=3, storage=written)
        return search.load_result(written if path is None else path, space)


def _plotted(history: Any, kind: Any, **options: Any) -> Any:
    found = fo.minimize(lambda x, y: x * y, NUMERIC, method="random", max_evals=30)
    return found.plot(kind, **options)


CALLS: dict[str, Callable[[Rng], Call]] = {
    "minimize": minimized(
        method="auto", callback=lambda progress: False, patience=10, target=-5.0,
        on_error="skip", on_interrupt="return", maximize=False, keep_trials=True,
    ),
    "minimize x0": minimized(
        method="genetic", x0=[{"x": 0.5, "n": 3}], batch_size=5, lookahead=1,
        prior=[({"x": 0.1, "n": 2, "c": "a", "f": True}, 3.0)],
    ),
    "minimize vectorized": minimized(
        lambda X: np.asarray(X)[:, 0], NUMERIC, method="cma", vectorized=True,
        x0=np.zeros((2, 2)), prior=[(np.zeros(2), 1.0)],
    ),
    "minimize constraints": minimized(
        lambda t: (t["x"], [t["n"] - 3.0]), method="genetic", constraints=1, max_evals=12,
    ),
    "minimize nsga2": minimized(
        lambda t: (t["x"], -t["n"]), method="nsga2", maximize=[True, False], max_evals=12,
    ),
    "minimize async": minimized(
        method="greedy", mode="async", workers=None, timeout=None, progress=False,
    ),
    "minimize stopper": minimized(
        method="random", stopper="halving", yields=True,
    ),
    "minimize storage": minimized(method="random", storage=None, retry_failed=True),
    "a damaged objective": lambda rng: Call(
        lambda value, **given: fo.minimize(lambda trial: value, MIXED, **given),
        [0.5], {"method": "genetic", "max_evals": 5, "max_time": 0.5, "on_error": "skip",
                "constraints": 0},
    ),
    "a damaged vectorized objective": lambda rng: Call(
        lambda y, **given: fo.minimize(lambda X: y, NUMERIC, vectorized=True, **given),
        [rng.random(6)], {"method": "random", "max_evals": 6, "max_time": 0.5, "batch_size": 6},
    ),
    "Space": lambda rng: Call(_space, [-1.0, 1.0, 0.25, 9, "a", {"c": "a"}, 3], {}),
    "Space.from_dict": lambda rng: Call(Space.from_dict, [MIXED.to_dict()], {}),
    "Space.parse": lambda rng: Call(
        MIXED.parse, [[POINT, POINT]], {}
    ),
    "Space.parse columns": lambda rng: Call(
        MIXED.parse,
        [{"x": rng.random(3), "n": np.array([1, 2, 3]), "c": np.array(["a", "b", "a"]),
          "f": np.array([True, False, True])}],
        {},
    ),
    "Random": told("Random"),
    "Greedy": told("Greedy", step=0.25, n_start=3, x0=[POINT]),
    "Genetic": told("Genetic", population=6, tournament=2, eta=3.0, mutation_eta=20.0,
                    order_crossover="ox", unique=False, threads=1),
    "CMA": told("CMA", NUMERIC, x0=[{"x": 0.5, "y": 0.1}], sigma=0.2, population=5,
                restarts="ipop", separable=False),
    "DE": told("DE", NUMERIC, budget=100, population=8, x0=np.zeros((1, 2))),
    "GP": told("GP", n_start=3, x0=[POINT]),
    "TPE": told("TPE", n_start=3, candidates=6),
    "NSGA2": told("NSGA2", objectives=2, population=6),
    "Portfolio": told("Portfolio", NUMERIC),
    "Islands": told("Islands", islands=2, population=4, migrate_every=1, migrants=1),
    "Subset": told("Subset", Space(a=Bool(), b=Bool(), c=Bool()), strategy="forward", beam=1),
    "Random.tell": engine("Random"),
    "Greedy.tell": engine("Greedy"),
    "Genetic.tell": engine("Genetic", population=6),
    "CMA.tell": engine("CMA", NUMERIC, population=5),
    "DE.tell": engine("DE", NUMERIC, population=8),
    "GP.tell": engine("GP", n_start=3),
    "TPE.tell": engine("TPE", n_start=3),
    "Islands.tell": engine("Islands", islands=2, population=4),
    "fronts": lambda rng: Call(search.fronts, [rng.random((9, 2))], {}),
    "crowding": lambda rng: Call(search.crowding, [rng.random((9, 2))], {}),
    "hypervolume": lambda rng: Call(search.hypervolume, [rng.random((9, 2)), np.ones(2)], {}),
    "plot": lambda rng: Call(
        _plotted, [0, "contour"], {"x": "x", "y": "y", "width": 300, "height": 200}
    ),
    "load_result": lambda rng: Call(_loaded, [None], {"space": MIXED}),
    "pack_bits": lambda rng: Call(search.pack_bits, [rng.integers(0, 2, (3, 70), np.uint8)], {}),
    "unpack_bits": lambda rng: Call(search.unpack_bits, [np.ones((3, 2), np.uint64), 70], {}),
    "count_bits": lambda rng: Call(
        search.count_bits, [np.ones((3, 2), np.uint64)], {"threads": 1}
    ),
    "tournament": lambda rng: Call(
        search.tournament, [rng.random(9), 5],
        {"size": 3, "seed": 0, "generation": 1, "threads": 1},
    ),
    "variation": lambda rng: Call(
        search.variation, [rng.random((6, 4)), np.arange(6), 0.0, 1.0],
        {"rate": 0.9, "eta": 15.0, "mutation_rate": 0.1, "seed": 0, "generation": 0},
    ),
    "variation of bits": lambda rng: Call(
        search.variation, [rng.random((6, 9)) > 0.5, np.arange(6), 0, 1],
        {"crossover": "two_point", "mutation": "flip", "gene_rate": 0.5, "mutation_rate": 0.1,
         "seed": 0, "out": np.empty((6, 9), bool)}, ("out",),
    ),
}  # fmt: skip
