"""Which of the recipes found is returned: the smallest that keeps the budget on unseen rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastopt.compression.confirm import Drop, bootstrap_p_value, p_value, rows_needed
from fastopt.compression.explain import front_of, latencies
from fastopt.compression.job import HOPE, Job
from fastopt.compression.metric import Outputs
from fastopt.compression.search import Candidate
from fastopt.models import Model

__all__ = ["LOAD_S", "by_size", "certify", "confirm"]

LOAD_S = 3.0  # seconds to load that are always granted; beyond, twice the original's

_FASTER = 0.97  # of a latency: less is noise
_ROUNDS = 41  # of the timing that decides
_SEQUENCE = 8  # recipes tried for a certificate


def by_size(c: Candidate) -> tuple[float, float]:
    """Cheapest first; among equals the one that drops less."""
    return c.cost, c.drop


def _near(job: Job, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Different recipes cheaper than the original that are within twice the budget."""
    base = job.cost(job.original)
    known = {c.recipe.key: c for c in candidates}
    limit = HOPE * job.options.max_drop
    near = [c for c in known.values() if c.drop <= limit and c.cost < base]
    return sorted(near, key=by_size)


def _thorough(job: Job, c: Candidate) -> Candidate | None:
    """The candidate with every pass at its best, if it keeps the budget on the search rows, loads
    in time and, where that was asked for, is faster when timed once more."""
    recipe = c.recipe.final
    if recipe.key != c.recipe.key:
        c = Candidate(recipe, *job.measure(recipe))
    if not job.keeps(c):
        return None
    model = job.bench.apply(recipe).model
    if not _loads(job, model):
        job.slow.add(recipe.key)
        return None
    if job.options.target == "latency":
        c = replace(c, cost=job.cost(model, _ROUNDS))
        return c if c.cost < job.cost(job.original) else None
    return c


def _loads(job: Job, model: Model) -> bool:
    """Whether a model loads in ``LOAD_S`` or twice the original's seconds; a slow one is asked
    twice."""
    for _ in range(2):
        old, new = latencies([job.original, model], job.check, job.options.batch, 1, 1)
        if new.load_s <= max(LOAD_S, 2 * old.load_s):
            return True
    return False


def confirm(job: Job, candidates: Sequence[Candidate]) -> None:
    """The smallest candidate whose drop plus a standard error keeps the budget on check rows.

    A candidate that was tried before is not tried again.
    """
    for c in _near(job, candidates):
        gain = _FASTER if job.options.target == "latency" else 1.0
        if job.confirmed is not None and c.cost >= gain * job.confirmed[0].cost:
            return
        if c.recipe.key in job.tried:
            continue
        job.tried.add(c.recipe.key)
        thorough = _thorough(job, c)
        if thorough is None:
            continue
        drop, ours = job.checked(thorough.recipe)
        if not math.isfinite(drop.std_error):  # one check row: the search rows say how rows differ
            error = thorough.std_error * math.sqrt(len(job.search) / drop.n)
            drop = replace(drop, std_error=error)
        if _holds(job, thorough, drop, ours):
            job.confirmed = thorough, drop
            return
        job.refused += 1


def _holds(job: Job, c: Candidate, drop: Drop, ours: Outputs) -> bool:
    """Whether the budget is kept with the check rows counted.

    The drop on them plus one standard error must keep it. Where the metric compares with the
    original nothing was fitted to the search rows, so the margins of both parts together count,
    too; without that, Student's t widens the standard error of few rows.
    """
    if not job.follows:
        return drop.value + drop.margin <= job.options.max_drop
    if drop.value + drop.std_error > job.options.max_drop:
        return False
    if c.recipe.key not in job.seen:  # known from a journal
        job.measure(c.recipe)
    joined = job.seen[c.recipe.key].joined(job.margins(job.check, job.check_outputs, ours, drop))
    return joined.scattered <= job.options.max_drop


def certify(job: Job) -> None:
    """Fixed-sequence testing: from the safest recipe on, until one is not certified."""
    confidence = job.options.confidence
    assert confidence is not None
    front = [c for c in front_of(_near(job, job.candidates)) if job.keeps(c)]
    order = front[::-1]  # largest and safest first
    picked = np.unique(np.linspace(0, len(order) - 1, min(_SEQUENCE, len(order))).round())
    drop = None
    for k in picked:
        c = _thorough(job, order[int(k)])
        if c is None:
            break
        drop, ours = job.checked(c.recipe)
        p = _p_value(job, drop, ours)
        if p > 1 - confidence:
            job.refused += 1
            break
        job.confirmed, job.p_value = (c, drop), p
    if job.confirmed is None and drop is not None:
        needed = rows_needed(job.options.max_drop, confidence, max(0.0, drop.value))
        more = f"about {needed:,} check rows would be needed" if needed else "it drops too much"
        job.notes.append(f"the safest recipe found could not be certified: {more}")
    if job.metric.row_loss is None:
        job.notes.append("the metric is no mean over rows: certified by a percentile bootstrap")


def _p_value(job: Job, drop: Drop, ours: Outputs) -> float:
    if drop.losses is not None:
        return p_value(drop.losses, job.options.max_drop)
    return bootstrap_p_value(
        job.metric, job.check, job.check_outputs, ours, job.options.max_drop, job.options.seed
    )
