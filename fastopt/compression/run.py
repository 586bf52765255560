"""The main job: prepare, search, confirm, explain."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt._options import choice, flag, integer, number
from fastopt._random import Seed, generator_of
from fastopt.compression.confirm import (
    Drop,
    bootstrap_p_value,
    drop_of,
    p_value,
    rows_needed,
)
from fastopt.compression.data import Rows, open_rows
from fastopt.compression.explain import (
    Compressed,
    Decision,
    Measures,
    decisions_of,
    front_of,
    latencies,
    sizes_of,
)
from fastopt.compression.margins import Margins, margins_of
from fastopt.compression.metric import (
    Metric,
    Outputs,
    batches_ok,
    collect,
    metric_of,
    relative_error,
)
from fastopt.compression.passes import PASSES
from fastopt.compression.passes.calibration import Calibration
from fastopt.compression.prepare import Option, effects
from fastopt.compression.recipe import Applied, Recipe, Workbench
from fastopt.compression.search import NEAR, Candidate, Memory, Search
from fastopt.errors import ArrayError, DTypeError, FastoptError, OptionError
from fastopt.models import Model, Network
from fastopt.search import Choice

__all__ = [
    "TARGETS",
    "apply_recipe",
    "compress",
    "feed_size",
    "open_model",
    "quantize_model",
    "split",
]

TARGETS = ("size", "macs", "latency")
CHECK_SHARE = 0.25
START_SHARES = (1.0, 0.5, 0.25, 0.125)  # of every layer: where the refinement begins, too

_BATCH_MACS = 2e9  # multiply-adds of one feed
_EVALS_MACS = 4e12  # of the whole search, where the number of recipes is not given
_FEWEST_EVALS, _MOST_EVALS = 16, 200
_MOST_UNDONE = 24  # steps that are undone one by one for the explanation
_LOAD_S = 3.0  # seconds to load that are worth a note
_SIZE_SHARE = 0.1  # of the cost when the target is the latency
_SEQUENCE = 8  # recipes tried for a certificate


def compress(
    model: Any,
    data: Any,
    *,
    max_drop: float = 0.01,
    metric: str | Callable[..., float] | None = None,
    labels: str | None = None,
    classes_axis: int | None = None,
    confidence: float | None = None,
    passes: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    target: str = "size",
    method: str = "auto",
    max_evals: int | None = None,
    max_time: float | None = None,
    calib: Any = None,
    check: Any = None,
    batch: int = 1,
    threads: int = 1,
    portable: bool = False,
    storage: str | os.PathLike[str] | None = None,
    seed: Seed = 0,
    callback: Callable[[int, float], object] | None = None,
    progress: Callable[[str], object] | None = None,
    on_interrupt: str = "return",
) -> Compressed:
    """The smallest version of ``model`` whose metric drops by no more than ``max_drop``.

    What each choice costs and does alone is measured first; a knapsack over these effects gives a
    recipe for every budget, the metric on the search rows picks among them by bisection, and a
    search over the mixed space refines the best. The smallest recipes that keep the budget are
    then tried on check rows that the search never saw, smallest first; the first that keeps it
    there too is returned. ``model`` is not changed.

    Parameters
    ----------
    model : path, onnx.ModelProto or Network
        ``result.model`` has the same kind (an adapter with ``save`` where a path was given).
    data : path, mapping of arrays by input name, (X, y) or X
        See :func:`fastopt.compression.data.open_rows` for how axes are read. Without labels the
        metric compares with the original model's own outputs.
    max_drop : float
        Largest loss of the metric, absolute: 0.01 is one point of accuracy.
    metric : {"accuracy", "r2", "agreement"}, "module:function" or callable, optional
        A callable takes ``(outputs, data, reference)``, dicts of arrays by name, or
        ``(outputs, y)``; higher is better, 1 is perfect. By default accuracy for labels that are
        classes, R^2 for numbers, agreement with the original without labels.
    labels : str, optional
        The array that holds labels; by default ``y``.
    classes_axis : int, optional
        For agreement: the axis of the classes in every output.
    confidence : float, optional
        Certify that the true drop keeps the budget, for example 0.95. By default the drop on the
        check rows plus one standard error must keep it.
    passes : sequence of {"fold", "prune", "merge", "layer", "refit", "quantize"}
        Which passes may act; they are applied in that order. By default all of them; for the
        size of a model that cannot be fitted as a whole (an ONNX graph), fold and quantize: per
        byte fewer bits cost less than fewer units.
    keep : sequence of str
        Patterns of layers and groups that stay as they are.
    target : {"size", "macs", "latency"}
        What is made small: bytes as saved, multiply-adds, or seconds measured here.
    method : {"random", "greedy", "genetic", "auto"}
        The refinement's search, one of :func:`fastopt.minimize`; "auto" refines (genetic) a
        model that can be fitted as a whole; elsewhere effects add up and nothing is gained.
    max_evals, max_time : int, float
        Budget of the search in recipes (by default what suits the model's multiply-adds) and in
        seconds.
    calib : data, optional
        Rows for the Grams (no labels); by default the search rows.
    check : data, optional
        Rows for the final check; by default a quarter of ``data`` is held back for it.
    batch, threads : int
        Rows per run and threads of the latency that is measured.
    portable : bool
        Plain forms only, for run-times that do not fold constants.
    storage : path, optional
        Journal of evaluated recipes: the same call goes on where a killed one ended.
    seed : int, SeedSequence or Generator
    callback : callable, optional
        Called with (recipes evaluated, best cost so far / cost of the original).
    progress : callable, optional
        Called with a line of text when a step begins.
    on_interrupt : {"return", "raise"}
        Ctrl-C returns the last confirmed model (``.interrupted`` is True), or raises.

    Returns
    -------
    Compressed

    Raises
    ------
    OptionError, ArrayError, DTypeError, FormatError, UnsupportedError
        Before any work.

    Notes
    -----
    Reproducible: the same seed gives the same recipe (``target="latency"`` and ``max_time``
    depend on the clock).

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.models import Network
    >>> x = np.random.default_rng(0).standard_normal((300, 8), dtype=np.float32)
    >>> net = Network.mlp((8, 64, 2), seed=0)
    >>> small = fastopt.compress(net, x, max_drop=0.05, max_evals=40)
    >>> small.after.nbytes < net.nbytes
    True
    """
    started = time.monotonic()
    options = _Options(
        number(max_drop, "max_drop", low=0.0),
        _confidence(confidence),
        choice(target, "target", TARGETS),
        choice(method, "method", ("auto", "random", "greedy", "genetic")),
        None if max_evals is None else integer(max_evals, "max_evals", low=1),
        None if max_time is None else number(max_time, "max_time", low=0.0),
        integer(batch, "batch", low=1),
        integer(threads, "threads", low=1),
        () if passes is None else _passes(passes),
        (keep,) if isinstance(keep, str) else tuple(keep),
        seed,
    )
    choice(on_interrupt, "on_interrupt", ("return", "raise"))
    original, give_back = open_model(model, flag(portable, "portable"))
    if not options.passes:
        options = replace(options, passes=_default_passes(original, options.target))
    job = _prepare(original, data, calib, check, labels, metric, classes_axis, options, progress)
    memory = Memory(storage, _identity(job))
    try:
        _run(job, memory, callback)
    except KeyboardInterrupt:
        if on_interrupt == "raise":
            raise
        job.interrupted = True
    finally:
        memory.close()
    return _explained(job, give_back, started)


# --- what a run holds ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Options:
    limit: float
    confidence: float | None
    target: str
    method: str
    max_evals: int | None
    max_time: float | None
    batch: int
    threads: int
    passes: tuple[str, ...]
    keep: tuple[str, ...]
    seed: Seed


@dataclass
class _Job:
    """Rows, reference outputs and findings of one run."""

    original: Model
    options: _Options
    search: Rows
    check: Rows
    calibration: Calibration
    bench: Workbench
    feed: int  # rows per run of an evaluation
    metric: Metric
    search_outputs: Outputs
    check_outputs: Outputs
    n_left_out: int
    say: Callable[[str], object]
    start: Recipe = field(default_factory=Recipe)
    effects: dict[str, list[Option]] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    reference: Outputs = field(default_factory=lambda: Outputs([]))  # with logits
    confirmed: tuple[Candidate, Drop] | None = None
    keeps: Callable[[Candidate], bool] = field(default=lambda c: True)
    p_value: float | None = None
    refused: int = 0
    tried: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False

    def cost(self, model: Model) -> float:
        """What is made small."""
        if self.options.target == "size":
            return float(model.nbytes)
        if self.options.target == "macs":
            return float(model.macs)
        first, ours = latencies(
            [self.original, model], self.check, self.options.batch, self.options.threads, 11
        )
        return ours.least_s / first.least_s + self.per_byte * model.nbytes

    @property
    def per_byte(self) -> float:
        """What a byte of the file adds to the cost; for the latency it decides between equals."""
        per_file = {"size": float(self.original.nbytes), "macs": 0.0, "latency": _SIZE_SHARE}
        return per_file[self.options.target] / self.original.nbytes

    def measure(self, recipe: Recipe) -> tuple[float, float, float, float, float]:
        """Cost, drop, its standard error, error of the logits, cautious drop on search rows."""
        try:
            made = self.bench.apply(recipe).model
            ours = collect(made, self.search, self.feed)
        except FastoptError as refusal:
            self.failures.append(str(refusal))
            return (math.inf,) * 5
        if not self.reference.logits:
            self.reference = collect(self.original, self.search, self.feed)
        limit = NEAR * self.options.limit
        found = drop_of(self.metric, self.search, self.search_outputs, ours, limit)
        error = relative_error(ours, self.reference)
        cautious = found.value
        if self.follows and found.value <= limit:
            cautious = self.margins(self.search, self.search_outputs, ours, found).cautious
        return self.cost(made), found.value, found.std_error, error, cautious

    @property
    def follows(self) -> bool:
        """Whether the metric compares with the original's outputs."""
        return self.search.labels is None

    def margins(self, rows: Rows, original: Outputs, ours: Outputs, drop: Drop) -> Margins:
        """How near a candidate is to losing more."""
        return margins_of(
            self.metric, rows, original, ours, drop, dict(self.original.classes_axis)
        )

    def checked(self, recipe: Recipe) -> tuple[Drop, Outputs]:
        """The drop on the check rows."""
        ours = collect(self.bench.apply(recipe).model, self.check, self.feed)
        return drop_of(self.metric, self.check, self.check_outputs, ours), ours


def _prepare(
    model: Model,
    data: Any,
    calib: Any,
    check: Any,
    labels: str | None,
    metric: str | Callable[..., float] | None,
    classes_axis: int | None,
    options: _Options,
    progress: Callable[[str], object] | None,
) -> _Job:
    """Open the data, run the original once over it, leave out rows on which it gives NaN."""
    say = progress or (lambda text: None)
    rows = open_rows(data, model.inputs, "data", labels)
    held_rows = None if check is None else open_rows(check, model.inputs, "check", labels)
    if held_rows is not None and (rows.labels is None) != (held_rows.labels is None):
        raise OptionError("check: must have labels where data has them, and only there")
    known = None if calib is None else open_rows(calib, model.inputs, "calib")
    judge = metric_of(metric, model, rows, classes_axis)
    _check_limit(options.limit, judge)
    feed = feed_size(model)
    say(f"running the original on {len(rows)} rows")
    single = rows.single or not batches_ok(model, rows)
    rows, outputs, left_out = _finite(model, replace(rows, single=single), feed, "data")
    if held_rows is None:
        seen, held = split(len(rows), CHECK_SHARE, options.seed)
        search, search_outputs = rows.select(seen), outputs.select(seen)
        held_rows, check_outputs = rows.select(held), outputs.select(held)
    else:
        search, search_outputs = rows, outputs
        held_rows = replace(held_rows, single=single)
        held_rows, check_outputs, more = _finite(model, held_rows, feed, "check")
        left_out += more
    known = search if known is None else replace(known, single=single)
    calibration = Calibration(model, known, feed)
    return _Job(
        model, options, search, held_rows, calibration, Workbench(calibration), feed, judge,
        search_outputs, check_outputs, left_out, say,
    )  # fmt: skip


def _check_limit(limit: float, metric: Metric) -> None:
    if metric.bounded and limit >= 1:
        hint = f"; did you mean {limit:g}% ({limit / 100:g})?" if limit < 100 else ""
        raise OptionError(
            f"max_drop: expected a share below 1 of {metric.name}, got {limit:g}{hint}"
        )


def _confidence(value: float | None) -> float | None:
    if value is None:
        return None
    return number(value, "confidence", low=0.5, high=1.0, low_open=True, high_open=True)


def feed_size(model: Model) -> int:
    """Rows per run of an evaluation: fewer for a model of large activations."""
    return int(min(64, max(1, _BATCH_MACS / max(1, model.macs))))


def _finite(model: Model, rows: Rows, feed: int, name: str) -> tuple[Rows, Outputs, int]:
    outputs = collect(model, rows, feed)
    good = np.flatnonzero(outputs.finite)
    if not len(good):
        raise ArrayError(f"{name}: the original model gives NaN on every row")
    left_out = len(rows) - len(good)
    return (rows, outputs, 0) if not left_out else (
        rows.select(good), outputs.select(good), left_out
    )  # fmt: skip


def split(n: int, share: float, seed: Seed) -> tuple[Array, Array]:
    """Row numbers for the search and, apart from them, for the check."""
    order = generator_of(seed).permutation(n)
    held = max(1, round(n * share))
    if n - held < 1:
        raise ArrayError(f"data: {n} rows cannot be split into a search and a check part")
    return np.sort(order[held:]), np.sort(order[:held])


# --- the four steps -----------------------------------------------------------------------


def _run(job: _Job, memory: Memory, callback: Callable[[int, float], object] | None) -> None:
    started = time.monotonic()
    options = job.options
    if options.confidence is not None and job.metric.row_loss is not None:
        needed = rows_needed(options.limit, options.confidence)
        if needed > len(job.check) or options.limit == 0:
            job.notes.append(
                f"{len(job.check)} check rows cannot certify a drop of {options.limit:g} at "
                f"{options.confidence:.0%}: {needed:,} without a single loss would be needed"
            )
            return
    places, job.start = _places(job)
    cost = job.cost(job.original)
    deadline = None if options.max_time is None else started + options.max_time
    search = Search(
        job.measure, cost, options.limit, _evals(job), deadline, memory, callback, job.follows
    )
    job.keeps = search.keeps
    job.candidates = search.candidates
    job.say("measuring what each choice does alone")
    job.effects = effects(
        job.bench, places, job.start, job.cost, job.search, job.feed, job.per_byte,
        lambda done, of: job.say(f"measuring what each choice does alone: {done}/{of}"),
    )  # fmt: skip
    job.say("searching")
    best = search.bisect(job.effects, _refitted(job))
    if options.confidence is None and best is not None:
        _confirm(job, [best])
    for safer in search.safer(job.effects, _refitted(job)):
        if options.confidence is None:
            if job.confirmed is not None:
                break
            _confirm(job, [safer])
    if options.method != "auto" or _fittable(job.original):
        method = "genetic" if options.method == "auto" else options.method
        search.refine(places, _first(job, places), method, options.seed)
    if search.interrupted:
        raise KeyboardInterrupt
    job.say("confirming on rows that the search did not see")
    if options.confidence is not None:
        _certify(job)
    else:
        _confirm(job, job.candidates)


def _refitted(job: _Job) -> Recipe:
    """The recipe that the knapsack's choices are put into: folded, and refitted where possible."""
    refit = PASSES["refit"]
    if refit.NAME not in job.options.passes:
        return job.start
    places = refit.variables(job.original).items()
    return job.start.replaced({f"refit.{k}": refit.start(0.0, v) for k, v in places})


def _places(job: _Job) -> tuple[dict[str, Any], Recipe]:
    """What is searched over, and the recipe that leaves everything as it is (but folded)."""
    start: dict[str, Any] = {}
    fold = PASSES["fold"]
    if fold.NAME in job.options.passes:
        for place, variable in fold.variables(job.original).items():
            start[f"{fold.NAME}.{place}"] = fold.start(1.0, variable)
    model = job.bench.apply(Recipe(start)).model
    for pattern in job.options.keep:
        if not fnmatch.filter([*model.layers, *model.groups], pattern):
            raise OptionError(f"keep: no layer or group is called {pattern!r}")
    variables: dict[str, Any] = {}
    for name in job.options.passes:
        if name == fold.NAME:
            continue
        for place, variable in _variables(model, name, job.options.target).items():
            if not any(fnmatch.fnmatchcase(place, pattern) for pattern in job.options.keep):
                variables[f"{name}.{place}"] = variable
    return variables, Recipe(start)


def _variables(model: Model, name: str, target: str) -> dict[str, Any]:
    """What a pass may do, as far as it serves the target."""
    module = PASSES[name]
    found: dict[str, Any] = (
        module.variables(model, target == "latency")
        if name == "quantize"
        else module.variables(model)
    )
    return found


def _evals(job: _Job) -> int:
    """The recipes that a search evaluates at most; a function of the model's size, not of time."""
    if job.options.max_evals is not None:
        return job.options.max_evals
    work = max(1, job.original.macs) * len(job.search) + 50 * job.original.nbytes
    return int(min(_MOST_EVALS, max(_FEWEST_EVALS, _EVALS_MACS / work)))


def _first(job: _Job, places: Mapping[str, Any]) -> list[Recipe]:
    """Where the refinement begins: what the bisection found, and every place at one share."""
    kept = sorted(filter(job.keeps, job.candidates), key=_size)
    found = [
        {k: c.recipe.choices.get(k, _neutral(v)) for k, v in places.items()} for c in kept[:3]
    ]
    for share in START_SHARES:
        found.append({k: PASSES[k.partition(".")[0]].start(share, v) for k, v in places.items()})
    return [Recipe(f) for f in found]


def _neutral(variable: Any) -> Any:
    return variable.options[0] if isinstance(variable, Choice) else 1.0


def _size(c: Candidate) -> tuple[float, float]:
    return c.cost, c.drop


def _near(job: _Job, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Different recipes cheaper than the original that are within twice the budget."""
    base = job.cost(job.original)
    known = {c.recipe.key: c for c in candidates}
    near = [c for c in known.values() if c.drop <= 2 * job.options.limit and c.cost < base]
    return sorted(near, key=_size)


def _thorough(job: _Job, c: Candidate) -> Candidate | None:
    """The candidate with every pass at its best, if it keeps the budget on the search rows."""
    recipe = c.recipe.final
    if recipe.key != c.recipe.key:
        c = Candidate(recipe, *job.measure(recipe))
    return c if job.keeps(c) else None


def _confirm(job: _Job, candidates: Sequence[Candidate]) -> None:
    """The smallest candidate whose drop plus a standard error keeps the budget on check rows.

    A candidate that was tried before is not tried again.
    """
    for c in _near(job, candidates):
        if job.confirmed is not None and c.cost >= job.confirmed[0].cost:
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


def _holds(job: _Job, c: Candidate, drop: Drop, ours: Outputs) -> bool:
    """Whether the budget is kept with the check rows counted.

    With labels by the drop on them plus one standard error. Where the metric compares with the
    original nothing was fitted to the search rows, so both parts together say more.
    """
    if not job.follows:
        return drop.value + drop.margin <= job.options.limit
    seen = collect(job.bench.apply(c.recipe).model, job.search, job.feed)
    before = drop_of(job.metric, job.search, job.search_outputs, seen)
    margins = job.margins(job.search, job.search_outputs, seen, before)
    joined = margins.joined(job.margins(job.check, job.check_outputs, ours, drop))
    return max(drop.value, joined.scattered) <= job.options.limit


def _certify(job: _Job) -> None:
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
        needed = rows_needed(job.options.limit, confidence, max(0.0, drop.value))
        more = f"about {needed:,} check rows would be needed" if needed else "it drops too much"
        job.notes.append(f"the safest recipe found could not be certified: {more}")
    if job.metric.row_loss is None:
        job.notes.append("the metric is no mean over rows: certified by a percentile bootstrap")


def _p_value(job: _Job, drop: Drop, ours: Outputs) -> float:
    if drop.losses is not None:
        return p_value(drop.losses, job.options.limit)
    return bootstrap_p_value(
        job.metric, job.check, job.check_outputs, ours, job.options.limit, job.options.seed
    )


def _explained(job: _Job, give_back: Callable[[Model], Any], started: float) -> Compressed:
    options = job.options
    found = job.confirmed
    recipe = Recipe() if found is None else found[0].recipe
    applied = job.bench.apply(recipe)
    drop = Drop(0.0, math.nan, len(job.check)) if found is None else found[1]
    base = job.metric.score(job.check_outputs, job.check, job.check_outputs)
    model = applied.model.copy()
    rounds = 3 if job.interrupted else 21
    old, new = latencies([job.original, model], job.check, options.batch, options.threads, rounds)
    facts = [(m.n_params, m.nbytes, m.macs) for m in (job.original, model)]
    notes = [*job.notes, *model.notes]
    if job.failures:
        notes.append(f"{len(job.failures)} recipes could not be applied: {job.failures[0]}")
    if new.load_s > max(_LOAD_S, 2 * old.load_s):
        notes.append(
            f"it loads in {new.load_s:.1f} s instead of {old.load_s:.1f} s, decoding its weights"
        )
    if job.n_left_out:
        notes.append(f"{job.n_left_out} rows were left out: the original gives NaN there")
    return Compressed(
        model=give_back(model),
        recipe=recipe,
        before=Measures(base, *facts[0], old.median_s, old.load_s),
        after=Measures(base - drop.value, *facts[1], new.median_s, new.load_s),
        max_drop=options.limit,
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


def _decisions(job: _Job, recipe: Recipe, applied: Applied) -> tuple[Decision, ...]:
    """The worth of each step: by undoing it, or for large models from what it does alone."""
    if job.interrupted or not _fittable(job.original) or len(applied.notes) > _MOST_UNDONE:

        def known(rest: Recipe) -> tuple[float, float | None]:
            (key,) = set(recipe.choices) - set(rest.choices)
            options = job.effects.get(key, [])
            return -sum(o.cost for o in options if o.value == recipe.choices[key]), None

        return decisions_of(applied.notes, recipe, job.effects, known, job.options.target)
    mine = job.measure(recipe) if applied.notes else (0.0,) * 5

    def undone(rest: Recipe) -> tuple[float, float | None]:
        cost, drop, *_ = job.measure(rest)
        return cost - mine[0], mine[1] - drop

    return decisions_of(applied.notes, recipe, job.effects, undone, job.options.target)


# --- what comes in ------------------------------------------------------------------------


def open_model(model: Any, portable: bool = False) -> tuple[Model, Callable[[Any], Any]]:
    """The adapter of a model, and how its result is given back.

    Raises
    ------
    DTypeError
        Nothing that can be compressed.
    """
    if isinstance(model, Network):
        return model, lambda m: m
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        if path.suffix in (".npz", ".safetensors"):
            return Network.load(path), lambda m: m
        if path.suffix == ".onnx":
            return _onnx(path, portable), lambda m: m
        raise OptionError(
            f"model: expected a file named .onnx, or .npz or .safetensors as Network.save "
            f"writes them, got {os.fspath(model)}"
        )
    if type(model).__name__ == "ModelProto":
        return _onnx(model, portable), lambda m: m.to_proto()
    if all(hasattr(model, name) for name in ("layers", "groups", "run", "keep_units", "copy")):
        return model, lambda m: m
    raise DTypeError(
        "model: expected a path to an .onnx file, an onnx.ModelProto or a "
        f"fastopt.models.Network, got {type(model).__module__}.{type(model).__name__}"
    )


def _onnx(model: Any, portable: bool) -> Model:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        raise ImportError(
            "ONNX models need the packages onnx and onnxruntime: pip install 'fastopt[onnx]'"
        ) from None
    from fastopt.models import OnnxModel

    found: Any = OnnxModel(model, portable=portable)
    return found  # type: ignore[no-any-return]


def _default_passes(model: Model, target: str) -> tuple[str, ...]:
    return tuple(PASSES) if target != "size" or _fittable(model) else ("fold", "quantize")


def _fittable(model: Model) -> bool:
    return bool(PASSES["refit"].variables(model))


def _passes(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise OptionError(f"passes: expected a sequence of names, got {names!r}")
    found = tuple(choice(name, "passes", PASSES) for name in names)
    if not found:
        raise OptionError(f"passes: expected some of {', '.join(PASSES)}, got none")
    return found


def _identity(job: _Job) -> str:
    """A digest of all that a journal's drops depend on."""
    unlike = ("max_evals", "max_time")
    facts: dict[str, Any] = {k: repr(v) for k, v in vars(job.options).items() if k not in unlike}
    facts |= {"metric": job.metric.name, "rows": [len(job.search), len(job.check)]}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for layer in job.original.layers.values():
        digest.update(np.ascontiguousarray(layer.weight).tobytes())
    for outputs in (job.search_outputs, job.check_outputs):
        for part in outputs.parts:
            for name, a in part.items():
                digest.update(name.encode() + np.ascontiguousarray(a).tobytes())
    return digest.hexdigest()


# --- without a search ---------------------------------------------------------------------


def quantize_model(
    model: Any,
    form: str = "int8",
    *,
    data: Any = None,
    keep: Sequence[str] = (),
    portable: bool = False,
) -> tuple[Any, dict[str, str]]:
    """Store every layer that can be in one form; no drop is measured.

    Parameters
    ----------
    model : path, onnx.ModelProto or Network
    form : str
        For example "int8", "int4g", "float16"; layers that do not have it stay as they are.
    data : data, optional
        Rows that GPTQ calibrates on; without them weights are rounded with the best scales.

    Returns
    -------
    model : Model
    done : dict
        For each layer what was done, or why nothing.
    """  # fmt: skip
    original, give_back = open_model(model, portable)
    rows = None if data is None else open_rows(data, original.inputs)
    known = {f.name for layer in original.layers.values() for f in layer.forms}
    choice(form, "form", sorted(known) or [form])
    layers = {
        n: layer
        for n, layer in original.layers.items()
        if not any(fnmatch.fnmatchcase(n, p) for p in keep)
    }
    recipe = Recipe(
        {f"quantize.{n}": form for n, layer in layers.items() if layer.form_named(form)}
    )
    calibration = Calibration(original, rows, feed_size(original))
    applied = Workbench(calibration).apply(recipe)
    done = {place: what for _, place, what in applied.notes}
    return give_back(applied.model), {n: done.get(n, "left as it is") for n in original.layers}


def apply_recipe(
    recipe: Recipe,
    model: Any,
    data: Any,
    *,
    max_drop: float = 0.01,
    metric: str | Callable[..., float] | None = None,
    labels: str | None = None,
    classes_axis: int | None = None,
    confidence: float | None = None,
    calib: Any = None,
    check: Any = None,
    batch: int = 1,
    threads: int = 1,
    portable: bool = False,
    seed: Seed = 0,
) -> Compressed:
    """Repeat a recipe on another model of the same structure, and check its drop on data.

    For a model that was trained again: nothing is searched. Parameters are those of
    :func:`compress`. Where the recipe does not keep ``max_drop`` the original comes back.

    Raises
    ------
    OptionError
        The recipe names a place or a form that the model does not have.
    """
    started = time.monotonic()
    options = _Options(
        number(max_drop, "max_drop", low=0.0), _confidence(confidence), "size", "recipe", 1, None,
        integer(batch, "batch", low=1), integer(threads, "threads", low=1), tuple(PASSES), (),
        seed,
    )  # fmt: skip
    original, give_back = open_model(model, flag(portable, "portable"))
    _check_places(recipe, original)
    job = _prepare(original, data, calib, check, labels, metric, classes_axis, options, None)
    candidate = Candidate(recipe, *job.measure(recipe))
    job.candidates.append(candidate)
    if confidence is None:
        _confirm(job, [candidate])
    else:
        _certify(job)
    return _explained(job, give_back, started)


def _check_places(recipe: Recipe, model: Model) -> None:
    folded = model.copy()
    if any(name == "fold" for name, _, _ in recipe.steps()):
        folded.fold()
    for name, place, value in recipe.steps():
        variables = _variables(model if name == "fold" else folded, name, "latency")
        if place not in variables:
            raise OptionError(f"recipe: {name} cannot act on {place!r} in this model")
        known = getattr(variables[place], "options", ())
        if name == "quantize" and value not in known:
            raise OptionError(f"recipe: {place} cannot be stored as {value!r}")
