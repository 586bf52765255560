"""One self-contained HTML file: tables and inline SVG, no script, no network.

report.write(result, "report.html")                    # of one fastopt.compress
Page("Title").text("...").table(head, rows).chart(lines({...})).save(path)
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping, Sequence

from fastopt._files import write_whole
from fastopt.compression import Compressed
from fastopt.search import Result

__all__ = ["Page", "lines", "points", "write", "write_search"]

_COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#475569")
_WIDTH, _HEIGHT = 680, 320
_BARS = 40  # layers drawn
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 16, 14, 46

_STYLE = """
:root { color-scheme: light dark; --ink: #1e293b; --soft: #64748b; --rule: #e2e8f0;
        --paper: #ffffff; --panel: #f8fafc; }
@media (prefers-color-scheme: dark) { :root { --ink: #e2e8f0; --soft: #94a3b8; --rule: #334155;
        --paper: #0f172a; --panel: #1e293b; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 760px; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin-bottom: .2rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p { margin: .5rem 0; } .lead { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
        margin: .8rem 0; font-size: .93rem; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; }
svg { width: 100%; height: auto; background: var(--panel); border-radius: 8px; margin: .5rem 0; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--soft); }
code { background: var(--panel); padding: .1rem .3rem; border-radius: 4px; }
"""


class Page:
    """A report under construction; every call returns the page, so calls chain."""

    def __init__(self, title: str, lead: str = "") -> None:
        self._title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>"]
        if lead:
            self._parts.append(f'<p class="lead">{html.escape(lead)}</p>')

    def heading(self, text: str) -> Page:
        """A section's title."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")
        return self

    def text(self, text: str) -> Page:
        """A paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")
        return self

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Page:
        """A table; the first column is left-aligned, the others right."""
        cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>"
            for row in rows
        )
        self._parts.append(f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>")
        return self

    def chart(self, svg: str) -> Page:
        """A drawing made by :func:`lines` or :func:`points`."""
        self._parts.append(svg)
        return self

    def __str__(self) -> str:
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self._title)}</title><style>{_STYLE}</style></head><body>\n"
            + "\n".join(self._parts)
            + "\n</body></html>\n"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all."""
        with write_whole(path) as file:
            file.write(str(self).encode())


class _Axis:
    """Maps values to pixels and chooses ticks, linear or logarithmic."""

    def __init__(self, values: Sequence[float], start: float, stop: float, log: bool) -> None:
        usable = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
        self._log = log
        low, high = min(usable), max(usable)
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
        self._low, self._high = self._scale(low), self._scale(high)
        margin = 0.04 * (self._high - self._low)
        self._low -= margin
        self._high += margin
        self._start, self._stop = start, stop

    def _scale(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def __call__(self, value: float) -> float:
        share = (self._scale(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._stop - self._start)

    def holds(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not self._log)

    def ticks(self) -> list[float]:
        span = self._high - self._low
        if self._log and span > 1:
            first, last = math.floor(self._low), math.floor(self._high)
            if span > 2.5:
                return [10.0**k for k in range(first + 1, last + 1, max(1, round(span / 6)))]
            finer = [m * 10.0**k for k in range(first, last + 1) for m in (1, 2, 5)]
            return [t for t in finer if self._low <= math.log10(t) <= self._high]
        low, high = (10**self._low, 10**self._high) if self._log else (self._low, self._high)
        raw = (high - low) / 5
        unit = 10 ** math.floor(math.log10(raw))
        step_size = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
        first = math.ceil(low / step_size)
        return [k * step_size for k in range(first, math.floor(high / step_size) + 1)]


def _label(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _frame(x: _Axis, y: _Axis, x_name: str, y_name: str, names: Sequence[str], marks: str) -> str:
    """Grid, ticks, axis names and legend around the marks."""
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">']
    floor, wall = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for t in y.ticks():
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{wall}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{_label(t)}</text>'
        )
    for t in x.ticks():
        parts.append(
            f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{_TOP}" y2="{floor}"/>'
            f'<text x="{x(t):.1f}" y="{floor + 17}" text-anchor="middle">{_label(t)}</text>'
        )
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{wall}" y1="{floor}" y2="{floor}"/>')
    middle = (_TOP + floor) / 2
    parts.append(
        f'<text x="{(_LEFT + wall) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f"{html.escape(x_name)}</text>"
        f'<text x="14" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle})">{html.escape(y_name)}</text>'
    )
    parts.append(marks)
    for k, name in enumerate(names):
        top = _TOP + 16 + 17 * k
        colour = _COLOURS[k % len(_COLOURS)]
        parts.append(
            f'<rect x="{wall - 128}" y="{top - 9}" width="10" height="10" fill="{colour}"/>'
            f'<text x="{wall - 112}" y="{top}">{html.escape(name)}</text>'
        )
    return "".join(parts) + "</svg>"


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_name: str = "",
    y_name: str = "",
    x_log: bool = False,
    y_log: bool = False,
) -> str:
    """SVG of one line a series, each a sequence of (x, y)."""
    flat = [p for s in series.values() for p in s]
    x = _Axis([p[0] for p in flat], _LEFT, _WIDTH - _RIGHT, x_log)
    y = _Axis([p[1] for p in flat], _HEIGHT - _BOTTOM, _TOP, y_log)
    marks = []
    for k, values in enumerate(series.values()):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in values if x.holds(a) and y.holds(b))
        colour = _COLOURS[k % len(_COLOURS)]
        marks.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
    return _frame(x, y, x_name, y_name, list(series), "".join(marks))


def points(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_name: str = "",
    y_name: str = "",
    x_log: bool = False,
    y_log: bool = False,
    y_line: float | None = None,
) -> str:
    """SVG of one cloud of points per series; ``y_line`` draws a level across."""
    flat = [p for s in series.values() for p in s]
    levels = [p[1] for p in flat] + ([] if y_line is None else [y_line])
    x = _Axis([p[0] for p in flat], _LEFT, _WIDTH - _RIGHT, x_log)
    y = _Axis(levels, _HEIGHT - _BOTTOM, _TOP, y_log)
    marks = []
    if y_line is not None and y.holds(y_line):
        marks.append(
            f'<line class="axis" stroke-dasharray="5 4" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" '
            f'y1="{y(y_line):.1f}" y2="{y(y_line):.1f}"/>'
        )
    for k, values in enumerate(series.values()):
        colour = _COLOURS[k % len(_COLOURS)]
        marks += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.2" fill="{colour}" fill-opacity=".65"/>'
            for a, b in values
            if x.holds(a) and y.holds(b)
        ]
    return _frame(x, y, x_name, y_name, list(series), "".join(marks))


