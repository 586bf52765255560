"""What comes back: the model, what was asked and reached, and the reason for each step."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastopt._files import write_whole
from fastopt.compression.data import Rows
from fastopt.compression.prepare import Option
from fastopt.compression.recipe import Recipe, Workbench
from fastopt.compression.search import Candidate
from fastopt.models import Model

__all__ = [
    "Compressed",
    "Decision",
    "Measures",
    "decisions_of",
    "front_of",
    "latencies",
    "reason",
    "sizes_of",
]

_MOST_ROUNDS, _TIMED_S = 500, 0.1

UNITS = {"size": "bytes", "macs": "multiply-adds", "latency": "of the latency"}


@dataclass(frozen=True)
class Measures:
    """One row of the before/after table.

    Attributes
    ----------
    metric : float
        On the check rows, higher is better.
    n_params, nbytes, macs : int
        Parameters, bytes as saved, multiply-adds for one input row.
    latency_s : float
        Median seconds for one batch, measured interleaved; NaN where it was not measured.
    load_s : float
        Seconds from the file's bytes to a model that runs.
    """

    metric: float
    n_params: int
    nbytes: int
    macs: int
    latency_s: float
    load_s: float = math.nan


@dataclass(frozen=True)
class Decision:
    """One thing that was done, and what it is worth.

    Attributes
    ----------
    name, place, what : str
        The pass, the layer or group, and what was done.
    saved : float
        How much larger the target (bytes, multiply-adds, share of the latency) would be without
        it.
    drop : float or None
        How much better the metric on the search rows would be without it; None where undoing
        every step of a large model would take too long.
    error : float or None
        Relative squared error that the step alone makes in the outputs, as measured before the
        search.
    why : str
        Why this and not the next smaller choice.
    """

    name: str
    place: str
    what: str
    saved: float
    drop: float | None
    error: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Compressed:
    """What :func:`compress` returns.

    Attributes
    ----------
    model : Model
        The compressed model; the original, copied, where no recipe kept the budget. A
        ``ModelProto`` where that was given.
    recipe : Recipe
        The choices that made it; ``recipe.to_dict()`` is JSON.
    before, after : Measures
        On the check rows, which the search never saw.
    max_drop, drop, search_drop : float
        What was asked; what was reached on the check rows and on the search rows.
    std_error : float
        Standard error of ``drop``.
    confidence, p_value : float or None
        What was asked to be certified, and the p-value of "the true drop exceeds max_drop".
    changed : bool
        False where no recipe kept the budget and the model is the original.
    interrupted : bool
        Ctrl-C ended the search; the model is the last one that was confirmed. Latencies are NaN
        then.
    decisions : tuple of Decision
        One per step.
    candidates : tuple of Candidate
        Everything the search evaluated, in order.
    metric, target, method : str
    refused : int
        Smaller recipes that kept the budget on the search rows but not on the check rows.
    n_search, n_check, n_left_out : int
        Rows searched on, checked on, and left out because the original gives NaN there.
    sizes : tuple of (str, int, int, str)
        For each layer its bytes before and after, and the form it is stored in.
    notes : tuple of str
        What was left as it is and why, and what to know about the figures.
    time_s : float
        Seconds the whole job took.
    """

    model: Any
    recipe: Recipe
    before: Measures
    after: Measures
    max_drop: float
    drop: float
    search_drop: float
    changed: bool
    decisions: tuple[Decision, ...]
    candidates: tuple[Candidate, ...]
    metric: str
    target: str
    method: str
    refused: int
    time_s: float
    std_error: float = math.nan
    confidence: float | None = None
    p_value: float | None = None
    interrupted: bool = False
    n_search: int = 0
    n_check: int = 0
    n_left_out: int = 0
    sizes: tuple[tuple[str, int, int, str], ...] = ()
    notes: tuple[str, ...] = ()
    batch: int = 1
    threads: int = 1
    adapter: Model | None = field(default=None, repr=False)
    workbench: Workbench | None = field(default=None, repr=False)

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The Pareto front of cost against drop among the candidates, cheapest first."""
        return front_of(self.candidates)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the compressed model, whole or not at all."""
        (self.adapter or self.model).save(path)

    def save_front(self, folder: str | os.PathLike[str], suffix: str, most: int = 5) -> list[Path]:
        """Write up to ``most`` models of the front into a folder, and ``front.json`` beside them.

        Their drops are those on the search rows: only ``model`` was confirmed on the check rows.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        assert self.workbench is not None
        some = np.linspace(0, len(self.front) - 1, min(most, len(self.front))).round()
        written, facts = [], []
        for k, c in enumerate(self.front[int(i)] for i in some):
            path = target / f"front{k}{suffix}"
            self.workbench.apply(c.recipe).model.save(path)
            written.append(path)
            facts.append(
                {"file": path.name, self.target: c.cost, "search_drop": c.drop}
                | {"recipe": c.recipe.to_dict()}
            )
        with write_whole(target / "front.json") as file:
            file.write(json.dumps(_plain(facts), indent=2).encode())
        return written

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The before/after table, its head first, each cell as text."""
        b, a = self.before, self.after
        low, high = a.metric - 1.96 * self.std_error, a.metric + 1.96 * self.std_error
        sure = f" ({low:.4f}..{high:.4f})" if math.isfinite(self.std_error) else ""
        found = [
            ("", "before", "after", "ratio"),
            (
                self.metric,
                f"{b.metric:.4f}",
                f"{a.metric:.4f}{sure}",
                f"{a.metric - b.metric:+.4f}",
            ),
            ("parameters", f"{b.n_params:,}", f"{a.n_params:,}", _times(b.n_params, a.n_params)),
            ("bytes", f"{b.nbytes:,}", f"{a.nbytes:,}", _times(b.nbytes, a.nbytes)),
            ("multiply-adds", f"{b.macs:,}", f"{a.macs:,}", _times(b.macs, a.macs)),
        ]
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        for name, old, new in (
            (f"latency ({_count(self.batch, 'row')}{threads})", b.latency_s, a.latency_s),
            ("load", b.load_s, a.load_s),
        ):
            if math.isfinite(old) and math.isfinite(new):
                found.append((name, _seconds(old), _seconds(new), _times(old, new)))
        return found

    def table(self) -> str:
        """Before and after, asked and reached, and the reason for each step, as text."""
        rows = self.rows()
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        lines = [
            "  ".join(
                cell.ljust(width) if k == 0 else cell.rjust(width)
                for k, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines += ["", self.verdict()]
        width = max((len(d.place) for d in self.decisions), default=0)
        lines += [f"  {d.name:<9} {d.place:<{width}} {self.describe(d)}" for d in self.decisions]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def describe(self, d: Decision) -> str:
        """A decision and its reason, as text."""
        parts = [f"{d.what}; without it {d.saved:+,.6g} {UNITS[self.target]}"]
        if d.drop is not None:
            parts.append(f"{self.metric} {d.drop:+.4f}")
        if d.why:
            parts.append(d.why)
        return ", ".join(parts)

    def verdict(self) -> str:
        """One sentence: what was asked and what was reached."""
        asked = f"asked: {self.metric} drop <= {self.max_drop:.4g}"
        if self.confidence is not None:
            asked += f" with {self.confidence:.0%} confidence"
        ended = "; interrupted" if self.interrupted else ""
        if not self.changed:
            return f"{asked}; no recipe kept it on the check rows: the model is unchanged{ended}"
        sure = f" +- {self.std_error:.2g}" if math.isfinite(self.std_error) else ""
        proved = "" if self.p_value is None else f", certified (p = {self.p_value:.2g})"
        return (
            f"{asked}; reached {self.drop:.4g}{sure} on {self.n_check} rows that the search did "
            f"not see ({self.search_drop:.4g} on those it saw){proved}{ended}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the model as plain data for JSON."""
        found: dict[str, Any] = _plain(
            {
                "metric": self.metric,
                "target": self.target,
                "method": self.method,
                "max_drop": self.max_drop,
                "drop": self.drop,
                "std_error": self.std_error,
                "search_drop": self.search_drop,
                "confidence": self.confidence,
                "p_value": self.p_value,
                "changed": self.changed,
                "interrupted": self.interrupted,
                "refused": self.refused,
                "n_search": self.n_search,
                "n_check": self.n_check,
                "n_left_out": self.n_left_out,
                "time_s": self.time_s,
                "batch": self.batch,
                "threads": self.threads,
                "before": vars(self.before),
                "after": vars(self.after),
                "recipe": self.recipe.to_dict(),
                "decisions": [vars(d) for d in self.decisions],
                "front": [
                    {"recipe": c.recipe.to_dict(), "cost": c.cost, "drop": c.drop}
                    for c in self.front
                ],
                "n_candidates": len(self.candidates),
                "layers": [
                    {"name": name, "before_bytes": old, "after_bytes": new, "form": form}
                    for name, old, new, form in self.sizes
                ],
                "notes": list(self.notes),
            }
        )
        return found

    def to_json(self) -> str:
        """``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


def front_of(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The Pareto front of cost against drop, cheapest first."""
    best: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: (c.cost, c.drop)):
        if not best or c.drop < best[-1].drop:
            best.append(c)
    return tuple(best)


