"""One generation of a genetic algorithm on the sphere, against pymoo, DEAP and NumPy.

"generation" is tournament of 3, crossover of 90 % of the pairs, mutation of 1 gene in d, fitness;
the old population is replaced. pymoo's GA also merges and sorts parents and children (as our
engine does, in its own rows); DEAP and NumPy do not. "limit" is a plain copy of the population.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.harness import Case, Contender, peer
from fastopt.search import (
    Float,
    Genetic,
    Space,
    Vector,
    count_bits,
    minimize,
    pack_bits,
    tournament,
    variation,
)


def sphere(x: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", x, x)


def generation(n: int, d: int, threads: int, **how: Any) -> Contender:
    rng = np.random.default_rng(0)
    state = [rng.uniform(-5, 5, (n, d)), np.empty((n, d)), 0]
    low, high = np.full(d, -5.0), np.full(d, 5.0)

    def step() -> None:
        old, new, number = state
        winners = tournament(sphere(old), n, size=3, generation=number)
        variation(old, winners, low, high, generation=number, threads=threads, out=new, **how)
        state[:] = new, old, number + 1

    return step


def numpy_sbx(n: int, d: int) -> Contender:
    rng = np.random.default_rng(0)
    state = [rng.uniform(-5, 5, (n, d))]

    def step() -> None:
        x, eta, eta_m = state[0], 15.0, 20.0
        f = sphere(x)
        rows = rng.integers(0, n, (n, 3))
        winners = rows[np.arange(n), f[rows].argmin(axis=1)]
        a, b = x[winners[::2]], x[winners[1::2]]
        u = rng.random(a.shape)
        beta = np.where(u < 0.5, 2 * u, 1 / (2 - 2 * u)) ** (1 / (eta + 1))
        cross = (rng.random(a.shape) < 0.5) & (rng.random((n // 2, 1)) < 0.9)
        beta = np.where(cross, beta, 1.0)
        child = np.empty_like(x)
        child[::2] = 0.5 * ((1 + beta) * a + (1 - beta) * b)
        child[1::2] = 0.5 * ((1 - beta) * a + (1 + beta) * b)
        i, j = np.nonzero(rng.random((n, d)) < 1 / d)
        u = rng.random(len(i))
        delta = np.where(
            u < 0.5, (2 * u) ** (1 / (eta_m + 1)) - 1, 1 - (2 - 2 * u) ** (1 / (eta_m + 1))
        )
        child[i, j] += delta * 10
        state[0] = np.clip(child, -5, 5, out=child)

    return step


def pymoo_ga(n: int, d: int, sbx: bool = True) -> Contender | None:
    if peer("pymoo") is None:
        return None
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.operators.mutation.gauss import GaussianMutation
    from pymoo.operators.mutation.pm import PolynomialMutation

    class Sphere(Problem):
        def __init__(self) -> None:
            super().__init__(n_var=d, n_obj=1, xl=-5.0, xu=5.0)

        def _evaluate(self, x: Any, out: Any, *args: Any, **kwargs: Any) -> None:
            out["F"] = sphere(x)

    algo = GA(
        pop_size=n,
        crossover=SBX(prob=0.9, eta=15) if sbx else UniformCrossover(prob=0.9),
        mutation=PolynomialMutation(eta=20) if sbx else GaussianMutation(sigma=0.1),
        eliminate_duplicates=False,
    )
    algo.setup(Sphere(), termination=("n_gen", 10**9), seed=1, verbose=False)
    algo.next()
    return algo.next


def deap_sbx(n: int, d: int) -> Contender | None:
    if peer("deap") is None:
        return None
    import random

    from deap import algorithms, base, creator, tools

    if not hasattr(creator, "FastoptBench"):
        creator.create("FastoptBenchFit", base.Fitness, weights=(-1.0,))
        creator.create("FastoptBench", list, fitness=creator.FastoptBenchFit)
    box = base.Toolbox()
    box.register("mate", tools.cxSimulatedBinaryBounded, low=-5, up=5, eta=15)
    box.register("mutate", tools.mutPolynomialBounded, low=-5, up=5, eta=20, indpb=1 / d)
    box.register("select", tools.selTournament, tournsize=3)
    state = [[creator.FastoptBench([random.uniform(-5, 5) for _ in range(d)]) for _ in range(n)]]

    def step() -> None:
        for one in state[0]:
            if not one.fitness.valid:
                one.fitness.values = (sum(v * v for v in one),)
        chosen = box.select(state[0], n)
        state[0] = algorithms.varAnd([box.clone(o) for o in chosen], box, 0.9, 1.0)

    return step


def copy_limit(n: int, d: int) -> Contender:
    a, b = np.ones((n, d)), np.ones((n, d))
    return lambda: np.copyto(b, a)


def engine(n: int, d: int, threads: int) -> Contender:
    algo = Genetic(Space(x=Vector(d, -5, 5)), population=n, eta=15, tournament=3, threads=threads)
    x = algo.ask(n)
    algo.tell(x, sphere(x))

    def step() -> None:
        x = algo.propose(n)
        algo.learn(x, sphere(x))

    return step


def sbx_case(n: int, d: int) -> Any:
    def setup(threads: int) -> dict[str, Contender | None]:
        big = n * d > 1_000_000
        return {
            "fastopt": generation(n, d, threads),
            "pymoo GA": pymoo_ga(n, d),
            "DEAP": None if big else deap_sbx(n, d),
            "NumPy": numpy_sbx(n, d),
            "limit": copy_limit(n, d),
        }

    return setup


def uniform_case(n: int, d: int) -> Any:
    def setup(threads: int) -> dict[str, Contender | None]:
        how = {"crossover": "uniform", "mutation": "gaussian"}
        return {
            "fastopt": generation(n, d, threads, **how),
            "pymoo GA": pymoo_ga(n, d, sbx=False),
            "limit": copy_limit(n, d),
        }

    return setup


def engine_case(n: int, d: int) -> Any:
    def setup(threads: int) -> dict[str, Contender | None]:
        return {"fastopt": engine(n, d, threads), "pymoo GA": pymoo_ga(n, d)}

    return setup


def bits_case(threads: int) -> dict[str, Contender | None]:
    n, d = 1000, 10_000
    rng = np.random.default_rng(0)
    as_bool = rng.random((n, d)) < 0.5
    state = [pack_bits(as_bool), pack_bits(as_bool), 0]

    def ours() -> None:
        old, new, number = state
        winners = tournament(-count_bits(old).astype(float), n, size=3, generation=number)
        how = {"crossover": "two_point", "mutation": "flip", "bits": d, "threads": threads}
        variation(old, winners, 0, 1, generation=number, out=new, **how)
        state[:] = new, old, number + 1

    def plain() -> None:
        f = as_bool.sum(axis=1)
        rows = rng.integers(0, n, (n, 3))
        winners = rows[np.arange(n), f[rows].argmax(axis=1)]
        cut = np.sort(rng.integers(0, d + 1, (n // 2, 2)), axis=1)
        swap = (np.arange(d) >= cut[:, :1]) & (np.arange(d) < cut[:, 1:])
        swap &= rng.random((n // 2, 1)) < 0.9
        a, b = as_bool[winners[::2]], as_bool[winners[1::2]]
        child = np.empty_like(as_bool)
        child[::2], child[1::2] = np.where(swap, b, a), np.where(swap, a, b)
        child ^= rng.random((n, d)) < 1 / d

    return {"fastopt": ours, "pymoo GA": pymoo_bits(n, d), "NumPy": plain}


def pymoo_bits(n: int, d: int) -> Contender | None:
    if peer("pymoo") is None:
        return None
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.pntx import TwoPointCrossover
    from pymoo.operators.mutation.bitflip import BitflipMutation
    from pymoo.operators.sampling.rnd import BinaryRandomSampling

    class OneMax(Problem):
        def __init__(self) -> None:
            super().__init__(n_var=d, n_obj=1, xl=0, xu=1, vtype=bool)

        def _evaluate(self, x: Any, out: Any, *args: Any, **kwargs: Any) -> None:
            out["F"] = -x.sum(axis=1)

    algo = GA(
        pop_size=n,
        sampling=BinaryRandomSampling(),
        crossover=TwoPointCrossover(),
        mutation=BitflipMutation(),
        eliminate_duplicates=False,
    )
    algo.setup(OneMax(), termination=("n_gen", 10**9), seed=1, verbose=False)
    algo.next()
    return algo.next


def random_case(threads: int) -> dict[str, Contender | None]:
    space = Space(lr=Float(1e-5, 1, log=True), a=Float(0, 1), b=Float(0, 1), c=Float(0, 1))

    def ours() -> None:
        minimize(lambda lr, a, b, c: 1.0, space, method="random", max_evals=2000)

    sampler = None
    if peer("sklearn") and peer("scipy"):
        from scipy.stats import loguniform, uniform
        from sklearn.model_selection import ParameterSampler

        draws = {"lr": loguniform(1e-5, 1), "a": uniform(), "b": uniform(), "c": uniform()}

        def sampler() -> None:
            for _ in ParameterSampler(draws, 2000, random_state=0):
                pass

    return {"fastopt": ours, "sklearn ParameterSampler": sampler}


CASES = [
    Case(
        "GA 1000 x 100, SBX + polynomial",
        sbx_case(1000, 100),
        targets={"pymoo GA": 100, "DEAP": 300, "NumPy": 9},
    ),
    Case("GA 1000 x 100, uniform + gaussian", uniform_case(1000, 100), targets={"pymoo GA": 100}),
    Case(
        "GA 10,000 x 1000, SBX + polynomial",
        sbx_case(10_000, 1000),
        targets={"pymoo GA": 40, "NumPy": 10, "limit": 0.28},
    ),
    Case(
        "GA 10,000 x 1000, uniform + gaussian",
        uniform_case(10_000, 1000),
        targets={"pymoo GA": 40, "limit": 0.5},
    ),
    Case(
        "engine Genetic 1000 x 100, mu + lambda", engine_case(1000, 100), targets={"pymoo GA": 50}
    ),
    Case(
        "bits 1000 x 10,000, two-point + flip, onemax",
        bits_case,
        targets={"pymoo GA": 1300, "NumPy": 480},
    ),
    Case(
        "random search, 2000 trials of 4 variables",
        random_case,
        targets={"sklearn ParameterSampler": 50},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_genetic(case: Case, benchmark: Any) -> None:
    case.run(benchmark)
