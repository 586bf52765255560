"""What one compression holds: the model, its rows, the original's outputs, the findings."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt._random import Seed, generator_of
from fastopt.compression.confirm import Drop, drop_of
from fastopt.compression.data import Rows, open_rows
from fastopt.compression.explain import latencies
from fastopt.compression.margins import Margins, margins_of
from fastopt.compression.metric import (
    Metric,
    Outputs,
    batches_ok,
    collect,
    metric_of,
    relative_error,
)
from fastopt.compression.options import Options
from fastopt.compression.passes import PASSES, quantize
from fastopt.compression.passes.calibration import Calibration
from fastopt.compression.prepare import Option, Prices
from fastopt.compression.recipe import Recipe, Workbench
from fastopt.compression.search import NEAR, Candidate
from fastopt.compression.team import Team
from fastopt.errors import ArrayError, FastoptError, OptionError
from fastopt.models import Model

__all__ = ["HOPE", "Job", "feed_size", "fittable", "identity", "narrow", "open_job", "split"]

CHECK_SHARE = 0.25

_BATCH_MACS = 2e9  # multiply-adds of one feed
_SIZE_SHARE = 0.1  # of the cost when the target is the latency
_ROUNDS = 11  # of a timing that compares candidates
_QUICK_S = 2e-3  # for one batch
_TYPICAL_BITS = 4  # that weights will have, for what a unit less saves
HOPE = 2.0  # budgets; a candidate that drops more is not worth a look at the clock


@dataclass
class Job:
    """Rows, reference outputs and findings of one run."""

    original: Model
    options: Options
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
    slow: set[str] = field(default_factory=set)  # recipes whose models take too long to load
    seen: dict[str, Margins] = field(default_factory=dict)  # by recipe, on the search rows
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def team(self) -> Team:
        """Who measures."""
        return Team(self.options.workers)

    def cost(self, model: Model, rounds: int = _ROUNDS) -> float:
        """What is made small."""
        if self.options.target == "size":
            return float(model.nbytes)
        if self.options.target == "macs":
            return float(model.macs)
        if model is self.original:
            return 1.0 + self.per_byte * model.nbytes
        first, ours = latencies(
            [self.original, model], self.check, self.options.batch, self.options.threads, rounds
        )
        return ours.least_s / first.least_s + self.per_byte * model.nbytes

    def rough_cost(self, model: Model) -> float:
        """What a model with fewer units or thinner layers costs, told quickly.

        Multiply-adds stand for a latency beyond ``_QUICK_S``; below, the fixed costs of operators
        count and the clock is quick to ask. Bytes are those of weights in few bits.
        """
        if self.options.target == "latency" and self.original_s < _QUICK_S:
            return self.cost(model)
        if self.options.target == "latency":
            share = model.macs / max(1, self.original.macs)
            return share + self.per_byte * _typical_bytes(model)
        if self.options.target == "size" and quantize.NAME in self.options.acting:
            return _typical_bytes(model)
        return self.cost(model)

    @cached_property
    def original_s(self) -> float:
        """Seconds of the original for one batch."""
        (first,) = latencies(
            [self.original], self.check, self.options.batch, self.options.threads, _ROUNDS
        )
        return first.least_s

    def bytes_saved(self, key: str, form: str) -> float:
        """Bytes that a variable's layer takes less in a form, as a cost: negative."""
        layer = self.bench.apply(self.start).model.layers[key.partition(".")[2]]
        found = layer.form_named(form)
        return 0.0 if found is None else float(found.nbytes - layer.form.nbytes)

    @property
    def prices(self) -> Prices:
        """How the costs of single choices are told."""
        return Prices(self.cost, self.rough_cost, self.per_byte)

    @property
    def per_byte(self) -> float:
        """What a byte of the file adds to the cost; for the latency it decides between equals."""
        per_file = {"size": float(self.original.nbytes), "macs": 0.0, "latency": _SIZE_SHARE}
        return per_file[self.options.target] / self.original.nbytes

    def measure(self, recipe: Recipe) -> tuple[float, ...]:
        """Cost, drop, its standard error, error of the logits, cautious drop on search rows."""
        (found,) = self.measure_all([recipe])
        return found

    def measure_all(self, recipes: Sequence[Recipe]) -> Iterator[tuple[float, ...]]:
        """The same for several recipes, in their order."""
        if not self.reference.logits and recipes:
            self.reference = collect(self.original, self.search, self.feed)
        answers = self.team.map(self._measured, recipes)
        for recipe, found in zip(recipes, answers, strict=True):
            if isinstance(found, FastoptError):
                self.failures.append(str(found))
                yield (math.inf,) * 5
                continue
            numbers, margins = found
            if margins is not None:
                self.seen[recipe.key] = margins
            yield numbers

    def _measured(self, recipe: Recipe) -> tuple[tuple[float, ...], Margins | None] | FastoptError:
        """What :meth:`measure` says of a recipe, and its margins; or why it cannot be applied."""
        try:
            made = self.bench.apply(recipe).model
            ours = collect(made, self.search, self.feed)
        except FastoptError as refusal:
            return refusal
        limit = NEAR * self.options.max_drop
        found = drop_of(self.metric, self.search, self.search_outputs, ours, limit)
        error = relative_error(ours, self.reference)
        cautious, margins = found.value, None
        if self.follows and found.value <= limit:
            margins = self.margins(self.search, self.search_outputs, ours, found)
            cautious = margins.cautious
        dropped = not found.value <= HOPE * self.options.max_drop
        hopeless = dropped and self.options.target == "latency"
        cost = math.inf if hopeless else self.cost(made)
        return (cost, found.value, found.std_error, error, cautious), margins

    @property
    def follows(self) -> bool:
        """Whether the metric compares with the original's outputs."""
        return self.search.labels is None

    def margins(self, rows: Rows, original: Outputs, ours: Outputs, drop: Drop) -> Margins:
        """How near a candidate is to losing more."""
        axes = dict(self.original.classes_axis)
        return margins_of(self.metric, rows, original, ours, drop, axes)

    def checked(self, recipe: Recipe) -> tuple[Drop, Outputs]:
        """The drop on the check rows."""
        ours = collect(self.bench.apply(recipe).model, self.check, self.feed)
        return drop_of(self.metric, self.check, self.check_outputs, ours), ours