def decisions_of(
    notes: Sequence[tuple[str, str, str]],
    recipe: Recipe,
    options: Mapping[str, list[Option]],
    undone: Callable[[Recipe], tuple[float, float | None]],
    target: str,
) -> tuple[Decision, ...]:
    """What each step is worth: ``undone`` gives (saved, drop) of a recipe without one step."""
    found = []
    for name, place, what in notes:
        key = f"{name}.{place}"
        saved, drop = undone(recipe.without(key))
        known = options.get(key, [])
        mine = next((o for o in known if o.value == recipe.choices[key]), None)
        error = None if mine is None else mine.error
        why = "" if mine is None else reason(mine, known, target)
        found.append(Decision(name, place, what, saved, drop, error, why))
    return tuple(found)


def reason(mine: Option, known: Sequence[Option], target: str) -> str:
    """Why this option and not the next cheaper one."""
    cheaper = [o for o in known if o.cost < mine.cost]
    if not cheaper:
        return f"error {mine.error:.1e}"
    rival = max(cheaper, key=lambda o: o.cost)
    less = mine.cost - rival.cost
    return (
        f"error {mine.error:.1e}; {rival.value} would save {less:,.4g} {UNITS[target]} more "
        f"at {rival.error:.1e}"
    )


def sizes_of(before: Model, after: Model) -> tuple[tuple[str, int, int, str], ...]:
    """Bytes of each layer in two states of a model; halves of a split layer are added up."""
    found: dict[str, list[Any]] = {n: [x.nbytes, 0, ""] for n, x in before.layers.items()}
    for name, layer in after.layers.items():
        whole = name if name in found else name.removesuffix(".a").removesuffix(".b")
        entry = found.setdefault(whole, [0, 0, ""])
        entry[1] += layer.nbytes
        entry[2] = layer.form.name
    return tuple((name, old, new, form) for name, (old, new, form) in found.items())


