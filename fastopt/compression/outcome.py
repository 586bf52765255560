"""The end of a compression: before and after, and what each step was worth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from fastopt.compression.accept import LOAD_S
from fastopt.compression.confirm import Drop
from fastopt.compression.explain import (
    Compressed,
    Decision,
    Measures,
    Timed,
    decisions_of,
    latencies,
    sizes_of,
)
from fastopt.compression.job import Job, fittable, narrow
from fastopt.compression.recipe import Applied, Recipe
from fastopt.models import Model

__all__ = ["explained"]

_MOST_UNDONE = 24  # steps that are undone one by one for the explanation


def explained(job: Job, give_back: Callable[[Model], Any], started: float) -> Compressed:
    options = job.options
    found = job.confirmed
    recipe = Recipe() if found is None else found[0].recipe
    applied = job.bench.apply(recipe)
    drop = Drop(0.0, math.nan, len(job.check)) if found is None else found[1]
    base = job.metric.score(job.check_outputs, job.check, job.check_outputs)
    model = applied.model.copy()
    if job.interrupted:  # the answer to Ctrl-C does not wait for measurements
        old = new = Timed(math.nan, math.nan, math.nan)
    else:
        old, new = latencies([job.original, model], job.check, options.batch, options.threads)
    facts = [(m.n_params, m.nbytes, m.macs) for m in (job.original, model)]
    notes = [*job.notes, *applied.model.notes]  # the copy would look for its groups again
    if job.failures:
        notes.append(f"{len(job.failures)} recipes could not be applied: {job.failures[0]}")
    if job.slow:
        notes.append(
            f"{len(job.slow)} smaller recipes take more than {LOAD_S:g} s and twice the "
            "original's time to load, decoding their weights"
        )
    if job.n_left_out:
        notes.append(f"{job.n_left_out} rows were left out: the original gives NaN there")
    return Compressed(
        model=give_back(model),
        recipe=recipe,
        before=Measures(base, *facts[0], old.median_s, old.load_s),
        after=Measures(base - drop.value, *facts[1], new.median_s, new.load_s),
        max_drop=options.max_drop,
        drop=drop.value,
        search_drop=0.0 if found is None else found[0].drop,
        changed=bool(applied.notes),
        decisions=_decisions(job, recipe, applied),
        candidates=tuple(job.candidates),
        metric=job.metric.name,
        target=options.target,
        method=options.method,
        refused=job.refused,
        time_s=time.monotonic() - started,
        std_error=drop.std_error,
        confidence=options.confidence,
        p_value=job.p_value,
        interrupted=job.interrupted,
        n_search=len(job.search),
        n_check=len(job.check),
        n_left_out=job.n_left_out,
        sizes=sizes_of(job.original, model),
        notes=tuple(notes),
        batch=options.batch,
        threads=options.threads,
        adapter=model,
        workbench=job.bench,
    )


def _decisions(job: Job, recipe: Recipe, applied: Applied) -> tuple[Decision, ...]:
    """The worth of each step: by undoing it, or for large models from what it does alone."""
    additive = narrow(job.original) and not fittable(job.original)
    if job.interrupted or additive or len(applied.notes) > _MOST_UNDONE:

        def known(rest: Recipe) -> tuple[float, float | None]:
            (key,) = set(recipe.choices) - set(rest.choices)
            options = job.effects.get(key, [])
            return -sum(o.cost for o in options if o.value == recipe.choices[key]), None

        return decisions_of(applied.notes, recipe, job.effects, known, job.options.target)
    undone = [recipe.without(f"{name}.{place}") for name, place, _ in applied.notes]
    if not undone:
        return ()
    asked = [recipe, *undone]
    measured = dict(zip([r.key for r in asked], job.measure_all(asked), strict=True))
    mine = measured[recipe.key]

    def worth(rest: Recipe) -> tuple[float, float | None]:
        cost, drop, *_ = measured[rest.key]
        return cost - mine[0], mine[1] - drop

    return decisions_of(applied.notes, recipe, job.effects, worth, job.options.target)