def bars(rows: Sequence[tuple[str, float, float, str]], before: str, after: str) -> str:
    """SVG of two horizontal bars per row, (name, before, after, remark); the largest row is 1."""
    height, top = 26, 24
    left, right = 210, 90
    most = max((max(old, new) for _, old, new, _ in rows), default=1.0) or 1.0
    width = _WIDTH - left - right
    parts = [f'<svg viewBox="0 0 {_WIDTH} {top + height * len(rows) + 6}" role="img">']
    for k, (name, colour) in enumerate(((before, _COLOURS[5]), (after, _COLOURS[0]))):
        parts.append(
            f'<rect x="{left + 110 * k}" y="6" width="10" height="10" fill="{colour}"/>'
            f'<text x="{left + 16 + 110 * k}" y="15">{html.escape(name)}</text>'
        )
    for k, (name, old, new, remark) in enumerate(rows):
        y = top + height * k
        short = name if len(name) <= 30 else "..." + name[-27:]
        parts.append(
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">'
            f"<title>{html.escape(name)}</title>{html.escape(short)}</text>"
            f'<rect x="{left}" y="{y + 3}" width="{max(1, width * old / most):.1f}" height="8" '
            f'fill="{_COLOURS[5]}"/>'
            f'<rect x="{left}" y="{y + 12}" width="{max(1, width * new / most):.1f}" height="8" '
            f'fill="{_COLOURS[0]}"/>'
            f'<text x="{_WIDTH - right + 8}" y="{y + 15}">{html.escape(remark)}</text>'
        )
    return "".join(parts) + "</svg>"


def add_result(page: Page, result: Compressed) -> Page:
    """The sections of one compression: before/after, decisions, every recipe tried."""
    head, *rows = result.rows()
    page.heading("Before and after").table(head, rows).text(result.verdict() + ".")
    for note in result.notes:
        page.text(f"Note: {note}.")
    if result.sizes:
        largest = sorted(result.sizes, key=lambda row: -row[1])[:_BARS]
        page.heading("Bytes of each layer" + (" (the largest)" if largest else "")).chart(
            bars(largest, "before", "after")
        )
    if result.decisions:
        page.heading("What was done, and what undoing it would cost").table(
            ("step", "where", "what", result.target, result.metric, "why"),
            [
                (
                    d.name,
                    d.place,
                    d.what,
                    f"{d.saved:+,.6g}",
                    "" if d.drop is None else f"{d.drop:+.4f}",
                    d.why,
                )
                for d in result.decisions
            ],
        )
    if not result.candidates:
        return page
    shown = [c for c in result.candidates if c.drop < 0.5]
    on_front = {id(c) for c in result.front}
    page.heading("Every recipe the search tried").text(
        "Cost against drop on the search rows; the dashed line is the drop that was allowed."
    ).chart(
        points(
            {
                "tried": [(c.cost, c.drop) for c in shown if id(c) not in on_front],
                "Pareto front": [(c.cost, c.drop) for c in shown if id(c) in on_front],
            },
            x_name=result.target + (" in bytes" if result.target == "size" else ""),
            y_name=f"drop of {result.metric}",
            x_log=True,
            y_line=result.max_drop,
        )
    )
    return page


def write(result: Compressed, path: str | os.PathLike[str], title: str = "fastopt report") -> None:
    """Write one compression's report to ``path``."""
    lead = (
        f"{result.method} search over {len(result.candidates)} recipes in {result.time_s:.1f} s, "
        f"smallest {result.target} with at most {result.max_drop:.4g} drop of {result.metric}."
    )
    add_result(Page(title, lead), result).save(path)


def write_search(
    result: Result, path: str | os.PathLike[str], title: str = "fastopt search"
) -> None:
    """Write one HTML file of a finished search: the best trial, pictures, the best trials."""
    lead = f"{result.n_evals} evaluations by {result.method}: {result.message}"
    page = Page(title, lead)
    if result.x is None:
        page.text("No trial gave a value.").save(path)
        return
    page.heading("Best trial").table(
        ["variable", "value"], [[name, _shown(value)] for name, value in result.x.items()]
    )
    page.text(f"Objective: {_shown(result.fun)}")
    if result.n_failed:
        page.text(f"{result.n_failed} trials failed.")
    several = result.history.ndim == 2
    kinds = ("pareto",) if several else ("history", "importance", "slices", "parallel")
    for kind in kinds if result.values is not None else ():
        page.heading(kind.capitalize()).chart(result.plot(kind))
    if result.values is not None:
        y = result.history[:, 0] if several else result.history
        order = (-y if result.maximize is True else y).argsort(kind="stable")[:20]
        columns = result.trials
        names = list(columns)
        rows = [[_shown(columns[name][i]) for name in names] for i in order]
        page.heading("Best trials").table(names, rows)
    page.save(path)


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
