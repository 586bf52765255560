"""What the search engines find, beside their peers: one table per kind of problem.

    python -m benchmarks.search_quality [bbob noise mixed conditional orders bits pareto tuning]
        [speed]

Every figure is a mean over instances or seeds with its 95 % bootstrap interval; peers that are
not installed are left out. ``--quick`` takes few instances and seeds, ``--full`` those of the
tables in docs/search.md. Quality does not depend on the load of the machine; the figures of
``speed`` are CPU times, ours and a peer's in turns. The loop's cost, executors and unequal tasks
are in benchmarks/search_loop.py.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks import problems
from fastopt.search import (
    CMA,
    GP,
    NSGA2,
    Bool,
    Float,
    Int,
    Space,
    Vector,
    fronts,
    hypervolume,
)
from fastopt.search.engine import Engine
from fastopt.search.methods import engine_for

Curve = np.ndarray  # objective of each trial


def interval(values: np.ndarray) -> str:
    """Mean and 95 % bootstrap interval."""
    values = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(2000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():9.4g} [{low:.4g}, {high:.4g}]"


def ours(method: str) -> Callable[[problems.Problem, int, int], Curve]:
    """A method by its name, as ``minimize`` runs it."""

    def run(problem: problems.Problem, budget: int, seed: int) -> Curve:
        # A vectorised problem stands for f called one trial at a time: the budgets are the same.
        engine, _ = engine_for(method, problem.space, max_evals=budget, seed=seed)
        return follow(engine, problem, budget)

    return run


def follow(engine: Engine, problem: problems.Problem, budget: int) -> Curve:
    found: list[float] = []
    while len(found) < budget:
        values = engine.propose(min(engine.wants(), budget - len(found)))
        if problem.vectorized:
            y = np.asarray(problem.f(values), dtype=np.float64)
        else:
            y = np.array([problem.f(t) for t in problem.space.dicts_of(values)])
        engine.learn(values, y)
        found += y.tolist()
    return np.array(found)


def cmaes_ipop(problem: problems.Problem, budget: int, seed: int) -> Curve:
    """``cmaes`` with restarts of twice the population, from a uniform point."""
    import cmaes

    low, high = problem.space.low, problem.space.high
    rng = np.random.default_rng(seed)
    size = 4 + int(3 * np.log(len(low)))
    found: list[float] = []
    while len(found) < budget:
        run = cmaes.CMA(
            mean=rng.uniform(low, high),
            sigma=0.2 * float((high - low).max()),
            bounds=np.column_stack([low, high]),
            population_size=size,
            seed=int(rng.integers(1 << 31)),
        )
        while len(found) < budget and not run.should_stop():
            points = [run.ask() for _ in range(size)]
            y = problem.f(np.array(points))
            found += y.tolist()
            run.tell(list(zip(points, y.tolist())))
        size *= 2
    return np.array(found[:budget])


def slsqp(problem: problems.Problem, budget: int, seed: int) -> Curve:
    """scipy's SLSQP from uniform points, until the budget ends."""
    from scipy.optimize import minimize

    low, high = problem.space.low, problem.space.high
    rng = np.random.default_rng(seed)
    found: list[float] = []

    def f(x: np.ndarray) -> float:
        if len(found) >= budget:
            raise StopIteration
        found.append(float(problem.f(np.clip(x, low, high)[None])[0]))
        return found[-1]

    while len(found) < budget:
        try:
            minimize(f, rng.uniform(low, high), method="SLSQP", bounds=list(zip(low, high)))
        except StopIteration:
            break
    return np.array(found)


def catcma(problem: problems.Problem, budget: int, seed: int) -> Curve:
    """``cmaes``'s CatCMAwM on Floats and Ints."""
    import cmaes

    variables = problem.space.variables.values()
    reals = [[v.low, v.high] for v in variables if isinstance(v, Float)]
    ints = [np.arange(v.low, v.high + 1) for v in variables if isinstance(v, Int)]
    run = cmaes.CatCMAwM(x_space=np.array(reals), z_space=ints, seed=seed)
    found: list[float] = []
    while len(found) < budget:
        solutions = []
        for _ in range(run.population_size):
            s = run.ask()
            y = float(problem.f(np.concatenate([s.x, s.z])[None])[0])
            found.append(y)
            solutions.append((s, y))
        run.tell(solutions)
    return np.array(found[:budget])


