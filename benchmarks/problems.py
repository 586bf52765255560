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
    "tuning",
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


def conditional(seed: int = 0, ripple: float = 0.0) -> Problem:
    """Three branches with 3 to 5 variables of their own; the best of each is 0.

    With ``ripple`` each variable adds that much times 1 - cos(8 pi x) of its distance x from the
    best: a method tuned on the smooth problem alone goes too soon to the nearest minimum.
    """
    rng = np.random.default_rng(seed)
    sizes = (3, 4, 5)
    centres = [rng.uniform(0.2, 0.8, n) for n in sizes]
    variables: dict[str, Any] = {"branch": Choice("a", "b", "c")}
    for branch, n in zip("abc", sizes):
        for i in range(n):
            variables[f"{branch}{i}"] = Float(0, 1, when={"branch": branch})

    def f(trial: dict[str, Any]) -> float:
        k = "abc".index(trial["branch"])
        own = np.array([trial[f"{trial['branch']}{i}"] for i in range(sizes[k])])
        away = own - centres[k]
        return float((away**2 + ripple * (1 - np.cos(8 * np.pi * away))).sum())

    return Problem(f"conditional {seed}", Space(**variables), f, 0.0)


def tuning() -> list[Problem]:
    """Eight models of scikit-learn on its bundled data, loss of a 3-fold cross-validation.

    The best values are the lowest that any run of ours or of a peer has found; regret = (mean
    best - best) / (random's mean best - best).
    """
    from sklearn import datasets, ensemble, kernel_ridge, linear_model, neighbors, svm, tree
    from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    digits = datasets.load_digits(return_X_y=True)
    digits = (digits[0][:500], digits[1][:500])
    wine, cancer = (
        datasets.load_wine(return_X_y=True),
        datasets.load_breast_cancer(return_X_y=True),
    )
    diabetes = datasets.load_diabetes(return_X_y=True)

    def loss(model: Any, data: tuple[np.ndarray, np.ndarray], regression: bool = False) -> float:
        folds = (KFold if regression else StratifiedKFold)(3, shuffle=True, random_state=0)
        scoring = "neg_mean_squared_error" if regression else "neg_log_loss"
        if not regression and not hasattr(model, "predict_proba"):
            scoring = "accuracy"
        score = cross_val_score(model, *data, cv=folds, scoring=scoring).mean()
        return float(-score) / (5000.0 if regression else 1.0)

    def scaled(model: Any) -> Any:
        return make_pipeline(StandardScaler(), model)

    tasks = [
        (
            "svc digits",
            Space(C=Float(1e-3, 1e3, log=True), gamma=Float(1e-6, 1, log=True)),
            lambda t: loss(svm.SVC(**t), digits),
            BEST["svc digits"],
        ),
        (
            "svr diabetes",
            Space(
                C=Float(1e-2, 1e4, log=True),
                epsilon=Float(1e-2, 1e2, log=True),
                gamma=Float(1e-4, 10, log=True),
                kernel=Choice("rbf", "poly", "sigmoid"),
            ),
            lambda t: loss(scaled(svm.SVR(max_iter=20_000, **t)), diabetes, True),
            BEST["svr diabetes"],
        ),
        (
            "tree cancer",
            Space(
                max_depth=Int(1, 20),
                min_samples_leaf=Int(1, 60, log=True),
                max_features=Float(0.05, 1),
                criterion=Choice("gini", "entropy"),
                ccp_alpha=Float(1e-5, 0.1, log=True),
            ),
            lambda t: loss(tree.DecisionTreeClassifier(random_state=0, **t), cancer),
            BEST["tree cancer"],
        ),
        (
            "neighbours digits",
            Space(
                n_neighbors=Int(1, 50, log=True),
                weights=Choice("uniform", "distance"),
                p=Float(1, 5),
            ),
            lambda t: loss(neighbors.KNeighborsClassifier(**t), digits),
            BEST["neighbours digits"],
        ),
        (
            "kernel ridge diabetes",
            Space(
                alpha=Float(1e-6, 1e2, log=True),
                gamma=Float(1e-5, 10, log=True),
                kernel=Choice("rbf", "laplacian", "polynomial"),
            ),
            lambda t: loss(scaled(kernel_ridge.KernelRidge(**t)), diabetes, True),
            BEST["kernel ridge diabetes"],
        ),
        (
            "logistic cancer",
            Space(
                C=Float(1e-5, 1e5, log=True),
                tol=Float(1e-6, 1, log=True),
                fit_intercept=Bool(),
            ),
            lambda t: loss(scaled(linear_model.LogisticRegression(max_iter=100, **t)), cancer),
            BEST["logistic cancer"],
        ),
        (
            "elastic net diabetes",
            Space(alpha=Float(1e-4, 1e3, log=True), l1_ratio=Float(0, 1), degree=Int(1, 2)),
            lambda t: loss(
                make_pipeline(
                    StandardScaler(),
                    PolynomialFeatures(t["degree"]),
                    linear_model.ElasticNet(t["alpha"], l1_ratio=t["l1_ratio"], max_iter=200),
                ),
                diabetes,
                True,
            ),
            BEST["elastic net diabetes"],
        ),
        (
            "forest wine",
            Space(
                max_depth=Int(1, 12),
                max_features=Float(0.05, 1),
                min_samples_leaf=Int(1, 30, log=True),
                bootstrap=Bool(),
            ),
            lambda t: loss(ensemble.ExtraTreesClassifier(10, random_state=0, **t), wine),
            BEST["forest wine"],
        ),
    ]
    return [Problem(*task) for task in tasks]


# Lowest values that any method found in all runs so far, rounded down: 50,000 trials.
BEST = {
    "svc digits": -0.988,
    "svr diabetes": 0.56561,
    "tree cancer": 0.159056,
    "neighbours digits": 0.134063,
    "kernel ridge diabetes": 0.57791,
    "logistic cancer": 0.070746,
    "elastic net diabetes": 0.591809,
    "forest wine": 0.123798,
}