def open_job(
    model: Model, data: Any, options: Options, progress: Callable[[str], object] | None
) -> Job:
    """Open the data, run the original once over it, leave out rows on which it gives NaN."""
    say = progress or (lambda text: None)
    rows = open_rows(data, model.inputs, "data", options.labels)
    held_rows = None
    if options.check is not None:
        held_rows = open_rows(options.check, model.inputs, "check", options.labels)
    if held_rows is not None and (rows.labels is None) != (held_rows.labels is None):
        raise OptionError("check: must have labels where data has them, and only there")
    known = None
    if options.calib is not None:
        known = open_rows(options.calib, model.inputs, "calib")
    judge = metric_of(options.metric, model, rows, options.classes_axis)
    _check_limit(options.max_drop, judge)
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
    return Job(
        model, options, search, held_rows, calibration, Workbench(calibration), feed, judge,
        search_outputs, check_outputs, left_out, say,
    )  # fmt: skip


def _typical_bytes(model: Model) -> float:
    """Bytes of the file once every layer that can has few bits."""
    found = float(model.nbytes)
    for layer in model.layers.values():
        coded = [f.nbytes for f in layer.forms if f.integer and f.bits >= _TYPICAL_BITS]
        found -= layer.form.nbytes - min([layer.form.nbytes, *coded])
    return found


def _check_limit(limit: float, metric: Metric) -> None:
    if metric.bounded and limit >= 1:
        hint = f"; did you mean {limit:g}% ({limit / 100:g})?" if limit < 100 else ""
        raise OptionError(
            f"max_drop: expected a share below 1 of {metric.name}, got {limit:g}{hint}"
        )


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


def identity(job: Job) -> str:
    """A digest of all that a journal's drops depend on."""
    facts: dict[str, Any] = dict(job.options.facts)
    facts |= {"metric": job.metric.name, "rows": [len(job.search), len(job.check)]}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for layer in job.original.layers.values():
        digest.update(np.ascontiguousarray(layer.weight).tobytes())
    for outputs in (job.search_outputs, job.check_outputs):
        for part in outputs.parts:
            for name, a in part.items():
                digest.update(name.encode() + np.ascontiguousarray(a).tobytes())
    return digest.hexdigest()


def fittable(model: Model) -> bool:
    """Whether all parameters of a model can be fitted to outputs at once."""
    return bool(PASSES["refit"].variables(model))


def narrow(model: Model) -> bool:
    """Whether layers can be stored as integers: a choice whose effects add up.

    Elsewhere a model gets smaller by fewer units and thinner layers alone, whose effects do not.
    """
    return any(form.integer for layer in model.layers.values() for form in layer.forms)
