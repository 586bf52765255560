"""Search problems with known or best known values, all seeded; each says how far from it is 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import Bool, Choice, Float, Int, Permutation, Space, Vector

__all__ = [
    "Problem",
    "aocc",
    "bbob",
    "conditional",
    "knapsack",
    "noisy",
    "onemax",
    "rotated_mixed",
    "tour",
]


@dataclass(frozen=True)
class Problem:
    """A space, an objective of one dict (or of a matrix if ``vectorized``), and its best value."""

    name: str
    space: Space
    f: Callable[[Any], Any]
    best: float
    vectorized: bool = False


def bbob(function: int, instance: int, d: int) -> Problem:
    """Function 1..24 of the BBOB suite in [-5, 5]^d (Hansen et al. 2009), by ``ioh``."""
    import ioh

    problem = ioh.get_problem(function, instance, d, ioh.ProblemClass.BBOB)

    def f(x: np.ndarray) -> np.ndarray:
        return np.array(problem(x.tolist()))

    space = Space(x=Vector(d, -5, 5))
    return Problem(f"bbob f{function} i{instance} d{d}", space, f, problem.optimum.y, True)


def noisy(problem: Problem, sigma: float, seed: int) -> Problem:
    """(f - best) times a lognormal of ``sigma``: the noise falls with the precision."""
    rng = np.random.default_rng(seed)

    def f(x: Any) -> Any:
        gap = np.asarray(problem.f(x)) - problem.best
        return problem.best + gap * np.exp(sigma * rng.standard_normal(gap.shape))

    name = f"{problem.name} noise {sigma}"
    return Problem(name, problem.space, f, problem.best, problem.vectorized)


def aocc(gaps: np.ndarray, budget: int) -> float:
    """Area over the convergence curve: mean log precision, 0 for 1e2 and 1 for 1e-8."""
    best = np.minimum.accumulate(gaps[:budget])
    best = np.append(best, np.full(budget - len(best), best[-1]))
    return float(np.mean(1 - (np.log10(np.clip(best, 1e-8, 1e2)) + 8) / 10))


def rotated_mixed(seed: int, reals: int = 5, ints: int = 5) -> Problem:
    """Ellipsoid of condition 1e4 in rotated coordinates; Floats in [-20, 20], Ints in -20..20."""
    rng = np.random.default_rng(seed)
    d = reals + ints
    rotation, _ = np.linalg.qr(rng.standard_normal((d, d)))
    centre = np.concatenate([rng.uniform(-10, 10, reals), rng.integers(-10, 11, ints)])
    scale = 10.0 ** (4 * np.arange(d) / (d - 1))

    def f(x: np.ndarray) -> np.ndarray:
        return ((x - centre) @ rotation.T) ** 2 @ scale

    space = Space(
        **{f"x{i}": Float(-20, 20) for i in range(reals)},
        **{f"n{i}": Int(-20, 20) for i in range(ints)},
    )
    return Problem(f"rotated mixed {seed}", space, f, 0.0, True)


def onemax(n: int = 1000) -> Problem:
    """Bits that are not set."""
    space = Space(**{f"b{i}": Bool() for i in range(n)})
    return Problem(f"onemax {n}", space, lambda t: n - sum(t.values()), 0.0)


def knapsack(seed: int = 0, n: int = 100) -> Problem:
    """Values and weights of 1..100, half of the weight fits; overweight costs its value twice."""
    rng = np.random.default_rng(seed)
    value, weight = rng.integers(1, 101, n), rng.integers(1, 101, n)
    room = int(weight.sum() // 2)
    reach = np.zeros(room + 1, dtype=np.int64)  # the optimum, by dynamic programming
    for v, w in zip(value, weight):
        reach[w:] = np.maximum(reach[w:], reach[:-w] + v)

    def f(trial: dict[str, bool]) -> float:
        taken = np.fromiter(trial.values(), bool, n)
        over = max(0, int(weight[taken].sum()) - room)
        return float(-value[taken].sum() + 2 * over * value.max())

    space = Space(**{f"b{i}": Bool() for i in range(n)})
    return Problem(f"knapsack {n}", space, f, float(-reach.max()))


def tour(seed: int = 0, n: int = 50) -> Problem:
    """Length of the round trip through n uniform points of the unit square; best unknown (0)."""
    points = np.random.default_rng(seed).random((n, 2))
    distance = np.sqrt(((points[:, None] - points) ** 2).sum(axis=2))

    def f(trial: dict[str, np.ndarray]) -> float:
        order = trial["order"]
        return float(distance[order, np.roll(order, -1)].sum())

    return Problem(f"tour {n}", Space(order=Permutation(n)), f, 0.0)


def conditional(seed: int = 0) -> Problem:
    """Three branches with 3 to 5 variables of their own; the best is 0 in the third branch."""
    rng = np.random.default_rng(seed)
    sizes, floors = (3, 4, 5), (0.1, 0.05, 0.0)
    centres = [rng.uniform(0.2, 0.8, n) for n in sizes]
    variables: dict[str, Any] = {"branch": Choice("a", "b", "c")}
    for branch, n in zip("abc", sizes):
        for i in range(n):
            variables[f"{branch}{i}"] = Float(0, 1, when={"branch": branch})

    def f(trial: dict[str, Any]) -> float:
        k = "abc".index(trial["branch"])
        own = np.array([trial[f"{trial['branch']}{i}"] for i in range(sizes[k])])
        return float(floors[k] + ((own - centres[k]) ** 2).sum())

    return Problem(f"conditional {seed}", Space(**variables), f, 0.0)