def tpe(problem: problems.Problem, budget: int, seed: int) -> Curve:
    """Optuna's TPE: plain, or multivariate by groups where there are conditions."""
    import optuna

    grouped = problem.space.conditional
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=grouped, group=grouped)
    return by_optuna(sampler, problem, budget)


def gp_sampler(problem: problems.Problem, budget: int, seed: int) -> Curve:
    """Optuna's GPSampler, which needs torch."""
    import optuna

    return by_optuna(optuna.samplers.GPSampler(seed=seed), problem, budget)


def by_optuna(sampler: Any, problem: problems.Problem, budget: int) -> Curve:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler)
    found: list[float] = []
    for _ in range(budget):
        trial = study.ask()
        values: dict[str, Any] = {}
        for name, v in problem.space.variables.items():
            conditions = getattr(v, "when", None) or {}
            if any(
                values.get(k) not in np.atleast_1d(w).tolist() for k, w in dict(conditions).items()
            ):
                continue
            if isinstance(v, Float):
                values[name] = trial.suggest_float(name, v.low, v.high, log=v.log)
            elif isinstance(v, Int):
                values[name] = trial.suggest_int(name, v.low, v.high, log=v.log)
            else:
                options = [False, True] if isinstance(v, Bool) else list(v.options)
                values[name] = trial.suggest_categorical(name, options)
        found.append(float(problem.f(values)))
        study.tell(trial, found[-1])
    return np.array(found)


def pymoo_ga(problem: problems.Problem, budget: int, seed: int) -> Curve:
    """pymoo's GA on bits or on an order."""
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.operators.crossover.ox import OrderCrossover
    from pymoo.operators.crossover.pntx import TwoPointCrossover
    from pymoo.operators.mutation.bitflip import BitflipMutation
    from pymoo.operators.mutation.inversion import InversionMutation
    from pymoo.operators.sampling.rnd import BinaryRandomSampling, PermutationRandomSampling
    from pymoo.optimize import minimize

    names, n = problem.space.names, problem.space.n_columns
    bits = len(names) == n
    found: list[float] = []

    class Wrapped(ElementwiseProblem):
        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args: Any, **kw: Any) -> None:
            trial = dict(zip(names, x.astype(bool).tolist())) if bits else {names[0]: x}
            found.append(float(problem.f(trial)))
            out["F"] = found[-1]

    if bits:
        operators = (BinaryRandomSampling(), TwoPointCrossover(), BitflipMutation())
    else:
        operators = (PermutationRandomSampling(), OrderCrossover(), InversionMutation())
    sampling, crossover, mutation = operators
    algorithm = GA(
        pop_size=50,
        sampling=sampling,
        crossover=crossover,
        mutation=mutation,
        eliminate_duplicates=True,
    )
    minimize(Wrapped(n_var=n, n_obj=1), algorithm, ("n_eval", budget), seed=seed)
    return np.array(found[:budget])


def available(runs: dict[str, Any]) -> dict[str, Any]:
    """Those whose package is installed."""
    from importlib.util import find_spec

    needs = {"cmaes": "cmaes", "CatCMAwM": "cmaes", "SLSQP": "scipy", "TPE": "optuna"}
    needs |= {"pymoo": "pymoo", "moocore": "moocore", "GPSampler": "torch"}
    return {k: f for k, f in runs.items() if k not in needs or find_spec(needs[k])}


def bbob(scale: int, sigma: float = 0.0) -> None:
    """Mean AOCC of 24 functions: d 5 (20 d, 100 d, 1000 d evaluations), d 10, d 20 (1000 d)."""
    runs = available({"auto": ours("auto"), "cma": ours("cma"), "cmaes": cmaes_ipop})
    if not sigma:
        runs |= available({"genetic": ours("genetic"), "SLSQP": slsqp, "random": ours("random")})
    instances = range(1, 1 + (1, 3, 5)[scale])
    for d, factors in ((5, (20, 100, 1000)), (10, (100, 1000)), (20, (1000,)))[: scale + 1]:
        for name, run in runs.items():
            scores = []
            for function in range(1, 25):
                for instance in instances:
                    plain = problems.bbob(function, instance, d)
                    problem = problems.noisy(plain, sigma, instance) if sigma else plain
                    y = run(problem, max(factors) * d, instance)
                    gaps = y - plain.best
                    scores.append([problems.aocc(gaps, m * d) for m in factors])
            for m, column in zip(factors, np.array(scores).T):
                label = f"bbob d{d} {m}d" + (f" noise {sigma}" if sigma else "")
                print(f"{label:28}{name:10}{interval(column)}", flush=True)


