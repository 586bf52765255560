"""The engine of each method's name, and what "auto" chooses for a space and a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastopt._options import choice
from fastopt._random import Seed
from fastopt.errors import FastoptError, FormatError, OptionError
from fastopt.search.cma import CMA
from fastopt.search.de import DE
from fastopt.search.engine import Engine, Random
from fastopt.search.genetic import Genetic
from fastopt.search.gp import GP
from fastopt.search.greedy import Greedy
from fastopt.search.islands import Islands
from fastopt.search.nsga2 import NSGA2
from fastopt.search.portfolio import Portfolio, is_real
from fastopt.search.space import Float, Int, Permutation, Space, Vector
from fastopt.search.subset import Subset
from fastopt.search.tpe import TPE

__all__ = ["METHODS", "engine_for"]

ENGINES: dict[str, type[Engine]] = {
    e.method: e
    for e in (Random, Greedy, Genetic, Islands, CMA, Portfolio, GP, TPE, DE, NSGA2, Subset)
}
METHODS = ("auto", *ENGINES)
# Most trials for which the models are worth their time: all spaces, and those of reals alone.
GP_BUDGET, GP_REAL, TPE_BUDGET = 100, 60, 1000
# Columns up to which the Gaussian process and the Hessian of the portfolio are affordable.
GP_COLUMNS, GRADIENT_COLUMNS = 50, 1000
# Cells of one vectorised batch of random trials.
BATCH_CELLS = 1 << 16


def engine_for(
    method: str | Engine,
    space: Space,
    *,
    max_evals: int | None = None,
    vectorized: bool = False,
    seed: Seed = 0,
    x0: Any = None,
    stored: Mapping[str, Any] | None = None,
) -> tuple[Engine, str]:
    """The engine of a search and the reason for it.

    Nothing here depends on who evaluates, so any number of workers gives the same trials.
    ``stored`` is the header of the journal of a search that is continued: it keeps the engine and
    its options, whatever its budget was.
    """
    if isinstance(method, Engine):
        if method.space != space:
            raise OptionError("method: the engine was made for another space")
        if x0 is not None:
            raise OptionError("x0: is for the engine's constructor when an engine is given")
        return method, "given"
    choice(method, "method", METHODS)
    budget = max_evals if max_evals is not None else 10_000
    name, reason = (
        (method, "asked for") if method != "auto" else _chosen(space, budget, vectorized)
    )
    options: dict[str, Any] = {}
    if stored and (method == "auto" or stored.get("method") == method):
        name, options = stored["method"], dict(stored["options"])
        if name not in ENGINES:
            raise OptionError(f"storage: was made by an engine that is not here, {name!r}")
        try:
            ENGINES[name](space, seed=0, **options)
        except FastoptError as error:  # nobody asked for them, so they are the file's fault
            raise FormatError(f"storage: the options of its engine: {error}") from None
    if name == "random":
        if x0 is not None:
            raise OptionError("x0: random search takes no first trials; use another method")
    else:
        options["x0"] = x0
    if name in ("genetic", "nsga2") and "population" not in options:
        mu = 50 if vectorized else max(8, min(50, round(math.sqrt(budget))))
        if name == "genetic" and _orders(space):
            mu = 10  # 6.0 against 7.1 with 50 on a tour of 50 points, 20,000 trials
        options.update(population=mu, unique=not vectorized)
    if name == "islands":
        options.setdefault("unique", not vectorized)
    if name == "de":
        options.setdefault("budget", budget)
    engine = ENGINES[name](space, seed=seed, **options)
    d = space.n_columns
    if name == "random" and vectorized:
        engine.batch = max(1, min(1024, BATCH_CELLS // d))
    elif name == "greedy":
        engine.batch = min(1024, max(8, 2 * d)) if vectorized else 4
    elif isinstance(engine, Genetic):
        mu = engine.population
        engine.batch = mu if vectorized else max(2, min(mu, budget // 16))
        if name == "genetic" and _orders(space):
            engine.batch = 4
    elif isinstance(engine, Islands) and vectorized:
        engine.batch = engine.islands[0].population
    if stored and stored.get("method") == name:
        engine.batch = stored.get("own_batch", engine.batch)
    return engine, reason


def _orders(space: Space) -> bool:
    """Whether most columns are those of orders."""
    columns = sum(v.n for v in space.variables.values() if isinstance(v, Permutation))
    return 2 * columns > space.n_columns


def _chosen(space: Space, budget: int, vectorized: bool) -> tuple[str, str]:
    """What "auto" stands for: measured in benchmarks/search_quality.py."""
    kinds = {type(v) for v in space.variables.values()}
    d = space.n_columns
    if space.conditional and not vectorized and budget <= TPE_BUDGET:
        return "tpe", "variables under conditions"
    if is_real(space):
        if budget <= GP_REAL and d <= GP_COLUMNS and not vectorized:
            return "gp", f"at most {GP_REAL} trials"
        if d > GRADIENT_COLUMNS or budget < 4 * d:
            return "cma", "too many real variables for finite differences within the budget"
        return "portfolio", "every variable is real"
    if budget <= GP_BUDGET and d <= GP_COLUMNS and not vectorized and Permutation not in kinds:
        return "gp", f"at most {GP_BUDGET} trials of mixed variables"
    if kinds <= {Float, Int, Vector} and not space.conditional and budget >= 50 * d:
        return "cma", "reals and integers, at least 50 trials per variable"
    return "genetic", "mixed variables and many trials"
