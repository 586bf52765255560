"""Pictures of a search, as inline SVG (no package needed) or as matplotlib figures.

Each kind of picture is described once, as panels of marks in data coordinates; two short
functions draw panels.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastopt._optional import package
from fastopt._options import choice, integer
from fastopt.errors import OptionError
from fastopt.search.importance import importance
from fastopt.search.layout import Matrix
from fastopt.search.space import Bool, Choice, Float, Int, Permutation, Space

if TYPE_CHECKING:
    from fastopt.search.result import Result

__all__ = ["KINDS", "plot", "shares"]

SHOWN = 2000  # trials drawn at most
CELLS = 24  # of a contour plot, along each side
INK, SOFT, ACCENT = "#334155", "#94a3b8", "#dc2626"


@dataclass
class Panel:
    """One set of axes: marks in data coordinates, and what its axes say."""

    title: str = ""
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    x_ticks: list[tuple[float, str]] | None = None
    y_ticks: list[tuple[float, str]] | None = None
    dots: list[tuple[Matrix, Matrix, Any]] = field(default_factory=list)  # x, y, colour(s)
    lines: list[tuple[Matrix, Matrix, str]] = field(default_factory=list)
    bars: list[tuple[str, float]] = field(default_factory=list)
    cells: tuple[Matrix, Matrix, NDArray[Any]] | None = None  # edges, edges, colours


def plot(
    result: Result,
    kind: str = "history",
    *,
    backend: str = "svg",
    width: int = 640,
    height: int = 320,
    x: str | None = None,
    y: str | None = None,
) -> Any:
    """See ``Result.plot``."""
    choice(kind, "kind", tuple(KINDS))
    choice(backend, "backend", ("svg", "matplotlib"))
    width = integer(width, "width", low=100)
    height = integer(height, "height", low=80)
    if kind != "contour" and (x is not None or y is not None):
        raise OptionError("x, y: are for the contour plot")
    panels = _contour(result, x, y) if kind == "contour" else KINDS[kind](result)
    if backend == "matplotlib":
        return _figure(panels, width, height)
    note = f"{result.method}: {result.n_evals} trials"
    return _svg(panels, width, height, note)


def shares(result: Result) -> dict[str, float]:
    """Share of each variable in what the objective varies, largest first."""
    genomes, y, _ = _told(result)
    groups = [list(range(s.start, s.stop)) for s in result.space.slices.values()]
    found = importance(genomes, y, groups)
    order = np.argsort(-found, kind="stable")
    return {result.space.names[i]: float(found[i]) for i in order}


# --- what is drawn


def _history(result: Result) -> list[Panel]:
    y, best = _one(result), result.best
    shown = _some(np.flatnonzero(np.isfinite(y)))
    panel = Panel(x_label="trial", y_label="objective")
    panel.dots.append((shown.astype(float), _inside(y[shown], result), SOFT))
    steps = np.flatnonzero(np.isfinite(best) & (best != np.append([np.nan], best[:-1])))
    ends = np.append(steps[1:], len(y) - 1)
    if len(steps):
        at = np.stack([steps, ends], axis=1).ravel().astype(float)
        panel.lines.append((at, np.repeat(_inside(best[steps], result), 2), ACCENT))
    return [panel]


def _pareto(result: Result) -> list[Panel]:
    if result.history.ndim != 2:
        raise OptionError("pareto: the search has one objective")
    front = result.pareto.fun
    y = result.history
    kept = _some(np.flatnonzero(np.isfinite(y).all(axis=1)))
    panels = []
    for i in range(1, y.shape[1]):
        panel = Panel(x_label="fun_0", y_label=f"fun_{i}")
        panel.dots.append((y[kept, 0], y[kept, i], SOFT))
        panel.dots.append((front[:, 0], front[:, i], ACCENT))
        panels.append(panel)
    return panels


def _slices(result: Result) -> list[Panel]:
    genomes, y, rows = _told(result)
    keep = _some(np.arange(len(y)))
    active = result.space.active(genomes)
    panels = []
    for name, column in _scalars(result.space):
        on = keep[active[keep, column]]
        panel = _axis(result.space, name, "objective")
        values = result.values[rows[on]][:, column]  # type: ignore[index]
        panel.dots.append((values, _inside(y[on], result), _shades(on / max(len(y) - 1, 1))))
        panels.append(panel)
    return panels


def _contour(result: Result, x: str | None, y: str | None) -> list[Panel]:
    """Two variables: each cell shows a mean of all trials, weighted by nearness."""
    space = result.space
    scalars = dict(_scalars(space))
    chosen = [n for n in shares(result) if n in scalars][:2] if x is None or y is None else [x, y]
    for axis, name in zip("xy", chosen, strict=False):
        choice(name, axis, scalars)
    if len(chosen) < 2 or chosen[0] == chosen[1]:
        raise OptionError("contour: needs two variables")
    genomes, told, rows = _told(result)
    columns = [scalars[n] for n in chosen]
    low, high = space.low[columns], space.high[columns]
    span = np.where(high > low, high - low, 1.0)
    points = (genomes[:, columns] - low) / span
    middle = (np.arange(CELLS) + 0.5) / CELLS
    rank = np.argsort(np.argsort(told)) / max(len(told) - 1, 1)
    across, along = middle[:, None, None] - points[:, 0], middle[None, :, None] - points[:, 1]
    away = across**2 + along**2
    weight = 1.0 / (away + 1e-3) ** 2
    mean = (weight * rank).sum(axis=2) / np.maximum(weight.sum(axis=2), 1e-300)
    edges = [_values_at(space, c, np.linspace(0, 1, CELLS + 1)) for c in columns]
    panel = _axis(space, chosen[0], chosen[1])
    upright = _axis(space, chosen[1], "")
    panel.log_y, panel.y_ticks = upright.log_x, upright.x_ticks
    panel.cells = (edges[0], edges[1], _shades(mean))
    values = result.values[rows][:, columns]  # type: ignore[index]
    keep = _some(np.arange(len(values)))
    panel.dots.append((values[keep, 0], values[keep, 1], INK))
    return [panel]


def _parallel(result: Result) -> list[Panel]:
    """Each trial a line through its place in every variable; the best ones last and darkest."""
    genomes, y, _ = _told(result)
    space = result.space
    span = np.where(space.high > space.low, space.high - space.low, 1.0)
    place = (genomes - space.low) / span
    place = np.where(space.active(genomes), place, np.nan)
    names = _scalars(space)
    order = _some(np.argsort(-y, kind="stable"))
    rank = np.linspace(1, 0, len(order)) if len(order) > 1 else np.zeros(len(order))
    panel = Panel(y_label="place in its range")
    panel.x_ticks = [(float(i), name) for i, (name, _) in enumerate(names)]
    at = np.arange(len(names), dtype=float)
    for row, colour in zip(order, _shades(rank), strict=True):
        panel.lines.append((at, place[row, [c for _, c in names]], colour))
    return [panel]


def _importance(result: Result) -> list[Panel]:
    return [Panel(title="importance", bars=list(shares(result).items()))]


KINDS: dict[str, Callable[..., list[Panel]]] = {
    "history": _history,
    "pareto": _pareto,
    "slices": _slices,
    "contour": _contour,
    "parallel": _parallel,
    "importance": _importance,
}


def _one(result: Result) -> Matrix:
    if result.history.ndim != 1:
        raise OptionError("plot: the search has several objectives; use kind='pareto'")
    return result.history


def _told(result: Result) -> tuple[Matrix, Matrix, NDArray[np.intp]]:
    """Genomes and objective (lower is better) of the trials that have one, and their rows."""
    if result.values is None:
        raise OptionError("plot: trials were not kept; pass keep_trials=True to minimize")
    y = _one(result) * (-1.0 if result.maximize is True else 1.0)
    rows = np.flatnonzero(np.isfinite(y))
    return result.space.genomes_of(result.values[rows]), y[rows], rows


def _scalars(space: Space) -> list[tuple[str, int]]:
    """Variables with one column, and that column; vectors by element, orders not at all."""
    found = []
    for name, where in space.slices.items():
        n = where.stop - where.start
        if isinstance(space.variables[name], Permutation):
            continue
        found += [(name if n == 1 else f"{name}[{i}]", where.start + i) for i in range(n)]
    return found


def _axis(space: Space, name: str, y_label: str) -> Panel:
    v = space.variables[name.partition("[")[0]]
    ticks = None
    if isinstance(v, Choice):
        ticks = [(float(i), str(option)[:12]) for i, option in enumerate(v.options)]
    elif isinstance(v, Bool):
        ticks = [(0.0, "False"), (1.0, "True")]
    log = isinstance(v, (Float, Int)) and v.log
    return Panel(x_label=name, y_label=y_label, log_x=log, x_ticks=ticks)


def _values_at(space: Space, column: int, share: Matrix) -> Matrix:
    """Values of one column at shares of its range, not rounded."""
    at = space.low[column] + share * (space.high[column] - space.low[column])
    values: Matrix = np.exp(at) if column in space.layout.log else at
    return values


def _inside(y: Matrix, result: Result) -> Matrix:
    """Values cut off where a few bad trials would flatten all others."""
    finite = result.history[np.isfinite(result.history)]
    if not len(finite):
        return y
    if result.maximize is True:
        return np.maximum(y, np.quantile(finite, 0.05))
    return np.minimum(y, np.quantile(finite, 0.95))


def _some(rows: NDArray[Any]) -> NDArray[Any]:
    return rows if len(rows) <= SHOWN else rows[np.linspace(0, len(rows) - 1, SHOWN).astype(int)]


def _shades(share: Matrix) -> NDArray[Any]:
    """Colours from dark blue (0) to light grey (1)."""
    t = np.clip(np.nan_to_num(np.asarray(share, dtype=np.float64), nan=1.0), 0.0, 1.0)
    dark, light = np.array([30, 58, 138]), np.array([226, 232, 240])
    rgb = np.rint(dark + t[..., None] * (light - dark)).astype(int)
    names = np.array(["#{:02x}{:02x}{:02x}".format(*c) for c in rgb.reshape(-1, 3)], dtype=object)
    return names.reshape(t.shape)


# --- SVG


class _Scale:
    """Data to pixels along one axis."""

    def __init__(self, values: Sequence[Matrix], start: float, stop: float, log: bool) -> None:
        every = np.concatenate([np.ravel(v) for v in values]) if values else np.empty(0)
        every = every[np.isfinite(every)]
        self.log = log and len(every) > 0 and bool((every > 0).all())
        every = np.log(every) if self.log else every
        self.low = float(every.min()) if len(every) else 0.0
        self.high = float(every.max()) if len(every) else 1.0
        if self.high <= self.low:
            pad = max(abs(self.low) * 0.05, 0.5 if not self.log else 0.1)
            self.low, self.high = self.low - pad, self.high + pad
        self.start, self.stop = start, stop

    def __call__(self, v: Matrix | float) -> Any:
        v = np.log(v) if self.log else np.asarray(v, dtype=np.float64)
        return self.start + (v - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        at = [self.low + (self.high - self.low) * i / 2 for i in range(3)]
        return [(v, f"{v:.3g}") for v in (np.exp(at).tolist() if self.log else at)]


def _svg(panels: list[Panel], width: int, height: int, note: str) -> str:
    across = 1 if len(panels) == 1 else min(3, len(panels))
    down = -(-len(panels) // across)
    w, h = width / across, height * (1.0 if len(panels) == 1 else 0.75)
    parts = []
    for i, panel in enumerate(panels):
        left, top = (i % across) * w, (i // across) * h
        draw = _svg_bars if panel.bars else _svg_axes
        parts.append(f'<g transform="translate({left:.1f},{top:.1f})">{draw(panel, w, h)}</g>')
    total = int(down * h) + 16
    note = f'<text x="4" y="{total - 4}">{html.escape(note)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" '
        f'width="{width}" height="{total}" font-family="sans-serif" font-size="11" '
        f'fill="{INK}">{"".join(parts)}{note}</svg>'
    )


def _svg_axes(panel: Panel, w: float, h: float) -> str:
    left, right, top, bottom = 52.0, w - 10, 12.0, h - 36
    xs = [m[0] for m in [*panel.dots, *panel.lines]]
    ys = [m[1] for m in [*panel.dots, *panel.lines]]
    if panel.cells is not None:
        xs, ys = [panel.cells[0]], [panel.cells[1]]
    if panel.x_ticks:
        xs.append(np.array([v for v, _ in panel.x_ticks]))
    x, y = _Scale(xs, left, right, panel.log_x), _Scale(ys, bottom, top, panel.log_y)
    out = []
    if panel.cells is not None:
        gx, gy = x(panel.cells[0]), y(panel.cells[1])
        for (i, j), colour in np.ndenumerate(panel.cells[2]):
            out.append(
                f'<rect x="{gx[i]:.1f}" y="{gy[j + 1]:.1f}" width="{gx[i + 1] - gx[i] + 0.3:.1f}" '
                f'height="{gy[j] - gy[j + 1] + 0.3:.1f}" fill="{colour}"/>'
            )
    for a, b, colour in panel.dots:
        colours = np.broadcast_to(np.asarray(colour, dtype=object), np.shape(a))
        out += [
            f'<circle cx="{p:.1f}" cy="{q:.1f}" r="2" fill="{c}"/>'
            for p, q, c in zip(x(a), y(b), colours, strict=True)
        ]
    for a, b, colour in panel.lines:
        on = np.isfinite(b)
        points = " ".join(f"{p:.1f},{q:.1f}" for p, q in zip(x(a[on]), y(b[on]), strict=True))
        out.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>'
        )
    out.append(
        f'<path d="M{left},{top}V{bottom}H{right}" fill="none" stroke="{SOFT}"/>'
        f'<text x="{(left + right) / 2:.1f}" y="{h - 6:.1f}" text-anchor="middle">'
        f"{html.escape(panel.x_label)}</text>"
        f'<text transform="translate(12,{(top + bottom) / 2:.1f}) rotate(-90)" '
        f'text-anchor="middle">{html.escape(panel.y_label)}</text>'
    )
    for v, text in panel.x_ticks or x.ticks():
        out.append(
            f'<text x="{float(x(v)):.1f}" y="{bottom + 14:.1f}" text-anchor="middle">'
            f"{html.escape(text)}</text>"
        )
    for v, text in panel.y_ticks or y.ticks():
        out.append(
            f'<text x="{left - 4:.1f}" y="{float(y(v)) + 4:.1f}" text-anchor="end">'
            f"{html.escape(text)}</text>"
        )
    return "".join(out)


def _svg_bars(panel: Panel, w: float, h: float) -> str:
    room = (h - 16) / max(len(panel.bars), 1)
    most = max([v for _, v in panel.bars] + [1e-12])
    out = []
    for i, (name, value) in enumerate(panel.bars):
        top = 8 + i * room
        out.append(
            f'<text x="{w * 0.28:.1f}" y="{top + room / 2 + 4:.1f}" text-anchor="end">'
            f"{html.escape(name[:24])}</text>"
            f'<rect x="{w * 0.3:.1f}" y="{top + room * 0.15:.1f}" height="{room * 0.7:.1f}" '
            f'width="{value / most * w * 0.58:.1f}" fill="#1e3a8a"/>'
            f'<text x="{w * 0.31 + value / most * w * 0.58:.1f}" y="{top + room / 2 + 4:.1f}">'
            f"{value:.0%}</text>"
        )
    return "".join(out)


# --- matplotlib


def _figure(panels: list[Panel], width: int, height: int) -> Any:
    figure_of = package("matplotlib.figure", "plot").Figure
    across = 1 if len(panels) == 1 else min(3, len(panels))
    down = -(-len(panels) // across)
    figure = figure_of(figsize=(width / 100, down * height / 100), layout="constrained")
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(down, across, i + 1)
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        if panel.bars:
            names, values = zip(*reversed(panel.bars), strict=True)
            axes.barh(names, values)
            continue
        if panel.cells is not None:
            gx, gy, colours = panel.cells
            rgb = [[_rgb(c) for c in column] for column in colours.T]
            axes.pcolormesh(gx, gy, np.array(rgb))
        for a, b, colour in panel.dots:
            axes.scatter(a, b, s=6, c=colour if isinstance(colour, str) else list(colour))
        for a, b, colour in panel.lines:
            axes.plot(a, b, color=colour, linewidth=1)
        if panel.log_x:
            axes.set_xscale("log")
        if panel.log_y:
            axes.set_yscale("log")
        if panel.x_ticks:
            axes.set_xticks([v for v, _ in panel.x_ticks], [t for _, t in panel.x_ticks])
        if panel.y_ticks:
            axes.set_yticks([v for v, _ in panel.y_ticks], [t for _, t in panel.y_ticks])
    return figure


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