def noise(scale: int) -> None:
    bbob(min(scale, 1), 0.05)


def tuning(scale: int) -> None:
    """Regret after 25 and 50 trials over that of random search after as many."""
    seeds, budget = (2, 6, 20)[scale], 50
    tasks = problems.tuning()
    curves: dict[str, list[np.ndarray]] = {}
    runs = available({"random": ours("random"), "auto": ours("auto"), "TPE": tpe})
    if scale == 2:  # a fifth of a second per trial
        runs |= available({"GPSampler": gp_sampler})
    for name, run in runs.items():
        curves[name] = [
            np.array([np.minimum.accumulate(run(p, budget, s)) for s in range(seeds)])
            for p in tasks
        ]
    lowest = [min(p.best, *(curves[n][i].min() for n in runs)) for i, p in enumerate(tasks)]
    for name in runs:
        for at in (25, 50):
            ratios = []
            for i, low in enumerate(lowest):
                base = curves["random"][i][:, at - 1].mean() - low
                ratios.append((curves[name][i][:, at - 1] - low) / max(base, 1e-12))
            print(f"{f'tuning {at} trials':28}{name:10}{interval(np.mean(ratios, axis=0))}")


def conditional(scale: int) -> None:
    runs = available({"auto": ours("auto"), "genetic": ours("genetic"), "TPE": tpe})
    report("conditional", runs, problems.conditional, (100, 300), (3, 8, 20)[scale])
    rippled = partial(problems.conditional, ripple=0.05)
    report("conditional, rippled", runs, rippled, (100, 300), (3, 8, 20)[scale])


def mixed(scale: int) -> None:
    runs = available({"auto": ours("auto"), "genetic": ours("genetic"), "CatCMAwM": catcma})
    report("rotated mixed", runs, problems.rotated_mixed, (2000,), (5, 15, 25)[scale])


def orders(scale: int) -> None:
    runs = available({"genetic": ours("genetic"), "pymoo": pymoo_ga})
    report("tour of 50", runs, lambda s: problems.tour(), (20_000,), (2, 3, 10)[scale])


def bits(scale: int) -> None:
    runs = available({"genetic": ours("genetic"), "pymoo": pymoo_ga})
    report("onemax 1000", runs, lambda s: problems.onemax(), (20_000,), (1, 2, 5)[scale])
    report("knapsack 100", runs, lambda s: problems.knapsack(), (5000,), (2, 5, 20)[scale])


def report(
    label: str,
    runs: dict[str, Any],
    make: Callable[[int], problems.Problem],
    budgets: tuple[int, ...],
    seeds: int,
) -> None:
    """Mean gap to the best value after each budget."""
    for name, run in runs.items():
        gaps = []
        for seed in range(seeds):
            problem = make(seed)
            best = np.minimum.accumulate(run(problem, max(budgets), seed)) - problem.best
            gaps.append([best[min(b, len(best)) - 1] for b in budgets])
        for budget, column in zip(budgets, np.array(gaps).T):
            print(f"{f'{label}, {budget}':28}{name:10}{interval(column)}", flush=True)


def pareto(scale: int) -> None:
    """Hypervolume of ZDT1-3 (30 variables) and DTLZ2 (12), 100 x 100 evaluations."""
    suite = {
        "zdt1": (30, 2, zdt(1)),
        "zdt2": (30, 2, zdt(2)),
        "zdt3": (30, 2, zdt(3)),
        "dtlz2": (12, 3, dtlz2),
    }
    for name, (d, m, f) in suite.items():
        volumes = []
        for seed in range((2, 5, 15)[scale]):
            algo = NSGA2(Space(x=Vector(d, 0, 1)), objectives=m, population=100, seed=seed)
            for _ in range(100):
                x = algo.propose(100)
                algo.learn(x, f(x))
            volumes.append(hypervolume(algo.pareto[1], np.full(m, 1.1)))
        print(f"{name:28}{'nsga2':10}{interval(np.array(volumes))}", flush=True)
        if not available({"pymoo": 1}):
            continue
        from pymoo.algorithms.moo.nsga2 import NSGA2 as Theirs
        from pymoo.core.problem import Problem
        from pymoo.optimize import minimize

        class Wrapped(Problem):
            def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args: Any, **kw: Any) -> None:
                out["F"] = f(x)  # noqa: B023

        volumes = []
        for seed in range((2, 5, 15)[scale]):
            wrapped = Wrapped(n_var=d, n_obj=m, xl=np.zeros(d), xu=np.ones(d))
            res = minimize(wrapped, Theirs(pop_size=100), ("n_gen", 100), seed=seed)
            volumes.append(hypervolume(res.F, np.full(m, 1.1)))
        print(f"{name:28}{'pymoo':10}{interval(np.array(volumes))}", flush=True)


