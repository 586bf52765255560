"""What a compression is asked for: every option checked once, before any work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastopt._options import choice, flag, integer, items, names, number, text
from fastopt._random import Seed
from fastopt.compression.passes import PASSES
from fastopt.compression.team import check_workers
from fastopt.errors import OptionError

__all__ = ["CHECKING", "TARGETS", "Options"]

TARGETS = ("size", "macs", "latency")

# The options that a recipe's check reads; the others steer a search.
CHECKING = frozenset({
    "max_drop", "metric", "labels", "classes_axis", "confidence", "calib", "check", "batch",
    "threads", "portable", "seed", "workers",
})  # fmt: skip


@dataclass(frozen=True)
class Options:
    """The options of :func:`fastopt.compress`, which describes them."""

    max_drop: float = 0.01
    metric: str | Callable[..., float] | None = None
    labels: str | None = None
    classes_axis: int | None = None
    confidence: float | None = None
    passes: Sequence[str] | None = None
    keep: Sequence[str] = ()
    target: str = "size"
    method: str = "auto"
    max_evals: int | None = None
    max_time: float | None = None
    retrain_epochs: int = 0
    calib: Any = None
    check: Any = None
    batch: int = 1
    threads: int = 1
    workers: int = 1
    portable: bool = False
    seed: Seed = 0

    def __post_init__(self) -> None:
        checked = {
            "max_drop": number(self.max_drop, "max_drop", low=0.0),
            "confidence": _confidence(self.confidence),
            "passes": None if self.passes is None else _passes(self.passes),
            "labels": _optional(text, self.labels, "labels"),
            "keep": names(self.keep, "keep"),
            "target": choice(self.target, "target", TARGETS),
            "method": choice(self.method, "method", ("auto", "random", "greedy", "genetic")),
            "max_evals": _optional(integer, self.max_evals, "max_evals", low=1),
            "max_time": _optional(number, self.max_time, "max_time", low=0.0),
            "retrain_epochs": integer(self.retrain_epochs, "retrain_epochs", low=0),
            "batch": integer(self.batch, "batch", low=1),
            "threads": integer(self.threads, "threads", low=1),
            "workers": integer(self.workers, "workers", low=1),
            "portable": flag(self.portable, "portable"),
        }
        check_workers(self.workers)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def acting(self) -> tuple[str, ...]:
        """The passes that may act, once they are chosen."""
        return tuple(self.passes or ())

    @property
    def facts(self) -> dict[str, str]:
        """What a measured drop depends on besides the model, the rows and the metric, as text."""
        names = (
            "max_drop",
            "confidence",
            "passes",
            "keep",
            "target",
            "method",
            "batch",
            "retrain_epochs",
        )
        return {name: repr(getattr(self, name)) for name in (*names, "threads", "seed")}


def _optional(check: Callable[..., Any], value: Any, name: str, **limits: float) -> Any:
    return None if value is None else check(value, name, **limits)


def _confidence(value: float | None) -> float | None:
    if value is None:
        return None
    return number(value, "confidence", low=0.5, high=1.0, low_open=True, high_open=True)


def _passes(given: Sequence[str]) -> tuple[str, ...]:
    if isinstance(given, str):
        raise OptionError(f"passes: expected a sequence of names, got {given!r}")
    found = tuple(choice(name, "passes", PASSES) for name in items(given, "passes"))
    if not found:
        raise OptionError(f"passes: expected some of {', '.join(PASSES)}, got none")
    return found