@dataclass(frozen=True)
class Timed:
    """Seconds for one batch, the median and the least, and seconds to load."""

    median_s: float
    least_s: float
    load_s: float


def latencies(
    models: Sequence[Model], rows: Rows, batch: int, threads: int, rounds: int = 21
) -> list[Timed]:
    """Time models interleaved; short runs are repeated for a tenth of a second or so."""
    feed = next(rows.feeds(batch))
    runs, loads = [], []
    for model in models:
        start = time.perf_counter()
        run = model.runner([feed], threads=threads)
        run()
        loads.append(time.perf_counter() - start)
        runs.append(run)
    times: list[list[float]] = [[] for _ in models]
    begin = time.perf_counter()
    for k in range(_MOST_ROUNDS):
        if k >= rounds and time.perf_counter() - begin > _TIMED_S:
            break
        for taken, run in zip(times, runs, strict=True):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return [
        Timed(float(np.median(taken)), min(taken), max(0.0, load - min(taken)))
        for taken, load in zip(times, loads, strict=True)
    ]


def _plain(value: Any) -> Any:
    """Without NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def _times(before: float, after: float) -> str:
    return f"{before / after:.1f}x" if after > 0 else "-"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n != 1 else ''}"


def _seconds(t: float) -> str:
    return f"{t * 1e6:.0f} us" if t < 1e-2 else f"{t * 1e3:.0f} ms"
