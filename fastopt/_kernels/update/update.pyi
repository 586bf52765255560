from typing import Any

import numpy as np

_Array = np.ndarray[Any, np.dtype[Any]]

RULES: dict[str, tuple[tuple[tuple[str, bool], ...], tuple[str, ...]]]

class Tally:
    n_steps: int
    n_skipped: int
    grad_norm: float | None
    skipped: bool

class Plan:
    size: int
    tally: Tally
    n_missing: int
    counts: list[tuple[int, float]]
    def __init__(
        self,
        rules: list[str],
        params: list[_Array],
        states: list[tuple[_Array, ...]],
        groups: list[int],
        scales: list[tuple[_Array, ...]] | None = None,
        seed: int = 0,
        tally: Tally | None = None,
    ) -> None: ...
    def set_options(self, group: int, values: tuple[float, ...]) -> None: ...
    def set_fused(
        self,
        emas: list[_Array] | None,
        ema_share: float,
        copies: list[_Array | None] | None,
        zero_grads: bool,
    ) -> None: ...
    def show_counts(self, out: _Array) -> int: ...
    def hold(self) -> None: ...
    def release(self) -> None: ...
    def holds(self, tensors: tuple[Any, ...]) -> bool: ...
    def step(
        self,
        grads: tuple[Any, ...],
        scale: float,
        max_norm: float,
        guard: bool,
        threads: int,
        moves: bool = True,
    ) -> float: ...
    def count(self, norm: float) -> None: ...
    def step_into(self, i: int, out: _Array, threads: int) -> None: ...