def speed(scale: int) -> None:
    """CPU time of what engines do between trials."""
    rounds = (5, 20, 50)[scale]
    for m in (2, 3):
        y = np.random.default_rng(0).random((10_000, m))
        runs: dict[str, Callable[[], Any]] = {"fastopt": lambda y=y: fronts(y)}
        if available({"moocore": 1}):
            import moocore

            runs["moocore"] = lambda y=y: moocore.pareto_rank(y)
        compare(f"fronts of 10,000 x {m}", runs, rounds)
    space = Space(x=Vector(10, -5, 5))
    cma = CMA(space, restarts="none", seed=0)

    def generation() -> None:
        x = cma.propose(cma.wants())
        cma.learn(x, (x**2) @ 10.0 ** np.arange(10))

    runs = {"fastopt": generation}
    if available({"cmaes": 1}):
        import cmaes

        twin = cmaes.CMA(mean=np.ones(10), sigma=2.0, bounds=np.tile([-5.0, 5.0], (10, 1)), seed=0)

        def theirs() -> None:
            points = [twin.ask() for _ in range(twin.population_size)]
            twin.tell([(x, float(x**2 @ 10.0 ** np.arange(10))) for x in points])

        runs["cmaes"] = theirs
    compare("generation of CMA, d 10", runs, 5 * rounds)
    problem = problems.rotated_mixed(0, 3, 2)
    asks = []
    for seed in range(rounds // 5):
        gp = GP(problem.space, seed=seed)
        for _ in range(56):
            start = time.process_time()
            x = gp.propose(1)
            asks.append(time.process_time() - start)
            gp.learn(x, problem.f(x))
        del asks[-56:-10]
    print(f"{'gp, ask at 46 to 55 trials':28}{'fastopt':10}{np.median(asks) * 1e3:9.3g} ms")


def compare(label: str, runs: dict[str, Callable[[], Any]], rounds: int) -> None:
    """Median CPU time of each, in turns; the ratio is the last one's over the first one's."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    medians = {name: float(np.median(t)) for name, t in times.items()}
    for name, t in medians.items():
        print(f"{label:28}{name:10}{t * 1e6:9.4g} us", flush=True)
    if len(medians) > 1:
        first, *_, last = medians.values()
        print(f"{label:28}{'ratio':10}{last / first:9.3g}", flush=True)


def zdt(which: int) -> Callable[[np.ndarray], np.ndarray]:
    """Zitzler, Deb & Thiele 2000."""

    def f(x: np.ndarray) -> np.ndarray:
        g = 1 + 9 * x[:, 1:].mean(axis=1)
        r = x[:, 0] / g
        wave = r * np.sin(10 * np.pi * x[:, 0]) if which == 3 else 0.0
        return np.column_stack([x[:, 0], g * (1 - (r**2 if which == 2 else np.sqrt(r)) - wave)])

    return f


def dtlz2(x: np.ndarray) -> np.ndarray:
    """Deb et al. 2002, three objectives."""
    g = 1 + ((x[:, 2:] - 0.5) ** 2).sum(axis=1)
    a, b = 0.5 * np.pi * x[:, 0], 0.5 * np.pi * x[:, 1]
    return np.column_stack([g * np.cos(a) * np.cos(b), g * np.cos(a) * np.sin(b), g * np.sin(a)])


TABLES = {
    "bbob": bbob,
    "noise": noise,
    "mixed": mixed,
    "conditional": conditional,
    "orders": orders,
    "bits": bits,
    "pareto": pareto,
    "tuning": tuning,
    "speed": speed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="all by default")
    parser.add_argument("--quick", action="store_true", help="few instances and seeds")
    parser.add_argument("--full", action="store_true", help="those of the documented tables")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    scale = 0 if options.quick else 2 if options.full else 1
    for name in options.tables or TABLES:
        TABLES[name](scale)


if __name__ == "__main__":
    main()
